"""`eigsh`: the one entry to all eigensolvers."""

import warnings
from typing import Any

import jax
import numpy as np

from fisher_jax import _checks
from fisher_jax.operators import FunctionOperator, LinearOperator, apply, as_operator
from fisher_jax.results import EigenResult
from fisher_jax.solvers.auto import Auto
from fisher_jax.solvers.base import Reporter
from fisher_jax.solvers.start import check_start

# What to do about pairs that did not converge, by method.
REMEDIES = {
    "Randomized": "raise passes or tol of fj.Randomized",
    "Dense": "use fj.Lanczos(), or float64",
    "Nystrom": "raise rank, doublings or tol of fj.Nystrom, or use fj.Lanczos()",
}


def eigsh(
    operator: Any,
    k: int,
    *,
    method: Any = Auto(),
    above: float | None = None,
    v0: Any = None,
    key: jax.Array,
    progress: Reporter | None = None,
) -> EigenResult:
    """The k largest eigenvalues of a symmetric operator, with eigenvectors, true residuals and error bounds.

    Args:
        operator: any `LinearOperator`: a Fisher operator, `fj.FunctionOperator(f, n)`; or a symmetric array (NumPy, JAX),
            sparse matrix (SciPy, JAX `BCOO`) or SciPy `LinearOperator`. The largest of `-M` are the smallest of M.
        k: how many, 1 <= k <= size; with `above`, the most that may be returned.
        method: `fj.Auto()`, `fj.Lanczos(...)`, `fj.Gram()`, `fj.Dense()`, `fj.Randomized(...)`, `fj.Nystrom(...)`.
        above: return every eigenvalue above this number, and search until none can have been missed.
        v0: where to start, `(size,)` or `(size, j)`: eigenvectors of part of the data, or of an earlier training step;
            random unless given.
        key: JAX random key, for the start and for the search for missed eigenvalues.
        progress: called with `fj.Progress` every few products; not inside jit.

    Returns:
        EigenResult: values descending, `(k,)` (fewer with `above`). A pair is converged when ‖M v − λ v‖ <= tol·λ_max;
        others are NaN, and a warning says so.

    Raises:
        ArgumentError: k out of range, shapes that do not fit, an operator that returns NaN.
    """
    operator = as_operator("eigsh", operator)
    k = _checks.integer("eigsh", "k", k, 1)
    if k > operator.size:
        raise _checks.fail("eigsh", f"k={k} exceeds size {operator.size}", f"give k <= {operator.size}")
    if not isinstance(key, jax.Array) or (jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape):
        raise _checks.fail("eigsh", f"key={key!r} is not a JAX random key", "give key=jax.random.key(seed)")
    check_function("eigsh", operator)
    if isinstance(method, type) or not hasattr(method, "solve"):
        known = "give fj.Auto(), fj.Lanczos(...), fj.Gram(), fj.Dense(), fj.Randomized(...) or fj.Nystrom(...)"
        raise _checks.fail("eigsh", f"method={method!r} is not a method", known)
    if v0 is not None:
        check_start(operator, v0)
    if above is not None and not _checks.traced(above):
        above = _checks.finite_number("eigsh", "above", above)
    result = method.solve(operator, k, key=key, v0=v0, above=above, progress=progress)
    if not _checks.traced(result):
        _warn(result, above)
    return result


def check_function(where: str, operator: LinearOperator) -> None:
    """A product given as a function must map columns to columns; said here rather than deep inside a loop."""
    if not isinstance(operator, FunctionOperator):
        return
    columns = jax.ShapeDtypeStruct((operator.size, 1), operator.dtype)
    try:
        image = jax.eval_shape(apply, operator, columns)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise _checks.fail(
            where, f"function rejects columns of shape {columns.shape} ({reason})", "map (n, k) to (n, k)"
        ) from error
    if image.shape != columns.shape:
        raise _checks.fail(where, f"function maps {columns.shape} to {image.shape}", "map (n, k) to (n, k)")


def _warn(result: EigenResult, above: float | None) -> None:
    missing = int((~result.converged).sum())
    if missing:
        facts = dict(result.info)
        remedy = REMEDIES.get(result.method.split("(")[0], "raise steps or restarts, or tol, of fj.Lanczos")
        why = f"did not converge and are NaN; {remedy}"
        if "unresolved" in facts.get("note", ""):
            why = f"lie below the error of products in {facts['matmul_precision']} and are NaN; raise precision, or lower k"
        warnings.warn(f"eigsh: {missing} of {result.values.size} eigenvalues {why}", stacklevel=3)
    if above is not None and not float(result.complete_above) <= above:
        established = float(result.complete_above)
        known = "nothing is established" if np.isnan(established) else f"established: none above {established:g}"
        warnings.warn(
            f"eigsh: cannot exclude further eigenvalues above {above:g} ({known}); raise k, or lower tol", stacklevel=3
        )
