"""An atlas as files: the table (npz, csv), figures that answer one question each, and a page that shows them."""

import csv
import io
import os
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, ScalarFormatter

from fisher_jax import _checks, results
from fisher_jax.experiments.atlas import (
    ARCHITECTURES,
    COLUMNS,
    INITS,
    KEYS,
    LIKELIHOODS,
    MASKS,
    OUTPUTS,
    STATES,
    Atlas,
    save_atlas,
)
from fisher_jax.experiments.report import text_writer
from fisher_jax.plot.style import INK, QUIET, Picture

GRID = "#e6e8eb"
DPI = 120
NAMES = {"gaussian": "Gaussian (squared error)", "categorical": "softmax"}
LABELS = {
    "norm": {"none": "without norm", "batch": "batch norm", "population": "population norm"},
    "init": {"gaussian": "Gaussian weights", "orthogonal": "orthogonal weights", "fixup": "Fixup", "skipinit": "SkipInit"},
    "masks": {"none": "without masks", "dropout": "dropout 0.2", "stochastic-depth": "stochastic depth 0.8"},
}
NORM_STYLES = {"none": ("-", "o"), "batch": ("--", "s"), "population": (":", "^")}
RANKS = 20  # shown of the gaps
PLAIN = {"init": "gaussian", "masks": "none"}


def write_atlas(atlas: Atlas, directory: Any, command: str = "fj.experiments.atlas(...)") -> list[str]:
    """atlas.npz, atlas.csv, one .png for each figure and README.md.

    Args:
        atlas: from `atlas`. directory: made if there is none. command: what made it, for the page.

    Returns:
        Paths of the files.
    """
    directory = os.fspath(directory)
    if os.path.exists(directory) and not os.path.isdir(directory):
        raise _checks.fail("write_atlas", f"directory={directory!r} is a file", "give a directory")
    os.makedirs(directory, exist_ok=True)
    drawn = gallery(atlas)
    files = {
        "atlas.npz": lambda path: save_atlas(atlas, path),
        "atlas.csv": text_writer(_csv(atlas)),
        **{f"{name}.png": figure.savefig for name, (_, _, figure) in drawn.items()},
        "README.md": text_writer(_page(atlas, drawn, command)),
    }
    paths = {os.path.join(directory, name): write for name, write in files.items()}
    for path, write in paths.items():
        results.replace(path, write)
    return list(paths)


def gallery(atlas: Atlas) -> dict[str, tuple[str, str, Figure]]:
    """(title, what is seen, figure) by name; a question that the table has no networks for is left out."""
    questions = {
        "training": ("What training does", _training),
        "norms": ("What norms do", lambda atlas: _pairs(atlas, "norm", ("batch", "population"))),
        "inits": ("What the initialization does", lambda atlas: _pairs(atlas, "init", INITS[1:])),
        "masks": ("What dropout and stochastic depth do", lambda atlas: _pairs(atlas, "masks", tuple(MASKS)[1:])),
        "outliers": ("Squared error against softmax: how many outliers", _outliers),
        "depths": ("Growth with depth", _depths),
        "theory": ("Theory beside the untrained networks", _theory),
        "spectra": ("Whole spectra", _spectra),
    }
    found = {name: (title, draw(atlas)) for name, (title, draw) in questions.items()}
    return {name: (title, *seen) for name, (title, seen) in found.items() if seen is not None}


# --- figures ----------------------------------------------------------------------------------------------------------


