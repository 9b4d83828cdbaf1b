"""fisher_jax: the eigenvalue spectrum of the Fisher information matrix of neural networks, with error bounds."""

import importlib
from typing import TYPE_CHECKING, Any

from fisher_jax._checks import ArgumentError as ArgumentError
from fisher_jax._record import record as record
from fisher_jax._record import static as static
from fisher_jax.density import KPM as KPM
from fisher_jax.density import SLQ as SLQ
from fisher_jax.density import Density as Density
from fisher_jax.density import density as density
from fisher_jax.estimates import Estimate as Estimate
from fisher_jax.findings import ClassErrors as ClassErrors
from fisher_jax.findings import Generalization as Generalization
from fisher_jax.findings import LearningRates as LearningRates
from fisher_jax.findings import PhaseDiagram as PhaseDiagram
from fisher_jax.findings import Pretraining as Pretraining
from fisher_jax.findings import Separability as Separability
from fisher_jax.findings import WeightEnsembles as WeightEnsembles
from fisher_jax.fisher import Empirical as Empirical
from fisher_jax.fisher import Exact as Exact
from fisher_jax.fisher import MonteCarlo as MonteCarlo
from fisher_jax.fisher import fisher as fisher
from fisher_jax.fisher import ggn as ggn
from fisher_jax.fisher import gradient_covariance as gradient_covariance
from fisher_jax.fisher import hessian as hessian
from fisher_jax.functional import Function as Function
from fisher_jax.functional import Stage as Stage
from fisher_jax.functional import Streamed as Streamed
from fisher_jax.functional import from_linen as from_linen
from fisher_jax.kfac import kfac_spectrum as kfac_spectrum
from fisher_jax.kfac import kronecker_factors as kronecker_factors
from fisher_jax.likelihoods import Bernoulli as Bernoulli
from fisher_jax.likelihoods import Categorical as Categorical
from fisher_jax.likelihoods import Gaussian as Gaussian
from fisher_jax.likelihoods import Likelihood as Likelihood
from fisher_jax.likelihoods import Poisson as Poisson
from fisher_jax.masks import over_masks as over_masks
from fisher_jax.modes import Average as Average
from fisher_jax.modes import Fixed as Fixed
from fisher_jax.moments import Moments as Moments
from fisher_jax.moments import moments as moments
from fisher_jax.operators import FunctionOperator as FunctionOperator
from fisher_jax.operators import LinearOperator as LinearOperator
from fisher_jax.operators import MatrixOperator as MatrixOperator
from fisher_jax.operators import SparseOperator as SparseOperator
from fisher_jax.plan import plan as plan
from fisher_jax.report import summarize as summarize
from fisher_jax.results import EigenResult as EigenResult
from fisher_jax.results import Law as Law
from fisher_jax.results import Plan as Plan
from fisher_jax.results import Spectrum as Spectrum
from fisher_jax.results import Summary as Summary
from fisher_jax.results import Track as Track
from fisher_jax.results import Training as Training
from fisher_jax.results import load as load
from fisher_jax.results import save as save
from fisher_jax.solvers import Auto as Auto
from fisher_jax.solvers import Dense as Dense
from fisher_jax.solvers import Gram as Gram
from fisher_jax.solvers import Lanczos as Lanczos
from fisher_jax.solvers import Nystrom as Nystrom
from fisher_jax.solvers import Progress as Progress
from fisher_jax.solvers import Randomized as Randomized
from fisher_jax.solvers import Sketch as Sketch
from fisher_jax.solvers import eigsh as eigsh
from fisher_jax.solvers import scipy_eigsh as scipy_eigsh
from fisher_jax.spectrum import spectrum as spectrum
from fisher_jax.traces import ExactTrace as ExactTrace
from fisher_jax.traces import Hutchinson as Hutchinson
from fisher_jax.traces import HutchPP as HutchPP
from fisher_jax.traces import XNysTrace as XNysTrace
from fisher_jax.traces import XTrace as XTrace
from fisher_jax.traces import trace as trace
from fisher_jax.track import track as track

if TYPE_CHECKING:
    from fisher_jax import data as data
    from fisher_jax import experiments as experiments
    from fisher_jax import models as models
    from fisher_jax import plot as plot
    from fisher_jax import theory as theory
    from fisher_jax import train as train

# Flax and Matplotlib are slow to import, and theory is not always asked for: these modules load on first use.
_LAZY = ("data", "experiments", "models", "plot", "theory", "train")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"fisher_jax.{name}")
    raise AttributeError(f"module 'fisher_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
