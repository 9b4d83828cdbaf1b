"""Residual perceptrons with a skip over one or two layers."""

import jax
from flax import nnx

from fisher_jax import _checks
from fisher_jax.models.blocks import Linear, activation


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
        self.skip, self.form, self.scale, self.gain = skip, form, scale, gain
        self.activation = _activation("resmlp", "linear" if skip == 1 and form == "linear" else activation)
        self.embed = Linear(inputs, width, input_variance, rngs=rngs) if embedded else None
        self.blocks = nnx.List(
            [nnx.List([Linear(width, width, s, rngs=rngs) for s in variances[:skip]]) for _ in range(depth)]
        )
        self.readout = Linear(width, outputs, readout_variance, rngs=rngs)

    def branch(self, block: nnx.List, h: jax.Array) -> jax.Array:
        if self.skip == 2:
            first, second = block
            return second(self.activation(self.gain * first(h)))
        if self.form == "post":
            return self.activation(self.gain * block[0](h))
        return block[0](self.activation(self.gain * h))

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x if self.embed is None else self.embed(x)
        for block in self.blocks:
            h = h + self.scale * self.branch(block, h)
        return self.readout(h)


_activation = activation
