"""A model's name and options as the recursion of its architecture."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import _checks
from fisher_jax.theory.concatenation import concatenating
from fisher_jax.theory.duals import dual
from fisher_jax.theory.mlp import mlp
from fisher_jax.theory.recursion import Gate, Tangent
from fisher_jax.theory.residual import skip_one, skip_one_post, skip_two

Array = jax.Array

# The options of `fj.models.build`, with its defaults; a test holds the two together.
COMMON = {
    "activation": "relu",
    "weights": "gaussian",
    "parametrization": "standard",
    "norm": "none",
    "dropout": 0.0,
    "dropout_form": "inverted",
    "output_norm": "none",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": COMMON | {"depth": 3, "width": 256, "weight_variance": 2.0, "bias_variance": None, "readout_variance": None},
    "resmlp": COMMON
    | {
        "depth": 4,
        "width": None,
        "skip": 2,
        "form": "pre",
        "variances": (2.0, 1.0),
        "input_variance": 1.0,
        "readout_variance": 1.0,
        "scale": 1.0,
        "gain": 1.0,
        "residual": "plain",
        "survival": 1.0,
        "survival_schedule": "uniform",
        "scanned": False,
    },
    "densemlp": COMMON | {"depth": 4, "growth": 16, "variance": 2.0, "readout_variance": 1.0},
}
CHOICES = {
    "weights": ("gaussian", "orthogonal"),
    "parametrization": ("standard", "ntk"),
    "norm": ("none", "population", "batch"),
    "dropout_form": ("inverted", "raw"),
    "output_norm": ("none", "mean", "batch"),
    "skip": (1, 2),
    "form": ("pre", "post", "linear"),
    "residual": ("plain", "fixup", "fixup-scalars", "skipinit"),
    "survival_schedule": ("uniform", "linear"),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A model's options, complete and checked."""

    name: str
    inputs: int
    outputs: int
    options: dict[str, Any]
    means: Any = None  # of each sample over its features `(N,)`, where the data are known

    def __getattr__(self, option: str) -> Any:
        try:
            return self.options[option]
        except KeyError:
            raise AttributeError(option) from None

    @property
    def stream(self) -> int:
        """Units whose number must be large."""
        if self.name == "mlp":
            return self.width if self.depth > 1 else self.inputs
        return self.inputs if self.name == "densemlp" or self.options["width"] is None else self.width

    @property
    def kind(self) -> str:
        if self.name != "resmlp":
            return self.name
        return "skip two" if self.skip == 2 else f"skip one, {self.form}"

    @property
    def survivals(self) -> np.ndarray:
        """Survival probabilities of the blocks, 1 without stochastic depth."""
        last, block = self.options.get("survival", 1.0), np.arange(1, self.depth + 1)
        linear = self.options.get("survival_schedule") == "linear"
        return 1 - block / self.depth * (1 - last) if linear else np.full(self.depth, float(last))

    @property
    def stochastic(self) -> bool:
        """Has it stochastic depth?"""
        return self.options.get("survival", 1.0) != 1.0

    @property
    def size(self) -> int:
        """Number of parameters P."""
        d, C, L = self.inputs, self.outputs, self.depth
        if self.name == "mlp":
            sizes = [d, *[self.width] * (L - 1), C]
            biases = 0 if self.bias_variance is None else sum(sizes[1:])
            return sum(a * b for a, b in itertools.pairwise(sizes)) + biases
        if self.name == "densemlp":
            return sum((d + block * self.growth) * self.growth for block in range(L)) + (d + L * self.growth) * C
        D = self.stream
        embedding = d * D if self.skip == 1 and self.form != "post" else 0
        return embedding + L * (self.skip * D * D + {"fixup-scalars": 5, "skipinit": 1}.get(self.residual, 0)) + D * C

    def gate(self, second: Any = 1.0, first: float = 1.0, norm: Any = None) -> Gate:
        linear = self.name == "resmlp" and self.skip == 1 and self.form == "linear"
        return Gate(dual("linear" if linear else self.activation), second, first, norm)

    def tangent(self, K: Array, gate: Gate, branch: Any = 1.0, every: bool = False, rows: Any = None) -> Tangent:
        """The tangent kernel for inputs of kernel K.

        `branch`: factors of the branches, `(L,)` or `(L, N)`. `rows`: which sample each row of K is of, if not one each.
        """
        ntk = self.parametrization == "ntk"
        if self.name == "mlp":
            return mlp(
                K,
                [self.inputs] + [self.width] * (self.depth - 1),
                gate,
                weight_variance=self.weight_variance,
                bias_variance=self.bias_variance,
                readout_variance=self.readout_variance,
                ntk=ntk,
            )
        if self.name == "densemlp":
            settings = {"variance": self.variance, "readout_variance": self.readout_variance, "ntk": ntk}
            return concatenating(K, self.inputs, self.growth, self.depth, gate, **settings)
        scale = 1 / math.sqrt(self.depth) if self.scale == "depth" else self.scale
        blocks = np.arange(self.depth)
        common = {
            "readout_variance": self.readout_variance,
            "scale": 0.0 * scale if self.residual == "skipinit" else scale * branch,
            "gain": self.gain / np.sqrt(blocks + 2) if self.norm == "population" else self.gain,
            "learned_size": scale * branch if self.residual == "skipinit" else 0.0,
            "ntk": ntk,
            "every": every,
        }
        s1, s2 = self.variances
        if self.skip == 2:
            fixup = self.residual.startswith("fixup")
            common |= {"variances": (s1 / self.depth, 0.0) if fixup else (s1, s2)}
            common |= {"learned_shift": self.residual == "fixup-scalars"}
            return skip_two(K, self.stream, self.depth, gate, **common)
        common |= {"variance": s1}
        if self.form == "post":
            mean = 0.0 if self.means is None else self.means if rows is None else self.means[rows]
            return skip_one_post(K, self.stream, self.depth, gate, mean=mean, **common)
        return skip_one(K, self.inputs, self.stream, self.depth, gate, input_variance=self.input_variance, **common)

    def randomness(self, tangent: Tangent) -> float:
        """Layers' worth of fresh randomness on the way: each counts by the share of its output that it makes."""
        if self.name == "mlp":
            return self.depth if self.depth > 1 else 0.0
        if self.name == "densemlp":
            return 1.0 + sum(self.growth / (self.inputs + block * self.growth) for block in range(1, self.depth + 1))
        return 1.0 + float(jnp.max(tangent.fresh))


