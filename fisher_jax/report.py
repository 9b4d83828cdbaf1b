"""The numbers people quote, from the top of a spectrum and the exact trace."""

import numpy as np

from fisher_jax import _checks, rows
from fisher_jax.fisher import FisherOperator
from fisher_jax.results import EigenResult, Summary


def summarize(F: FisherOperator, top: EigenResult) -> Summary:
    """Trace, mean eigenvalue, effective rank, exact zeros and the largest stable learning rate of a Fisher matrix.

    - trace: exact; mean eigenvalue `m = trace / P`.
    - effective rank: `trace / λ_max`, the r₀ of Bartlett et al. (PNAS 117(48), 2020), between 1 and the rank.
    - zeros: eigenvalues that are zero whatever the weights: P minus the largest rank that the shapes, the likelihood's null
      space and the parameters without any gradient allow. More may be zero; none of these is rounding noise.
    - outliers: one for each direction of the output space that the likelihood sees, C (C − 1 for softmax), detach from the
      bulk in wide networks (Papyan, JMLR 21(252), 2020; Karakida et al., NeurIPS 2019); their gap is λ_c / λ_{c+1}.
    - learning rate: gradient descent on the quadratic model is stable below `2 / λ_max`.

    Args:
        F: the operator. top: `fj.eigsh(F, k, key=key)` of it.

    Returns:
        Summary.
    """
    if not isinstance(F, FisherOperator):
        raise _checks.fail("summarize", f"F is a {type(F).__name__}", "give fj.fisher(...) or fj.gradient_covariance(...)")
    if not isinstance(top, EigenResult):
        raise _checks.fail(
            "summarize", f"top is a {type(top).__name__}", "give fj.eigsh(...); a Spectrum prints its own numbers"
        )
    if not top.values.size or not bool(top.converged[0]):
        raise _checks.fail("summarize", "top has no converged largest eigenvalue", f"raise tol or products of {top.method}")
    count = F.factor.outliers()
    known = len(top.values) > count and bool(top.converged[: count + 1].all()) and float(top.values[count]) > 0
    touched = np.asarray(rows.touched(F.factor))
    trace = float(F.trace())
    values = np.asarray(top.values, np.float64)[np.asarray(top.converged)]
    largest = float(values[0])
    rank_bound = min(F.factor.rank_bound(), int(np.count_nonzero(touched)))
    return Summary(
        lambda_max=largest,
        lambda_max_bound=float(top.bounds[0]),
        trace=trace,
        mean_eigenvalue=trace / F.size,
        effective_rank=trace / largest if largest > 0 else float("nan"),
        zeros=F.size - min(rank_bound, F.size),
        size=F.size,
        dual_size=F.factor.shape[0],
        top_share=float(values.sum() / trace) if trace > 0 else float("nan"),
        outliers=count,
        outlier_gap=float(top.values[count - 1] / top.values[count]) if known else float("nan"),
        max_learning_rate=2 / largest if largest > 0 else float("inf"),
        converged=int(top.converged.sum()),
        asked=int(top.values.size),
        matvecs=int(top.matvecs),
        floor=float(top.floor),
        tol=float(top.tol),
        complete_above=float(top.complete_above),
        method=top.method,
        info=top.info,
    )
