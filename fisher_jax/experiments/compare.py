"""Architectures against theory: measured over many networks, predicted, and whether the two agree."""

import dataclasses
import hashlib
import math
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from fisher_jax import _checks
from fisher_jax.experiments.cells import kept
from fisher_jax.experiments.ensemble import ensemble
from fisher_jax.experiments.growth import Growth, growth
from fisher_jax.experiments.variants import DEFAULT, variant
from fisher_jax.findings import widest_gap
from fisher_jax.likelihoods import Categorical, Gaussian
from fisher_jax.modes import Average
from fisher_jax.results import Law
from fisher_jax.theory import predict

FORMAT = 1
FIELDS = ("variant", "depth", "size", "measured", "predicted", "allowed", "values", "law_values", "warnings")
QUANTITIES = {
    "trace": "trace",
    "mean_eigenvalue": "mean eigenvalue m = trace/P",
    "second_moment": "second moment s = ‖F‖²/P",
    "lambda_max": "largest eigenvalue λ_max",
    "top": "mean of the C outliers",
    "outliers": "outliers",
    "bulk": "mean of the bulk",
    "max_learning_rate": "largest stable rate 2/λ_max",
}
# Of λ_max: what lies below may be rounding of float32.
ROUNDING = 1e-6
GROWING = ("trace", "mean_eigenvalue", "lambda_max", "max_learning_rate")
# A difference is none within so many standard errors, or what is as unlikely for few networks.
AGREES = 3.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantity of one variant at one depth, and its verdict.

    `distance`: (measured − predicted) in standard errors. `excess`: its part outside what the finite width explains.
    """

    variant: str
    depth: int
    quantity: str
    measured: float
    error: float  # standard error of the measured mean, and of the prediction where it is drawn
    predicted: float
    relative: float
    distance: float
    excess: float
    limit: float  # of the distances: 3 for many networks, more for few, by Student's t
    deviation: float  # relative, of one network, by theory

    @property
    def verdict(self) -> str:
        if math.isnan(self.predicted) or math.isnan(self.measured):
            return "no prediction"
        if self.deviation > 1:
            return "out of range"
        if math.isnan(self.distance):
            return "one network: no error"
        if abs(self.distance) <= self.limit:
            return "agrees"
        return "finite width" if abs(self.excess) <= self.limit else "differs"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Measured beside predicted for every variant and depth; prints itself, and is written by `fj.experiments.write`."""

    settings: dict[str, Any]
    cells: tuple[dict[str, Any], ...]

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(cell["variant"] for cell in self.cells))

    def rows(self) -> list[Row]:
        """All numbers, by variant, depth and quantity."""
        return [row for cell in self.cells for row in _rows(cell, self.settings["outputs"])]

    def curve(self, name: str, quantity: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(depths, measured, errors, predicted) of a variant."""
        rows = [row for row in self.rows() if (row.variant, row.quantity) == (name, quantity)]
        rows.sort(key=lambda row: row.depth)
        columns = ([getattr(row, field) for row in rows] for field in ("depth", "measured", "error", "predicted"))
        depths, measured, errors, predicted = (np.array(column, float) for column in columns)
        return depths, measured, errors, predicted

    @property
    def fitted_from(self) -> int:
        """The depth from which on laws are fitted: shallow networks follow no law of deep ones."""
        depths = self.settings["depths"]
        return next((least for least in (4, 2) if sum(depth >= least for depth in depths) >= 3), 1)

    def growth(self, name: str, quantity: str) -> tuple[Growth, Growth] | None:
        """The laws fitted to the measured and to the predicted curve, with the same weights; None for too few depths.

        Where the measurements cannot tell two laws apart, the one of the predicted curve is named.
        """
        depths, measured, errors, predicted = self.curve(name, quantity)
        good = np.isfinite(measured) & np.isfinite(predicted) & (measured > 0) & (predicted > 0)
        good &= depths >= self.fitted_from
        if good.sum() < 3:
            return None
        depths, measured, errors, predicted = (a[good] for a in (depths, measured, errors, predicted))
        errors = np.nan_to_num(errors)
        law = growth(depths, predicted, errors * predicted / measured)
        return growth(depths, measured, errors, prefer=law.kind), law

    def counts(self) -> dict[str, int]:
        """How many numbers got which verdict."""
        verdicts = [row.verdict for row in self.rows()]
        return {name: verdicts.count(name) for name in dict.fromkeys(verdicts)}

    def __repr__(self) -> str:
        lines = []
        for cell in self.cells:
            title = variant(cell["variant"]).title
            lines += ["", f"{cell['variant']} ({title}), depth {cell['depth']}, P = {cell['size']}" + _range(cell)]
            lines += [f"  {'':<28} {'measured':>24}  {'predicted':>11}  {'rel. error':>10}  verdict"]
            lines += [_line(row) for row in _rows(cell, self.settings["outputs"])]
        return "\n".join([*lines[1:], "", self.laws(), "", self.summary()])

    def laws(self) -> str:
        """The growth laws, fitted to measured and predicted curves."""
        head = f"growth from depth {self.fitted_from}"
        lines = [f"{head:<22} {'quantity':<18} {'measured':<29} {'predicted':<29} as L grows"]
        for name in self.variants:
            limit = variant(name).law
            for quantity in GROWING:
                if (found := self.growth(name, quantity)) is not None:
                    label = quantity.replace("_", " ")
                    lines.append(f"{name:<22} {label:<18} {found[0]!r:<29} {found[1]!r:<29} {limit}".rstrip())
                    limit = ""
        return "\n".join(lines) if len(lines) > 1 else "growth laws need three depths"

    def summary(self) -> str:
        """How many numbers got which verdict, in words."""
        counts = self.counts()
        parts = [f"{counts[name]} {meaning}" for name, meaning in _VERDICTS.items() if name in counts]
        return f"{sum(counts.values())} numbers: " + ", ".join(parts)


_VERDICTS = {
    "agrees": "agree within the error of the mean",
    "finite width": "are off by what theory leaves to the finite width",
    "differs": "differ",
    "no prediction": "have no prediction",
    "out of range": "are of networks that differ by more than 100 % one from the other, too deep for their width",
    "one network: no error": "have no error, for want of a second network",
}


def compare(
    variants: Sequence[str] = DEFAULT,
    depths: Sequence[int] = (1, 2, 4, 8, 16, 32),
    *,
    width: int = 256,
    samples: int = 16,
    x: Any = None,
    outputs: int = 1,
    likelihood: str = "gaussian",
    seeds: int = 30,
    key: Any,
    directory: Any = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Fisher spectra of random networks, measured over seeds and predicted by theory, for variants and depths.

    All networks see the same data, and theory its exact kernel: the standard errors are those of the weights (and masks).

    Args:
        variants: names in `fj.experiments.VARIANTS`. depths: as the models count them: weight layers of an MLP, else blocks.
        width: hidden units; the stream of most residual networks has as many as there are inputs.
        samples: N of data drawn from N(0, 1), with `width` features; or x: data `(N, d)`.
        outputs: C. likelihood: "gaussian" or "categorical".
        seeds: networks for each variant and depth. key: JAX random key.
        directory: each finished cell is kept there; a later call with the same settings takes it from there.
        progress: called with (what is at work, networks done, networks in all).

    Returns:
        Comparison.

    Raises:
        ArgumentError: unknown variants, depths below 1; a file in the directory that is no cell.
    """
    for what, value in (("variants", variants), ("depths", depths)):
        if isinstance(value, (str, int)):
            raise _checks.fail("compare", f"{what}={value!r} is no list", f"give {what}=[{value!r}]")
    names = [name for name in dict.fromkeys(variants) if variant(name)]
    depths = sorted({_checks.integer("compare", "depths", depth, 1) for depth in depths})
    if not names or not depths:
        raise _checks.fail("compare", f"variants={list(variants)}, depths={depths}", "give at least one of each")
    seeds = _checks.integer("compare", "seeds", seeds, 1)
    if likelihood not in ("gaussian", "categorical"):
        raise _checks.fail("compare", f"likelihood={likelihood!r} is not covered", 'give "gaussian" or "categorical"')
    source = "N(0, 1)" if x is None else "given"
    if x is None:
        _checks.integer("compare", "width", width, 1)
        shape = (_checks.integer("compare", "samples", samples, 1), width)
        x = jax.random.normal(jax.random.fold_in(key, 0), shape)
    x = np.asarray(x, np.float64 if jax.dtypes.canonicalize_dtype(np.float64) == np.float64 else np.float32)
    if x.ndim != 2 or not np.isfinite(x).all() or not x.any():
        raise _checks.fail("compare", f"x of shape {x.shape}", "give samples in rows (N, d), finite and not all zero")
    settings = {
        "width": width,
        "data": source,
        "fingerprint": hashlib.sha256(x.tobytes() + str(x.shape).encode()).hexdigest()[:16],
        "samples": x.shape[0],
        "inputs": x.shape[1],
        "outputs": _checks.integer("compare", "outputs", outputs, 1 + (likelihood == "categorical")),
        "likelihood": likelihood,
        "seeds": seeds,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "dtype": x.dtype.name,
        "fisher_jax": metadata.version("fisher-jax"),
    }
    jobs = [(name, depth) for name in names for depth in depths]
    cells = []
    for done, (name, depth) in enumerate(jobs):

        def report(networks: int, _: int, at: str = f"{name}, depth {depth}", done: int = done) -> None:
            if progress is not None:
                progress(at, done * seeds + networks, len(jobs) * seeds)

        report(0, seeds)
        # The variant's own definition belongs to the settings: the table may change.
        identity = settings | {"variant": name, "depth": depth, "definition": repr(variant(name)), "format": FORMAT}
        make = lambda n=name, d=depth, r=report: _cell(n, d, x, key, settings, r)  # noqa: E731
        cells.append(kept("compare", directory, f"{name}-{depth}", identity, FIELDS, make))
    if progress is not None:
        progress("done", len(jobs) * seeds, len(jobs) * seeds)
    return Comparison(settings | {"variants": names, "depths": depths}, tuple(cells))


def _cell(
    name: str, depth: int, x: np.ndarray, key: Any, settings: dict[str, Any], report: Callable[[int, int], None]
) -> dict[str, Any]:
    """Measured and predicted numbers of one variant at one depth, as plain lists and numbers."""
    start = time.perf_counter()
    chosen, outputs = variant(name), settings["outputs"]
    options, matrix = chosen.at(depth, settings["width"])
    categorical = settings["likelihood"] == "categorical"
    weights, random = jax.random.split(jax.random.fold_in(key, zlib.crc32(f"{name} {depth}".encode())))
    likelihood = Categorical() if categorical else Gaussian()
    arguments = {"outputs": outputs, **options}
    laws, caught = _laws(chosen.model, x, settings["likelihood"], random, matrix, arguments)
    common = {"seeds": settings["seeds"], "key": weights, "progress": report}
    values = ensemble(chosen.model, x, likelihood, **common, **matrix, **arguments)
    # Zeros behind what theory has.
    expanded = np.stack([np.nan_to_num(law.expanded(values.shape[1])) for law in laws])
    law, rank = laws[0], min(laws[0].dual_size, values.shape[1])
    measured, predicted = (_numbers(spectra[:, :rank], law.size, law.outliers) for spectra in (values, expanded))
    predicted["second_moment"] = np.array([one.second_moment for one in laws])
    if matrix.get("masks") == "one":
        # The law is an expectation over subnetworks: its inverse is not the expectation of inverses.
        predicted["max_learning_rate"] = np.full(1, math.nan)
    return {
        "variant": name,
        "depth": depth,
        "size": law.size,
        "measured": {q: measured[q].tolist() for q in QUANTITIES},
        "predicted": {q: predicted[q].tolist() for q in QUANTITIES},
        "allowed": _allowed(law, predicted, measured, expanded[0, :rank], outputs, settings["width"]),
        "values": values.mean(axis=0).tolist(),
        "law_values": expanded.mean(axis=0).tolist(),
        "warnings": caught,
        "deviation": law.deviation,
        "seconds": time.perf_counter() - start,
    }


def _laws(
    model: str, x: np.ndarray, likelihood: str, key: Any, matrix: Any, arguments: dict[str, Any]
) -> tuple[list[Law], list[str]]:
    """Predictions; several where theory itself draws masks, or the outputs that enter a softmax."""
    masks, bn = matrix.get("masks"), matrix.get("bn")
    many = 24 if likelihood == "categorical" else 8 if masks == "average" and arguments.get("survival", 1.0) != 1.0 else 1
    draws = 1 if likelihood == "categorical" else None
    laws = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for k in jax.random.split(key, many):
            chosen = Average(matrix["draws"], k) if masks == "average" else masks
            laws.append(predict(model, x=x, likelihood=likelihood, masks=chosen, bn=bn, draws=draws, key=k, **arguments))
    return laws, sorted({str(warning.message) for warning in caught})


def _numbers(values: np.ndarray, size: int, outliers: int) -> dict[str, np.ndarray]:
    """The quantities of each spectrum `(S, rows)`."""
    trace = values.sum(axis=1)
    largest = values[:, 0]
    rest = values[:, outliers:]
    return {
        "trace": trace,
        "mean_eigenvalue": trace / size,
        "second_moment": (values**2).sum(axis=1) / size,
        "lambda_max": largest,
        "top": values[:, : max(1, outliers)].mean(axis=1),
        "outliers": np.array([stand_out(v) for v in values], float),
        "bulk": rest.mean(axis=1) if rest.shape[1] else np.full(len(values), math.nan),
        "max_learning_rate": 2 / largest,
    }


def stand_out(values: np.ndarray) -> int:
    """Eigenvalues above the widest gap in the upper half of those that are not rounding, if that is more than a factor 2."""
    values = values[values > ROUNDING * values[0]]
    if values.size < 2:
        return 0
    count, ratio = widest_gap(values, values.size // 2)
    return count if ratio > 2 else 0


def _allowed(
    law: Law,
    predicted: dict[str, np.ndarray],
    measured: dict[str, np.ndarray],
    values: np.ndarray,
    outputs: int,
    width: int,
) -> dict[str, list[float]]:
    """For each quantity the factors between which the mean of finite networks may lie, to first order in 1/width.

    λ_max lies above by the fitted bias, and with several outputs their outliers split; what is a function of λ_max follows,
    and convex functions gain from the spread of single networks, as measured (and at most as theory estimates). The bulk
    broadens as a sample covariance does, by (1 + √(rows/width))²: outliers within that may not stand out.
    """
    bias, traces = law.bias, measured["trace"]
    spread = min(law.deviation**2, float(traces.var() / traces.mean() ** 2))
    split = math.sqrt(1.5 * outputs * bias) if outputs > 1 else 0.0
    mean = {name: float(np.mean(numbers)) for name, numbers in predicted.items()}
    count = max(1, law.outliers)
    rest = values.size - count
    lower = max(0.0, 1 - bias * mean["top"] * count / (mean["bulk"] * rest)) if rest > 0 and mean["bulk"] > 0 else 1.0
    edge = 2 * (1 + math.sqrt(values.size / width)) ** 2
    hidden = rest > 0 and values[count - 1] < edge * values[count]
    return {
        "trace": [1.0, 1.0],
        "mean_eigenvalue": [1.0, 1.0],
        "second_moment": [1.0, 1 + 2 * bias + spread],
        "lambda_max": [1.0, 1 + bias + split],
        "top": [1.0, 1 + bias],
        "outliers": [0.0 if hidden else 1.0, 1.0],
        "bulk": [lower, 1.0],
        "max_learning_rate": [1 / (1 + bias + split), 1 + spread],
    }


def _rows(cell: dict[str, Any], outputs: int) -> list[Row]:
    from scipy.stats import norm
    from scipy.stats import t as student

    rows = []
    for quantity in QUANTITIES:
        if quantity == "top" and outputs == 1:
            continue  # the largest eigenvalue itself
        found, law = np.array(cell["measured"][quantity], float), np.array(cell["predicted"][quantity], float)
        measured, predicted = found.mean(), law.mean()
        error = found.std(ddof=1) / math.sqrt(found.size) if found.size > 1 else math.nan
        if law.size > 1:
            error = math.hypot(error, law.std(ddof=1) / math.sqrt(law.size))
        difference = measured - predicted
        low, high = (factor * predicted for factor in cell["allowed"][quantity])
        outside = min(measured - low, 0.0) + max(measured - high, 0.0)
        limit = float(student.isf(norm.sf(AGREES), found.size - 1)) if found.size > 1 else math.nan
        # Where nothing is random, rounding is all that may differ; a count is right or off by one.
        rounding = ROUNDING * float(np.mean(cell["measured"]["lambda_max"])) if quantity == "bulk" else 0.0
        scale = max(error, 1e-5 * abs(predicted), rounding) if not math.isnan(error) else math.nan
        scale = max(scale, 0.5 / limit) if quantity == "outliers" else scale
        relative = difference / predicted if predicted else (0.0 if difference == 0 else math.inf)
        deviation = cell["deviation"]
        numbers = (measured, error, predicted, relative, difference / scale, outside / scale, limit, deviation)
        rows.append(Row(cell["variant"], cell["depth"], quantity, *(float(number) for number in numbers)))
    return rows


def _range(cell: dict[str, Any]) -> str:
    return f"; one network differs by {100 * cell['deviation']:.0f} %" if cell["deviation"] > 0.5 else ""


def _line(row: Row) -> str:
    measured = f"{row.measured:.5g} ± {row.error:.2g}" if math.isfinite(row.error) else f"{row.measured:.5g}"
    sigma = f" ({abs(row.distance):.1f} s.e.)" if math.isfinite(row.distance) else ""
    relative = f"{100 * row.relative:+.3g} %" if math.isfinite(row.relative) else ""
    return f"  {QUANTITIES[row.quantity]:<28} {measured:>24}  {row.predicted:>11.5g}  {relative:>10}  {row.verdict}{sigma}"
