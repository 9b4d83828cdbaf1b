"""What convolutional networks are built from: convolutions of stated variance, norms, initializations."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax import _checks
from fisher_jax.models.blocks import MOMENTUM, Dropout, Linear, Scalar, one_of, orthogonal, probability

NORMS = ("none", "batch", "layer", "group")
# Variance of a weight times its fan-in: 2 keeps what ReLU halves (He), 1 is that of linear layers (LeCun).
VARIANCES = {"he": 2.0, "lecun": 1.0, "orthogonal": 2.0, "fixup": 2.0, "skipinit": 2.0}
PLAIN_INITS = ("he", "lecun", "orthogonal")
INITS = (*PLAIN_INITS, "fixup", "skipinit")


class Conv(nnx.Module):
    """Square convolution, `W ~ N(0, variance / fan_in)`, fan_in = size² · inputs; padded by size // 2 on every side.

    Args:
        weights: "gaussian", or "orthogonal": the kernel as a matrix of fan_in rows is random (semi-)orthogonal, times a
            number that gives its entries the same variance.
        bias: add one, zero at initialization.

    Reference: He et al., ICCV 2015, section 2.2 (forward case).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 3,
        stride: int = 1,
        *,
        variance: float = 2.0,
        weights: str = "gaussian",
        bias: bool = False,
        rngs: nnx.Rngs,
    ):
        self.stride, self.padding, fan_in = stride, size // 2, size * size * inputs
        W = (orthogonal if weights == "orthogonal" else jax.random.normal)(rngs.params(), (fan_in, outputs))
        self.kernel = nnx.Param(math.sqrt(variance / fan_in) * W.reshape(size, size, inputs, outputs))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, h: jax.Array) -> jax.Array:
        side = (self.padding, self.padding)
        y = jax.lax.conv_general_dilated(
            h, self.kernel[...], (self.stride, self.stride), (side, side), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y if self.bias is None else y + jnp.broadcast_to(self.bias[...], y.shape)


class Identity(nnx.Module):
    """In place of a layer that a network does without."""

    def __call__(self, h: jax.Array) -> jax.Array:
        return h


class GroupNorm(nnx.Module):
    """`scale · (h − mean) / √(variance + epsilon) + bias`: mean and variance over space and the channels of a group.

    Flax's own asks for the wider of float64 and float32, which strict promotion refuses.

    Reference: Wu and He, ECCV 2018.
    """

    def __init__(self, width: int, groups: int, epsilon: float = 1e-6):
        self.groups, self.epsilon = groups, epsilon
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, h: jax.Array) -> jax.Array:
        grouped = h.reshape(*h.shape[:-1], self.groups, -1)
        axes = (*range(1, h.ndim - 1), h.ndim)
        centred = grouped - jnp.mean(grouped, axis=axes, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=axes, keepdims=True) + self.epsilon)
        return jnp.broadcast_to(self.scale[...], h.shape) * normed.reshape(h.shape) + jnp.broadcast_to(
            self.bias[...], h.shape
        )


def norm(kind: str, width: int, rngs: nnx.Rngs) -> Any:
    """A norm with learned scale and shift per channel.

    - "batch": over samples and space; running statistics in evaluation mode.
    - "layer": over channels and space of a sample, i.e. group norm of one group.
    - "group": over space and the channels of a group; as many groups as possible up to 32, of at least 4 channels, for a
      group of one value would be normalized to zero.
    - "none": the identity.

    Reference: Ioffe and Szegedy, ICML 2015; Wu and He, ECCV 2018.
    """
    if kind == "none":
        return Identity()
    real = jnp.zeros(()).dtype  # that of the other weights; Flax takes float32 unless told, and always for statistics
    if kind == "batch":
        layer = nnx.BatchNorm(width, use_fast_variance=False, momentum=MOMENTUM, param_dtype=real, rngs=rngs)
        layer.mean, layer.var = nnx.BatchStat(jnp.zeros(width)), nnx.BatchStat(jnp.ones(width))
        return layer
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if g == 1 or (width % g == 0 and width >= 4 * g))
    return GroupNorm(width, 1 if kind == "layer" else groups)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the layers of one network are normalized and initialized.

    Inits:
        "he", "lecun", "orthogonal": all convolutions alike, of variance 2, 1, 2 over fan-in.
        "fixup": He, without norms. In a branch of m convolutions, one of L, all but the last are scaled by
            `L^(−1/(2m−2))` and the last is zero; so is the readout. A scalar bias comes before each convolution, linear
            layer and activation, a scalar multiplier at the end of each branch.
        "skipinit": He, and each branch is multiplied by a learned scalar, 0 at first.

    Reference: Zhang et al., ICLR 2019 (Fixup); De and Smith, NeurIPS 2020 (SkipInit).
    """

    model: str
    norm: str
    init: str
    rngs: nnx.Rngs
    dropout: float = 0.0
    branches: int = 0
    skip: bool = True

    def __post_init__(self) -> None:
        one_of(self.model, "norm", self.norm, NORMS)
        one_of(self.model, "init", self.init, INITS if self.branches else PLAIN_INITS)
        probability(self.model, "dropout", self.dropout)
        if self.fixup and self.norm != "none":
            raise _checks.fail(self.model, f'init="fixup" with norm={self.norm!r}', 'Fixup replaces norms: give norm="none"')
        if not self.skip and self.init not in PLAIN_INITS:
            raise _checks.fail(
                self.model, f"init={self.init!r} with skip=False maps all to zero", f"choose among {', '.join(PLAIN_INITS)}"
            )

    @property
    def fixup(self) -> bool:
        return self.init == "fixup"

    def conv(
        self, inputs: int, outputs: int, size: int = 3, stride: int = 1, factor: float = 1.0, bias: bool = False
    ) -> Conv:
        """A convolution; its weights are `factor` times those of the init."""
        weights = "orthogonal" if self.init == "orthogonal" else "gaussian"
        variance = VARIANCES[self.init] * factor**2
        return Conv(inputs, outputs, size, stride, variance=variance, weights=weights, bias=bias, rngs=self.rngs)

    def normalize(self, width: int) -> Any:
        return norm(self.norm, width, self.rngs)

    def before_activation(self, width: int) -> Any:
        """A norm, or Fixup's bias in its place."""
        return self.shift() if self.fixup else self.normalize(width)

    def shift(self) -> Any:
        """Fixup's scalar bias."""
        return Scalar(0.0) if self.fixup else Identity()

    def gain(self) -> Any:
        """What multiplies the end of a branch."""
        start = {"fixup": 1.0, "skipinit": 0.0}.get(self.init)
        return Identity() if start is None else Scalar(start, multiply=True)

    def drop(self) -> Dropout:
        return Dropout(self.dropout, rngs=self.rngs)

    def readout(self, inputs: int, outputs: int) -> Linear:
        """Variance 1 / fan-in, zero for Fixup; its bias is zero."""
        return Linear(inputs, outputs, 0.0 if self.fixup else 1.0, 0.0, rngs=self.rngs)


def image(model: str, inputs: Any) -> tuple[int, int, int]:
    """Inputs as (height, width, channels), else an error."""
    if not isinstance(inputs, (tuple, list)) or len(inputs) != 3:
        raise _checks.fail(model, f"inputs={inputs!r} is not an image", "give inputs=(height, width, channels)")
    height, width, channels = (_checks.integer(model, "inputs", n, 1) for n in inputs)
    return height, width, channels
