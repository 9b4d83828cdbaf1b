"""Dense route: form the matrix on its smaller side and diagonalize it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import _checks, linalg
from fisher_jax.operators import LinearOperator, MatrixOperator
from fisher_jax.results import EigenResult, provenance
from fisher_jax.solvers.base import (
    Reporter,
    apply_rows,
    certify,
    check_symmetry,
    keep_above,
    measured,
    smaller_side,
)
from fisher_jax.solvers.lifting import complete, lift, lost
from fisher_jax.solvers.start import measure

Array = jax.Array

# LAPACK's 32-bit workspaces overflow not far above this, and the wait is long before.
MAX_SIZE = 16_000


@dataclasses.dataclass(frozen=True)
class Dense:
    """Form the matrix (for a Fisher matrix F or its dual K, whichever is smaller) and diagonalize it: O(n³), all pairs."""

    def solve(
        self,
        operator: LinearOperator,
        k: int,
        *,
        key: Array,
        v0: Any = None,
        above: Any = None,
        progress: Reporter | None = None,
    ) -> EigenResult:
        side = smaller_side(operator)
        if side.size > MAX_SIZE:
            raise _checks.fail("Dense", f"size {side.size} exceeds {MAX_SIZE}", "use method=fj.Lanczos()")
        matrix = side.dense()
        scale = linalg.power_of_two(matrix)
        if not _checks.traced(matrix):
            largest = float(jnp.max(jnp.abs(matrix * scale)))
            if not np.isfinite(largest):
                raise _checks.fail(
                    "eigsh", f"{operator!r} returned NaN or infinity", "check the weights, the data and the scale"
                )
            skew = float(jnp.max(jnp.abs(matrix - matrix.T) * scale))
            check_symmetry("eigsh", operator, skew / max(largest, 1e-30), 1e4 * linalg.eps(matrix.dtype))
        with linalg.lapack(side.size):
            values, rows, rest, norm = jax.block_until_ready(_top_rows(matrix * scale, min(k, side.size)))
        spent = k
        floor = jnp.asarray(4 * linalg.eps(side.dtype) * max(1.0, side.size**0.5 / 4), side.dtype)
        if not isinstance(side, MatrixOperator):
            # A network of lower precision multiplies in that, whatever the matrix was formed in.
            probe = jax.random.normal(key, (1, operator.size), operator.dtype)
            floor, spent = jnp.maximum(floor, measure("eigsh", operator, probe)[1]), spent + 2
        # Everything else is known too: the next eigenvalue, or zero past the end of the smaller side.
        rest = rest if k < side.size or side.size == operator.size else jnp.zeros((), side.dtype)
        if side is not operator:
            meaningful = values > floor * norm
            rest = jnp.maximum(rest, lost(values, meaningful))
            rows = complete(lift(operator, rows), k, meaningful, key)
            spent += (k + 1) // 2
        values, residuals = measured(rows, apply_rows(operator, rows, 1) * scale)
        result = certify(
            operator,
            rows,
            values,
            residuals,
            norm,
            floor,
            floor,
            rest,
            spent,
            unit=1 / scale,
            method="Dense() on the " + ("operator" if side is operator else "dual"),
            info=provenance(key, operator.dtype, size=operator.size, formed=side.size),
        )
        return result if above is None else keep_above(result, above)


@linalg.precise_jit
def _eigh(matrix: Array) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    return values[::-1], vectors.T[::-1]


def _top_rows(matrix: Array, k: int) -> tuple[Array, Array, Array, Array]:
    values, rows = _eigh(matrix)
    rest = values[k] if k < values.size else jnp.full((), -jnp.inf, values.dtype)
    return values[:k], rows[:k], rest, jnp.max(jnp.abs(values))
