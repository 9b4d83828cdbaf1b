"""Vision transformer: an image as a sequence of patches."""

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax import _checks
from fisher_jax.models.attention import DEVIATION, LayerNorm, blocks, linear
from fisher_jax.models.blocks import Dropout

IMAGENET = {"inputs": (224, 224, 3), "outputs": 1000}
# Parameters at 1000 classes: 5,717,416; 22,050,664; 86,567,656; 304,326,632; 632,045,800.
PRESETS = {
    "vit-ti16": IMAGENET | {"depth": 12, "width": 192, "heads": 3},
    "vit-s16": IMAGENET | {"depth": 12, "width": 384, "heads": 6},
    "vit-b16": IMAGENET | {"depth": 12, "width": 768, "heads": 12},
    "vit-l16": IMAGENET | {"depth": 24, "width": 1024, "heads": 16},
    "vit-h14": IMAGENET | {"depth": 32, "width": 1280, "heads": 16, "patch": 14},
}


class ViT(nnx.Module):
    """Patches, each mapped to `width` features, a class token before them, learned positions, blocks, readout of the token.

    Maps `(N, height, width, channels)` to `(N, outputs)`. All weights are `N(0, 0.02²)`, as those of
    DeiT's linear layers (a readout of zeros, as in the paper's fine-tuning, has no gradient below it).

    Args:
        inputs: (height, width, channels) of an image.
        depth: number of blocks. width: of the stream. heads: of attention. expansion: of the perceptron.
        patch: side of a patch in pixels.
        norm: "pre" or "post". skip: False leaves out the skip connections.
        activation: of the perceptron. dropout: rate, of attention weights, branches and the embedding.
        survival: of the last block's branches. survival_schedule: "linear" in depth or "uniform".
        weight_variance: if given, weights are `N(0, weight_variance / fan_in)`.

    Reference: Dosovitskiy et al., ICLR 2021 (B, L, H); Touvron et al., ICML 2021 (DeiT: Ti, S).
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, int, int],
        outputs: int,
        rngs: nnx.Rngs,
        depth: int = 12,
        width: int = 192,
        heads: int = 3,
        expansion: int = 4,
        patch: int = 16,
        norm: str = "pre",
        skip: bool = True,
        activation: str = "gelu",
        dropout: float = 0.0,
        survival: float = 1.0,
        survival_schedule: str = "linear",
        weight_variance: float | None = None,
    ):
        if not isinstance(inputs, (tuple, list)) or len(inputs) != 3:
            raise _checks.fail("vit", f"inputs={inputs!r} is no image", "give (height, width, channels)")
        rows, columns, channels = inputs
        if rows % patch or columns % patch:
            raise _checks.fail(
                "vit", f"an image of {rows} x {columns} is not divisible by patch={patch}", "choose a divisor"
            )
        self.patch = patch
        self.embed = linear(patch * patch * channels, width, weight_variance, rngs=rngs)
        self.token = nnx.Param(DEVIATION * jax.random.normal(rngs.params(), (width,)))
        length = rows // patch * (columns // patch) + 1
        self.positions = nnx.Param(DEVIATION * jax.random.normal(rngs.params(), (length, width)))
        self.dropout = Dropout(dropout, rngs=rngs)
        self.blocks = blocks(
            "vit",
            depth=depth,
            width=width,
            heads=heads,
            expansion=expansion,
            norm=norm,
            skip=skip,
            activation=activation,
            dropout=dropout,
            survival_last=survival,
            survival_schedule=survival_schedule,
            weight_variance=weight_variance,
            epsilon=1e-6,
            rngs=rngs,
        )
        self.norm = LayerNorm(width, 1e-6) if norm == "pre" else None
        self.readout = linear(width, outputs, weight_variance, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.embed(patches(x, self.patch))
        token = jnp.broadcast_to(self.token[...][None, None], (h.shape[0], 1, h.shape[2]))
        h = self.dropout(jnp.concatenate([token, h], axis=1) + self.positions[...][None])
        for block in self.blocks:
            h = block(h)
        h = h[:, 0]
        return self.readout(h if self.norm is None else self.norm(h))


def patches(x: jax.Array, side: int) -> jax.Array:
    """`(N, H, W, C)` -> `(N, patches, side · side · C)`, row by row."""
    N, H, W, C = x.shape
    x = x.reshape(N, H // side, side, W // side, side, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(N, -1, side * side * C)
