"""VGG: convolutions and pools in a row, without skips."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax import _checks
from fisher_jax.models.blocks import Linear, one_of
from fisher_jax.models.conv_blocks import PLAIN_INITS, VARIANCES, Recipe, image

# Convolutions of each stage: configurations A, B, D and E of the paper.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
PRESETS: dict[str, dict[str, Any]] = {
    **{f"vgg{depth}": {"depth": depth, "head": "large", "dropout": 0.5} for depth in STAGES},
    **{f"vgg{depth}-bn": {"depth": depth, "head": "large", "dropout": 0.5, "norm": "batch"} for depth in STAGES},
    **{f"vgg{depth}-cifar": {"depth": depth, "norm": "batch"} for depth in STAGES},
}


class Layer(nnx.Module):
    """`φ(norm(conv(h)))`."""

    def __init__(self, inputs: int, outputs: int, recipe: Recipe):
        self.conv = recipe.conv(inputs, outputs, bias=True)
        self.norm = recipe.normalize(outputs)

    def __call__(self, h: jax.Array) -> jax.Array:
        return nnx.relu(self.norm(self.conv(h)))


class VGG(nnx.Module):
    """Five stages of 3 x 3 convolutions with biases, of widths 1, 2, 4, 8, 8 times `width`, a 2 x 2 max pool after each.

    A side of one pixel is not pooled further, so that images below 32 x 32 pass too.

    Args:
        depth: 11, 13, 16 or 19 layers, counted with the large head. width: of the first stage.
        head: "small": global average and readout, for CIFAR; "large": two hidden layers of `hidden` units on all pixels that
            are left (7 x 7 for 224 x 224 images), for ImageNet.
        norm: none, as in the paper, batch, layer or group. init: he, lecun or orthogonal.
        dropout: rate, after each hidden layer of the large head; before the readout of the small one.

    Reference: Simonyan and Zisserman, ICLR 2015, table 1.
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, int, int],
        outputs: int,
        rngs: nnx.Rngs,
        depth: int = 16,
        width: int = 64,
        head: str = "small",
        hidden: int = 4096,
        norm: str = "none",
        init: str = "he",
        dropout: float = 0.0,
    ):
        height, breadth, channels = image("vgg", inputs)
        one_of("vgg", "head", head, ("small", "large"))
        one_of("vgg", "init", init, PLAIN_INITS)
        if depth not in STAGES:
            raise _checks.fail("vgg", f"depth={depth} is unknown", f"choose among {', '.join(map(str, STAGES))}")
        recipe = Recipe("vgg", norm, init, rngs, dropout)
        self.stages = STAGES[depth]
        self.average = head == "small"

        self.blocks = nnx.List([])
        for stage, count in enumerate(self.stages):
            wide = width * 2 ** min(stage, 3)
            for _ in range(count):
                self.blocks.append(Layer(channels, wide, recipe))
                channels = wide
            height, breadth = max(1, height // 2), max(1, breadth // 2)
        self.head = nnx.List([])
        if not self.average:
            weights = "orthogonal" if init == "orthogonal" else "gaussian"
            for size in (height * breadth * channels, hidden):
                self.head.append(Linear(size, hidden, VARIANCES[init], 0.0, weights, rngs=rngs))
        self.dropout = recipe.drop()
        self.readout = recipe.readout(channels if self.average else hidden, outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        layers = iter(self.blocks)
        for count in self.stages:
            for _ in range(count):
                x = next(layers)(x)
            window = (min(2, x.shape[1]), min(2, x.shape[2]))
            x = nnx.max_pool(x, window, window)
        if self.average:
            return self.readout(self.dropout(jnp.mean(x, axis=(1, 2))))
        x = x.reshape(x.shape[0], -1)
        for layer in self.head:
            x = self.dropout(nnx.relu(layer(x)))
        return self.readout(x)
