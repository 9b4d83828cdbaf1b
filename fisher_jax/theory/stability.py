"""Bounds on the generalization gap by algorithmic stability: how much the loss of a sample depends on having trained on it.

With a loss that is G-Lipschitz in the parameters and an empirical risk with `|∇R|² >= 2 μ (R − R*)` (Polyak–Łojasiewicz),
a global minimum is stable by `ε = 2 G²/(μ N)`, and the expected gap is at most ε. Constants and the region of parameters
are ours; the literature's text was not at hand.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fisher_jax import _checks

Array = jax.Array


def replace_one(lipschitz2: Any, pl: Any, samples: int) -> Any:
    """`ε = 2 G²/(μ N)` for replacing a sample; half of it for leaving one out.

    Reference: Charles and Papailiopoulos, ICML 2018 (from memory).
    """
    return 2 * lipschitz2 / (pl * samples)


def risk_bound(empirical: Any, stability: Any, largest_loss: float, samples: int, failure: float) -> Any:
    """`R <= R_emp + √((M² + 12 M N ε)/(2 N δ))` with probability 1 − δ, M the largest loss.

    Reference: Bousquet and Elisseeff, JMLR 2, 2002 (from memory).
    """
    return empirical + ((largest_loss**2 + 12 * largest_loss * samples * stability) / (2 * samples * failure)) ** 0.5


def architecture_factor(weights: Sequence[Any], kind: str) -> tuple[Array, Array, Array]:
    """(up, lo, A = up/lo): the part of the bound of a linear network `f = T_B ... T_1 x` that its architecture makes.

        G² <= ρ² R² up,  up = Σ_b g_b Π_{j≠b} σ_max(T_j)²;   μ >= (σ_min(X)²/N) lo,  lo = Σ_b m_b Π_{j≠b} σ_min(T_j)²
        ε <= (2 ρ² R²/σ_min(X)²) A,  with the residual norm ρ and R = max |x|

    "mlp": T = W, g = m = 1. "skip one": T = I + W, g = m = 1. "skip two": T = I + W₂W₁, g and m the sums of the squared
    largest and smallest singular values of W₁ and W₂.

    Args:
        weights: square matrices W of the blocks; pairs (W₁, W₂) for skip two.

    Returns:
        up, lo, A. From 8 matrices on A is far larger for the MLP than for skip one, and there than for skip two (derived,
        the inequalities checked at random points).
    """
    if kind not in ("mlp", "skip one", "skip two"):
        raise _checks.fail("theory.stability", f"kind={kind!r} is unknown", "choose mlp, skip one or skip two")
    largest, smallest, g, m = [], [], [], []
    for block in weights:
        W = jnp.asarray(block, float)
        if kind == "mlp":
            T = W
        else:
            T = jnp.eye(W.shape[-1], dtype=W.dtype) + (
                jnp.matmul(W[1], W[0], precision="highest") if kind == "skip two" else W
            )
        s = jnp.linalg.svd(T, compute_uv=False)
        inner = jnp.linalg.svd(W, compute_uv=False) if kind == "skip two" else jnp.ones((1, 1), W.dtype)
        largest.append(s[0] ** 2)
        smallest.append(s[-1] ** 2)
        g.append(jnp.sum(inner[:, 0] ** 2))
        m.append(jnp.sum(inner[:, -1] ** 2))
    up, lo = (
        jnp.prod(jnp.stack(bound)) * jnp.sum(jnp.stack(own) / jnp.stack(bound))
        for bound, own in ((largest, g), (smallest, m))
    )
    return up, lo, up / lo


def architecture_bound(matrices: int, norm: float, kind: str) -> float:
    """A for |W| <= τ < 1 and L matrices: ((1 + τ)/(1 − τ))^{2(L−1)} for skip one; ((1 + τ²)/(1 − τ²))^{L−2} for skip two.

    The latter times g/m, the conditioning of the W themselves (derived).
    """
    if not 0 <= norm < 1 or kind not in ("skip one", "skip two"):
        raise _checks.fail("theory.stability", f"norm={norm!r}, kind={kind!r}", "give a norm below 1, skip one or skip two")
    t, power = (norm, 2 * (matrices - 1)) if kind == "skip one" else (norm**2, matrices - 2)
    return math.exp(power * (math.log1p(t) - math.log1p(-t)))


def kernel_stability(theta: Array, residual2: Any = 1.0) -> Array:
    """`ε <= 2 ρ² max θ₁/λ_min(Θ)` of any network in the kernel regime, one output; 2 ρ²/(1 − θ₂/θ₁) for two samples' worth.

    It measures the conditioning of the kernel, not the ordering of `architecture_factor` (derived).
    """
    return 2 * residual2 * jnp.max(jnp.diagonal(theta)) / jnp.linalg.eigvalsh(theta)[0]


def sgd_stability(lipschitz2: float, smoothness: float, step: float, steps: int, samples: int) -> float:
    """`(1 + 1/(β c))/(N − 1) (2 c G²)^{1/(β c + 1)} T^{β c/(β c + 1)}` for T steps of size c/t.

    In theory G² = ρ² θ₁ and β = λ_max.

    Reference: Hardt, Recht and Singer, ICML 2016 (from memory, not checked).
    """
    bc = smoothness * step
    return (1 + 1 / bc) / (samples - 1) * (2 * step * lipschitz2) ** (1 / (bc + 1)) * steps ** (bc / (bc + 1))
