"""The command line: `fisher-jax spectrum`, `full`, `plan`, `train`, `models`."""

import argparse
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from fisher_jax._checks import ArgumentError

EXAMPLES = """
examples:
  fisher-jax spectrum                                   the 1797 real digits, a residual network at initialization
  fisher-jax spectrum --model mlp -o depth=5 -o activation=tanh -o bias_variance=0.1
  fisher-jax spectrum --data gaussian --samples 500 --likelihood gaussian --outputs 1
  fisher-jax spectrum --data train-images-idx3-ubyte.gz --samples 2000 --model mlp
  fisher-jax spectrum --data mine.npz --checkpoint weights.npz -k 50 --tol 1e-8 --x64
  fisher-jax spectrum --above 1.0 -k 100                every eigenvalue above 1, and proof that none is missing
  fisher-jax spectrum --where 'blocks/0'                the diagonal block of one residual block
  fisher-jax spectrum --model resnet20 --samples 100 -o width=8    digits as images; `fisher-jax models` lists all

The Fisher matrix is F = (1/N) sum_n J_n^T B_n B_n^T J_n with the Jacobian J_n of the network's outputs and the Fisher
matrix B B^T of the likelihood at them. Gradient descent on its quadratic model is stable for learning rates below
2/lambda_max. --out receives spectrum.npz (read it with fisher_jax.load), summary.json and spectrum.png.
"""


FULL_EXAMPLES = """
examples:
  fisher-jax full --samples 300                         every eigenvalue for 300 digits
  fisher-jax full --samples 300 --by layer              and of every layer's block
  fisher-jax full --model mlp -o width=1000 -o depth=5 --samples 500 --likelihood gaussian --outputs 1
  fisher-jax full --samples 300 --vectors 5             and the 5 leading eigenvectors, in full.npz
  fisher-jax full --streamed --model mlp -o width=32000 -o depth=12 --data gaussian --samples 256 --likelihood gaussian
                                                        weights made from the seed whenever needed, never kept: 10^10 of them

The dual matrix K = A A^T (N·C x N·C) has the nonzero eigenvalues of F = A^T A. It is built from layer inputs and output
cotangents, without per-sample gradients where that is cheaper, and diagonalized once. Memory: K and a copy of it, 8 (N·C)^2
bytes in float32. --out receives full.npz (fisher_jax.load), full.json and full.png; with --by, the parts in full.json.
"""

TRAIN_EXAMPLES = """
examples:
  fisher-jax train --model resnet20 -o width=8 --data digits --track 50     the spectrum every 50 steps of the training
  fisher-jax train --model resmlp --data digits --optimizer adam --epochs 50 --track 100 -k 10
  fisher-jax train --model wrn16-4 -o survival=0.8 -o dropout=0.1 --data cifar.bin --decay 5e-4 --schedule step
  fisher-jax spectrum --model resnet20 -o width=8 --checkpoint fisher_training/weights.npz   the top of the trained network's

Dropout and stochastic depth are active, batch norm uses the batch; a share --test of the samples is held out. The spectrum
is that of the network in evaluation mode, on --track-samples of the training samples. An interrupted run goes on when
the same command is given again. --out receives weights.npz (--checkpoint of the other commands), training.npz and track.npz
(fisher_jax.load), training.json, training.png, track.jsonl (one line for each measurement) and checkpoints; with
tensorboardX installed also TensorBoard's files.
"""


