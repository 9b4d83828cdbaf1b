"""Perceptron with concatenating skips."""

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax.models.blocks import Dropout, Linear, activation, output_layer, unit_norm


class DenseMLP(nnx.Module):
    """`h ← [h; φ(W h)]`: each block adds `growth` units to all that came before, without biases.

    `W^l ~ N(0, variance / D_l)`, `D_l = inputs + l · growth`; output `W_out h^L`, `W_out ~ N(0, readout_variance / D_L)`.

    Args:
        depth: number of blocks L. growth: units that a block adds.
        activation: relu, tanh, erf, gelu, gelu-tanh or linear.
        variance: of the blocks' weights. readout_variance: of `W_out`.
        weights: "gaussian" or "orthogonal". parametrization: "standard" or "ntk"; see `blocks.Linear`.
        norm: "batch": `φ(BN(W h))`, without learned scale and shift; "none".
        dropout: rate on the new units. dropout_form: "inverted" or "raw".
        output_norm: "mean": outputs minus their mean over the batch; "batch": normalized over it; "none".

    Reference: Huang et al., CVPR 2017, fully connected.
    """

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        rngs: nnx.Rngs,
        depth: int = 4,
        growth: int = 16,
        activation: str = "relu",
        variance: float = 2.0,
        readout_variance: float = 1.0,
        weights: str = "gaussian",
        parametrization: str = "standard",
        norm: str = "none",
        dropout: float = 0.0,
        dropout_form: str = "inverted",
        output_norm: str = "none",
    ):
        self.activation = _activation("densemlp", activation)
        kind = (None, weights, parametrization)
        widths = [inputs + block * growth for block in range(depth)]
        self.layers = nnx.List([Linear(width, growth, variance, *kind, rngs=rngs) for width in widths])
        self.norms = nnx.List([unit_norm("densemlp", norm, growth, rngs) for _ in widths])
        self.dropouts = nnx.List([Dropout(dropout, dropout_form, rngs=rngs) for _ in widths])
        self.readout = Linear(inputs + depth * growth, outputs, readout_variance, *kind, rngs=rngs)
        self.output_norm = output_layer("densemlp", output_norm, outputs, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x
        for layer, norm, dropout in zip(self.layers, self.norms, self.dropouts, strict=True):
            new = dropout(self.activation(norm(layer(h))))
            h = jnp.concatenate([h, new], axis=-1)
        return self.output_norm(self.readout(h))


_activation = activation
