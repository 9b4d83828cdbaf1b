"""How each parameter contributes to the dual matrix K = A Aᵀ, and one tile of it.

The gradient of output r of sample n in a dense layer is `Σ_t a[n,t] g[n,r,t]ᵀ`, so that its inner product with another is

    K[nr, ms] = Σ_{t,t'} (a[n,t]·a[m,t'] + 1 with a bias) (g[n,r,t]·g[m,s,t'])

which for T = 1 costs `2 N²C² d_out` operations instead of `2 N²C² d_in d_out`, with no Jacobian in memory. Each parameter
takes the cheaper of two kernels: this `outer` one, or `rows`: its own per-sample gradients, made from a and g, and one
matrix product. Parameters met in several places (tied weights) take `rows`, where the contributions are added up first.

Reference, for single layers: ViViT (Dangel, Tatzel and Hennig, TMLR 2022).
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import linalg, sites
from fisher_jax.factor import Chunks, Factor
from fisher_jax.sites import Map, Site

Array = jax.Array

# Operations of a matrix product that take as long as one number's way from memory and back: on a CPU from timings of both
# kernels over layer shapes; on accelerators from their data sheets (float32 rate over bandwidth), not measured.
PASS = {"cpu": 16.0}
PASS_ELSEWHERE = 64.0
# Products of one pair of samples at a time take this many times as long as in a large product (a CPU, from timings).
PAIRS = 3.0
# Bytes that the features of two tiles may always take, and what is between them and their tile of K.
TILE_BYTES = 2**29


@dataclasses.dataclass(frozen=True)
class Kernel:
    """How the contribution of some parameters to K is computed.

    kind "outer": a weight at `site`, and the bias that joined it; "rows": one parameter, all places it is met, in the
    site's canonical layout if it is met at one `site` only.
    """

    kind: str
    parameters: tuple[int, ...]
    site: int | None
    weight: float = 1.0  # squared scale
    bias: float = 0.0  # squared scale of the bias, zero without one
    # Left out of comparisons: kernels that compute the same share a compilation, whatever the number of samples.
    operations: float = dataclasses.field(default=0.0, compare=False)  # for all of K, its lower half
    cost: float = dataclasses.field(default=0.0, compare=False)  # the same in time: operations of a large product
    reason: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The kernels of a network for N samples with R rows each, and what the walk found."""

    kernels: tuple[Kernel, ...]
    found: Map

    def by_outer(self) -> list[tuple[Kernel, Site]]:
        return [(k, self.found.sites[k.site]) for k in self.kernels if k.kind == "outer" and k.site is not None]


# (site, samples, rows per sample) -> what it costs by (outer kernel, rows).
Cost = Callable[[Site, int, int], tuple[float, float]]


def layout(factor: Factor, group: tuple[int, ...], cost: Cost | None = None) -> Layout:
    """Choose the cheaper kernel for every parameter; parameters of different groups share none."""
    cost = costs if cost is None else cost
    network = factor.jacobian.network
    data, R = factor.jacobian.data, factor.rows_per_sample
    sample = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[2:], a.dtype), data.x)
    found = sites.find(network, sample)
    N = data.samples
    uses: list[list[tuple[str, int | None]]] = [[] for _ in network.params]
    for number, site in enumerate(found.sites):
        uses[site.weight.index].append(("weight", number))
        if site.bias is not None:
            uses[site.bias.index].append(("bias", number))
    for index, direct in enumerate(found.direct):
        if direct:
            uses[index].append(("direct", None))
    kernels: list[Kernel] = []
    for index, use in enumerate(uses):
        if len(use) != 1 or use[0][0] != "weight":
            continue
        number = use[0][1]
        assert number is not None
        site = found.sites[number]
        (outer, rows), counted = cost(site, N, R), operations(site, N, R)
        if outer > rows:
            reason = f"T={site.shape[1]} positions: {outer / rows:.1f} x the cost of its rows as outer products"
            kernels.append(Kernel("rows", (index,), number, operations=counted[1], cost=rows, reason=reason))
            continue
        bias = site.bias is not None and len(uses[site.bias.index]) == 1 and group[site.bias.index] == group[index]
        kernels.append(
            Kernel(
                "outer",
                (index, site.bias.index) if bias else (index,),  # type: ignore[union-attr]
                number,
                site.weight.scale**2,
                site.bias.scale**2 if bias else 0.0,  # type: ignore[union-attr]
                counted[0],
                outer,
                f"{rows / outer:.1f} x cheaper than its rows",
            )
        )
    done = {i for kernel in kernels for i in kernel.parameters}
    for index, use in enumerate(uses):
        if index in done or not use:
            continue
        P = network.params[index].size
        kinds = sorted({kind for kind, _ in use})
        if len(use) > 1:
            reason = f"met in {len(use)} places, whose cross terms count"
        elif kinds == ["direct"]:
            vector = max(network.params[index].shape, default=1) == P
            reason = "a vector: its gradient is a cotangent" if vector else "use not recognized: gradient by backpropagation"
        else:
            reason = "a bias of a layer that takes rows"
        product = float(N * N * R * R * P)
        kernels.append(Kernel("rows", (index,), None, operations=product, cost=product, reason=reason))
    return Layout(tuple(sorted(kernels, key=lambda k: k.parameters)), found)


