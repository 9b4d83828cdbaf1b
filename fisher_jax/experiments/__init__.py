"""Measurements that need many networks, or trained ones: each beside what theory says."""

from fisher_jax.experiments.generalization import generalization as generalization
from fisher_jax.experiments.generalization import linear_generalization as linear_generalization
from fisher_jax.experiments.learning_rate import learning_rate as learning_rate
