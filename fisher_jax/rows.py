"""Sums over the rows of A that need no K: norms, the diagonal of F, Kronecker factors.

All come from the layer inputs a and output cotangents g of `fisher_jax.gram`, batch by batch. For a dense layer the squared
norm of a gradient is `|a|² |g|²` and the diagonal of its block `Σ_n a_n² (Σ_r g_nr²)ᵀ`: per-sample gradients are formed
only for weights that are used at several positions, where that is cheaper or the only way.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fisher_jax import linalg
from fisher_jax._record import record, static
from fisher_jax.factor import Chunks, Factor
from fisher_jax.gram import batch_samples, samples_at
from fisher_jax.kernels import Cost, Kernel, feature_bytes, features, layout
from fisher_jax.sites import Site, same_row

Array = jax.Array


def _batches(factor: Factor, group: tuple[int, ...], cost: Cost) -> Iterator[Chunks]:
    size, samples = batch_samples(factor, feature_bytes(factor, group, cost)), factor.jacobian.data.samples
    for start in range(0, samples, size):
        yield samples_at(factor, start, min(start + size, samples))


def _sum(total: Any, term: Any) -> Any:
    return term if total is None else jax.tree.map(jnp.add, total, term)


# --- norms ------------------------------------------------------------------------------------------------------------


def _norm_operations(site: Site, N: int, R: int) -> tuple[float, float]:
    _, T, D, M = site.shape
    return T * T * ((1 if site.lookup else D) + R * M), R * D * M * (1 if site.lookup else T)


def row_norms(factor: Factor) -> Array:
    """Squared norms of the rows of A, `(N·R,)`: the diagonal of A Aᵀ and, added up, the trace."""
    if factor.centre is not None:
        return factor.centred_moments()[2]
    group = (0,) * len(factor.jacobian.network.params)
    R = factor.rows_per_sample
    batches = _batches(factor, group, _norm_operations)
    return jnp.concatenate([_row_norms(factor, batch, group)[: batch.samples * R] for batch in batches])


@partial(linalg.precise_jit, static_argnums=2)
def _row_norms(factor: Factor, batch: Chunks, group: tuple[int, ...]) -> Array:
    plan = layout(factor, group, _norm_operations)
    total: Any = None
    for kernel, feature in zip(plan.kernels, features(factor, batch, group, _norm_operations), strict=True):
        if kernel.kind == "rows":
            term = jnp.sum(feature**2, axis=1)
        else:
            a, g = feature
            inner = _inner(kernel, plan.found.sites[kernel.site], a, g.dtype)  # type: ignore[index]
            term = jnp.einsum("nbts,nrbto,nrbso->nr", inner, g, g).reshape(-1)
        total = _sum(total, term)
    return total


def _inner(kernel: Kernel, site: Site, a: Array, dtype: Any) -> Array:
    """Inner products of the inputs of one sample at all pairs of positions, `(c, B, T, T)`."""
    if site.lookup:
        inner = same_row(a[..., :, None], a[..., None, :], site.shape[2]).astype(dtype)
    else:
        inner = jnp.einsum("nbti,nbsi->nbts", a, a)
    return kernel.weight * inner + kernel.bias


# --- diagonal ---------------------------------------------------------------------------------------------------------


def _diagonal_operations(site: Site, N: int, R: int) -> tuple[float, float]:
    # Squares of a sum over positions are not a product of squares.
    return (1.0, 2.0) if site.shape[1] == 1 else (2.0, 1.0)


def diagonal(factor: Factor) -> Array:
    """Diagonal of Aᵀ A, `(P,)`."""
    return factor.centred_moments()[0] if factor.centre is not None else _columns(factor, jnp.square)


def touched(factor: Factor) -> Array:
    """How many rows (or an upper bound) are not zero in each column of A, `(P,)`: zero where no sample has a gradient.

    Not from the squares: those of small entries vanish.
    """
    return factor.centred_moments()[1] if factor.centre is not None else _columns(factor, _present)


def _present(a: Array) -> Array:
    return (a != 0).astype(a.dtype)


def _columns(factor: Factor, of: Callable[[Array], Array]) -> Array:
    """Sums over the rows of `of(entry)`, for `of` with of(a b) = of(a) of(b)."""
    network = factor.jacobian.network
    # A group for each parameter: no bias shares a kernel.
    group = tuple(range(len(network.params)))
    total: Any = None
    for batch in _batches(factor, group, _diagonal_operations):
        total = _sum(total, _tile_columns(factor, batch, group, of))
    return network.ravel(total)


@partial(linalg.precise_jit, static_argnums=(2, 3))
def _tile_columns(factor: Factor, batch: Chunks, group: tuple[int, ...], of: Callable[[Array], Array]) -> tuple[Array, ...]:
    params = factor.jacobian.network.params
    plan = layout(factor, group, _diagonal_operations)
    result = [jnp.zeros_like(p) for p in params]
    for kernel, feature in zip(plan.kernels, features(factor, batch, group, _diagonal_operations), strict=True):
        index = kernel.parameters[0]
        if kernel.kind == "rows":
            # A sum over rows as a matrix product: faster on a CPU than a reduction over the leading axis.
            total = (jnp.ones((1, feature.shape[0]), feature.dtype) @ of(feature))[0]
        else:
            a, g = feature
            site = plan.found.sites[kernel.site]  # type: ignore[index]
            total = of(jnp.asarray(kernel.weight**0.5, g.dtype)) * _products(site, a, jnp.sum(of(g), axis=1), of)
        if kernel.site is not None:
            site = plan.found.sites[kernel.site]
            B, _, D, M = site.shape
            total = site.weight.unscaled().back(site.unplace_weight(total.reshape(B, D, M)), params[index])
        result[index] = total.reshape(params[index].shape)
    return tuple(result)


def _products(site: Site, a: Array, g: Array, of: Callable[[Array], Array]) -> Array:
    """`Σ_n of(a) g` at one position: a `(c, B, 1, D)` or token numbers `(c, B, 1)`, g `(c, B, 1, M)` -> `(B, D, M)`."""
    if not site.lookup:
        return jnp.einsum("nbti,nbto->bio", of(a), g)
    empty = jnp.zeros(site.shape[2:], g.dtype)
    return jax.vmap(lambda tokens, g: empty.at[tokens].add(g, mode="drop"), 1)(a[:, :, 0], g[:, :, 0])


# --- Kronecker factors ------------------------------------------------------------------------------------------------


@record
class Kronecker:
    """A block of F as the Kronecker product of a layer's second moments: `F_layer ≈ inputs ⊗ outputs`, one for each matrix.

    inputs `(B, D, D)`: mean of `Σ_t a aᵀ`, with one more row and column if a bias shares the layer (last), or `(1, D)`, the
    diagonal, for a table. outputs `(B, M, M)`: mean of `Σ_r Σ_t g gᵀ / T`. B is one but for grouped and stacked layers.
    """

    inputs: Array
    outputs: Array
    positions: int = static()  # T


def _always_outer(site: Site, N: int, R: int) -> tuple[float, float]:
    return 1.0, 2.0


def kronecker(factor: Factor, group: tuple[int, ...]) -> tuple[dict[tuple[int, ...], Kronecker], list[int]]:
    """(Kronecker factors by the numbers of weight and bias, parameters that have none)."""
    plan = layout(factor, group, _always_outer)
    totals: Any = None
    for batch in _batches(factor, group, _always_outer):
        totals = _sum(totals, _second_moments(factor, batch, group))
    outer = [k for k in plan.kernels if k.kind == "outer"]
    rest = [k.parameters[0] for k in plan.kernels if k.kind == "rows"]
    return {k.parameters: total for k, total in zip(outer, totals, strict=True)}, rest


@partial(linalg.precise_jit, static_argnums=2)
def _second_moments(factor: Factor, batch: Chunks, group: tuple[int, ...]) -> list[Kronecker]:
    plan = layout(factor, group, _always_outer)
    # Samples count by their weight: of tokens, by whether any has weight.
    scale = batch.scale.reshape(batch.scale.shape[0], -1)
    weight = scale[:, 0] ** 2 if batch.scale.ndim == 1 else jnp.max(scale, axis=1) ** 2
    result = []
    for kernel, feature in zip(plan.kernels, features(factor, batch, group, _always_outer), strict=True):
        if kernel.kind == "rows":
            continue
        site = plan.found.sites[kernel.site]  # type: ignore[index]
        a, g = feature
        B, T, D, _ = site.shape
        if site.lookup:
            counts = jnp.broadcast_to(weight[:, None, None], a.shape)
            inputs = jnp.zeros((B, D), g.dtype).at[jnp.arange(B)[None, :, None], a].add(kernel.weight * counts, mode="drop")
        else:
            a = a * kernel.weight**0.5
            if kernel.bias:
                a = jnp.concatenate([a, jnp.full((*a.shape[:-1], 1), kernel.bias**0.5, a.dtype)], axis=-1)
            inputs = jnp.einsum("n,nbti,nbtj->bij", weight, a, a)
        result.append(Kronecker(inputs, jnp.einsum("nrbto,nrbtp->bop", g, g) / T, T))
    return result
