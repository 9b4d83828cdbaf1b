"""The factor A of a Fisher matrix, F = Aᵀ A, over chunks of samples and over devices.

    A = Bᵀ J √W        J: (N·C, P) Jacobian, B: factor of each sample's output Fisher, W: sample weights (1/N each)

When the linearization of the whole data set fits in memory it is made once and every product reuses it: a tangent pass and
a cotangent pass, 4 forward-pass units where a forward plus backward pass costs 3. Otherwise each product runs through the
data in chunks of equal size and linearizes each again (5 units). Rows that pad the last chunk have weight zero.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fisher_jax import _checks, linalg
from fisher_jax._record import record, static
from fisher_jax.functional import Network
from fisher_jax.operators import product, require_room

Array = jax.Array

# Explicit per-sample gradients are formed in batches of about this many bytes: large enough for efficient kernels, small
# enough to stay in cache while they are squared and summed (measured on a CPU: 16 MB is 1.5 x faster than 256 MB).
ROW_BATCH_BYTES = 2**24


@dataclasses.dataclass(frozen=True)
class OutputSpace:
    """Shapes of the outputs of one sample, and the flat vector `(C,)` they make."""

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtype: str

    @classmethod
    def of(cls, outputs: Any) -> "OutputSpace":
        leaves, treedef = jax.tree.flatten(outputs)
        return cls(treedef, tuple(tuple(a.shape) for a in leaves), jnp.result_type(*leaves).name)

    @property
    def size(self) -> int:
        return sum(math.prod(s) for s in self.shapes)

    def flatten(self, outputs: Any) -> Array:
        """Outputs of c samples -> `(c, C)`."""
        leaves = jax.tree.leaves(outputs)
        return jnp.concatenate([a.reshape(a.shape[0], -1) for a in leaves], axis=1)

    def unflatten(self, u: Array) -> Any:
        """`(c, C)` -> outputs of c samples."""
        ends = np.cumsum([math.prod(s) for s in self.shapes])[:-1]
        parts = jnp.split(u, ends, axis=1)
        return self.treedef.unflatten([a.reshape(-1, *s) for a, s in zip(parts, self.shapes, strict=True)])


# --- data in chunks ---------------------------------------------------------------------------------------------------


@record
class Chunks:
    """Samples and what belongs to them, leaves `(chunks, c, ...)`; padding repeats the last sample with scale zero."""

    x: Any
    scale: Array  # (chunks, c) or (chunks, c, T): √weight, normalized
    labels: Any  # leaves (chunks, c, draws, ...), or None
    samples: int = static()

    def rows(self, stacked: Array) -> Array:
        """`(chunks, c, r)` -> `(N·r,)` without padding."""
        return stacked.reshape(-1, stacked.shape[-1])[: self.samples].reshape(-1)

    def stack(self, rows: Array) -> Array:
        """`(N·r,)` -> `(chunks, c, r)`, zero on padding."""
        chunks, c = self.scale.shape[:2]
        table = rows.reshape(self.samples, -1)
        return jnp.pad(table, ((0, chunks * c - self.samples), (0, 0))).reshape(chunks, c, -1)

    def batches(self, size: int) -> "Chunks":
        """The same samples in chunks of `size`, padded again where needed."""
        total = -(-self.samples // size) * size
        index = jnp.minimum(jnp.arange(total), self.samples - 1)
        inside = (jnp.arange(total) < self.samples).astype(self.scale.dtype)

        def regroup(a: Array) -> Array:
            return a.reshape(-1, *a.shape[2:])[index].reshape(-1, size, *a.shape[2:])

        scale = regroup(self.scale)
        scale = scale * inside.reshape(scale.shape[:2] + (1,) * (scale.ndim - 2))
        return Chunks(jax.tree.map(regroup, self.x), scale, jax.tree.map(regroup, self.labels), self.samples)


def make_chunks(x: Any, scale: Any, labels: Any, samples: int, c: int, mesh: Mesh | None) -> Chunks:
    """Fold samples `(N, ...)` into chunks of about `c`, a multiple of the number of devices, and place them."""
    mesh = automatic(mesh)
    devices = mesh.size if mesh is not None else 1
    count = max(1, -(-samples // c))
    c = -(-(-(-samples // count)) // devices) * devices
    padding = count * c - samples

    def fold(a: Any, value: Any = None) -> Array:
        if padding:
            last = a[-1:] if value is None else np.zeros_like(a[-1:])
            xp = jnp if isinstance(a, jax.Array) else np
            a = xp.concatenate([a, xp.repeat(xp.asarray(last), padding, axis=0)])
        a = a.reshape(count, c, *a.shape[1:])
        if mesh is None:
            return jnp.asarray(a)
        return jax.device_put(a, NamedSharding(mesh, PartitionSpec(None, mesh.axis_names)))

    return Chunks(jax.tree.map(fold, x), fold(scale, 0), jax.tree.map(fold, labels), samples)


def automatic(mesh: Mesh | None) -> Mesh | None:
    """The same devices with axes that the compiler shards over by itself, whatever axis types the mesh came with."""
    if mesh is not None and not isinstance(mesh, Mesh):
        raise _checks.fail("fisher", f"mesh={mesh!r} is not a mesh", 'give jax.make_mesh((devices,), ("data",))')
    return None if mesh is None else Mesh(mesh.devices, mesh.axis_names)


def choose_chunk(each: Callable[[], int], samples: int, chunk: int | str, where: str) -> tuple[int, bool]:
    """(samples per chunk, is the linearization stored?): stored when it takes at most a quarter of the free memory.

    Args:
        each: bytes of a sample; finding them takes time.
    """
    if chunk != "auto":
        size = _checks.integer(where, "chunk", chunk, 1, remedy='give "auto" or a number of samples')
        return min(size, samples), size >= samples
    budget, needed = linalg.free_memory() // 4, each()
    if needed * samples <= budget:
        return samples, True
    return max(1, min(samples, budget // max(needed, 1))), False


def bytes_per_sample(prepare: Any, network: Network, x: Any, *extras: Any) -> int:
    """Bytes that one more sample adds to what `prepare` returns, from shapes alone."""

    def total(n: int) -> int:
        batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype), (x, *extras))
        return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(prepare, network, *batch)))

    # All samples at once are what is prepared next, mostly: JAX keeps that trace.
    samples = max(3, jax.tree.leaves(x)[0].shape[0])
    return (total(samples) - total(2)) // (samples - 2)


# --- the Jacobian -----------------------------------------------------------------------------------------------------


@linalg.precise_jit
def linearize_outputs(network: Network, x: Any) -> Any:
    """(outputs, linear map from parameter to output tangents) at the network's parameters, for one chunk."""
    return jax.linearize(lambda p: network(p, x), network.params)


