"""Ensembles, growth laws, and measured beside predicted: numbers, verdicts, files, resumption, the page in a browser."""

import csv
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import fisher_jax as fj
from fisher_jax import experiments
from fisher_jax.cli import main

KEY = jax.random.key(0)


# --- ensembles --------------------------------------------------------------------------------------------------------


def explicit(name, x, outputs, key, **options):
    """Eigenvalues of J Jᵀ/N from the explicit Jacobian in float64, of weights that were drawn in float32."""
    from flax import nnx

    model = fj.models.build(name, inputs=x.shape[1], outputs=outputs, key=key, **options)
    graph, params = nnx.split(model, nnx.Param)
    with jax.enable_x64(True):
        flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(lambda a: a.astype(float), params))
        J = jax.jacobian(lambda p: nnx.merge(graph, unravel(p))(x.astype(float)).ravel())(flat)
        return np.linalg.eigvalsh(np.asarray(J @ J.T) / len(x))[::-1]


def test_an_ensemble_has_the_spectrum_of_each_of_its_networks():
    x = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    found = experiments.ensemble("mlp", x, fj.Gaussian(), seeds=5, key=KEY, outputs=2, depth=3, width=9)
    assert found.shape == (5, 10) and found.dtype == np.float64
    for i, key in enumerate(jax.random.split(KEY, 5)):
        values = explicit("mlp", x, 2, jax.random.split(key)[0], depth=3, width=9)
        assert found[i] == pytest.approx(values, rel=1e-4, abs=1e-5 * values[0])
    assert len({round(v, 6) for v in found[:, 0]}) == 5


def test_an_ensemble_of_many_batches_is_that_of_one(monkeypatch):
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    arguments = {"seeds": 7, "key": KEY, "depth": 2, "width": 16}
    whole = experiments.ensemble("mlp", x, fj.Gaussian(), **arguments)
    seen = []
    monkeypatch.setattr(sys.modules["fisher_jax.experiments.ensemble"], "BATCH_WEIGHTS", 3 * (8 * 16 + 16))
    parts = experiments.ensemble("mlp", x, fj.Gaussian(), progress=lambda a, b: seen.append((a, b)), **arguments)
    assert seen == [(3, 7), (6, 7), (7, 7)] and parts == pytest.approx(whole, rel=1e-4)


def test_masks_of_an_ensemble():
    """One subnetwork: E over masks; average over draws: the trace of the same expectation; the mean network: none."""
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    arguments = {"seeds": 64, "key": KEY, "depth": 3, "width": 64, "dropout": 0.5}
    law = {masks: fj.theory.predict("mlp", x=x, masks=masks, depth=3, width=64, dropout=0.5) for masks in ("one", "mean")}
    for masks, draws, rows in (("one", 1, 4), ("average", 3, 12), ("mean", 1, 4)):
        found = experiments.ensemble("mlp", x, fj.Gaussian(), masks=masks, draws=draws, **arguments)
        assert found.shape == (64, rows)
        traces, expected = found.sum(axis=1), law["mean" if masks == "mean" else "one"].trace
        error = traces.std(ddof=1) / 8
        assert abs(traces.mean() - expected) < 4 * error < 0.3 * expected


# --- growth laws ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, curve, rate", [
    ("flat", lambda L: 3e-9 + 0 * L, None),
    ("flat in the limit", lambda L: 7 * (1 + 0.9 / L), None),
    ("linear", lambda L: 5e12 * (2 + 3 * L), 1.5e13),
    ("L log L", lambda L: 4 + L * np.log(L), 1.0),
    ("power", lambda L: 2 * L**1.467, 1.467),
    ("power", lambda L: 1e-5 / L, -1.0),
    ("exponential", lambda L: 1e-20 * 1.5**L, 1.5),
    ("exponential", lambda L: 0.5**L, 0.5),
])  # fmt: skip
def test_growth_names_the_law_it_was_made_from(kind, curve, rate):
    depths = np.array([4, 8, 16, 32, 64])
    noise = 1 + 0.01 * np.random.default_rng(0).normal(size=5)
    for values in (curve(depths), curve(depths) * noise):
        found = experiments.growth(depths, values, 0.01 * values)
        assert found.kind == kind and kind.split()[0] in repr(found)
        assert found(depths) == pytest.approx(curve(depths), rel=0.05)
        if rate:
            assert found.rate == pytest.approx(rate, rel=0.03 if kind != "linear" else 0.06)


