"""The atlas: Fisher spectra before and after training, over a grid of architectures and what they are made with."""

import dataclasses
import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fisher_jax import _checks, data, linalg, models, train
from fisher_jax.experiments.cells import kept
from fisher_jax.experiments.compare import stand_out
from fisher_jax.fisher import fisher
from fisher_jax.likelihoods import Categorical, Gaussian
from fisher_jax.spectrum import dense_floor
from fisher_jax.theory import predict

Array = jax.Array

FORMAT = 1
OUTPUTS = 10
NORMS = ("none", "batch", "population")
INITS = ("gaussian", "orthogonal", "fixup", "skipinit")
MASKS: dict[str, dict[str, float]] = {"none": {}, "dropout": {"dropout": 0.2}, "stochastic-depth": {"survival": 0.8}}
STATES = ("before", "after")
LIKELIHOODS = ("gaussian", "categorical")
OPTIMIZER = train.Optimizer("adam", 3e-3)
BATCH, TEST = 64, 0.2
# Epochs without a step that a new network's running statistics take: 44 batches leave a hundredth of where they started.
SETTLING = 2
# Of the outputs, in the prediction for softmax.
DRAWS = 4
# Rows that a printed atlas shows.
SHOWN = 40
FIELDS = ("size", "states", "theory", "warnings")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A family of networks, and what of the grid it takes.

    Args:
        title: for tables and legends. model, options: of `fj.models.build`.
        depths: its own, as the model counts them. has: which depths there are at all.
    """

    title: str
    model: str
    options: Mapping[str, Any]
    depths: tuple[int, ...]
    has: Callable[[int], bool]
    norms: tuple[str, ...] = ("none", "batch")
    inits: tuple[str, ...] = ("gaussian", "orthogonal")
    masks: tuple[str, ...] = ("none", "dropout")

    @property
    def features(self) -> bool:
        """Does it see the pixels as a vector?"""
        return models.takes(self.model) == "features"


_RESIDUAL = tuple(MASKS)
# Blocks of one shape are scanned: one program of the size of a block, whatever the depth.
ARCHITECTURES: dict[str, Architecture] = {
    "mlp": Architecture("MLP", "mlp", {"width": 64}, (2, 4, 8), lambda L: L >= 2),
    "skip1": Architecture(
        "skip over one layer",
        "resmlp",
        {"skip": 1, "scanned": True},
        (2, 4, 8),
        lambda L: L >= 1,
        inits=("gaussian", "orthogonal", "skipinit"),
        masks=_RESIDUAL,
    ),
    "skip2": Architecture(
        "skip over two layers", "resmlp", {"scanned": True}, (2, 4, 8), lambda L: L >= 1, NORMS, INITS, _RESIDUAL
    ),
    "concat": Architecture("concatenating skip", "densemlp", {"growth": 16}, (2, 4, 8), lambda L: L >= 1),
    "resnet": Architecture(
        "ResNet", "resnet", {"width": 4}, (8, 14), lambda L: L >= 8 and L % 6 == 2, inits=INITS, masks=_RESIDUAL
    ),
    "vgg": Architecture("VGG", "vgg", {"width": 4}, (11,), lambda L: L in (11, 13, 16, 19)),
    "densenet": Architecture("DenseNet", "densenet", {"width": 4}, (10,), lambda L: L >= 10 and L % 6 == 4),
}
AXES = {"architectures": tuple(ARCHITECTURES), "norms": NORMS, "inits": INITS, "masks": tuple(MASKS)}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One network of the grid."""

    architecture: str
    norm: str
    init: str
    masks: str
    depth: int

    @property
    def family(self) -> Architecture:
        return ARCHITECTURES[self.architecture]

    def options(self) -> dict[str, Any]:
        """Of `fj.models.build`."""
        if not self.family.features:
            init = {"init": "he" if self.init == "gaussian" else self.init}
        elif self.init in ("fixup", "skipinit"):
            init = {"residual": self.init}
        else:
            init = {"weights": self.init}
        return {"depth": self.depth, "norm": self.norm} | init | MASKS[self.masks] | dict(self.family.options)

    def build(self, key: Array) -> nnx.Module:
        inputs = 64 if self.family.features else (8, 8, 1)
        return models.build(self.family.model, inputs=inputs, outputs=OUTPUTS, key=key, **self.options())

    def __str__(self) -> str:
        return f"{self.architecture} {self.depth}, {self.norm}, {self.init}, {self.masks}"


