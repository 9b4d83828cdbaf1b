"""What an iteration starts from: a block in the range of M, the scale of M, and the rounding error of its products."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import _checks, linalg
from fisher_jax.operators import FunctionOperator, apply
from fisher_jax.solvers.base import apply_rows
from fisher_jax.solvers.lifting import from_dual

Array = jax.Array

# No rounding of a product is as large as this, even in bfloat16; that of functions which are not linear is.
NONLINEAR = 0.1


def start_block(side: Any, operator: Any, b: int, v0: Any, key: Array) -> tuple[Array, Array, Array, int]:
    """Start block `(b, n)`, relative rounding error of a product, power of two near 1/‖M‖, products spent.

    The start is M times random directions: in the range of M, with the largest eigenvalues already amplified; or `v0` as it
    is, since nothing can be measured on a vector that M may map to zero.
    """
    start = jax.random.normal(key, (b, side.size), side.dtype)
    if v0 is None:
        return *measure("eigsh", side, start), 2 * b
    _, noise, scale = measure("eigsh", side, start[:1])
    rows, spent = given(side, operator, b, v0)
    return start.at[: len(rows)].set(rows), noise, scale, 2 + spent


def check_start(operator: Any, v0: Any) -> None:
    """Refuse start vectors that do not fit, whether or not a method uses them."""
    shape = np.shape(v0)
    if len(shape) not in (1, 2) or shape[0] != operator.size or 0 in shape:
        remedy = f"give a vector of shape ({operator.size},) or columns ({operator.size}, j)"
        raise _checks.fail("eigsh", f"v0 has shape {shape}", remedy)
    if np.iscomplexobj(v0):
        raise _checks.fail("eigsh", "v0 is complex", "give real start vectors")
    _checks.finite("eigsh", "v0", jnp.asarray(v0, operator.dtype), "give start vectors without NaN")


def given(side: Any, operator: Any, b: int, v0: Any) -> tuple[Array, int]:
    """Start vectors `(size,)` or `(size, j)` as at most b unit rows on the side that is iterated; products spent.

    More than b are added up: what counts is that each is there. Where rows are orthonormalized, zeros become random.
    """
    columns = jnp.asarray(v0, operator.dtype)
    unit = _unit_rows(columns[None] if columns.ndim == 1 else columns.T)[0]
    rows = jnp.stack([jnp.sum(unit[i::b], axis=0) for i in range(min(b, len(unit)))])
    if side is operator:
        return _unit_rows(rows)[0], 0
    return _unit_rows(apply_rows(side, rows, 1, from_dual))[0], (len(rows) + 1) // 2


def measure(where: str, side: Any, rows: Array) -> tuple[Array, Array, Array]:
    """(scale · M times the normalized rows `(b, n)`, relative rounding error of a product, scale: power of two near 1/‖M‖).

    The product of the same directions times a number that is no power of two rounds differently everywhere; the difference
    between the two measures the rounding error of a product.
    """
    rows, other = _unit_rows(rows)
    image, again = apply(side, rows.T).T, apply(side, other.T).T
    block, noise, scale, size = _compare(rows, image, again)
    if not _checks.traced(size) and not np.isfinite(float(size)):
        raise _checks.fail(where, "the operator returned NaN or infinity", "check the weights, the data and the scale")
    if isinstance(side, FunctionOperator) and not _checks.traced(noise) and not float(noise) < NONLINEAR:
        what = f"{side!r} is not linear, or rounds as much: M (a v) and a M v differ by {float(noise) / 4:.1g} |M v|"
        raise _checks.fail(where, what, "give a linear function, such as a Hessian-vector product, or enable x64")
    return block, noise, scale


def product_error(side: Any, exact: Any, block: Array) -> Array:
    """Relative error of a product at reduced precision, against a full one, on M times random directions.

    These lie near the largest eigenvectors. Unlike the comparison of two reduced products it sees the rounding of M itself.
    """
    rows, _ = _unit_rows(block)
    image, full = apply(side, rows.T), apply(exact, rows.T)
    scale = linalg.power_of_two(full.T)
    return 4 * jnp.max(jnp.linalg.norm((image - full) * scale, axis=0) / jnp.linalg.norm(full * scale, axis=0))


# Negative: of a function such as |v| no positive one would tell.
_ALPHA = -0.7390851332151607


@linalg.precise_jit
def _unit_rows(rows: Array) -> tuple[Array, Array]:
    """Rows of length one, and the same times a number that is no power of two."""
    # Twice: the squares of large or small entries would overflow or vanish.
    rows = rows / jnp.maximum(jnp.max(jnp.abs(rows), axis=1, keepdims=True), jnp.finfo(rows.dtype).tiny)
    rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), jnp.finfo(rows.dtype).tiny)
    return rows, _ALPHA * rows


@linalg.precise_jit
def _compare(start: Array, image: Array, again: Array) -> tuple[Array, Array, Array, Array]:
    """(start block of the iteration, relative rounding error of a product, scale, norm of the images)."""
    again = again / _ALPHA
    scale = linalg.power_of_two(image)
    image, again = image * scale, again * scale
    size = jnp.linalg.norm(image)
    defect = jnp.linalg.norm(image - again) / jnp.maximum(size, jnp.finfo(size.dtype).tiny)
    noise = 4 * jnp.maximum(defect, linalg.eps(size.dtype))
    return jnp.where(size > 0, image, start), noise, scale, size
