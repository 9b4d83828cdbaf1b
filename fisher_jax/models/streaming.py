"""Networks as streams of stages: the same weights as the stored model of the same key, made when needed."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax import _checks
from fisher_jax.functional import Stage, Streamed


def call(module: Any, h: jax.Array) -> jax.Array:
    return module(h)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stage before it has a key: the module `build(*arguments, rngs=rngs)` and `run(module, h)`, compared by value.

    Each of its parameters takes one key of `rngs.params`.
    """

    name: str = dataclasses.field(compare=False)
    build: Any
    arguments: tuple[Any, ...]
    run: Callable[[Any, jax.Array], jax.Array] = call

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.build(*self.arguments, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class _Init:
    piece: Piece

    def __call__(self, state: tuple[jax.Array, jax.Array]) -> Any:
        key, count = state
        rngs = nnx.Rngs(params=key)
        rngs.params.count[...] = count
        return nnx.to_pure_dict(nnx.state(self.piece.module(rngs), nnx.Param))


@dataclasses.dataclass(frozen=True)
class _Apply:
    piece: Piece

    def __call__(self, params: Any, h: jax.Array) -> jax.Array:
        # Its own weights are never drawn: nothing uses them in the compiled program. Its constants are.
        graphdef, state, rest = nnx.split(self.piece.module(nnx.Rngs(0)), nnx.Param, ...)
        nnx.replace_by_pure_dict(state, params)
        return self.piece.run(nnx.merge(graphdef, state, rest), h)


def stream(pieces: list[Piece], key: jax.Array) -> Streamed:
    """Stages of the pieces, drawing from the key in the order in which `nnx.Rngs(params=key)` does."""
    stages, count = [], 0
    for piece in pieces:
        init = _Init(piece)
        stages.append(Stage(piece.name, init, _Apply(piece), (key, jnp.asarray(count, jnp.uint32))))
        count += len(jax.tree.leaves(jax.eval_shape(init, stages[-1].state)))
    return Streamed(tuple(stages))


# What needs other samples, random masks, or numbers beside the weights.
NOT_STREAMED = ("norm", "dropout", "dropout_form", "survival", "survival_schedule", "residual", "output_norm", "scanned")


def plain(model: str, cls: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options without those that streamed networks do not have, which must be at their defaults."""
    parameters = inspect.signature(cls.__init__).parameters
    for name in NOT_STREAMED:
        if name in options and options[name] != parameters[name].default:
            raise _checks.fail(
                f"model {model}", f"{name}={options[name]!r} with streamed=True", f"leave {name} out, or store the weights"
            )
    return {name: value for name, value in options.items() if name not in NOT_STREAMED}
