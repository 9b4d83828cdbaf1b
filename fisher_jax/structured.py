"""Products with A and Aᵀ from kept layer inputs a and output cotangents g, in half the operations of two passes.

    Aᵀ u:  s[n,t] = Σ_r u[n,r] g[n,r,t],  G = Σ_{n,t} a[n,t] s[n,t]ᵀ     for the weight of each layer
    A v:   the transpose of that: (A v)[n,r] = Σ_t g[n,r,t]·(Gᵀ a[n,t])

A tangent and a cotangent pass go through every weight twice each: once for the weight, once for what lies behind it. The
cotangents of all outputs know what lies behind, so that `Aᵀ A v` needs two products per weight instead of four; what is
added is reading g twice, which several columns share. g takes R times the memory of the activations.
"""

import math
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from fisher_jax import linalg, sites
from fisher_jax._record import record, static
from fisher_jax.factor import Chunks, Factor
from fisher_jax.gram import batch_samples, mesh_of, samples_at
from fisher_jax.kernels import PASS, PASS_ELSEWHERE, cotangents_of
from fisher_jax.operators import LinearOperator
from fisher_jax.sites import Map, Site, View

Array = jax.Array

# From timings of a perceptron and a residual network on a CPU (`benchmarks/run.py`): a convolution takes so
# many times as long as a matrix product of as many operations, and the small products with g so many passes over it.
CONVOLUTION = {"cpu": 4.0}
SMALL = {"cpu": 4.0}


@record
class Kept:
    """Layer inputs and cotangents of all samples, and the factor they are of.

    layers: for each site a `(N', B, T, D)` (token numbers `(N', 1, T)` of a lookup) and g `(N', R, B, T, M)`; direct: for
    each parameter that meets data otherwise its gradients `(N', R, ...)`, else None. N' ≥ N: over a mesh, with samples of
    weight zero.
    """

    factor: Factor
    layers: list[tuple[Array, Array]]
    direct: list[Any]

    @property
    def samples(self) -> int:
        return jax.tree.leaves((self.layers, self.direct))[0].shape[0]

    def rmatmat(self, U: Array) -> Array:
        """`Aᵀ U`: `(N·R, k) -> (P, k)`."""
        a = self.factor.centre
        if a is not None:
            U = U - jnp.outer(a, a @ U)
        return _ravel(self.factor, _gradients(self, self._stack(U)))

    def matmat(self, V: Array) -> Array:
        """`A V`: `(P, k) -> (N·R, k)`."""
        R, k = self.factor.rows_per_sample, V.shape[1]
        table = jax.ShapeDtypeStruct((self.samples, k, R), V.dtype)
        parts = tuple(jax.vmap(self.factor.jacobian.network.split, 1)(V))
        U = jax.linear_transpose(lambda table: _gradients(self, table), table)(parts)[0]
        U = jnp.swapaxes(U, 1, 2)[: self.factor.jacobian.data.samples].reshape(-1, k)
        a = self.factor.centre
        return U if a is None else U - jnp.outer(a, a @ U)

    def _stack(self, U: Array) -> Array:
        """`(N·R, k) -> (N', k, R)`, zero on padding."""
        N, R = self.factor.jacobian.data.samples, self.factor.rows_per_sample
        table = jnp.swapaxes(U.reshape(N, R, -1), 1, 2)
        return jnp.pad(table, ((0, self.samples - N), (0, 0), (0, 0))) if self.samples > N else table