def test_growth_prefers_a_law_only_if_the_values_allow_it():
    depths = np.array([4, 8, 16, 32])
    noisy = np.array([1.2, 1.1, 1.15, 1.0])
    assert experiments.growth(depths, noisy, 0.1 * noisy).kind == "flat"
    assert experiments.growth(depths, noisy, 0.1 * noisy, prefer="flat in the limit").kind == "flat in the limit"
    assert experiments.growth(depths, 2.0**depths, prefer="linear").kind == "exponential"
    with pytest.raises(fj.ArgumentError, match=r"growth: values=\[1.0, -1.0, 2.0\] are not all positive"):
        experiments.growth([1, 2, 3], [1, -1, 2])
    with pytest.raises(fj.ArgumentError, match=r"growth: depths=\[1.0, 2.0, 2.0\]; give at least three different"):
        experiments.growth([1, 2, 2], [1, 1, 2])


# --- the comparison ---------------------------------------------------------------------------------------------------

SMALL = {"width": 24, "samples": 6, "seeds": 8, "key": KEY}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Some variants, on one small width."""
    directory = tmp_path_factory.mktemp("compare")
    return experiments.compare(["mlp", "skip2", "fixup", "mean-subtracted"], (1, 3), directory=directory, **SMALL), directory


@pytest.mark.slow
def test_every_variant_is_measured_and_predicted():
    found = experiments.compare(list(experiments.VARIANTS), (1, 3), **SMALL)
    assert found.variants == list(experiments.VARIANTS) and len(found.cells) == 2 * len(experiments.VARIANTS)
    for row in found.rows():
        assert np.isfinite(row.measured), row
        # Of one subnetwork theory gives the expectation of eigenvalues, not of their inverses.
        without = row.variant == "stochastic-depth-one" and row.quantity == "max_learning_rate"
        without |= row.variant == "mean-subtracted" and row.quantity == "bulk" and row.depth == 1
        assert np.isfinite(row.predicted) or without, row
    # Traces have no bias: with so few seeds some are off, but not many.
    traces = [row for row in found.rows() if row.quantity == "trace"]
    assert sum(abs(row.distance) > 4 for row in traces) <= 3


@pytest.mark.filterwarnings("ignore:theory of")
def test_rows_are_what_they_say(small):
    found, _ = small
    cell = next(c for c in found.cells if (c["variant"], c["depth"]) == ("skip2", 3))
    rows = {row.quantity: row for row in found.rows() if (row.variant, row.depth) == ("skip2", 3)}
    traces = np.array(cell["measured"]["trace"])
    assert cell["size"] == 6 * 24**2 + 24 and traces.shape == (8,)
    row = rows["trace"]
    assert row.measured == pytest.approx(traces.mean()) and row.error == pytest.approx(traces.std(ddof=1) / 8**0.5)
    x = np.asarray(jax.random.normal(jax.random.fold_in(KEY, 0), (6, 24)))
    law = fj.theory.predict("resmlp", x=x, depth=3)
    assert row.predicted == pytest.approx(law.trace) and rows["lambda_max"].predicted == pytest.approx(law.lambda_max)
    assert rows["bulk"].predicted == pytest.approx(law.bulk)
    assert rows["second_moment"].predicted == pytest.approx(law.second_moment)
    assert row.relative == pytest.approx(traces.mean() / law.trace - 1)
    assert row.distance == pytest.approx((traces.mean() - law.trace) / row.error)
    assert rows["mean_eigenvalue"].measured * cell["size"] == pytest.approx(row.measured)


def test_a_wrong_prediction_differs(small):
    """Verdicts go red: the same cell with a prediction that is off by a factor 2."""
    found, _ = small
    cell = next(c for c in found.cells if (c["variant"], c["depth"]) == ("fixup", 3))
    wrong = cell | {"predicted": {q: [2 * v for v in values] for q, values in cell["predicted"].items()}}
    verdicts = {row.quantity: row.verdict for row in experiments.Comparison(found.settings, (wrong,)).rows()}
    assert verdicts["trace"] == "differs" and verdicts["lambda_max"] == "differs" and verdicts["bulk"] == "differs"
    fine = {row.quantity: row.verdict for row in experiments.Comparison(found.settings, (cell,)).rows()}
    assert fine["trace"] == "agrees" and "differs" not in fine.values()


def test_few_networks_and_deep_ones_prove_nothing(small):
    """The limit is Student's t, whose tails are those of three standard errors; far too deep networks are no evidence."""
    found, _ = small
    cell = next(c for c in found.cells if (c["variant"], c["depth"]) == ("fixup", 3))
    for seeds, limit in ((2, 235.8), (4, 9.22), (8, 4.53)):  # of a table of the t distribution at 0.99865
        few = cell | {"measured": {q: values[:seeds] for q, values in cell["measured"].items()}}
        row = experiments.Comparison(found.settings, (few,)).rows()[0]
        assert row.limit == pytest.approx(limit, rel=2e-3)
    deep = experiments.Comparison(found.settings, (cell | {"deviation": 1.5},))
    assert deep.counts() == {"out of range": 7} and "too deep for their width" in deep.summary()


