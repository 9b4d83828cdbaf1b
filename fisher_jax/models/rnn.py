"""Recurrent networks: GRU and LSTM, looped over time."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax.models.blocks import Dropout, Linear, one_of

PRESETS: dict[str, dict[str, Any]] = {"gru": {"cell": "gru"}, "lstm": {"cell": "lstm"}}


class GRU(nnx.Module):
    """`h ← z h + (1 − z) tanh(W x + U (r h) + b)` with gates r, z that are sigmoids of `W' x + U' h + b'`.

    The reset gate acts before the matrix, as in the paper: one bias for each unit and gate, none redundant.

    Reference: Cho et al., EMNLP 2014, Eq. 5 to 8.
    """

    def __init__(self, inputs: int, width: int, variance: float = 1.0, weights: str = "gaussian", *, rngs: nnx.Rngs):
        self.width = width
        self.input = Linear(inputs, 3 * width, variance, 0.0, rngs=rngs)
        self.gates = Linear(width, 2 * width, variance, None, weights, rngs=rngs)
        self.candidate = Linear(width, width, variance, None, weights, rngs=rngs)

    def start(self, samples: int, dtype: Any) -> jax.Array:
        return jnp.zeros((samples, self.width), dtype)

    def __call__(self, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(state, x) -> (next state, output)."""
        r, z, n = jnp.split(self.input(x), 3, axis=1)
        from_r, from_z = jnp.split(self.gates(h), 2, axis=1)
        r, z = jax.nn.sigmoid(r + from_r), jax.nn.sigmoid(z + from_z)
        h = z * h + (1 - z) * jnp.tanh(n + self.candidate(r * h))
        return h, h


class LSTM(nnx.Module):
    """`c ← σ(f + 1) c + σ(i) tanh(g)`, `h = σ(o) tanh(c)`, where (i, f, g, o) = `W x + U h + b`.

    Reference: Hochreiter and Schmidhuber, Neural Computation 9(8), 1997; Gers et al., 2000 (forget gate); Jozefowicz et
    al., ICML 2015 (its bias of one).
    """

    def __init__(self, inputs: int, width: int, variance: float = 1.0, weights: str = "gaussian", *, rngs: nnx.Rngs):
        self.width = width
        self.input = Linear(inputs, 4 * width, variance, 0.0, rngs=rngs)
        self.recurrent = Linear(width, 4 * width, variance, None, weights, rngs=rngs)

    def start(self, samples: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
        zeros = jnp.zeros((samples, self.width), dtype)
        return zeros, zeros

    def __call__(self, state: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[Any, jax.Array]:
        """(state, x) -> (next state, output)."""
        c, h = state
        i, f, g, o = jnp.split(self.input(x) + self.recurrent(h), 4, axis=1)
        c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h


CELLS = {"gru": GRU, "lstm": LSTM}


def over_time(cell: Any, x: jax.Array) -> jax.Array:
    """A cell at every step: `(N, T, features)` -> `(N, T, width)`."""
    return jnp.moveaxis(jax.lax.scan(cell, cell.start(x.shape[0], x.dtype), jnp.moveaxis(x, 1, 0))[1], 0, 1)


class RNN(nnx.Module):
    """Layers of cells over time, then a linear readout: `(N, T, inputs)` -> `(N, T, outputs)`, or `(N, outputs)`.

    Args:
        depth: layers of cells. width: units of each. cell: "gru" or "lstm".
        readouts: "every" step has an output, or the "last" only.
        dropout: rate, between layers. weights: of the recurrent maps, "gaussian" or "orthogonal".
        weight_variance: of all maps of the cells, over fan-in. readout_variance: of the readout.

    Reference: see `GRU` and `LSTM`.
    """

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        rngs: nnx.Rngs,
        depth: int = 1,
        width: int = 64,
        cell: str = "gru",
        readouts: str = "every",
        dropout: float = 0.0,
        weights: str = "gaussian",
        weight_variance: float = 1.0,
        readout_variance: float = 1.0,
    ):
        make = CELLS[one_of("rnn", "cell", cell, list(CELLS))]
        self.last = one_of("rnn", "readouts", readouts, ("every", "last")) == "last"
        sizes = [inputs, *[width] * (depth - 1)]
        self.blocks = nnx.List([make(size, width, weight_variance, weights, rngs=rngs) for size in sizes])
        self.dropout = Dropout(dropout, rngs=rngs)
        self.readout = Linear(width, outputs, readout_variance, 0.0, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for cell in self.blocks:
            x = self.dropout(over_time(cell, x))
        return self.readout(x[:, -1] if self.last else x)
