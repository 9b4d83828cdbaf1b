"""The numbers people quote, from the top of a spectrum and the exact trace."""

import numpy as np

from fisher_jax import _checks
from fisher_jax.fisher import FisherOperator
from fisher_jax.results import EigenResult, Summary


def summarize(F: FisherOperator, top: EigenResult) -> Summary:
    """Trace, mean eigenvalue, effective rank, exact zeros and the largest stable learning rate of a Fisher matrix.

    - trace: exact, from per-sample gradients; mean eigenvalue `m = trace / P`.
    - effective rank: `trace / λ_max`, the r₀ of Bartlett et al. (PNAS 117(48), 2020), between 1 and the rank.
    - zeros: eigenvalues that are zero whatever the weights: P minus the largest rank that the shapes, the likelihood's null
      space and the parameters without any gradient allow. More may be zero; none of these is rounding noise.
    - learning rate: gradient descent on the quadratic model is stable below `2 / λ_max`.

    Args:
        F: the operator. top: `fj.eigsh(F, k, key=key)` of it.

    Returns:
        Summary.
    """
    if not bool(top.converged[0]):
        raise _checks.fail("summarize", "top has no converged largest eigenvalue", "raise steps or tol of fj.Lanczos")
    diagonal, norms = (np.asarray(a, np.float64) for a in F.factor.row_moments())
    trace = float(norms.sum())
    values = np.asarray(top.values, np.float64)[np.asarray(top.converged)]
    largest = float(values[0])
    rank_bound = min(F.factor.rank_bound(), int(np.count_nonzero(diagonal)), int(np.count_nonzero(norms)))
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
        outliers=outliers(values),
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


def outliers(values: np.ndarray) -> int:
    """How many values lie above the largest relative gap between neighbours, if that gap is at least a factor of two."""
    positive = values[values > 0]
    if positive.size < 2:
        return 0
    ratios = positive[:-1] / positive[1:]
    return int(np.argmax(ratios)) + 1 if ratios.max() >= 2 else 0
