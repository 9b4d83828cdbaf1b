"""The moments of a spectrum and the ratios that people quote, each exact or with its interval."""

import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from fisher_jax import _checks, linalg
from fisher_jax._record import record, static
from fisher_jax.estimates import Estimate
from fisher_jax.fisher import DualOperator, FisherOperator, StreamedFisher
from fisher_jax.operators import LinearOperator, MatrixOperator, ScaledOperator, as_operator
from fisher_jax.results import aligned, provenance, register
from fisher_jax.solvers.auto import Auto
from fisher_jax.solvers.base import Reporter, apply_rows, smaller_side
from fisher_jax.solvers.unseen import FAILURE
from fisher_jax.spectrum import dense_floor
from fisher_jax.traces.api import is_key
from fisher_jax.traces.exact import ROUNDING, ExactTrace, is_cheap
from fisher_jax.traces.xnystrace import XNysTrace
from fisher_jax.traces.xtrace import XTrace

Array = jax.Array

# Rows of the smaller of F and K up to which it is diagonalized, or formed from the layers, or formed by products.
DIAGONALIZED, FORMED, FORMED_BY_PRODUCTS = 2000, 10_000, 1000
# Multiplications to form F from its factor.
FORMED_OPERATIONS = 10**12
# Confidence of each estimate, so that a ratio of two still holds 95 times out of 100.
CONFIDENCE = 0.98
# Most products with F² for its Frobenius norm, and the half width of ‖F‖_F² to stop at.
SQUARES, SQUARES_TOL = 64, 1e-3
# Eigenvalues iterated on for the largest, and their residuals relative to it, which enter its bound as squares.
TOP, TOP_TOL = 10, 1e-3

# Field, how it is printed, whether it needs a spectrum without negative eigenvalues.
ROWS = (
    ("trace", "trace", False),
    ("mean_eigenvalue", "mean eigenvalue m = trace/P", False),
    ("second_moment", "second moment s = ‖F‖²/P", False),
    ("frobenius", "Frobenius norm ‖F‖", False),
    ("lambda_max", "largest eigenvalue", False),
    ("effective_rank", "effective rank, trace/λ_max", True),
    ("participation_ratio", "participation ratio, (Σλ)²/Σλ²", True),
    ("stable_rank", "stable rank, ‖F‖²/λ_max²", True),
)


@record
class Moments:
    """The first two moments of a spectrum, the largest eigenvalue, and three ways to count how many eigenvalues matter.

    - mean_eigenvalue `m = trace / P` and second_moment `s = ‖F‖_F² / P`, the mean of λ².
    - effective_rank `trace / λ_max`; participation_ratio `(Σλ)² / Σλ²`; stable_rank `‖F‖_F² / λ_max²`. All are the rank if
      all eigenvalues but the zeros are equal. NaN where eigenvalues may be negative: there they count nothing.
    """

    trace: Estimate
    mean_eigenvalue: Estimate
    second_moment: Estimate
    frobenius: Estimate
    lambda_max: Estimate
    effective_rank: Estimate
    participation_ratio: Estimate
    stable_rank: Estimate
    size: int = static()
    method: str = static()
    info: tuple[tuple[str, str], ...] = static(default=())

    def __repr__(self) -> str:
        lines = []
        for name, title, _ in ROWS:
            e: Estimate = getattr(self, name)
            if math.isnan(e.value):
                lines.append((title, "not defined: eigenvalues may be negative" if e.method == NEGATIVE else "not defined"))
            elif e.exact:
                lines.append((title, f"{e.value:.7g}  exact to ± {(e.upper - e.lower) / 2:.1e}"))
            else:
                lines.append((title, f"{e.value:.6g}  in [{e.lower:.6g}, {e.upper:.6g}], {100 * e.confidence:.4g} %"))
        return aligned([*lines, ("parameters P", str(self.size)), ("method", self.method)])

    def to_json(self) -> str:
        """All numbers with their intervals as JSON; NaN becomes null."""
        fields: dict[str, Any] = {name: json.loads(getattr(self, name).to_json()) for name, _, _ in ROWS}
        fields |= {"size": self.size, "method": self.method, "info": dict(self.info)}
        return json.dumps(fields, indent=2, ensure_ascii=False)


register(Moments)

NEGATIVE = "eigenvalues may be negative"