def _check_number(where: str, option: str, value: Any, usual: Any) -> None:
    """Refuse what is no number where one is meant; a word or a wrong sign would end in an error far from here."""
    if (value is None and usual is None) or (option == "scale" and value == "depth"):
        return
    variance = "variance" in option
    if not variance and not isinstance(usual, float):
        return
    sought = np.shape(usual) if option == "variances" else ()
    try:
        numbers = np.asarray(value, float)
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if numbers.shape != sought or not np.all(np.isfinite(numbers)) or (variance and np.any(numbers < 0)):
        what = "two numbers" if sought else "a number"
        raise _checks.fail(where, f"{option}={value!r} is not {what}", f"give {what}{' >= 0' if variance else ''}")


def network(name: str, inputs: int, outputs: int, chosen: dict[str, Any]) -> Network:
    if name not in OPTIONS:
        raise _checks.fail("theory.predict", f"name={name!r} is not covered", f"theory covers {', '.join(OPTIONS)}")
    known, where = OPTIONS[name], f"theory of {name}"
    for option, value in chosen.items():
        if option not in known:
            raise _checks.fail(where, f"option {option}={value!r} is not covered", f"it covers {', '.join(known)}")
        if option in CHOICES and value not in CHOICES[option]:
            raise _checks.fail(where, f"{option}={value!r} is unknown", f"choose among {CHOICES[option]}")
        _check_number(where, option, value, known[option])
    net = Network(name, inputs, _checks.integer(where, "outputs", outputs, 1), known | chosen)
    _checks.integer(where, "depth", net.depth, 1)
    width = net.options.get("width")
    if width is not None:
        _checks.integer(where, "width", width, 1)
    if name == "resmlp" and (net.skip == 2 or net.form == "post") and width not in (None, inputs):
        raise _checks.fail(where, f"width={width} differs from the {inputs} inputs", "leave width out")
    refused = [
        (net.norm == "population" and (name != "resmlp" or net.skip == 1), "norm='population'", "choose skip=2 of resmlp"),
        (
            name == "resmlp" and net.skip == 1 and net.residual.startswith("fixup"),
            f"residual={net.options.get('residual')!r} with skip=1",
            "choose skip=2",
        ),
        (
            name == "resmlp" and net.norm == "batch" and net.skip == 1 and net.form == "post",
            "norm='batch' with form='post'",
            'choose skip=2 or form="pre"',
        ),
        (not 0 <= net.dropout < 1, f"dropout={net.dropout!r}", "give a rate between 0 and 1, below 1"),
        (not 0 <= net.options.get("survival", 1.0) <= 1, "survival", "give a probability"),
    ]
    for bad, what, remedy in refused:
        if bad:
            raise _checks.fail(where, f"{what} is not covered", remedy)
    return net
