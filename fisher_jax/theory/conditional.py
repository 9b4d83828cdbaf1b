"""The Fisher matrix of a single sample, and what becomes of it under dynamical isometry.

Derived from the abstract of Hayase and Karakida, AISTATS 2021, and checked on linear networks.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def kernel(norms: Any, jacobians: Sequence[Any]) -> Array:
    """`Θ(x, x) = Σ_l |h^{l−1}|² J_l J_lᵀ`, `(C, C)`, with `J_l = ∂f/∂u^l`: its eigenvalues are those of F of one sample.

    Args:
        norms: |h⁰|², ..., |h^{L−1}|². jacobians: J_1, ..., J_L, each `(C, M_l)`; that of the outputs is the identity.
    """
    terms = [n * jnp.matmul(J, J.T, precision="highest") for n, J in zip(norms, map(jnp.asarray, jacobians), strict=True)]
    return jnp.sum(jnp.stack(terms), axis=0)


def isometric(depth: int, norm: Any) -> Any:
    """All eigenvalues are `L |x|²` where each layer keeps norms and all singular values of J are 1 (orthogonal linear nets).

    The learning rate of single samples is then limited by 2/(L |x|²), so falls as 1/L. Gaussian weights have the same mean,
    but a wide spread.
    """
    return depth * norm
