"""Results: records that carry their own evidence, print themselves, and are saved and loaded without pickle."""

import dataclasses
import json
import os
import platform
import tempfile
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import _checks
from fisher_jax._record import record, static

Array = jax.Array
FORMAT = 1


@record
class EigenResult:
    """The largest eigenvalues of a symmetric operator, each with its evidence.

    Entries that could not be resolved are NaN with `converged` false.
    """

    values: Array  # (k,) descending
    vectors: Array  # (size, k) orthonormal columns
    residuals: Array  # (k,) true ‖M v − λ v‖, from products; a bound on it for vectors lifted from a dual or from a sketch
    bounds: Array  # (k,) absolute bound on the error of each value
    converged: Array  # (k,) bool
    matvecs: Array  # () products with M used in all
    floor: Array  # () rounding error of a product with M, measured, absolute
    tol: Array  # () tolerance in force, relative to the largest eigenvalue: the one asked for, or the floor
    # () no eigenvalue above this is missing among the values (up to the stated failure probability); NaN if unknown
    complete_above: Array
    method: str = static()
    info: tuple[tuple[str, str], ...] = static(default=())

    def __repr__(self) -> str:
        if _checks.traced(self):
            return f"EigenResult(<traced>, k={self.values.shape[0]}, method={self.method})"
        residuals = np.asarray(self.residuals)[np.asarray(self.converged)]
        worst = f"max residual {residuals.max():.1e}, " if residuals.size else ""
        head = (
            f"EigenResult: {residuals.size}/{self.values.size} converged, {int(self.matvecs)} products, {worst}{self.method}"
        )
        note = dict(self.info).get("note")
        return "\n".join([head, self.completeness(), *([note] if note else []), self.table()])

    def completeness(self) -> str:
        """What is established about eigenvalues that are not in the list."""
        bound = float(self.complete_above)
        if np.isneginf(bound):
            return "all eigenvalues are known"
        if np.isnan(bound) or not np.isfinite(bound):
            return "not established: that no eigenvalue is missing"
        chance = dict(self.info).get("failure_probability")
        doubt = f" (failure probability {chance})" if chance else ""
        largest = np.max(np.asarray(self.values), initial=-np.inf, where=np.asarray(self.converged))
        if self.values.size and not bound <= float(largest) + float(self.floor):
            remedy = ": raise block or steps" if self.method.startswith("Lanczos") else ""
            return f"no eigenvalue above {bound:.6g} is missing{doubt}; copies of those listed may be{remedy}"
        return f"no eigenvalue above {bound:.6g} is missing{doubt}"

    def table(self, theory: "Law | None" = None) -> str:
        """One line for each eigenvalue: value, error bound, residual, convergence; and what theory predicts of it."""
        lines = [f"{'#':>4}  {'eigenvalue':>14}  {'error bound':>11}  {'residual':>9}  converged"]
        rows = zip(self.values, self.bounds, self.residuals, self.converged, strict=True)
        for i, (value, bound, residual, done) in enumerate(rows, 1):
            lines.append(
                f"{i:>4}  {float(value):>14.7g}  {float(bound):>11.1e}  {float(residual):>9.1e}  {'yes' if done else 'NO'}"
            )
        if theory is None:
            return "\n".join(lines)
        k, many = self.values.size, theory.outliers
        values, predicted = np.asarray(self.values, np.float64), theory.expanded(k)
        lines[0] += f"  {'predicted':>10}  rel. error"
        for i, (value, expected) in enumerate(zip(values, predicted, strict=True)):
            if not np.isnan(expected):
                lines[i + 1] = f"{lines[i + 1]:<55}  {expected:>10.4g}  {_relative(value, expected):>10}"
        if 1 < many <= k:  # equal in the limit, split at finite width: only their mean compares
            value, expected = values[:many].mean(), predicted[:many].mean()
            mean = f"mean of the {many} outliers"
            lines.append(f"{value:>20.7g}  {mean:<33}  {expected:>10.4g}  {_relative(value, expected):>10}")
        return "\n".join(lines)


