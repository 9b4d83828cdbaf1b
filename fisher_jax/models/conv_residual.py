"""The residual block of convolutional networks: branch, shortcut, and their sum."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax import _checks
from fisher_jax.models.blocks import StochasticDepth, probability, survival
from fisher_jax.models.conv_blocks import VARIANCES, Identity, Recipe


class Branch(nnx.Module):
    """Convolutions with norm, ReLU and dropout between; then a norm if `closing`, and the gain of Fixup or SkipInit."""

    def __init__(self, convs: Sequence[tuple[int, int, int, int]], recipe: Recipe, closing: bool, survives: float):
        factor = recipe.branches ** (-0.5 / (len(convs) - 1)) if recipe.fixup else 1.0
        factors = [factor] * (len(convs) - 1) + [0.0 if recipe.fixup else 1.0]
        self.convs = nnx.List([recipe.conv(*shape, factor=f) for shape, f in zip(convs, factors, strict=True)])
        self.shifts = nnx.List([recipe.shift() for _ in convs])
        self.norms = nnx.List([recipe.before_activation(shape[0]) for shape in convs[1:]])
        self.dropout = recipe.drop()
        self.closing = recipe.normalize(convs[-1][1]) if closing else Identity()
        self.gain = recipe.gain()
        self.depth = StochasticDepth(survives, rngs=recipe.rngs) if survives < 1 else Identity()

    def __call__(self, h: jax.Array) -> jax.Array:
        h = self.convs[0](self.shifts[0](h))
        for norm, shift, conv in zip(self.norms, self.shifts[1:], self.convs[1:], strict=True):
            h = conv(shift(self.dropout(nnx.relu(norm(h)))))
        return self.depth(self.gain(self.closing(h)))


class Block(nnx.Module):
    """Residual block: form "post" is `φ(skip(h) + branch(h))`, "pre" is `skip(h) + branch(φ(norm(h)))`.

    Where the shape changes, skip pads ("A") or projects ("B"); the projection of form "pre" starts from `φ(norm(h))`.

    Args:
        convs: (inputs, outputs, size, stride) of each. survives: probability of the branch.

    Reference: He et al., CVPR 2016 and ECCV 2016.
    """

    def __init__(
        self,
        convs: Sequence[tuple[int, int, int, int]],
        recipe: Recipe,
        form: str = "post",
        shortcut: str = "B",
        survives: float = 1.0,
    ):
        inputs, outputs, stride = convs[0][0], convs[-1][1], max(c[3] for c in convs)
        self.pre, self.skip, self.projected = form == "pre", recipe.skip, False
        if self.pre:
            self.norm = recipe.before_activation(inputs)
        self.branch = Branch(convs, recipe, closing=not self.pre, survives=survives)
        self.shortcut = Identity()
        if recipe.skip and (inputs, stride) != (outputs, 1):
            # Option A cannot drop channels.
            self.projected = shortcut == "B" or inputs > outputs
            self.shortcut = (
                Projection(inputs, outputs, stride, recipe, self.pre) if self.projected else Pad(outputs - inputs, stride)
            )
        if not self.pre:
            self.shift = recipe.shift()

    def __call__(self, h: jax.Array) -> jax.Array:
        start = nnx.relu(self.norm(h)) if self.pre else h
        branch = self.branch(start)
        if self.skip:
            branch = self.shortcut(start if self.projected else h) + branch
        return branch if self.pre else nnx.relu(self.shift(branch))


class Pad(nnx.Module):
    """Option A: every stride-th pixel, and zeros for the channels that are new, as many before as after the old."""

    def __init__(self, extra: int, stride: int):
        self.extra, self.stride = extra, stride

    def __call__(self, h: jax.Array) -> jax.Array:
        channels = (self.extra // 2, self.extra - self.extra // 2)
        return jnp.pad(h[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), channels))


class Projection(nnx.Module):
    """Option B: a 1 x 1 convolution, and a norm unless its input was normalized already."""

    def __init__(self, inputs: int, outputs: int, stride: int, recipe: Recipe, normalized: bool):
        self.shift = recipe.shift()
        # Variance 1 whatever the init: there is no activation before the sum.
        self.conv = recipe.conv(inputs, outputs, 1, stride, factor=VARIANCES[recipe.init] ** -0.5)
        self.norm = Identity() if normalized else recipe.normalize(outputs)

    def __call__(self, h: jax.Array) -> jax.Array:
        return self.norm(self.conv(self.shift(h)))


def survivals(model: str, skip: bool, last: float, schedule: str, blocks: int) -> list[float]:
    """Survival probability of each block; without a skip there is nothing to survive a lost branch."""
    probability(model, "survival", last)
    if not skip and last < 1:
        raise _checks.fail(model, f"survival={last} with skip=False loses the signal", "give survival=1 or skip=True")
    return survival(model, last, schedule, blocks)
