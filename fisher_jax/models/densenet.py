"""DenseNet for small images: each layer sees all before it, concatenated."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax import _checks
from fisher_jax.models.conv_blocks import Recipe, image

PRESETS: dict[str, dict[str, Any]] = {
    "densenet-40-12": {"depth": 40, "width": 12, "bottleneck": False, "compression": 1.0},
    "densenet-bc-100-12": {"depth": 100, "width": 12},
    "densenet-bc-250-24": {"depth": 250, "width": 24},
    "densenet-bc-190-40": {"depth": 190, "width": 40},
}


class Unit(nnx.Module):
    """`conv(φ(norm(h)))`, and dropout."""

    def __init__(self, inputs: int, outputs: int, size: int, recipe: Recipe):
        self.norm = recipe.normalize(inputs)
        self.conv = recipe.conv(inputs, outputs, size)
        self.dropout = recipe.drop()

    def __call__(self, h: jax.Array) -> jax.Array:
        return self.dropout(self.conv(nnx.relu(self.norm(h))))


class Layer(nnx.Module):
    """Concatenates `growth` new channels to its input; without skip, maps it to as many channels as that makes."""

    def __init__(self, inputs: int, growth: int, bottleneck: bool, recipe: Recipe):
        self.skip = recipe.skip
        outputs = growth if recipe.skip else inputs + growth
        sizes = [(inputs, 4 * growth, 1), (4 * growth, outputs, 3)] if bottleneck else [(inputs, outputs, 3)]
        self.units = nnx.List([Unit(*size, recipe) for size in sizes])

    def __call__(self, h: jax.Array) -> jax.Array:
        new = h
        for unit in self.units:
            new = unit(new)
        return jnp.concatenate([h, new], axis=-1) if self.skip else new


class Transition(nnx.Module):
    """A 1 x 1 convolution and a 2 x 2 average pool, without what is left over at odd sides."""

    def __init__(self, inputs: int, outputs: int, recipe: Recipe):
        self.unit = Unit(inputs, outputs, 1, recipe)

    def __call__(self, h: jax.Array) -> jax.Array:
        h = self.unit(h)
        samples, height, width, channels = h.shape
        a, b = min(2, height), min(2, width)
        h = h[:, : height // a * a, : width // b * b]
        # Flax's pool divides by integers, which strict promotion refuses.
        return jnp.mean(h.reshape(samples, height // a, a, width // b, b, channels), axis=(2, 4))


class DenseNet(nnx.Module):
    """3 x 3 stem, three stages of dense layers with transitions between, global average, readout.

    The plain twin (skip=False) has no concatenation and the same widths: a layer that would append k channels to c computes
    all c + k, from the last layer alone, so its last convolution is wider.

    Args:
        depth: 6n + 4 with bottlenecks, 3n + 4 without; n layers per stage.
        width: growth rate k. The stem has 2k channels, 16 for the basic network (neither bottleneck nor compression).
        bottleneck: 1 x 1 convolution to 4k channels in each layer. compression: share of channels a transition keeps.
        norm: none, batch, layer or group. init: he, lecun or orthogonal.
        dropout: rate, after each convolution but the stem.

    Reference: Huang et al., CVPR 2017.
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, int, int],
        outputs: int,
        rngs: nnx.Rngs,
        depth: int = 100,
        width: int = 12,
        bottleneck: bool = True,
        compression: float = 0.5,
        skip: bool = True,
        norm: str = "batch",
        init: str = "he",
        dropout: float = 0.0,
    ):
        channels = image("densenet", inputs)[2]
        count, rest = divmod(depth - 4, 6 if bottleneck else 3)
        if rest or count < 1:
            rule = "6n + 4: 10, 16, 40, 100, ..." if bottleneck else "3n + 4 without bottlenecks: 7, 10, 40, ..."
            raise _checks.fail("densenet", f"depth={depth} has no three equal stages", f"give {rule}")
        if not 0 < compression <= 1:
            raise _checks.fail("densenet", f"compression={compression!r} is no share", "give a number above 0, at most 1")
        recipe = Recipe("densenet", norm, init, rngs, dropout, skip=skip)

        current = 2 * width if bottleneck or compression < 1 else 16
        self.stem = recipe.conv(channels, current)
        self.blocks = nnx.List([])
        for stage in range(3):
            if stage > 0:
                kept = max(1, int(compression * current))
                self.blocks.append(Transition(current, kept, recipe))
                current = kept
            for _ in range(count):
                self.blocks.append(Layer(current, width, bottleneck, recipe))
                current += width
        self.norm = recipe.normalize(current)
        self.readout = recipe.readout(current, outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.readout(jnp.mean(nnx.relu(self.norm(h)), axis=(1, 2)))