@record
class Spectrum:
    """All eigenvalues of a Fisher matrix: those above rounding, how many are not, and how many are zero.

    `size = len(values) + unresolved + zeros`.
    """

    values: Array  # (r,) descending, all above `floor`
    vectors: Array | None  # (size, k) leading eigenvectors, if asked for
    floor: float  # absolute error bound of every value; what lies below cannot be told from zero
    unresolved: int  # eigenvalues between −floor and floor that may or may not be zero
    zeros: int  # zero for certain: by shapes, weights of samples, the likelihood's null space
    size: int
    dual_size: int
    trace: float  # from the entries of the matrix
    frobenius: float
    method: str = static()
    info: tuple[tuple[str, str], ...] = static(default=())

    @property
    def lambda_max(self) -> float:
        return float(self.values[0]) if self.values.size else 0.0

    @property
    def mean_eigenvalue(self) -> float:
        """m = trace / P."""
        return self.trace / self.size

    @property
    def second_moment(self) -> float:
        """s = ‖F‖_F² / P, the mean of λ²."""
        return self.frobenius * self.frobenius / self.size  # not ** 2, which raises where a float ends

    @property
    def effective_rank(self) -> float:
        """trace / λ_max."""
        return self.trace / self.lambda_max if self.values.size else float("nan")

    @property
    def participation_ratio(self) -> float:
        """(Σλ)² / Σλ²: how many equal eigenvalues would have the same two moments."""
        return (self.trace / self.frobenius) ** 2 if self.frobenius else float("nan")

    def count_above(self, above: float) -> int:
        """How many eigenvalues exceed `above`, which must not be below rounding."""
        if not above >= self.floor:
            raise _checks.fail(
                "Spectrum.count_above",
                f"above={above!r} is below rounding {self.floor:.2g}",
                f"give above >= {self.floor:.2g}",
            )
        return int(np.count_nonzero(np.asarray(self.values) > above))

    def logdet(self, damping: float) -> float:
        """`log det(1 + F/δ) = Σ log(1 + λ/δ)` with the damping δ > 0; those below rounding as `_all` has them."""
        delta = _checks.positive("Spectrum.logdet", "damping", damping)
        return float(np.log1p(self._all() / delta).sum())

    def effective_dimension(self, damping: float) -> float:
        """`Σ λ/(λ + δ)` with the damping δ > 0; those below rounding as `_all` has them."""
        delta = _checks.positive("Spectrum.effective_dimension", "damping", damping)
        values = self._all()
        return float((values / (values + delta)).sum())

    def _all(self) -> np.ndarray:
        """All but exact zeros; of those below rounding only the sum is known, from the trace: equal shares of it.

        A concave f has its largest sum there; far above rounding, where f is a line, it has no other.
        """
        values = np.asarray(self.values, np.float64)
        share = max(0.0, float(self.trace) - float(values.sum())) / max(self.unresolved, 1)
        return np.append(values, np.full(self.unresolved, share))

    def __repr__(self) -> str:
        largest, single = self.lambda_max, self.values.dtype.itemsize < 8
        rows = [
            ("eigenvalues above rounding", f"{self.values.size}"),
            (
                "below rounding, zero or not",
                f"{self.unresolved}" + (" (float64 may tell)" if self.unresolved and single else ""),
            ),
            ("exact zeros", f"{self.zeros}"),
            ("parameters P", f"{self.size}"),
            ("largest eigenvalue", f"{largest:.7g} ± {self.floor:.1e}"),
            ("largest stable learning rate 2/λ_max", f"{2 / largest:.6g}" if largest else "any"),
            ("smallest above rounding", f"{float(self.values[-1]):.3g}" if self.values.size else "none"),
            ("trace", f"{self.trace:.7g}"),
            ("mean eigenvalue m = trace/P", f"{self.mean_eigenvalue:.6g}"),
            ("second moment s = ‖F‖²/P", f"{self.second_moment:.6g}"),
            ("effective rank, trace/λ_max", f"{self.effective_rank:.5g}"),
            ("participation ratio, (Σλ)²/Σλ²", f"{self.participation_ratio:.5g}"),
            ("method", self.method),
        ]
        return aligned(rows)


