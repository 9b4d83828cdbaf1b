"""Pictures of spectra and of their course over training and depth."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fisher_jax import _checks
from fisher_jax.plot.style import ACCENT, INK, PREDICTED, QUIET, Picture
from fisher_jax.results import EigenResult, Law, Spectrum, Summary, Track, Training


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
    figure = Picture(figsize=(9, 4.5) if summary else (5.6, 4.5), dpi=160, layout="constrained")
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
    figure = Picture(figsize=(10, 5), dpi=160, layout="constrained")
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
    figure = Picture(figsize=(8, 6.4), dpi=160, layout="constrained")
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
    figure = Picture(figsize=(6.4, 4.6), dpi=160, layout="constrained")
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
