"""Residual networks for small images: ResNet, pre-activation ResNet, Wide ResNet."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax import _checks
from fisher_jax.models.blocks import one_of
from fisher_jax.models.conv_blocks import Recipe, image
from fisher_jax.models.conv_residual import Block, survivals

PRESETS: dict[str, dict[str, Any]] = {
    **{f"resnet{depth}": {"depth": depth} for depth in (20, 32, 44, 56, 110)},
    **{f"preresnet{depth}": {"depth": depth, "form": "pre"} for depth in (20, 56, 110)},
    **{
        f"wrn{depth}-{widen}": {"depth": depth, "widen": widen, "form": "pre", "shortcut": "B"}
        for depth, widen in ((16, 4), (16, 8), (28, 10), (40, 1), (40, 2), (40, 4))
    },
}


class ResNet(nnx.Module):
    """3 x 3 stem, three stages of n blocks of two 3 x 3 convolutions, global average, readout. Stages are `width`, twice and
    four times as wide, times `widen`; each but the first starts with stride 2.

    Args:
        depth: 6n + 2; 6n + 4 if `widen` is given, as Wide ResNets are counted.
        width: of the stem. widen: factor k of Wide ResNets.
        form: "post", or "pre" activation; Wide ResNets are "pre".
        shortcut: "A": padded, without parameters; "B": projected. Where the shape of the stream changes.
        skip: False leaves shortcuts out: the plain network of the same layers.
        norm: none, batch, layer or group. init: he, lecun, orthogonal, fixup or skipinit; see `Recipe`.
        dropout: rate, between the convolutions of a branch.
        survival: of the last branch. survival_schedule: "linear" or "uniform".

    Reference: He et al., CVPR 2016, section 4.2, and ECCV 2016; Zagoruyko and Komodakis, BMVC 2016.
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, int, int],
        outputs: int,
        rngs: nnx.Rngs,
        depth: int = 20,
        width: int = 16,
        widen: int | None = None,
        form: str = "post",
        shortcut: str = "A",
        skip: bool = True,
        norm: str = "batch",
        init: str = "he",
        dropout: float = 0.0,
        survival: float = 1.0,
        survival_schedule: str = "linear",
    ):
        channels = image("resnet", inputs)[2]
        self.pre = one_of("resnet", "form", form, ("post", "pre")) == "pre"
        one_of("resnet", "shortcut", shortcut, ("A", "B"))
        per_stage, rest = divmod(depth - (2 if widen is None else 4), 6)
        if rest or per_stage < 1:
            rule = "6n + 2: 8, 14, 20, 32, ..." if widen is None else "6n + 4 with widen: 10, 16, 22, 28, ..."
            raise _checks.fail("resnet", f"depth={depth} has no three equal stages", f"give {rule}")
        blocks = 3 * per_stage
        recipe = Recipe("resnet", norm, init, rngs, dropout, blocks, skip)
        survive = survivals("resnet", skip, survival, survival_schedule, blocks)
        widths = [width * (widen or 1) * 2**stage for stage in range(3) for _ in range(per_stage)]

        self.stem = recipe.conv(channels, width)
        self.norm = recipe.before_activation(widths[-1] if self.pre else width)
        self.blocks = nnx.List([])
        for i, (a, b) in enumerate(zip([width, *widths], widths, strict=False)):
            convs = [(a, b, 3, 2 if i in (per_stage, 2 * per_stage) else 1), (b, b, 3, 1)]
            self.blocks.append(Block(convs, recipe, form, shortcut, survive[i]))
        self.shift = recipe.shift()
        self.readout = recipe.readout(widths[-1], outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.stem(x)
        if not self.pre:
            h = nnx.relu(self.norm(h))
        for block in self.blocks:
            h = block(h)
        if self.pre:
            h = nnx.relu(self.norm(h))
        return self.readout(self.shift(jnp.mean(h, axis=(1, 2))))
