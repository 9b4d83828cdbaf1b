"""The whole Fisher spectrum of one hidden layer with infinitely much Gaussian data (the setting of Pennington and Worah).

`f = W₂ φ(W₁ x)`, x ~ N(0, I), W₁ (n₁ × n₀) of variance s₁/n₀, W₂ (n₂ × n₁) of variance s₂/n₁, `F = E_x Σ_k ∇f_k ∇f_kᵀ`. In
the singular bases of both matrices, with squared singular values b of W₁ and a of W₂, F falls into blocks

    [[ζ a + (η' − ζ) r, ζ √(a b)], [ζ √(a b), ζ b + η − ζ s₁]],  r = n₂ s₂/n₁

with η = Var φ(u), η' = E φ'(u)², ζ = (E φ'(u))², u ~ N(0, s₁). Derived from the abstract of Pennington and Worah, NeurIPS
2018, and checked against explicit matrices.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import _checks
from fisher_jax.theory.duals import Dual

Array = jax.Array


class Constants(NamedTuple):
    """Gaussian moments of an activation at variance s₁."""

    mean: float  # E φ
    eta: float  # Var φ
    slope: float  # η' = E φ'²
    zeta: float  # (E φ')²


def constants(dual: Dual, variance: float = 1.0) -> Constants:
    with jax.enable_x64(True):
        s, zero = jnp.asarray(variance, float), jnp.zeros((), float)
        mean = float(dual.mean(s))
        return Constants(mean, float(dual.V(s, s, s)) - mean**2, float(dual.Vd(s, s, s)), float(dual.Vd(s, zero, s)))


def marchenko_pastur(rows: int, columns: int, scale: float, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (sum 1) of the nonzero squared singular values of a matrix with variance scale/columns."""
    c = rows / columns
    angle = (np.arange(nodes) + 0.5) * np.pi / nodes
    centre, half = 1 + c, 2 * math.sqrt(c)
    x = centre - half * np.cos(angle)
    weights = np.sin(angle) ** 2 / x
    return scale * x, weights / weights.sum()


def pair(a: Any, b: Any, k: Constants, s1: float = 1.0, r: float = 1.0) -> tuple[Any, Any]:
    """Both eigenvalues (λ₋, λ₊) of the block of squared singular values a of W₂ and b of W₁."""
    first, second = k.zeta * a + (k.slope - k.zeta) * r, k.zeta * b + k.eta - k.zeta * s1
    middle, half = (first + second) / 2, (first - second) / 2
    root = np.sqrt(half**2 + k.zeta**2 * a * b)
    # λ₋ from the determinant, without cancellation: exactly zero for linear networks.
    upper = middle + root
    other = k.zeta * (k.eta - k.zeta * s1) * a + k.zeta * (k.slope - k.zeta) * r * b
    other = other + (k.eta - k.zeta * s1) * (k.slope - k.zeta) * r
    return other / np.where(upper > 0, upper, 1), upper


def levels(
    dual: Dual, sizes: tuple[int, int, int], variances: tuple[float, float] = (1.0, 1.0), nodes: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """The spectrum as weighted values: (values descending, share of all eigenvalues); outliers of a mean included.

    min(n₁, n₂) · min(n₀, n₁) pairs; (n₁ − n₂)₊ n₀ times (η' − ζ) r; (n₀ − n₁)₊ times ζ a + (η' − ζ) r for each a;
    min(n₁, n₂) (n₁ − n₀)₊ times η − ζ s₁; (n₂ − n₁)₊ copies of {ζ b + η − ζ s₁}, b padded by zeros. With E φ ≠ 0, n₂
    outliers near n₁ (E φ)² + η, which bounds their mean from below.

    Args:
        dual: of φ. sizes: (n₀, n₁, n₂). variances: (s₁, s₂). nodes: of each Marchenko–Pastur law.
    """
    n0, n1, n2 = (_checks.integer("theory.one_hidden_layer", "sizes", n, 1) for n in sizes)
    s1, s2 = variances
    k, r = constants(dual, s1), n2 * s2 / n1
    b, wb = marchenko_pastur(n1, n0, s1, nodes)
    a, wa = marchenko_pastur(n2, n1, s2, nodes)
    qa, qb = min(n1, n2), min(n0, n1)
    lower, upper = pair(a[:, None], b[None, :], k, s1, r)
    weight = np.outer(wa, wb) * qa * qb
    flat = k.eta - k.zeta * s1
    lone = (k.slope - k.zeta) * r
    parts = [
        (lower, weight),
        (upper, weight),
        (np.array([lone]), np.array([max(n1 - n2, 0) * n0])),
        (k.zeta * a + lone, wa * qa * max(n0 - n1, 0)),
        (np.array([flat]), np.array([qa * max(n1 - n0, 0)])),
        (k.zeta * b + flat, wb * qb * max(n2 - n1, 0)),
        (np.array([flat]), np.array([(n1 - qb) * max(n2 - n1, 0)])),
    ]
    values = np.concatenate([v.ravel() for v, _ in parts])
    weights = np.concatenate([np.asarray(w, float).ravel() for _, w in parts])
    if abs(k.mean) > 1e-9:
        values, weights = np.r_[values, n1 * k.mean**2 + k.eta], np.r_[weights * (1 - n2 / weights.sum()), n2]
    order = np.argsort(-values)
    return values[order], weights[order] / (n1 * (n0 + n2))


def quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The value below which this share of the eigenvalues lies."""
    below = np.cumsum(weights[::-1])
    return float(values[::-1][min(np.searchsorted(below, share * below[-1]), values.size - 1)])


def stieltjes(dual: Dual, z: Any, nodes: int = 200) -> np.ndarray:
    """`G(z) = mean of 1/(z − λ)` for Im z > 0, n₀ = n₁ = n₂, s₁ = s₂ = 1, without outliers.

        G = ∬ ½ (2z − T)/(z² − zT + Δ) dμ(a) dμ(b),  T = ζ(a + b) + η + η' − 2ζ,
        Δ = ζ(η − ζ) a + ζ(η' − ζ) b + (η − ζ)(η' − ζ),  μ the Marchenko–Pastur law

    The density is −Im G(x + i0)/π; at distance ε from the axis it is smoothed over ε.
    """
    k = constants(dual)
    a, w = marchenko_pastur(1, 1, 1.0, nodes)
    A, B, weight = a[:, None], a[None, :], np.outer(w, w)
    T = k.zeta * (A + B) + k.eta + k.slope - 2 * k.zeta
    determinant = k.zeta * (k.eta - k.zeta) * A + k.zeta * (k.slope - k.zeta) * B + (k.eta - k.zeta) * (k.slope - k.zeta)
    z = np.asarray(z, complex)
    return np.array([np.sum(weight * (2 * p - T) / (p**2 - p * T + determinant)) / 2 for p in z.ravel()]).reshape(z.shape)


def density(dual: Dual, x: Any, smoothing: float = 0.02, nodes: int = 200) -> np.ndarray:
    """Eigenvalue density ρ(x) of the square case, smoothed over this width."""
    return -np.imag(stieltjes(dual, np.asarray(x, float) + 1j * smoothing, nodes)) / np.pi
