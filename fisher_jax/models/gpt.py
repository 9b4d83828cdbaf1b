"""GPT-2: a causal transformer that predicts the next token."""

import jax
from flax import nnx

from fisher_jax import _checks
from fisher_jax.models.attention import DEVIATION, LayerNorm, blocks, linear
from fisher_jax.models.blocks import Dropout

WEBTEXT = {"inputs": 1024, "outputs": 50257}
# Parameters of the four published: 124,439,808; 354,823,168; 774,030,080; 1,557,611,200. The first two are ours.
PRESETS = {
    "gpt2-tiny": {"inputs": 32, "outputs": 256, "depth": 2, "width": 64, "heads": 2},
    "gpt2-mini": {"inputs": 128, "outputs": 256, "depth": 4, "width": 128, "heads": 4},
    "gpt2": WEBTEXT | {"depth": 12, "width": 768, "heads": 12},
    "gpt2-medium": WEBTEXT | {"depth": 24, "width": 1024, "heads": 16},
    "gpt2-large": WEBTEXT | {"depth": 36, "width": 1280, "heads": 20},
    "gpt2-xl": WEBTEXT | {"depth": 48, "width": 1600, "heads": 25},
}


class GPT(nnx.Module):
    """Tokens and learned positions, causal blocks, norm, logits of the next token: `(N, T)` integers -> `(N, T, outputs)`.

    The table that reads tokens in scores them out, `logits = norm(h) · tokensᵀ`, unless `tied` is False. Weights are
    `N(0, 0.02²)`, positions `N(0, 0.01²)`, and the last map of each branch has 1/(2 depth) of the variance, as in the paper.
    The defaults are the function of the published weights, which `load_weights(..., layout="gpt2")` reads: their GELU is the
    tanh approximation, within 5e-4 of the exact one. Weights do not tell the number of heads: the published have width / 64.

    Args:
        inputs: context, the longest sequence; shorter ones are taken too. outputs: vocabulary.
        depth: number of blocks. width: of the stream. heads: of attention. expansion: of the perceptron.
        tied: one table for input and readout.
        norm: "pre" or "post". skip: False leaves out the skip connections.
        activation: of the perceptron. dropout: rate, of attention weights, branches and the embedding.
        survival: of the last block's branches. survival_schedule: "linear" in depth or "uniform".
        weight_variance: if given, weights of the blocks are `N(0, weight_variance / fan_in)`, also before the factor above.

    Reference: Radford et al., Language models are unsupervised multitask learners, OpenAI 2019.
    """

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        rngs: nnx.Rngs,
        depth: int = 2,
        width: int = 64,
        heads: int = 2,
        expansion: int = 4,
        tied: bool = True,
        norm: str = "pre",
        skip: bool = True,
        activation: str = "gelu-tanh",
        dropout: float = 0.0,
        survival: float = 1.0,
        survival_schedule: str = "linear",
        weight_variance: float | None = None,
    ):
        self.tokens = nnx.Param(DEVIATION * jax.random.normal(rngs.params(), (outputs, width)))
        self.positions = nnx.Param(DEVIATION / 2 * jax.random.normal(rngs.params(), (inputs, width)))
        self.dropout = Dropout(dropout, rngs=rngs)
        self.blocks = blocks(
            "gpt",
            depth=depth,
            width=width,
            heads=heads,
            expansion=expansion,
            causal=True,
            norm=norm,
            skip=skip,
            activation=activation,
            dropout=dropout,
            survival_last=survival,
            survival_schedule=survival_schedule,
            weight_variance=weight_variance,
            factor=1 / (2 * depth),
            rngs=rngs,
        )
        self.norm = LayerNorm(width) if norm == "pre" else None
        self.readout = None if tied else linear(width, outputs, weight_variance, bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        length, context = x.shape[1], self.positions[...].shape[0]
        if length > context:
            raise _checks.fail("gpt", f"a sequence of {length} tokens exceeds the context {context}", "shorten the sequence")
        h = self.dropout(self.tokens[...][x] + self.positions[...][None, :length])
        for block in self.blocks:
            h = block(h)
        h = h if self.norm is None else self.norm(h)
        return h @ self.tokens[...].T if self.readout is None else self.readout(h)
