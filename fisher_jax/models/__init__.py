"""Architectures in Flax NNX, one readable file each. A new one is one file and one line in `MODELS`."""

import importlib
import inspect
from typing import Any, TypeGuard

import jax
import numpy as np
from flax import nnx

from fisher_jax import _checks, linalg
from fisher_jax.models.checkpoint import load_weights as load_weights
from fisher_jax.models.checkpoint import save_weights as save_weights
from fisher_jax.models.layouts import LAYOUTS as LAYOUTS
from fisher_jax.models.layouts import Layout as Layout
from fisher_jax.models.layouts import Source as Source
from fisher_jax.models.streaming import stream

# Architecture -> (file, class, what a sample is).
MODELS: dict[str, tuple[str, str, str]] = {
    "mlp": ("mlp", "MLP", "features"),
    "resmlp": ("resmlp", "ResMLP", "features"),
    "densemlp": ("densemlp", "DenseMLP", "features"),
    "resnet": ("resnet", "ResNet", "image"),
    "imagenet_resnet": ("imagenet_resnet", "ImageNetResNet", "image"),
    "vgg": ("vgg", "VGG", "image"),
    "densenet": ("densenet", "DenseNet", "image"),
    "vit": ("vit", "ViT", "image"),
    "gpt": ("gpt", "GPT", "tokens"),
    "regressor": ("regressor", "Regressor", "features"),
    "rnn": ("rnn", "RNN", "sequence"),
    "vrnn": ("vrnn", "VRNN", "sequence"),
}
CIFAR, IMAGENET = {"inputs": (32, 32, 3), "outputs": 10}, {"inputs": (224, 224, 3), "outputs": 1000}
COUNTED = ("depth", "width", "growth", "heads", "patch", "expansion", "latent", "widen", "hidden", "embedding")


def architecture(name: str) -> tuple[str, dict[str, Any]]:
    """The architecture of a name, and the options that a preset fixes, with its usual inputs and outputs."""
    if name in MODELS:
        return name, {}
    for kind in MODELS:
        if name in (found := presets(kind)):
            usual = IMAGENET if kind == "imagenet_resnet" or (kind == "vgg" and not name.endswith("cifar")) else CIFAR
            return kind, (usual if kind in ("resnet", "imagenet_resnet", "vgg", "densenet") else {}) | found[name]
    raise _checks.fail(
        "models.build",
        f"model={name!r} is unknown",
        f"choose among {', '.join(MODELS)}, or a preset of `fisher-jax models`, such as resnet20, vit-s16, gpt2",
    )


def presets(name: str) -> dict[str, dict[str, Any]]:
    """Names of the literature for options of an architecture."""
    return getattr(importlib.import_module(f"fisher_jax.models.{MODELS[name][0]}"), "PRESETS", {})


def takes(name: str) -> str:
    """What a sample is to a model: "features", "image", "tokens" or "sequence"."""
    return MODELS[architecture(name)[0]][2]


def model_class(name: str) -> Any:
    """The class of a model or preset."""
    file, found, _ = MODELS[architecture(name)[0]]
    return getattr(importlib.import_module(f"fisher_jax.models.{file}"), found)


def options(name: str) -> dict[str, Any]:
    """The options of a model or preset with their defaults."""
    parameters = inspect.signature(model_class(name).__init__).parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return defaults | {n: v for n, v in architecture(name)[1].items() if n in defaults}


def build(
    name: str, *, inputs: Any = None, outputs: int | None = None, key: jax.Array, streamed: bool = False, **chosen: Any
) -> Any:
    """A network at initialization.

    Args:
        name: an architecture of `MODELS`, or a preset with the literature's name, such as "resnet20".
        inputs: of a sample: number of features, (height, width, channels) of an image, length of a sequence of tokens.
            Presets may know their own. outputs: of the network, likewise.
        key: JAX random key for the weights, and for the masks of dropout and stochastic depth.
        streamed: do not store the weights but make them from the key whenever they are needed, layer by layer: for
            `fj.spectrum` of networks larger than memory.
        chosen: options of the model, see its class.

    Returns:
        nnx.Module in evaluation mode, mapping a batch `(N, ...)` to `(N, outputs)`; or the `fj.Streamed` of equal weights.

    Raises:
        ArgumentError: unknown model or option, a value that does not fit, weights larger than memory.
    """
    cls, known = model_class(name), options(name)
    inputs, outputs = _sizes(name, inputs, outputs)
    for option, value in chosen.items():
        if option not in known:
            raise _checks.fail(f"model {name}", f"option {option}={value!r} is unknown", f"it has {', '.join(known)}")
    for option, value in chosen.items():
        _check_option(f"model {name}", option, value, known[option])
    chosen = known | chosen
    if streamed:
        if not hasattr(cls, "pieces"):
            raise _checks.fail(f"model {name}", "streamed=True", "mlp and resmlp can be streamed")
        return stream(cls.pieces(inputs=inputs, outputs=outputs, **chosen), key)
    _require_room(name, inputs, outputs, chosen)
    rngs = nnx.Rngs(params=key, dropout=jax.random.fold_in(key, 1))
    model = cls(inputs=inputs, outputs=outputs, rngs=rngs, **chosen)
    model.eval()
    return model


