"""Choose the route from the shapes alone."""

import dataclasses
from typing import Any

import jax

from fisher_jax.operators import LinearOperator
from fisher_jax.results import EigenResult
from fisher_jax.solvers.base import Reporter, smaller_side
from fisher_jax.solvers.dense import Dense
from fisher_jax.solvers.lanczos import Lanczos

# Up to this size diagonalizing takes less time than compiling an iteration.
DENSE_SIZE = 1000
# Entries of A that are formed and multiplied for the dense route.
DENSE_ENTRIES = 2 * 10**9


@dataclasses.dataclass(frozen=True)
class Auto:
    """`Dense()` where the smaller of primal and dual has at most 1000 rows, else `Lanczos(tol)`."""

    tol: float = 1e-6

    def solve(
        self,
        operator: LinearOperator,
        k: int,
        *,
        key: jax.Array,
        v0: Any = None,
        above: Any = None,
        progress: Reporter | None = None,
    ) -> EigenResult:
        side = smaller_side(operator)
        larger = operator.size if operator.dual is None else max(operator.size, operator.dual.size)
        small = side.size <= DENSE_SIZE and (operator.dual is None or side.size * larger <= DENSE_ENTRIES)
        method = Dense() if small else Lanczos(tol=self.tol)
        return method.solve(operator, k, key=key, v0=v0, above=above, progress=progress)
