"""Weights of a model from and to disk: `.npz`, `.safetensors` and Orbax directories, under our names or others."""

import fnmatch
import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fisher_jax import _checks
from fisher_jax.models import safetensors
from fisher_jax.models.blocks import one_of
from fisher_jax.models.layouts import LAYOUTS, Names, Source, sources
from fisher_jax.results import replace

# A network is what it computes in evaluation mode: also the running statistics of its batch norms.
STORED = (nnx.Param, nnx.BatchStat)


def save_weights(model: nnx.Module, path: Any) -> None:
    """Write the parameters and running statistics of `model`.

    Args:
        model: any nnx.Module.
        path: an `.npz` file of one array per path, such as "blocks/0/first/kernel"; anything else is an Orbax directory.

    Raises:
        ArgumentError: a `.safetensors` path, no such directory.
    """
    state = nnx.to_pure_dict(nnx.state(model, STORED))
    path = os.path.abspath(os.fspath(path))
    if path.endswith(".safetensors"):
        raise _checks.fail("save_weights", f"path={path!r}: this format is only read", "give an .npz or a directory")
    if path.endswith(".npz"):
        # NumPy's files know no bfloat16.
        arrays = {n: np.asarray(a, np.float32 if a.dtype == jnp.bfloat16 else a.dtype) for n, a in _named(state).items()}

        def write(temporary: str) -> None:
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]

        replace(path, write)
        return
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, _string_keys(state))


def load_weights(
    model: nnx.Module,
    path: Any,
    *,
    names: Names | None = None,
    layout: str | None = None,
    ignore: str | Iterable[str] = (),
) -> None:
    """Set the parameters and running statistics of `model` from a file of `save_weights`, or of other libraries.

    Numbers are rounded to the model's types. An array of the file may serve several parameters, and all must be used.

    Args:
        model: as built, with the options the weights were made for.
        path: an `.npz` or `.safetensors` file, or an Orbax directory.
        names: where our paths are in the file: a map of patterns, where {i} stands for one step of a path,
            {"blocks/{i}/up/kernel": "h.{i}.fc.weight"}, or a function of the path. The other side is a name, or a `Source`
            for an array that lies differently. What it does not name has our path in the file too.
        layout: a published family, of `models.LAYOUTS`: "gpt2" (Hugging Face), "torchvision-resnet". `names` go first.
        ignore: globs of the file's arrays that may be left unused.

    Raises:
        ArgumentError: the path does not exist or is no checkpoint; the names of all that is missing, unused, of another
            shape or kind, or not finite. The model is left as it was.
    """
    path = os.path.abspath(os.fspath(path))
    if not os.path.exists(path):
        raise _checks.fail("checkpoint", f"{path} does not exist", "give an Orbax directory or an .npz or .safetensors file")
    maps, ignore = [names], (ignore,) if isinstance(ignore, str) else tuple(ignore)
    family = None if layout is None else LAYOUTS[one_of("checkpoint", "layout", layout, list(LAYOUTS))]
    if family is not None:
        maps, ignore = [names, family.names(model)], ignore + family.ignore
    state = nnx.to_pure_dict(nnx.state(model, STORED))
    wanted = _named(state)
    where = sources(wanted, maps)
    found = _without_prefix(path, _read(path), "" if family is None else family.prefix)

    arrays: dict[str, np.ndarray] = {}
    lacks, shapes, infinite = [], [], []
    for name, leaf in wanted.items():
        source = where[name]
        label = name if source.name == name else f"{source.name} (for {name})"
        if source.name not in found:
            lacks.append(label)
            continue
        arrays[name], misfit = _fitted(found[source.name], source, leaf)
        if misfit:
            shapes.append(f"{label} {misfit}")
        elif bad := arrays[name].size - int(np.count_nonzero(np.isfinite(arrays[name]))):
            infinite.append(f"{label} has {bad} NaN or infinite value(s) among {arrays[name].size}")
    unused = [name for name in _unused(found, where) if not any(fnmatch.fnmatchcase(name, glob) for glob in ignore)]
    problems = {"lacks": lacks, "has unknown": unused, "misfits:": shapes, "not finite:": infinite}
    if any(problems.values()):
        remedy = "give a checkpoint of this model and its options, or say what is where with names=, layout=, ignore="
        raise _checks.fail(
            "checkpoint",
            f"{path} {'; '.join(f'{what} {_few(listed)}' for what, listed in problems.items() if listed)}",
            remedy if lacks or unused or shapes else "load weights without NaN",
        )
    leaves, treedef = jax.tree.flatten(state)
    new = [jnp.asarray(arrays[name], leaf.dtype) for name, leaf in zip(wanted, leaves, strict=True)]
    nnx.update(model, treedef.unflatten(new))