@record
class StructuredOperator(LinearOperator):
    """F or its dual K through kept layer inputs and cotangents; the same matrix to rounding."""

    kept: Kept
    primal: bool = static()

    psd = True
    width = 8

    @property
    def size(self) -> int:
        return self.kept.factor.shape[1 if self.primal else 0]

    @property
    def dtype(self) -> Any:
        return self.kept.factor.dtype

    @property
    def dual(self) -> "StructuredOperator":  # type: ignore[override]
        return StructuredOperator(self.kept, not self.primal)

    def reduced(self, precision: str) -> LinearOperator:
        """In bfloat16 also what is kept: half the memory, and half the bytes to read."""
        if precision != "bfloat16":
            return super().reduced(precision)

        def half(a: Any) -> Any:
            return a.astype(jnp.bfloat16) if jnp.issubdtype(a.dtype, jnp.floating) else a

        layers, direct = jax.tree.map(half, (self.kept.layers, self.kept.direct))
        return StructuredOperator(Kept(self.kept.factor, layers, direct), self.primal)

    def matmat(self, V: Array) -> Array:
        first, second = (self.kept.matmat, self.kept.rmatmat) if self.primal else (self.kept.rmatmat, self.kept.matmat)
        return self._in_blocks(lambda V: second(first(V)), V)

    def from_dual(self, U: Array) -> Array:
        """Eigenvectors of the dual -> those of this operator, not normalized."""
        return self._in_blocks(self.kept.rmatmat if self.primal else self.kept.matmat, U)

    def _in_blocks(self, function: Any, V: Array) -> Array:
        """`width` columns at a time: what is between them and their images takes many times their memory."""
        k = V.shape[1]
        if k <= self.width:
            return function(V)
        blocks = jnp.pad(V, ((0, 0), (0, -k % self.width))).T.reshape(-1, self.width, V.shape[0])
        images = jax.lax.map(lambda rows: function(rows.T).T, blocks)
        return images.reshape(-1, images.shape[-1])[:k].T


def structured(factor: Factor, primal: bool) -> StructuredOperator | None:
    """The operator with features of all samples kept; None where they take more than a quarter of the free memory."""
    each, N = _bytes(factor), factor.jacobian.data.samples
    if each * N > linalg.free_memory() // 4:
        return None
    size = batch_samples(factor, each)
    if mesh_of(factor) is not None or size >= N:
        layers, direct = _features(factor, samples_at(factor, 0, N))
    else:
        layers, direct = _join([_features(factor, samples_at(factor, i, min(i + size, N))) for i in range(0, N, size)])
    return StructuredOperator(Kept(factor, layers, direct), primal)


def _found(factor: Factor) -> Map:
    x = factor.jacobian.data.x
    return sites.find(factor.jacobian.network, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[2:], a.dtype), x))


def pays(factor: Factor, columns: int, products: float) -> bool:
    """Are so many products in blocks of `columns` cheaper with kept features, making them included?"""
    plain, kept, made = product_operations(factor, columns)
    return kept * products + made < plain * products


def product_operations(factor: Factor, columns: int) -> tuple[float, float, float]:
    """Of one vector in a block of `columns`: (by a tangent and a cotangent pass, from kept features), and of making these.

    Memory passes are counted as operations.
    """
    weights, passes, cotangents = counts(factor)
    N, R, backend = factor.jacobian.data.samples, factor.rows_per_sample, jax.default_backend()
    once = PASS.get(backend, PASS_ELSEWHERE)
    # Per sample and column, both ways: two products per weight against four; g is read once for all columns and once more.
    kept = 4 * weights + SMALL.get(backend, 1.0) * once * cotangents * (1 + 2 / columns)
    made = (R + 1) * 2 * passes + 2 * once * cotangents
    return N * 8 * passes, N * kept, N * made


def counts(factor: Factor) -> tuple[float, float, float]:
    """Of one sample: products of weights, these as what they take of a pass, entries of all cotangents."""
    leaves, structure = jax.tree.flatten(factor)
    return _counts(structure, tuple((a.shape, a.dtype) for a in leaves))


@lru_cache(maxsize=128)
def _counts(structure: Any, shapes: tuple[Any, ...]) -> tuple[float, float, float]:
    """Kept for the structure of a factor: the network is not traced again for other weights."""
    factor = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*s) for s in shapes])
    found, R = _found(factor), factor.rows_per_sample
    convolution = CONVOLUTION.get(jax.default_backend(), 1.0)
    weights = passes = 0.0
    cotangents = float(R * sum(p.size for p, d in zip(factor.jacobian.network.params, found.direct, strict=True) if d))
    for site in found.sites:
        B, T, D, M = site.shape
        weights += B * T * (1 if site.lookup else D) * M
        passes += B * T * (1 if site.lookup else D) * M * (convolution if site.name == "conv_general_dilated" else 1.0)
        cotangents += R * B * T * M
    return weights, passes, cotangents


def _bytes(factor: Factor) -> int:
    """Bytes of the features of one sample."""
    data = factor.jacobian.data
    x, scale, labels = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((1, *a.shape[2:]), a.dtype), (data.x, data.scale, data.labels)
    )
    shapes = jax.eval_shape(_features, factor, Chunks(x, scale, labels, 1))
    return max(1, sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(shapes)))