@dataclasses.dataclass(frozen=True)
class Atlas:
    """A table of spectra: one row for each network, state and likelihood.

    Args:
        settings: of the call, with versions. columns: `(R,)` each, by name, see `COLUMNS`.
        values: `(R, N·C)` float32, all eigenvalues of the dual matrix, descending.
    """

    settings: dict[str, Any]
    columns: dict[str, np.ndarray]
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def where(self, **wanted: Any) -> "Atlas":
        """The rows in which columns have the given value, or one of those in a list."""
        rows = np.ones(len(self), bool)
        for name, value in wanted.items():
            if name not in self.columns:
                raise _checks.fail("Atlas.where", f"{name} is no column", f"choose among {', '.join(self.columns)}")
            rows &= np.isin(self.columns[name], value)
        return Atlas(self.settings, {name: column[rows] for name, column in self.columns.items()}, self.values[rows])

    def __repr__(self) -> str:
        shown = ("trace", "lambda_max", "outliers", "outlier_ratio", "effective_rank", "loss", "test_accuracy")
        names = (*KEYS, *shown)
        rows = range(len(self)) if len(self) <= SHOWN else [*range(SHOWN // 2), *range(len(self) - SHOWN // 2, len(self))]
        table = [[name.replace("_", " ") for name in names]]
        table += [[_text(self.columns[name][i]) for name in names] for i in rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(f"{word:>{w}}" for word, w in zip(line, widths, strict=True)) for line in table]
        if len(rows) < len(self):
            lines.insert(
                1 + SHOWN // 2, f"... {len(self) - SHOWN} more rows; choose with .where(architecture=..., state=...)"
            )
        return "\n".join(lines)


KEYS = ("architecture", "norm", "init", "masks", "depth", "seed", "state", "likelihood")
COLUMNS = {
    "size": "parameters P",
    "trace": "trace",
    "mean_eigenvalue": "mean eigenvalue, trace/P",
    "second_moment": "second moment, ‖F‖²/P",
    "lambda_max": "largest eigenvalue",
    "outliers": "eigenvalues above the largest gap, if that is more than a factor 2, else 0",
    "outlier_ratio": "λ_C/λ_{C+1}; for softmax λ_{C−1}/λ_C",
    "effective_rank": "trace/λ_max",
    "max_learning_rate": "2/λ_max",
    "zeros": "eigenvalues of F that are zero, or below the rounding of float32",
    "loss": "cross-entropy of the training samples, in evaluation mode",
    "accuracy": "of the training samples, in evaluation mode",
    "test_loss": "cross-entropy of the samples held out",
    "test_accuracy": "of the samples held out",
    "theory_trace": "trace that theory predicts before training; NaN where it does not cover the network",
    "theory_lambda_max": "likewise, the largest eigenvalue",
}


def grid(
    architectures: Sequence[str] = tuple(ARCHITECTURES),
    *,
    norms: Sequence[str] = NORMS,
    inits: Sequence[str] = INITS,
    masks: Sequence[str] = tuple(MASKS),
    depths: Sequence[int] | None = None,
) -> list[Entry]:
    """The networks of a grid; what an architecture does not take is left out.

    Fixup and SkipInit, which take the place of norms, go without them. Arguments are those of `atlas`.
    """
    chosen = {"architectures": architectures, "norms": norms, "inits": inits, "masks": masks}
    for axis, names in chosen.items():
        for name in names:
            if name not in AXES[axis]:
                known = f"choose among {', '.join(AXES[axis])}"
                raise _checks.fail("atlas", f"{axis} has {name!r}, which is unknown", known)
    if depths is not None:
        depths = [_checks.integer("atlas", "depths", depth, 1) for depth in depths]

    def entries() -> Iterator[Entry]:
        for architecture in dict.fromkeys(architectures):
            family = ARCHITECTURES[architecture]
            own = family.depths if depths is None else sorted({L for L in depths if family.has(L)})
            for norm in dict.fromkeys(norm for norm in norms if norm in family.norms):
                for init in dict.fromkeys(init for init in inits if init in family.inits):
                    if norm != "none" and init in ("fixup", "skipinit"):
                        continue
                    for mask in dict.fromkeys(mask for mask in masks if mask in family.masks):
                        yield from (Entry(architecture, norm, init, mask, depth) for depth in own)

    found = list(entries())
    if not found:
        asked = ", ".join(f"{axis}={list(names)}" for axis, names in (chosen | {"depths": depths or ()}).items())
        raise _checks.fail("atlas", f"{asked} leave no network", "see fisher-jax atlas --list")
    return found


def atlas(
    architectures: Sequence[str] = tuple(ARCHITECTURES),
    *,
    norms: Sequence[str] = NORMS,
    inits: Sequence[str] = INITS,
    masks: Sequence[str] = tuple(MASKS),
    depths: Sequence[int] | None = None,
    seeds: int = 1,
    samples: int = 40,
    epochs: int = 10,
    key: Array,
    directory: Any = None,
    finished: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Atlas:
    """Fisher spectra of networks on handwritten digits, before and after training, over a grid.

    Every network is trained once, on the cross-entropy (Adam, rate 0.003 with warm-up and cosine decay, batches of 64). Both
    its exact Fisher matrices, of Gaussian and of categorical outputs, are those of the network in evaluation mode on the
    same samples, which are not trained on. The running statistics of a new network with batch norm are settled first, by two
    epochs without a step: as they come, evaluation mode would be the network without norm.

    Args:
        architectures: names in `fj.experiments.ARCHITECTURES`. norms: none, batch, population. inits: gaussian, orthogonal,
            fixup, skipinit. masks: none, dropout (0.2), stochastic-depth (survival 0.8).
        depths: as the models count them; each architecture's own unless given.
        seeds: networks for each point of the grid; they differ by weights, masks and order of the samples.
        samples: N of the matrices, of N·10 rows. epochs: of the training.
        key: JAX random key: equal seeds start from the same random numbers in all networks.
        directory: each finished network is kept there; a later call with the same settings takes it from there.
        finished: only the networks that are in the directory; nothing is computed.
        progress: called with (what is at work, networks done, networks in all).

    Returns:
        Atlas.

    Raises:
        ArgumentError: unknown names, a grid without networks; a file in the directory that is no cell.
    """
    entries = grid(architectures, norms=norms, inits=inits, masks=masks, depths=depths)
    seeds, epochs = (_checks.integer("atlas", name, n, 1) for name, n in (("seeds", seeds), ("epochs", epochs)))
    x, y = data.load("digits")
    parts = data.split(x, y, TEST, jax.random.fold_in(key, 0))
    samples = _checks.integer("atlas", "samples", samples, 2, len(parts[1][0]))
    settings = {
        "data": hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x, _ in parts)).hexdigest()[:16],
        "samples": samples,
        "epochs": epochs,
        "batch": BATCH,
        "optimizer": repr(OPTIMIZER),
        "settling": SETTLING,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "dtype": str(jnp.zeros(()).dtype),
        "fisher_jax": metadata.version("fisher-jax"),
    }
    jobs = [(entry, seed) for entry in entries for seed in range(seeds)]
    cells, laws = [], {}
    for done, (entry, seed) in enumerate(jobs):
        if progress is not None:
            progress(str(entry), done, len(jobs))
        place = dataclasses.asdict(entry) | {"seed": seed}
        options = {name: repr(value) for name, value in entry.options().items()}
        identity = settings | place | {"options": options, "model": entry.family.model, "format": FORMAT}
        name = "-".join(str(part) for part in place.values())
        make = lambda e=entry, s=seed: _cell(e, parts, samples, epochs, jax.random.fold_in(key, 1 + s), laws)  # noqa: E731
        cell = kept("atlas", directory, name, identity, FIELDS, None if finished else make)
        if cell is not None:
            cells.append((entry, seed, cell))
    if not cells:
        where = f"directory={directory!r} has no finished network of this grid"
        raise _checks.fail("atlas", where, "leave finished out, to compute them")
    if progress is not None:
        progress("done", len(jobs), len(jobs))
    counts = {"training": len(parts[0][0]), "test": len(parts[1][0]), "networks": len(cells), "grid": len(jobs)}
    return _table(settings | {"jax": jax.__version__} | counts, cells)


def _cell(entry: Entry, parts: Any, samples: int, epochs: int, key: Array, laws: dict[str, Any]) -> dict[str, Any]:
    """All that is measured of one network, as plain lists and numbers."""
    start = time.perf_counter()
    if not entry.family.features:
        parts = [(x.reshape(-1, 8, 8, 1), y) for x, y in parts]
    training, test = parts
    x = test[0][:samples]
    weights, order = jax.random.split(key)
    model = entry.build(weights)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if entry.norm == "batch":
            # Statistics of the batches without a step of the weights.
            train.fit(model, training, Categorical(), optimizer=optax.set_to_zero(), epochs=SETTLING, batch=BATCH, key=order)
        model.eval()
        states = {"before": _state(model, x, training, test)}
        train.fit(model, training, Categorical(), optimizer=OPTIMIZER, epochs=epochs, batch=BATCH, key=order)
        states["after"] = _state(model, x, training, test)
        law = _theory(entry, x, order, laws)
    return {
        "size": models.size(model),
        "states": states,
        "theory": law,
        "warnings": sorted({str(warning.message) for warning in caught}),
        "seconds": time.perf_counter() - start,
    }


def _state(model: nnx.Module, x: Any, training: Any, test: Any) -> dict[str, Any]:
    """Loss and accuracy on both parts of the data, eigenvalues under both likelihoods."""
    K, B, *numbers = (np.asarray(a, np.float64) for a in _measure(model, x, training, test))
    facts = dict(zip(("loss", "accuracy", "test_loss", "test_accuracy"), (float(n) for n in numbers), strict=True))
    samples, outputs, _ = B.shape
    # A row of the factor of any likelihood is Bᵀ J: one product J Jᵀ serves both.
    blocks = K.reshape(samples, outputs, samples, outputs)
    softmax = np.einsum("nai,namb,mbj->nimj", B, blocks, B, optimize=True).reshape(K.shape)
    return facts | {"gaussian": _eigenvalues(K), "categorical": _eigenvalues(softmax)}


@linalg.precise_jit
def _measure(model: Any, x: Array, training: tuple[Array, Array], test: tuple[Array, Array]) -> tuple[Array, ...]:
    """(J Jᵀ/N, B of the softmax for each sample, losses and accuracies); one program for all networks of one structure."""
    f = model(x)
    B = jax.vmap(lambda u: Categorical().factor(f, jnp.broadcast_to(u, f.shape)), out_axes=2)(
        jnp.eye(OUTPUTS, dtype=f.dtype)
    )
    numbers = []
    for inputs, labels in (training, test):
        z = model(inputs)
        numbers += [jnp.mean(Categorical().nll(z, labels)), jnp.mean((jnp.argmax(z, axis=-1) == labels).astype(z.dtype))]
    return fisher(model, x, Gaussian()).gram(), B, *numbers


def _eigenvalues(K: np.ndarray) -> list[float]:
    if not np.isfinite(K).all():
        return [math.nan] * len(K)
    # To the digits of float32, in which K was formed.
    return [float(f"{value:.8g}") for value in np.linalg.eigvalsh(K)[::-1]]


def _theory(entry: Entry, x: np.ndarray, key: Array, laws: dict[str, Any]) -> dict[str, list[float]]:
    """(trace, λ_max) under both likelihoods, NaN where theory covers no such network in evaluation mode.

    At infinite width orthogonal weights, and dropout in the mean network, change nothing: one law in `laws` serves all.
    """
    if not entry.family.features or entry.norm == "batch":
        return {likelihood: [math.nan, math.nan] for likelihood in LIKELIHOODS}
    options = entry.options()
    name = entry.family.model + repr(
        {option: value for option, value in options.items() if option not in ("weights", "dropout")}
    )
    if name not in laws:
        found = {}
        for likelihood in LIKELIHOODS:
            draws = DRAWS if likelihood == "categorical" else None
            law = predict(entry.family.model, x=x, outputs=OUTPUTS, likelihood=likelihood, draws=draws, key=key, **options)
            found[likelihood] = [law.trace, law.lambda_max]
        laws[name] = found
    return laws[name]


def _table(settings: dict[str, Any], cells: Sequence[tuple[Entry, int, dict[str, Any]]]) -> Atlas:
    rows, spectra = [], []
    for entry, seed, cell in cells:
        for state in STATES:
            for likelihood in LIKELIHOODS:
                found = cell["states"][state]
                values = np.array(found[likelihood], float)
                place = dataclasses.asdict(entry) | {"seed": seed, "state": state, "likelihood": likelihood}
                law = cell["theory"][likelihood] if state == "before" else [math.nan, math.nan]
                facts = {name: found[name] for name in ("loss", "accuracy", "test_loss", "test_accuracy")}
                theory = {"theory_trace": law[0], "theory_lambda_max": law[1]}
                rows.append(place | _numbers(values, cell["size"], likelihood) | facts | theory)
                spectra.append(values)
    columns = {name: np.array([row[name] for row in rows]) for name in (*KEYS, *COLUMNS)}
    return Atlas(settings, columns, np.array(spectra, np.float32))


def _numbers(values: np.ndarray, size: int, likelihood: str) -> dict[str, Any]:
    """The quantities of one spectrum `(N·C,)`."""
    trace, largest = values.sum(), values[0]
    outliers = OUTPUTS - (likelihood == "categorical")
    floor = dense_floor(values, np.float32)
    return {
        "size": size,
        "trace": trace,
        "mean_eigenvalue": trace / size,
        "second_moment": (values**2).sum() / size,
        "lambda_max": largest,
        "outliers": stand_out(values),
        "outlier_ratio": values[outliers - 1] / values[outliers] if values[outliers] > floor else math.inf,
        "effective_rank": trace / largest,
        "max_learning_rate": 2 / largest,
        "zeros": size - int((values > floor).sum()),
    }


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)


def save_atlas(table: Atlas, path: str) -> None:
    """One `.npz` without pickle: each column, `values`, and the settings as JSON."""
    with open(path, "wb") as file:
        settings = np.array(json.dumps(table.settings))
        np.savez_compressed(file, **table.columns, values=table.values, __settings__=settings)  # type: ignore[arg-type]


def load_atlas(path: Any) -> Atlas:
    """Read the `atlas.npz` of `fisher-jax atlas`; nothing in the file is executed.

    Args:
        path: of the file.

    Returns:
        Atlas: `table["lambda_max"]`, `table.where(architecture="mlp", state="after").values`.

    Raises:
        ArgumentError: no such file, or not an atlas.
    """
    if not os.path.exists(path):
        raise _checks.fail("load_atlas", f"path={str(path)!r} does not exist", "give the atlas.npz of fisher-jax atlas")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        settings = json.loads(str(arrays.pop("__settings__")))
        return Atlas(settings, {name: arrays[name] for name in (*KEYS, *COLUMNS)}, arrays["values"])
    except Exception as error:
        raise _checks.fail(
            "load_atlas", f"path={str(path)!r} is no atlas", "give the atlas.npz of fisher-jax atlas"
        ) from error
