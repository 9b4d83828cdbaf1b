"""Self-attention and the blocks of a transformer, with layer norm before or after the branch."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax import _checks
from fisher_jax.models.blocks import Dropout, Linear, StochasticDepth, activation, one_of, survival

NORMS = ("pre", "post")
DEVIATION = 0.02


def linear(
    inputs: int, outputs: int, variance: float | None, factor: float = 1.0, bias: bool = True, *, rngs: nnx.Rngs
) -> Linear:
    """`W ~ N(0, factor · variance / fan_in)`, `N(0, factor · 0.02²)` for variance None; biases are zero at the start."""
    variance = DEVIATION**2 * inputs if variance is None else variance
    return Linear(inputs, outputs, factor * variance, 0.0 if bias else None, rngs=rngs)


class LayerNorm(nnx.Module):
    """`scale · (h − mean) / √(variance + epsilon) + bias`: mean and variance over the features of each position.

    Reference: Ba et al., arXiv:1607.06450.
    """

    def __init__(self, width: int, epsilon: float = 1e-5):
        self.epsilon = epsilon
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, h: jax.Array) -> jax.Array:
        centred = h - jnp.mean(h, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + self.epsilon)
        return jnp.broadcast_to(self.scale[...], h.shape) * normed + jnp.broadcast_to(self.bias[...], h.shape)


class Attention(nnx.Module):
    """`softmax(Q Kᵀ / √d) V` in each of `heads` slices of d = width / heads features, then a linear map of all of them.

    Args:
        causal: a position sees itself and those before it only.
        dropout: rate, of the attention weights.

    Reference: Vaswani et al., NeurIPS 2017, section 3.2.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        causal: bool = False,
        dropout: float = 0.0,
        weight_variance: float | None = None,
        factor: float = 1.0,
        *,
        rngs: nnx.Rngs,
    ):
        if heads < 1 or width % heads:
            raise _checks.fail(
                "attention", f"width={width} is not divisible by heads={heads}", "give a divisor of the width"
            )
        self.heads, self.causal = heads, causal
        self.qkv = linear(width, 3 * width, weight_variance, rngs=rngs)
        self.out = linear(width, width, weight_variance, factor, rngs=rngs)
        self.dropout = Dropout(dropout, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        samples, length, width = h.shape
        split = self.qkv(h).reshape(samples, length, 3, self.heads, width // self.heads)
        q, k, v = (split[:, :, i] for i in range(3))
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(width // self.heads)
        if self.causal:
            before = jnp.tril(jnp.ones((1, 1, length, length), bool))
            scores = jnp.where(before, scores, -jnp.inf)
        weights = self.dropout(jax.nn.softmax(scores, axis=-1))
        return self.out(jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(h.shape))


class Perceptron(nnx.Module):
    """`W₂ φ(W₁ h)` at every position."""

    def __init__(
        self, width: int, hidden: int, act: str, weight_variance: float | None, factor: float = 1.0, *, rngs: nnx.Rngs
    ):
        self.activation = activation("transformer", act)
        self.up = linear(width, hidden, weight_variance, rngs=rngs)
        self.down = linear(hidden, width, weight_variance, factor, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        return self.down(self.activation(self.up(h)))


class Block(nnx.Module):
    """Attention, then a perceptron, each as a branch f of the stream.

    - norm "pre": `h ← h + f(norm(h))`; "post": `h ← norm(h + f(h))`; without skips: `f(norm(h))`, `norm(f(h))`.

    Reference: Vaswani et al., NeurIPS 2017 (post); Xiong et al., ICML 2020 (pre against post); Huang et al., ECCV 2016
    (stochastic depth, one probability for both branches).
    """

    def __init__(
        self,
        attention: Attention,
        perceptron: Perceptron,
        norms: tuple[LayerNorm, LayerNorm],
        norm: str,
        skip: bool,
        dropout: float,
        survives: float,
        rngs: nnx.Rngs,
    ):
        self.pre = one_of("transformer", "norm", norm, NORMS) == "pre"
        if not skip and survives < 1:
            raise _checks.fail("transformer", "survival below 1 with skip=False: no signal is left", "choose survival=1")
        self.skip, self.attention, self.perceptron = skip, attention, perceptron
        self.norms, self.dropout = nnx.List(norms), Dropout(dropout, rngs=rngs)
        self.depth = nnx.List([StochasticDepth(survives, rngs=rngs) for _ in norms if survives < 1])

    def __call__(self, h: jax.Array) -> jax.Array:
        for i, branch in enumerate((self.attention, self.perceptron)):
            f = self.dropout(branch(self.norms[i](h) if self.pre else h))
            f = self.depth[i](f) if self.depth else f
            h = h + f if self.skip else f
            h = h if self.pre else self.norms[i](h)
        return h


def blocks(
    model: str,
    *,
    depth: int,
    width: int,
    heads: int,
    expansion: int = 4,
    causal: bool = False,
    norm: str = "pre",
    skip: bool = True,
    activation: str = "gelu",
    dropout: float = 0.0,
    survival_last: float = 1.0,
    survival_schedule: str = "linear",
    weight_variance: float | None = None,
    factor: float = 1.0,
    epsilon: float = 1e-5,
    rngs: nnx.Rngs,
) -> nnx.List:
    """`depth` blocks; `factor` is that of the variance of the last map of each branch, `epsilon` that of the norms."""
    return nnx.List(
        [
            Block(
                Attention(width, heads, causal, dropout, weight_variance, factor, rngs=rngs),
                Perceptron(width, expansion * width, activation, weight_variance, factor, rngs=rngs),
                (LayerNorm(width, epsilon), LayerNorm(width, epsilon)),
                norm,
                skip,
                dropout,
                p,
                rngs,
            )
            for p in survival(model, survival_last, survival_schedule, depth)
        ]
    )
