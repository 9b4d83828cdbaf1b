"""Dropout and stochastic depth: the four numbers that are called the largest eigenvalue, side by side."""

import dataclasses
from typing import Any

import numpy as np

from fisher_jax import _checks
from fisher_jax.fisher import Exact, fisher
from fisher_jax.modes import Average


@dataclasses.dataclass(frozen=True)
class MaskSummary:
    """What random masks do to the Fisher matrix; errors are standard errors over the draws.

    - `trace`: of the average, `tr E[F(mask)] = E[tr F(mask)]`.
    - `largest_of_average`: `λ_max(E[F(mask)])`, from the average over these draws: on average above that of the expectation
      (λ_max is convex), by a share that falls as 1/draws.
    - `average_of_largest`: `E[λ_max(F(mask))]`, never smaller.
    - `largest_of_mean_network`: `λ_max` of the network in evaluation mode; `trace_of_mean_network` likewise.
    """

    draws: int
    trace: float
    trace_error: float
    largest_of_average: float
    average_of_largest: float
    average_of_largest_error: float
    largest_of_mean_network: float
    trace_of_mean_network: float

    def __repr__(self) -> str:
        rows = (
            ("trace of the average over masks", f"{self.trace:.6g} ± {self.trace_error:.1g}"),
            ("λ_max of the average over masks", f"{self.largest_of_average:.6g}"),
            ("average over masks of λ_max", f"{self.average_of_largest:.6g} ± {self.average_of_largest_error:.1g}"),
            ("λ_max of the mean network", f"{self.largest_of_mean_network:.6g}"),
            ("trace of the mean network", f"{self.trace_of_mean_network:.6g}"),
            ("masks drawn", str(self.draws)),
        )
        return "\n".join(f"{name:<33} {value}" for name, value in rows)


def over_masks(model: Any, x: Any, likelihood: Any, *, draws: int = 16, key: Any = None, **options: Any) -> MaskSummary:
    """The trace and the largest eigenvalues under dropout and stochastic depth, kept apart.

    All come from one dual matrix over samples and draws, whose diagonal blocks belong to the subnetworks of the draws.

    Args:
        model: an `nnx.Module` with dropout or stochastic depth. x, likelihood: as in `fj.fisher`.
        draws: subnetworks; the masks of each are the same for all samples. key: JAX random key.
        options: of `fj.fisher`: where, mesh, bn.

    Returns:
        MaskSummary.

    Raises:
        ArgumentError: the matrix of N · C · draws rows does not fit; no mask is random; options do not fit.

    Reference: Srivastava et al., JMLR 15, 2014; Huang et al., ECCV 2016.
    """
    if unknown := sorted(set(options) - {"where", "mesh", "bn"}):
        raise _checks.fail("over_masks", f"{unknown[0]}=... is not an option", "it takes where, mesh and bn")
    draws = _checks.integer("over_masks", "draws", draws, 2)
    masks = Average(draws, key, shared=True)
    K = np.asarray(fisher(model, x, likelihood, kind=Exact(), masks=masks, **options).gram(), np.float64)
    mean = fisher(model, x, likelihood, masks="mean", **options)
    # Rows of K: samples, draws, outputs; draws in front.
    R = K.shape[0] // (mean.factor.jacobian.data.samples * draws)
    by_draw = K.reshape(-1, draws, R, K.shape[0])
    largest, traces = np.empty(draws), np.empty(draws)
    for s in range(draws):
        block = by_draw[:, s].reshape(-1, mean.factor.jacobian.data.samples, draws, R)[:, :, s]
        block = draws * block.reshape(block.shape[0], -1)
        traces[s], largest[s] = np.trace(block), _largest(block)
    root = np.sqrt(draws)
    reference = np.asarray(mean.gram(), np.float64)
    return MaskSummary(
        draws=draws,
        trace=float(traces.mean()),
        trace_error=float(traces.std(ddof=1) / root),
        largest_of_average=_largest(K),
        average_of_largest=float(largest.mean()),
        average_of_largest_error=float(largest.std(ddof=1) / root),
        largest_of_mean_network=_largest(reference),
        trace_of_mean_network=float(np.trace(reference)),
    )


def _largest(matrix: np.ndarray) -> float:
    import scipy.linalg

    n = matrix.shape[0]
    return float(scipy.linalg.eigvalsh(matrix, subset_by_index=[n - 1, n - 1])[0])
