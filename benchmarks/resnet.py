"""A small convolutional residual network, batch norm in evaluation mode, for timing products."""

import jax
import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    """`h + conv(relu(norm(conv(relu(norm(h))))))`."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.BatchNorm(width, use_running_average=True, rngs=rngs) for _ in range(2)])
        self.convs = nnx.List([nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs) for _ in range(2)])

    def __call__(self, h: jax.Array) -> jax.Array:
        branch = h
        for norm, conv in zip(self.norms, self.convs, strict=True):
            branch = conv(nnx.relu(norm(branch)))
        return h + branch


class ResNet(nnx.Module):
    """Stem, blocks, global average, readout; maps `(N, height, width, channels)` to `(N, outputs)`."""

    def __init__(self, *, channels: int, width: int, depth: int, outputs: int, rngs: nnx.Rngs):
        self.stem = nnx.Conv(channels, width, (3, 3), use_bias=False, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(depth)])
        self.readout = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.readout(jnp.mean(nnx.relu(h), axis=(1, 2)))
