"""Residual perceptrons with a skip over one or two layers."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from fisher_jax import _checks
from fisher_jax.models.blocks import Linear, activation
from fisher_jax.models.mlp import readout
from fisher_jax.models.streaming import Piece


class ResMLP(nnx.Module):
    """Fully connected residual network, without biases.

    - skip 2: `h ← h + a W₂ φ(β W₁ h)`, `h⁰ = x`, `W₁ ~ N(0, s₁/D)`, `W₂ ~ N(0, s₂/D)`; the width is that of the input.
    - skip 1, form "pre": `h ← h + a W φ(β h)`, `h⁰ = W_in x`.
    - skip 1, form "post": `h ← h + a φ(β W h)`, `h⁰ = x`; the width is that of the input.
    - skip 1, form "linear": `h ← h + a β W h`, `h⁰ = W_in x`.

    Output `W_out h^L`, `W_out ~ N(0, readout_variance / width)`.

    Args:
        depth: number of blocks L.
        width: of the stream, for the forms with `W_in`; the input's otherwise.
        skip: layers per branch, 1 or 2.
        form: for skip 1: "pre", "post" or "linear".
        variances: (s₁, s₂); s₁ = 2 (He) and s₂ = 1 (Xavier) are those of Furusho and Ikeda. Skip 1 uses s₁.
        input_variance: of `W_in`. readout_variance: of `W_out`.
        scale: a, of the branch. gain: β, inside the branch.

    Reference: Furusho and Ikeda, ACML 2019 (PMLR 101), Eq. 2 and 6; He et al., CVPR 2016.
    """

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        rngs: nnx.Rngs,
        depth: int = 4,
        width: int | None = None,
        skip: int = 2,
        form: str = "pre",
        activation: str = "relu",
        variances: tuple[float, float] = (2.0, 1.0),
        input_variance: float = 1.0,
        readout_variance: float = 1.0,
        scale: float = 1.0,
        gain: float = 1.0,
    ):
        width, embedded, self.block = _block(inputs, width, skip, form, activation, scale, gain)
        self.embed = Linear(inputs, width, input_variance, rngs=rngs) if embedded else None
        self.blocks = nnx.List(
            [nnx.List([Linear(width, width, s, rngs=rngs) for s in variances[:skip]]) for _ in range(depth)]
        )
        self.readout = Linear(width, outputs, readout_variance, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x if self.embed is None else self.embed(x)
        for layers in self.blocks:
            h = self.block(layers, h)
        return self.readout(h)

    @staticmethod
    def pieces(
        *,
        inputs: int,
        outputs: int,
        depth: int,
        variances: tuple[float, float],
        input_variance: float,
        readout_variance: float,
        skip: int,
        **options: Any,
    ) -> list[Piece]:
        """Embedding, blocks and readout one by one, for a network that is streamed."""
        width, embedded, block = _block(inputs, skip=skip, **options)
        layers = tuple((width, width, s, None) for s in variances[:skip])
        first = [Piece("embed", (inputs, width, input_variance, None), readout)] if embedded else []
        blocks = [Piece(f"blocks/{i}", layers, block) for i in range(depth)]
        return [*first, *blocks, Piece("readout", (width, outputs, readout_variance, None), readout)]


@dataclasses.dataclass(frozen=True)
class Block:
    """`h + a · branch(h)`."""

    skip: int
    form: str
    activation: Any
    scale: float
    gain: float

    def __call__(self, layers: Any, h: jax.Array) -> jax.Array:
        return h + self.scale * self.branch(layers, h)

    def branch(self, layers: Any, h: jax.Array) -> jax.Array:
        if self.skip == 2:
            first, second = layers
            return second(self.activation(self.gain * first(h)))
        if self.form == "post":
            return self.activation(self.gain * layers[0](h))
        return layers[0](self.activation(self.gain * h))


def _block(
    inputs: int, width: int | None, skip: int, form: str, activation: str, scale: float, gain: float
) -> tuple[int, bool, Block]:
    """(width, is there an embedding, the block) of the options."""
    if skip not in (1, 2):
        raise _checks.fail("resmlp", f"skip={skip!r} is not 1 or 2", "choose skip=1 or skip=2")
    if form not in ("pre", "post", "linear"):
        raise _checks.fail("resmlp", f"form={form!r} is unknown", "choose pre, post or linear")
    embedded = skip == 1 and form != "post"
    if not embedded and width not in (None, inputs):
        raise _checks.fail(
            "resmlp", f"width={width} differs from the {inputs} inputs", "leave width out: the stream starts as x itself"
        )
    width = inputs if width is None else width
    act = _activation("resmlp", "linear" if skip == 1 and form == "linear" else activation)
    return width, embedded, Block(skip, form, act, scale, gain)


_activation = activation
