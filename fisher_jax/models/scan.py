"""Equal blocks in a loop: a network of depth 1000 compiles in the time of one block."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Scanned(nnx.Module):
    """Blocks of one structure, their weights stacked along a leading axis: `h ← block_L(... block_1(h))`.

    Random masks differ between blocks.
    """

    def __init__(self, blocks: list[Any]):
        states = [nnx.state(block) for block in blocks]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        nnx.update(blocks[0], stacked)
        self.stacked = blocks[0]

    def __call__(self, h: Any) -> Any:
        graphdef, state = nnx.split(self.stacked)

        def step(h: Any, one: Any) -> tuple[Any, Any]:
            block = nnx.merge(graphdef, one, copy=True)
            h = block(h)
            return h, nnx.state(block, nnx.BatchStat)

        h, statistics = jax.lax.scan(step, h, state)
        nnx.update(self.stacked, statistics)
        return h
