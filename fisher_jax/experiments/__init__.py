"""Measurements that need many networks, or trained ones: each beside what theory says."""

from fisher_jax.experiments.initialization import orthogonal_against_gaussian as orthogonal_against_gaussian
from fisher_jax.experiments.initialization import phase_diagram as phase_diagram
from fisher_jax.experiments.initialization import pretraining as pretraining
from fisher_jax.experiments.separability import class_errors as class_errors
from fisher_jax.experiments.separability import separability as separability
