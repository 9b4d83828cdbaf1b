"""Networks of linear maps as streams of stages: the same weights as the stored model of the same key, made when needed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax.functional import Stage, Streamed
from fisher_jax.models.blocks import Linear

# Arguments of `Linear`: inputs, outputs, variance, bias variance.
Shape = tuple[int, int, float, float | None]


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stage before it has a key: linear maps, and `run(maps, h)`, both compared by value.

    `linears` is one shape or, for parameters numbered in their path, a tuple of them.
    """

    name: str = dataclasses.field(compare=False)
    linears: Any
    run: Callable[[Any, jax.Array], jax.Array]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return self.linears if isinstance(self.linears[0], tuple) else (self.linears,)

    @property
    def draws(self) -> int:
        """How many keys the initialization takes."""
        return sum(1 + (shape[3] is not None) for shape in self.shapes)

    def build(self, rngs: nnx.Rngs) -> Any:
        made = [Linear(*shape, rngs=rngs) for shape in self.shapes]
        return nnx.List(made) if isinstance(self.linears[0], tuple) else made[0]


@dataclasses.dataclass(frozen=True)
class _Init:
    piece: Piece

    def __call__(self, state: tuple[jax.Array, jax.Array]) -> Any:
        key, count = state
        rngs = nnx.Rngs(params=key)
        rngs.params.count[...] = count
        return nnx.to_pure_dict(nnx.state(self.piece.build(rngs), nnx.Param))


@dataclasses.dataclass(frozen=True)
class _Apply:
    piece: Piece

    def __call__(self, params: Any, h: jax.Array) -> jax.Array:
        module = nnx.eval_shape(lambda: self.piece.build(nnx.Rngs(params=0)))
        graphdef, state, rest = nnx.split(module, nnx.Param, ...)
        nnx.replace_by_pure_dict(state, params)
        return self.piece.run(nnx.merge(graphdef, state, rest), h)


def stream(pieces: list[Piece], key: jax.Array) -> Streamed:
    """Stages of the pieces, drawing from the key in the order in which `nnx.Rngs(params=key)` does."""
    stages, count = [], 0
    for piece in pieces:
        stages.append(Stage(piece.name, _Init(piece), _Apply(piece), (key, jnp.asarray(count, jnp.uint32))))
        count += piece.draws
    return Streamed(tuple(stages))
