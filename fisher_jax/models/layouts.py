"""How weights made elsewhere are named and laid out, and the published families that our models have a place for."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from fisher_jax import _checks

FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a parameter is in a file: an array's name, and what is done to the array, in this order.

    Args:
        name: of the array in the file.
        part: (i, n): the i-th, i = 0, ..., n − 1, of n equal parts along `axis`, such as the queries in a matrix of queries,
            keys and values.
        shape: seen as this shape, one side of which may be −1.
        transpose: the order of axes: (1, 0) for the weight of a PyTorch Linear, (2, 3, 1, 0) for that of a Conv2d.
        reshape: seen as the shape that the model has, such as (width, heads, features) for (width, heads · features).
    """

    name: str
    part: tuple[int, int] | None = None
    axis: int = -1
    shape: tuple[int, ...] | None = None
    transpose: tuple[int, ...] | None = None
    reshape: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise _checks.fail("Source", f"name={self.name!r} is no name", "give that of an array in the file")
        if self.part is not None and not 0 <= self.part[0] < self.part[1]:
            raise _checks.fail("Source", f"part={self.part} of {self.name}", "give (i, n) with 0 <= i < n")

    def read(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The array as the model has it, a view where possible; ValueError where its shape does not allow it."""
        if self.part is not None:
            array = np.split(array, self.part[1], self.axis)[self.part[0]]
        if self.shape is not None:
            array = array.reshape(self.shape)
        if self.transpose is not None:
            array = array.transpose(self.transpose)
        return array.reshape(shape) if self.reshape else array


Names = Mapping[str, str | Source] | Callable[[str], str | Source | None]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A family of weights.

    Args:
        names: from a model to its map of names; refuses models that compute something else.
        ignore: globs of what is in the files without being weights.
        prefix: stands before the names in some files and is left out.
    """

    names: Callable[[nnx.Module], Mapping[str, str | Source]]
    ignore: tuple[str, ...] = ()
    prefix: str = ""


def sources(paths: Iterable[str], maps: Iterable[Names | None]) -> dict[str, Source]:
    """Where each parameter is, by the first of `maps` that knows; else under its own path.

    A map knows a path if a pattern matches all of it, the first if several do. A field of the pattern such as {i} stands for
    one step of the path and is filled in on the other side.
    """
    finders = [names if callable(names) else _first_match(names) for names in maps if names is not None]
    found = {}
    for path in paths:
        given = (source for find in finders if (source := find(path)) is not None)
        source = next(given, path)
        found[path] = source if isinstance(source, Source) else Source(source)
    return found


def _first_match(names: Mapping[str, str | Source]) -> Callable[[str], Source | None]:
    patterns = []
    for pattern, source in names.items():
        source = source if isinstance(source, Source) else Source(source)
        fields = set(FIELD.findall(pattern))
        if unknown := set(FIELD.findall(source.name)) - fields:
            raise _checks.fail(
                "checkpoint", f"names[{pattern!r}]={source.name!r} has {{{min(unknown)}}}", "use fields of the pattern only"
            )
        patterns.append((_expression(pattern), source))

    def find(path: str) -> Source | None:
        for pattern, source in patterns:
            if match := pattern.fullmatch(path):
                return dataclasses.replace(source, name=FIELD.sub(lambda field, found=match: found[field[1]], source.name))
        return None

    return find


def _expression(pattern: str) -> re.Pattern[str]:
    """`blocks/{i}/kernel` as a regular expression; a field that occurs again stands for the same text."""
    text, seen, end = "", set(), 0
    for field in FIELD.finditer(pattern):
        name = field[1]
        text += re.escape(pattern[end : field.start()]) + (f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)")
        seen, end = seen | {name}, field.end()
    return re.compile(text + re.escape(pattern[end:]))


def _gpt2(model: nnx.Module) -> Mapping[str, str | Source]:
    """Those of Hugging Face, whose Conv1D multiplies from the right as our linear maps do.

    Reference: Radford et al., OpenAI 2019; `GPT2Model` of the transformers library.
    """
    from fisher_jax.models.blocks import ACTIVATIONS
    from fisher_jax.models.gpt import GPT

    gpt = _of("gpt2", model, GPT, "gpt")
    for block in gpt.blocks:
        if block.perceptron.activation is not ACTIVATIONS["gelu-tanh"]:
            raise _checks.fail(
                "checkpoint", "layout='gpt2' for another activation than gelu-tanh", "build with activation='gelu-tanh'"
            )
        if not (block.skip and block.pre):
            raise _checks.fail("checkpoint", "layout='gpt2' without pre-norm or skips", "build with norm='pre', skip=True")
    layers = {
        "blocks/{i}/attention/qkv": "h.{i}.attn.c_attn",
        "blocks/{i}/attention/out": "h.{i}.attn.c_proj",
        "blocks/{i}/perceptron/up": "h.{i}.mlp.c_fc",
        "blocks/{i}/perceptron/down": "h.{i}.mlp.c_proj",
    }
    norms = {"blocks/{i}/norms/0": "h.{i}.ln_1", "blocks/{i}/norms/1": "h.{i}.ln_2", "norm": "ln_f"}
    names: dict[str, str | Source] = {"tokens": "wte.weight", "positions": "wpe.weight"}
    for ours, theirs in layers.items():
        names |= {f"{ours}/kernel": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}
    for ours, theirs in norms.items():
        names |= {f"{ours}/scale": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}
    return names | {"readout/kernel": Source("lm_head.weight", transpose=(1, 0))}


def _torchvision_resnet(model: nnx.Module) -> Mapping[str, str | Source]:
    """Stages and blocks are counted from the shapes: each stage is twice as wide inside.

    Reference: He et al., CVPR 2016; `torchvision.models.resnet`.
    """
    from fisher_jax.models.imagenet_resnet import ImageNetResNet

    resnet = _of("torchvision-resnet", model, ImageNetResNet, "imagenet_resnet")
    names = _conv("stem", "conv1") | _batch_norm("norm", "bn1")
    width, counts = resnet.stem.kernel.shape[-1], dict.fromkeys(range(4), 0)
    for i, block in enumerate(resnet.blocks):
        convs = block.branch.convs
        stage = (convs[0].kernel.shape[-1] // width).bit_length() - 1
        ours, theirs = f"blocks/{i}", f"layer{stage + 1}.{counts[stage]}"
        counts[stage] += 1
        for j in range(len(convs)):
            norm = "closing" if j == len(convs) - 1 else f"norms/{j}"
            names |= _conv(f"{ours}/branch/convs/{j}", f"{theirs}.conv{j + 1}")
            names |= _batch_norm(f"{ours}/branch/{norm}", f"{theirs}.bn{j + 1}")
        names |= _conv(f"{ours}/shortcut/conv", f"{theirs}.downsample.0")
        names |= _batch_norm(f"{ours}/shortcut/norm", f"{theirs}.downsample.1")
    return names | {"readout/kernel": Source("fc.weight", transpose=(1, 0)), "readout/bias": "fc.bias"}


def _conv(ours: str, theirs: str) -> dict[str, str | Source]:
    return {f"{ours}/kernel": Source(f"{theirs}.weight", transpose=(2, 3, 1, 0))}


def _batch_norm(ours: str, theirs: str) -> dict[str, str | Source]:
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return {f"{ours}/{name}": f"{theirs}.{other}" for name, other in names.items()}


def _of(layout: str, model: nnx.Module, cls: type, name: str) -> Any:
    if not isinstance(model, cls):
        raise _checks.fail(
            "checkpoint", f"layout={layout!r} of the model {type(model).__name__}", f"build the model {name!r}"
        )
    return model


LAYOUTS = {
    "gpt2": Layout(_gpt2, ("h.*.attn.bias", "h.*.attn.masked_bias"), "transformer."),
    "torchvision-resnet": Layout(_torchvision_resnet, ("*.num_batches_tracked",), "module."),
}
