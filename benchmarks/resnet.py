"""Convolutional residual networks, batch norm in evaluation mode, for timing."""

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


class Unit(nnx.Module):
    """Two convolutions and an identity skip, subsampled and padded with zeros where the width changes (option A)."""

    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs):
        self.stride = 1 if inputs == width else 2
        self.first = nnx.Conv(inputs, width, (3, 3), strides=self.stride, use_bias=False, rngs=rngs)
        self.second = nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(width, use_running_average=True, rngs=rngs) for _ in range(2)])

    def __call__(self, h: jax.Array) -> jax.Array:
        branch = self.norms[1](self.second(nnx.relu(self.norms[0](self.first(h)))))
        h = h[:, :: self.stride, :: self.stride]
        extra = branch.shape[-1] - h.shape[-1]
        return nnx.relu(jnp.pad(h, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2))) + branch)


class ResNet20(nnx.Module):
    """He et al., CVPR 2016, section 4.2, n = 3: 0.27 M parameters for 32 x 32 x 3 images."""

    def __init__(self, *, outputs: int, rngs: nnx.Rngs):
        widths = [16] * 3 + [32] * 3 + [64] * 3
        self.stem = nnx.Conv(3, 16, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, use_running_average=True, rngs=rngs)
        self.units = nnx.List([Unit(a, b, rngs) for a, b in zip([16, *widths], widths, strict=False)])
        self.readout = nnx.Linear(64, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = nnx.relu(self.norm(self.stem(x)))
        for unit in self.units:
            h = unit(h)
        return self.readout(jnp.mean(h, axis=(1, 2)))
