"""Files of a command: all of them or none."""

import argparse
import json
import os
import tempfile
from typing import Any

from fisher_jax._checks import ArgumentError


def write(out: str, files: dict[str, Any]) -> None:
    """All files under temporary names first, then renamed: a failure leaves what was there before."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as temporary:
        for file, write in files.items():
            write(os.path.join(temporary, file))
        for file in files:
            os.replace(os.path.join(temporary, file), os.path.join(out, file))
    print(f"\nwritten: {', '.join(os.path.join(out, file) for file in files)}")


def write_json(record: dict[str, Any], path: str) -> None:
    with open(path, "w") as file:
        file.write(json.dumps(_plain(record), indent=2) + "\n")


def _plain(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def out_directory(options: argparse.Namespace) -> None:
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
