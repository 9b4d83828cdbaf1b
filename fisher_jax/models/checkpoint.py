"""Weights of a model from and to disk: Orbax directories and `.npz` files with one array per parameter path."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fisher_jax import _checks
from fisher_jax.results import replace


def save_weights(model: nnx.Module, path: Any) -> None:
    """Write the parameters of `model`: to an `.npz` file, or to an Orbax directory for any other path."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    path = os.path.abspath(os.fspath(path))
    if path.endswith(".npz"):
        arrays = {name: np.asarray(leaf) for name, leaf in _named(params).items()}

        def write(temporary: str) -> None:
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]

        replace(path, write)
        return
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, _string_keys(params))


def load_weights(model: nnx.Module, path: Any) -> None:
    """Set the parameters of `model` from a file of `save_weights`, or from any Orbax checkpoint of the same tree.

    Raises:
        ArgumentError: the path does not exist or is no checkpoint; a parameter is missing, unknown, of another shape, or
            not finite. The model is left as it was.
    """
    path = os.path.abspath(os.fspath(path))
    if not os.path.exists(path):
        raise _checks.fail("checkpoint", f"{path} does not exist", "give an Orbax directory or an .npz file")
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    wanted = _named(params)
    found = _read_npz(path) if os.path.isfile(path) else _read_orbax(path)
    if missing := sorted(set(wanted) - set(found)):
        raise _checks.fail("checkpoint", f"{path} lacks {_few(missing)}", "give a checkpoint of this model and its options")
    if unknown := sorted(set(found) - set(wanted)):
        raise _checks.fail(
            "checkpoint", f"{path} has unknown {_few(unknown)}", "choose the model and options it was saved with"
        )
    for name, leaf in wanted.items():
        if found[name].shape != leaf.shape or not np.issubdtype(found[name].dtype, np.number):
            raise _checks.fail(
                "checkpoint",
                f"{name} is {found[name].dtype}{list(found[name].shape)}, the model has {list(leaf.shape)}",
                "choose the options it was saved with",
            )
        _checks.finite("checkpoint", name, found[name], "load weights without NaN")
    leaves, treedef = jax.tree.flatten(params)
    new = [jnp.asarray(found[name], leaf.dtype) for name, leaf in zip(wanted, leaves, strict=True)]
    nnx.update(model, treedef.unflatten(new))


def _named(params: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _string_keys(tree: Any) -> Any:
    """Orbax wants string keys; lists of layers have integers."""
    return {str(k): _string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


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
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