def moments(F: Any, *, key: jax.Array | None = None, progress: Reporter | None = None) -> Moments:
    """Trace, ‖F‖_F, λ_max and what follows from them, each exact or with an interval.

    - trace: exact from norms of per-sample gradients; of an operator without structure `fj.XNysTrace` (`fj.XTrace`).
    - ‖F‖_F: exact from the entries of the smaller of F and its dual, where that has at most 10 000 rows and is formed at
      little cost; else as the root
      of tr F² = ‖F‖_F² by `fj.XNysTrace`, for which the largest eigenvalues cost nothing: the sketch takes them out.
    - λ_max: from LAPACK up to 2000 rows, else from `fj.eigsh` with its certified bound.

    Args:
        F: a Fisher operator, any `LinearOperator`, or a symmetric array.
        key: JAX random key; not needed up to 2000 rows, where all is exact. progress: as in `fj.trace` and `fj.eigsh`.

    Returns:
        Moments. Intervals of ratios are the ratios of the ends of the intervals, so that their failure probabilities add up:
        95 % hold for all of them.

    Raises:
        ArgumentError: no key where one is needed; an operator that returns NaN or is seen not to be symmetric.

    Reference: Karakida, Akaho and Amari, J. Stat. Mech. 124005, 2020 (m, s and λ_max of wide networks).
    """
    operator = as_operator("moments", F)
    side, rows, forms = smaller_side(operator), _rows(operator), _is_formed(operator)
    if not is_key(key) and not (forms and rows <= DIAGONALIZED):
        raise _checks.fail(
            "moments",
            f"key={key!r}, but {rows} rows are too many to diagonalize",
            "give key=jax.random.key(seed) for what is estimated",
        )
    matrix = _matrix(operator) if forms else None
    keys: Any = [None] * 3 if key is None else jax.random.split(key, 3)
    psd, how = operator.psd, "entries of a matrix" if matrix is not None else "products"
    if matrix is not None and not np.isfinite(matrix).all():
        raise _checks.fail("moments", f"{operator!r} returned NaN or infinity", "check the weights, the data and the scale")
    if matrix is not None and len(matrix) <= DIAGONALIZED:
        with linalg.lapack(len(matrix)):
            values = scipy.linalg.eigvalsh(matrix, check_finite=False, driver="evd")
        floor = dense_floor(values, matrix.dtype)
        psd = psd or bool(values[0] >= -floor)
        largest = _exact(float(values[-1]), floor, f"LAPACK on {len(matrix)} x {len(matrix)}")
    else:
        largest = _largest(operator if matrix is None else MatrixOperator(matrix), keys[0], progress)
    if is_cheap(operator):
        trace = ExactTrace().estimate(operator)
    elif matrix is not None:
        diagonal = np.diagonal(matrix).astype(np.float64)
        trace = _exact(float(diagonal.sum()), ROUNDING * linalg.eps(matrix.dtype) * float(np.abs(diagonal).sum()), how)
    else:
        method = XNysTrace() if operator.psd else XTrace()
        trace = method.estimate(operator, key=keys[1], confidence=CONFIDENCE, progress=progress)
    if matrix is not None:
        norm = float(np.sqrt(sum(np.dot(row, row) for row in (r.astype(np.float64) for r in matrix))))
        frobenius = _exact(norm, ROUNDING * linalg.eps(matrix.dtype) * norm, how)
    else:
        frobenius = _frobenius(side, keys[2], progress)
    square = _times(frobenius, frobenius)
    size = _exact(float(operator.size), 0.0, "")
    undefined = Estimate(math.nan, math.nan, math.nan, math.nan, 0, method=NEGATIVE)
    return Moments(
        trace=trace,
        mean_eigenvalue=_over(trace, size),
        second_moment=_over(square, size),
        frobenius=frobenius,
        lambda_max=largest,
        effective_rank=_over(trace, largest) if psd else undefined,
        participation_ratio=_over(_times(trace, trace), square) if psd else undefined,
        stable_rank=_over(square, _times(largest, largest)) if psd else undefined,
        size=operator.size,
        method=f"trace: {trace.method}; ‖F‖: {frobenius.method}; λ_max: {largest.method}",
        info=provenance(key, operator.dtype, size=operator.size),
    )


def _rows(operator: LinearOperator) -> int:
    """Of the matrix that would be formed; a streamed network has no products, so no dual operator, but K."""
    return operator.factor.shape[0] if isinstance(operator, StreamedFisher) else smaller_side(operator).size


