"""A comparison as files: table (csv, json, Markdown), figures, and one HTML page that needs nothing else."""

import csv
import dataclasses
import io
import json
import math
import os
import re
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from fisher_jax import _checks, results
from fisher_jax.experiments.compare import GROWING, QUANTITIES, Comparison, Row
from fisher_jax.experiments.variants import variant
from fisher_jax.plot.style import INK, QUIET, Picture

STATEMENTS = {"mlp": "flat", "skip2": "exponential", "bn": "sub-linear"}
_MARKERS = "osD^vP*Xh<>dp"


def write(comparison: Comparison, directory: Any) -> list[str]:
    """comparison.csv, comparison.json, comparison.md, one .png for each figure and report.html.

    Args:
        comparison: from `compare`. directory: made if there is none.

    Returns:
        Paths of the files.
    """
    if not isinstance(comparison, Comparison):
        raise _checks.fail("write", f"comparison is a {type(comparison).__name__}", "give fj.experiments.compare(...)")
    directory = os.fspath(directory)
    if os.path.exists(directory) and not os.path.isdir(directory):
        raise _checks.fail("write", f"directory={directory!r} is a file", "give a directory")
    os.makedirs(directory, exist_ok=True)
    drawn = figures(comparison)
    texts = {
        "comparison.csv": to_csv(comparison),
        "comparison.json": to_json(comparison),
        "comparison.md": to_markdown(comparison),
        "report.html": to_html(comparison, drawn),
    }
    paths = []
    for name, text in texts.items():
        paths.append(os.path.join(directory, name))
        results.replace(paths[-1], text_writer(text))
    for name in {"statements", "depth", "ratio", "spectra"} - set(drawn):  # of an earlier comparison
        if os.path.exists(old := os.path.join(directory, f"{name}.png")):
            os.unlink(old)
    for name, (_, figure) in drawn.items():
        paths.append(os.path.join(directory, f"{name}.png"))
        results.replace(paths[-1], figure.savefig)
    return paths


def text_writer(text: str) -> Callable[[str], None]:
    def write(path: str) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    return write


def to_csv(comparison: Comparison) -> str:
    """One line for each variant, depth and quantity."""
    out = io.StringIO()
    fields = [field.name for field in dataclasses.fields(Row)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*fields, "verdict"])
    for row in comparison.rows():
        writer.writerow([*(getattr(row, field) for field in fields), row.verdict])
    return out.getvalue()


