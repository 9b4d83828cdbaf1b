"""`trace`: the one entry to all trace estimators."""

import warnings
from typing import Any

import jax

from fisher_jax import _checks
from fisher_jax.estimates import CONFIDENCE, Estimate
from fisher_jax.operators import as_operator
from fisher_jax.solvers.base import Reporter
from fisher_jax.traces.exact import ExactTrace, is_cheap
from fisher_jax.traces.hutchinson import Hutchinson
from fisher_jax.traces.hutchpp import HutchPP
from fisher_jax.traces.xnystrace import XNysTrace
from fisher_jax.traces.xtrace import XTrace

METHODS: tuple[Any, ...] = (ExactTrace, XNysTrace, XTrace, HutchPP, Hutchinson)


def trace(operator: Any, *, method: Any = None, key: jax.Array | None = None, progress: Reporter | None = None) -> Estimate:
    """The sum of the eigenvalues of a symmetric operator, exact or with an interval in which it lies 95 times out of 100.

    Products are made in the smaller of primal and dual space. Where a method would take as many products as that has rows,
    the trace is computed exactly.

    Args:
        operator: any `LinearOperator`: a Fisher operator, `fj.FunctionOperator(f, n)`; or a symmetric array.
        method: `fj.ExactTrace()`, `fj.XNysTrace(...)`, `fj.XTrace(...)`, `fj.HutchPP(...)`, `fj.Hutchinson(...)`. Unless
            given: exact where structure makes that cheap (Fisher and Gauss–Newton matrices, arrays), else `XNysTrace()`
            where no eigenvalue is negative, else `XTrace()`.
        key: JAX random key, for all but exact traces.
        progress: called with `fj.Progress` every few products; `worst` is half the interval over the value, once known.

    Returns:
        Estimate. A method with a `tol` that it does not reach gives what it has, with a warning.

    Raises:
        ArgumentError: no key where one is needed, an operator that returns NaN or is seen not to be symmetric.
    """
    operator = as_operator("trace", operator)
    if method is None:
        method = ExactTrace() if is_cheap(operator) else XNysTrace() if operator.psd else XTrace()
    if not isinstance(method, METHODS):
        known = ", ".join(f"fj.{m.__name__}(...)" for m in METHODS)
        raise _checks.fail("trace", f"method={method!r} is not a method", f"give one of {known}")
    if not isinstance(method, ExactTrace) and not is_key(key):
        raise _checks.fail("trace", f"key={key!r} is not a JAX random key", "give key=jax.random.key(seed)")
    result = method.estimate(operator, key=key, confidence=CONFIDENCE, progress=progress)
    tol = getattr(method, "tol", None)
    if tol is not None and not result.upper - result.lower <= 2 * tol * abs(result.value):
        half = (result.upper - result.lower) / 2 / abs(result.value) if result.value else float("inf")
        warnings.warn(
            f"trace: after {result.products} products the interval is ± {100 * half:.2g} %, wider than tol={tol:g}; "
            f"give {type(method).__name__} more",
            stacklevel=2,
        )
    return result


def is_key(key: Any) -> bool:
    """One JAX random key?"""
    return isinstance(key, jax.Array) and not (jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape)
