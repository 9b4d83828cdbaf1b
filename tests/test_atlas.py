"""The atlas: spectra against an explicit Jacobian, before and after training; the table, files, resumption, the command."""

import csv
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx

import fisher_jax as fj
from fisher_jax import experiments
from fisher_jax.cli import main

KEY = jax.random.key(3)
SMALL = {"norms": ["none"], "inits": ["gaussian"], "masks": ["none"], "depths": [2], "samples": 5, "epochs": 2, "key": KEY}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two networks, one with running statistics."""
    directory = tmp_path_factory.mktemp("atlas")
    chosen = {"norms": ["none", "batch"], "inits": ["orthogonal"], "masks": ["dropout"], "directory": directory}
    return experiments.atlas(["mlp"], **SMALL | chosen), directory


def explicit(model, x):
    """Eigenvalues of F, descending, for squared error and softmax: singular values of √H J, of the explicit float64 J."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    with jax.enable_x64(True):
        up = lambda tree: jax.tree.map(lambda a: a.astype(float) if a.dtype == np.float32 else a, tree)  # noqa: E731
        flat, unravel = jax.flatten_util.ravel_pytree(up(params))
        network = lambda p: nnx.merge(graph, unravel(p), up(rest))(x.astype(float))  # noqa: E731
        J, f = np.asarray(jax.jacobian(network)(flat)), np.asarray(network(flat))
    p = np.exp(f) / np.exp(f).sum(axis=1, keepdims=True)
    softmax = []
    for q, rows in zip(p, J, strict=True):
        values, vectors = np.linalg.eigh(np.diag(q) - np.outer(q, q))
        softmax.append(np.sqrt(np.maximum(values, 0))[:, None] * (vectors.T @ rows))
    factors = (J.reshape(-1, flat.size), np.concatenate(softmax))
    return [np.linalg.svd(A, compute_uv=False) ** 2 / len(x) for A in factors]


def parts():
    return fj.data.split(*fj.data.load("digits"), 0.2, jax.random.fold_in(KEY, 0))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_spectra_are_those_of_the_network_before_and_after_training(small, norm):
    """The same network built, trained and measured here; in evaluation mode, on digits that are held out."""
    found = small[0].where(norm=norm)
    assert len(found) == 4
    training, test = parts()
    weights, order = jax.random.split(jax.random.fold_in(KEY, 1))
    options = {"depth": 2, "width": 64, "norm": norm, "weights": "orthogonal", "dropout": 0.2}
    model = fj.models.build("mlp", inputs=64, outputs=10, key=weights, **options)
    if norm == "batch":
        # What 44 batches leave of the statistics a new network has: 0.9^44.
        h = training[0] @ np.asarray(model.layers[0].kernel[...])
        model.norms[0].mean[...] = h.mean(axis=0)
        model.norms[0].var[...] = h.var(axis=0)
    model.eval()
    for state in ("before", "after"):
        if state == "after":
            table = fj.train.fit(
                model, training, fj.Categorical(), optimizer=fj.train.Optimizer("adam", 3e-3), epochs=2, key=order, test=test
            )
        for likelihood, values in zip(("gaussian", "categorical"), explicit(model, test[0][:5]), strict=True):
            rows = found.where(state=state, likelihood=likelihood)
            assert len(rows) == 1
            # Statistics of batches are not those of all samples: a few percent.
            close = {"rel": 1e-3, "abs": 1e-5 * values[0]} if norm == "none" else {"rel": 0.1, "abs": 0.01 * values[0]}
            assert rows.values[0] == pytest.approx(values, **close)
            assert rows["trace"][0] == pytest.approx(values.sum(), rel=close["rel"])
            assert rows["second_moment"][0] * rows["size"][0] == pytest.approx((values**2).sum(), rel=2 * close["rel"])
            outliers = 10 - (likelihood == "categorical")
            ratio = values[outliers - 1] / values[outliers]
            assert rows["outlier_ratio"][0] == pytest.approx(ratio, rel=close["rel"])
            # 50 rows, of which the softmax has 45.
            assert rows["size"][0] - rows["zeros"][0] == (50 if likelihood == "gaussian" else 45)
            logits = np.asarray(model(training[0]), float)
            right = np.mean(logits.argmax(axis=1) == training[1])
            assert rows["accuracy"][0] == pytest.approx(right, abs=1e-6 if norm == "none" else 0.03)
    before, after = (found.where(state=state, likelihood="gaussian") for state in ("before", "after"))
    assert after["test_accuracy"][0] > before["test_accuracy"][0] + 0.4 and after["loss"][0] < before["loss"][0] / 1.5
    assert after["test_accuracy"][0] == pytest.approx(float(table.test_accuracy[-1]), abs=1e-6 if norm == "none" else 0.03)


