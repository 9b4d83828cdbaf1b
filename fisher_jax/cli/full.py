"""`fisher-jax full`: every eigenvalue; `fisher-jax plan`: what that costs."""

import argparse
from typing import Any

from fisher_jax.cli.files import out_directory, write, write_json
from fisher_jax.cli.prediction import law_record, prediction
from fisher_jax.cli.problem import arguments, problem
from fisher_jax.cli.progress import Bar

EXAMPLES = """
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

# Predicted eigenvalues of softmax, whose draws take time.
LARGEST = 100


def add(commands: Any) -> None:
    """The parsers of both commands."""
    full = commands.add_parser(
        "full",
        help="every nonzero eigenvalue, exactly, for N·C up to some 10^4",
        description="All eigenvalues of the Fisher matrix of a network on data, through the explicit dual matrix; exact "
        "count of zeros, moments, cumulative plot.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments(full)
    _parts_arguments(full)
    full.set_defaults(run=run_full, chunk="auto")
    plan = commands.add_parser(
        "plan",
        help="what `full`, or with -k `spectrum`, would cost: operations, bytes, seconds, kernels or methods",
        description="Operations, memory and expected time of `fisher-jax full` with the same arguments; with -k those of "
        "`fisher-jax spectrum -k K`, by every method, the one it would take first. Makes the network, unless --streamed, "
        "but computes nothing with it and writes nothing.",
    )
    arguments(plan)
    _parts_arguments(plan)
    plan.add_argument("-k", type=int, help="plan the k largest eigenvalues instead of all")
    plan.add_argument(
        "--tol", type=float, default=1e-6, help="with -k: residual over the largest eigenvalue (default: 1e-6)"
    )
    plan.set_defaults(run=run_plan, chunk="auto")


def _parts_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--by", choices=["layer", "block"], help="also the diagonal block of F of every layer or block")
    command.add_argument("--vectors", type=int, default=0, metavar="K", help="also the K leading eigenvectors (default: 0)")
    command.add_argument("--streamed", action="store_true", help="do not keep the weights: for networks larger than memory")


def run_plan(options: argparse.Namespace) -> int:
    """`fisher-jax plan`."""
    import fisher_jax as fj

    F, title, _ = problem(options)
    if options.k is None:
        print(f"{title}\n{fj.plan(F, by=options.by, vectors=options.vectors)}")
        return 0
    if options.by or options.vectors:
        raise fj.ArgumentError("plan: -k is for the largest eigenvalues of the whole; leave out --by and --vectors")
    print(f"{title}\n{fj.plan(F, options.k, method=fj.Auto(options.tol))}")
    return 0


def run_full(options: argparse.Namespace) -> int:
    """`fisher-jax full`."""
    import fisher_jax as fj

    out_directory(options)
    F, title, made = problem(options)
    print(title, flush=True)
    with Bar(options.quiet, "steps of K") as bar:
        found = fj.spectrum(F, by=options.by, vectors=options.vectors, progress=bar.tiles)
        bar.note("prediction")
        law, why = prediction(options, made, LARGEST if options.likelihood == "categorical" else None)
    parts = found if options.by else {"all": found}
    whole = parts["all"]
    print(f"\n{whole}\n\n{law or why}")
    if options.by:
        print(f"\n{_parts_table(parts)}")
    record = {name: _spectrum_record(part) for name, part in parts.items()}
    record = record.pop("all") | ({"parts": record} if options.by else {}) | {"settings": made.settings}
    record["predicted"] = law_record(law) if law else None
    files = {
        "full.npz": lambda path: fj.save(whole, path),
        "full.json": lambda path: write_json(record, path),
        "full.png": fj.plot.full(parts, title, law).savefig,
    }
    write(options.out, files)
    return 0


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
