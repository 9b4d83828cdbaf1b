"""Regression on tables: numbers and categories."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fisher_jax import _checks
from fisher_jax.models.attention import LayerNorm
from fisher_jax.models.blocks import Dropout, Linear, activation, one_of

PRESETS: dict[str, dict[str, Any]] = {"tabular-mlp": {"depth": 3, "width": 256, "norm": "none"}}


class Regressor(nnx.Module):
    """Features and an embedding of each categorical column, side by side, through a perceptron: `(N, outputs)`.

    Hidden layers are `φ(norm(W h + b))`, `W ~ N(0, weight_variance / fan_in)`, `b = 0` at the start; embeddings are
    standard normal, as numeric columns are once standardized. The data are `{"numeric": (N, F), "categorical": (N, K)
    integers}`, or the array `(N, F)` where no column is categorical. Column k holds numbers 0 to cardinalities[k] − 1.

    Args:
        inputs: numeric columns F.
        depth: weight matrices, the readout included. width: of the hidden layers.
        cardinalities: categories of each categorical column. embedding: features of each of these columns.
        norm: "layer" or "none". activation: relu, tanh, erf, gelu, gelu-tanh or linear. dropout: rate, of the hidden layers.
        weight_variance: 2 for ReLU (He). readout_variance: of the last matrix.

    Reference: Gorishniy et al., NeurIPS 2021 (perceptrons on tables); Guo and Berkhahn, arXiv:1604.06737 (embeddings).
    """

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        rngs: nnx.Rngs,
        depth: int = 3,
        width: int = 256,
        cardinalities: Sequence[int] = (),
        embedding: int = 8,
        norm: str = "none",
        activation: str = "relu",
        dropout: float = 0.0,
        weight_variance: float = 2.0,
        readout_variance: float = 1.0,
    ):
        normed = one_of("regressor", "norm", norm, ("layer", "none")) == "layer"
        self.activation = _activation("regressor", activation)
        self.inputs = inputs
        self.tables = nnx.List(
            [nnx.Param(jax.random.normal(rngs.params(), (number, embedding))) for number in cardinalities]
        )
        sizes = [inputs + len(cardinalities) * embedding, *[width] * (depth - 1)]
        self.layers = nnx.List([Linear(a, b, weight_variance, 0.0, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.norms = nnx.List([LayerNorm(width) for _ in sizes[1:] if normed])
        self.dropout = Dropout(dropout, rngs=rngs)
        self.readout = Linear(sizes[-1], outputs, readout_variance, 0.0, rngs=rngs)

    def __call__(self, x: Any) -> jax.Array:
        h = self.features(x)
        for i, layer in enumerate(self.layers):
            h = layer(h)
            h = self.norms[i](h) if self.norms else h
            h = self.dropout(self.activation(h))
        return self.readout(h)

    def features(self, x: Any) -> jax.Array:
        """Numbers and embeddings side by side."""
        columns = len(self.tables)
        numeric, categorical = (x["numeric"], x["categorical"]) if isinstance(x, dict) else (x, None)
        found = 0 if categorical is None else categorical.shape[1]
        if numeric.shape[1] != self.inputs or found != columns:
            raise _checks.fail(
                "regressor",
                f"data have {numeric.shape[1]} numeric and {found} categorical columns",
                f'give {{"numeric": (N, {self.inputs}), "categorical": (N, {columns})}}',
            )
        if categorical is None:
            return numeric
        return jnp.concatenate([numeric, *(t[...][categorical[:, k]] for k, t in enumerate(self.tables))], axis=1)


_activation = activation
