"""Pictures of spectra. Figures are made without a display and without touching pyplot's state."""

from fisher_jax.plot.density import density as density
from fisher_jax.plot.findings import class_errors as class_errors
from fisher_jax.plot.findings import generalization as generalization
from fisher_jax.plot.findings import learning_rate as learning_rate
from fisher_jax.plot.findings import phase_diagram as phase_diagram
from fisher_jax.plot.findings import pretraining as pretraining
from fisher_jax.plot.findings import separability as separability
from fisher_jax.plot.spectra import full as full
from fisher_jax.plot.spectra import laws as laws
from fisher_jax.plot.spectra import spectrum as spectrum
from fisher_jax.plot.spectra import track as track
