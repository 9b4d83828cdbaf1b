"""Pictures of what experiments found."""

import textwrap

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from fisher_jax import _checks
from fisher_jax.findings import ClassErrors, Generalization, LearningRates, PhaseDiagram, Pretraining, Separability
from fisher_jax.plot.style import ACCENT, INK, QUIET, Picture


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
    figure = Picture(figsize=(11, 1 + 3.2 * rows), dpi=160, layout="constrained")
    panels = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False)
    weights = np.sqrt(np.asarray(result.weight_variances, np.float64))
    biases = np.sqrt(np.asarray(result.bias_variances, np.float64))
    names = {"trace": "trace", "lambda_max": "λ_max", "outlier_ratio": "λ_max / mean of the bulk"}
    for column, (name, label) in enumerate(names.items()):
        tables = [np.asarray(getattr(result, name), np.float64)]
        if networks:
            tables.append(np.asarray(getattr(result, f"measured_{name}"), np.float64).mean(axis=-1))
        # One scale for theory and networks.
        least, most = min(float(t.min()) for t in tables), max(float(t.max()) for t in tables)
        norm = LogNorm(least, most)
        for row, table in enumerate(tables):
            axis = panels[row, column]
            image = axis.pcolormesh(weights, biases, table.T, norm=norm, cmap="viridis", shading="nearest", rasterized=True)
            left, right = axis.get_xlim()
            axis.plot(np.sqrt(np.asarray(result.edge)), biases, "-", color="white", lw=3)
            axis.plot(np.sqrt(np.asarray(result.edge)), biases, "--", color=ACCENT, lw=1.8, label="edge of chaos, χ = 1")
            axis.set(xlim=(max(0, left), right), ylim=(0, axis.get_ylim()[1]))
            if column == 0:
                axis.set_ylabel("σ_b" + (", infinite width" if row == 0 else f", mean of {networks} networks"))
        panels[0, column].set_title(label, fontsize=10)
        panels[-1, column].set_xlabel("σ_w")
        bar = figure.colorbar(image, ax=panels[:, column].tolist(), location="bottom", pad=0.02, aspect=30)
        # Over few decades the numbers between the powers of ten are needed, but long.
        wide = most > 30 * least
        if wide:
            bar.ax.xaxis.set_minor_formatter(NullFormatter())
        bar.ax.tick_params(axis="x", which="both", labelsize=8, rotation=0 if wide else 45)
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
    figure = Picture(figsize=(1 + 3.4 * len(results), 4.2), dpi=160, layout="constrained")
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
    figure = Picture(figsize=(10, 7), dpi=160, layout="constrained")
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
    figure = Picture(figsize=(1 + 2.6 * len(named), 3.8), dpi=160, layout="constrained")
    panels = figure.subplots(1, len(named), sharey=True, squeeze=False)[0]
    for axis, (name, result) in zip(panels, named.items(), strict=True):
        for field, color, label in (("bound", QUIET, "bound 1/(1 + r²)"), ("error", ACCENT, "best threshold")):
            values = np.asarray(getattr(result, field), np.float64)
            error = values.std(axis=0, ddof=1) / values.shape[0] ** 0.5
            depth = np.arange(values.shape[1])
            axis.plot(depth, np.asarray(getattr(result, f"predicted_{field}")), "-", lw=1.4, color=color)
            axis.errorbar(depth, values.mean(axis=0), error, fmt="o", ms=3, lw=1, color=color, label=label)
        axis.set(xlabel="layers or blocks")
        axis.set_ylim(-0.03 * axis.get_ylim()[1], None)
        axis.set_title(name, fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(True, which="major", color="#e6e8eb", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("error of the worse class")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    note = "lines: infinite width; points: networks, mean and standard error"
    figure.suptitle("\n".join(t for t in (title, *textwrap.wrap(note, 26 * len(named))) if t), fontsize=10)
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
    figure = Picture(figsize=(7.5, 4.2), dpi=160, layout="constrained")
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
    figure = Picture(figsize=(max(5.5, 1.3 * len(gap)), 4.2), dpi=160, layout="constrained")
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
