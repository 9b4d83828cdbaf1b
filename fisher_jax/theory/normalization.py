"""Batch statistics inside the network, as numbers that are not differentiated."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fisher_jax.theory.duals import Dual, of_kernel

Array = jax.Array


def centred(K: Array, samples: Any = None) -> Array:
    """`H K H`, `H = I − 11ᵀ/N`; with `samples`, K stands for the two-valued kernel of so many, infinity included."""
    if samples is None:
        rows = jnp.mean(K, axis=1)
        return K - rows[:, None] - rows[None, :] + jnp.mean(K)
    inverse = 1 / samples
    return K - (K[0, 0] * inverse + K[0, 1] * (1 - inverse))


def by_mean_variance(dual: Dual, samples: Any = None) -> Callable[[Array], tuple[Array, Array]]:
    """Each unit divided by the root of the mean batch variance: `S = H K H / v`, `v = tr(H K H)/N`; slope `Vd(S)/v`.

    Right for large batches (derived). For N samples it neglects that a unit's variance fluctuates.
    """

    def norm(K: Array) -> tuple[Array, Array]:
        K = centred(K, samples)
        v = jnp.mean(jnp.diagonal(K))
        return of_kernel(dual.V, K / v), of_kernel(dual.Vd, K / v) / v

    return norm


def by_own_variance(dual: Dual) -> Callable[[Array], tuple[Array, Array]]:
    """Each unit divided by its own batch deviation, in expectation, for homogeneous φ and N >= 5 samples (derived).

        V = N E[φ(u) φ(u')/|u|²],  Vd = N E[φ'(u) φ'(u')/|u|²],  u ~ N(0, H K H) over the batch

    With `1/|u|² = ∫ exp(−t|u|²) dt` both are integrals over the dual at the covariance `S (I + 2tS)⁻¹`, `S = H K H`, times
    `det(I + 2tS)^(−1/2)`: one smooth integral, by the trapezoidal rule in log t (as Yang et al., ICLR 2019).
    """

    def norm(K: Array) -> tuple[Array, Array]:
        N = K.shape[0]
        S = centred(K)
        total = jnp.trace(S)
        values, Q = jnp.linalg.eigh((S + S.T) / (2 * total))  # of trace 1
        values = jnp.maximum(values, 0)
        # Left, the integrand falls as t; right, as t^(1 − rank/2).
        end = 6 + 30 / max((N - 1) / 2 - 1, 0.5)
        s = jnp.linspace(-24, end, math.ceil((end + 24) / 0.4), dtype=K.dtype)

        def node(sums: tuple[Array, Array], s: Array) -> tuple[tuple[Array, Array], None]:
            t = jnp.exp(s)
            weight = jnp.exp(s - jnp.sum(jnp.log1p(2 * t * values)) / 2)
            C = (Q * (values / (1 + 2 * t * values))[None, :]) @ Q.T
            return (sums[0] + weight * of_kernel(dual.V, C), sums[1] + weight * of_kernel(dual.Vd, C)), None

        zero = jnp.zeros_like(K)
        (V, Vd), _ = jax.lax.scan(node, (zero, zero), s)
        step = s[1] - s[0]
        return N * step * V, N * step * Vd / total

    return norm