def _training(atlas: Atlas) -> tuple[str, Figure]:
    """Trace and largest eigenvalue before and after, by architecture and norm."""
    table = _typical(atlas.where(**PLAIN)) if len(atlas.where(**PLAIN)) else _typical(atlas)
    names = list(dict.fromkeys(zip(table["architecture"], table["norm"], table["depth"], strict=True)))
    figure = Picture(figsize=(9, 1.9 + 0.42 * len(names)), dpi=DPI, layout="constrained")
    axes = figure.subplots(2, 2, sharey=True)
    for row, likelihood in enumerate(LIKELIHOODS):
        for axis, quantity in zip(axes[row], ("trace", "lambda_max"), strict=True):
            for i, (architecture, norm, depth) in enumerate(names):
                chosen = table.where(architecture=architecture, norm=norm, depth=depth, likelihood=likelihood)
                before, after = (_mean(chosen.where(state=state)[quantity]) for state in STATES)
                color = _color(architecture)
                axis.plot([before, after], [i, i], "-", lw=1.6, color=color)
                axis.plot(before, i, "o", ms=6, mfc="white", mec=color, mew=1.4)
                axis.plot(after, i, "o", ms=6, color=color)
            axis.set(xscale="log", xlabel={"trace": "trace", "lambda_max": "λ_max"}[quantity])
            axis.set_title(NAMES[likelihood], fontsize=10)
            axis.set_yticks(range(len(names)), [_name(*name) for name in names])
            axis.set_ylim(len(names) - 0.5, -0.5)
            _frame(axis)
    handles = [Line2D([], [], ls="", marker="o", mfc=face, mec=INK, label=f"{state} training")
               for state, face in zip(STATES, ("white", INK), strict=True)]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    seen, rising = [], []
    for quantity, name in (("lambda_max", "λ_max"), ("trace", "trace")):
        seen.append([name])
        for likelihood in LIKELIHOODS:
            before, after = (atlas.where(likelihood=likelihood, state=state)[quantity] for state in STATES)
            seen[-1].append(_factor(after / before))
            rising.append(_share(after > before))
    caption = (
        f"Training raises λ_max of squared error in {rising[0]} of all networks and that of softmax in {rising[1]}. Shown: "
        "those with Gaussian weights and without masks."
    )
    return f"{caption}\n\n{_markdown(['after / before training, all networks', *NAMES.values()], seen)}", figure


def _pairs(atlas: Atlas, axis: str, others: tuple[str, ...]) -> tuple[str, Figure] | None:
    """λ_max of networks that differ in one thing alone, against each other."""
    rest = tuple(key for key in KEYS if key != axis)
    base = "gaussian" if axis == "init" else "none"
    usual = {place: i for place, i in _places(atlas, axis, base, rest)}
    pairs = {}
    for other in others:
        found = [(usual[place], i) for place, i in _places(atlas, axis, other, rest) if place in usual]
        if found:
            pairs[other] = np.array(found)
    if not pairs:
        return None
    figure = Picture(figsize=(1.2 + 3.4 * len(pairs), 6.9), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, len(pairs), squeeze=False)
    names, seen, smaller = LABELS[axis], [], []
    for column, (other, index) in enumerate(pairs.items()):
        cells = [f"{names[other]}, {len(index) // 4} pairs"]
        seen.append(cells)
        for row, likelihood in enumerate(LIKELIHOODS):
            panel = panels[row, column]
            chosen = index[atlas["likelihood"][index[:, 0]] == likelihood]
            x, y = (atlas["lambda_max"][chosen[:, i]] for i in (0, 1))
            states, architectures = (atlas[name][chosen[:, 0]] for name in ("state", "architecture"))
            for state, filled in zip(STATES, (False, True), strict=True):
                for architecture in dict.fromkeys(architectures):
                    at = (states == state) & (architectures == architecture)
                    color = _color(architecture)
                    panel.plot(x[at], y[at], "o", ms=4.5, mec=color, mfc=color if filled else "none", mew=1.1, alpha=0.8)
                cells.append(_factor((y / x)[states == state]))
            if likelihood == "gaussian":
                smaller.append(f"{_share((y < x)[states == 'after'])} of the pairs with {names[other]}")
            low, high = np.nanmin([x, y]), np.nanmax([x, y])
            panel.plot([low, high], [low, high], "-", lw=1, color=QUIET, zorder=0)
            panel.set(xscale="log", yscale="log", xlabel=f"λ_max, {names[base]}", ylabel=f"λ_max, {names[other]}")
            panel.set_title(NAMES[likelihood], fontsize=10)
            _frame(panel)
    architectures = [name for name in ARCHITECTURES if any((atlas["architecture"][i] == name).any() for i in pairs.values())]
    handles = [Line2D([], [], ls="", marker="o", color=_color(name), label=name) for name in architectures]
    handles += [Line2D([], [], ls="", marker="o", mfc=face, mec=INK, label=state)
                for state, face in zip(STATES, ("none", INK), strict=True)]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=(3, 5, 9)[len(pairs) - 1], frameon=False, fontsize=9)
    head = [f"λ_max / λ_max {names[base]}"] + [f"{NAMES[p]}, {state}" for p in LIKELIHOODS for state in STATES]
    than = names[base] if base == "none" else f"with {names[base]}"
    caption = (
        f"Each point: two networks that differ in this alone. After training λ_max of squared error is smaller than {than} "
        f"in {', '.join(smaller)}."
    )
    if axis == "masks":
        caption += " An untrained network in evaluation mode has dropout only in the running statistics of its norms."
    return f"{caption}\n\n{_markdown(head, seen)}", figure


