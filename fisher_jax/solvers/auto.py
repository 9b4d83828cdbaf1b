"""Choose the method by what each is expected to take on this machine."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fisher_jax import _checks, costs, linalg
from fisher_jax.factor import Factor
from fisher_jax.operators import LinearOperator, MatrixOperator
from fisher_jax.results import EigenPlan, EigenResult, Route
from fisher_jax.solvers.base import Reporter, smaller_side
from fisher_jax.solvers.dense import MAX_SIZE, Dense
from fisher_jax.solvers.gram import Gram
from fisher_jax.solvers.lanczos import Lanczos

# Blocks that are considered: a CPU multiplies several vectors faster than one by one with explicit matrices only.
BLOCKS, WIDE_BLOCKS = (1, 4), (1, 4, 16)
# What a step costs beside its product and its basis, for each vector and once: programs started by the host.
STEP_SECONDS = 2.5e-4
# What takes less is diagonalized: an iteration saves nothing that would be felt, and takes seconds to compile.
SHORT = 0.05
# Reduced precision is taken where it is so many times faster, and its rounding stays below the tolerance.
FASTER, ROUNDING = 1.5, {"tensorfloat32": 2.0**-11, "bfloat16": 2.0**-8}


@dataclasses.dataclass(frozen=True)
class Auto:
    """The method that is expected to take least time: `Dense()`, `Lanczos(...)` or `Gram(...)`, with block and precision.

    From the sizes, the memory that is free, and the rate of a matrix product, measured once per process. Functions and SciPy
    operators are multiplied twice to see what that takes. `fj.plan(F, k)` shows all expected times.

    Args:
        tol: as in `fj.Lanczos`.
    """

    tol: float = 1e-6

    def __post_init__(self) -> None:
        _checks.tolerance("Auto", self.tol)

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
        method = self.plan(operator, k).routes[0].method
        return method.solve(operator, k, key=key, v0=v0, above=above, progress=progress)

    def plan(self, operator: LinearOperator, k: int) -> EigenPlan:
        """All routes to the k largest pairs, the one that is taken first."""
        free = linalg.free_memory()
        routes = [*_dense(operator, k), *_iterations(operator, k, self.tol), *_gram(operator, k, self.tol)]

        if not routes:
            n = smaller_side(operator).size
            raise _checks.fail(
                "eigsh",
                f"k={k} of {n} rows: a basis of {_basis(k, 1)} vectors spans nearly all, and above {MAX_SIZE} rows none is "
                "diagonalized",
                f"give k <= {(n - _basis(0, 1) - 2) // 2}, or fj.spectrum(F) for all",
            )

        def preference(route: Route) -> tuple[bool, bool, float]:
            short = isinstance(route.method, Dense) and route.seconds < SHORT
            return route.bytes > free / 2, not short, route.seconds

        order = sorted(routes, key=preference)
        side = smaller_side(operator)
        return EigenPlan(
            k=k,
            size=operator.size,
            iterated=side.size,
            lifted=side is not operator,
            rate=costs.matmul_rate(),
            free_bytes=free,
            routes=tuple(order),
        )


def _dense(operator: LinearOperator, k: int) -> list[Route]:
    side = smaller_side(operator)
    n, itemsize = side.size, jnp.dtype(side.dtype).itemsize
    if n > MAX_SIZE:
        return []
    factor = getattr(side, "factor", None)
    if isinstance(side, MatrixOperator):
        formed = 0.0
    elif not isinstance(factor, Factor):
        formed = n * costs.product_seconds(side, 1, n)
    elif side is not operator or n == factor.shape[0]:
        formed = costs.gram_seconds(factor)
    else:
        formed = costs.primal_seconds(factor)
    # The vectors are lifted, and all multiplied once more for their residuals.
    finish = k * costs.product_seconds(operator, 1, k)
    if side is not operator:
        finish = 1.5 * finish + costs.seconds(costs.ORTHONORMAL * operator.size * float(k) ** 2)
    return [Route(Dense(), formed + costs.eigh_seconds(n) + finish, 0, 4 * n * n * itemsize)]


def _iterations(operator: LinearOperator, k: int, tol: float) -> list[Route]:
    side = smaller_side(operator)
    blocks = BLOCKS if jax.default_backend() == "cpu" else WIDE_BLOCKS
    precision = _precision(tol)
    lift = k / 2 * costs.product_seconds(operator, 1, k) if side is not operator else 0.0
    routes = []
    for b in blocks:
        if b > 1 and blocks is BLOCKS and not isinstance(side, MatrixOperator):
            continue
        if _basis(k, b) + b >= side.size:
            continue
        products, basis = _lanczos(side, k, b)
        product = costs.product_seconds(side, b, products) * _gain(precision)
        routes.append(
            Route(
                Lanczos(tol=tol, block=b, precision=precision),
                products / b * product + basis + lift,
                products + (k // 2 if lift else 0),
                _bytes(side, k, b),
            )
        )
    return routes


def _gram(operator: LinearOperator, k: int, tol: float) -> list[Route]:
    dual, factor = operator.dual, getattr(operator, "factor", None)
    if dual is None or dual.size >= operator.size or not isinstance(factor, Factor) or not hasattr(operator, "gram"):
        return []
    n, b = dual.size, max(BLOCKS)
    if _basis(k, b) + b >= n:
        return []
    products, basis = _lanczos(dual, k, b)
    product = costs.seconds(float(n) ** 2 * max(costs.pass_cost(), 2.0 * b))
    lift = k / 2 * costs.product_seconds(operator, 1, k)
    # K, made symmetric in place, and a tile of it.
    size = 2 * n * n * jnp.dtype(dual.dtype).itemsize + _bytes(dual, k, b)
    seconds = costs.gram_seconds(factor) + products / b * product + basis + lift
    return [Route(Gram(tol=tol, block=b), seconds, products + k // 2, size)]


def _basis(k: int, b: int) -> int:
    """Rows that `Lanczos` keeps."""
    return 2 * k + 20 + 2 * b


def _lanczos(side: LinearOperator, k: int, b: int) -> tuple[int, float]:
    """(products, seconds beside them) of a solve where the eigenvalues fall off as they do in networks.

    How many products a spectrum takes is known only afterwards; these are medians over `benchmarks/auto.py`.
    """
    n, m = side.size, _basis(k, b)
    products = 2 * k + 25 + 12 * (b - 1)
    steps = products / b
    numbers = 3.0 * steps * m * n + 2.0 * k * m * n / costs.pass_cost()
    step = (1 + b) * STEP_SECONDS + costs.eigh_seconds(m) / 2  # some every few steps, near the end after each
    return products, costs.seconds(costs.pass_cost() * numbers) + steps * step


def _bytes(side: LinearOperator, k: int, b: int) -> int:
    return (2 * _basis(k, b) + 5 * b + k) * side.size * jnp.dtype(side.dtype).itemsize


def _precision(tol: float) -> str:
    """The cheapest that leaves the tolerance in reach; a CPU gains nothing."""
    fitting = [p for p, rounding in ROUNDING.items() if tol >= 20 * rounding and 1 / _gain(p) >= FASTER]
    return min(fitting, key=_gain, default="highest")


def _gain(precision: str) -> float:
    if precision == "highest" or jax.default_backend() == "cpu":
        return 1.0
    return min(1.0, costs.matmul_rate() / costs.matmul_rate(precision))
