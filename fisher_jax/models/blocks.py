"""What architectures are built from: linear maps of stated variance, activations, norms, dropout, stochastic depth."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax import _checks

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "erf": jax.scipy.special.erf,
    "gelu": lambda u: jax.nn.gelu(u, approximate=False),
    "gelu-tanh": lambda u: jax.nn.gelu(u, approximate=True),
    "linear": lambda u: u,
}
WEIGHTS = ("gaussian", "orthogonal")
PARAMETRIZATIONS = ("standard", "ntk")
SCHEDULES = ("uniform", "linear")
# Of running statistics: they forget in some ten steps, so that those of a short training are its last ones.
MOMENTUM = 0.9
# Vectors that are made orthogonal to all before in one product.
PANEL = 64


def one_of(model: str, name: str, value: Any, choices: Sequence[Any]) -> Any:
    """`value`, or an error that lists the choices."""
    if value not in choices:
        raise _checks.fail(model, f"{name}={value!r} is unknown", f"choose among {', '.join(map(str, choices))}")
    return value


def activation(model: str, name: str) -> Callable[[jax.Array], jax.Array]:
    return ACTIVATIONS[one_of(model, "activation", name, list(ACTIVATIONS))]


def probability(model: str, name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise _checks.fail(model, f"{name}={value!r} is no probability", "give a number between 0 and 1")
    return value


class Constant(nnx.Variable):
    """A number that differs between blocks and is not learned: as an array, so that blocks of one shape share a program."""


def constant(value: float) -> Constant:
    return Constant(jnp.asarray(value, jnp.float32))


class Linear(nnx.Module):
    """`W x (+ b)` with `W_ij ~ N(0, variance / fan_in)`, and `b_i ~ N(0, bias_variance)` if that is not None.

    Args:
        weights: "gaussian", or "orthogonal": a random (semi-)orthogonal matrix times a number that gives its entries the
            same variance.
        parametrization: "standard", or "ntk": the parameters are standard normal (or orthogonal of unit variance) and the
            variance is a factor in the forward pass, so that it enters the gradients.

    Reference: Saxe et al., ICLR 2014 (orthogonal); Jacot et al., NeurIPS 2018 (ntk).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        variance: float,
        bias_variance: float | None = None,
        weights: str = "gaussian",
        parametrization: str = "standard",
        *,
        rngs: nnx.Rngs,
    ):
        one_of("models", "weights", weights, WEIGHTS)
        ntk = one_of("models", "parametrization", parametrization, PARAMETRIZATIONS) == "ntk"
        deviation, bias_deviation = math.sqrt(variance / inputs), math.sqrt(bias_variance or 0.0)
        self.factor, self.bias_factor = (deviation, bias_deviation) if ntk else (1.0, 1.0)
        W = (orthogonal if weights == "orthogonal" else jax.random.normal)(rngs.params(), (inputs, outputs))
        self.kernel = nnx.Param(W if ntk else deviation * W)
        if bias_variance is None:
            self.bias = None
        else:
            b = jax.random.normal(rngs.params(), (outputs,))
            self.bias = nnx.Param(b if ntk else bias_deviation * b)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x @ _times(self.factor, self.kernel[...])
        if self.bias is None:
            return y
        return y + _times(self.bias_factor, self.bias[...]).reshape((1,) * (y.ndim - 1) + (-1,))


def _times(factor: float, a: jax.Array) -> jax.Array:
    return a if factor == 1.0 else factor * a