def to_json(comparison: Comparison) -> str:
    """Settings, numbers, spectra and growth laws; infinite and missing numbers are null."""
    record = {
        "settings": comparison.settings,
        "rows": [dataclasses.asdict(row) | {"verdict": row.verdict} for row in comparison.rows()],
        "cells": list(comparison.cells),
        "growth": [
            {"variant": name, "quantity": quantity, "measured": repr(found[0]), "predicted": repr(found[1])}
            for name in comparison.variants
            for quantity in GROWING
            if (found := comparison.growth(name, quantity)) is not None
        ],
    }
    return json.dumps(_plain(record), indent=1) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_markdown(comparison: Comparison) -> str:
    """The tables."""
    lines = ["# Fisher spectra: measured and predicted", "", _setting(comparison), "", comparison.summary() + ".", ""]
    lines += ["## Growth with depth", "", f"Fitted from depth {comparison.fitted_from} on.", ""]
    lines += ["| variant | quantity | measured | predicted | as L grows |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {label} | {found} | {law} | {limit} |" for name, label, found, law, limit in _laws(comparison)]
    for name in comparison.variants:
        lines += ["", f"## {name}: {variant(name).title}", ""]
        lines += ["| depth | quantity | measured | ± s.e. | predicted | rel. error | verdict | s.e. off |"]
        lines += ["|--:|---|--:|--:|--:|--:|---|--:|"]
        for row in comparison.rows():
            if row.variant == name:
                cells = _cells(row)
                lines.append(f"| {row.depth} | {QUANTITIES[row.quantity]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def to_html(comparison: Comparison, drawn: dict[str, tuple[str, Figure]] | None = None) -> str:
    """One page with all figures as inline SVG and all tables; no script, no other file."""
    import jinja2

    loader = jinja2.FileSystemLoader(os.path.dirname(__file__))
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    rows = comparison.rows()
    return environment.get_template("report.html.jinja").render(
        setting=_setting(comparison),
        summary=comparison.summary(),
        settings=comparison.settings,
        figures=[(name, caption, _svg(figure)) for name, (caption, figure) in (drawn or figures(comparison)).items()],
        laws=_laws(comparison),
        fitted_from=comparison.fitted_from,
        tables=[
            (
                name,
                variant(name).title,
                [(row.depth, QUANTITIES[row.quantity], _cells(row), row.verdict) for row in rows if row.variant == name],
            )
            for name in comparison.variants
        ],
        off=[(row.variant, row.depth, QUANTITIES[row.quantity], _cells(row)) for row in rows if row.verdict == "differs"],
        warnings=sorted({text for cell in comparison.cells for text in cell["warnings"]}),
    )


def _setting(comparison: Comparison) -> str:
    s = comparison.settings
    data = f"{s['samples']} samples ({s['data']}) of {s['inputs']} features, {s['outputs']} output{'s' * (s['outputs'] > 1)}"
    return f"Width {s['width']}, {data}, {s['likelihood']} likelihood, {s['seeds']} random networks for each number."


def _laws(comparison: Comparison) -> list[tuple[str, str, str, str, str]]:
    found = []
    for name in comparison.variants:
        for quantity in GROWING:
            if (laws := comparison.growth(name, quantity)) is not None:
                found.append((name, QUANTITIES[quantity], repr(laws[0]), repr(laws[1]), variant(name).law))
    return found


def _cells(row: Row) -> list[str]:
    number = lambda value, digits=".5g": format(value, digits) if math.isfinite(value) else ""  # noqa: E731
    relative = f"{100 * row.relative:+.3g} %" if math.isfinite(row.relative) else ""
    numbers = [number(row.measured), number(row.error, ".2g"), number(row.predicted), relative]
    return [*numbers, row.verdict, number(row.distance, "+.1f")]


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    # The same figure gives the same text: names of its parts from a fixed salt, no date.
    with matplotlib.rc_context({"svg.hashsalt": "fisher_jax"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    # As wide as the page, but not larger than it was drawn.
    wide = f'style="max-width: {100 * figure.get_figwidth():.0f}px" role="img"'
    return re.sub(r'<svg\b([^>]*?) width="[^"]*"', rf"<svg \1 {wide}", text[text.index("<svg") :], count=1)


# --- figures ----------------------------------------------------------------------------------------------------------


def figures(comparison: Comparison) -> dict[str, tuple[str, Figure]]:
    """(caption, figure) by name."""
    drawn = {}
    if all(name in comparison.variants for name in STATEMENTS) and len(comparison.settings["depths"]) > 2:
        drawn["statements"] = (
            "Mean eigenvalue with depth. The literature says: flat in the perceptron, exponential in the residual network, "
            "below linear with batch normalization in its branches. Points: measured; lines: predicted.",
            statements(comparison),
        )
    drawn["depth"] = ("Measured (points, ± standard error) and predicted (lines).", by_depth(comparison))
    drawn["ratio"] = ("Measured over predicted. Bars: ± 2 standard errors.", ratios(comparison))
    drawn["spectra"] = (
        f"All eigenvalues by rank at depth {max(comparison.settings['depths'])}: means over networks, and theory.",
        spectra(comparison),
    )
    return drawn


def statements(comparison: Comparison) -> Figure:
    """Mean eigenvalue against depth: perceptron, residual network, residual network with batch norm."""
    figure = Picture(figsize=(10, 4.4), dpi=160, layout="constrained")
    axes = figure.subplots(1, 2)
    scale = comparison.settings["width"]
    for i, (name, claim) in enumerate(STATEMENTS.items()):
        depths, measured, errors, predicted = comparison.curve(name, "mean_eigenvalue")
        laws = comparison.growth(name, "mean_eigenvalue")
        label = f"{variant(name).title}\nliterature: {claim}" + (f"\nfit: {laws[0]!r}" if laws else "")
        color = _color(i, len(STATEMENTS))
        for axis in axes[: 2 if claim != "exponential" else 1]:
            axis.plot(depths, scale * predicted, "-", lw=1.4, color=color)
            axis.errorbar(
                depths, scale * measured, scale * errors, fmt=_MARKERS[i], ms=5, capsize=3, color=color, label=label
            )
    axes[0].set(yscale="log", title="all of it", ylabel=f"mean eigenvalue m × {scale} (width)")
    flat = [comparison.curve(name, "mean_eigenvalue") for name in ("mlp", "bn")]
    deep = np.concatenate([scale * measured[depths >= 4] for depths, measured, _, _ in flat])
    axes[1].set(title="flat against sub-linear, magnified")
    if deep.size:
        axes[1].set_ylim(0.6 * deep.min(), 1.25 * deep.max())
    _finish(figure, axes, comparison.settings["depths"], 3, "points: measured, ± standard error; lines: theory")
    return figure


def by_depth(comparison: Comparison) -> Figure:
    """Six quantities against depth, all variants."""
    figure = Picture(figsize=(12, 8), dpi=160, layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    shown = ("trace", "mean_eigenvalue", "second_moment", "lambda_max", "bulk", "max_learning_rate")
    for axis, quantity in zip(axes, shown, strict=True):
        for i, name in enumerate(comparison.variants):
            depths, measured, errors, predicted = comparison.curve(name, quantity)
            color = _color(i, len(comparison.variants))
            style = "-" if depths.size > 1 else "_"
            axis.plot(depths, np.where(predicted > 0, predicted, np.nan), style, lw=1.2, ms=18, color=color)
            marker = _MARKERS[i % len(_MARKERS)]
            good = measured > 0
            # A bar that reaches below zero has no place on a logarithmic axis.
            lower = np.minimum(errors, 0.99 * measured)[good]
            axis.errorbar(
                depths[good], measured[good], [lower, errors[good]], fmt=marker, ms=4, capsize=2, color=color, label=name
            )
        axis.set(yscale="log", title=QUANTITIES[quantity])
    _finish(figure, axes, comparison.settings["depths"], 8, "points: measured, ± standard error; lines: theory")
    return figure


def ratios(comparison: Comparison) -> Figure:
    """Measured over predicted trace and largest eigenvalue."""
    figure = Picture(figsize=(12, 4.4), dpi=160, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = comparison.variants
    for axis, quantity in zip(axes, ("trace", "lambda_max"), strict=True):
        for i, name in enumerate(names):
            depths, measured, errors, predicted = comparison.curve(name, quantity)
            shift = 1.035 ** (i - (len(names) - 1) / 2)  # side by side
            axis.errorbar(
                depths * shift,
                measured / predicted,
                2 * errors / predicted,
                fmt=_MARKERS[i % len(_MARKERS)],
                ms=4,
                capsize=2,
                lw=1,
                color=_color(i, len(names)),
                label=name,
            )
        axis.axhline(1, color=QUIET, lw=1)
        axis.set(title=QUANTITIES[quantity], ylabel="measured / predicted" if quantity == "trace" else "")
    _finish(figure, axes, comparison.settings["depths"], 8, "bars: ± 2 standard errors")
    return figure


def spectra(comparison: Comparison) -> Figure:
    """Eigenvalues by rank at the largest depth, one panel for each variant."""
    names, depth = comparison.variants, max(comparison.settings["depths"])
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Picture(figsize=(3.1 * columns, 2.7 * rows + 0.6), dpi=160, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for i, (axis, name) in enumerate(zip(axes, names, strict=False)):
        (cell,) = (cell for cell in comparison.cells if (cell["variant"], cell["depth"]) == (name, depth))
        for values, style, color, label in (
            (cell["values"], "o", QUIET, "measured, mean"),
            (cell["law_values"], "-" if len(cell["values"]) > 1 else "_", INK, "predicted"),
        ):
            values = np.array(values)
            rank = np.arange(1, values.size + 1)
            # Of exact zeros, rounding is left.
            good = values > 1e-7 * values.max()
            axis.plot(rank[good], values[good], style, ms=4, lw=1.6, color=color, label=label if i == 0 else None)
        axis.set(xscale="log", yscale="log", title=name, xlabel="rank" if i >= len(names) - columns else "")
        axis.set_ylabel("eigenvalue" if i % columns == 0 else "")
        axis.grid(True, which="major", color="#e6e8eb", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _color(i: int, many: int) -> Any:
    return colormaps["tab10"](i) if many <= 10 else colormaps["turbo"](0.05 + 0.9 * i / (many - 1))


def _finish(figure: Figure, axes: Any, depths: list[int], columns: int, note: str) -> None:
    figure.suptitle(note, fontsize=10)
    for axis in axes:
        axis.set(xscale="log", xlabel="depth L")
        axis.set_xticks(depths)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(True, which="major", color="#e6e8eb", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
