"""From eigenpairs of the dual `A Aᵀ` to those of `Aᵀ A`."""

from typing import Any

import jax
import jax.numpy as jnp

from fisher_jax import _checks, linalg
from fisher_jax.krylov import orthonormal_rows
from fisher_jax.operators import LinearOperator
from fisher_jax.solvers.base import apply_rows, measured

Array = jax.Array


def lift(operator: LinearOperator, rows: Array) -> Array:
    """Eigenvectors of the dual, rows `(k, dual size)` -> those of the operator `(k, size)`: `Aᵀ u`, normalized."""
    return _normalized(apply_rows(operator, rows, min(operator.width, rows.shape[0]), from_dual))


@linalg.precise_jit
def _normalized(rows: Array) -> Array:
    rows = rows * linalg.power_of_two(rows)
    lengths = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.maximum(lengths, jnp.finfo(rows.dtype).tiny)


def complete(rows: Array, k: int, meaningful: Array, key: Array) -> Array:
    """k orthonormal rows: the meaningful ones of `(j, n)`, then random directions orthogonal to them.

    Null vectors of the dual have no image under Aᵀ; any direction orthogonal to all other eigenvectors is one of F.
    """
    rows = jnp.where(meaningful[:, None], rows, 0)
    return _orthonormal_rows(jnp.pad(rows, ((0, max(0, k - rows.shape[0])), (0, 0))), key)


_orthonormal_rows = linalg.precise_jit(orthonormal_rows)


@linalg.precise_jit
def from_dual(operator: Any, U: Array) -> Array:
    return operator.from_dual(U)


def lift_pairs(
    operator: LinearOperator, scale: Array, rows: Array, images: Array, values: Array, norm: Array, noise: Array, key: Array
) -> tuple[Array, Array, Array, Array, int]:
    """Dual pairs -> (rows `(k, P)`, values, residuals, residuals that bound the values' errors, products spent).

    The residual of `y = Aᵀ u / √λ` is `Aᵀ r / √λ` with the residual r of u. All r lie along one direction q but for a
    remainder e: `‖Aᵀ r‖ <= |r·q| ‖Aᵀ q‖ + ‖e‖ √λ_max`, one product with Aᵀ for all. Values lost in rounding have no such y;
    then all pairs are measured with fresh products.
    """
    k = rows.shape[0]
    meaningful = values > 10 * noise * jnp.max(values)
    lifted = lift(operator, rows)
    if not _checks.traced((operator, meaningful)) and bool(meaningful.all()):
        q, along, across, within = _split_residuals(rows, images, values)
        image = from_dual(operator, q[:, None]).T
        unit = linalg.power_of_two(image)
        length = jnp.linalg.norm(image * unit) / unit * jnp.sqrt(scale)
        return lifted, values, (along * length + across * jnp.sqrt(norm)) / jnp.sqrt(values), within, k // 2 + 1
    lifted = complete(lifted, k, meaningful, key)
    values, residuals = measured(lifted, apply_rows(operator, lifted, 1) * scale)
    return lifted, values, residuals, residuals, k + (k + 1) // 2


@linalg.precise_jit
def _split_residuals(rows: Array, images: Array, values: Array) -> tuple[Array, Array, Array, Array]:
    """Direction q of the largest residual; parts of all residuals along and across it; their norms."""
    R = images - values[:, None] * rows
    norms = jnp.linalg.norm(R, axis=1)
    q = R[jnp.argmax(norms)] / jnp.maximum(jnp.max(norms), jnp.finfo(R.dtype).tiny)
    along = R @ q
    return q, jnp.abs(along), jnp.linalg.norm(R - along[:, None] * q[None], axis=1), norms
