"""The spectrum during training: every so many steps, from one compiled program, each from where the last one ended."""

import dataclasses
import json
import math
import os
import re
import sys
import time
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from fisher_jax import _checks, linalg
from fisher_jax.fisher import FisherOperator, fisher
from fisher_jax.functional import Function, Streamed, as_function
from fisher_jax.likelihoods import Likelihood
from fisher_jax.results import Track, provenance, replace
from fisher_jax.solvers import Lanczos, eigsh
from fisher_jax.spectrum import dense_floor

# Up to this size the dual matrix is formed and diagonalized: for so few samples that costs less than the products of an
# iteration, and gives all eigenvalues.
DENSE_ROWS = 1000
# Without a method of the user's: at this residual the error of a value is some 1e-6 of λ_max where gaps are not small.
ITERATION = Lanczos(tol=1e-3)
OPTIONS = ("kind", "where", "chunk", "mesh", "weights", "masks", "bn")
COLUMNS = ("values", "bounds", "complete_above", "trace", "loss", "rate", "seconds", "products")


def track(
    x: Any,
    likelihood: Likelihood,
    *,
    every: int,
    k: int = 5,
    method: Any = None,
    key: jax.Array,
    path: Any = None,
    tensorboard: Any = None,
    **options: Any,
) -> "Tracker":
    """A recorder of the k largest eigenvalues of the Fisher matrix while a network trains.

        tracker = fj.track(x, fj.Categorical(), every=100, key=key, path="track.jsonl")
        for step in range(steps):
            tracker(step, model, loss=loss, rate=rate)  # model in evaluation mode, or with masks= and bn=
            ...
        fj.plot.track(tracker.history)

    The Fisher matrix is that of the samples x at the weights of the moment, as `fj.fisher(model, x, likelihood, **options)`
    makes it. Its checks run once. With N·C up to 1000 rows the dual matrix is formed and diagonalized in one program, and
    the trace comes with it; otherwise `method` iterates, starting from the eigenvectors of the measurement before.

    Args:
        x: the samples to measure on, leading axis N: a few dozen keep the cost below that of the training itself.
        likelihood: as in `fj.fisher`.
        every: steps between measurements. k: how many eigenvalues.
        method: of `fj.eigsh`, for the iteration whatever the size; `fj.Lanczos(tol=1e-3)` unless given.
        key: JAX random key of the solver.
        path: file to append one line of JSON to for every measurement, after a first one that says what is measured. An
            existing one of the same samples and options is continued: lines from the step on that is measured first are
            replaced.
        tensorboard: directory for TensorBoard (needs `pip install tensorboardX`).
        options: of `fj.fisher`: kind, where, chunk, mesh, weights, masks, bn.

    Returns:
        Tracker, with `tracker.history` as a `Track`.

    Raises:
        ArgumentError: unknown options, a file that is no such record, TensorBoard asked for but not installed; when first
            called, everything that `fj.fisher` refuses.
    """
    if not isinstance(likelihood, Likelihood):
        raise _checks.fail("track", f"likelihood={likelihood!r} is not a likelihood", "give fj.Categorical(), ...")
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise _checks.fail("track", f"{unknown[0]}=... is not an option", f"it takes {', '.join(OPTIONS)} of fj.fisher")
    if method is not None and not hasattr(method, "solve"):
        raise _checks.fail("track", f"method={method!r} is not a method", "give fj.Lanczos(...) or leave it out")
    every, k = _checks.integer("track", "every", every, 1), _checks.integer("track", "k", k, 1)
    return Tracker(x, likelihood, options, every, k, method, key, path, tensorboard)


