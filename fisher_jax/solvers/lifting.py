"""From eigenpairs of the dual `A Aᵀ` to those of `Aᵀ A`."""

from typing import Any

import jax
import jax.numpy as jnp

from fisher_jax import _checks, linalg
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
    missing = max(0, k - rows.shape[0])
    with linalg.lapack():
        return jax.block_until_ready(
            _completed(jnp.pad(rows, ((0, missing), (0, 0))), jnp.pad(meaningful, (0, missing)), key)
        )


@linalg.precise_jit
def _completed(rows: Array, meaningful: Array, key: Array) -> Array:
    # QR takes the rows one after the other, as Gram-Schmidt: each is changed only by those before it.
    random = jax.random.normal(key, rows.shape, rows.dtype) / rows.shape[1] ** 0.5
    Q, R = jnp.linalg.qr(jnp.where(meaningful[:, None], rows, random).T)
    return (Q * jnp.where(jnp.diag(R) < 0, -1, 1)[None]).T


def lost(values: Array, meaningful: Array) -> Array:
    """The largest of the values that `complete` gives no eigenvector, -inf if there is none: then not in the list."""
    return jnp.max(jnp.where(meaningful | jnp.isnan(values), -jnp.inf, values), initial=-jnp.inf)


@linalg.precise_jit
def from_dual(operator: Any, U: Array) -> Array:
    return operator.from_dual(U)


def lift_pairs(
    operator: LinearOperator,
    scale: Array,
    rows: Array,
    images: Array,
    values: Array,
    norm: Array,
    noise: Array,
    tol: Array,
    key: Array,
) -> tuple[Array, Array, Array, Array, Array, int]:
    """Dual pairs -> (rows `(k, P)`, values, residuals, residuals that bound the values' errors, lost, products spent).

    The residual of `y = Aᵀ u / √λ` is `Aᵀ r / √λ` with the residual r of u. In one Krylov space all r lie along one q
    but for a remainder e: `‖Aᵀ r‖ <= |r·q| ‖Aᵀ q‖ + ‖e‖ √λ_max`, one product with Aᵀ for all. Where that exceeds tol·norm,
    `Aᵀ r` itself is computed. Values lost in rounding have no such y, the largest of them is told (`lost`); then all pairs
    are measured with fresh products.
    """
    k = rows.shape[0]
    meaningful = values > 10 * noise * jnp.max(values)
    lifted = lift(operator, rows)
    if _checks.traced((operator, meaningful)) or not bool(meaningful.all()):
        lifted, most = complete(lifted, k, meaningful, key), lost(values, meaningful)
        values, residuals = measured(lifted, apply_rows(operator, lifted, 1) * scale)
        return lifted, values, residuals, residuals, most, k + (k + 1) // 2
    R, q, along, across, within = _split_residuals(rows, images, values)
    residuals = (along * _lengths(operator, scale, q[None]) + across * jnp.sqrt(norm)) / jnp.sqrt(values)
    loose = jnp.flatnonzero(~(residuals <= jnp.maximum(tol, noise) * norm))
    if loose.size:
        exact = _lengths(operator, scale, R[loose]) * within[loose] / jnp.sqrt(values[loose])
        residuals = residuals.at[loose].min(exact)
    return lifted, values, residuals, within, lost(values, meaningful), (k + loose.size) // 2 + 1


def _lengths(operator: LinearOperator, scale: Array, directions: Array) -> Array:
    """`‖Aᵀ q‖` of unit rows q."""
    images = apply_rows(operator, directions, min(operator.width, directions.shape[0]), from_dual)
    unit = linalg.power_of_two(images)
    return jnp.linalg.norm(images * unit, axis=1) / unit * jnp.sqrt(scale)


@linalg.precise_jit
def _split_residuals(rows: Array, images: Array, values: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Directions of the residuals, that of the largest; parts of all along and across it; their norms."""
    R = images - values[:, None] * rows
    norms = jnp.linalg.norm(R, axis=1)
    directions = R / jnp.maximum(norms, jnp.finfo(R.dtype).tiny)[:, None]
    q = directions[jnp.argmax(norms)]
    along = R @ q
    return directions, q, jnp.abs(along), jnp.linalg.norm(R - along[:, None] * q[None], axis=1), norms
