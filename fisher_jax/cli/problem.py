"""Network, data and matrix from arguments: the same for every command."""

import argparse
import math
import os
from typing import Any, NamedTuple

from fisher_jax._checks import ArgumentError


def arguments(command: argparse.ArgumentParser, out: str = "fisher_spectrum") -> None:
    """Network, data and matrix: the same for every command."""
    network = command.add_argument_group("network")
    network.add_argument("--model", default="resmlp", metavar="NAME", help="see `fisher-jax models` (default: resmlp)")
    network.add_argument(
        "-o",
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the model, such as depth=8, width=128, skip=1; repeat for more",
    )
    network.add_argument("--checkpoint", metavar="PATH", help="Orbax directory, .npz or .safetensors (default: random)")
    network.add_argument("--layout", metavar="NAME", help="of a foreign checkpoint's names: gpt2, torchvision-resnet")
    network.add_argument(
        "--where", metavar="GLOB", help="only parameters whose path matches, such as 'blocks/0' or '*/bias'"
    )
    data = command.add_argument_group("data")
    data.add_argument(
        "--data",
        default="digits",
        metavar="SOURCE",
        help="digits (default), gaussian, spheres, or a file: .npy, .npz (x, y), MNIST idx, CIFAR-10 .bin",
    )
    data.add_argument("--samples", type=int, metavar="N", help="the first N samples (default: all; 1000 if random)")
    data.add_argument("--inputs", type=int, default=64, metavar="D", help="features of random data (default: 64)")
    data.add_argument("--outputs", type=int, metavar="C", help="network outputs (default: number of classes, else 10)")
    matrix = command.add_argument_group("matrix")
    matrix.add_argument(
        "--likelihood",
        default="categorical",
        choices=["categorical", "gaussian", "bernoulli", "poisson"],
        help="of the outputs (default: categorical)",
    )
    matrix.add_argument(
        "--kind",
        default="exact",
        choices=["exact", "mc", "empirical"],
        help="labels: expectation over the model (exact, default), drawn from it (mc), or given (empirical)",
    )
    matrix.add_argument("--draws", type=int, default=1, metavar="S", help="labels per sample for --kind mc (default: 1)")
    command.add_argument("--seed", type=int, default=0, help="of weights, random data and solver (default: 0)")
    command.add_argument("--x64", action="store_true", help="compute in float64")
    command.add_argument("--out", default=out, metavar="DIR", help=f"where files go (default: {out})")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


class Made(NamedTuple):
    """What the arguments describe."""

    model: Any
    x: Any
    y: Any
    outputs: int
    keys: dict[str, Any]  # by use
    settings: dict[str, Any]


def network(options: argparse.Namespace) -> Made:
    """The network and the data of the arguments."""
    import jax

    if options.x64:
        jax.config.update("jax_enable_x64", True)
    import fisher_jax as fj

    keys: dict[str, Any] = dict(
        zip(("weights", "data", "labels", "solver"), jax.random.split(jax.random.key(options.seed), 4), strict=True)
    )
    settings = {name: value for name, value in vars(options).items() if name not in ("run", "command", "quiet", "out")}
    x, y = fj.data.load(options.data, samples=options.samples, inputs=options.inputs, key=keys["data"])
    x = _samples(x, options)
    if y is not None and options.likelihood == "categorical" and y.dtype.kind == "f" and (y == y.astype(int)).all():
        y = y.astype("int32")  # classes written as 0., 1., 2.
    if options.x64:
        x = x.astype("float64")
    outputs = options.outputs if options.outputs is not None else _classes(y)
    streamed = getattr(options, "streamed", False)
    if options.layout and not options.checkpoint:
        raise ArgumentError(f"{options.command}: layout={options.layout!r} of no checkpoint; give --checkpoint PATH")
    if streamed and options.checkpoint:
        raise ArgumentError(
            f"{options.command}: checkpoint={options.checkpoint!r} of a streamed network; leave out one of the two"
        )
    sizes = {"inputs": x.shape[1:] if x.ndim == 4 else x.shape[1], "outputs": outputs, "streamed": streamed}
    model = fj.models.build(options.model, **sizes, key=keys["weights"], **model_options(options))
    if options.checkpoint:
        fj.models.load_weights(model, options.checkpoint, layout=options.layout)
    return Made(model, x, y, outputs, keys, settings)


def likelihood(options: argparse.Namespace) -> Any:
    import fisher_jax as fj

    return getattr(fj, options.likelihood.capitalize())()


def problem(options: argparse.Namespace) -> tuple[Any, str, Made]:
    """(operator, title, what it was made of)."""
    made = network(options)
    import fisher_jax as fj

    kind = kind_of(options, made.y, made.keys["labels"])
    F = fj.fisher(made.model, made.x, likelihood(options), kind=kind, where=options.where, chunk=_chunk(options.chunk))
    size = f"P = {F.size}, N·C = {F.factor.shape[0]}"
    title = f"{options.model} on {os.path.basename(options.data)}: {options.kind} Fisher, {options.likelihood}, {size}"
    return F, title, made


def _samples(x: Any, options: argparse.Namespace) -> Any:
    """The data as the model takes it: rows of features, or images `(N, height, width, channels)`."""
    from fisher_jax import models

    kind = models.takes(options.model)
    if kind == "features":
        return x.reshape(len(x), -1)
    if kind == "image" and x.ndim == 2 and (side := math.isqrt(x.shape[1])) ** 2 == x.shape[1]:
        x = x.reshape(-1, side, side)
    if kind == "image" and x.ndim == 3:
        x = x[..., None]
    if kind != "image" or x.ndim != 4:
        wanted = kind if kind == "tokens" else kind + "s"
        raise ArgumentError(
            f"{options.command}: model={options.model!r} takes {wanted}, {options.data} has samples of shape "
            f"{tuple(x.shape[1:])}; choose another --data or --model, or use fj.fisher from Python"
        )
    return x


def _classes(y: Any) -> int:
    """Number of classes of integer labels, columns of other labels, 10 without labels."""
    if y is None:
        return 10
    if y.ndim == 1 and y.dtype.kind in "iu":
        return int(y.max()) + 1
    return y.shape[1] if y.ndim == 2 else 1


def model_options(options: argparse.Namespace) -> dict[str, Any]:
    from fisher_jax import models

    known = models.options(options.model)
    chosen: dict[str, Any] = {}
    for item in options.option:
        name, separator, text = item.partition("=")
        if not separator or not name:
            raise ArgumentError(
                f"{options.command}: option={item!r} is not NAME=VALUE; {options.model} has {', '.join(known)}"
            )
        chosen[name] = value_of(text)
    return chosen


def value_of(text: str) -> Any:
    """A number, true or false, a comma-separated tuple of them, or a word."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text == "None":
        return None
    if "," in text:
        return tuple(value_of(part) for part in text.split(","))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def kind_of(options: argparse.Namespace, y: Any, key: Any) -> Any:
    import fisher_jax as fj

    if options.kind == "exact":
        return fj.Exact()
    if options.kind == "mc":
        return fj.MonteCarlo(draws=options.draws, key=key)
    if y is None:
        raise ArgumentError(
            f"{options.command}: kind='empirical' needs labels, {options.data} has none; use --kind mc or exact"
        )
    return fj.Empirical(y)


def _chunk(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text