def operations(site: Site, N: int, R: int) -> tuple[float, float]:
    """Operations for the lower half of K by the outer kernel, and by rows."""
    B, T, D, M = site.shape
    inner, made = (1, 2 * N * R * T * M) if site.lookup else (D, 2 * N * R * T * D * M)
    mixed = R * T * T * M if T > 1 else 0
    return float(B * N * N * (T * T * inner + mixed + R * R * T * M)), float(B * (made + N * N * R * R * D * M))


def costs(site: Site, N: int, R: int) -> tuple[float, float]:
    """As `operations`, in time: with passes over memory, and at the rate of the products they are."""
    B, T, D, M = site.shape
    outer, rows = operations(site, N, R)
    once, between = PASS.get(jax.default_backend(), PASS_ELSEWHERE), scratch(site, R)
    if T > 1:
        outer += (PAIRS - 1) * B * N * N * (R * T * T * M + R * R * T * M)
    outer += once / 2 * B * N * N * between
    return math.inf if T > 1 and 4 * between > TILE_BYTES else outer, rows + once * B * N * R * D * M


def scratch(site: Site, R: int) -> int:
    """Numbers between the features of a pair of samples and its R² entries of K, for the outer kernel."""
    T, M = site.shape[1], site.shape[3]
    # Inner products of the inputs; these times the cotangents of one sample, in two layouts, unless pair by pair.
    return R * R if T == 1 else T * T + (0 if jax.default_backend() == "cpu" else 2 * T * R * M)


# --- features of a tile of samples ------------------------------------------------------------------------------------


@partial(linalg.precise_jit, static_argnums=(2, 3))
def features(factor: Factor, tile: Chunks, group: tuple[int, ...], cost: Cost | None = None) -> list[Any]:
    """For each kernel: (a `(c, B, T, D)`, g `(c, R, B, T, M)`), or rows `(c·R, P)`; not centred."""
    plan = layout(factor, group, cost)
    network, found = factor.jacobian.network, plan.found
    inputs, cotangents = cotangents_of(factor, tile, found)
    result = []
    for kernel in plan.kernels:
        if kernel.kind == "outer":
            site = found.sites[kernel.site]  # type: ignore[index]
            g = jax.vmap(jax.vmap(site.place))(cotangents["site", kernel.site])
            result.append((inputs[kernel.site], g))  # type: ignore[index]
        else:
            result.append(_rows(network, found, kernel.parameters[0], inputs, cotangents))
    return result


def cotangents_of(factor: Factor, tile: Chunks, found: Map) -> tuple[list[Array], dict[Any, Array]]:
    """Inputs of the sites `(c, ...)` and cotangents of their outputs, and of parameters met otherwise, `(c, R, ...)`."""
    network, R = factor.jacobian.network, factor.rows_per_sample
    shifts: dict[Any, Array] = {}
    for number, site in enumerate(found.sites):
        shifts["site", number] = jnp.zeros(site.output.shape, site.output.dtype)
    for index, direct in enumerate(found.direct):
        if direct:
            shifts["direct", index] = jnp.zeros_like(network.params[index])

    def one(sample: Chunks) -> Any:
        single = jax.tree.map(lambda a: a[None], sample)

        def run(shifts: Any) -> Any:
            outputs, inputs, _ = sites.walk(network, sample.x, shifts)
            return outputs, inputs

        z, pullback, inputs = jax.vjp(run, shifts, has_aux=True)
        basis = jnp.eye(R, dtype=factor.dtype)
        cotangents = jax.vmap(lambda e: pullback(factor.expand(z, e[None], single))[0])(basis)
        return inputs, cotangents

    # Layers may compute in less, or their data be of less: inner products of such inputs would be rounded to that.
    def precise(a: Array) -> Array:
        return a.astype(factor.dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a

    return jax.tree.map(precise, jax.vmap(one)(tile))


def _rows(network: Any, found: Map, index: int, inputs: list[Array], cotangents: dict[Any, Array]) -> Array:
    """Gradients of one parameter `(c·R, P)`, all places added up."""
    p = network.params[index]
    places = [(n, s) for n, s in enumerate(found.sites) if s.weight.index == index]
    biases = [(n, s) for n, s in enumerate(found.sites) if s.bias is not None and s.bias.index == index]
    alone = len(places) == 1 and not biases and not found.direct[index]
    total: Any = None

    def add(total: Any, term: Array) -> Array:
        return term if total is None else total + term

    for number, site in places:
        g = jax.vmap(jax.vmap(site.place))(cotangents["site", number])
        G = _weight_gradient(site, inputs[number], g)
        if alone:
            # Layout does not change inner products.
            return abs(site.weight.scale) * G.reshape(G.shape[0] * G.shape[1], -1)

        def back(G: Array, site: Site = site) -> Array:
            return site.weight.back(site.unplace_weight(G), p)

        total = add(total, jax.vmap(jax.vmap(back))(G))
    for number, site in biases:
        view = jax.eval_shape(site.bias, p).shape  # type: ignore[arg-type]
        axes = tuple(i for i, n in enumerate(view) if n == 1 and site.output.shape[i] != 1)

        def gather(g: Array, site: Site = site, axes: Any = axes) -> Array:
            return site.bias.back(jnp.sum(g, axis=axes, keepdims=True), p)  # type: ignore[union-attr]

        total = add(total, jax.vmap(jax.vmap(gather))(cotangents["site", number]))
    if found.direct[index]:
        total = add(total, cotangents["direct", index])
    return total.reshape(total.shape[0] * total.shape[1], -1)


def _weight_gradient(site: Site, a: Array, g: Array) -> Array:
    """`Σ_t a g`: (a `(c, B, T, D)`, g `(c, R, B, T, M)`) -> `(c, R, B, D, M)`."""
    if not site.lookup:
        return jnp.einsum("nbti,nrbto->nrbio", a, g)
    rows = site.shape[2]

    def scatter(tokens: Array, g: Array) -> Array:  # (T,), (T, M)
        return jnp.zeros((rows, g.shape[-1]), g.dtype).at[tokens].add(g, mode="drop")

    matrices = jax.vmap(scatter)
    outputs = jax.vmap(matrices, (None, 0))
    return jax.vmap(outputs)(a, g)


def feature_bytes(factor: Factor, group: tuple[int, ...], cost: Cost | None = None) -> int:
    """Bytes of the features of one sample."""
    data = factor.jacobian.data
    x, scale, labels = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((1, *a.shape[2:]), a.dtype), (data.x, data.scale, data.labels)
    )
    shapes = jax.eval_shape(lambda f, t: features(f, t, group, cost), factor, Chunks(x, scale, labels, 1))
    return max(1, sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in jax.tree.leaves(shapes)))


