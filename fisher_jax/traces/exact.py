"""The exact trace, where structure or size makes it cheap."""

import dataclasses
from typing import Any

import jax
import numpy as np

from fisher_jax import _checks, linalg
from fisher_jax.estimates import Estimate
from fisher_jax.operators import LinearOperator, SignedOperator
from fisher_jax.results import provenance
from fisher_jax.solvers.base import smaller_side

# Rounding of a sum of many positive numbers, in units of eps: the least half width of an interval.
ROUNDING = 64


@dataclasses.dataclass(frozen=True)
class ExactTrace:
    """The sum of the eigenvalues from structure: `operator.trace()`, norms of per-sample gradients for a Fisher matrix.

    An operator known through products only takes as many of them as it has rows (or its dual, if that is smaller).
    """

    def estimate(
        self, operator: LinearOperator, *, key: Any = None, confidence: float = 1.0, progress: Any = None
    ) -> Estimate:
        if isinstance(operator, SignedOperator):
            of, sign = self.estimate(operator.operator), float(operator.sign)
            lower, upper = sorted((sign * of.lower, sign * of.upper))
            return dataclasses.replace(of, value=sign * of.value, lower=lower, upper=upper)
        cheap = is_cheap(operator)
        side = operator if cheap else smaller_side(operator)
        if type(side).trace is LinearOperator.trace:
            entries = np.diagonal(np.asarray(side.dense())).astype(np.float64)
            value, size = float(entries.sum()), float(np.abs(entries).sum())
        else:
            value = float(jax.block_until_ready(side.trace()))
            size = abs(value)
        if not np.isfinite(value):
            raise _checks.fail(
                "trace", f"{operator!r} returned NaN or infinity", "check the weights, the data and the scale"
            )
        rounding = ROUNDING * linalg.eps(operator.dtype) * size
        return Estimate(
            value,
            value - rounding,
            value + rounding,
            standard_error=0.0,
            products=0 if cheap else side.size,
            confidence=1.0,
            method=repr(self),
            info=provenance(dtype=operator.dtype, size=operator.size),
        )


def is_cheap(operator: LinearOperator) -> bool:
    """Does the class of the operator know its trace, or its entries?"""
    kind = type(operator)
    return kind.trace is not LinearOperator.trace or kind.dense is not LinearOperator.dense