def test_finished_cells_are_taken_from_their_files(small):
    found, directory = small
    files = sorted((directory / "cells").iterdir())
    stamps = [file.stat().st_mtime_ns for file in files]
    again = experiments.compare(["fixup", "mlp"], (3,), directory=directory, **SMALL)
    assert [file.stat().st_mtime_ns for file in sorted((directory / "cells").iterdir())] == stamps
    assert again.cells[0] == next(c for c in found.cells if (c["variant"], c["depth"]) == ("fixup", 3))
    other = experiments.compare(["fixup"], (3,), directory=directory, **SMALL | {"samples": 5})
    assert len(list((directory / "cells").iterdir())) == len(files) + 1
    assert other.cells[0]["measured"]["trace"] != again.cells[0]["measured"]["trace"]
    files[0].write_text("{}")
    name, depth = re.match(r"(.*)-(\d+)-\w+\.json", files[0].name).groups()
    with pytest.raises(fj.ArgumentError, match=r"compare: .*json is damaged, or of another version; remove it"):
        experiments.compare([name], (int(depth),), directory=directory, **SMALL)


@pytest.mark.parametrize("change, message", [
    ({"variants": ["mlp", "vgg"]}, r"compare: variants has 'vgg', which is unknown; choose among mlp, skip1"),
    ({"depths": [0]}, r"compare: depths=0 is below 1"),
    ({"depths": []}, r"compare: variants=\['mlp'\], depths=\[\]; give at least one of each"),
    ({"seeds": 0}, r"compare: seeds=0 is below 1"),
    ({"likelihood": "poisson"}, r"compare: likelihood='poisson' is not covered"),
    ({"likelihood": "categorical"}, r"compare: outputs=1 is below 2"),
    ({"variants": "mlp"}, r"compare: variants='mlp' is no list; give variants=\['mlp'\]"),
    ({"depths": 3}, r"compare: depths=3 is no list; give depths=\[3\]"),
    ({"x": np.zeros((4, 8))}, r"compare: x of shape \(4, 8\); give samples in rows \(N, d\), finite and not all zero"),
    ({"x": np.full((4, 8), np.nan)}, r"compare: x of shape \(4, 8\); give samples in rows"),
    ({"x": np.ones((4, 8, 1))}, r"compare: x of shape \(4, 8, 1\); give samples in rows"),
])  # fmt: skip
def test_bad_arguments(change, message):
    with pytest.raises(fj.ArgumentError, match=message):
        experiments.compare(**{"variants": ["mlp"], "depths": [2], "key": KEY} | change)


def test_outliers_are_counted_above_rounding():
    stand_out = sys.modules["fisher_jax.experiments.compare"].stand_out
    assert stand_out(np.array([9.0, 8.0, 2.0, 1.9, 1.8, 1.7])) == 2
    assert stand_out(np.array([9.0, 8.0, 7.0, 6.0])) == 0 and stand_out(np.array([5.0])) == 0
    # Half of the eigenvalues of softmax with two classes are zero, in rounding.
    assert stand_out(np.array([9.0, 2.0, 1.9, 1.8, 1e-7, 3e-8, -1e-8, 0.0])) == 1