# --- one tile of K ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What a tile needs to know at compile time; equal for equal networks."""

    kernels: tuple[Kernel, ...]
    sites: tuple[tuple[tuple[int, int, int, int], bool] | None, ...]

    @classmethod
    def of(cls, plan: Layout) -> "Shapes":
        return cls(plan.kernels, tuple(None if k.site is None else plan.found.sites[k.site].kind for k in plan.kernels))


@partial(linalg.precise_jit, static_argnums=(0, 3))
def tile_of(plan: "Shapes", first: list[Any], second: list[Any], chosen: tuple[bool, ...]) -> Array:
    """One tile of K from the features of its rows and of its columns, summed over the chosen kernels."""
    total: Any = None
    for kernel, site, f, s, use in zip(plan.kernels, plan.sites, first, second, chosen, strict=True):
        if not use:
            continue
        term = f @ s.T if kernel.kind == "rows" else _outer(kernel, site, *f, *s)
        total = term if total is None else total + term
    return total


def _outer(kernel: Kernel, site: Any, a: Array, g: Array, a2: Array, g2: Array) -> Array:
    (B, T, D, M), lookup = site
    n, R, m, S = a.shape[0], g.shape[1], a2.shape[0], g2.shape[1]

    def term(left: Array, u: Array, right: Array, v: Array) -> Array:
        """left `(n, T, D)` or token numbers `(n, T)`, u `(n, R, T, M)`; right and v likewise."""
        if lookup:
            inner = sites.same_row(left[:, :, None, None], right[None, None], D).astype(g.dtype)
        else:
            inner = (left.reshape(n * T, -1) @ right.reshape(m * T, -1).T).reshape(n, T, m, T)
        inner = kernel.weight * inner + kernel.bias
        if T == 1:
            product = (u.reshape(n * R, M) @ v.reshape(m * S, M).T).reshape(n, R, m, S)
            return product * inner[:, 0, :, 0][:, None, :, None]
        # Σ_t' of the inputs' products first: N²·C·T² instead of N²·C²·T² products of cotangents.
        if jax.default_backend() != "cpu":
            return jnp.einsum("nrto,ntmso->nrms", u, jnp.einsum("ntmp,mspo->ntmso", inner, v))

        def pair(first: Any, v: Array) -> Array:
            inner, u = first
            return jnp.sum(jnp.einsum("rto,tso->trs", u, jnp.einsum("tp,spo->tso", inner, v)), axis=0)

        def with_all(second: Any) -> Array:
            return jax.lax.map(lambda first: pair(first, second[1]), (second[0], u))

        # One pair of samples after the other: what is between stays in cache.
        return jax.lax.map(with_all, (inner.transpose(2, 0, 1, 3), v)).transpose(1, 2, 0, 3)

    # One matrix after the other: grouped convolutions and stacked layers have many.
    parts = jnp.moveaxis(a, 1, 0), jnp.moveaxis(g, 2, 0), jnp.moveaxis(a2, 1, 0), jnp.moveaxis(g2, 2, 0)
    if B == 1:
        total = term(*(part[0] for part in parts))
    else:
        zero = jnp.zeros((n, R, m, S), g.dtype)
        total = jax.lax.scan(lambda total, part: (total + term(*part), None), zero, parts)[0]
    return total.reshape(n * R, m * S)