def test_running_statistics_are_settled_before_the_first_measurement(small):
    """As they come, a new network with batch norm is in evaluation mode the one without."""
    before = small[0].where(state="before", likelihood="gaussian")
    without, normed = before.where(norm="none")["trace"][0], before.where(norm="batch")["trace"][0]
    assert abs(normed / without - 1) > 0.05


def test_theory_stands_beside_what_it_covers(small):
    found = small[0]
    x = parts()[1][0][:5]
    law = fj.theory.predict("mlp", x=x, outputs=10, depth=2, width=64)
    row = found.where(norm="none", state="before", likelihood="gaussian")
    assert row["theory_trace"][0] == pytest.approx(law.trace) and row["theory_lambda_max"][0] == pytest.approx(
        law.lambda_max
    )
    assert row["trace"][0] == pytest.approx(law.trace, rel=0.3)
    assert (
        np.isnan(found.where(norm="batch")["theory_trace"]).all()
        and np.isnan(found.where(state="after")["theory_trace"]).all()
    )


def test_finished_networks_are_taken_from_their_files_and_the_table_from_its(small, tmp_path):
    found, directory = small
    stamps = {file: file.stat().st_mtime_ns for file in (directory / "cells").iterdir()}
    assert len(stamps) == 2
    chosen = {"norms": ["batch"], "inits": ["orthogonal"], "masks": ["dropout"], "directory": directory}
    again = experiments.atlas(["mlp"], **SMALL | chosen)
    assert {file: file.stat().st_mtime_ns for file in (directory / "cells").iterdir()} == stamps
    assert (again.values == found.where(norm="batch").values).all() and len(again) == 4
    paths = experiments.write_atlas(found, tmp_path / "new", "fisher-jax atlas")
    with np.load(paths[0], allow_pickle=False) as file:
        assert (file["architecture"] == "mlp").all() and file["values"].shape == (8, 50)
    loaded = experiments.load_atlas(paths[0])
    assert loaded.settings == found.settings and (loaded.values == found.values).all() and repr(loaded) == repr(found)
    for name, column in found.columns.items():
        np.testing.assert_array_equal(loaded[name], column)
    with open(paths[1], newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["trace"]) for line in lines] == pytest.approx(found["trace"].tolist(), rel=1e-6)
    more = SMALL | chosen | {"norms": ["none", "batch"], "depths": [2, 3]}
    assert (experiments.atlas(["mlp"], **more, finished=True).values == found.values).all()
    with pytest.raises(
        fj.ArgumentError, match=r"atlas: directory=None has no finished network of this grid; leave finished"
    ):
        experiments.atlas(["mlp"], **SMALL, finished=True)
    page = pathlib.Path(paths[-1]).read_text()
    names = [os.path.basename(path) for path in paths if path.endswith(".png")]
    assert names == ["training.png", "norms.png", "outliers.png", "theory.png", "spectra.png"] and all(
        f"({name})" in page for name in names
    )
    next(iter(stamps)).write_text("{}")
    with pytest.raises(fj.ArgumentError, match=r"atlas: .*json is damaged, or of another version; remove it"):
        experiments.atlas(["mlp"], **SMALL | chosen | {"norms": ["none", "batch"]})
    for path, message in ((tmp_path / "no.npz", "does not exist"), (paths[1], "is no atlas")):
        with pytest.raises(fj.ArgumentError, match=rf"load_atlas: path='.*' {message}; give the atlas.npz"):
            experiments.load_atlas(path)


def test_the_grid_is_what_the_models_take():
    """Every network of the default grid has its shapes; what is left out, models refuse, or replaces norms by itself."""
    entries = set(experiments.grid())
    assert len(entries) == 217
    reached = {(e.architecture, e.norm, e.init, e.masks) for e in entries}
    for name, family in experiments.ARCHITECTURES.items():
        for norm in ("none", "batch", "population"):
            for init in ("gaussian", "orthogonal", "fixup", "skipinit"):
                for masks in ("none", "dropout", "stochastic-depth"):
                    inside = (name, norm, init, masks) in reached
                    if init in ("fixup", "skipinit") and norm != "none":
                        assert not inside
                    elif not inside or (norm, masks) == ("none", "none"):
                        build = lambda e=type(next(iter(entries)))(name, norm, init, masks, family.depths[0]): e.build(KEY)  # noqa: E731
                        if inside:
                            nnx.eval_shape(build)
                            continue
                        with pytest.raises((fj.ArgumentError, TypeError)):
                            nnx.eval_shape(build)
    for name, depths in {"resnet": [8, 14, 20], "vgg": [11, 13], "densenet": [10, 16], "mlp": [2, 3, 30]}.items():
        asked = experiments.grid([name], norms=["none"], inits=["gaussian"], masks=["none"], depths=[*depths, 1, 9])
        assert {e.depth for e in asked} >= set(depths) and len(asked) == len(depths) + (name == "mlp")


