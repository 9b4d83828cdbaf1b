"""Variational recurrent network of targets given a sequence of inputs."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax import _checks
from fisher_jax.models.blocks import one_of
from fisher_jax.models.mlp import MLP
from fisher_jax.models.rnn import GRU

PRESETS: dict[str, dict[str, Any]] = {"vrnn-small": {"depth": 2, "width": 64, "latent": 8}}


class VRNN(nnx.Module):
    """Means of targets `y_t` from a latent `z_t`, the input `x_t` and a recurrent state `h_t` of all that came before.

        z_t = μ_t + σ_t ε_t,    y_t ~ p(y | f_t),  f_t = decoder(x_t, z_t, h_t),    h_{t+1} = GRU(h_t; x_t, y_t, z_t)

    (μ_t, log σ_t) come from `encoder(x_t, y_t, h_t)` for latents "posterior", from `prior(x_t, h_t)` for "prior". The noise
    ε is standard normal and given with the data, so that the network is a function of each sample: `{"inputs": (N, T, F),
    "targets": (N, T, C), "noise": (N, T, latent)}` -> means f `(N, T, C)`. Draw several noises per sequence by repeating it.

    `fj.fisher(model, x, fj.Gaussian(noise))` is `(1/N) Σ_n Σ_t J_ntᵀ J_nt / noise²`, with J the total derivative of f_nt in
    all parameters: through the latents (reparametrized) and the states, at the targets given (teacher forcing). Averaged
    over ε it estimates

    - latents "prior": the mean over data and ε of the Fisher matrix of each `p(y_t | y_<t, x_≤t, ε_≤t)`, a proper likelihood
      of the sequence given its noise; y_t is averaged over by the model, what came before it is that of the data. It is not
      the Fisher matrix with ε integrated out (smaller, for sequences of the model). The encoder's gradients are zero.
    - latents "posterior": the Gauss–Newton matrix of the reconstruction term of the evidence bound. Since z_t has seen y_t,
      this is no Fisher matrix of a density of y; the divergence of the latents from the prior is not in it, and the prior's
      gradients are zero. For data y this is what training with `divergence` added sees.

    Args:
        inputs: features F. outputs: C.
        depth: weight matrices of encoder, prior and decoder each. width: of the state and the hidden layers.
        latent: features of z. latents: "posterior" or "prior". activation: of the hidden layers.
        weight_variance: of all maps, over fan-in.

    Reference: Chung et al., NeurIPS 2015, Eq. 5 to 11, with x_t as a condition; Kingma and Welling, ICLR 2014.
    """

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        rngs: nnx.Rngs,
        depth: int = 2,
        width: int = 64,
        latent: int = 8,
        latents: str = "posterior",
        activation: str = "tanh",
        weight_variance: float = 1.0,
    ):
        self.posterior = one_of("vrnn", "latents", latents, ("posterior", "prior")) == "posterior"
        self.latent, self.outputs = latent, outputs

        def perceptron(size: int, out: int) -> MLP:
            options: Any = {"depth": depth, "width": width, "activation": activation, "weight_variance": weight_variance}
            return MLP(inputs=size, outputs=out, bias_variance=0.0, rngs=rngs, **options)

        self.prior = perceptron(inputs + width, 2 * latent)
        self.encoder = perceptron(inputs + outputs + width, 2 * latent)
        self.readout = perceptron(inputs + latent + width, outputs)
        self.cell = GRU(inputs + outputs + latent, width, weight_variance, rngs=rngs)

    def __call__(self, x: dict[str, jax.Array]) -> jax.Array:
        def step(h: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            inputs, targets, noise = now
            parameters = self.encoder(_join(inputs, targets, h)) if self.posterior else self.prior(_join(inputs, h))
            return self.step(h, inputs, targets, noise, parameters)

        return self.over_time(step, x)

    def step(
        self, h: jax.Array, inputs: jax.Array, targets: jax.Array, noise: jax.Array, parameters: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(next state, means) of one step."""
        mean, log_deviation = jnp.split(parameters, 2, axis=1)
        z = mean + jnp.exp(log_deviation) * noise
        return self.cell(h, _join(inputs, targets, z))[0], self.readout(_join(inputs, z, h))

    def divergence(self, x: dict[str, jax.Array]) -> jax.Array:
        """`Σ_t KL(encoder ‖ prior)` of each sample `(N,)`: with the negative log-likelihood, the bound to train on."""

        def step(h: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            inputs, targets, noise = now
            q, p = self.encoder(_join(inputs, targets, h)), self.prior(_join(inputs, h))
            (m, s), (mean, deviation) = jnp.split(q, 2, axis=1), jnp.split(p, 2, axis=1)
            kl = deviation - s + (jnp.exp(2 * s) + (m - mean) ** 2) / (2 * jnp.exp(2 * deviation)) - 0.5
            return self.step(h, inputs, targets, noise, q)[0], kl

        return jnp.sum(self.over_time(step, x), axis=(1, 2))

    def over_time(self, step: Any, x: dict[str, jax.Array]) -> jax.Array:
        for name, size in (("targets", self.outputs), ("noise", self.latent)):
            if x[name].shape[-1] != size:
                raise _checks.fail("vrnn", f"{name} has shape {x[name].shape}", f"give (N, T, {size})")
        series = tuple(jnp.moveaxis(x[name], 1, 0) for name in ("inputs", "targets", "noise"))
        start = self.cell.start(x["inputs"].shape[0], x["inputs"].dtype)
        return jnp.moveaxis(jax.lax.scan(step, start, series)[1], 0, 1)


def _join(*parts: jax.Array) -> jax.Array:
    return jnp.concatenate(parts, axis=1)