@partial(jax.jit, static_argnums=1)
def orthogonal(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Uniformly random, with orthonormal rows or columns, whichever are fewer, times √max(shape): unit variance.

    Gram–Schmidt on Gaussian vectors, panel by panel and each twice, in products alone: LAPACK's QR, called by several
    threads of XLA at a time, was seen to wait for itself forever (OpenBLAS 0.3.30 on two cores).
    """
    few, many = min(shape), max(shape)
    panels = -(-few // PANEL)
    # Rows that only fill the last panel have no direction left where the matrix is square: they are zero.
    real = (jnp.arange(panels * PANEL) < few).reshape(panels, PANEL)
    vectors = jax.random.normal(key, (panels, PANEL, many), jnp.float32)

    def without(W: jax.Array, Q: jax.Array) -> jax.Array:
        return W - jnp.matmul(jnp.matmul(W, Q.T, precision="highest"), Q, precision="highest")

    def panel(i: jax.Array, Q: jax.Array) -> jax.Array:
        def row(j: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            W, done = state
            w = without(W[j][None], done)[0]
            return W, done.at[j].set(jnp.where(real[i, j], w / jnp.linalg.norm(w), 0))

        W = vectors[i]
        for _ in range(2):
            W = without(W, Q)
            W = jax.lax.fori_loop(0, PANEL, row, (W, jnp.zeros_like(W)))[1]
        return jax.lax.dynamic_update_slice(Q, W, (i * PANEL, 0))

    Q = jax.lax.fori_loop(0, panels, panel, jnp.zeros((panels * PANEL, many), jnp.float32))[:few]
    return math.sqrt(many) * (Q if shape[0] <= shape[1] else Q.T)


class Scalar(nnx.Module):
    """One learned number, times (`multiply`) or plus what comes in: of Fixup and SkipInit."""

    def __init__(self, value: float, multiply: bool = False):
        self.multiply = multiply
        self.value = nnx.Param(jnp.asarray(value, jnp.float32))

    def __call__(self, h: jax.Array) -> jax.Array:
        number = jnp.broadcast_to(self.value[...], h.shape)
        return number * h if self.multiply else h + number


def identity(h: jax.Array) -> jax.Array:
    return h


def unit_norm(model: str, norm: str, width: int, rngs: nnx.Rngs) -> Any:
    """The norm of hidden units by name."""
    return identity if one_of(model, "norm", norm, ("none", "batch")) == "none" else batch_norm(width, rngs)


def output_layer(model: str, name: str, outputs: int, rngs: nnx.Rngs) -> Any:
    """What is done to the outputs, over the batch: nothing, mean subtraction or batch norm."""
    if one_of(model, "output_norm", name, ("none", "mean", "batch")) == "none":
        return identity
    return MeanSubtraction(outputs) if name == "mean" else batch_norm(outputs, rngs)


def batch_norm(width: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch normalization without learned scale and shift."""
    return nnx.BatchNorm(
        width, use_scale=False, use_bias=False, use_fast_variance=False, epsilon=1e-6, momentum=MOMENTUM, rngs=rngs
    )


class Dropout(nnx.Module):
    """Units zeroed with probability `rate`, each sample by itself; nothing is random in evaluation mode.

    Args:
        rate: probability of zero, 1 − p.
        form: "inverted": masks are divided by p, evaluation is the identity; "raw": masks are 0 or 1, evaluation multiplies
            by p.

    Reference: Srivastava et al., JMLR 15, 2014.
    """

    def __init__(self, rate: float, form: str = "inverted", *, rngs: nnx.Rngs):
        probability("models", "dropout", rate)
        self.keep, self.raw = 1.0 - rate, one_of("models", "dropout_form", form, ("inverted", "raw")) == "raw"
        self.deterministic = True
        self.rngs = rngs["dropout"].fork() if rate > 0 else nnx.data(None)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Class method used by `nnx.view`.

        Args:
            deterministic: no masks.
        """
        self.deterministic = self.deterministic if deterministic is None else deterministic

    def __call__(self, h: jax.Array) -> jax.Array:
        if self.rngs is None:
            return h
        if self.deterministic:
            return self.keep * h if self.raw else h
        mask = jax.random.bernoulli(self.rngs(), self.keep, h.shape).astype(h.dtype)
        return h * (mask if self.raw else mask / max(self.keep, 1e-30))


class StochasticDepth(nnx.Module):
    """A branch that survives with probability p, each sample by itself: `b · branch`, and `p · branch` in evaluation mode.

    Reference: Huang et al., ECCV 2016.
    """

    def __init__(self, survival: float, *, rngs: nnx.Rngs):
        self.survival = constant(probability("models", "survival", survival))
        self.deterministic = True
        self.rngs = rngs["dropout"].fork()

    def set_view(self, deterministic: bool | None = None) -> None:
        """Class method used by `nnx.view`.

        Args:
            deterministic: no masks.
        """
        self.deterministic = self.deterministic if deterministic is None else deterministic

    def __call__(self, branch: jax.Array) -> jax.Array:
        p = self.survival[...].astype(branch.dtype)
        if self.deterministic:
            return p * branch
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        return jax.random.bernoulli(self.rngs(), p, shape).astype(branch.dtype) * branch


def survival(model: str, last: float, schedule: str, depth: int) -> list[float]:
    """Survival probabilities of the blocks: "uniform", or "linear" from 1 at the input: `p_l = 1 − (l/L)(1 − p_L)`."""
    probability(model, "survival", last)
    if one_of(model, "survival_schedule", schedule, SCHEDULES) == "uniform":
        return [last] * depth
    return [1 - block / depth * (1 - last) for block in range(1, depth + 1)]


class MeanSubtraction(nnx.Module):
    """Outputs minus their mean over the batch; the running mean in evaluation mode.

    Reference: Karakida et al., NeurIPS 2019.
    """

    def __init__(self, width: int, momentum: float = MOMENTUM):
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.momentum, self.use_running_average = momentum, False

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Class method used by `nnx.view`.

        Args:
            use_running_average: subtract the stored mean.
        """
        self.use_running_average = self.use_running_average if use_running_average is None else use_running_average

    def __call__(self, z: jax.Array) -> jax.Array:
        if self.use_running_average:
            return z - jnp.broadcast_to(self.mean[...], z.shape)
        mean = jnp.mean(z, axis=tuple(range(z.ndim - 1)))
        self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * mean
        return z - jnp.broadcast_to(mean, z.shape)
