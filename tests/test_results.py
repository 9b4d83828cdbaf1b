import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

import fisher_jax as fj


@pytest.fixture
def result():
    return fj.eigsh(zoo.matrix("geometric 0.7", "float32")[0], 3, key=jax.random.key(5))


def test_save_and_load_give_the_same_record(result, tmp_path):
    path = tmp_path / "top.npz"
    fj.save(result, path)
    again = fj.load(path)
    assert jax.tree.structure(again) == jax.tree.structure(result)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(result), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    assert repr(again) == repr(result)
    assert os.listdir(tmp_path) == ["top.npz"]


def test_a_result_says_how_it_was_made(result):
    info = dict(result.info)
    assert info["jax"] == jax.__version__ and info["dtype"] == "float32" and info["device"].startswith("cpu")
    assert info["key"] == "[0, 5]" and info["x64"] == "False" and info["fisher_jax"] == "0.1.0"
    text = repr(result)
    assert "3/3 converged" in text and f"{float(result.values[0]):.7g}" in text and "error bound" in text


def test_summary_numbers_and_round_trip(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    x[:, 2] = 0  # an input that is always zero: its weights have no gradient
    F = fj.fisher(fj.Function(lambda p, x: x @ p, jnp.ones((4, 3))), x, fj.Categorical())
    top = fj.eigsh(F, 4, key=jax.random.key(0))
    s = fj.summarize(F, top)
    values = np.linalg.eigvalsh(np.asarray(F.dense(), np.float64))[::-1]
    assert s.trace == pytest.approx(values.sum(), rel=1e-5) and s.mean_eigenvalue == pytest.approx(
        values.sum() / 12, rel=1e-5
    )
    assert s.effective_rank == pytest.approx(values.sum() / values[0], rel=1e-5)
    assert s.max_learning_rate == pytest.approx(2 / values[0], rel=1e-5)
    assert s.top_share == pytest.approx(values[:4].sum() / values.sum(), rel=1e-5)
    assert s.outliers == 2 and s.outlier_gap == pytest.approx(values[1] / values[2], rel=1e-4)
    # 12 parameters, 3 of them never touched; the shapes allow rank 12 = 6·(3 − 1), the softmax's symmetry makes it 6.
    assert s.zeros == 3 and np.sum(values < 1e-6) == 6
    fj.save(s, tmp_path / "s.npz")
    assert dataclasses.asdict(fj.load(tmp_path / "s.npz")) == dataclasses.asdict(s)
    assert json.loads(s.to_json())["trace"] == s.trace
    assert "exact zero eigenvalues, at least" in repr(s)
    broken = dataclasses.replace(top, converged=jnp.zeros(4, bool))
    with pytest.raises(fj.ArgumentError, match="no converged largest eigenvalue"):
        fj.summarize(F, broken)


def test_bad_files_are_refused_by_name(tmp_path, result):
    with pytest.raises(fj.ArgumentError, match="does not exist"):
        fj.load(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "pickled.npz", __header__=np.array([{"a": 1}], dtype=object))
    for name in ("text.npz", "other.npz", "pickled.npz"):
        with pytest.raises(fj.ArgumentError, match=f"{name}' is not a"):
            fj.load(tmp_path / name)
    fj.save(result, tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz") as file:
        arrays = dict(file)
    arrays["__header__"] = np.array(str(arrays["__header__"]).replace('"format": 1', '"format": 99'))
    np.savez(tmp_path / "future.npz", **arrays)
    with pytest.raises(fj.ArgumentError, match="has format 99"):
        fj.load(tmp_path / "future.npz")
    with pytest.raises(fj.ArgumentError, match="result is a dict"):
        fj.save({}, tmp_path / "no.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path, result, monkeypatch):
    path = tmp_path / "top.npz"
    fj.save(result, path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        args[0].write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        fj.save(result, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["top.npz"]


def test_plot_has_every_value_and_marks_outliers(result):
    figure = fj.plot.spectrum(result)
    points = np.concatenate([line.get_ydata() for line in figure.axes[0].lines if line.get_marker() == "o"])
    np.testing.assert_allclose(np.sort(points)[::-1], result.values, rtol=1e-6)
    assert figure.axes[0].get_yscale() == "log"
    model = fj.models.build("mlp", inputs=4, outputs=3, width=16, key=jax.random.key(0))
    F = fj.fisher(model, np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32), fj.Categorical())
    top = fj.eigsh(F, 6, key=jax.random.key(0))
    figure = fj.plot.spectrum(top, fj.summarize(F, top), "a title")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any("first 2: outliers" in label for label in labels)
    assert len(figure.axes) == 2 and "a title" in figure.get_suptitle()


def test_pictures_show_themselves_in_a_notebook():
    """Without pyplot nothing is registered for figures: they bring their PNG along."""
    top = fj.eigsh(fj.MatrixOperator(np.diag([3.0, 2.0, 1.0]).astype(np.float32)), 2, key=jax.random.key(0))
    png = fj.plot.spectrum(top)._repr_png_()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and len(png) > 10_000
