"""Measurements that need many networks, or trained ones: each beside what theory says."""

from fisher_jax.experiments.atlas import ARCHITECTURES as ARCHITECTURES
from fisher_jax.experiments.atlas import Atlas as Atlas
from fisher_jax.experiments.atlas import atlas as atlas
from fisher_jax.experiments.atlas import grid as grid
from fisher_jax.experiments.atlas import load_atlas as load_atlas
from fisher_jax.experiments.compare import Comparison as Comparison
from fisher_jax.experiments.compare import Row as Row
from fisher_jax.experiments.compare import compare as compare
from fisher_jax.experiments.ensemble import ensemble as ensemble
from fisher_jax.experiments.gallery import write_atlas as write_atlas
from fisher_jax.experiments.generalization import generalization as generalization
from fisher_jax.experiments.generalization import linear_generalization as linear_generalization
from fisher_jax.experiments.growth import Growth as Growth
from fisher_jax.experiments.growth import growth as growth
from fisher_jax.experiments.initialization import orthogonal_against_gaussian as orthogonal_against_gaussian
from fisher_jax.experiments.initialization import phase_diagram as phase_diagram
from fisher_jax.experiments.initialization import pretraining as pretraining
from fisher_jax.experiments.learning_rate import learning_rate as learning_rate
from fisher_jax.experiments.report import figures as figures
from fisher_jax.experiments.report import write as write
from fisher_jax.experiments.separability import class_errors as class_errors
from fisher_jax.experiments.separability import separability as separability
from fisher_jax.experiments.variants import VARIANTS as VARIANTS
from fisher_jax.experiments.variants import Variant as Variant
