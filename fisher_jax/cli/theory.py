"""`fisher-jax theory`: what theory predicts of a network's spectrum, without the network."""

import argparse
import dataclasses
import math
import warnings
from typing import Any

from fisher_jax._checks import ArgumentError
from fisher_jax.cli.files import out_directory, write, write_json
from fisher_jax.cli.prediction import law_record, show
from fisher_jax.cli.problem import value_of

EXAMPLES = """
examples:
  fisher-jax theory --arch resmlp --skip 2 --depth 16 --samples 50        skips over two layers, 16 blocks
  fisher-jax theory --depth 1,2,4,8,16,32,64,1000 --inputs 1000000        a table; logarithms where numbers leave a float
  fisher-jax theory --arch mlp --depth 5 --activation tanh --weight-variance 3 --bias-variance 0.5
  fisher-jax theory --arch resmlp --norm batch --bn frozen --depth 2,4,8  with batch statistics held fixed
  fisher-jax theory --survival 0.8 --depth 8                              stochastic depth: five numbers
  fisher-jax theory --arch mlp --dropout 0.5 --masks average --depth 4    one of them in full
  fisher-jax theory --data digits --samples 40 --outputs 10 --likelihood categorical

Eigenvalues of F = (1/N) sum_n J_n^T B_n B_n^T J_n in expectation over random weights, for widths far above depth and
samples. Without --data: samples of |x|^2 = d, any two of them at the same cosine, as Gaussian ones nearly are; with it, the
kernel of that data. `fisher-jax spectrum` shows the same beside a measurement. --json writes all numbers to one file; --out
receives theory.json and, for several depths, theory.png.
"""
# The options of `fisher_jax.theory.network.OPTIONS`, here so that --help need not import JAX; a test holds them together.
EVERY = ("mlp", "resmlp", "densemlp")
FLAGS: dict[str, tuple[tuple[str, ...], str]] = {
    "depth": (EVERY, "layers or blocks; several, separated by commas, make a table"),
    "width": (("mlp", "resmlp"), "units; of resmlp with skips over two layers the inputs"),
    "growth": (("densemlp",), "units that each layer adds"),
    "skip": (("resmlp",), "layers that a skip spans: 1 or 2"),
    "form": (("resmlp",), "of skips over one layer: activation pre or post, or linear"),
    "activation": (EVERY, "relu, tanh, erf, gelu or linear"),
    "weight_variance": (("mlp",), "times 1/fan-in"),
    "bias_variance": (("mlp",), "of biases, which are trained then; none unless given"),
    "variance": (("densemlp",), "of the weights, times 1/fan-in"),
    "variances": (("resmlp",), "of the first and the second layer of a block, such as 2,1"),
    "input_variance": (("resmlp",), "of the embedding, with skips over one layer"),
    "readout_variance": (EVERY, "of the last layer, times 1/fan-in"),
    "scale": (("resmlp",), "factor of the branches; depth for 1/sqrt(depth)"),
    "gain": (("resmlp",), "factor inside the activation"),
    "weights": (EVERY, "gaussian or orthogonal"),
    "parametrization": (EVERY, "standard or ntk"),
    "norm": (EVERY, "none, batch, or population (resmlp)"),
    "residual": (("resmlp",), "plain, fixup, fixup-scalars or skipinit"),
    "dropout": (EVERY, "rate"),
    "dropout_form": (EVERY, "inverted or raw"),
    "survival": (("resmlp",), "probability of the last branch, of stochastic depth"),
    "survival_schedule": (("resmlp",), "uniform or linear"),
    "output_norm": (EVERY, "none, mean or batch"),
    "scanned": (("resmlp",), "true or false; the same network"),
}


