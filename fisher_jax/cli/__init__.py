"""The commands of `fisher-jax`: spectrum, density, full, plan, theory, compare, atlas, train, models; one file each."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fisher_jax._checks import ArgumentError
from fisher_jax.cli import atlas, compare, density, full, models, spectrum, theory, train


class _Parser(argparse.ArgumentParser):
    """argparse, with errors on one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="fisher-jax", description="Eigenvalue spectra of Fisher information matrices, with error bounds.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for command in (spectrum, density, full, theory, compare, atlas, train, models):
        command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for input that cannot be used, 130 when interrupted."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except ArgumentError as error:
        print(f"fisher-jax: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has seen enough, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("fisher-jax: interrupted, nothing written", file=sys.stderr)
        return 130