@record
class Jacobian:
    """J of all outputs with respect to the selected parameters, through products with weights put in between."""

    network: Network
    data: Chunks
    stored: Any  # linearize_outputs of the only chunk, or None
    space: OutputSpace = static()

    def sandwich(self, V: Array, middle: Any) -> Array:
        """`Jᵀ M J V`, `(P, k) -> (P, k)`, with `middle(z, tangents, chunk) -> cotangents` applying M."""

        def products(chunk: Chunks, linear: Any) -> Array:
            z, tangent = linear
            cotangent = jax.linear_transpose(tangent, self.network.params)

            def one(v: Array) -> Array:
                return self.network.ravel(cotangent(middle(z, tangent(self.network.split(v)), chunk))[0])

            return _each(one, V.T)

        return self._sum(products).T

    def forward(self, V: Array, after: Any) -> Array:
        """`(P, k) -> (N·r, k)`: `after(z, tangents, chunk) -> (c, r)` of `J V`."""

        def products(chunk: Chunks, linear: Any) -> Array:
            z, tangent = linear
            return _each(lambda v: after(z, tangent(self.network.split(v)), chunk), V.T)

        if self.stored is not None:
            stacked = products(_chunk(self.data, 0), self.stored)[:, None]
        else:
            stacked = jax.lax.map(lambda d: products(d, linearize_outputs(self.network, d.x)), self.data)
            stacked = jnp.moveaxis(stacked, 1, 0)
        return jax.vmap(self.data.rows)(stacked).T

    def backward(self, U: Array, before: Any) -> Array:
        """`(N·r, k) -> (P, k)`: `Jᵀ` of `before(z, u, chunk)` with u `(c, r)`."""
        stacked = jnp.moveaxis(jax.vmap(self.data.stack, in_axes=1)(U), 1, 0)  # (chunks, k, c, r)

        def products(chunk: Chunks, linear: Any, u: Array) -> Array:
            z, tangent = linear
            cotangent = jax.linear_transpose(tangent, self.network.params)
            return _each(lambda u: self.network.ravel(cotangent(before(z, u, chunk))[0]), u)

        return self._sum(products, stacked).T

    def _sum(self, products: Any, *stacked: Array) -> Array:
        """Sum of `products(chunk, linearization, *slices)` over the chunks."""
        if self.stored is not None:
            return products(_chunk(self.data, 0), self.stored, *(s[0] for s in stacked))
        shape = jax.eval_shape(
            lambda d, *s: products(d, linearize_outputs(self.network, d.x), *s),
            _chunk(self.data, 0),
            *(s[0] for s in stacked),
        )

        def step(total: Array, item: Any) -> tuple[Array, None]:
            chunk, *slices = item
            return total + products(chunk, linearize_outputs(self.network, chunk.x), *slices), None

        return jax.lax.scan(step, jnp.zeros(shape.shape, shape.dtype), (self.data, *stacked))[0]