@linalg.precise_jit
def _features(factor: Factor, tile: Chunks) -> tuple[list[tuple[Array, Array]], list[Any]]:
    """(layers, direct) of `Kept` for some samples."""
    found = _found(factor)
    inputs, cotangents = cotangents_of(factor, tile, found)
    layers = [(inputs[i], jax.vmap(jax.vmap(site.place))(cotangents["site", i])) for i, site in enumerate(found.sites)]
    return layers, [cotangents["direct", i] if d else None for i, d in enumerate(found.direct)]


@jax.jit
def _join(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _gradients(kept: Kept, U: Array) -> tuple[Array, ...]:
    """`Aᵀ U` in parts, not centred: `(N', k, R)` -> for each parameter `(k, *shape)`. Linear in U, and transposable."""
    params = kept.factor.jacobian.network.params
    found, k = _found(kept.factor), U.shape[1]
    result: list[Any] = [jnp.zeros((k, *p.shape), p.dtype) for p in params]
    for site, (a, g) in zip(found.sites, kept.layers, strict=True):
        B, T, D, M = site.shape
        # One small product per sample for all columns; then one large one, or one for each column.
        s = _product("nkr,nrx->nkx", g.reshape(*g.shape[:2], -1), U).reshape(-1, k, B, T, M)
        if site.lookup:
            empty = jnp.zeros((D, k, M), s.dtype)
            scatter = jax.vmap(lambda tokens, s, empty=empty: empty.at[tokens].add(s, mode="drop"), (1, 1), 2)
            G = jnp.transpose(scatter(a, jnp.moveaxis(s, 1, 3)), (1, 2, 0, 3))
        elif B > 1:
            G = _product("nkbto,nbti->kbio", a, s)
        elif T > 1:
            # As one large product for each column, in the layout that XLA does not have to make first.
            each = jnp.moveaxis(s[:, :, 0], 1, 0).reshape(k, -1, M)
            G = jnp.swapaxes(_product("kxo,xi->koi", a.reshape(-1, D), each), 1, 2)[:, None]
        else:
            # The columns beside the outputs, as the columns of one large product.
            each = s.reshape(-1, k * M)
            G = jnp.moveaxis(_product("nx,ni->ix", a[:, 0, 0], each).reshape(D, k, M), 1, 0)[:, None]
        p = params[site.weight.index]
        back = jax.vmap(lambda G, site=site, p=p: site.weight.back(site.unplace_weight(G), p))
        result[site.weight.index] += back(G)
        if site.bias is not None:
            # A sum over samples as a matrix product: faster on a CPU than a reduction over the leading axis.
            total = (jnp.ones((1, s.shape[0]), s.dtype) @ s.reshape(s.shape[0], -1)).reshape(s.shape[1:])
            total = jax.vmap(partial(_bias_gradient, site, site.bias), (0, None))(total, params[site.bias.index])
            result[site.bias.index] += total
    for index, g in enumerate(kept.direct):
        if g is not None:
            result[index] += _product("nkr,nrx->kx", g.reshape(*g.shape[:2], -1), U).reshape(k, *params[index].shape)
    return tuple(result)


def _product(indices: str, kept: Array, moving: Array) -> Array:
    """A contraction of (moving, kept) at the precision of what is kept, added up at that of what moves."""
    return jnp.einsum(indices, moving.astype(kept.dtype), kept, preferred_element_type=moving.dtype)


def _bias_gradient(site: Site, bias: View, s: Array, p: Array) -> Array:
    """Gradient of a bias from `Σ_n s` `(B, T, M)`: back to the layout of the output, and summed over positions."""
    output = jax.ShapeDtypeStruct(site.output.shape, s.dtype)
    s = jax.linear_transpose(site.place, output)(s)[0]
    axes = tuple(i for i, n in enumerate(jax.eval_shape(bias, p).shape) if n == 1 and site.output.shape[i] != 1)
    return bias.back(jnp.sum(s, axis=axes, keepdims=True), p)


def _ravel(factor: Factor, parts: tuple[Array, ...]) -> Array:
    return jax.vmap(factor.jacobian.network.ravel, out_axes=1)(parts)
