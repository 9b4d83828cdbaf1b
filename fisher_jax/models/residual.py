"""The residual block: a skip over one or two layers, and what theory puts into its branch."""

import dataclasses

import jax
from flax import nnx

from fisher_jax.models import blocks
from fisher_jax.models.blocks import Dropout, Linear, Scalar, StochasticDepth, unit_norm


@dataclasses.dataclass(frozen=True)
class Branch:
    """What the branches of all blocks have in common; see `ResMLP`."""

    skip: int
    form: str
    activation: str
    variances: tuple[float, float]
    norm: str
    residual: str
    dropout: float
    dropout_form: str
    weights: str
    parametrization: str
    scale: float


class Block(nnx.Module):
    """`h + a · branch(h)`; the branch is `W₂ φ(norm(W₁ h))`, `W φ(norm(h))` or `φ(norm(W h))`."""

    def __init__(self, width: int, branch: Branch, gain: float = 1.0, survive: float = 1.0, *, rngs: nnx.Rngs):
        kind = (None, branch.weights, branch.parametrization)
        self.first = Linear(width, width, branch.variances[0], *kind, rngs=rngs)
        self.second = Linear(width, width, branch.variances[1], *kind, rngs=rngs) if branch.skip == 2 else None
        self.activation = blocks.activation("resmlp", branch.activation)
        self.post, self.scale = branch.form == "post", branch.scale
        self.gain = None if gain == 1.0 else blocks.constant(gain)
        self.norm = unit_norm("resmlp", branch.norm, width, rngs)
        self.dropout = Dropout(branch.dropout, branch.dropout_form, rngs=rngs)
        self.survive = None if survive == 1.0 else StochasticDepth(survive, rngs=rngs)
        # SkipInit learns the branch's size; Fixup with scalars also a shift before and after each of its parts.
        scalars = branch.residual == "fixup-scalars"
        self.shifts = nnx.List([Scalar(0.0) for _ in range(4 if scalars else 0)])
        learned = {"fixup-scalars": 1.0, "skipinit": 0.0}.get(branch.residual)
        self.size = None if learned is None else Scalar(learned, multiply=True)

    def __call__(self, h: jax.Array) -> jax.Array:
        branch = self.branch(h)
        branch = branch if self.size is None else self.size(branch)
        branch = self.shifts[3](branch) if self.shifts else branch
        branch = branch if self.survive is None else self.survive(branch)
        return h + (branch if self.scale == 1.0 else self.scale * branch)

    def branch(self, h: jax.Array) -> jax.Array:
        if self.second is not None:
            shifts = self.shifts or [blocks.identity] * 3
            return self.second(shifts[2](self.act(shifts[1](self.first(shifts[0](h))))))
        return self.act(self.first(h)) if self.post else self.first(self.act(h))

    def act(self, u: jax.Array) -> jax.Array:
        u = u if self.gain is None else self.gain[...].astype(u.dtype) * u
        return self.dropout(self.activation(self.norm(u)))
