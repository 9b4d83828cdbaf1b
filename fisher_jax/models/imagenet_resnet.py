"""Residual networks for large images."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax import _checks
from fisher_jax.models.blocks import one_of
from fisher_jax.models.conv_blocks import Recipe, image
from fisher_jax.models.conv_residual import Block, survivals

# Blocks of each stage, and convolutions of a block. 18 to 152 are the paper's; 10, 14 and 26 are small ones of both kinds.
STAGES = {
    10: ((1, 1, 1, 1), 2),
    14: ((1, 1, 1, 1), 3),
    18: ((2, 2, 2, 2), 2),
    26: ((2, 2, 2, 2), 3),
    34: ((3, 4, 6, 3), 2),
    50: ((3, 4, 6, 3), 3),
    101: ((3, 4, 23, 3), 3),
    152: ((3, 8, 36, 3), 3),
}
PRESETS: dict[str, dict[str, Any]] = {f"resnet{depth}": {"depth": depth} for depth in (18, 34, 50, 101, 152)}


class ImageNetResNet(nnx.Module):
    """7 x 7 stem of stride 2, max pool, four stages of blocks, global average, readout. Each stage is twice as wide.

    Up to depth 34 a block has two 3 x 3 convolutions (but depths 14 and 26); beyond, a bottleneck: 1 x 1, 3 x 3, and
    1 x 1 to four times the width. The stride of a bottleneck is at its 3 x 3 convolution, as in torchvision; in the paper it
    is at the first 1 x 1.

    Args:
        depth: 10, 14, 18, 26, 34, 50, 101 or 152. width: of the stem.
        shortcut: "B": projected where the shape changes; "A": padded, without parameters.
        skip: False leaves shortcuts out: the plain network of the same layers.
        norm: none, batch, layer or group. init: he, lecun, orthogonal, fixup or skipinit; see `Recipe`.
        dropout: rate, between the convolutions of a branch.
        survival: of the last branch. survival_schedule: "linear" or "uniform".

    Reference: He et al., CVPR 2016, table 1.
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, int, int],
        outputs: int,
        rngs: nnx.Rngs,
        depth: int = 18,
        width: int = 64,
        shortcut: str = "B",
        skip: bool = True,
        norm: str = "batch",
        init: str = "he",
        dropout: float = 0.0,
        survival: float = 1.0,
        survival_schedule: str = "linear",
    ):
        model = "imagenet_resnet"
        channels = image(model, inputs)[2]
        one_of(model, "shortcut", shortcut, ("A", "B"))
        if depth not in STAGES:
            raise _checks.fail(model, f"depth={depth} is unknown", f"choose among {', '.join(map(str, STAGES))}")
        stages, layers = STAGES[depth]
        recipe = Recipe(model, norm, init, rngs, dropout, sum(stages), skip)
        survive = iter(survivals(model, skip, survival, survival_schedule, sum(stages)))

        self.stem = recipe.conv(channels, width, 7, 2)
        self.norm = recipe.before_activation(width)
        self.blocks = nnx.List([])
        current = width
        for stage, count in enumerate(stages):
            for i in range(count):
                inner, stride = width * 2**stage, 2 if stage > 0 and i == 0 else 1
                convs = [(current, inner, 3, stride), (inner, inner, 3, 1)]
                if layers == 3:
                    convs = [(current, inner, 1, 1), (inner, inner, 3, stride), (inner, 4 * inner, 1, 1)]
                self.blocks.append(Block(convs, recipe, "post", shortcut, next(survive)))
                current = convs[-1][1]
        self.shift = recipe.shift()
        self.readout = recipe.readout(current, outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = nnx.relu(self.norm(self.stem(x)))
        # ReLU left nothing below zero, so zeros around the image are no maxima that were not there.
        h = nnx.max_pool(jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))
        for block in self.blocks:
            h = block(h)
        return self.readout(self.shift(jnp.mean(h, axis=(1, 2))))
