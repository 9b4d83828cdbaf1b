"""Eigensolvers: one file per algorithm."""

from fisher_jax.solvers.api import eigsh as eigsh
from fisher_jax.solvers.auto import Auto as Auto
from fisher_jax.solvers.base import Progress as Progress
from fisher_jax.solvers.dense import Dense as Dense
from fisher_jax.solvers.gram import Gram as Gram
from fisher_jax.solvers.lanczos import Lanczos as Lanczos
from fisher_jax.solvers.nystrom import Nystrom as Nystrom
from fisher_jax.solvers.randomized import Randomized as Randomized
from fisher_jax.solvers.scipy_api import scipy_eigsh as scipy_eigsh
from fisher_jax.solvers.sketch import Sketch as Sketch
