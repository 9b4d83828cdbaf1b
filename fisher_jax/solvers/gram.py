"""Stored dual matrix: K is built once from the layers, and its largest pairs found by Lanczos."""

import dataclasses
from typing import Any

import jax

from fisher_jax import _checks
from fisher_jax._record import record
from fisher_jax.operators import LinearOperator, MatrixOperator, symmetric
from fisher_jax.results import EigenResult
from fisher_jax.solvers.base import Reporter
from fisher_jax.solvers.lanczos import Lanczos

Array = jax.Array


@record
class _StoredDual(LinearOperator):
    """A Fisher operator whose dual is an explicit matrix."""

    operator: Any
    matrix: MatrixOperator

    psd = True

    @property
    def size(self) -> int:
        return self.operator.size

    @property
    def dtype(self) -> Any:
        return self.operator.dtype

    @property
    def dual(self) -> MatrixOperator:  # type: ignore[override]
        return self.matrix

    def matmat(self, V: Array) -> Array:
        return self.operator.matmat(V)

    def from_dual(self, U: Array) -> Array:
        return self.operator.from_dual(U)


@dataclasses.dataclass(frozen=True)
class Gram:
    """Build the dual matrix K (N·C, N·C) from the layers, once, and run Lanczos on it; F itself only lifts the vectors.

    For many more parameters than N·C: a product with K costs (N·C)² operations, one with F four forward passes over the
    data. K has to fit in memory; it need not be small enough for LAPACK.

    Args:
        tol, block: as in `fj.Lanczos`. From a few thousand rows on, a CPU multiplies K with four vectors as fast as with
            one. A start vector `v0` is not used: products with K cost little.
    """

    tol: float = 1e-6
    block: int = 1

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
        if operator.dual is None or not hasattr(operator, "gram"):
            raise _checks.fail("Gram", f"{operator!r} has no layers to build K from", "give fj.fisher(...), or fj.Lanczos()")
        if operator.dual.size >= operator.size:
            raise _checks.fail(
                "Gram", f"K is {operator.dual.size} x {operator.dual.size}, F {operator.size}", "use method=fj.Lanczos()"
            )
        stored = _StoredDual(operator, symmetric(operator.dual.dense()))
        result = Lanczos(tol=self.tol, block=self.block).solve(stored, k, key=key, v0=None, above=above, progress=progress)
        return dataclasses.replace(result, method=f"Gram: {result.method}")
