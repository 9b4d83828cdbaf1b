"""Argument checks with one message style: who, argument and value, what is wrong, what to do."""

import numbers
import operator
from typing import Any

import jax
import jax.core
import numpy as np


class ArgumentError(ValueError):
    """An argument that cannot be used; the message names the argument, its value and the remedy, on one line."""


def fail(where: str, what: str, remedy: str) -> ArgumentError:
    """The error to raise: `fail("eigsh", "k=30 exceeds size 21", "ask for at most 21")`."""
    return ArgumentError(f"{where}: {what}; {remedy}")


def integer(where: str, name: str, value: Any, least: int, most: int | None = None, remedy: str = "") -> int:
    """`value` as an int in [least, most], else an error that names it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise fail(where, f"{name}={value!r} is not an integer", remedy or f"give an integer >= {least}") from None
    if number < least:
        raise fail(where, f"{name}={number} is below {least}", remedy or f"give {name} >= {least}")
    if most is not None and number > most:
        raise fail(where, f"{name}={number} exceeds {most}", remedy or f"give {name} <= {most}")
    return number


def positive(where: str, name: str, value: Any) -> float:
    """`value` as a finite float > 0, else an error that names it."""
    if isinstance(value, numbers.Real) and 0 < float(value) < float("inf"):
        return float(value)
    raise fail(where, f"{name}={value!r} is not a positive number", f"give {name} > 0")


def tolerance(where: str, tol: Any) -> float:
    """A residual over the norm, in (0, 1): any vector reaches a larger one."""
    number = positive(where, "tol", tol)
    if number >= 1:
        raise fail(where, f"tol={tol!r} is a residual no smaller than the norm", "give tol < 1, such as 1e-6")
    return number


def finite_number(where: str, name: str, value: Any) -> float:
    """`value` as a finite float, else an error that names it; arrays of one number are numbers."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if isinstance(value, str) or not np.isfinite(number):
        raise fail(where, f"{name}={value!r} is not a finite number", f"give a number for {name}")
    return number


def traced(tree: Any) -> bool:
    """Is any leaf a tracer, that is, are we inside jit, vmap or grad?"""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def finite(where: str, name: str, tree: Any, remedy: str) -> None:
    """Refuse NaN and infinity in any floating leaf of `tree`, naming the leaf; skipped for tracers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.core.Tracer) or not jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact):
            continue
        # Arrays on the host may be memory-mapped and large: read them in slices, without a full-size boolean copy. Those of
        # JAX there need no copy either, and no program for each shape.
        if isinstance(leaf, np.ndarray) or _on_host(leaf):
            host = np.asarray(leaf)
            flat = host.reshape(-1) if host.flags.c_contiguous else host.ravel()
            bad = sum(int(np.count_nonzero(~np.isfinite(flat[i : i + 2**22]))) for i in range(0, flat.size, 2**22))
        else:
            with jax.ensure_compile_time_eval():
                bad = int(jax.numpy.sum(~jax.numpy.isfinite(leaf)))
        if bad:
            label = name + ("/" + jax.tree_util.keystr(path, simple=True, separator="/") if path else "")
            raise fail(where, f"{label} has {bad} NaN or infinite value(s) among {leaf.size}", remedy)


def _on_host(a: jax.Array) -> bool:
    """On one device, a CPU."""
    devices = list(a.devices())
    return len(devices) == 1 and devices[0].platform == "cpu"
