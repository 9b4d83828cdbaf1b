"""Multilayer perceptron, standard parametrization."""

import jax
from flax import nnx

from fisher_jax.models.blocks import Linear, activation


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
        sizes = [inputs, *[width] * (depth - 1), outputs]
        variances = [weight_variance] * (depth - 1)
        variances.append(weight_variance if readout_variance is None else readout_variance)
        self.layers = nnx.List(
            [Linear(a, b, v, bias_variance, rngs=rngs) for a, b, v in zip(sizes[:-1], sizes[1:], variances, strict=True)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)


_activation = activation