class Tracker:
    """Made by `fj.track`; call it in a training loop.

    - `tracker(step, model, loss=None, rate=None)`: measures if the step is due, else does nothing; loss and learning rate
      are written beside the eigenvalues. `tracker.due(step)`: is it?
    - `tracker.measure(step, model, ...)`: whatever the step. Steps rise; `tracker.rewind(step)` forgets all from there on.
    - `tracker.history`: `Track` of all measurements, those found in the file included.
    """

    def __init__(
        self,
        x: Any,
        likelihood: Likelihood,
        options: dict[str, Any],
        every: int,
        k: int,
        method: Any,
        key: Any,
        path: Any,
        tensorboard: Any,
    ):
        self.x, self.likelihood, self.options = x, likelihood, options
        self.every, self.k, self.method, self.key = every, k, method, key
        self.path = None if path is None else os.fspath(path)
        self.identity = _identity(x, likelihood, options | {"every": every, "k": k, "method": method})
        self.lines, self.whole = ([], False) if self.path is None else _read(self.path, self.identity)
        self.continued = bool(self.lines)
        self.board = None if tensorboard is None else _board(tensorboard)
        self.vectors: Any = None  # those of the measurement before, (P, k)
        self.checked = self.dense = False
        self._operator = linalg.precise_jit(self._build, static_argnums=0)
        self._dual = linalg.precise_jit(lambda *model: self._build(*model).gram(), static_argnums=0)

    @property
    def last_step(self) -> int | None:
        return self.lines[-1]["step"] if self.lines else None

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def __call__(self, step: int, model: Any, *, loss: Any = None, rate: Any = None) -> dict[str, Any] | None:
        return self.measure(step, model, loss=loss, rate=rate) if self.due(step) else None

    def measure(self, step: int, model: Any, *, loss: Any = None, rate: Any = None) -> dict[str, Any]:
        """Measure now; returns what is recorded."""
        step, began = _checks.integer("track", "step", step, 0), time.perf_counter()
        if self.continued:
            self.rewind(step)
        if self.lines and step <= self.lines[-1]["step"]:
            raise _checks.fail(
                "track",
                f"step={step} after step {self.lines[-1]['step']}",
                "count steps over all epochs, or rewind(step)",
            )
        found = self._measure(model)
        numbers = {"loss": _number(loss), "rate": _number(rate), "seconds": time.perf_counter() - began}
        line = {"step": step, **found, **numbers}
        self.lines.append(line)
        if self.path is not None:
            _write(self.path, self.identity, self.lines, not self.whole)
            self.whole = True
        if self.board is not None:
            _show(self.board, line)
        return line

    def rewind(self, step: int) -> None:
        """Forget what was measured from this step on: training goes back to a checkpoint."""
        kept = [line for line in self.lines if line["step"] < step]
        self.whole, self.continued = self.whole and len(kept) == len(self.lines), False
        self.lines = kept

    def close(self) -> None:
        """Write what TensorBoard has not been given yet; done by itself within a second."""
        if self.board is not None:
            self.board.close()

    @property
    def history(self) -> Track:
        columns = {name: np.asarray([line[name] for line in self.lines], np.float64) for name in COLUMNS}
        columns = {name: jnp.asarray(column) for name, column in columns.items()}
        for name in ("values", "bounds"):
            columns[name] = columns[name].reshape(-1, self.k)
        steps = jnp.asarray([line["step"] for line in self.lines], jnp.int32)
        direct = all(line["products"] == 0 for line in self.lines)
        method = "dual matrix, diagonalized" if direct else repr(self.method or ITERATION)
        return Track(steps=steps, **columns, method=method, info=provenance(self.key, every=self.every))

    def _build(self, skeleton: Any, arrays: Any, x: Any) -> FisherOperator:
        return fisher(_join(skeleton, arrays), x, self.likelihood, **self.options)

    def _measure(self, model: Any) -> dict[str, Any]:
        if not self.checked:
            if isinstance(model, Streamed):
                raise _checks.fail("track", "model is streamed: its weights cannot train", "give an nnx.Module")
            F = fisher(model, self.x, self.likelihood, **self.options)
            self.x = jax.tree.map(jnp.asarray, self.x)
            self.dense, self.checked = self.method is None and F.factor.shape[0] <= DENSE_ROWS, True
            self.k = _checks.integer("track", "k", self.k, 1, F.size)
        skeleton, arrays = _split(model)
        if self.dense:
            return self._all(self._dual(skeleton, arrays, self.x))
        F = self._operator(skeleton, arrays, self.x)
        top = eigsh(F, self.k, method=self.method or ITERATION, v0=self.vectors, key=self.key)
        found = np.flatnonzero(np.asarray(top.converged))
        self.vectors = top.vectors[:, found] if found.size else None
        return {
            "values": [float(v) for v in top.values],
            "bounds": [float(b) for b in top.bounds],
            "complete_above": float(top.complete_above),
            "trace": math.nan,
            "products": int(top.matvecs),
        }

    def _all(self, K: Any) -> dict[str, Any]:
        """Of the explicit dual matrix."""
        host = np.array(K)
        trace = float(np.trace(host, dtype=np.float64))
        if not math.isfinite(trace):
            raise _checks.fail("track", "the Fisher matrix has NaN or infinity", "lower the learning rate")
        with linalg.lapack(len(host)):
            values = scipy.linalg.eigvalsh(host.T, overwrite_a=True, check_finite=False, driver="evd")[::-1]
        floor = dense_floor(values, host.dtype)
        # Of zeros there are as many as one likes; those of K are not told from rounding.
        values = np.where(values > floor, values, 0.0)
        values = np.pad(values, (0, self.k + 1))
        return {
            "values": [float(v) for v in values[: self.k]],
            "bounds": [floor] * self.k,
            "complete_above": float(values[self.k]) + floor,
            "trace": trace,
            "products": 0,
        }