def add(commands: Any) -> None:
    """The parser of this command."""
    theory = commands.add_parser(
        "theory",
        help="what theory predicts of the spectrum of wide networks, from the architecture alone",
        description="Trace, largest eigenvalue, outliers, bulk and 2/lambda_max of wide networks at initialization.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    network = theory.add_argument_group("network")
    network.add_argument("--arch", default="resmlp", choices=EVERY, help="(default: resmlp)")
    for option, (takers, text) in FLAGS.items():
        owners = "" if takers == EVERY else f"; {', '.join(takers)}"
        network.add_argument(_flag(option), metavar="V", help=text + owners)
    network.add_argument("--outputs", type=int, default=1, metavar="C", help="(default: 1)")
    data = theory.add_argument_group("data")
    data.add_argument("--data", metavar="SOURCE", help="take the kernel of real data: digits, or a file as in `spectrum`")
    data.add_argument("--samples", type=int, metavar="N", help="of --data the first N (default: 50; all of --data)")
    data.add_argument("--inputs", type=int, metavar="D", help="features of a sample (default: 256, or those of --data)")
    data.add_argument("--cosine", type=float, help="between any two samples, without --data (default: 0)")
    matrix = theory.add_argument_group("matrix")
    matrix.add_argument("--likelihood", default="gaussian", choices=["gaussian", "categorical"], help="(default: gaussian)")
    matrix.add_argument("--masks", choices=["mean", "one", "typical", "average"], help="of dropout and stochastic depth")
    matrix.add_argument("--bn", choices=["eval", "frozen", "train"], help="of batch normalization")
    matrix.add_argument("--draws", type=int, metavar="S", help="of masks (default: 256) or softmax outputs (default: 16)")
    matrix.add_argument("-k", type=int, help="the k largest eigenvalues alone, for softmax on thousands of samples")
    theory.add_argument("--seed", type=int, default=0, help="of draws and random data (default: 0)")
    theory.add_argument("--json", metavar="FILE", help="write all numbers there")
    theory.add_argument("--out", metavar="DIR", help="write theory.json, and theory.png for several depths")
    theory.set_defaults(run=run_theory)


def run_theory(options: argparse.Namespace) -> int:
    """`fisher-jax theory`."""
    import jax

    import fisher_jax as fj
    from fisher_jax.theory.network import OPTIONS

    if options.out:
        out_directory(options)
    chosen = _chosen(options)
    depths = chosen.pop("depth", OPTIONS[options.arch]["depth"])
    several = isinstance(depths, tuple)
    common = _data(options) | {"outputs": options.outputs, "likelihood": options.likelihood, "bn": options.bn} | chosen
    common["key"] = jax.random.key(options.seed)
    wanted = {"masks": options.masks, "draws": options.draws, "k": options.k}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        laws = {L: fj.theory.predict(options.arch, depth=L, **wanted, **common) for L in (depths if several else (depths,))}
        over, why = _over_masks(options, depths, common) if options.masks is None and not several else (None, "")
    show(caught)
    settings = {name: value for name, value in vars(options).items() if name not in ("run", "command", "json", "out")}
    about = f"{options.arch}, {options.likelihood}: " + ", ".join(f"{n}={v}" for n, v in chosen.items())
    title = about.removesuffix(": ") + ("" if several else f"{', ' if chosen else ': '}depth={depths}")
    text = table(laws) if several else repr(laws[depths])
    print("\n\n".join([title, text, *([str(over)] if over else []), *([why] if why else [])]))
    record = {
        "laws": [{"depth": depth} | law_record(law) for depth, law in laws.items()],
        "masks": dataclasses.asdict(over) if over else None,
        "settings": settings,
        "versions": dict(fj.results.provenance()),
    }
    if options.json:
        fj.results.replace(options.json, lambda path: write_json(record, path))
        print(f"\nwritten: {options.json}")
    if options.out:
        figure = {"theory.png": fj.plot.laws(laws, title).savefig} if several else {}
        write(options.out, {"theory.json": lambda path: write_json(record, path)} | figure)
    return 0


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _chosen(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the architecture that were given; those of another are refused."""
    given = {option: getattr(options, option) for option in FLAGS if getattr(options, option) is not None}
    for option, text in given.items():
        if options.arch not in (takers := FLAGS[option][0]):
            raise ArgumentError(
                f"theory: {_flag(option)} {text} is no option of {options.arch}; it is one of {', '.join(takers)}"
            )
    return {option: value_of(text) for option, text in given.items()}


def _data(options: argparse.Namespace) -> dict[str, Any]:
    """Sizes of the inputs, or the inputs."""
    if options.data is None:
        samples = 50 if options.samples is None else options.samples
        cosine = 0.0 if options.cosine is None else options.cosine
        return {"inputs": 256 if options.inputs is None else options.inputs, "samples": samples, "cosine": cosine}
    import jax

    import fisher_jax as fj

    if options.cosine is not None:
        raise ArgumentError(f"theory: cosine={options.cosine:g} of --data {options.data}; leave out one of the two")
    key = jax.random.fold_in(jax.random.key(options.seed), 1)
    inputs = 256 if options.inputs is None else options.inputs
    x, _ = fj.data.load(options.data, samples=options.samples, inputs=inputs, key=key)
    return {"x": x.reshape(len(x), -1), "inputs": options.inputs}


def _over_masks(options: argparse.Namespace, depth: Any, common: dict[str, Any]) -> tuple[Any, str]:
    """(MaskLaw of a network with random masks, why there is none)."""
    import fisher_jax as fj

    if not common.get("dropout") and common.get("survival", 1) == 1:
        return None, ""
    draws = {} if options.draws is None else {"draws": options.draws}
    try:
        return fj.theory.over_masks(options.arch, depth=depth, **draws, **common), ""
    except ArgumentError as error:
        return None, f"no summaries over masks: {error}"


def table(laws: dict[int, Any]) -> str:
    """One line for each depth."""
    titles = ("trace", "trace/P", "‖F‖²/P", "λ_max", "outliers", "bulk", "2/λ_max")
    lines = [f"{'depth':>5}  " + "  ".join(f"{title:>11}" for title in titles)]
    for depth, law in laws.items():
        numbers = (
            _number(law.trace, law.log_trace),
            _number(law.mean_eigenvalue, law.log_trace - math.log(law.size)),
            _number(law.second_moment),
            _number(law.lambda_max, law.log_lambda_max),
            str(law.outliers),
            _number(law.bulk),
            _number(law.max_learning_rate, math.log(2) - law.log_lambda_max),
        )
        lines.append(f"{depth:>5}  " + "  ".join(f"{number:>11}" for number in numbers))
    return "\n".join(lines)


def _number(value: float, logarithm: float = math.nan) -> str:
    """By its logarithm where a float cannot hold it."""
    if math.isnan(value):
        return "unknown"
    if not math.isnan(logarithm) and (math.isinf(value) or (value == 0 and math.isfinite(logarithm))):
        return f"e^{logarithm:.6g}"
    return ">1e308" if math.isinf(value) else f"{value:.5g}"