@record
class Track:
    """The largest eigenvalues during training: one row for each measurement; NaN for what was not given or not resolved."""

    steps: Array  # (T,) of the training
    values: Array  # (T, k) descending
    bounds: Array  # (T, k) absolute bound on the error of each value
    complete_above: Array  # (T,) no eigenvalue above this is missing in the row
    trace: Array  # (T,) where the dual matrix was formed
    loss: Array  # (T,) of the training, as given
    rate: Array  # (T,) learning rate, as given
    seconds: Array  # (T,) that the measurement took, compilation included
    products: Array  # (T,) with the Fisher matrix
    method: str = static()
    info: tuple[tuple[str, str], ...] = static(default=())

    def __repr__(self) -> str:
        titles = (("step", 8), ("λ_max", 12), ("error bound", 11), ("2/λ_max", 10), ("trace", 11), ("loss", 10), ("rate", 9))
        lines = ["  ".join(f"{name:>{width}}" for name, width in titles)]
        for i in range(self.steps.size):
            largest = float(self.values[i, 0])
            limit = f"{2 / largest:>10.4g}" if largest > 0 else f"{'any':>10}"
            numbers = f"{float(self.trace[i]):>11.5g}  {float(self.loss[i]):>10.4g}  {float(self.rate[i]):>9.3g}"
            lines.append(f"{int(self.steps[i]):>8}  {largest:>12.6g}  {float(self.bounds[i, 0]):>11.1e}  {limit}  {numbers}")
        return "\n".join([*lines, f"{self.steps.size} measurements in {float(self.seconds.sum()):.3g} s; {self.method}"])


@record
class Training:
    """What a training was: one row for each epoch; NaN where there was no test or no accuracy."""

    epochs: Array  # (E,) 1, 2, ...
    steps: Array  # (E,) taken by then
    loss: Array  # (E,) mean over the steps of the epoch, with masks and statistics of the batch
    accuracy: Array  # (E,) likewise
    test_loss: Array  # (E,) in evaluation mode
    test_accuracy: Array  # (E,)
    rate: Array  # (E,) learning rate of the last step
    seconds: Array  # (E,)
    info: tuple[tuple[str, str], ...] = static(default=())

    def __repr__(self) -> str:
        names = ("loss", "accuracy", "test_loss", "test_accuracy", "rate", "seconds")
        lines = ["epoch  " + "  ".join(f"{name.replace('_', ' '):>13}" for name in names)]
        for i in range(self.epochs.size):
            numbers = (float(getattr(self, name)[i]) for name in names)
            lines.append(f"{int(self.epochs[i]):>5}  " + "  ".join(f"{number:>13.4g}" for number in numbers))
        return "\n".join(lines)


@record
class Plan:
    """What `fj.spectrum` will do, and what it will take."""

    route: str = static()
    size: int = static()
    dual_size: int = static()
    kernels: tuple[tuple[str, str, float, str], ...] = static()  # parameters, kernel, operations, why
    operations: tuple[tuple[str, float], ...] = static()  # floating-point operations by stage
    matrix_bytes: int = static()
    feature_bytes: int = static()
    peak_bytes: int = static()
    free_bytes: int = static()
    rate: float = static()  # measured, operations per second of a matrix product
    seconds: float = static()  # expected
    fits: bool = static()
    samples: int = static()
    nearest: int = static()  # samples whose matrix would fit

    def __repr__(self) -> str:
        n = self.dual_size if self.route == "dual" else self.size
        samples = f"take N <= {self.nearest} samples, or fj.eigsh for the largest"
        remedy = samples if self.nearest < self.samples else "one stage, or the features of one sample, exceed the memory"
        lines = [
            f"{self.route} route: a {n} x {n} matrix for P = {self.size}, N·C = {self.dual_size}",
            *(f"  {stage:<28}  {count:.2e} operations" for stage, count in self.operations),
            f"  matrix {_bytes(self.matrix_bytes)}, features {_bytes(self.feature_bytes)}, "
            f"peak {_bytes(self.peak_bytes)} of {_bytes(self.free_bytes)} free",
            f"  about {self.seconds:.2g} s at the measured {self.rate:.2g} operations/s",
            "  fits" if self.fits else f"  DOES NOT FIT: {remedy}",
        ]
        if self.route == "dual":
            width = max((len(k[0]) for k in self.kernels), default=0)
            lines += [f"  {names:<{width}}  {kind:<5}  {count:.1e}  {why}" for names, kind, count, why in self.kernels]
        return "\n".join(lines)


@record
class Route:
    """One way to the largest eigenvalues of an operator, and what it is expected to take."""

    method: Any = static()
    seconds: float = static()
    products: int = static()  # of single vectors; zero where a matrix is formed
    bytes: int = static()


