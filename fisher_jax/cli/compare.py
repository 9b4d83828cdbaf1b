"""`fisher-jax compare`: architectures against theory."""

import argparse
import os
import sys
import time
from typing import Any

from fisher_jax._checks import ArgumentError
from fisher_jax.cli.files import out_directory
from fisher_jax.cli.progress import Bar

EXAMPLES = """
examples:
  fisher-jax compare                                    eight architectures, depths 1 to 32: some minutes on 2 cores
  fisher-jax compare --variants mlp,skip2,bn            the mean eigenvalue: flat, exponential, sub-linear, as one figure
  fisher-jax compare --variants bn,bn-batch --depths 4,8,16,32,64
  fisher-jax compare --variants mlp,skip2 --outputs 3 --likelihood categorical
  fisher-jax compare --data digits --samples 50 --seeds 10

For each variant and depth, --seeds random networks are made and all eigenvalues of their Fisher matrices taken; theory
predicts the same from the architecture and the data's kernel. The numbers are the trace, the mean eigenvalue, the second
moment, lambda_max, how many eigenvalues stand out (lie above the widest gap in the upper half, if that is more than a
factor 2), the mean of the others, and the largest stable learning rate 2/lambda_max: measured (mean ± standard error),
predicted, relative error, and a verdict in standard errors; then the laws by which they grow with depth. --out receives
report.html (open it in a browser), comparison.csv, .json, .md and the figures. Interrupted, the same command goes on where
it was: finished cells lie in DIR/cells; another comparison in the same DIR takes what fits and computes the rest.
"""


def add(commands: Any) -> None:
    """The parser of this command."""
    compare = commands.add_parser(
        "compare",
        help="measured Fisher spectra of architectures beside what theory predicts",
        description="Fisher spectra of many random networks of each architecture and depth, beside the predictions of "
        "mean-field theory, with standard errors, growth laws and a report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = "mlp,skip1,skip2,concat,bn,fixup,dropout,stochastic-depth"
    compare.add_argument(
        "--variants", default=defaults, metavar="NAMES", help=f"comma-separated, or all (default: {defaults}; see --list)"
    )
    compare.add_argument("--list", action="store_true", help="list the variants and what theory says of them, and end")
    compare.add_argument(
        "--depths", default="1,2,4,8,16,32", metavar="LIST", help="comma-separated (default: 1,2,4,8,16,32)"
    )
    compare.add_argument("--width", type=int, default=256, help="hidden units (default: 256)")
    compare.add_argument("--samples", type=int, default=16, metavar="N", help="samples (default: 16)")
    compare.add_argument(
        "--data",
        default="gaussian",
        metavar="SOURCE",
        help="gaussian (default): N(0, 1) with as many features as the width; digits, spheres, or a file as in `spectrum`",
    )
    compare.add_argument("--outputs", type=int, default=1, metavar="C", help="network outputs (default: 1)")
    compare.add_argument(
        "--likelihood", default="gaussian", choices=["gaussian", "categorical"], help="of the outputs (default: gaussian)"
    )
    compare.add_argument("--seeds", type=int, default=30, metavar="S", help="networks for each number (default: 30)")
    compare.add_argument("--seed", type=int, default=0, help="of data and networks (default: 0)")
    compare.add_argument("--x64", action="store_true", help="compute in float64")
    compare.add_argument(
        "--out", default="fisher_comparison", metavar="DIR", help="where files go (default: fisher_comparison)"
    )
    compare.add_argument("--quiet", action="store_true", help="no progress bar, and only the laws and the summary")
    compare.set_defaults(run=run_compare)


def run_compare(options: argparse.Namespace) -> int:
    """`fisher-jax compare`."""
    import jax

    if options.x64:
        jax.config.update("jax_enable_x64", True)
    import fisher_jax as fj

    known = fj.experiments.VARIANTS
    if options.list:
        width = max(map(len, known))
        print("\n".join(f"{name:<{width}}  {v.title}: {v.law}" for name, v in known.items()))
        return 0
    depths = _depths(options.depths)
    names = list(known) if options.variants == "all" else [name for name in options.variants.split(",") if name]
    out_directory(options)
    key, start = jax.random.key(options.seed), time.perf_counter()
    x = None
    if options.data != "gaussian":
        shape = {"samples": options.samples, "inputs": options.width}
        x = fj.data.load(options.data, **shape, key=jax.random.fold_in(key, 0))[0]
        x = x.reshape(len(x), -1)
    shape = {"width": options.width, "samples": options.samples, "outputs": options.outputs}
    many = {"likelihood": options.likelihood, "seeds": options.seeds, "directory": options.out, "key": key}
    try:
        with Bar(options.quiet, "networks") as bar:
            found = fj.experiments.compare(names, depths, x=x, **shape, **many, progress=bar.networks)
    except KeyboardInterrupt:
        kept = os.path.join(options.out, "cells")
        print(f"fisher-jax: interrupted; the same command goes on with what is in {kept}", file=sys.stderr)
        return 130
    written = fj.experiments.write(found, options.out)
    print(f"{found.laws()}\n\n{found.summary()}" if options.quiet else found)
    print(f"\n{len(found.cells)} cells in {time.perf_counter() - start:.0f} s\nwritten: {', '.join(written)}")
    return 0


def _depths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise ArgumentError(f"compare: depths={text!r} is no list of integers; give --depths 1,2,4") from None