def _chunk(data: Chunks, index: int) -> Chunks:
    return jax.tree.map(lambda a: a[index], data)


def _each(function: Any, rows: Array) -> Array:
    """`function` on each row in turn. A network fills the device with one vector; a vmap here measured slower."""
    return function(rows[0])[None] if rows.shape[0] == 1 else jax.lax.map(function, rows)


def scaled(outputs: Any, scale: Array) -> Any:
    """Outputs (leaves `(c, ...)`) times a scale per sample `(c,)` or per token `(c, T)`."""
    return jax.tree.map(lambda a: a * scale.reshape(scale.shape + (1,) * (a.ndim - scale.ndim)), outputs)


# --- the factor -------------------------------------------------------------------------------------------------------


@record
class Factor:
    """`A = (I − a aᵀ) Bᵀ J √W` with `F = Aᵀ A`: rows are (sample, output) or (sample, draw); columns are parameters.

    With labels in the data, B has one column per draw, the score of that label; without, it is the likelihood's factor. The
    projection is there only when `centre` (the unit vector a) is given: centred gradient covariance.
    """

    jacobian: Jacobian
    likelihood: Any = static()
    centre: Array | None = None

    @property
    def rows_per_sample(self) -> int:
        labels = jax.tree.leaves(self.jacobian.data.labels)
        return labels[0].shape[2] if labels else self.jacobian.space.size

    @property
    def shape(self) -> tuple[int, int]:
        return self.jacobian.data.samples * self.rows_per_sample, self.jacobian.network.size

    @property
    def dtype(self) -> Any:
        return self.jacobian.network.dtype

    def matmat(self, V: Any) -> Array:
        """`A V`: `(P, k) -> (rows, k)`, or a vector."""
        return product(self, V, self.shape[1], _matmat)

    def rmatmat(self, U: Any) -> Array:
        """`Aᵀ U`: `(rows, k) -> (P, k)`, or a vector."""
        return product(self, U, self.shape[0], _rmatmat)

    def primal(self, V: Array) -> Array:
        """`Aᵀ A V`, in one pass over the chunks unless centring needs the whole of A V first."""
        if self.centre is not None:
            return self.rmatmat(self.matmat(V))
        return self.jacobian.sandwich(V, lambda z, t, chunk: self.expand(z, self.contract(z, t, chunk), chunk))

    def expand(self, z: Any, u: Array, chunk: Chunks) -> Any:
        """`√W B u`: `(c, r)` -> cotangents of the outputs z."""
        if chunk.labels is None:
            w = self.likelihood.factor(z, self.jacobian.space.unflatten(u))
        else:
            w = jax.tree.map(lambda s: jnp.sum(s * u.reshape(u.shape + (1,) * (s.ndim - 2)), axis=1), self._scores(z, chunk))
        return scaled(w, chunk.scale)

    def contract(self, z: Any, t: Any, chunk: Chunks) -> Array:
        """`Bᵀ √W t`: tangents of the outputs z -> `(c, r)`."""
        t = scaled(t, chunk.scale)
        if chunk.labels is None:
            return self.jacobian.space.flatten(jax.linear_transpose(lambda u: self.likelihood.factor(z, u), t)(t)[0])
        terms = jax.tree.map(lambda s, a: jnp.sum((s * a[:, None]).reshape(*s.shape[:2], -1), -1), self._scores(z, chunk), t)
        return sum(jax.tree.leaves(terms))  # type: ignore[return-value]

    def _scores(self, z: Any, chunk: Chunks) -> Any:
        """∇_z log p of each drawn label over √draws, leaves `(c, draws, ...)`."""
        scores = jax.vmap(lambda y: self.likelihood.score(z, y), in_axes=1, out_axes=1)(chunk.labels)
        return jax.tree.map(lambda s: s / math.sqrt(s.shape[1]), scores)

    def sample_rows(self, chunk: Chunks) -> tuple[Array, ...]:
        """Rows of A of the samples in a chunk by per-sample gradients, leaves `(c, r, *parameter shape)`; not centred."""

        def rows_of_one(one: Chunks) -> Any:
            one = jax.tree.map(lambda a: a[None], one)
            z, pullback = jax.vjp(lambda p: self.jacobian.network(p, one.x), self.jacobian.network.params)
            basis = jnp.eye(self.rows_per_sample, dtype=self.dtype)
            return jax.vmap(lambda e: pullback(self.expand(z, e[None], one))[0])(basis)

        return jax.vmap(rows_of_one)(chunk)

    def dense(self) -> Array:
        """A itself, `(rows, P)`."""
        require_room("factor.dense", *self.shape, self.dtype)
        return _dense_factor(self)

    def centred_moments(self) -> tuple[Array, Array, Array]:
        """In one pass of per-sample gradients: diagonal of AᵀA `(P,)`, how many entries of each column are not zero `(P,)`,
        squared norms of the rows `(rows,)`. The mean is subtracted before squaring, where afterwards it would cancel.
        """
        return _centred_moments(self)

    def batches(self) -> Chunks:
        """The data in batches whose per-sample gradients take about ROW_BATCH_BYTES."""
        per_sample = self.rows_per_sample * self.shape[1] * jnp.dtype(self.dtype).itemsize
        return self.jacobian.data.batches(max(1, min(self.jacobian.data.samples, ROW_BATCH_BYTES // per_sample)))

    def mean_row(self) -> Array | None:
        """`Aᵀ a` before centring `(P,)`: what centring subtracts from the rows, times a; None without centring."""
        if self.centre is None:
            return None
        return dataclasses.replace(self, centre=None).rmatmat(self.centre)

    def outliers(self) -> int:
        """How many eigenvalues leave the bulk in wide networks: the output directions that the likelihood sees."""
        return sum(s[-1] - self.likelihood.null_dimensions for s in self.jacobian.space.shapes)

    def rank_bound(self) -> int:
        """An upper bound on the rank from shapes, weights and the likelihood's null space."""
        space, data = self.jacobian.space, self.jacobian.data
        active = np.asarray(data.scale).reshape(-1, *data.scale.shape[2:])[: data.samples] != 0
        if active.ndim == 2:  # tokens: each active token brings its outputs
            shapes = [s[1:] for s in space.shapes]
        else:
            shapes = list(space.shapes)
        seen = sum(math.prod(s[:-1]) * (s[-1] - self.likelihood.null_dimensions) for s in shapes)
        bound = int(active.sum()) * seen
        rows = int(active.reshape(len(active), -1).any(axis=1).sum()) * self.rows_per_sample
        return max(0, min(bound, rows - (self.centre is not None)))


@linalg.precise_jit
def _matmat(factor: Factor, V: Array) -> Array:
    U = factor.jacobian.forward(V, factor.contract)
    return U if factor.centre is None else U - jnp.outer(factor.centre, factor.centre @ U)


@linalg.precise_jit
def _rmatmat(factor: Factor, U: Array) -> Array:
    if factor.centre is not None:
        U = U - jnp.outer(factor.centre, factor.centre @ U)
    return factor.jacobian.backward(U, factor.expand)


def _centred_rows(factor: Factor) -> Any:
    """(scan items (batch, centre entries), function from an item to the leaves of its rows `(c·r, ...)`)."""
    data = factor.batches()
    mean = factor.mean_row()
    offsets = None if factor.centre is None else data.stack(factor.centre)

    def rows(item: Any) -> list[Array]:
        batch, offset = item
        leaves = [a.reshape(-1, *a.shape[2:]) for a in factor.sample_rows(batch)]
        if offset is None or mean is None:
            return leaves
        shifts = factor.jacobian.network.split(mean)
        offset = offset.reshape(-1)
        return [a - offset.reshape(-1, *(1,) * s.ndim) * s[None] for a, s in zip(leaves, shifts, strict=True)]

    return (data, offsets), rows


@linalg.precise_jit
def _dense_factor(factor: Factor) -> Array:
    items, rows = _centred_rows(factor)
    table = jax.lax.map(lambda item: _flat(rows(item)), items)
    return table.reshape(-1, factor.shape[1])[: factor.shape[0]]


def _flat(rows: list[Array]) -> Array:
    return jnp.concatenate([a.reshape(a.shape[0], -1) for a in rows], axis=1)


def _squares(rows: list[Array]) -> list[Array]:
    return [(a**2).reshape(a.shape[0], -1) for a in rows]


@linalg.precise_jit
def _centred_moments(factor: Factor) -> tuple[Array, Array, Array]:
    items, rows = _centred_rows(factor)

    def step(sums: Any, item: Any) -> tuple[Any, Array]:
        diagonal, counts = sums
        leaves = rows(item)
        squares = _squares(leaves)
        # A sum over rows as a matrix product: four times faster on a CPU than a reduction over the leading axis.
        ones = jnp.ones((1, squares[0].shape[0]), squares[0].dtype)
        diagonal = [d + (ones @ s)[0] for d, s in zip(diagonal, squares, strict=True)]
        # Not from the squares: those of small entries vanish.
        present = [(a != 0).astype(a.dtype).reshape(a.shape[0], -1) for a in leaves]
        counts = [c + (ones @ p)[0] for c, p in zip(counts, present, strict=True)]
        return (diagonal, counts), sum(jnp.sum(s, axis=1) for s in squares)  # type: ignore[return-value]

    start = [jnp.zeros(p.size, p.dtype) for p in factor.jacobian.network.params]
    (diagonal, counts), norms = jax.lax.scan(step, (start, start), items)
    return jnp.concatenate(diagonal), jnp.concatenate(counts), norms.reshape(-1)[: factor.shape[0]]


@linalg.precise_jit
def dense_gram(factor: Factor) -> Array:
    """`Aᵀ A`, `(P, P)`, accumulated over batches of per-sample gradients."""
    items, rows = _centred_rows(factor)

    def step(total: Array, item: Any) -> tuple[Array, None]:
        table = _flat(rows(item))
        return total + table.T @ table, None

    size = factor.shape[1]
    return jax.lax.scan(step, jnp.zeros((size, size), factor.dtype), items)[0]
