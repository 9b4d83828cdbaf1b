"""Dropout and stochastic depth: kernels of networks with random masks."""

from typing import Any

import jax
import jax.numpy as jnp

from fisher_jax import _checks

Array = jax.Array


def dropout_moments(keep: float, form: str = "inverted") -> tuple[float, float, float]:
    """(E[m²], E[m]², E[m]) of a mask: (1/p, 1, 1) inverted, (p, p², p) raw."""
    _checks.positive("theory", "keep probability 1 - dropout", keep)
    return (1 / keep, 1.0, 1.0) if form == "inverted" else (keep, keep**2, keep)


def doubled(K: Array, keep: float, form: str = "inverted", shared: bool = False) -> tuple[Array, Array]:
    """Every input with two independent masks, `(2N, 2N)`: its kernel, and E[m m'] for each pair.

    A recursion on these gives, for the first N rows, the kernel at equal draws (left: θ₁ on the diagonal) and at independent
    draws (right: θ_s on the diagonal, θ₂ elsewhere).

    Args:
        shared: the masks of a draw are the same for all samples.
    """
    g2, g1, _ = dropout_moments(keep, form)
    N = K.shape[0]
    draw, row = jnp.arange(2 * N) // N, jnp.arange(2 * N)
    same = draw[:, None] == draw[None, :] if shared else row[:, None] == row[None, :]
    return jnp.tile(K, (2, 2)), jnp.where(same, g2, g1).astype(K.dtype)


def average_over_draws(same: Array, different: Array, draws: float) -> tuple[Array, Array]:
    """The average over S draws as two kernels, from those at equal and at independent draws.

        [same + (S − 1) different]/S,  and (same − different)/S for each of the S − 1 contrasts between draws

    As S → ∞ only `different` is left; the rest of the trace lies in ever more, ever smaller eigenvalues.

    Reference: derived; for two values λ_max = {[θ₁ + (S − 1) θ_s]/S + (N − 1) θ₂}/N (checked on finite networks).
    """
    return different + (same - different) / draws, (same - different) / draws


def survivors(p: Any) -> Array:
    """Probabilities of 0, 1, ..., L surviving branches, for survival probabilities p `(L,)` (Poisson-binomial)."""
    p = jnp.asarray(p, float)
    start = jnp.zeros(p.size + 1, p.dtype).at[0].set(1)

    def branch(P: Array, keep: Array) -> tuple[Array, None]:
        return P * (1 - keep) + jnp.concatenate([jnp.zeros(1, P.dtype), P[:-1] * keep]), None

    return jax.lax.scan(branch, start, p)[0]


def depth_trace(p: Any, s1: float = 2.0, s2: float = 1.0, readout_variance: float = 1.0) -> Array:
    """θ₁/D of `E_b[F_b]` of a ReLU network with skips over two layers.

        Π_l (1 + r p_l) + so² (s₁ + s₂)/2 Σ_l p_l Π_{k≠l} (1 + r p_k),  r = s₁ s₂/2

    Reference: derived, checked on finite networks. Huang et al., ECCV 2016.
    """
    p = jnp.asarray(p, float)
    r = s1 * s2 / 2
    return jnp.prod(1 + r * p) * (1 + readout_variance * (s1 + s2) / 2 * jnp.sum(p / (1 + r * p)))


def linear_growth(p: float, r: float = 1.0) -> float:
    """Growth per block of λ_max(E_b[F_b]) for linear branches: `½ [1 + p r + √((1 + p r)² − 4 p (1 − p) r)]`, r = s₁ s₂.

    Reference: derived, checked by enumeration of all masks. For ReLU there is no closed form; Monte Carlo lies between
    1 + p² and 1 + p.
    """
    return (1 + p * r + ((1 + p * r) ** 2 - 4 * p * (1 - p) * r) ** 0.5) / 2
