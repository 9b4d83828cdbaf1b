"""`fisher-jax spectrum`: the largest eigenvalues."""

import argparse
import json
import warnings
from typing import Any

from fisher_jax import _checks
from fisher_jax._checks import ArgumentError
from fisher_jax.cli.files import out_directory, write, write_json
from fisher_jax.cli.prediction import law_record, prediction, show
from fisher_jax.cli.problem import arguments, problem
from fisher_jax.cli.progress import Bar

EXAMPLES = """
examples:
  fisher-jax spectrum                                   the 1797 real digits, a residual network at initialization
  fisher-jax spectrum --model mlp -o depth=5 -o activation=tanh -o bias_variance=0.1
  fisher-jax spectrum --data gaussian --samples 500 --likelihood gaussian --outputs 1
  fisher-jax spectrum --data train-images-idx3-ubyte.gz --samples 2000 --model mlp
  fisher-jax spectrum --data mine.npz --checkpoint weights.npz -k 50 --tol 1e-8 --x64
  fisher-jax spectrum --above 1.0 -k 100                every eigenvalue above 1, and proof that none is missing
  fisher-jax spectrum -k 100 --method randomized --tol 1e-3     wide blocks of vectors: for accelerators
  fisher-jax spectrum --where 'blocks/0'                the diagonal block of one residual block
  fisher-jax spectrum --model resnet20 --samples 100 -o width=8    digits as images; `fisher-jax models` lists all

The Fisher matrix is F = (1/N) sum_n J_n^T B_n B_n^T J_n with the Jacobian J_n of the network's outputs and the Fisher
matrix B B^T of the likelihood at them. Gradient descent on its quadratic model is stable for learning rates below
2/lambda_max. Beside each number stands what theory predicts of wide networks of this architecture on this data, where it
covers them (`fisher-jax theory`). --out receives spectrum.npz (read it with fisher_jax.load), summary.json and spectrum.png.
"""

METHODS = ("auto", "lanczos", "gram", "randomized", "nystrom", "dense")
PRECISIONS = ("highest", "tensorfloat32", "bfloat16")
PRECISION_HELP = "of the products of lanczos, on hardware that has it; what it cannot resolve is NaN (default: highest)"


def add(commands: Any) -> None:
    """The parser of this command."""
    spectrum = commands.add_parser(
        "spectrum",
        help="the largest eigenvalues of a network's Fisher matrix",
        description="The k largest eigenvalues of the Fisher matrix of a network on data, each with its residual and a "
        "certified error bound; exact trace; table, data and plot.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments(spectrum)
    solver = spectrum.add_argument_group("solver")
    solver.add_argument("-k", type=int, default=20, help="how many eigenvalues (default: 20)")
    solver.add_argument("--above", type=float, metavar="T", help="every eigenvalue above T, at most k, none missed")
    solver.add_argument("--method", default="auto", choices=METHODS, help=f"one of {', '.join(METHODS)} (default: auto)")
    solver.add_argument("--precision", default="highest", choices=PRECISIONS, help=PRECISION_HELP)
    solver.add_argument("--tol", type=float, default=1e-6, help="residual over the largest eigenvalue (default: 1e-6)")
    solver.add_argument("--chunk", metavar="N", default="auto", help="samples per pass (default: from free memory)")
    spectrum.set_defaults(run=run_spectrum)


def _method(options: argparse.Namespace) -> Any:
    import fisher_jax as fj

    if options.precision != "highest":
        if options.method not in ("auto", "lanczos"):
            raise ArgumentError(f"spectrum: precision={options.precision!r} with method={options.method!r}; take lanczos")
        return fj.Lanczos(tol=options.tol, precision=options.precision)
    methods = {"auto": fj.Auto, "lanczos": fj.Lanczos, "gram": fj.Gram, "randomized": fj.Randomized, "nystrom": fj.Nystrom}
    return fj.Dense() if options.method == "dense" else methods[options.method](tol=options.tol)


def run_spectrum(options: argparse.Namespace) -> int:
    """`fisher-jax spectrum`."""
    import fisher_jax as fj

    method = _method(options)
    _checks.integer("spectrum", "k", options.k, 1)
    out_directory(options)
    F, title, made = problem(options)
    print(title, flush=True)
    with warnings.catch_warnings(record=True) as caught, Bar(options.quiet) as bar:
        warnings.simplefilter("always")
        top = fj.eigsh(F, options.k, method=method, above=options.above, key=made.keys["solver"], progress=bar)
        bar.note("exact trace")
        if not top.values.size:
            raise ArgumentError(f"spectrum: above={options.above:g} exceeds every eigenvalue; give a smaller --above")
        summary = fj.summarize(F, top)
        bar.note("prediction")
        law, why = prediction(options, made, top.values.size)
    show(caught)
    print(f"\n{top.table(law)}\n\n{summary.table(law)}" + (f"\n\n{why}" if why else ""))
    if note := dict(top.info).get("note"):
        print(f"\nnote: {note}")
    extra: dict[str, Any] = {"values": [float(v) for v in top.values], "bounds": [float(b) for b in top.bounds]}
    extra["predicted"] = law_record(law, top.values.size) if law else None
    record = json.loads(summary.to_json()) | {"settings": made.settings} | extra
    files = {
        "spectrum.npz": lambda path: fj.save(top, path),
        "summary.json": lambda path: write_json(record, path),
        "spectrum.png": fj.plot.spectrum(top, summary, title, law).savefig,
    }
    write(options.out, files)
    return 0
