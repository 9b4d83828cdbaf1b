"""Multilayer perceptron of the mean-field literature."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from fisher_jax.models.blocks import Dropout, Linear, activation, output_layer, unit_norm
from fisher_jax.models.streaming import Piece, plain


class MLP(nnx.Module):
    """`u^l = W^l h^{l−1} + b^l`, `h^l = φ(u^l)`, output `u^L`; `W ~ N(0, weight_variance / fan_in)`.

    Args:
        depth: weight matrices L, the output layer included.
        width: of the hidden layers.
        activation: relu, tanh, erf, gelu, gelu-tanh or linear.
        weight_variance: σ_w², 2 for ReLU at criticality (He). bias_variance: σ_b²; biases exist only if it is given.
        readout_variance: variance of the last matrix; weight_variance unless given.
        weights: "gaussian" or "orthogonal". parametrization: "standard" or "ntk"; see `blocks.Linear`.
        norm: "batch": `h^l = φ(BN(u^l))`, without learned scale and shift; "none".
        dropout: rate on the hidden activations. dropout_form: "inverted" or "raw".
        output_norm: "mean": outputs minus their mean over the batch; "batch": normalized over it; "none".

    Reference: Poole et al., NeurIPS 2016; Karakida et al., AISTATS 2019 and NeurIPS 2019; He et al., ICCV 2015.
    """

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        rngs: nnx.Rngs,
        depth: int = 3,
        width: int = 256,
        activation: str = "relu",
        weight_variance: float = 2.0,
        bias_variance: float | None = None,
        readout_variance: float | None = None,
        weights: str = "gaussian",
        parametrization: str = "standard",
        norm: str = "none",
        dropout: float = 0.0,
        dropout_form: str = "inverted",
        output_norm: str = "none",
    ):
        self.activation = _activation("mlp", activation)
        readout_variance = weight_variance if readout_variance is None else readout_variance
        shapes = _shapes(inputs, outputs, depth, width, weight_variance, bias_variance, readout_variance)
        self.layers = nnx.List(
            [Linear(*shape, weights=weights, parametrization=parametrization, rngs=rngs) for shape in shapes]
        )
        self.norms = nnx.List([unit_norm("mlp", norm, width, rngs) for _ in range(depth - 1)])
        self.dropouts = nnx.List([Dropout(dropout, dropout_form, rngs=rngs) for _ in range(depth - 1)])
        self.output_norm = output_layer("mlp", output_norm, outputs, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        *hidden, last = self.layers
        for layer, norm, dropout in zip(hidden, self.norms, self.dropouts, strict=True):
            x = dropout(self.activation(norm(layer(x))))
        return self.output_norm(last(x))

    @staticmethod
    def pieces(
        *, activation: str, weights: str, parametrization: str, readout_variance: float | None, **options: Any
    ) -> Any:
        """The layers one by one, for a network that is streamed."""
        sizes, act = plain("mlp", MLP, options), _activation("mlp", activation)
        readout_variance = float(sizes["weight_variance"] if readout_variance is None else readout_variance)
        *hidden, last = [(*s, weights, parametrization) for s in _shapes(**sizes, readout_variance=readout_variance)]
        pieces = [Piece(f"layers/{i}", Linear, shape, Hidden(act)) for i, shape in enumerate(hidden)]
        return [*pieces, Piece(f"layers/{len(hidden)}", Linear, last)]


@dataclasses.dataclass(frozen=True)
class Hidden:
    """A layer and its activation."""

    activation: Any

    def __call__(self, layer: Linear, h: jax.Array) -> jax.Array:
        return self.activation(layer(h))


def _shapes(
    inputs: int,
    outputs: int,
    depth: int,
    width: int,
    weight_variance: float,
    bias_variance: float | None,
    readout_variance: float,
) -> list[Any]:
    sizes = [inputs, *[width] * (depth - 1), outputs]
    variances = [*[weight_variance] * (depth - 1), readout_variance]
    return [(a, b, v, bias_variance) for a, b, v in zip(sizes[:-1], sizes[1:], variances, strict=True)]


_activation = activation
