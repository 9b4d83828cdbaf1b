"""The architectures that `compare` knows by name: one row each."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fisher_jax import _checks


@dataclasses.dataclass(frozen=True)
class Variant:
    """A family of networks over depths, and which of their Fisher matrices is meant.

    Args:
        title: for tables and legends. model, options: of `fj.models.build`; depth, and what `sizes` says, are added.
        sizes: options that follow the width, as shares of it.
        matrix: masks, draws and bn, as in `ensemble`.
        law: what theory says of the trace and of the mean eigenvalue as L → ∞, in words.
    """

    title: str
    model: str
    law: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    matrix: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def at(self, depth: int, width: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """(options for `fj.models.build`, matrix) of one network.

        An MLP of one layer has no hidden units to mask or to normalize.
        """
        bare = self.model == "mlp" and depth == 1
        chosen = {name: value for name, value in self.options.items() if not (bare and name in ("norm", "dropout"))}
        sizes = {name: max(1, int(share * width)) for name, share in self.sizes.items()}
        matrix = {} if len(chosen) < len(self.options) else dict(self.matrix)
        return {"depth": depth} | sizes | chosen, matrix


# Blocks of one shape are scanned: one program of the size of a block, whatever the depth.
_SCAN = {"scanned": True}
_MLP = {"width": 1.0}
_AVERAGE = {"masks": "average", "draws": 8}

VARIANTS: dict[str, Variant] = {
    "mlp": Variant("MLP", "mlp", "trace ~ L, m flat", sizes=_MLP),
    "skip1": Variant("skip over one layer", "resmlp", "trace ~ 2^L L, m exponential", _SCAN | {"skip": 1}, _MLP),
    "skip2": Variant("skip over two layers", "resmlp", "trace ~ 2^L L, m exponential", _SCAN),
    "concat": Variant("concatenating skip", "densemlp", "trace ~ L, m ~ 1/L", sizes={"growth": 0.25}),
    "bn": Variant(
        "skip over two, population batch norm", "resmlp", "trace ~ L log L, m ~ log L", _SCAN | {"norm": "population"}
    ),
    "fixup": Variant("Fixup", "resmlp", "trace flat, m ~ 1/L", _SCAN | {"residual": "fixup"}),
    "dropout": Variant(
        "MLP, dropout 0.2, average over masks", "mlp", "trace ~ 0.8^-L L, m exponential", {"dropout": 0.2}, _MLP, _AVERAGE
    ),
    "stochastic-depth": Variant(
        "skip over two, survival 0.8, average over masks",
        "resmlp",
        "trace ~ 1.8^L L, m exponential",
        _SCAN | {"survival": 0.8},
        matrix=_AVERAGE,
    ),
    "skip1-post": Variant(
        "skip over one layer, activation last",
        "resmlp",
        "trace ~ 2.904^L, m exponential",
        _SCAN | {"skip": 1, "form": "post"},
    ),
    "skip1-linear": Variant(
        "skip over one linear layer",
        "resmlp",
        "trace ~ 2^L L, m exponential",
        _SCAN | {"skip": 1, "form": "linear", "variances": (1.0, 1.0)},
        _MLP,
    ),
    "bn-batch": Variant(
        "skip over two, batch norm (frozen)",
        "resmlp",
        "trace ~ L^1.47, m ~ L^0.47",
        _SCAN | {"norm": "batch"},
        matrix={"bn": "frozen"},
    ),
    "mlp-bn": Variant(
        "MLP, batch norm (frozen)", "mlp", "trace ~ 1.467^L, m exponential", {"norm": "batch"}, _MLP, {"bn": "frozen"}
    ),
    "skipinit": Variant("SkipInit", "resmlp", "trace ~ D + L, m ~ 1/L", _SCAN | {"residual": "skipinit"}),
    "scaled": Variant("skip over two, branches / √L", "resmlp", "trace bounded, m ~ 1/L", _SCAN | {"scale": "depth"}),
    "dropout-mean": Variant("MLP, dropout 0.2, mean network", "mlp", "trace ~ L, m flat", {"dropout": 0.2}, _MLP),
    "stochastic-depth-one": Variant(
        "skip over two, survival 0.8, one subnetwork",
        "resmlp",
        "trace ~ 1.8^L L, m exponential",
        _SCAN | {"survival": 0.8},
        matrix={"masks": "one"},
    ),
    "stochastic-depth-mean": Variant(
        "skip over two, survival 0.8, mean network", "resmlp", "trace ~ 1.64^L L, m exponential", _SCAN | {"survival": 0.8}
    ),
    "mlp-tanh": Variant(
        "MLP, tanh near the edge of chaos",
        "mlp",
        "trace ~ L, m flat",
        {"activation": "tanh", "weight_variance": 3.0, "bias_variance": 0.64},
        _MLP,
    ),
    "mlp-orthogonal": Variant("MLP, orthogonal weights", "mlp", "trace ~ L, m flat", {"weights": "orthogonal"}, _MLP),
    "mean-subtracted": Variant(
        "MLP, outputs minus their batch mean", "mlp", "no outliers", {"output_norm": "mean"}, _MLP, {"bn": "train"}
    ),
}
DEFAULT = ("mlp", "skip1", "skip2", "concat", "bn", "fixup", "dropout", "stochastic-depth")


def variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise _checks.fail("compare", f"variants has {name!r}, which is unknown", f"choose among {', '.join(VARIANTS)}")
    return VARIANTS[name]