def _is_formed(operator: LinearOperator) -> bool:
    """Does the smaller of the matrix and its dual exist, or cost little?"""
    rows = _rows(operator)
    if isinstance(operator, MatrixOperator):
        return True
    if rows**2 * jnp.dtype(operator.dtype).itemsize > linalg.free_memory() / 4:
        return False
    if isinstance(operator, (FisherOperator, DualOperator)):
        # K comes from the layers, F from all rows of A.
        samples = operator.factor.shape[0]
        return rows <= FORMED and (rows == samples or rows**2 * samples <= FORMED_OPERATIONS)
    return rows <= FORMED_BY_PRODUCTS


def _matrix(operator: LinearOperator) -> np.ndarray:
    if isinstance(operator, StreamedFisher):
        return np.asarray(operator.gram())
    return np.asarray(smaller_side(operator).dense())


def _largest(operator: LinearOperator, key: Array, progress: Any) -> Estimate:
    """λ_max: an eigenvalue within its bound, and none above, or above what a search has excluded.

    The search is as long as the iteration, so that it pays to ask for a few more.
    """
    top = Auto(TOP_TOL).solve(operator, min(TOP, operator.size), key=key, progress=progress)
    value, bound, missed = float(top.values[0]), float(top.bounds[0]), float(top.complete_above)
    upper = math.inf if math.isnan(missed) else max(value + bound, missed)
    return Estimate(value, value - bound, upper, bound, int(top.matvecs), 1 - FAILURE, top.method, top.info)


@record
class _Square(LinearOperator):
    """M²: no eigenvalue is negative, and the trace is ‖M‖_F²."""

    operator: LinearOperator

    psd = True

    @property
    def size(self) -> int:
        return self.operator.size

    @property
    def dtype(self) -> Any:
        return self.operator.dtype

    def matmat(self, V: Array) -> Array:
        return self.operator.matmat(self.operator.matmat(V))


def _frobenius(side: LinearOperator, key: Array, progress: Any) -> Estimate:
    """‖M‖_F, with M scaled to a norm near one: squares of small numbers vanish."""
    key_scale, key = jax.random.split(key)
    scale = linalg.power_of_two(apply_rows(side, jax.random.normal(key_scale, (1, side.size), side.dtype), 1))
    method = XNysTrace(SQUARES, SQUARES_TOL)
    made = method.estimate(_Square(ScaledOperator(side, scale)), key=key, confidence=CONFIDENCE, progress=progress)
    value, lower, upper = (math.sqrt(max(a, 0.0)) / float(scale) for a in (made.value, made.lower, made.upper))
    error = made.standard_error / (2 * math.sqrt(made.value)) / float(scale) if made.value > 0 else 0.0
    return Estimate(value, lower, upper, error, 1 + 2 * made.products, made.confidence, f"{method!r} on F²", made.info)


# --- arithmetic with intervals ----------------------------------------------------------------------------------------


def _exact(value: float, rounding: float, method: str) -> Estimate:
    return Estimate(value, value - rounding, value + rounding, 0.0, 0, 1.0, method)


def _times(a: Estimate, b: Estimate) -> Estimate:
    ends = [x * y for x in (a.lower, a.upper) for y in (b.lower, b.upper)]
    if a is b:  # a square is not the product of the two different ends
        ends = [a.lower * a.lower, a.upper * a.upper, *([0.0] if a.lower < 0 < a.upper else [])]
        return _joined(a, b, a.value * b.value, min(ends), max(ends), 2 * abs(a.value) * a.standard_error)
    error = math.hypot(a.value * b.standard_error, b.value * a.standard_error)
    return _joined(a, b, a.value * b.value, min(ends), max(ends), error)


def _over(a: Estimate, b: Estimate) -> Estimate:
    if not b.value > 0:
        return _joined(a, b, math.nan, math.nan, math.nan, 0.0)
    ends = [x / y if y > 0 else math.inf for x in (a.lower, a.upper) for y in (b.lower, b.upper)]
    error = math.hypot(a.standard_error / b.value, a.value * b.standard_error / b.value / b.value)
    return _joined(a, b, a.value / b.value, min(ends), max(ends), error)


def _joined(a: Estimate, b: Estimate, value: float, lower: float, upper: float, error: float) -> Estimate:
    parts = (a,) if a is b else (a, b)
    doubt = sum(1 - e.confidence for e in parts)
    return Estimate(value, lower, upper, error, sum(e.products for e in parts), 1 - doubt, "interval arithmetic")