def test_several_outputs_and_softmax():
    for likelihood, outliers in (("gaussian", 3), ("categorical", 2)):
        settings = {"width": 96, "samples": 8, "seeds": 8, "outputs": 3, "likelihood": likelihood, "key": KEY}
        found = experiments.compare(["mlp"], (3,), **settings)
        rows = {row.quantity: row for row in found.rows()}
        values = np.array(found.cells[0]["values"])
        assert rows["top"].measured == pytest.approx(values[:outliers].mean())
        assert rows["top"].verdict != "differs" and rows["trace"].verdict == "agrees", found


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_hold_the_rows(small, tmp_path):
    found, _ = small
    paths = experiments.write(found, tmp_path / "new")
    assert [os.path.basename(path) for path in paths] == [
        "comparison.csv", "comparison.json", "comparison.md", "report.html", "depth.png", "ratio.png", "spectra.png",
    ]  # fmt: skip
    rows = found.rows()
    with open(paths[0], newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert (line["variant"], int(line["depth"]), line["quantity"]) == (row.variant, row.depth, row.quantity)
        assert float(line["measured"]) == row.measured and line["verdict"] == row.verdict
    record = json.loads(pathlib.Path(paths[1]).read_text(), parse_constant=pytest.fail)
    assert [r["verdict"] for r in record["rows"]] == [row.verdict for row in rows]
    text = pathlib.Path(paths[2]).read_text()
    assert text.count("\n| 1 |") + text.count("\n| 3 |") == len(rows) and "## fixup: Fixup" in text


CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_report_opens_in_a_browser_and_shows_every_figure(tmp_path):
    found = experiments.compare(["mlp", "skip2", "bn"], (1, 2, 4), **SMALL)
    experiments.write(found, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"'](?!#)", page) and "<script" not in page, "needs no other file"
    # What the browser laid out, written into the page itself.
    probe = """<script>window.onload = () => { document.body.dataset.seen = JSON.stringify(
      [...document.querySelectorAll('figure')].map(f => { const box = f.querySelector('svg').getBoundingClientRect();
      return [f.id, box.width, box.height, f.querySelectorAll('path').length, f.innerText]; })) }</script>"""
    (tmp_path / "probe.html").write_text(page.replace("</body>", probe + "</body>"))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    command = [CHROMIUM, *flags, "--virtual-time-budget=5000", "--dump-dom", (tmp_path / "probe.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = json.loads(re.search(r'data-seen="([^"]*)"', dom).group(1).replace("&quot;", '"'))
    assert [figure[0] for figure in seen] == ["statements", "depth", "ratio", "spectra"]
    for _, width, height, shapes, caption in seen:
        assert width > 600 and height > 150 and shapes > 20 and len(caption) > 20


def test_the_command_prints_writes_and_lists(tmp_path, capsys):
    arguments = [
        "compare",
        "--variants",
        "fixup,mlp",
        "--depths",
        "1,2,4",
        "--width",
        "16",
        "--samples",
        "4",
        "--seeds",
        "3",
    ]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for text in (
        "fixup (Fixup), depth 4, P = 2064",
        "largest stable rate 2/λ_max",
        "± ",
        "s.e.)",
        "growth from depth 1",
        "written: ",
    ):
        assert text in out
    assert main(["compare", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in experiments.VARIANTS)
    assert main(["compare", "--depths", "1,b", "--out", str(tmp_path)]) == 2
    assert "compare: depths='1,b' is no list of integers; give --depths 1,2,4" in capsys.readouterr().err
    assert main(["compare", "--variants", "vgg", "--out", str(tmp_path)]) == 2
    assert "choose among mlp, skip1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_comparison_goes_on(tmp_path):
    """kill -9 in the middle; the same command computes only what is missing, with the same numbers."""
    command = [sys.executable, "-m", "fisher_jax", "compare", "--variants", "fixup,skipinit,scaled", "--depths", "1,2,4"]
    command += ["--width", "16", "--samples", "4", "--seeds", "3", "--quiet", "--out"]
    process = subprocess.Popen([*command, str(tmp_path / "cut")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cells = tmp_path / "cut" / "cells"
    deadline = time.time() + 120
    while time.time() < deadline and (not cells.is_dir() or len(list(cells.glob("[!.]*.json"))) < 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {file: file.stat().st_mtime_ns for file in cells.glob("[!.]*.json")}
    assert 2 <= len(before) < 9
    arguments = {"variants": ["fixup", "skipinit", "scaled"], "depths": (1, 2, 4), "width": 16, "samples": 4, "seeds": 3}
    found = experiments.compare(**arguments, key=KEY, directory=tmp_path / "cut")
    whole = experiments.compare(**arguments, key=KEY)
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in before.items())
    for cut, uncut in zip(found.cells, whole.cells, strict=True):
        for quantity in ("trace", "lambda_max"):
            assert cut["measured"][quantity] == pytest.approx(uncut["measured"][quantity], rel=1e-4)