def _split(model: Any) -> tuple[Any, Any]:
    """(what is the same at every step, arrays) of a model."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(model, nnx.Module):
        return nnx.split(model)
    function = as_function(model, "track")
    return None, (function.apply, function.params)


def _join(skeleton: Any, arrays: Any) -> Any:
    if skeleton is None:
        return Function(*arrays)
    return sys.modules["flax.nnx"].merge(skeleton, arrays, copy=True)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


# --- the file and TensorBoard -----------------------------------------------------------------------------------------


def _identity(x: Any, likelihood: Likelihood, options: dict[str, Any]) -> dict[str, str]:
    """What is measured, in words; arrays by their checksums. Neither chunks nor devices change it."""
    known = {"samples": x, "likelihood": likelihood} | options
    return {name: _words(value) for name, value in known.items() if name not in ("chunk", "mesh")}


def _words(value: Any) -> str:
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if isinstance(value, (jax.Array, np.ndarray)):
        return f"{value.dtype}{list(value.shape)}:{zlib.crc32(np.ascontiguousarray(value).tobytes()):08x}"
    if isinstance(value, (dict, list, tuple)):
        return f"[{', '.join(_words(leaf) for leaf in jax.tree.leaves(value))}]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (f"{f.name}={_words(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({', '.join(fields)})"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _read(path: str, identity: dict[str, str]) -> tuple[list[dict[str, Any]], bool]:
    """Lines of an earlier run, and whether there is nothing else: one that was cut off at the end is not counted."""
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise _checks.fail("track", f"path={path!r}: no such directory", "create it first")
    if not os.path.exists(path):
        return [], False
    with open(path, encoding="utf-8") as file:
        try:
            texts = list(file)
            lines = [json.loads(text) for text in texts if text.endswith("\n")]
            header = lines.pop(0)["track"] if lines else identity
            changed = [name for name in header | identity if header.get(name) != identity.get(name)]
            lines = [_from_json(line) for line in lines]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _checks.fail("track", f"path={path!r} is no record of fj.track", "give another path") from error
    if changed:
        name = changed[0]
        raise _checks.fail(
            "track",
            f"path={path!r} is a record with {name}={header.get(name)}, not {identity.get(name)}",
            "give another path",
        )
    return lines, len(lines) + 1 == len(texts)


def _from_json(line: dict[str, Any]) -> dict[str, Any]:
    def numbers(value: Any) -> Any:
        if isinstance(value, list):
            return [numbers(v) for v in value]
        return math.nan if value is None else float(value)

    return {"step": int(line["step"])} | {name: numbers(line[name]) for name in COLUMNS}


def _text(line: dict[str, Any]) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps({name: plain(value) for name, value in line.items()}) + "\n"


def _write(path: str, identity: dict[str, str], lines: list[dict[str, Any]], anew: bool) -> None:
    """Append the last line, or write all anew."""
    if not anew:
        with open(path, "a", encoding="utf-8") as file:
            file.write(_text(lines[-1]))
        return

    def write(temporary: str) -> None:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps({"track": identity}) + "\n")
            file.writelines(map(_text, lines))

    replace(path, write)


def _board(directory: Any) -> Any:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _checks.fail(
            "track", f"tensorboard={str(directory)!r}, but tensorboardX is not installed", "pip install tensorboardX"
        ) from None
    return SummaryWriter(os.fspath(directory), flush_secs=1)


def _show(board: Any, line: dict[str, Any]) -> None:
    scalars = {f"fisher/eigenvalue_{i}": value for i, value in enumerate(line["values"], 1)}
    scalars |= {f"fisher/{name}": line[name] for name in ("trace", "complete_above")}
    scalars |= {f"training/{name}": line[name] for name in ("loss", "rate")}
    for name, value in scalars.items():
        if math.isfinite(value):
            board.add_scalar(name, value, line["step"])
