"""The dual matrix K = A Aᵀ, explicitly, filled tile by tile: the lower half only, and mirrored.

Over a mesh, the samples of a row of tiles are spread over the devices, those of the columns are on all of them, and so is K.
How a tile is computed from the layers is in `fisher_jax.kernels`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fisher_jax import _checks, linalg
from fisher_jax.factor import Chunks, Factor
from fisher_jax.kernels import TILE_BYTES, Layout, Shapes, feature_bytes, features, layout, scratch, tile_of
from fisher_jax.operators import require_room

Array = jax.Array

# Most rows of K in a tile, which on a CPU should stay in cache, and fewest that a product of rows needs for its rate.
TILE_ROWS, FEWEST_ROWS = 1024, 200
# Tiles in a row of K, if they can be that small: tiles on the diagonal are computed whole, one half for nothing.
TILES = 10
# Bytes of features made in one go: on a CPU, cotangents of many samples at once leave the cache.
BATCH_BYTES = {"cpu": 2**26}


@partial(jax.jit, donate_argnums=0, static_argnums=4)
def _place(K: Array, tile: Array, row: Array, column: Array, shape: tuple[int, int]) -> Array:
    tile = tile[: shape[0], : shape[1]]
    K = jax.lax.dynamic_update_slice(K, tile, (row, column))
    return jax.lax.dynamic_update_slice(K, tile.T, (column, row))


Reporter = Callable[[int, int], None]


def gram(
    factor: Factor,
    *,
    groups: Sequence[Sequence[int]] | None = None,
    tile: int | None = None,
    progress: Reporter | None = None,
) -> list[Array]:
    """`A Aᵀ` `(N·R, N·R)`, split by groups of parameters; their sum is K.

    Args:
        groups: lists of parameter numbers, one matrix each; one matrix of all unless given.
        tile: samples in a tile; chosen from the sizes of their features unless given.
        progress: called with (tiles done, tiles in all).

    Raises:
        ArgumentError: the matrices, or the features of one sample, do not fit in memory.
    """
    if tile is not None:
        tile = _checks.integer("gram", "tile", tile, 1)
    count = len(factor.jacobian.network.params)
    groups = [range(count)] if groups is None else groups
    group = tuple(next((g for g, members in enumerate(groups) if i in members), -1) for i in range(count))
    R, N, mesh = factor.rows_per_sample, factor.jacobian.data.samples, mesh_of(factor)
    require_room("gram", N * R, N * R * len(groups), factor.dtype)
    plan = layout(factor, group)
    tiles = Tiles.of(factor, group, plan, tile)
    if not tiles.fits:
        raise _checks.fail(
            "gram",
            f"layer inputs, cotangents and gradients of one sample take {tiles.each / 2**30:.2g} GiB",
            "choose layers with where=, or take fj.eigsh(F, k, key=key)",
        )
    shapes = Shapes.of(plan)
    chosen = [tuple(group[k.parameters[0]] == g for k in plan.kernels) for g in range(len(groups))]

    def take(number: int) -> list[Any]:
        made = [features(factor, samples_at(factor, *limits), group) for limits in tiles.batches(number)]
        return made[0] if len(made) == 1 else _join(made)

    matrices = [everywhere(jnp.zeros((N * R, N * R), factor.dtype), mesh) for _ in groups]
    done, total = 0, tiles.count * (tiles.count + 1) // 2
    # Features of several rows of tiles are held while those of the columns, made once for all of these rows, pass by.
    for first in range(0, tiles.count, tiles.held):
        held = range(first, min(first + tiles.held, tiles.count))
        mine = {i: take(i) for i in held}
        for j in range(held.stop):
            other = everywhere(mine[j] if j in mine else take(j), mesh)
            for i in (i for i in held if i >= j):
                (row, row_end), (column, column_end) = tiles.limits(i), tiles.limits(j)
                where = (np.int32(row * R), np.int32(column * R))
                shape = ((row_end - row) * R, (column_end - column) * R)
                for g, choice in enumerate(chosen):
                    if not any(choice):
                        continue
                    one = everywhere(tile_of(shapes, mine[i], other, choice), mesh)
                    matrices[g] = _place(matrices[g], one, *where, shape)
                done += 1
                if progress is not None or mesh is not None:
                    jax.block_until_ready(matrices)
                if progress is not None:
                    progress(done, total)
    if factor.centre is not None:
        matrices = [_centred(K, factor.centre) for K in matrices]
    return matrices


@partial(linalg.precise_jit, donate_argnums=0)
def _centred(K: Array, a: Array) -> Array:
    """`(I − a aᵀ) K (I − a aᵀ)`."""
    K = K - jnp.outer(a, a @ K)
    return K - jnp.outer(K @ a, a)


# --- which samples when -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Samples cut into tiles of K; the features of `held` tiles are in memory at a time, made in batches."""

    samples: int
    size: int  # samples in a tile
    batch: int  # samples whose features are made in one go
    held: int
    each: int  # bytes of the features of one sample
    fits: bool

    @classmethod
    def of(cls, factor: Factor, group: tuple[int, ...], plan: Layout, tile: int | None = None) -> "Tiles":
        N, R, mesh = factor.jacobian.data.samples, factor.rows_per_sample, mesh_of(factor)
        each, free = feature_bytes(factor, group), linalg.free_memory()
        between = max((scratch(s, R) for k, s in plan.by_outer()), default=1)
        size = min(N, TILE_ROWS // R, max(-(-N // TILES), FEWEST_ROWS // R))
        size = min(size, max(TILE_BYTES, free // 8) // (2 * each), math.isqrt(TILE_BYTES // (4 * between)))
        size = _multiple(size if tile is None else tile, mesh)
        held = max(1, min(-(-N // size), free // 4 // (each * size)))
        return cls(N, size, min(size, batch_samples(factor, each)), held, each, each * _multiple(1, mesh) <= free // 2)

    @property
    def count(self) -> int:
        return -(-self.samples // self.size)

    @property
    def bytes(self) -> int:
        """Of all features that are in memory at one time."""
        return self.each * self.size * min(self.count, self.held + 1)

    def limits(self, number: int) -> tuple[int, int]:
        """(first sample, one past the last) of a tile."""
        return number * self.size, min((number + 1) * self.size, self.samples)

    def batches(self, number: int) -> Iterator[tuple[int, int]]:
        start, end = self.limits(number)
        for first in range(start, end, self.batch):
            yield first, min(first + self.batch, end)


def batch_samples(factor: Factor, each: int) -> int:
    """Samples whose features, of so many bytes each, are made in one go."""
    most = BATCH_BYTES.get(jax.default_backend(), TILE_BYTES // 2)
    return _multiple(min(factor.jacobian.data.samples, most // each), mesh_of(factor))


def samples_at(factor: Factor, start: int, end: int) -> Chunks:
    """Samples start … end − 1, leaves `(c, ...)`; over a mesh c is rounded up to its size with samples of weight zero."""
    data, mesh = factor.jacobian.data, mesh_of(factor)
    padding = _multiple(end - start, mesh) - (end - start)

    def part(a: Array) -> Array:
        a = a.reshape(-1, *a.shape[2:])[start:end]
        return jnp.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1)) if padding else a

    x, scale, labels = (spread(jax.tree.map(part, a), mesh) for a in (data.x, data.scale, data.labels))
    return Chunks(x, scale, labels, end - start)


def _multiple(count: int, mesh: Mesh | None) -> int:
    devices = 1 if mesh is None else mesh.size
    return -(-max(1, count) // devices) * devices


def mesh_of(factor: Factor) -> Mesh | None:
    """The mesh over which the samples are spread, if there is one."""
    scale = factor.jacobian.data.scale
    sharding = None if _checks.traced(scale) else getattr(scale, "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1 else None  # type: ignore[return-value]


def spread(tree: Any, mesh: Mesh | None) -> Any:
    """The leading axis over all devices of the mesh."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


def everywhere(tree: Any, mesh: Mesh | None) -> Any:
    """A copy on every device of the mesh."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


@jax.jit
def _join(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