@record
class EigenPlan:
    """What `fj.eigsh` will do, what it will take, and what else it could do.

    Times are those of compiled programs, for eigenvalues that fall off as those of networks do; slower decay takes more
    products. Expect them within a factor of two or three.
    """

    k: int = static()
    size: int = static()
    iterated: int = static()  # rows of the smaller side
    lifted: bool = static()  # that is the dual
    rate: float = static()  # measured, operations per second of a matrix product
    free_bytes: int = static()
    routes: tuple[Route, ...] = static()  # the one that is taken first

    def __repr__(self) -> str:
        side = f"its dual of size {self.iterated}" if self.lifted else "the matrix itself"
        names = [_options(r.method) for r in self.routes]
        width = max(map(len, names))
        lines = [f"the {self.k} largest of {self.size} eigenvalues, through {side}; taken: {names[0]}"]
        for name, route in zip(names, self.routes, strict=True):
            products = f"{route.products} products" if route.products else "explicit matrix"
            room = "" if route.bytes <= self.free_bytes / 2 else "  DOES NOT FIT"
            lines.append(f"  {name:<{width}}  about {route.seconds:<8.2g} s  {products:<15}  {_bytes(route.bytes)}{room}")
        last = f"  at the measured {self.rate:.2g} operations/s, {_bytes(self.free_bytes)} free; a first solve also compiles"
        return "\n".join([*lines, last])


def _options(method: Any) -> str:
    """A method as one would write it: the options that are not their defaults."""
    given = [f for f in dataclasses.fields(method) if getattr(method, f.name) != f.default]
    return f"{type(method).__name__}({', '.join(f'{f.name}={getattr(method, f.name)!r}' for f in given)})"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.3g} {unit}"
        count /= 1024
    raise AssertionError


