"""What the mean-field theory of wide networks at initialization says about their Fisher spectrum.

`predict` takes a model's name and options; the files beside it hold the formulas, as functions of numbers and kernels.
"""

from fisher_jax.theory import concatenation as concatenation
from fisher_jax.theory import conditional as conditional
from fisher_jax.theory import duals as duals
from fisher_jax.theory import edge_of_chaos as edge_of_chaos
from fisher_jax.theory import learning_rate as learning_rate
from fisher_jax.theory import masks as masks
from fisher_jax.theory import mlp as mlp
from fisher_jax.theory import normalization as normalization
from fisher_jax.theory import one_hidden_layer as one_hidden_layer
from fisher_jax.theory import recursion as recursion
from fisher_jax.theory import residual as residual
from fisher_jax.theory import separability as separability
from fisher_jax.theory import spectra as spectra
from fisher_jax.theory import stability as stability
from fisher_jax.theory.predict import MaskLaw as MaskLaw
from fisher_jax.theory.predict import over_masks as over_masks
from fisher_jax.theory.predict import predict as predict
