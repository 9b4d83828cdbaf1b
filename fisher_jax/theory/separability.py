"""How far apart inputs stay in He-ReLU networks: norms, angles, distances, and what that means for classes.

One rule for all: a layer or block mixes the arc-cosine kernel ψ into the cosine by its share of the stream's norm,

    cos t' = mix ψ(t) + (1 − mix) cos t,  |h'|² = |h|²/(1 − mix)   (a layer without skip: mix = 1, |h'|² = |h|²)
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import _checks

Array = jax.Array


def mixing(kind: str, depth: int, growth: float = 1.0) -> np.ndarray:
    """The share of each layer or block `(depth,)`.

    "mlp" 1; "skip two" and "skip one" (pre, He) 1/2; "population" (batch norm) 1/(l + 3); "concatenating"
    κ/(1 + (l + 1) κ), κ = growth over inputs; "depth" (1/√L) 1/(L + 1).

    Reference: Furusho and Ikeda, ACML 2019, Thms 2, 5, 6 (Eq. 10-12, quoted); "skip one" and the last two derived.
    """
    block = np.arange(depth)
    shares = {
        "mlp": np.ones(depth),
        "skip two": np.full(depth, 0.5),
        "skip one": np.full(depth, 0.5),
        "population": 1 / (block + 3),
        "concatenating": growth / (1 + (block + 1) * growth),
        "depth": np.full(depth, 1 / (depth + 1)),
    }
    if kind not in shares:
        raise _checks.fail("theory.separability", f"kind={kind!r} is unknown", f"choose among {', '.join(shares)}")
    return shares[kind]


def angles(angle: Any, mix: Any) -> Array:
    """The angle after 0, 1, ..., L blocks, `(L + 1, ...)`, from the angle of the inputs.

    Small angles: 1/t grows by mix/(3π) per block (derived): 3π/L in an MLP, 6π/L with skip two, 3π/ln L with population
    batch norm. The exponential decay a^L of the paper's Table 1 holds for some ten layers only.
    """
    t = jnp.asarray(angle, float)
    mix = jnp.asarray(mix, t.dtype)

    def block(t: Array, share: Array) -> tuple[Array, Array]:
        # Of 1 − cos, which keeps its digits at small angles.
        gap = 2 * jnp.sin(t / 2) ** 2
        gap = gap - share * (jnp.sin(t) - t * jnp.cos(t)) / jnp.pi
        return 2 * jnp.arcsin(jnp.sqrt(gap / 2)), t

    last, before = jax.lax.scan(block, t, mix)
    return jnp.concatenate([before, last[None]])


def norms(mix: Any, norm: Any = 1.0) -> Array:
    """|h|² after 0, 1, ..., L blocks, from that of the input; a layer without skip (mix = 1) keeps it.

    Reference: Furusho and Ikeda, ACML 2019, as in `mixing`.
    """
    mix = jnp.asarray(mix, float)
    grown = jnp.where(mix < 1, 1 / jnp.where(mix < 1, 1 - mix, 1), 1)
    return norm * jnp.concatenate([jnp.ones(1, mix.dtype), jnp.cumprod(grown)])


def distance(norm: Any, other: Any, angle: Any) -> Any:
    """|h − h'|² = |h|² + |h'|² − 2 |h| |h'| cos t, of squared norms (Eq. 8)."""
    return norm + other - 2 * (norm * other) ** 0.5 * jnp.cos(angle)


def coactivation(angle: Any) -> Any:
    """Probability that a unit is active for both inputs, (1 − t/π)/2 (Thm 11, Eq. 14, quoted)."""
    return (1 - angle / jnp.pi) / 2


def class_error_bound(direction: Any, means: tuple[Any, Any], covariances: tuple[Any, Any]) -> Array:
    """Bound on each class's error of the best threshold along a direction v, whatever the distributions.

        inf_b P(error) <= 1/(1 + r²),  r = v·(m₊ − m₋)/(√(vᵀΣ₊v) + √(vᵀΣ₋v))

    Reference: Furusho and Ikeda, ACML 2019, Thm 1, Eq. 7 (quoted).
    """
    v, plus, minus, cov_plus, cov_minus = (jnp.asarray(a, float) for a in (direction, *means, *covariances))
    r = jnp.dot(v, plus - minus) / (jnp.sqrt(v @ cov_plus @ v) + jnp.sqrt(v @ cov_minus @ v))
    return 1 / (1 + jnp.maximum(r, 0) ** 2)