class _Parser(argparse.ArgumentParser):
    """argparse, with errors on one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="fisher-jax", description="Eigenvalue spectra of Fisher information matrices, with error bounds.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    spectrum = commands.add_parser(
        "spectrum",
        help="the largest eigenvalues of a network's Fisher matrix",
        description="The k largest eigenvalues of the Fisher matrix of a network on data, each with its residual and a "
        "certified error bound; exact trace; table, data and plot.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _problem_arguments(spectrum)
    solver = spectrum.add_argument_group("solver")
    solver.add_argument("-k", type=int, default=20, help="how many eigenvalues (default: 20)")
    solver.add_argument("--above", type=float, metavar="T", help="every eigenvalue above T, at most k, none missed")
    solver.add_argument("--method", default="auto", choices=["auto", "lanczos", "dense"], help="route (default: auto)")
    solver.add_argument("--tol", type=float, default=1e-6, help="residual over the largest eigenvalue (default: 1e-6)")
    solver.add_argument("--chunk", metavar="N", default="auto", help="samples per pass (default: from free memory)")
    spectrum.set_defaults(run=run_spectrum)
    full = commands.add_parser(
        "full",
        help="every nonzero eigenvalue, exactly, for N·C up to some 10^4",
        description="All eigenvalues of the Fisher matrix of a network on data, through the explicit dual matrix; exact "
        "count of zeros, moments, cumulative plot.",
        epilog=FULL_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _problem_arguments(full)
    _parts_arguments(full)
    full.set_defaults(run=run_full, chunk="auto")
    training = commands.add_parser(
        "train",
        help="train a network, with its spectrum measured every so many steps",
        description="Train a network on data, and measure the largest eigenvalues of its Fisher matrix on the way.",
        epilog=TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _problem_arguments(training, out="fisher_training")
    _training_arguments(training)
    training.set_defaults(run=run_train, chunk="auto")
    zoo = commands.add_parser(
        "models",
        help="the architectures and presets, their sizes and options",
        description="Every architecture and preset with its number of parameters; with names, their options and definition.",
    )
    zoo.add_argument("names", nargs="*", metavar="NAME", help="such as resmlp, resnet20, vit-s16")
    zoo.set_defaults(run=run_models)
    plan = commands.add_parser(
        "plan",
        help="what `full` would cost: operations, bytes, seconds, and the kernel of every parameter",
        description="Operations, memory and expected time of `fisher-jax full` with the same arguments. Makes the "
        "network, unless --streamed, but computes nothing with it and writes nothing.",
    )
    _problem_arguments(plan)
    _parts_arguments(plan)
    plan.set_defaults(run=run_plan, chunk="auto")
    return top


def _parts_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--by", choices=["layer", "block"], help="also the diagonal block of F of every layer or block")
    command.add_argument("--vectors", type=int, default=0, metavar="K", help="also the K leading eigenvectors (default: 0)")
    command.add_argument("--streamed", action="store_true", help="do not keep the weights: for networks larger than memory")


def _training_arguments(command: argparse.ArgumentParser) -> None:
    loop = command.add_argument_group("training")
    loop.add_argument("--epochs", type=int, default=30, help="passes through the data (default: 30)")
    loop.add_argument("--batch", type=int, default=64, help="samples per step (default: 64)")
    loop.add_argument("--optimizer", default="momentum", choices=["sgd", "momentum", "adam"], help="(default: momentum)")
    loop.add_argument("--rate", type=float, help="largest learning rate (default: 0.1, for adam 0.001)")
    loop.add_argument(
        "--schedule", default="cosine", choices=["constant", "linear", "cosine", "step"], help="(default: cosine)"
    )
    loop.add_argument("--warmup", type=float, default=0.1, help="share of the steps with a rising rate (default: 0.1)")
    loop.add_argument("--decay", type=float, default=5e-4, help="weight decay (default: 5e-4)")
    loop.add_argument("--test", type=float, default=0.2, metavar="SHARE", help="of the samples, held out (default: 0.2)")
    spectrum = command.add_argument_group("spectrum")
    spectrum.add_argument("--track", type=int, metavar="STEPS", help="measure every so many steps (default: once per epoch)")
    spectrum.add_argument("-k", type=int, default=5, help="how many eigenvalues (default: 5)")
    spectrum.add_argument(
        "--track-samples", type=int, default=32, metavar="N", help="of the training samples to measure on (default: 32)"
    )


def _problem_arguments(command: argparse.ArgumentParser, out: str = "fisher_spectrum") -> None:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for input that cannot be used, 130 when interrupted."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except ArgumentError as error:
        print(f"fisher-jax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fisher-jax: interrupted, nothing written", file=sys.stderr)
        return 130


def _network(options: argparse.Namespace) -> tuple[Any, Any, Any, dict[str, Any], dict[str, Any]]:
    """(network, x, y, keys by use, settings) of what the arguments describe."""
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
    model = fj.models.build(options.model, **sizes, key=keys["weights"], **_model_options(options))
    if options.checkpoint:
        fj.models.load_weights(model, options.checkpoint, layout=options.layout)
    return model, x, y, keys, settings


def _likelihood(options: argparse.Namespace) -> Any:
    import fisher_jax as fj

    return getattr(fj, options.likelihood.capitalize())()


def _problem(options: argparse.Namespace) -> tuple[Any, Any, str, dict[str, Any]]:
    """(operator, key of the solver, title, settings) of what the arguments describe."""
    model, x, y, keys, settings = _network(options)
    import fisher_jax as fj

    kind = _kind(options, y, keys["labels"])
    F = fj.fisher(model, x, _likelihood(options), kind=kind, where=options.where, chunk=_chunk(options.chunk))
    size = f"P = {F.size}, N·C = {F.factor.shape[0]}"
    title = f"{options.model} on {os.path.basename(options.data)}: {options.kind} Fisher, {options.likelihood}, {size}"
    return F, keys["solver"], title, settings


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


def run_models(options: argparse.Namespace) -> int:
    """`fisher-jax models`."""
    import inspect

    from fisher_jax import models

    for name in options.names:
        fixed = models.architecture(name)[1]
        sizes = {what: fixed.get(what, usual) for what, usual in (("inputs", USUAL[models.takes(name)]), ("outputs", 10))}
        print(f"{name}: {models.count(name, **sizes):,} parameters at {_assignments(sizes)}")
        print(f"  {_assignments({n: v for n, v in models.options(name).items()}, separator=chr(10) + '  ')}")
        print(f"\n{inspect.getdoc(models.model_class(name))}\n")
    if options.names:
        return 0
    for kind, (_, _, sample) in models.MODELS.items():
        first = (inspect.getdoc(models.model_class(kind)) or "").splitlines()[0]
        print(f"{kind:<16} takes {sample}; {first}", flush=True)
        for name, fixed in models.presets(kind).items():
            fixed = models.architecture(name)[1]
            sizes = {"inputs": fixed.get("inputs", USUAL[sample]), "outputs": fixed.get("outputs", 10)}
            own = {n: v for n, v in fixed.items() if n not in sizes}
            print(f"  {name:<20} {models.count(name, **sizes):>13,} parameters   {_assignments(own)}", flush=True)
    return 0


# What presets that do not say it are counted for.
USUAL = {"features": 64, "image": (32, 32, 3), "tokens": 32, "sequence": 8}


def _assignments(values: dict[str, Any], separator: str = ", ") -> str:
    return separator.join(f"{name}={value}" for name, value in values.items())


def run_spectrum(options: argparse.Namespace) -> int:
    """`fisher-jax spectrum`."""
    import fisher_jax as fj

    method = {"auto": fj.Auto(options.tol), "lanczos": fj.Lanczos(tol=options.tol), "dense": fj.Dense()}[options.method]
    _out_directory(options)
    F, key, title, settings = _problem(options)
    print(title, flush=True)
    with warnings.catch_warnings(record=True) as caught, _Bar(options.quiet) as bar:
        warnings.simplefilter("always")
        top = fj.eigsh(F, options.k, method=method, above=options.above, key=key, progress=bar)
        bar.note("exact trace")
        if not top.values.size:
            raise ArgumentError(f"spectrum: above={options.above:g} exceeds every eigenvalue; give a smaller --above")
        summary = fj.summarize(F, top)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            print(f"fisher-jax: warning: {warning.message}", file=sys.stderr)
    print(f"\n{top.table()}\n\n{summary}")
    if note := dict(top.info).get("note"):
        print(f"\nnote: {note}")
    extra = {"values": [float(v) for v in top.values], "bounds": [float(b) for b in top.bounds]}
    record = json.loads(summary.to_json()) | {"settings": settings} | extra
    files = {
        "spectrum.npz": lambda path: fj.save(top, path),
        "summary.json": lambda path: _write_json(record, path),
        "spectrum.png": fj.plot.spectrum(top, summary, title).savefig,
    }
    _write(options.out, files)
    return 0


def run_plan(options: argparse.Namespace) -> int:
    """`fisher-jax plan`."""
    import fisher_jax as fj

    F, _, title, _ = _problem(options)
    print(f"{title}\n{fj.plan(F, by=options.by, vectors=options.vectors)}")
    return 0


def run_full(options: argparse.Namespace) -> int:
    """`fisher-jax full`."""
    import fisher_jax as fj

    _out_directory(options)
    F, _, title, settings = _problem(options)
    print(title, flush=True)
    with _Bar(options.quiet, "steps of K") as bar:
        found = fj.spectrum(F, by=options.by, vectors=options.vectors, progress=bar.tiles)
    parts = found if options.by else {"all": found}
    whole = parts["all"]
    print(f"\n{whole}")
    if options.by:
        print(f"\n{_parts_table(parts)}")
    record = {name: _spectrum_record(part) for name, part in parts.items()}
    record = record.pop("all") | ({"parts": record} if options.by else {}) | {"settings": settings}
    files = {
        "full.npz": lambda path: fj.save(whole, path),
        "full.json": lambda path: _write_json(record, path),
        "full.png": fj.plot.full(parts, title).savefig,
    }
    _write(options.out, files)
    return 0


def run_train(options: argparse.Namespace) -> int:
    """`fisher-jax train`."""
    import importlib.util

    import jax

    import fisher_jax as fj

    _out_directory(options)
    if options.kind == "empirical":
        raise ArgumentError("train: kind='empirical' is not tracked; use --kind exact or mc")
    model, x, y, keys, settings = _network(options)
    if y is None:
        raise ArgumentError(f"train: data={options.data!r} has no labels; give an .npz with x and y, or another --data")
    data, test = fj.data.split(x, y, options.test, keys["data"])
    samples = min(options.track_samples, len(data[0]))
    if samples < 1 or options.batch < 1:
        raise ArgumentError(f"train: track-samples={options.track_samples}, batch={options.batch}; give numbers >= 1")
    out = options.out
    optimizer = fj.train.Optimizer(options.optimizer, options.rate, options.schedule, options.warmup, decay=options.decay)
    tracker = fj.track(
        data[0][:samples],
        _likelihood(options),
        every=options.track if options.track is not None else max(1, len(data[0]) // options.batch),
        k=options.k,
        key=keys["solver"],
        path=os.path.join(out, "track.jsonl"),
        tensorboard=os.path.join(out, "tensorboard") if importlib.util.find_spec("tensorboardX") else None,
        kind=_kind(options, y, keys["labels"]),
        where=options.where,
    )
    size = fj.models.size(model)
    title = f"{options.model} on {os.path.basename(options.data)}: {options.optimizer}, P = {size}"
    print(f"{title}; {len(data[0])} samples to train on, {len(test[0])} to test, spectrum of {samples}", flush=True)
    try:
        with _Bar(options.quiet, "steps") as bar:
            history = fj.train.fit(
                model,
                data,
                _likelihood(options),
                optimizer=optimizer,
                epochs=options.epochs,
                batch=options.batch,
                test=test,
                key=jax.random.fold_in(keys["labels"], 1),
                track=tracker,
                directory=os.path.join(out, "checkpoints"),
                progress=bar.training,
            )
    except KeyboardInterrupt:
        print(f"fisher-jax: interrupted; the same command goes on from the last epoch in {out}", file=sys.stderr)
        return 130
    measured = tracker.history
    tracker.close()
    print(f"\n{history}\n\n{measured}\n\n{_cost(history, measured)}")
    record = {"settings": settings, "epochs": _rows(history), "measurements": _rows(measured)}
    files = {
        "weights.npz": lambda path: fj.models.save_weights(model, path),
        "training.npz": lambda path: fj.save(history, path),
        "track.npz": lambda path: fj.save(measured, path),
        "training.json": lambda path: _write_json(record, path),
        "training.png": fj.plot.track(measured, history, title).savefig,
    }
    _write(out, files)
    return 0


def _cost(history: Any, measured: Any) -> str:
    """What the measurements took of the whole time; the first of them compiles, and so does the first epoch."""
    if measured.steps.size < 3 or history.epochs.size < 3:
        return f"the spectrum took {float(measured.seconds.sum()):.3g} s"
    each, epoch = float(measured.seconds[1:].sum()), float(history.seconds[1:].sum())
    return (
        f"the spectrum took {each:.3g} s, {100 * each / max(epoch - each, 1e-9):.0f} % of what training took, "
        f"and {float(measured.seconds[0]):.3g} s to check and compile"
    )


def _rows(table: Any) -> list[dict[str, Any]]:
    """Of a record of columns."""
    import dataclasses

    fields = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    columns = {name: value.tolist() for name, value in fields.items() if hasattr(value, "tolist")}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _parts_table(parts: dict[str, Any]) -> str:
    """One line for each layer or block."""
    width = max(len(name) for name in parts)
    lines = [f"{'':<{width}}  {'P':>9}  {'resolved':>8}  {'λ_max':>11}  {'trace':>11}  {'share of trace':>14}"]
    for name, part in parts.items():
        share = 100 * part.trace / parts["all"].trace
        numbers = f"{part.size:>9}  {part.values.size:>8}  {part.lambda_max:>11.5g}  {part.trace:>11.5g}  {share:>12.1f} %"
        lines.append(f"{name:<{width}}  {numbers}")
    return "\n".join(lines)


def _spectrum_record(part: Any) -> dict[str, Any]:
    names = ("lambda_max", "floor", "unresolved", "zeros", "size", "dual_size", "trace", "mean_eigenvalue", "frobenius")
    moments = ("second_moment", "effective_rank", "participation_ratio", "method")
    return {name: getattr(part, name) for name in (*names, *moments)} | {
        "info": dict(part.info),
        "values": [float(v) for v in part.values],
    }


def _write(out: str, files: dict[str, Any]) -> None:
    """All files under temporary names first, then renamed: a failure leaves what was there before."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as temporary:
        for file, write in files.items():
            write(os.path.join(temporary, file))
        for file in files:
            os.replace(os.path.join(temporary, file), os.path.join(out, file))
    print(f"\nwritten: {', '.join(os.path.join(out, file) for file in files)}")


