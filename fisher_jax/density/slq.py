"""Stochastic Lanczos quadrature: a Krylov space for each probe, its tridiagonal matrix is a Gauss rule for the spectrum.

    M Vᵀ = Vᵀ T + β vₘ₊₁ᵀ eₘᵀ,    zᵀ f(M) z / zᵀ z ≈ e₁ᵀ f(T) e₁ = Σⱼ wⱼ f(θⱼ)

exact for polynomials up to degree 2 m − 1. All probes advance together, one block product per step, each in its own space
with full reorthogonalization: without it, copies of converged nodes split their weight and the bounds are lost. Where a
space closes (low rank) its rule is the probe's measure itself, and it stops there.

Reference: Golub and Meurant, Matrices, Moments and Quadrature, 2010, chapter 7; Ubaru, Chen and Saad, SIAM J. Matrix Anal.
Appl. 38(4), 2017; Ghorbani, Krishnan and Xiao, ICML 2019.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special

from fisher_jax import _checks, linalg
from fisher_jax.density.base import Density, closed
from fisher_jax.density.space import Reporter, Space
from fisher_jax.krylov import BREAKDOWN
from fisher_jax.results import provenance
from fisher_jax.solvers.base import HostLoop, check_symmetry, features

Array = jax.Array

# Probability that an eigenvalue lies beyond the ends; `TAIL` says how the confidence is shared out.
BEYOND = 0.01

# How many times the rounding error of a product u·M v and v·M u may differ by.
SKEW = 100


@dataclasses.dataclass(frozen=True)
class SLQ:
    """Stochastic Lanczos quadrature with full reorthogonalization, in the smaller of primal and dual space.

    Args:
        steps: of Lanczos for each probe: nodes of its rule, and the resolution, range/steps. Memory: probes · (steps + 1)
            vectors.
        probes: Gaussian vectors; intervals shrink as their root.
    """

    steps: int = 80
    probes: int = 8

    def __post_init__(self) -> None:
        _checks.integer("SLQ", "steps", self.steps, 1)
        _checks.integer("SLQ", "probes", self.probes, 1)

    def estimate(self, space: Space, *, key: Array, progress: Reporter | None = None) -> Density:
        m, n = max(1, min(self.steps, space.dimension)), space.side.size
        needed, free = self.probes * (m + 1) * n * jnp.dtype(space.side.dtype).itemsize, linalg.free_memory()
        if needed > free / 2:
            vectors = f"steps={m} and probes={self.probes} keep {needed / 2**30:.1f} GiB of vectors"
            raise _checks.fail("SLQ", f"{vectors}, {free / 2**30:.1f} GiB are free", "give fewer steps or probes")
        z = space.probes(key, self.probes)
        # Squared lengths are the probes' shares of the pooled ratio.
        shares = np.asarray(jnp.sum(z**2, axis=1), np.float64)
        shares = shares / shares.sum() if space.dimension else np.full(self.probes, 1 / self.probes)
        state = _begin(z, m)
        with HostLoop() as interrupt:
            done = 0
            while done < m and not interrupt.asked:
                state = _extend(state, space.product(state.vectors[:, done]))
                done += 1
                if progress is not None:
                    jax.block_until_ready(state.step)
                    progress(done, m)
        if not done:
            raise KeyboardInterrupt
        diagonal, coupling = (np.asarray(a, np.float64)[:, :done] for a in (state.diagonal, state.coupling))
        if not (np.isfinite(diagonal).all() and np.isfinite(coupling).all()):
            raise _checks.fail(
                "density", "the operator returned NaN or infinity", "check the weights, the data and the scale"
            )
        norm = float(state.norm)
        check_symmetry("density", space.side.operator, float(state.skew) / norm if norm else 0.0, SKEW * space.noise)
        diagonal, coupling = space.unscaled(diagonal), space.unscaled(coupling)
        nodes, weights = _rules(diagonal, coupling)
        largest = max(np.abs(nodes).max(), np.abs(np.asarray(space.atoms, np.float64)).max(initial=0.0))
        floor = float(space.noise * largest)
        ends = _ends(diagonal, coupling, nodes, weights * shares[:, None], space.dimension, space.side.psd, floor)
        note = {"note": f"interrupted after {done} of {m} steps"} if done < m else {}
        cast = partial(jnp.asarray, dtype=space.side.dtype)
        return Density(
            nodes=cast(nodes),
            weights=cast(weights * shares[:, None]),
            means=cast(np.stack([diagonal[:, 0], np.hypot(diagonal[:, 0], coupling[:, 0])], axis=1)),
            diagonal=cast(diagonal),
            coupling=cast(coupling),
            atoms=space.atoms,
            atom_bounds=space.bounds,
            ends=ends,
            floor=floor,
            leak=space.leak,
            dimension=space.dimension,
            hidden=space.hidden,
            zeros=space.size - space.atoms.size - space.dimension + space.hidden,
            size=space.size,
            products=space.spent + done * self.probes,
            psd=bool(space.side.psd),
            method=f"SLQ(steps={self.steps}, probes={self.probes}) on the " + ("dual" if space.dual else "operator"),
            info=provenance(
                key, space.side.dtype, size=space.size, probed=space.dimension, **features(space.side.operator), **note
            ),
        )


class _State(NamedTuple):
    vectors: Array  # (probes, m + 1, n) rows are orthonormal for each probe; those from `step` + 1 on are zero
    diagonal: Array  # (probes, m)
    coupling: Array  # (probes, m)
    step: Array  # ()
    norm: Array  # () largest product so far, the scale for breakdown
    skew: Array  # () largest |u·M v − v·M u| met, zero but for rounding if M is symmetric


@partial(linalg.precise_jit, static_argnums=1)
def _begin(z: Array, m: int) -> _State:
    lengths = jnp.linalg.norm(z, axis=1, keepdims=True)
    first = z / jnp.maximum(lengths, jnp.finfo(z.dtype).tiny)
    zero, table = jnp.zeros((), z.dtype), jnp.zeros((z.shape[0], m), z.dtype)
    vectors = jnp.pad(first[:, None], ((0, 0), (0, m), (0, 0)))
    return _State(vectors, table, jnp.zeros_like(table), jnp.zeros((), jnp.int32), zero, zero)


@partial(linalg.precise_jit, donate_argnums=0)
def _extend(state: _State, images: Array) -> _State:
    """Append the part of the products `(probes, n)` of the last vectors that is orthogonal to all before."""
    V, j = state.vectors, state.step
    unit = linalg.eps(V.dtype)

    def remove(W: Array) -> tuple[Array, Array]:
        H = jax.vmap(lambda w, v: linalg.inner(w[None], v)[0])(W, V)
        return W - jnp.einsum("pm,pmn->pn", H, V), H

    W, H = remove(images)
    W, again = remove(W)
    H = H + again
    # Both sides of T: what comes back from earlier vectors must be the coupling to the last one, and nothing else.
    place = jnp.arange(V.shape[1], dtype=jnp.int32)[None]
    before = jnp.pad(state.coupling, ((0, 0), (0, 1)))
    skew = jnp.max(jnp.where(place < j, jnp.abs(H - jnp.where(place == j - 1, before, 0)), 0))
    norm = jnp.maximum(state.norm, jnp.max(jnp.linalg.norm(images, axis=1)))
    lengths = jnp.linalg.norm(W, axis=1, keepdims=True)
    open_ = lengths > BREAKDOWN * unit * norm
    Q = jnp.where(open_, W / jnp.where(open_, lengths, 1), 0)
    beta = jnp.where(open_, lengths, 0)[:, 0]
    alpha = jnp.take_along_axis(H, jnp.broadcast_to(j, (H.shape[0], 1)), axis=1)[:, 0]
    return _State(
        V.at[:, j + 1].set(Q),
        state.diagonal.at[:, j].set(alpha),
        state.coupling.at[:, j].set(beta),
        j + 1,
        norm,
        jnp.maximum(state.skew, skew),
    )


def _rules(diagonal: np.ndarray, coupling: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of each probe `(probes, m)`, weight zero past where it closed."""
    nodes, weights = np.zeros(diagonal.shape), np.zeros(diagonal.shape)
    for p in range(len(diagonal)):
        a, b = closed(diagonal[p], coupling[p])
        values, vectors = scipy.linalg.eigh_tridiagonal(a, b[:-1])
        nodes[p, : len(a)], weights[p, : len(a)] = values, vectors[0] ** 2
    return nodes, weights