def _outliers(atlas: Atlas) -> tuple[str, Figure]:
    """λ_i/λ_{i+1} by rank: where the gaps are."""
    figure = Picture(figsize=(9, 6), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    seen, there = [], []
    for row, likelihood in enumerate(LIKELIHOODS):
        expected = OUTPUTS - (likelihood == "categorical")
        for panel, state in zip(panels[row], STATES, strict=True):
            table = atlas.where(likelihood=likelihood, state=state)
            ratios = _gaps(table)
            for architecture in dict.fromkeys(table["architecture"]):
                own = np.nanmedian(ratios[table["architecture"] == architecture], axis=0)
                panel.plot(np.arange(1, RANKS + 1), own, "o-", ms=3, lw=1.1, color=_color(architecture), label=architecture)
            panel.axvline(expected, color=QUIET, lw=1, ls="--", zorder=0)
            top = panel.get_xaxis_transform()
            name = "C" if likelihood == "gaussian" else "C − 1"
            panel.text(expected + 0.3, 0.95, f"{name} = {expected}", transform=top, fontsize=9, color=QUIET, va="top")
            panel.set(yscale="log", xlabel="rank i" if row else "", xticks=[1, 5, 10, 15, 20])
            panel.set_ylabel("median of λᵢ/λᵢ₊₁" if state == "before" else "")
            panel.set_title(f"{NAMES[likelihood]}, {state} training", fontsize=10)
            panel.yaxis.set_major_formatter(ScalarFormatter())
            panel.yaxis.set_minor_formatter(ScalarFormatter())
            _frame(panel)
            largest = np.argmax(ratios, axis=1) + 1
            ranks, counts = np.unique(largest, return_counts=True)
            shares = [_share(largest == rank) for rank in (1, OUTPUTS - 1, OUTPUTS)]
            often = f"{ranks[np.argmax(counts)]} ({_share(largest == ranks[np.argmax(counts)])})"
            there.append(_share(largest == expected))
            seen.append([f"{NAMES[likelihood]}, {state}", *shares, often])
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    head = ["largest gap, all networks", "below rank 1", "below rank C − 1", "below rank C", "most often below rank"]
    caption = (
        f"Of the first {RANKS} gaps the largest is below rank C in {there[0]} of the untrained networks under squared error "
        f"and below C − 1 in {there[2]} under softmax; after training in {there[1]} and {there[3]}. Wide untrained networks "
        "have theirs at the dashed lines."
    )
    return f"{caption}\n\n{_markdown(head, seen)}", figure


def _depths(atlas: Atlas) -> tuple[str, Figure] | None:
    """Mean and largest eigenvalue against depth, before and after."""
    table = atlas.where(likelihood="gaussian", **PLAIN)
    lines = [
        (architecture, norm)
        for architecture, norm in dict.fromkeys(zip(table["architecture"], table["norm"], strict=True))
        if len(set(table.where(architecture=architecture, norm=norm)["depth"])) > 1
    ]
    if not lines:
        return None
    figure = Picture(figsize=(9, 7.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    ticks = np.unique(np.concatenate([table.where(architecture=a, norm=n)["depth"] for a, n in lines]))
    growth = {line: [_name(*line)] for line in lines}
    factors: dict[str, list[float]] = {}
    for row, (quantity, label) in enumerate((("mean_eigenvalue", "mean eigenvalue, trace/P"), ("lambda_max", "λ_max"))):
        for panel, state in zip(panels[row], STATES, strict=True):
            for architecture, norm in lines:
                own = table.where(architecture=architecture, norm=norm, state=state)
                depths = np.unique(own["depth"])
                means = np.array([_mean(own.where(depth=depth)[quantity]) for depth in depths])
                style, marker = NORM_STYLES[norm]
                color = _color(architecture)
                label_of = _name(architecture, norm)
                panel.plot(depths, means, style, marker=marker, ms=4.5, lw=1.3, color=color, label=label_of)
                growth[architecture, norm].append(f"× {means[-1] / means[0]:.3g}")
                factors.setdefault(f"{quantity} {state}", []).append(means[-1] / means[0])
                column = {"mean_eigenvalue": "theory_trace", "lambda_max": "theory_lambda_max"}[quantity]
                law = np.array([_mean(own.where(depth=depth)[column]) for depth in depths])
                if np.isfinite(law).all():
                    sizes = np.array([own.where(depth=depth)["size"][0] for depth in depths])
                    law = law / sizes if quantity == "mean_eigenvalue" else law
                    panel.plot(depths, law, "-", lw=4, color=color, alpha=0.2, zorder=0)
            panel.set(xscale="log", yscale="log", xlabel="depth L" if row else "")
            panel.set_ylabel(label if state == "before" else "")
            panel.set_xticks(ticks)
            panel.xaxis.set_major_formatter(ScalarFormatter())
            panel.xaxis.set_minor_locator(NullLocator())
            panel.set_title(f"{state} training", fontsize=10)
            _frame(panel)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    head = ["deepest / shallowest", "trace/P, before", "trace/P, after", "λ_max, before", "λ_max, after"]
    flatter = np.sum(np.array(factors["lambda_max after"]) < np.array(factors["lambda_max before"]))
    caption = (
        f"In {flatter} of {len(lines)} lines λ_max grows less with depth after training than before. Gaussian outputs and "
        "weights, no masks; broad pale lines: theory, of untrained networks."
    )
    return f"{caption}\n\n{_markdown(head, list(growth.values()))}", figure


def _theory(atlas: Atlas) -> tuple[str, Figure] | None:
    """Measured against predicted, where there is a prediction."""
    table = atlas.where(state="before")
    known = np.isfinite(table["theory_trace"])
    if not known.any():
        return None
    figure = Picture(figsize=(9, 4.4), dpi=DPI, layout="constrained")
    seen = []
    for panel, quantity in zip(figure.subplots(1, 2), ("trace", "lambda_max"), strict=True):
        measured, predicted = table[quantity], table[f"theory_{quantity}"]
        for likelihood, marker in zip(LIKELIHOODS, "o^", strict=True):
            for architecture in dict.fromkeys(table["architecture"][known]):
                at = known & (table["likelihood"] == likelihood) & (table["architecture"] == architecture)
                panel.plot(predicted[at], measured[at], marker, ms=4.5, mfc="none", mew=1.1, color=_color(architecture))
        ends = [np.nanmin(predicted), np.nanmax(predicted)]
        name = {"trace": "trace", "lambda_max": "λ_max"}[quantity]
        panel.plot(ends, ends, "-", lw=1, color=QUIET, zorder=0)
        panel.set(xscale="log", yscale="log", xlabel=f"{name}, predicted", ylabel=f"{name}, measured")
        _frame(panel)
        of = [known & (table["likelihood"] == likelihood) for likelihood in LIKELIHOODS]
        seen.append([name, *(_factor((measured / predicted)[rows]) for rows in of)])
    handles = [Line2D([], [], ls="", marker=marker, mfc="none", mec=INK, label=NAMES[likelihood])
               for likelihood, marker in zip(LIKELIHOODS, "o^", strict=True)]  # fmt: skip
    names = [name for name in ARCHITECTURES if name in table["architecture"][known]]
    handles += [Line2D([], [], ls="", marker="s", color=_color(name), label=name) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    off = np.abs(table["trace"] / table["theory_trace"] - 1)[known & (table["likelihood"] == "gaussian")]
    caption = (
        f"Traces of squared error are {100 * np.median(off):.1f} % off the prediction in the median of {off.size} "
        "perceptrons. Theory holds for widths far above depth and samples; these are 64 wide at the start."
    )
    return f"{caption}\n\n{_markdown(['measured / predicted', *NAMES.values()], seen)}", figure


def _spectra(atlas: Atlas) -> tuple[str, Figure]:
    """All eigenvalues by rank, one panel for each architecture."""
    plain = atlas.where(norm="none", **PLAIN)
    table = _typical(plain if len(plain) else atlas)
    names = list(dict.fromkeys(table["architecture"]))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Picture(figsize=(1 + 2.8 * columns, 0.9 + 2.7 * rows), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    colors = dict(zip(LIKELIHOODS, ("#1f3a5f", "#c8553d"), strict=True))
    for i, (panel, name) in enumerate(zip(panels, names, strict=False)):
        own = table.where(architecture=name)
        # Of several networks of a kind, the first.
        own = own.where(norm=own["norm"][0], init=own["init"][0], masks=own["masks"][0], seed=own["seed"][0])
        for likelihood in LIKELIHOODS:
            for state, style in zip(STATES, ("--", "-"), strict=True):
                values = own.where(likelihood=likelihood, state=state).values[0]
                good = values > 1e-6 * values[0]
                label = f"{NAMES[likelihood]}, {state} training"
                rank = np.arange(1, values.size + 1)[good]
                panel.plot(rank, values[good], style, lw=1.4, color=colors[likelihood], label=label)
        panel.axvline(OUTPUTS, color=QUIET, lw=0.8, ls=":", zorder=0)
        panel.set(xscale="log", yscale="log", xlabel="rank" if i >= len(names) - columns else "")
        panel.set_ylabel("eigenvalue" if i % columns == 0 else "")
        panel.set_title(f"{name}, depth {own['depth'][0]}", fontsize=10)
        _frame(panel)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if columns < 3 else 4, frameon=False, fontsize=9)
    seen = []
    for likelihood in LIKELIHOODS:
        ranks = [_quartiles(atlas.where(likelihood=likelihood, state=state)["effective_rank"]) for state in STATES]
        seen.append([NAMES[likelihood], *ranks])
    head = ["trace/λ_max, all networks", *(f"{state} training" for state in STATES)]
    caption = "Without norm and masks, Gaussian weights. Dotted: rank C."
    return f"{caption}\n\n{_markdown(head, seen)}", figure


def _typical(atlas: Atlas) -> Atlas:
    """Of each architecture the networks of its middle depth."""
    rows = np.zeros(len(atlas), bool)
    for name in dict.fromkeys(atlas["architecture"]):
        own = atlas["architecture"] == name
        depths = np.unique(atlas["depth"][own])
        rows |= own & (atlas["depth"] == depths[(len(depths) - 1) // 2])
    return Atlas(atlas.settings, {name: column[rows] for name, column in atlas.columns.items()}, atlas.values[rows])


def _places(atlas: Atlas, axis: str, value: str, rest: tuple[str, ...]) -> list[tuple[tuple[Any, ...], int]]:
    """(all other keys, row) of the rows with this value on the axis."""
    rows = np.flatnonzero(atlas[axis] == value)
    return [(tuple(atlas[key][i] for key in rest), int(i)) for i in rows]


def _gaps(atlas: Atlas) -> np.ndarray:
    """λ_i/λ_{i+1} of the first ranks, `(R, RANKS)`."""
    values = np.maximum(atlas.values[:, : RANKS + 1].astype(float), 1e-7 * atlas.values[:, :1])
    return values[:, :-1] / values[:, 1:]


def _mean(values: np.ndarray) -> float:
    """Geometric, over seeds."""
    return float(np.exp(np.mean(np.log(values)))) if len(values) else np.nan


def _share(hits: np.ndarray) -> str:
    return f"{100 * np.mean(hits):.0f} %"


def _factor(ratios: np.ndarray) -> str:
    return f"× {_quartiles(ratios)}"


def _quartiles(values: np.ndarray) -> str:
    """The median, and quartiles."""
    low, median, high = np.nanquantile(values, (0.25, 0.5, 0.75))
    return f"{median:.3g} ({low:.3g} to {high:.3g})"


def _name(architecture: str, norm: str, depth: int | None = None) -> str:
    return architecture + (f" {depth}" if depth else "") + (f", {norm} norm" if norm != "none" else "")


def _color(architecture: str) -> Any:
    return colormaps["tab10"](list(ARCHITECTURES).index(architecture))


def _frame(axis: Any) -> None:
    axis.grid(True, which="major", color=GRID, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


# --- texts ------------------------------------------------------------------------------------------------------------


def _csv(atlas: Atlas) -> str:
    """One line for each row of the table; eigenvalues are in the npz."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(atlas.columns)
    for row in zip(*(column.tolist() for column in atlas.columns.values()), strict=True):
        # To the digits of float32.
        writer.writerow([f"{value:.7g}" if isinstance(value, float) else value for value in row])
    return out.getvalue()


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _page(atlas: Atlas, drawn: dict[str, tuple[str, str, Figure]], command: str) -> str:
    s = atlas.settings
    axes = {name: list(dict.fromkeys(atlas[name].tolist())) for name in KEYS[:4]}
    axes |= {name: np.unique(atlas[name]).tolist() for name in KEYS[4:6]}
    lines = [
        "# Atlas of Fisher spectra",
        "",
        f"{s['networks']} of the {s['grid']} networks of the grid, made by",
        "",
        f"    {command}",
        "",
    ]
    lines += [
        f"with fisher_jax {s['fisher_jax']} and jax {s['jax']}, in {s['dtype']}. Handwritten digits: {s['training']} to "
        f"train on, {s['samples']} of the {s['test']} held out for the matrices, C = {OUTPUTS} outputs. Training: "
        f"cross-entropy, {s['epochs']} epochs of batches of {s['batch']}, `{s['optimizer']}`. Both Fisher matrices are "
        "exact, of the network in evaluation mode; running statistics of untrained networks with batch norm come from two "
        "epochs without a step.",
        "",
        "The grid, less what an architecture does not take"
        + (" and what was not finished: " if s["networks"] < s["grid"] else ": ")
        + "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in axes.items())
        + ". Numbers such as 2 (1 to 3) are medians with "
        "quartiles over networks.",
    ]
    trained = atlas.where(state="after", likelihood="gaussian")
    medians = [
        f"{name} {100 * np.median(trained.where(architecture=name)['test_accuracy']):.0f}" for name in axes["architecture"]
    ]
    low, high = 100 * trained["test_accuracy"].min(), 100 * trained["test_accuracy"].max()
    lines += ["", f"Test accuracy after training: {low:.0f} to {high:.0f} %; medians: {', '.join(medians)} %.", ""]
    for name, (title, seen, _) in drawn.items():
        lines += [f"## {title}", "", f"![{title}]({name}.png)", "", seen, ""]
    lines += ["## Columns", "", "Of atlas.csv, and of the atlas.npz that the command writes beside it.", ""]
    lines += ["| column | |", "|---|---|"]
    lines += [f"| {', '.join(KEYS)} | which row it is |"]
    lines += [f"| {name} | {what} |" for name, what in COLUMNS.items()]
    lines += [f"| values (npz only) | all {atlas.values.shape[1]} eigenvalues of the dual matrix, descending |"]
    return "\n".join(lines) + "\n"