def _fitted(array: np.ndarray, source: Source, leaf: Any) -> tuple[np.ndarray, str]:
    """The array of a file as the model holds it, and what is wrong with it if anything."""
    given, wanted = f"is {array.dtype}{list(array.shape)}", f"the model has {list(leaf.shape)}"
    try:
        fitted = source.read(array, leaf.shape)
    except (ValueError, IndexError):
        return array, f"{given}, {wanted}: no {source}"
    if fitted.shape != leaf.shape:
        read = "" if fitted.shape == array.shape else f", read as {list(fitted.shape)}"
        return array, f"{given}{read}, {wanted}"
    # Integers become real numbers and those complex ones, never back; booleans and text are none.
    if not 0 < _kind(array.dtype) <= _kind(leaf.dtype):
        return array, f"{given}, the model has {leaf.dtype}{list(leaf.shape)}"
    with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
        return fitted.astype(leaf.dtype), ""


def _kind(dtype: Any) -> int:
    """1, 2 and 3 for integers, real and complex numbers, 0 for what is no number."""
    kinds = (jnp.integer, jnp.floating, jnp.complexfloating)
    return next((i for i, kind in enumerate(kinds, start=1) if jnp.issubdtype(dtype, kind)), 0)


def _unused(found: Mapping[str, np.ndarray], where: Mapping[str, Source]) -> list[str]:
    """Names of arrays from which nothing is taken, or not all of their parts."""
    parts: dict[str, set[tuple[int, int]]] = {}
    for source in where.values():
        parts.setdefault(source.name, set()).add(source.part or (0, 1))
    return [name for name in found if sum(Fraction(1, n) for _, n in parts.get(name, ())) < 1]


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _string_keys(tree: Any) -> Any:
    """Orbax wants string keys; lists of layers have integers."""
    return {str(k): _string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _read(path: str) -> dict[str, np.ndarray]:
    if not os.path.isfile(path):
        return _read_orbax(path)
    try:
        return safetensors.read(path) if path.endswith(".safetensors") else _read_npz(path)
    except OSError as error:
        raise _checks.fail("checkpoint", f"{path} cannot be read ({error.strerror})", "give a file of yours") from error


def _without_prefix(path: str, found: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    short = {name.removeprefix(prefix): array for name, array in found.items()}
    if len(short) < len(found):
        raise _checks.fail("checkpoint", f"{path} has names with and without {prefix!r}", "give a file of one network")
    return short


def _read_npz(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        raise _checks.fail("checkpoint", f"{path} is not an .npz of arrays", "save it with models.save_weights") from error


def _read_orbax(path: str) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(path).item_metadata
            abstract = jax.tree.map(
                lambda m: jax.ShapeDtypeStruct(
                    m.shape, m.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
                ),
                metadata.tree,
            )
            tree = checkpointer.restore(path, abstract)
    except Exception as error:
        reason = str(error).strip().splitlines()[:1]
        raise _checks.fail("checkpoint", f"{path} is not an Orbax checkpoint {reason}", "save it with Orbax") from error
    # nnx.state(model) saves each variable as {"value": array}.
    return {name.removesuffix("/value"): np.asarray(leaf) for name, leaf in _named(tree).items()}


def _few(names: list[str]) -> str:
    """On one line, whatever a file calls its arrays."""
    shown = [name if name.isprintable() else ascii(name) for name in names[:8]]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