def _ends(
    diagonal: np.ndarray,
    coupling: np.ndarray,
    nodes: np.ndarray,
    weights: np.ndarray,
    dimension: int,
    psd: bool,
    floor: float,
) -> tuple[float, float]:
    """All eigenvalues lie between these, but for a probability of `BEYOND`.

    No residual says so: it is small for eigenvalues that were found. But a random probe has a part along every eigenvector,
    and all probes together have no less than a share q of their squares along that of the extreme eigenvalue, where q is a
    quantile of the Beta distribution. Their rules leave at most so much to an eigenvalue beyond the nodes, see `_beyond`.
    """
    used = weights > 0
    if not used.any():
        return 0.0, 0.0
    low, high = float(nodes[used].min()), float(nodes[used].max())
    if dimension > 1:
        shares, probes = weights.sum(axis=1), len(weights)
        least = float(scipy.special.betaincinv(probes / 2, probes * (dimension - 1) / 2, BEYOND / 2))
        low = -_beyond(-diagonal, coupling, shares, -low, least, floor)
        high = _beyond(diagonal, coupling, shares, high, least, floor)
    return (max(0.0, low) if psd else low), high


def _beyond(
    diagonal: np.ndarray, coupling: np.ndarray, shares: np.ndarray, edge: float, least: float, floor: float
) -> float:
    """Where above `edge`, which no node exceeds, an eigenvalue has a share of the probes that is `least` at most.

    The mass of a measure at x is at most `1 / Σ pⱼ(x)²` over its orthonormal polynomials, of which T gives m + 1
    (Christoffel's function; Akhiezer, The Classical Moment Problem, 1965, section 2.5). Falls with x beyond the nodes.
    """

    def share(x: float) -> float:
        # pⱼ₊₁/pⱼ from the recurrence: all positive beyond the nodes, so that nothing cancels or overflows.
        ratio, before, square, total = np.ones(len(shares)), 0.0, np.ones(len(shares)), np.ones(len(shares))
        within = np.ones(len(shares), bool)
        with np.errstate(over="ignore"):
            for a, b in zip(diagonal.T, coupling.T, strict=True):
                # A space closes to rounding: what counts as closed is less than twice `floor`.
                ratio = np.where(within, (x - a - before / ratio) / np.where(b > 0, b, 2 * floor), 1)
                square, before = square * ratio**2, b
                total = total + np.where(within, square, 0)
                within = within & (b > 0)
        return float(shares @ (1 / total))

    if not floor:  # the matrix is zero
        return edge
    step = 1e-6 * max(float(np.ptp(diagonal)), abs(edge), float(coupling.max()))
    while share(edge + step) > least:
        step *= 2
    short = step / 2
    for _ in range(8):
        middle = (short + step) / 2
        short, step = (middle, step) if share(edge + middle) > least else (short, middle)
    return edge + step
