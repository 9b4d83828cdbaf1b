"""Pictures of spectral densities."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fisher_jax import _checks
from fisher_jax.density import Density
from fisher_jax.plot.style import ACCENT, INK, PREDICTED, QUIET, Picture
from fisher_jax.results import Law, Spectrum

# Bins of the exact histogram on each axis.
BINS = 60


def density(result: Density, exact: Spectrum | None = None, title: str | None = None, theory: Law | None = None) -> Figure:
    """How many eigenvalues lie where: on a linear axis and, where they are positive, on a logarithmic one.

    Args:
        result: from `fj.density`. exact: from `fj.spectrum`, drawn as a histogram behind. title: above the picture.
        theory: from `fj.theory.predict`, its values as a second histogram.

    Returns:
        matplotlib Figure. Outliers that were projected out are stems; zeros are a number in the title.
    """
    if not isinstance(result, Density):
        raise _checks.fail("plot.density", f"result is a {type(result).__name__}", "give fj.density(...)")
    axes = ["linear"] + (["log"] if result.psd else [])
    figure = Picture(figsize=(5.2 * len(axes), 4.6), dpi=160, layout="constrained")
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        _density(panel, result, axis, exact, theory)
    # Curves run anywhere: names go outside.
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    unresolved = f", {result.unresolved:.4g} below rounding" if result.unresolved >= 0.5 else ""
    facts = f"{result.zeros} exact zeros of {result.size} eigenvalues{unresolved}"
    lines = [f"{facts}; {result.method}"] if len(axes) > 1 else [facts, result.method]
    figure.suptitle("\n".join(t for t in (title, *lines) if t), fontsize=10)
    return figure


def _density(panel: Any, result: Density, axis: str, exact: Spectrum | None, theory: Law | None) -> None:
    # Per decade reads better than per unit of the natural logarithm.
    unit, what = (np.log(10), "per decade") if axis == "log" else (1.0, "per unit of λ")
    grid = result.grid(axis, 800)
    if axis == "linear" and result.psd:
        grid = np.linspace(0, grid[-1], grid.size)
    scale = result.bulk * unit
    rho, (low, high) = result(grid, axis=axis) * scale, (a * scale for a in result.band(grid, axis=axis))
    # Less than one eigenvalue on the whole axis is none.
    least = 1 / (np.log10(grid[-1] / grid[0]) if axis == "log" else grid[-1] - grid[0])
    if exact is not None:
        values = np.asarray(exact.values, np.float64)
        _histogram(panel, values, axis, unit, {"fill": True, "color": QUIET, "alpha": 0.3}, "exact spectrum")
    if theory is not None:
        values = theory.expanded(theory.dual_size)
        style = {"lw": PREDICTED["lw"], "color": PREDICTED["color"]}
        _histogram(panel, values[values > 0], axis, unit, style, "theory of wide networks")
    panel.fill_between(grid, np.maximum(low, least / 10), high, color=INK, alpha=0.25, lw=0, label="95 %, of the probes")
    panel.plot(grid, rho, "-", lw=1.6, color=INK, label="density of the bulk")
    atoms = np.asarray(result.atoms, np.float64)
    if atoms.size:
        # Of height no meaning: one eigenvalue each.
        stem = {"transform": panel.get_xaxis_transform(), "color": ACCENT}
        panel.vlines(atoms, 0, 0.1, lw=1.2, label=f"{atoms.size} outliers, exact", **stem)
        panel.plot(atoms, np.full(atoms.size, 0.1), "o", ms=4, **stem)
    panel.set(yscale="log", xlabel="eigenvalue λ", ylabel=f"eigenvalues {what}")
    panel.set_ylim(least, 3 * float(rho.max()))
    if axis == "log":
        panel.set_xscale("log")
        panel.set_xlim(grid[rho > least].min(), 1.5 * max(float(np.max(result.nodes)), atoms.max(initial=0.0)))
    panel.grid(True, which="major", color="#e6e8eb", lw=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _histogram(panel: Any, values: np.ndarray, axis: str, unit: float, style: dict[str, Any], label: str) -> None:
    counts, edges = np.histogram(np.log(values) if axis == "log" else values, BINS)
    heights = counts * unit / np.diff(edges)
    panel.stairs(heights, np.exp(edges) if axis == "log" else edges, baseline=1e-9, label=label, **style)