@pytest.mark.parametrize("change, message", [
    ({"architectures": ["mlp", "gpt"]}, r"atlas: architectures has 'gpt', which is unknown; choose among mlp, skip1"),
    ({"norms": ["layer"]}, r"atlas: norms has 'layer', which is unknown; choose among none, batch, population"),
    ({"inits": ["he"]}, r"atlas: inits has 'he', which is unknown; choose among gaussian"),
    ({"masks": ["dropconnect"]}, r"atlas: masks has 'dropconnect', which is unknown; choose among none, dropout"),
    ({"depths": [0]}, r"atlas: depths=0 is below 1"),
    ({"norms": ["population"]}, r"atlas: architectures=\['mlp'\], norms=\['population'\], .* leave no network"),
    ({"samples": 400}, r"atlas: samples=400 exceeds 359"),
    ({"seeds": 0}, r"atlas: seeds=0 is below 1"),
    ({"epochs": 0}, r"atlas: epochs=0 is below 1"),
])  # fmt: skip
def test_bad_arguments(change, message):
    with pytest.raises(fj.ArgumentError, match=message):
        experiments.atlas(**{"architectures": ["mlp"]} | SMALL | change)


def test_a_long_table_prints_its_ends(small):
    found = small[0]
    rows = np.arange(60) % len(found)
    columns = {name: column[rows] for name, column in found.columns.items()}
    lines = repr(experiments.Atlas(found.settings, columns, found.values[rows])).splitlines()
    assert len(lines) == 42 and "20 more rows" in lines[21] and len(repr(found).splitlines()) == 9
    assert len(found.where(state=["before", "after"], likelihood="gaussian")) == 4
    with pytest.raises(fj.ArgumentError, match=r"Atlas.where: width is no column; choose among architecture, norm"):
        found.where(width=3)


def test_columns_by_hand():
    """Numbers of a spectrum that is known."""
    from fisher_jax.experiments.atlas import _numbers

    values = np.concatenate([np.full(9, 100.0), np.full(31, 1.0), np.zeros(10)])
    found = _numbers(values, 1000, "categorical")
    assert found["trace"] == 931 and found["lambda_max"] == 100 and found["outliers"] == 9 and found["outlier_ratio"] == 100
    assert found["zeros"] == 960 and found["effective_rank"] == 9.31 and found["max_learning_rate"] == 0.02
    assert found["mean_eigenvalue"] == 0.931 and found["second_moment"] == pytest.approx(90.031)
    assert _numbers(values, 1000, "gaussian")["outlier_ratio"] == 1


def test_the_command_writes_lists_and_refuses(tmp_path, capsys):
    arguments = ["atlas", "--quick", "--architectures", "mlp", "--depths", "2", "--samples", "5", "--epochs", "1", "--quiet"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert "1 of 1 networks in" in capsys.readouterr().out
    assert (
        "    fisher-jax atlas --quick --architectures mlp --depths 2 --samples 5 --epochs 1\n"
        in (tmp_path / "README.md").read_text()
    )
    assert len(experiments.load_atlas(tmp_path / "atlas.npz")) == 4
    assert main(["atlas", "--list", "--architectures", "resnet"]) == 0
    assert "resnet 14, none, fixup, stochastic-depth" in (out := capsys.readouterr().out) and "36 networks" in out
    assert main(["atlas", "--depths", "2,x", "--out", str(tmp_path)]) == 2
    assert "atlas: depths='2,x' is no list of integers; give --depths 2,4,8" in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_or_killed_atlas_goes_on(how, tmp_path):
    """After the first network; Ctrl-C has an exit code and a message. The same grid computes only what is missing."""
    # Where tests run in the background the interrupt is ignored, and children inherit that.
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    start += "from fisher_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "atlas", "--quick", "--architectures", "mlp", "--depths", "2,3,4,5,6"]
    command += ["--samples", "4", "--epochs", "1", "--quiet", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    cells = tmp_path / "cells"
    deadline = time.time() + 120
    while time.time() < deadline and (not cells.is_dir() or len(list(cells.glob("[!.]*.json"))) < 1):
        time.sleep(0.05)
    process.send_signal(how)
    while how == signal.SIGINT and process.poll() is None and time.time() < deadline:
        time.sleep(2)  # Python drops an interrupt that falls into a callback of JAX's: press again
        process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130 and "interrupted; the same command goes on with what is in" in errors
    before = {file: file.stat().st_mtime_ns for file in cells.glob("[!.]*.json")}
    assert 1 <= len(before) < 5
    chosen = SMALL | {"depths": [2, 3], "samples": 4, "epochs": 1, "key": jax.random.key(0)}
    found = experiments.atlas(["mlp"], **chosen, directory=tmp_path)
    whole = experiments.atlas(["mlp"], **chosen)
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in before.items())
    assert found["trace"] == pytest.approx(whole["trace"], rel=0.02)
