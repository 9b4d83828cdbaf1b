"""What architectures are built from: a linear map with a stated weight variance, and activations by name."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax import _checks

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "erf": jax.scipy.special.erf,
    "linear": lambda u: u,
}


def activation(model: str, name: str) -> Callable[[jax.Array], jax.Array]:
    if name not in ACTIVATIONS:
        raise _checks.fail(model, f"activation={name!r} is unknown", f"choose among {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Linear(nnx.Module):
    """`W x (+ b)` with `W_ij ~ N(0, variance / fan_in)`, and `b_i ~ N(0, bias_variance)` if that is not None."""

    def __init__(self, inputs: int, outputs: int, variance: float, bias_variance: float | None = None, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(math.sqrt(variance / inputs) * jax.random.normal(rngs.params(), (inputs, outputs)))
        if bias_variance is None:
            self.bias = None
        else:
            self.bias = nnx.Param(math.sqrt(bias_variance) * jax.random.normal(rngs.params(), (outputs,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x @ self.kernel[...]
        return y if self.bias is None else y + jnp.broadcast_to(self.bias[...], y.shape)