def _write_json(record: dict[str, Any], path: str) -> None:
    with open(path, "w") as file:
        file.write(json.dumps(_plain(record), indent=2) + "\n")


def _plain(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _out_directory(options: argparse.Namespace) -> None:
    """Refuse now what would fail after the work."""
    out, command = options.out, options.command
    if os.path.exists(out) and not os.path.isdir(out):
        raise ArgumentError(f"{command}: out={out!r} is a file; give a directory")
    try:
        os.makedirs(out, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise ArgumentError(
            f"{command}: out={out!r} cannot be written ({error.strerror}); give a directory of yours"
        ) from error


def _classes(y: Any) -> int:
    """Number of classes of integer labels, columns of other labels, 10 without labels."""
    if y is None:
        return 10
    if y.ndim == 1 and y.dtype.kind in "iu":
        return int(y.max()) + 1
    return y.shape[1] if y.ndim == 2 else 1


def _model_options(options: argparse.Namespace) -> dict[str, Any]:
    from fisher_jax import models

    known = models.options(options.model)
    chosen: dict[str, Any] = {}
    for item in options.option:
        name, separator, text = item.partition("=")
        if not separator or not name:
            raise ArgumentError(
                f"{options.command}: option={item!r} is not NAME=VALUE; {options.model} has {', '.join(known)}"
            )
        chosen[name] = _value(text)
    return chosen


def _value(text: str) -> Any:
    """A number, a comma-separated tuple of numbers, or a word."""
    if "," in text:
        return tuple(_value(part) for part in text.split(","))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _kind(options: argparse.Namespace, y: Any, key: Any) -> Any:
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


class _Bar:
    """Progress on standard error: products done, converged pairs, worst residual; or tiles done."""

    def __init__(self, quiet: bool, unit: str = "converged"):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total} " + unit),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=quiet,
            redirect_stdout=False,
        )

    def __enter__(self) -> "_Bar":
        self.bar.start()
        self.task = self.bar.add_task("preparing", total=None, completed=0, facts="")
        return self

    def __exit__(self, *exception: Any) -> None:
        self.bar.stop()

    def __call__(self, progress: Any) -> None:
        facts = f"{progress.products} products, worst residual {progress.worst:.0e}·λ_max"
        self.bar.update(
            self.task, description=progress.phase, total=progress.wanted, completed=progress.converged, facts=facts
        )

    def tiles(self, done: int, total: int) -> None:
        phase = "building the dual matrix" if done < total else "diagonalizing"
        self.bar.update(self.task, description=phase, total=total, completed=done)

    def training(self, state: Any) -> None:
        facts = f"epoch {state.epoch + 1}/{state.epochs}, loss {state.loss:.3g}"
        if math.isfinite(state.test_accuracy):
            facts += f", test accuracy {100 * state.test_accuracy:.1f} %"
        self.bar.update(self.task, description="training", total=state.steps, completed=state.step, facts=facts)

    def note(self, description: str) -> None:
        self.bar.update(self.task, description=description)