@record
class Summary:
    """What the top of a Fisher spectrum and its exact trace say about a network."""

    lambda_max: float
    lambda_max_bound: float
    trace: float
    mean_eigenvalue: float
    effective_rank: float
    zeros: int
    size: int
    dual_size: int
    top_share: float
    outliers: int
    outlier_gap: float
    max_learning_rate: float
    converged: int
    asked: int
    matvecs: int
    floor: float
    tol: float
    complete_above: float
    method: str = static()
    info: tuple[tuple[str, str], ...] = static(default=())

    def __repr__(self) -> str:
        return self.table()

    def table(self, theory: "Law | None" = None) -> str:
        """One line for each number, with what theory predicts of it beside it."""
        rows = [
            ("largest eigenvalue", f"{self.lambda_max:.7g} ± {self.lambda_max_bound:.1e}"),
            ("largest stable learning rate 2/λ_max", f"{self.max_learning_rate:.6g}"),
            ("trace (exact)", f"{self.trace:.7g}"),
            ("mean eigenvalue, trace/P", f"{self.mean_eigenvalue:.6g}"),
            ("effective rank, trace/λ_max", f"{self.effective_rank:.5g}"),
            (f"share of the trace in the top {self.asked}", f"{100 * self.top_share:.2f} %"),
            (f"gap below the {self.outliers} outliers, λ_{self.outliers}/λ_{self.outliers + 1}", _number(self.outlier_gap)),
            ("parameters P", f"{self.size}"),
            ("exact zero eigenvalues, at least", f"{self.zeros}"),
            ("converged", f"{self.converged} of {self.asked}, tolerance {self.tol:.1e}·λ_max"),
            ("none missing above", "not established" if np.isnan(self.complete_above) else f"{self.complete_above:.6g}"),
            ("products with F", f"{self.matvecs}  ({self.method})"),
        ]
        if theory is None:
            return aligned(rows)
        pairs = [(getattr(self, name), getattr(theory, name)) for name in PREDICTED]
        width = max(len(value) for _, value in rows[: len(pairs)])
        for i, (value, expected) in enumerate(pairs):
            beside = f"{rows[i][1]:<{width}}  predicted {expected:<10.5g}  {_relative(value, expected):>8}"
            rows[i] = (rows[i][0], beside)
        drawn = dict(theory.info).get("drawn")
        rows.append(("predicted by", ", ".join([theory.method, *([drawn] if drawn else [])])))
        rows.append(("one network differs by up to about", f"{100 * theory.deviation:.2g} %, from the predicted trace"))
        rows.append(("λ_max at this width lies above by about", f"{100 * theory.bias:.2g} %"))
        return aligned(rows)

    def to_json(self) -> str:
        """All numbers and settings as JSON; NaN becomes null."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        fields["info"] = dict(self.info)
        plain = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in fields.items()}
        return json.dumps(plain, indent=2, ensure_ascii=False)


@record
class Law:
    """What theory predicts of a Fisher spectrum, under the names that `Spectrum` and `Summary` use.

    Each value stands for `counts` eigenvalues. Numbers beyond what a float holds are infinite; their logarithms are not.
    """

    values: Array  # (r,) predicted eigenvalues, descending
    counts: Array  # (r,) how many of each
    trace: float
    frobenius: float  # NaN where only a part of the eigenvalues is predicted
    outliers: int  # how many eigenvalues detach from the bulk
    size: int
    dual_size: int
    log_trace: float  # natural logarithms
    log_lambda_max: float
    deviation: float  # relative standard deviation of one network's trace at this width, an upper estimate
    bias: float  # share by which λ_max of such networks lies above the prediction on average, fitted
    method: str = static()
    info: tuple[tuple[str, str], ...] = static(default=())

    @property
    def lambda_max(self) -> float:
        return float(self.values[0])

    @property
    def max_learning_rate(self) -> float:
        """2 / λ_max: gradient descent on the quadratic model is stable below."""
        return float(np.exp(np.log(2.0) - self.log_lambda_max))

    @property
    def mean_eigenvalue(self) -> float:
        """m = trace / P."""
        return self.trace / self.size

    @property
    def second_moment(self) -> float:
        """s = ‖F‖_F² / P, the mean of λ²."""
        return self.frobenius * self.frobenius / self.size  # not ** 2, which raises where a float ends

    @property
    def effective_rank(self) -> float:
        """trace / λ_max."""
        return float(np.exp(self.log_trace - self.log_lambda_max))

    def expanded(self, k: int) -> np.ndarray:
        """The k largest by rank `(k,)`, each value as often as it occurs; NaN from where on none is predicted."""
        values, counts = np.asarray(self.values, np.float64), np.asarray(self.counts, np.float64)
        return np.append(values, np.nan)[np.searchsorted(np.cumsum(counts), np.arange(k), side="right")]

    @property
    def bulk(self) -> float:
        """Mean of the predicted eigenvalues below the outliers, NaN if there are none."""
        values, counts = np.asarray(self.values), np.asarray(self.counts)
        below = counts - np.clip(self.outliers - np.cumsum(counts) + counts, 0, counts)
        return float(np.average(values[below > 0], weights=below[below > 0])) if np.any(below > 0) else float("nan")

    @property
    def zeros(self) -> int:
        """Eigenvalues that are zero for want of samples, at least."""
        return max(0, self.size - self.dual_size)

    def __repr__(self) -> str:
        huge = not np.isfinite(self.trace)
        rows = [
            ("largest eigenvalue", f"{self.lambda_max:.7g}" + (f" = e^{self.log_lambda_max:.6g}" if huge else "")),
            ("largest stable learning rate 2/λ_max", f"{self.max_learning_rate:.6g}"),
            ("outliers", f"{self.outliers}"),
            ("mean of the bulk" + (", as far as predicted" if np.isnan(self.frobenius) else ""), f"{self.bulk:.6g}"),
            ("trace", f"{self.trace:.7g}" + (f" = e^{self.log_trace:.6g}" if huge else "")),
            ("mean eigenvalue m = trace/P", f"{self.mean_eigenvalue:.6g}"),
            ("second moment s = ‖F‖²/P", f"{self.second_moment:.6g}"),
            ("effective rank, trace/λ_max", f"{self.effective_rank:.5g}"),
            ("parameters P", f"{self.size}"),
            ("zero eigenvalues, at least", f"{self.zeros}"),
            ("one network differs by up to about", f"{100 * self.deviation:.2g} %"),
            ("λ_max at this width lies above by about", f"{100 * self.bias:.2g} %"),
            ("method", self.method),
            *self.info,
        ]
        return aligned(rows)


# Numbers of a summary that theory predicts, in the order of its first lines.
PREDICTED = ("lambda_max", "max_learning_rate", "trace", "mean_eigenvalue", "effective_rank")


def _relative(value: float, expected: float) -> str:
    return f"{100 * (value / expected - 1):+.1f} %" if expected and np.isfinite(expected) and np.isfinite(value) else ""


def aligned(rows: list[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _number(value: float) -> str:
    return "unknown: raise k" if np.isnan(value) else f"{value:.4g}"


def provenance(key: Any = None, dtype: Any = None, **settings: Any) -> tuple[tuple[str, str], ...]:
    """Versions, device, precision, seed and settings, as pairs of strings."""
    device = jax.devices()[0]
    pairs = {
        "fisher_jax": metadata.version("fisher-jax"),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": f"{device.platform}: {device.device_kind} x {jax.device_count()}",
        "x64": str(jax.dtypes.canonicalize_dtype(np.float64) == np.float64),
        "matmul_precision": "highest",
    }
    if dtype is not None:
        pairs["dtype"] = jnp.dtype(dtype).name
    if key is not None:
        with jax.ensure_compile_time_eval():
            pairs["key"] = "traced" if _checks.traced(key) else str(np.asarray(_key_data(key)).tolist())
    return tuple((pairs | {k: str(v) for k, v in settings.items()}).items())


def _key_data(key: Any) -> Any:
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


_TYPES: dict[str, Any] = {}


def register(*classes: Any) -> None:
    """Records that `save` and `load` know."""
    _TYPES.update({cls.__name__: cls for cls in classes})


register(EigenResult, Law, Spectrum, Summary, Track, Training)


def save(result: Any, path: Any) -> None:
    """Write a result to one `.npz`: arrays as they are, everything else as JSON; renamed when complete."""
    if type(result).__name__ not in _TYPES:
        raise _checks.fail("save", f"result is a {type(result).__name__}", f"save one of {sorted(_TYPES)}")
    arrays: dict[str, np.ndarray] = {}
    header: dict[str, Any] = {"type": type(result).__name__, "format": FORMAT, "fields": {}}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if isinstance(value, (jax.Array, np.ndarray)):
            arrays[field.name] = np.asarray(value)
        else:
            header["fields"][field.name] = value
    arrays["__header__"] = np.array(json.dumps(header, default=_nested))

    def write(temporary: str) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    replace(path, write)


def _nested(value: Any) -> dict[str, Any]:
    """A registered record without arrays inside another, as JSON."""
    if type(value).__name__ not in _TYPES:
        raise TypeError(f"a {type(value).__name__} inside a result cannot be saved")
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {"type": type(value).__name__, "fields": fields}


def _restored(value: Any) -> Any:
    """JSON knows lists only, names are hashable; and a dict is a record inside a record."""
    if isinstance(value, dict):
        return _TYPES[value["type"]](**_fields(value["fields"]))
    return tuple(value) if isinstance(value, list) else value


def _fields(values: dict[str, Any]) -> dict[str, Any]:
    fields = {name: _restored(value) for name, value in values.items()}
    if "info" in fields:
        fields["info"] = tuple((str(a), str(b)) for a, b in fields["info"])
    return fields


def load(path: Any) -> Any:
    """Read a result written by `fj.save`; nothing in the file is executed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise _checks.fail("load", f"path={str(path)!r} does not exist", "give a file written by fj.save") from None
    except Exception as error:
        raise _checks.fail("load", f"path={str(path)!r} is not a result file", "give a file written by fj.save") from error
    try:
        header = json.loads(str(arrays.pop("__header__")))
        cls: Any = _TYPES[header["type"]]
    except (KeyError, ValueError):
        raise _checks.fail(
            "load", f"path={str(path)!r} is not a fisher_jax result", "give a file written by fj.save"
        ) from None
    if header.get("format") != FORMAT:
        raise _checks.fail(
            "load", f"path={str(path)!r} has format {header.get('format')}", f"read it with a version that writes {FORMAT}"
        )
    try:
        return cls(**_fields(header["fields"]), **{name: jnp.asarray(a) for name, a in arrays.items()})
    except (TypeError, KeyError) as error:
        raise _checks.fail("load", f"path={str(path)!r} has other fields ({error})", "write it again") from None


def replace(path: Any, write: Callable[[str], None]) -> None:
    """Call `write(temporary name)` and rename the outcome to `path`; on failure nothing is left behind."""
    path = os.fspath(path)
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise _checks.fail("save", f"path={path!r}: no such directory", "create it first")
    handle, temporary = tempfile.mkstemp(
        dir=os.path.dirname(path) or ".", prefix="." + os.path.basename(path), suffix=os.path.splitext(path)[1]
    )
    os.close(handle)
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)  # mkstemp keeps others out; a result file is like any other
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