def count(name: str, *, inputs: Any = None, outputs: int | None = None, **chosen: Any) -> int:
    """Number of parameters, without making them."""
    inputs, outputs = _sizes(name, inputs, outputs)
    cls, chosen = model_class(name), options(name) | chosen
    return size(nnx.eval_shape(lambda: cls(inputs=inputs, outputs=outputs, rngs=nnx.Rngs(0), **chosen)))


def size(model: nnx.Module) -> int:
    """Number of parameters of a network."""
    return sum(a.size for a in jax.tree.leaves(nnx.state(model, nnx.Param)))


def _sizes(name: str, inputs: Any, outputs: Any) -> tuple[Any, int]:
    fixed = architecture(name)[1]
    inputs, outputs = (fixed.get(n) if v is None else v for n, v in (("inputs", inputs), ("outputs", outputs)))
    for what, value in (("inputs", inputs), ("outputs", outputs)):
        if value is None:
            raise _checks.fail(f"model {name}", f"{what} is missing", f"give {what}=...")
    if takes(name) == "image":
        if not isinstance(inputs, (tuple, list)) or len(inputs) != 3:
            raise _checks.fail(f"model {name}", f"inputs={inputs!r} is no image", "give (height, width, channels)")
        inputs = tuple(_checks.integer(f"model {name}", "inputs", side, 1) for side in inputs)
    else:
        inputs = _checks.integer("models.build", "inputs", inputs, 1)
    return inputs, _checks.integer("models.build", "outputs", outputs, 1)


def _check_option(where: str, option: str, value: Any, usual: Any) -> None:
    """Refuse a value of the wrong kind; what a choice offers is checked where it is made."""
    if (value is None and usual is None) or _checks.traced(value):
        return
    if option in COUNTED:
        _checks.integer(where, option, value, 1)
    elif isinstance(usual, bool):
        if not isinstance(value, (bool, np.bool_)):
            raise _checks.fail(where, f"{option}={value!r} is neither true nor false", "give True or False")
    elif option == "cardinalities":
        if not isinstance(value, (tuple, list)):
            raise _checks.fail(where, f"{option}={value!r} is no list", "give the categories of each column, such as (3, 4)")
        for number in value:
            _checks.integer(where, option, number, 1)
    elif option == "variances":
        if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(_number(v) and v >= 0 for v in value):
            raise _checks.fail(where, f"{option}={value!r} is no pair of variances", "give two numbers >= 0")
    elif option.endswith("variance"):
        if not _number(value) or not value >= 0:
            raise _checks.fail(where, f"{option}={value!r} is no variance", "give a number >= 0")
    elif isinstance(usual, float) and not _number(value) and not (option == "scale" and isinstance(value, str)):
        raise _checks.fail(where, f"{option}={value!r} is not a finite number", "give one")


def _number(value: Any) -> TypeGuard[float]:
    return np.ndim(value) == 0 and not isinstance(value, (str, bool, type(None))) and bool(np.isfinite(value))


def _require_room(name: str, inputs: Any, outputs: int, chosen: dict[str, Any]) -> None:
    """Refuse weights larger than memory, before the system ends the process for them."""
    if takes(name) == "features" and chosen["depth"] * max(inputs, outputs, chosen.get("width") or 0) ** 2 < 2**26:
        return  # too few to matter, and counting takes time
    taken = 4 * count(name, inputs=inputs, outputs=outputs, **chosen)
    if taken > (free := linalg.free_memory()):
        raise _checks.fail(
            f"model {name}",
            f"weights take {taken / 2**30:.3g} GiB of {free / 2**30:.3g} GiB free",
            "give streamed=True (--streamed), which does not keep them, or a smaller width or depth",
        )
