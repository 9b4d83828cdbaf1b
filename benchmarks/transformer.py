"""A pre-norm transformer that classifies sequences of tokens, for timing."""

import jax
import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    """`h + attention(norm(h))`, then `h + W₂ gelu(W₁ norm(h))`."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.qkv = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(3)])
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        normed = self.norms[0](h)
        q, k, v = (f(normed).reshape(*h.shape[:2], self.heads, -1) for f in self.qkv)
        h = h + self.out(jax.nn.dot_product_attention(q, k, v).reshape(h.shape))
        return h + self.down(nnx.gelu(self.up(self.norms[1](h))))


class Transformer(nnx.Module):
    """Token and position embedding, blocks, norm, mean over positions, readout: `(N, T)` -> `(N, outputs)`."""

    def __init__(self, *, vocabulary: int, length: int, width: int, depth: int, heads: int, outputs: int, rngs: nnx.Rngs):
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (length, width)))
        self.blocks = nnx.List([Block(width, heads, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.readout = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.tokens(x) + self.positions[...][None]
        for block in self.blocks:
            h = block(h)
        return self.readout(jnp.mean(self.norm(h), axis=1))
