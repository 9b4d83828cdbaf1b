"""Long work in pieces: each finished cell is a file of its own, and the same call takes it from there."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from fisher_jax import _checks, results


def kept(
    where: str,
    directory: Any,
    name: str,
    identity: dict[str, Any],
    fields: Sequence[str],
    make: Callable[[], dict[str, Any]] | None,
) -> Any:
    """A cell from its file in `directory/cells`, or made and written there; without a directory just made.

    Args:
        where: the caller, for messages. name: begins the file's name.
        identity: all that the numbers depend on, plain; another identity is another file.
        fields: what a cell must have.
        make: gives the cell, of plain numbers, lists and dicts; if None, what has no file is None.
    """
    if directory is None:
        return make() if make else None
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    directory = os.path.join(os.fspath(directory), "cells")
    path = os.path.join(directory, f"{name}-{digest}.json")
    if os.path.exists(path):
        try:
            with open(path) as file:
                found = json.load(file)
            if found["identity"] != identity or not set(fields) <= set(found["cell"]):
                raise ValueError
            return found["cell"]
        except (ValueError, KeyError, TypeError):
            raise _checks.fail(where, f"{path} is damaged, or of another version", "remove it") from None
    if make is None:
        return None
    cell = make()

    def write(temporary: str) -> None:
        with open(temporary, "w") as file:
            json.dump({"identity": identity, "cell": cell}, file)

    os.makedirs(directory, exist_ok=True)
    results.replace(path, write)
    return cell
