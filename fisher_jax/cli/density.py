"""`fisher-jax density`: the whole spectrum, blurred, with error bars."""

import argparse
import json
import warnings
from typing import Any

from fisher_jax import _checks
from fisher_jax.cli.files import out_directory, write, write_json
from fisher_jax.cli.prediction import law_record, prediction, show
from fisher_jax.cli.problem import arguments, problem
from fisher_jax.cli.progress import Bar

EXAMPLES = """
examples:
  fisher-jax density                                    the 1797 real digits, a residual network at initialization
  fisher-jax density --samples 300 --steps 160 --probes 16
  fisher-jax density --above 1 --damping 0.01           also: how many eigenvalues exceed 1; log-determinant, dimension
  fisher-jax density --outliers 0                       nothing projected out
  fisher-jax density --method kpm                       Chebyshev moments instead, as a second opinion
  fisher-jax density --model resnet20 --samples 100 -o width=8

Random vectors ("probes") see the spectrum as weighted nodes; the outliers are found first, kept exactly, and projected out,
so that the probes resolve the bulk. Intervals hold with probability 95 %: they cover the randomness of the probes and what
the steps leave open. Zeros are a count. --out receives density.npz (read it with fisher_jax.load), density.json and
density.png.
"""


def add(commands: Any) -> None:
    """The parser of this command."""
    density = commands.add_parser(
        "density",
        help="the spectral density of a network's Fisher matrix, with error bars",
        description="The density of all eigenvalues of the Fisher matrix of a network on data, from products with random "
        "vectors; trace, norm, counts and log-determinants with intervals; data and plot.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments(density, "fisher_density")
    group = density.add_argument_group("density")
    group.add_argument("--method", default="slq", choices=["slq", "kpm"], help="Lanczos quadrature (default) or Chebyshev")
    group.add_argument("--steps", type=int, default=80, help="products for each probe (default: 80)")
    group.add_argument("--probes", type=int, default=8, help="random vectors (default: 8)")
    group.add_argument("--outliers", type=int, metavar="K", help="found first, exactly (default: as many as theory expects)")
    group.add_argument("--tol", type=float, default=1e-5, help="of the outliers, residual over the largest (default: 1e-5)")
    group.add_argument("--above", type=float, metavar="T", help="count the eigenvalues above T")
    group.add_argument(
        "--damping", type=float, metavar="D", help="log det(1 + F/D) and effective dimension, sum of l/(l + D)"
    )
    group.add_argument("--chunk", metavar="N", default="auto", help="samples per pass (default: from free memory)")
    density.set_defaults(run=run_density)


def run_density(options: argparse.Namespace) -> int:
    """`fisher-jax density`."""
    import jax

    import fisher_jax as fj

    steps, probes = options.steps, options.probes
    method = fj.SLQ(steps, probes) if options.method == "slq" else fj.KPM(2 * steps, probes)
    solver = fj.Auto(options.tol)
    if options.outliers is not None:
        _checks.integer("density", "outliers", options.outliers, 0)
    if options.damping is not None:
        _checks.positive("density", "damping", options.damping)
    if options.above is not None:
        _checks.finite_number("density", "above", options.above)
    if options.method == "kpm" and (options.above is not None or options.damping is not None):
        raise _checks.fail("density", "nothing bounds counts and sums of --method kpm", "leave out --method kpm or these")
    out_directory(options)
    F, title, made = problem(options)
    print(title, flush=True)
    find, probe = jax.random.split(made.keys["solver"])
    most = min(F.factor.outliers(), F.factor.rank_bound() - 1) if options.outliers is None else options.outliers
    with warnings.catch_warnings(record=True) as caught, Bar(options.quiet, "done") as bar:
        warnings.simplefilter("always")
        top = fj.eigsh(F, most, method=solver, key=find, progress=bar) if most > 0 else None
        if top is not None and "interrupted" in dict(top.info).get("note", ""):
            raise KeyboardInterrupt  # before the first probe there is nothing to keep
        found = fj.density(F, method=method, top=top, key=probe, progress=lambda n, of: bar.networks("probing", n, of))
        numbers = {"trace": found.trace(), "frobenius": found.frobenius()}
        if options.above is not None:
            numbers[f"eigenvalues above {options.above:g}"] = found.count_above(options.above)
        if options.damping is not None:
            numbers[f"log det(1 + F/{options.damping:g})"] = found.logdet(options.damping)
            numbers[f"effective dimension at {options.damping:g}"] = found.effective_dimension(options.damping)
        bar.note("prediction")
        law, why = prediction(options, made, most if options.likelihood == "categorical" else None)
    show(caught)
    width = max(map(len, numbers))
    rows = [f"{name:<{width}}  {number!r}" for name, number in list(numbers.items())[2:]]
    print("\n" + "\n".join([repr(found), *([""] if rows else []), *rows, *(["", why] if why else [])]))
    record = {name: getattr(found, name) for name in ("bulk", "unresolved", "zeros", "size", "dimension", "floor", "leak")}
    record |= {"estimates": {name: json.loads(number.to_json()) for name, number in numbers.items()}}
    record |= {"outliers": [float(v) for v in found.atoms], "method": found.method, "info": dict(found.info)}
    record |= {"settings": made.settings, "predicted": law_record(law) if law else None}
    theory = law if law is not None and options.likelihood != "categorical" else None
    files = {
        "density.npz": lambda path: fj.save(found, path),
        "density.json": lambda path: write_json(record, path),
        "density.png": fj.plot.density(found, None, title, theory).savefig,
    }
    write(options.out, files)
    return 0
