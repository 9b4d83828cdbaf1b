"""Multilayer perceptron, standard parametrization."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from fisher_jax.models.blocks import Linear, activation
from fisher_jax.models.streaming import Piece, Shape


class MLP(nnx.Module):
    """`u^l = W^l h^{l−1} + b^l`, `h^l = φ(u^l)`, output `u^L`; `W ~ N(0, weight_variance / fan_in)`.

    Args:
        depth: weight matrices L, the output layer included.
        width: of the hidden layers.
        activation: relu, tanh, erf or linear.
        weight_variance: σ_w², 2 for ReLU at criticality (He). bias_variance: σ_b²; biases exist only if it is given.
        readout_variance: variance of the last matrix; weight_variance unless given.

    Reference: Poole et al., NeurIPS 2016; He et al., ICCV 2015.
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
    ):
        self.activation = _activation("mlp", activation)
        readout_variance = weight_variance if readout_variance is None else readout_variance
        shapes = _shapes(inputs, outputs, depth, width, weight_variance, bias_variance, readout_variance)
        self.layers = nnx.List([Linear(*shape, rngs=rngs) for shape in shapes])

    def __call__(self, x: jax.Array) -> jax.Array:
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)

    @staticmethod
    def pieces(**options: Any) -> list[Piece]:
        """The layers one by one, for a network that is streamed."""
        act = _activation("mlp", options.pop("activation"))
        if options["readout_variance"] is None:
            options["readout_variance"] = options["weight_variance"]
        *hidden, last = _shapes(**options)
        pieces = [Piece(f"layers/{i}", shape, Hidden(act)) for i, shape in enumerate(hidden)]
        return [*pieces, Piece(f"layers/{len(hidden)}", last, readout)]


@dataclasses.dataclass(frozen=True)
class Hidden:
    """A layer and its activation."""

    activation: Any

    def __call__(self, layer: Linear, h: jax.Array) -> jax.Array:
        return self.activation(layer(h))


def readout(layer: Linear, h: jax.Array) -> jax.Array:
    return layer(h)


def _shapes(
    inputs: int,
    outputs: int,
    depth: int,
    width: int,
    weight_variance: float,
    bias_variance: float | None,
    readout_variance: float,
) -> list[Shape]:
    sizes = [inputs, *[width] * (depth - 1), outputs]
    variances = [*[weight_variance] * (depth - 1), readout_variance]
    return [(a, b, v, bias_variance) for a, b, v in zip(sizes[:-1], sizes[1:], variances, strict=True)]


_activation = activation
