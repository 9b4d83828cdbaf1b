"""Pictures of spectra. Figures are made without a display and without touching pyplot's state."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fisher_jax import _checks
from fisher_jax.results import (
    ClassErrors,
    EigenResult,
    Generalization,
    Law,
    LearningRates,
    PhaseDiagram,
    Pretraining,
    Separability,
    Spectrum,
    Summary,
    Track,
    Training,
)

INK, ACCENT, QUIET = "#1f3a5f", "#c8553d", "#8a8f98"
PREDICTED = {"color": "#2f8f6b", "lw": 1.6}


def spectrum(
    top: EigenResult, summary: Summary | None = None, title: str | None = None, theory: Law | None = None
) -> Figure:
    """The largest eigenvalues on a logarithmic axis with their error bounds, and the share of the trace they carry.

    Args:
        top: from `fj.eigsh`. summary: from `fj.summarize`, for the trace share, the mean eigenvalue and the learning rate.
        title: above the picture. theory: from `fj.theory.predict`, drawn behind the measured eigenvalues.

    Returns:
        matplotlib Figure; `figure.savefig("spectrum.png")`.
    """
    if not isinstance(top, EigenResult):
        raise _checks.fail(
            "plot.spectrum", f"top is a {type(top).__name__}", "give fj.eigsh(...); a Spectrum goes to plot.full"
        )
    values, bounds = np.asarray(top.values, np.float64), np.asarray(top.bounds, np.float64)
    shown = np.isfinite(values) & (values > 0)
    rank = np.arange(1, values.size + 1)
    figure = Figure(figsize=(9, 4.5) if summary else (5.6, 4.5), dpi=160, layout="constrained")
    axes = figure.subplots(1, 2, width_ratios=(3, 2)) if summary else [figure.subplots()]
    left = axes[0]
    many = summary.outliers if summary else 0
    if theory is not None:
        _prediction(left, rank, theory.expanded(rank.size), theory)
    # A bound may reach below zero, which a logarithmic axis cannot show: cut the bar just above.
    lower = np.minimum(bounds, values * (1 - 1e-3))
    for mask, color, label in (
        (shown & (rank <= many), ACCENT, f"first {many}: outliers expected at large width"),
        (shown & (rank > many), INK, "following eigenvalues" if many else "eigenvalues"),
    ):
        if mask.any():
            left.errorbar(
                rank[mask],
                values[mask],
                yerr=[lower[mask], bounds[mask]],
                fmt="o",
                ms=5,
                color=color,
                ecolor=color,
                capsize=3,
                elinewidth=1,
                label=label,
            )
    left.set_yscale("log")
    left.set_xlabel("rank i")
    left.set_ylabel("eigenvalue λᵢ of the Fisher matrix")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    if shown.any():
        largest = values[shown][0]
        left.annotate(
            f"λ_max = {largest:.4g}\nlearning rate < 2/λ_max = {2 / largest:.3g}",
            (rank[shown][0], largest),
            xytext=(0.36, 0.93),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": QUIET, "lw": 0.6},
        )
    if summary:
        _trace_share(axes[1], values, shown, rank, summary)
        if theory is not None:
            axes[1].plot(rank, 100 * np.cumsum(theory.expanded(rank.size)) / theory.trace, "-", zorder=1, **PREDICTED)
        if summary.mean_eigenvalue > 1e-3 * values[shown].min(initial=np.inf):
            left.axhline(summary.mean_eigenvalue, color=QUIET, lw=1, ls=":", label="mean eigenvalue, trace/P")
    # Points, band and lines may lie anywhere: names go outside.
    if left.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    for axis in axes:
        axis.grid(True, which="major", color="#e6e8eb", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    worst = np.nanmax(bounds / np.where(shown, values, np.nan)) if shown.any() else np.nan
    note = f"error bars: certified bounds, at most {worst:.1e} of the value" if np.isfinite(worst) else ""
    figure.suptitle("\n".join(t for t in (title, note) if t), fontsize=10)
    return figure


def _prediction(axis: Any, rank: np.ndarray, values: np.ndarray, theory: Law) -> None:
    """The predicted eigenvalues, and a band for what one network of this width may differ by."""
    factor = 1 + theory.deviation
    if factor > 1:
        label = f"one network of this width: ×÷ {factor:.2f}"
        axis.fill_between(rank, values / factor, values * factor, color=QUIET, alpha=0.22, lw=0, zorder=0, label=label)
    axis.plot(rank, values, "-", zorder=1, label="theory of wide networks", **PREDICTED)


def _trace_share(axis: Any, values: np.ndarray, shown: np.ndarray, rank: np.ndarray, summary: Summary) -> None:
    share = 100 * np.cumsum(np.where(shown, values, 0)) / summary.trace
    axis.fill_between(rank, share, color=INK, alpha=0.12, lw=0)
    axis.plot(rank, share, "-o", ms=3, color=INK, lw=1.2)
    axis.set_ylim(0, 100)
    axis.set_xlabel("number of eigenvalues")
    axis.set_ylabel("share of the trace, %")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    facts = (
        f"trace = {summary.trace:.5g} (exact)\neffective rank = {summary.effective_rank:.4g}\n"
        f"P = {summary.size}\nexact zeros ≥ {summary.zeros}"
    )
    axis.text(0.05, 0.95, facts, transform=axis.transAxes, va="top", fontsize=9, color=INK)


def full(parts: Spectrum | dict[str, Spectrum], title: str | None = None, theory: Law | None = None) -> Figure:
    """Every eigenvalue by rank on logarithmic axes, and the cumulative spectrum: what share of the trace lies above λ.

    Args:
        parts: from `fj.spectrum(F)`, or the dict of `fj.spectrum(F, by="layer")`, which adds one line for each part.
        title: above the picture. theory: from `fj.theory.predict`, of the whole.

    Returns:
        matplotlib Figure.
    """
    parts = parts if isinstance(parts, dict) else {"all": parts}
    if "all" not in parts or not all(isinstance(part, Spectrum) for part in parts.values()):
        raise _checks.fail(
            "plot.full", "parts is neither a Spectrum nor a dict with one under 'all'", "give fj.spectrum(...)"
        )
    whole = parts["all"]
    if not whole.values.size:
        raise _checks.fail("plot.full", "the spectrum has no eigenvalue above rounding", "nothing can be drawn")
    figure = Figure(figsize=(10, 5), dpi=160, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    names = [name for name in parts if name != "all"]
    shades = {name: colormaps["viridis"](0.1 + 0.8 * i / max(1, len(names) - 1)) for i, name in enumerate(names)}
    highest = 100.0
    for name, part in parts.items():
        values = np.asarray(part.values, np.float64)
        if not values.size:
            continue
        rank = np.arange(1, values.size + 1)
        style = {"color": INK, "lw": 2.0} if name == "all" else {"color": shades[name], "lw": 1.0}
        label = f"{name}: {values.size}" if names else f"{values.size} eigenvalues above rounding"
        # Of many parts some are named: the colors run from the first to the last.
        named = name == "all" or names.index(name) % -(-len(names) // 12) == 0 or name == names[-1]
        left.plot(rank, values, "-", label=label if named else None, **style)
        share = 100 * np.cumsum(values) / whole.trace
        highest = max(highest, share[-1])
        right.plot(values, share, "-", **style)
    if theory is not None:
        rank = np.arange(1, theory.dual_size + 1)
        values = theory.expanded(rank.size)
        _prediction(left, rank, values, theory)
        right.plot(values, 100 * np.cumsum(values) / theory.trace, "-", zorder=3, **PREDICTED)
    left.axhline(whole.floor, color=ACCENT, lw=1, ls="--", label=f"rounding{' of all' if names else ''}, {whole.floor:.1e}")
    left.axhline(whole.mean_eigenvalue, color=QUIET, lw=1, ls=":", label="mean eigenvalue, trace/P")
    left.set(xscale="log", yscale="log", xlabel="rank i", ylabel="eigenvalue λᵢ of the Fisher matrix")
    right.set(xscale="log", xlabel="λ", ylabel="share of the trace in eigenvalues ≥ λ, %", ylim=(0, 1.02 * highest))
    right.invert_xaxis()
    # Curves may run anywhere in both panels: names and facts go outside.
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    for axis in (left, right):
        axis.grid(True, which="major", color="#e6e8eb", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    facts = (
        f"λ_max = {whole.lambda_max:.5g}, trace = {whole.trace:.5g}, effective rank = {whole.effective_rank:.4g}, "
        f"exact zeros = {whole.zeros} ({100 * whole.zeros / whole.size:.1f} %)"
    )
    figure.suptitle("\n".join(t for t in (title, facts) if t), fontsize=10)
    return figure


def track(history: Track, training: Training | None = None, title: str | None = None) -> Figure:
    """The largest eigenvalues by step on a logarithmic axis, 2 over the learning rate beside them, and the loss below.

    Where λ_max crosses 2/rate, gradient descent without momentum on the quadratic model stops being stable.

    Args:
        history: `tracker.history`. training: from `fj.train.fit`, for loss and accuracy by epoch. title: above the picture.

    Returns:
        matplotlib Figure.
    """
    if not isinstance(history, Track) or not history.steps.size:
        raise _checks.fail("plot.track", "history is no Track with measurements", "give tracker.history")
    figure = Figure(figsize=(8, 6.4), dpi=160, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    steps = np.asarray(history.steps)
    values, bounds = np.asarray(history.values, np.float64), np.asarray(history.bounds, np.float64)
    many = values.shape[1]
    for i in reversed(range(many)):
        # A value within its bound of zero has no place on a logarithmic axis.
        shown = np.where(values[:, i] > bounds[:, i], values[:, i], np.nan)
        color = ACCENT if i == 0 else colormaps["Blues"](0.85 - 0.5 * i / many)
        label = "λ_max" if i == 0 else f"λ_2 ... λ_{many}" if i == 1 else None
        upper.plot(steps, shown, "-o", ms=3 if i == 0 else 2, lw=1.6 if i == 0 else 1, color=color, label=label)
    upper.set(yscale="log", ylabel="eigenvalue of the Fisher matrix")
    trace = np.asarray(history.trace, np.float64)
    if np.isfinite(trace).any():
        upper.plot(steps, np.where(trace > 0, trace, np.nan), ":", marker="o", ms=2, lw=1.2, color=INK, label="trace")
    rate = np.asarray(history.rate, np.float64)
    if (rate > 0).any():
        # The rate may end near zero: the eigenvalues set the scale.
        upper.set_ylim(upper.get_ylim())
        edge = np.divide(2, rate, out=np.full(rate.shape, np.nan), where=rate > 0)
        upper.plot(steps, edge, "--", lw=1, color=QUIET, label="2 / learning rate")
    curves = [("loss at the measurement", steps, history.loss, INK, "-")]
    if training is not None:
        curves = [
            ("training loss", training.steps, training.loss, INK, "-"),
            ("test loss", training.steps, training.test_loss, INK, "--"),
        ]
    for label, at, loss, color, style in curves:
        loss = np.asarray(loss, np.float64)
        if np.isfinite(loss).any():
            lower.plot(
                np.asarray(at), np.where(loss > 0, loss, np.nan), style, marker="o", ms=2, lw=1.4, color=color, label=label
            )
    lower.set(yscale="log", ylabel="loss", xlabel="step")
    if training is not None and np.isfinite(np.asarray(training.test_accuracy)).any():
        right = lower.twinx()
        error = 100 * (1 - np.asarray(training.test_accuracy, np.float64))
        right.plot(np.asarray(training.steps), error, "-o", ms=2, lw=1.2, color=ACCENT)
        right.set_ylabel("test error, %", color=ACCENT)
        right.set_ylim(0, None)
        right.spines[["top"]].set_visible(False)
    # Curves may run anywhere: names go outside.
    for axis in (upper, lower):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, fontsize=9, borderaxespad=0.1)
        axis.grid(True, which="major", color="#e6e8eb", lw=0.6)
        axis.spines[["top"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def laws(laws: dict[int, Law], title: str | None = None) -> Figure:
    """Predicted trace, largest and mean eigenvalue by depth, on logarithmic axes.

    Args:
        laws: from `fj.theory.predict`, by depth. title: above the picture.

    Returns:
        matplotlib Figure; depths whose trace exceeds a float are not drawn, and the title names them.
    """
    if not isinstance(laws, dict) or not laws or not all(isinstance(law, Law) for law in laws.values()):
        raise _checks.fail("plot.laws", "laws is no dict of Law by depth", "give {depth: fj.theory.predict(...)}")
    figure = Figure(figsize=(6.4, 4.6), dpi=160, layout="constrained")
    axis = figure.subplots()
    depths = sorted(depth for depth, law in laws.items() if np.isfinite(law.trace))
    curves = (
        ("trace", "trace", INK),
        ("lambda_max", "λ_max", ACCENT),
        ("mean_eigenvalue", "mean eigenvalue, trace/P", QUIET),
    )
    for name, label, color in curves:
        values = np.array([getattr(laws[depth], name) for depth in depths])
        values[values <= 0] = np.nan
        axis.plot(depths, values, "-o", ms=4, lw=1.4, color=color, label=label)
    axis.set(xscale="log", yscale="log", xlabel="depth", ylabel="of the Fisher matrix, predicted")
    if len(depths) <= 12:
        axis.set_xticks(depths, [str(depth) for depth in depths])
        axis.minorticks_off()
    axis.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.1)
    axis.grid(True, which="major", color="#e6e8eb", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    lost = ", ".join(str(depth) for depth in sorted(set(laws) - set(depths)))
    note = f"not drawn, above 10³⁰⁸: depth {lost}" if lost else ""
    figure.suptitle("\n".join(t for t in (title, note) if t), fontsize=10)
    return figure


def phase_diagram(result: PhaseDiagram, title: str | None = None) -> Figure:
    """Trace, λ_max and outlier ratio over σ_w and σ_b on logarithmic colors, with the edge of chaos; networks below theory.

    Args:
        result: from `fj.experiments.phase_diagram`. title: above the picture.

    Returns:
        matplotlib Figure.
    """
    if not isinstance(result, PhaseDiagram):
        raise _checks.fail(
            "plot.phase_diagram", f"result is a {type(result).__name__}", "give fj.experiments.phase_diagram(...)"
        )
    if min(result.trace.shape) < 2:
        raise _checks.fail("plot.phase_diagram", f"the grid is {result.trace.shape}", "give two variances or more of each")
    networks = result.measured_trace.shape[-1]
    rows = 2 if networks else 1
    figure = Figure(figsize=(11, 1 + 3.2 * rows), dpi=160, layout="constrained")
    panels = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False)
    weights = np.sqrt(np.asarray(result.weight_variances, np.float64))
    biases = np.sqrt(np.asarray(result.bias_variances, np.float64))
    names = {"trace": "trace", "lambda_max": "λ_max", "outlier_ratio": "λ_max / mean of the bulk"}
    for column, (name, label) in enumerate(names.items()):
        tables = [np.asarray(getattr(result, name), np.float64)]
        if networks:
            tables.append(np.asarray(getattr(result, f"measured_{name}"), np.float64).mean(axis=-1))
        # One scale for theory and networks.
        norm = LogNorm(min(float(t.min()) for t in tables), max(float(t.max()) for t in tables))
        for row, table in enumerate(tables):
            axis = panels[row, column]
            image = axis.pcolormesh(weights, biases, table.T, norm=norm, cmap="viridis", shading="nearest", rasterized=True)
            left, right = axis.get_xlim()
            axis.plot(np.sqrt(np.asarray(result.edge)), biases, "-", color="white", lw=3)
            axis.plot(np.sqrt(np.asarray(result.edge)), biases, "--", color=ACCENT, lw=1.8, label="edge of chaos, χ = 1")
            axis.set_xlim(left, right)
            if column == 0:
                axis.set_ylabel("σ_b" + (", infinite width" if row == 0 else f", mean of {networks} networks"))
        panels[0, column].set_title(label, fontsize=10)
        panels[-1, column].set_xlabel("σ_w")
        figure.colorbar(image, ax=panels[:, column].tolist(), location="bottom", pad=0.02, aspect=30)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", frameon=False, fontsize=9)
    settings = dict(result.info)
    facts = ", ".join(f"{n} {settings[n]}" for n in ("depth", "width", "samples", "cosine") if n in settings)
    figure.suptitle("\n".join(t for t in (title, f"{result.activation}: {facts}") if t), fontsize=10)
    return figure


def pretraining(results: dict[str, Pretraining], title: str | None = None) -> Figure:
    """Every eigenvalue by rank before and after training, one panel for each network.

    Args:
        results: from `fj.experiments.pretraining`. title: above the picture.

    Returns:
        matplotlib Figure.
    """
    if not results or not all(isinstance(r, Pretraining) for r in results.values()):
        raise _checks.fail("plot.pretraining", "results is no dict of Pretraining", "give fj.experiments.pretraining(...)")
    figure = Figure(figsize=(1 + 3.4 * len(results), 4.2), dpi=160, layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axis, (name, result) in zip(panels, results.items(), strict=True):
        for stage, color, (count, _), found in zip(
            ("at initialization", "after training"),
            (QUIET, ACCENT),
            result.outliers(),
            (result.before, result.after),
            strict=True,
        ):
            values = np.asarray(found.values, np.float64)
            rank = np.arange(1, values.size + 1)
            axis.plot(rank, values, "-", lw=1.6, color=color, label=stage)
            axis.plot(rank[:count], values[:count], "o", ms=4, color=color)
            axis.axhline(found.floor, color=color, lw=0.8, ls=":")
        first, last = result.before.lambda_max, result.after.lambda_max
        axis.set(xscale="log", yscale="log", xlabel="rank i")
        axis.set_title(f"{name}\nλ_max {first:.3g} → {last:.3g}", fontsize=9)
        axis.grid(True, which="major", color="#e6e8eb", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("eigenvalue λᵢ of the Fisher matrix")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    note = "dots: eigenvalues above the widest gap; dotted: rounding"
    figure.suptitle("\n".join(t for t in (title, note) if t), fontsize=10)
    return figure


def separability(results: Separability | dict[str, Separability], title: str | None = None) -> Figure:
    """Angle, norm, distance and co-activation of two inputs through depth: lines by theory, points by networks.

    Args:
        results: from `fj.experiments.separability`; or a dict of several, by name. title: above the picture.

    Returns:
        matplotlib Figure. Bars: the mean over networks and its standard error.
    """
    named: dict[str, Separability] = {results.kind: results} if isinstance(results, Separability) else results
    if not isinstance(named, dict) or not named or not all(isinstance(r, Separability) for r in named.values()):
        raise _checks.fail(
            "plot.separability", f"results is a {type(results).__name__}", "give fj.experiments.separability(...)"
        )
    figure = Figure(figsize=(10, 7), dpi=160, layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    labels = {
        "angle": "angle, rad",
        "norm": "|h|² / |x|²",
        "distance": "|h − h'|² / |x|²",
        "coactivation": "units active for both, share",
    }
    for axis, (field, label) in zip(panels, labels.items(), strict=True):
        for i, (name, result) in enumerate(named.items()):
            color = colormaps["viridis"](0.85 * i / max(1, len(named) - 1))
            values = np.asarray(getattr(result, field), np.float64)
            depth = np.arange(values.shape[1]) + 0.06 * (i - (len(named) - 1) / 2)
            axis.plot(
                np.arange(values.shape[1]), np.asarray(getattr(result, f"predicted_{field}")), "-", lw=1.2, color=color
            )
            error = values.std(axis=0, ddof=1) / values.shape[0] ** 0.5
            axis.errorbar(depth, values.mean(axis=0), error, fmt="o", ms=3, lw=1, color=color, label=name)
        axis.set(xlabel="layers or blocks", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if field in ("norm", "distance"):
            axis.set_yscale("log")
        axis.grid(True, which="major", color="#e6e8eb", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    note = "lines: infinite width; points: networks, mean and standard error"
    figure.suptitle("\n".join(t for t in (title, note) if t), fontsize=10)
    return figure


def class_errors(results: ClassErrors | dict[str, ClassErrors], title: str | None = None) -> Figure:
    """The bound on the error of two classes through depth, and the error of the best threshold below it.

    Args:
        results: from `fj.experiments.class_errors`; or a dict of several, by name. title: above the picture.

    Returns:
        matplotlib Figure. Lines: infinite width; points: networks, mean and standard error.
    """
    named: dict[str, ClassErrors] = {results.kind: results} if isinstance(results, ClassErrors) else results
    if not isinstance(named, dict) or not named or not all(isinstance(r, ClassErrors) for r in named.values()):
        raise _checks.fail(
            "plot.class_errors", f"results is a {type(results).__name__}", "give fj.experiments.class_errors(...)"
        )
    figure = Figure(figsize=(1 + 2.6 * len(named), 3.8), dpi=160, layout="constrained")
    panels = figure.subplots(1, len(named), sharey=True, squeeze=False)[0]
    for axis, (name, result) in zip(panels, named.items(), strict=True):
        for field, color, label in (("bound", QUIET, "bound 1/(1 + r²)"), ("error", ACCENT, "best threshold")):
            values = np.asarray(getattr(result, field), np.float64)
            error = values.std(axis=0, ddof=1) / values.shape[0] ** 0.5
            depth = np.arange(values.shape[1])
            axis.plot(depth, np.asarray(getattr(result, f"predicted_{field}")), "-", lw=1.4, color=color)
            axis.errorbar(depth, values.mean(axis=0), error, fmt="o", ms=3, lw=1, color=color, label=label)
        axis.set(xlabel="layers or blocks", ylim=(0, None))
        axis.set_title(name, fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(True, which="major", color="#e6e8eb", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("error of the worse class")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    note = "lines: infinite width; points: networks, mean and standard error"
    figure.suptitle("\n".join(t for t in (title, note) if t), fontsize=10)
    return figure


def learning_rate(results: LearningRates | dict[str, LearningRates], title: str | None = None) -> Figure:
    """The transient, largest loss over the first, by the rate over its limit: it rises like a wall where the limit is right.

    Args:
        results: from `fj.experiments.learning_rate`, several with their names. title: above the picture.

    Returns:
        matplotlib Figure. Runs that overflowed are arrows at the upper edge.
    """
    results = results if isinstance(results, dict) else {"": results}
    if not results or not all(isinstance(result, LearningRates) for result in results.values()):
        raise _checks.fail(
            "plot.learning_rate", "results are no LearningRates", "give fj.experiments.learning_rate(...), or a dict of them"
        )
    figure = Figure(figsize=(7.5, 4.2), dpi=160, layout="constrained")
    axis = figure.subplots()
    finite = [t for result in results.values() for t in np.asarray(result.transient, np.float64) if np.isfinite(t)]
    edge = 10 * max(finite, default=1.0)
    for i, (name, result) in enumerate(results.items()):
        color = colormaps["viridis"](0.9 * i / max(1, len(results) - 1))
        c, transient = (np.asarray(a, np.float64) for a in (result.factors, result.transient))
        left = ~np.isfinite(transient)
        label = f"{name}: " * bool(name) + f"{result.lower:.3f} ... {result.upper:.3f}"
        axis.plot(c, np.where(left, edge, transient), "-", lw=1, color=color)
        axis.plot(c[~left], transient[~left], "o", ms=3.5, color=color, label=label)
        axis.plot(c[left], np.full(left.sum(), edge), "^", ms=6, color=color)
    axis.axvline(1, color=ACCENT, lw=1, ls="--", label="limit, 2 (1 + momentum)/λ_max")
    axis.set(yscale="log", xlabel="learning rate / limit", ylabel="largest loss / first loss", ylim=(0.5, 2 * edge))
    axis.grid(True, which="major", color="#e6e8eb", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, title="largest stable, measured", title_fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def generalization(result: Generalization, title: str | None = None) -> Figure:
    """Gap of each kind with its standard error over seeds; stability where it is known; below, training loss and bound.

    Args:
        result: from `fj.experiments.linear_generalization` or `fj.experiments.generalization`. title: above the picture.

    Returns:
        matplotlib Figure.
    """
    if not isinstance(result, Generalization):
        raise _checks.fail(
            "plot.generalization", f"result is a {type(result).__name__}", "give fj.experiments.generalization(...)"
        )
    gap, train = (np.asarray(a, np.float64) for a in (result.gap, result.train))
    kinds, seeds = np.arange(len(gap)), gap.shape[1]
    figure = Figure(figsize=(max(5.5, 1.3 * len(gap)), 4.2), dpi=160, layout="constrained")
    axis = figure.subplots()
    error = gap.std(axis=1, ddof=1) / seeds**0.5 if seeds > 1 else None
    axis.bar(kinds, gap.mean(axis=1), 0.55, yerr=error, color=INK, ecolor=QUIET, capsize=4, label="gap, mean ± s.e.")
    axis.plot(kinds, np.median(gap, axis=1), "_", ms=22, mew=2, color=ACCENT, label="gap, median")
    if result.stability is not None:
        stability = np.median(np.asarray(result.stability, np.float64), axis=1)
        axis.plot(kinds, stability, "D", ms=6, mfc="white", color=ACCENT, label="leave-one-out stability, median")
    names = [f"{name}\ntraining loss {np.median(loss):.1e}" for name, loss in zip(result.names, train, strict=True)]
    if result.bound is not None:
        bounds = np.median(np.asarray(result.bound, np.float64), axis=1)
        names = [f"{name}\nbound {bound:.0e}" for name, bound in zip(names, bounds, strict=True)]
    axis.set_xticks(kinds, names, fontsize=7)
    axis.set_ylabel("test − training loss")
    axis.grid(True, axis="y", color="#e6e8eb", lw=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure
