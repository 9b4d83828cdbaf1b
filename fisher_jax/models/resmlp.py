"""Residual perceptrons with a skip over one or two layers."""

import math
from typing import Any

import jax
from flax import nnx

from fisher_jax import _checks
from fisher_jax.models import blocks
from fisher_jax.models.blocks import Linear, one_of, output_layer
from fisher_jax.models.residual import Block, Branch
from fisher_jax.models.scan import Scanned
from fisher_jax.models.streaming import Piece, plain


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
        skip: layers per branch, 1 or 2. form: for skip 1: "pre", "post" or "linear".
        activation: relu, tanh, erf, gelu, gelu-tanh or linear.
        variances: (s₁, s₂); s₁ = 2 (He) and s₂ = 1 (Xavier) are those of Furusho and Ikeda. Skip 1 uses s₁.
        input_variance: of `W_in`. readout_variance: of `W_out`.
        scale: a, of the branch; "depth" for 1/√L. gain: β, inside the branch.
        weights: "gaussian" or "orthogonal". parametrization: "standard" or "ntk"; see `blocks.Linear`.
        norm: before the activation: "population" divides by `√(l + 2)` in block l = 0, 1, ..., the deviation over inputs
            and weights at skip 2; "batch": real batch normalization, without learned scale and shift; "none".
        residual: "plain"; "fixup": s₁/L and s₂ = 0, for skip 2; "fixup-scalars": with learned shifts and a multiplier;
            "skipinit": a learned number, zero at the start, times the branch.
        dropout: rate on the activations. dropout_form: "inverted" or "raw".
        survival: probability that a branch is kept (stochastic depth). survival_schedule: "uniform", or "linear", from 1
            down to `survival`.
        output_norm: "mean": outputs minus their mean over the batch; "batch": normalized over it; "none".
        scanned: keep the blocks stacked and loop over them: compiles in the time of one block.

    Reference: Furusho and Ikeda, ACML 2019 (PMLR 101), Eq. 2, 3 and 6; He et al., CVPR 2016; Zhang et al., ICLR 2019
    (Fixup, whose classifier also starts at zero: readout_variance=0); De and Smith, NeurIPS 2020; Huang et al., ECCV 2016.
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
        scale: float | str = 1.0,
        gain: float = 1.0,
        weights: str = "gaussian",
        parametrization: str = "standard",
        norm: str = "none",
        residual: str = "plain",
        dropout: float = 0.0,
        dropout_form: str = "inverted",
        survival: float = 1.0,
        survival_schedule: str = "uniform",
        output_norm: str = "none",
        scanned: bool = False,
    ):
        kind = (None, weights, parametrization)
        common = (variances, norm, residual, dropout, dropout_form, weights, parametrization)
        width, embedded, branch, gains = _design(inputs, width, depth, skip, form, activation, scale, gain, *common)
        survive = blocks.survival("resmlp", survival, survival_schedule, depth)
        self.embed = Linear(inputs, width, input_variance, *kind, rngs=rngs) if embedded else None
        made = [Block(width, branch, g, p, rngs=rngs) for g, p in zip(gains, survive, strict=True)]
        self.blocks = Scanned(made) if scanned else nnx.List(made)
        self.readout = Linear(width, outputs, readout_variance, *kind, rngs=rngs)
        self.output_norm = output_layer("resmlp", output_norm, outputs, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x if self.embed is None else self.embed(x)
        if isinstance(self.blocks, Scanned):
            h = self.blocks(h)
        else:
            for block in self.blocks:
                h = block(h)
        return self.output_norm(self.readout(h))

    @staticmethod
    def pieces(*, inputs: int, outputs: int, input_variance: float, readout_variance: float, **options: Any) -> list[Piece]:
        """Embedding, blocks and readout one by one, for a network that is streamed."""
        # Population norm is a constant of each block, which the stage brings along.
        norm = options["norm"] if options["norm"] == "population" else "none"
        options = plain("resmlp", ResMLP, options | ({"norm": "none"} if norm == "population" else {}))
        options |= {"norm": norm, "residual": "plain", "dropout": 0.0, "dropout_form": "inverted"}
        kind = (None, options["weights"], options["parametrization"])
        width, embedded, branch, gains = _design(inputs, **options)
        first = [Piece("embed", Linear, (inputs, width, input_variance, *kind))] if embedded else []
        middle = [Piece(f"blocks/{i}", Block, (width, branch, g)) for i, g in enumerate(gains)]
        return [*first, *middle, Piece("readout", Linear, (width, outputs, readout_variance, *kind))]


def _design(
    inputs: int,
    width: int | None,
    depth: int,
    skip: int,
    form: str,
    activation: str,
    scale: float | str,
    gain: float,
    variances: tuple[float, float],
    norm: str,
    residual: str,
    dropout: float,
    dropout_form: str,
    weights: str,
    parametrization: str,
) -> tuple[int, bool, Branch, list[float]]:
    """(width, is there an embedding, what the branches share, gain of every block) of the options."""
    if skip not in (1, 2):
        raise _checks.fail("resmlp", f"skip={skip!r} is not 1 or 2", "choose skip=1 or skip=2")
    one_of("resmlp", "form", form, ("pre", "post", "linear"))
    one_of("resmlp", "norm", norm, ("none", "population", "batch"))
    one_of("resmlp", "residual", residual, ("plain", "fixup", "fixup-scalars", "skipinit"))
    embedded = skip == 1 and form != "post"
    if not embedded and width not in (None, inputs):
        raise _checks.fail(
            "resmlp", f"width={width} differs from the {inputs} inputs", "leave width out: the stream starts as x itself"
        )
    fixup = residual.startswith("fixup")
    if skip == 1 and (fixup or norm == "population"):
        chosen = f"residual={residual!r}" if fixup else "norm='population'"
        raise _checks.fail("resmlp", f"{chosen} with skip=1", "choose skip=2: it is defined for two layers per branch")
    if isinstance(scale, str):
        one_of("resmlp", "scale", scale, ("depth",))
        scale = 1 / math.sqrt(depth)
    activation = "linear" if skip == 1 and form == "linear" else activation
    variances = (variances[0] / depth, 0.0) if fixup else tuple(variances)  # type: ignore[assignment]
    gains = [gain / math.sqrt(block + 2) if norm == "population" else gain for block in range(depth)]
    norm = "none" if norm == "population" else norm
    common = (norm, residual, dropout, dropout_form, weights, parametrization, scale)
    return inputs if width is None else width, embedded, Branch(skip, form, activation, variances, *common), gains
