"""The command line: `fisher-jax spectrum`."""

import argparse
import json
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

The Fisher matrix is F = (1/N) sum_n J_n^T B_n B_n^T J_n with the Jacobian J_n of the network's outputs and the Fisher
matrix B B^T of the likelihood at them. Gradient descent on its quadratic model is stable for learning rates below
2/lambda_max. --out receives spectrum.npz (read it with fisher_jax.load), summary.json and spectrum.png.
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
    network = spectrum.add_argument_group("network")
    network.add_argument("--model", default="resmlp", metavar="NAME", help="mlp or resmlp (default: resmlp)")
    network.add_argument(
        "-o",
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the model, such as depth=8, width=128, skip=1; repeat for more",
    )
    network.add_argument("--checkpoint", metavar="PATH", help="weights: an Orbax directory or an .npz (default: random)")
    network.add_argument(
        "--where", metavar="GLOB", help="only parameters whose path matches, such as 'blocks/0' or '*/bias'"
    )
    data = spectrum.add_argument_group("data")
    data.add_argument(
        "--data",
        default="digits",
        metavar="SOURCE",
        help="digits (default), gaussian, spheres, or a file: .npy, .npz (x, y), MNIST idx, CIFAR-10 .bin",
    )
    data.add_argument("--samples", type=int, metavar="N", help="the first N samples (default: all; 1000 if random)")
    data.add_argument("--inputs", type=int, default=64, metavar="D", help="features of random data (default: 64)")
    data.add_argument("--outputs", type=int, metavar="C", help="network outputs (default: number of classes, else 10)")
    matrix = spectrum.add_argument_group("matrix")
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
    solver = spectrum.add_argument_group("solver")
    solver.add_argument("-k", type=int, default=20, help="how many eigenvalues (default: 20)")
    solver.add_argument("--above", type=float, metavar="T", help="every eigenvalue above T, at most k, none missed")
    solver.add_argument("--method", default="auto", choices=["auto", "lanczos", "dense"], help="route (default: auto)")
    solver.add_argument("--tol", type=float, default=1e-6, help="residual over the largest eigenvalue (default: 1e-6)")
    solver.add_argument("--chunk", metavar="N", default="auto", help="samples per pass (default: from free memory)")
    solver.add_argument("--seed", type=int, default=0, help="of weights, random data and solver (default: 0)")
    solver.add_argument("--x64", action="store_true", help="compute in float64")
    spectrum.add_argument(
        "--out", default="fisher_spectrum", metavar="DIR", help="where files go (default: fisher_spectrum)"
    )
    spectrum.add_argument("--quiet", action="store_true", help="no progress bar")
    spectrum.set_defaults(run=run_spectrum)
    return top


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


def run_spectrum(options: argparse.Namespace) -> int:
    """`fisher-jax spectrum`."""
    import jax

    if options.x64:
        jax.config.update("jax_enable_x64", True)
    import fisher_jax as fj

    keys = dict(zip(("weights", "data", "labels", "solver"), jax.random.split(jax.random.key(options.seed), 4), strict=True))
    settings = {name: value for name, value in vars(options).items() if name not in ("run", "command", "quiet", "out")}
    method = {"auto": fj.Auto(options.tol), "lanczos": fj.Lanczos(tol=options.tol), "dense": fj.Dense()}[options.method]
    _out_directory(options.out)
    x, y = fj.data.load(options.data, samples=options.samples, inputs=options.inputs, key=keys["data"])
    x = x.reshape(len(x), -1)
    if y is not None and options.likelihood == "categorical" and y.dtype.kind == "f" and (y == y.astype(int)).all():
        y = y.astype("int32")  # classes written as 0., 1., 2.
    if options.x64:
        x = x.astype("float64")
    outputs = options.outputs if options.outputs is not None else _classes(y)
    model = fj.models.build(
        options.model, inputs=x.shape[1], outputs=outputs, key=keys["weights"], **_model_options(options)
    )
    if options.checkpoint:
        fj.models.load_weights(model, options.checkpoint)
    likelihood = getattr(fj, options.likelihood.capitalize())()
    F = fj.fisher(
        model, x, likelihood, kind=_kind(options, y, keys["labels"]), where=options.where, chunk=_chunk(options.chunk)
    )
    size = f"P = {F.size}, N·C = {F.factor.shape[0]}"
    title = f"{options.model} on {os.path.basename(options.data)}: {options.kind} Fisher, {options.likelihood}, {size}"
    print(title, flush=True)
    with warnings.catch_warnings(record=True) as caught, _Bar(options.quiet) as bar:
        warnings.simplefilter("always")
        top = fj.eigsh(F, options.k, method=method, above=options.above, key=keys["solver"], progress=bar)
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
    _write(options.out, top, summary, settings, title)
    print(f"\nwritten: {', '.join(os.path.join(options.out, name) for name in FILES)}")
    return 0


FILES = ("spectrum.npz", "summary.json", "spectrum.png")


def _write(out: str, top: Any, summary: Any, settings: dict[str, Any], title: str) -> None:
    """All three files under temporary names first, then renamed: a failure leaves what was there before."""
    import fisher_jax as fj

    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as temporary:
        fj.save(top, os.path.join(temporary, "spectrum.npz"))
        with open(os.path.join(temporary, "summary.json"), "w") as file:
            values = {"values": [float(v) for v in top.values], "bounds": [float(b) for b in top.bounds]}
            file.write(json.dumps(_plain(json.loads(summary.to_json()) | {"settings": settings} | values), indent=2) + "\n")
        fj.plot.spectrum(top, summary, title).savefig(os.path.join(temporary, "spectrum.png"))
        for name in FILES:
            os.replace(os.path.join(temporary, name), os.path.join(out, name))


def _plain(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _out_directory(out: str) -> None:
    """Refuse now what would fail after the work."""
    if os.path.exists(out) and not os.path.isdir(out):
        raise ArgumentError(f"spectrum: out={out!r} is a file; give a directory")
    try:
        os.makedirs(out, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise ArgumentError(
            f"spectrum: out={out!r} cannot be written ({error.strerror}); give a directory of yours"
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
            raise ArgumentError(f"spectrum: option={item!r} is not NAME=VALUE; {options.model} has {', '.join(known)}")
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
        raise ArgumentError(f"spectrum: kind='empirical' needs labels, {options.data} has none; use --kind mc or exact")
    return fj.Empirical(y)


def _chunk(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


class _Bar:
    """Progress on standard error: products done, converged pairs, worst residual."""

    def __init__(self, quiet: bool):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total} converged"),
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

    def note(self, description: str) -> None:
        self.bar.update(self.task, description=description)
