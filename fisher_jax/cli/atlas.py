"""`fisher-jax atlas`: one table of spectra over a grid of networks, before and after training."""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from fisher_jax._checks import ArgumentError
from fisher_jax.cli.files import out_directory
from fisher_jax.cli.progress import Bar

EXAMPLES = """
examples:
  fisher-jax atlas --quick                                a small grid, in a minute
  fisher-jax atlas                                        all of it: 217 networks, which take a while; it goes on if cut off
  fisher-jax atlas --list                                 the networks of the grid, and how many
  fisher-jax atlas --architectures mlp,skip2 --norms none,batch --inits gaussian --masks none --depths 2,4,8,16
  fisher-jax atlas --architectures resnet --seeds 5       five networks for each point of the grid

Each network is built, measured, trained on 1438 handwritten digits (cross-entropy; Adam at rate 0.003 with warm-up and
cosine decay, batches of 64), and measured again: all eigenvalues of its exact Fisher matrix in evaluation mode, on
--samples of the 359 digits held out, for Gaussian outputs (squared error) and for categorical ones (softmax). A new network
with batch norm first takes its running statistics from two epochs without a step. The axes of the grid:

  architectures  mlp, skip1, skip2 (skip over one and two layers): 64 units wide, depths 2, 4, 8;
                 concat: 16 units more with each block, depths 2, 4, 8;
                 resnet (depths 8, 14), vgg (11), densenet (10): 4 channels wide at first
  norms          none; batch; population (skip2)
  inits          gaussian; orthogonal; fixup (skip2, resnet) and skipinit (skip1, skip2, resnet), both without norm
  masks          none; dropout of rate 0.2; stochastic-depth, survival 0.8 (skip1, skip2, resnet)

What an architecture does not take is left out. --out receives atlas.npz (numpy.load, without pickle, or
fisher_jax.experiments.load_atlas), atlas.csv, the figures, and README.md, which shows them. Interrupted, the same command
goes on where it was: finished networks lie in DIR/cells; a larger grid with the same DIR takes them from there. --finished
shows what there is, also while the command runs elsewhere.
"""
QUICK = {"architectures": "mlp,skip2", "norms": "none", "inits": "gaussian", "masks": "none", "depths": "2,4"}


def add(commands: Any) -> None:
    """The parser of this command."""
    atlas = commands.add_parser(
        "atlas",
        help="one table of spectra of many networks before and after training, with a gallery",
        description="Fisher spectra of trained and untrained networks on handwritten digits, over a grid: architecture x "
        "norm x initialization x masks x depth x before/after training x likelihood.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for axis, what in (
        ("architectures", "mlp, skip1, skip2, concat, resnet, vgg, densenet"),
        ("norms", "none, batch, population"),
        ("inits", "gaussian, orthogonal, fixup, skipinit"),
        ("masks", "none, dropout, stochastic-depth"),
    ):
        atlas.add_argument(f"--{axis}", metavar="NAMES", help=f"comma-separated (default: {what})")
    atlas.add_argument("--depths", metavar="LIST", help="comma-separated (default: each architecture's own)")
    atlas.add_argument(
        "--quick", action="store_true", help="mlp and skip2 of depth 2 and 4, as they come, where not said else"
    )
    atlas.add_argument("--list", action="store_true", help="list the networks, and end")
    atlas.add_argument(
        "--finished", action="store_true", help="table and figures of what lies in DIR so far; computes nothing"
    )
    atlas.add_argument("--seeds", type=int, default=1, metavar="S", help="networks for each point of the grid (default: 1)")
    atlas.add_argument("--samples", type=int, default=40, metavar="N", help="samples of the matrices (default: 40)")
    atlas.add_argument("--epochs", type=int, default=10, help="of the training (default: 10)")
    atlas.add_argument("--seed", type=int, default=0, help="of data and networks (default: 0)")
    atlas.add_argument("--out", default="fisher_atlas", metavar="DIR", help="where files go (default: fisher_atlas)")
    atlas.add_argument("--quiet", action="store_true", help="no progress bar, and no table")
    atlas.set_defaults(run=run_atlas)


def run_atlas(options: argparse.Namespace) -> int:
    """`fisher-jax atlas`."""
    import jax

    import fisher_jax as fj

    chosen = {axis: getattr(options, axis) or (QUICK[axis] if options.quick else None) for axis in QUICK}
    axes: dict[str, Any] = {
        axis: _depths(text) if axis == "depths" else text.split(",") for axis, text in chosen.items() if text is not None
    }
    if options.list:
        entries = fj.experiments.grid(**axes)
        print("\n".join(str(entry) for entry in entries) + f"\n{len(entries)} networks")
        return 0
    out_directory(options)
    start = time.perf_counter()
    many = {"seeds": options.seeds, "samples": options.samples, "epochs": options.epochs, "directory": options.out}
    many["finished"] = options.finished
    try:
        with _shared_programs(), Bar(options.quiet, "networks") as bar:
            found = fj.experiments.atlas(**axes, **many, key=jax.random.key(options.seed), progress=bar.networks)
    except KeyboardInterrupt:
        kept = os.path.join(options.out, "cells")
        print(f"fisher-jax: interrupted; the same command goes on with what is in {kept}", file=sys.stderr)
        return 130
    written = fj.experiments.write_atlas(found, options.out, _command(options))
    if not options.quiet:
        print(found)
    counted = f"{found.settings['networks']} of {found.settings['grid']} networks"
    print(f"\n{counted} in {time.perf_counter() - start:.0f} s\nwritten: {', '.join(written)}")
    return 0


@contextlib.contextmanager
def _shared_programs() -> Iterator[None]:
    """Networks that differ by their weights alone are one program: compiled once; a cache of the user's serves as well."""
    import jax

    with tempfile.TemporaryDirectory() as directory:
        wanted = {
            "jax_compilation_cache_dir": directory,
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        before = {name: getattr(jax.config, name) for name in wanted}
        if before["jax_compilation_cache_dir"] is None:
            for name, value in wanted.items():
                jax.config.update(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)


def _command(options: argparse.Namespace) -> str:
    """The command line that gives the same atlas."""
    usual = {"seeds": 1, "samples": 40, "epochs": 10, "seed": 0}
    words = ["fisher-jax atlas"] + ["--quick"] * options.quick + ["--finished"] * options.finished
    words += [f"--{axis} {getattr(options, axis)}" for axis in QUICK if getattr(options, axis) is not None]
    return " ".join(
        words + [f"--{name} {getattr(options, name)}" for name, n in usual.items() if getattr(options, name) != n]
    )


def _depths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise ArgumentError(f"atlas: depths={text!r} is no list of integers; give --depths 2,4,8") from None
