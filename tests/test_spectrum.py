"""Whole spectra against the dense matrix and against explicit Jacobians."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import LIKELIHOODS, MODELS, data, labels

import fisher_jax as fj
from fisher_jax import cli


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("model", ["function", "nnx"])
def test_every_eigenvalue(model, likelihood, dtype):
    net, apply, params = MODELS[model](dtype)
    for n in (7, 60):  # dual, primal
        x = data(dtype, n)
        F = fj.fisher(net, x, LIKELIHOODS[likelihood])
        outputs, J = oracle.jacobians(apply, params, x)
        matrix = oracle.exact(likelihood, outputs, J)
        truth = np.linalg.eigvalsh(matrix)[::-1]
        found = fj.spectrum(F)
        rank = found.values.size
        # The reference rounds too, and small networks at eps times the size of their outputs.
        slack = 20 * oracle.eps(dtype) * truth[0]
        assert np.abs(np.asarray(found.values) - truth[:rank]).max() <= found.floor + slack
        assert rank + found.unresolved + found.zeros == F.size
        assert np.abs(truth[rank:]).max(initial=0) <= 2 * found.floor + slack
        assert 0 <= found.unresolved <= F.size - np.linalg.matrix_rank(matrix, hermitian=True, tol=float(found.floor) / 2)
        assert found.trace == pytest.approx(np.trace(matrix), rel=100 * oracle.eps(dtype))
        assert found.frobenius == pytest.approx(np.linalg.norm(matrix), rel=100 * oracle.eps(dtype))
        assert oracle.relative(F.gram(), F.factor.dense() @ F.factor.dense().T) <= 100 * oracle.eps(dtype)


@pytest.mark.parametrize("kind", ["mc", "empirical", "centred", "weighted"])
def test_other_kinds(kind, dtype):
    net, _, _ = MODELS["nnx"](dtype)
    x, y = data(dtype), labels("categorical")
    like = fj.Categorical()
    F = {
        "mc": lambda: fj.fisher(net, x, like, kind=fj.MonteCarlo(3, jax.random.key(0))),
        "empirical": lambda: fj.fisher(net, x, like, kind=fj.Empirical(y)),
        "centred": lambda: fj.gradient_covariance(net, (x, y), like),
        "weighted": lambda: fj.fisher(net, x, like, weights=np.arange(7.0), chunk=3),
    }[kind]()
    truth = np.linalg.eigvalsh(np.asarray(F.dense(), np.float64))[::-1]
    found = fj.spectrum(F)
    assert np.abs(np.asarray(found.values) - truth[: found.values.size]).max() <= 3 * found.floor
    K = np.asarray(F.gram(), np.float64)
    A = np.asarray(F.factor.dense(), np.float64)
    assert oracle.relative(K, A @ A.T) <= 100 * oracle.eps(dtype)


def test_parts_are_the_diagonal_blocks_and_add_up(x64):
    model = fj.models.build("resmlp", inputs=6, outputs=3, depth=3, key=jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(9, 6))
    model = fj.Function(*_double(model))
    F = fj.fisher(model, x, fj.Categorical())
    parts = fj.spectrum(F, by="block")
    assert len(parts) >= 4
    assert sum(p.trace for n, p in parts.items() if n != "all") == pytest.approx(parts["all"].trace, rel=1e-12)
    for name, part in parts.items():
        where = None if name == "all" else name
        block = np.asarray(fj.fisher(model, x, fj.Categorical(), where=where).dense())
        truth = np.linalg.eigvalsh(block)[::-1]
        assert part.size == len(truth)
        np.testing.assert_allclose(part.values, truth[: part.values.size], atol=part.floor)
    assert set(fj.spectrum(F, by="layer")) > {"all"}


def _double(model):
    from flax import nnx

    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), nnx.to_pure_dict(params))
    return (lambda p, x: nnx.merge(graphdef, p, rest, copy=True)(x)), params


def test_vectors_are_eigenvectors(x64):
    net, _, _ = MODELS["function"]("float64")
    for n in (3, 60):
        F = fj.fisher(net, data("float64", n), fj.Categorical())
        found = fj.spectrum(F, vectors=4)
        V = np.asarray(found.vectors)
        np.testing.assert_allclose(V.T @ V, np.eye(4), atol=1e-10)
        np.testing.assert_allclose(np.asarray(F @ V), V * np.asarray(found.values)[:4], atol=1e-10)


def test_saved_and_loaded(tmp_path):
    net, _, _ = MODELS["function"]("float32")
    found = fj.spectrum(fj.fisher(net, data("float32"), fj.Gaussian()), vectors=2)
    fj.save(found, tmp_path / "full.npz")
    again = fj.load(tmp_path / "full.npz")
    np.testing.assert_array_equal(again.values, found.values)
    assert repr(again) == repr(found) and again.vectors.shape == found.vectors.shape
    assert fj.plot.full(again).axes


def test_refusals(monkeypatch):
    net, _, _ = MODELS["function"]("float32")
    F = fj.fisher(net, data("float32"), fj.Gaussian())
    with pytest.raises(fj.ArgumentError, match="by='rows' is not known"):
        fj.spectrum(F, by="rows")
    with pytest.raises(fj.ArgumentError, match="F is a DualOperator"):
        fj.spectrum(F.dual)
    with pytest.raises(fj.ArgumentError, match="vectors=22 exceeds 21"):
        fj.spectrum(F, vectors=22)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["fisher_jax.spectrum"], "MAX_SIZE", 20)
        with pytest.raises(fj.ArgumentError, match=r"21 x 21 is more than LAPACK addresses \(20\); take N <= 6 .*fj.Gram"):
            fj.spectrum(F)
        patch.setattr(sys.modules["fisher_jax.spectrum"], "MAX_SIZE_WITH_VECTORS", 19)
        with pytest.raises(fj.ArgumentError, match=r"addresses \(19\)"):
            fj.spectrum(F, vectors=1)
    monkeypatch.setattr("fisher_jax.linalg.free_memory", lambda: 1000)
    with pytest.raises(fj.ArgumentError, match=r"spectrum: 2 matrices of 21 x 21 numbers take .* take N <= 3 samples"):
        fj.spectrum(F)


SMALL = ["full", "--quiet", "--samples", "30", "--model", "mlp", "-o", "width=20"]


def test_command_line(capsys, tmp_path):
    assert cli.main([*SMALL, "--by", "layer", "--vectors", "2", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "eigenvalues above rounding" in text and "share of trace" in text
    assert {p.name for p in tmp_path.iterdir()} == {"full.npz", "full.json", "full.png"}
    record = json.loads((tmp_path / "full.json").read_text())
    found = fj.load(tmp_path / "full.npz")
    np.testing.assert_allclose(record["values"], found.values, rtol=1e-6)
    assert sum(part["trace"] for part in record["parts"].values()) == pytest.approx(record["trace"], rel=1e-5)
    # The vectors, through products with the matrix.
    x, _ = fj.data.load("digits", samples=30)
    model = fj.models.build("mlp", inputs=64, outputs=10, width=20, key=jax.random.split(jax.random.key(0), 4)[0])
    F = fj.fisher(model, x, fj.Categorical())
    assert found.vectors.shape == (F.size, 2)
    for value, v in zip(found.values, found.vectors.T, strict=False):
        np.testing.assert_allclose(F @ v, value * v, atol=1e-5 * found.lambda_max)


def test_command_line_streamed(capsys, tmp_path):
    stored, streamed = tmp_path / "stored", tmp_path / "streamed"
    assert cli.main([*SMALL, "--out", str(stored)]) == cli.main([*SMALL, "--streamed", "--out", str(streamed)]) == 0
    capsys.readouterr()
    one, other = (fj.load(path / "full.npz") for path in (stored, streamed))
    count = min(one.values.size, other.values.size)
    np.testing.assert_allclose(one.values[:count], other.values[:count], atol=one.floor)
    assert cli.main(["plan", "--streamed", *SMALL[2:], "--by", "block"]) == 0
    assert f"P = {one.size}" in capsys.readouterr().out


REFUSED = {
    "unknown model": (["--model", "nonsense"], "model='nonsense' is unknown; choose among mlp, resmlp"),
    "too many vectors": (["--vectors", "301"], "vectors=301 exceeds 300"),
    "negative vectors": (["--vectors", "-1"], "vectors=-1 is below 0"),
    "vectors of a streamed network": (
        ["--streamed", "--vectors", "1"],
        "vectors=1 of a streamed network; leave",
    ),
    "streamed and checkpoint": (["--streamed", "--checkpoint", "w.npz"], "checkpoint='w.npz' of a streamed network"),
    "streamed and where": (["--streamed", "--where", "layers/0"], "takes neither where, chunk nor mesh"),
    "unknown part": (["--by", "head"], "argument --by: invalid choice: 'head'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_command_line_refuses_in_one_line(name, capsys, tmp_path):
    arguments, message = REFUSED[name]
    try:
        code = cli.main([*SMALL, "--out", str(tmp_path), *arguments])
    except SystemExit as stop:  # argparse's own
        code = stop.code
    error = capsys.readouterr().err.strip()
    assert code == 2 and message in error and "\n" not in error, error
    assert not any(tmp_path.iterdir())


def test_plan_says_what_happens(capsys):
    model = fj.models.build("mlp", inputs=64, outputs=10, width=32, key=jax.random.key(0))
    x, _ = fj.data.load("digits", samples=40)
    F = fj.fisher(model, x, fj.Categorical())
    plan = fj.plan(F)
    assert plan.route == "dual" and plan.fits and plan.matrix_bytes == 4 * 400**2
    assert {kind for _, kind, _, _ in plan.kernels} == {"outer"}
    # One dense layer without positions: N²C² d_out operations for the lower half, and a few passes.
    outputs = [32, 32, 10]
    assert dict(plan.operations)["matrix"] == pytest.approx(400**2 * sum(outputs), rel=0.5)
    assert "fits" in repr(plan) and "cheaper than its rows" in repr(plan)
    few = fj.fisher(fj.models.build("mlp", inputs=2, outputs=1, depth=1, key=jax.random.key(0)), x[:, :2], fj.Gaussian())
    assert fj.plan(few).route == "primal"
    assert cli.main(["plan", "--samples", "20"]) == 0 and "dual route" in capsys.readouterr().out


def test_what_cannot_fit_is_said_before_it_starts(monkeypatch):
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    wide = {"inputs": 8, "outputs": 2, "width": 20_000, "depth": 3, "key": jax.random.key(0)}
    F = fj.fisher(fj.models.build("mlp", streamed=True, **wide), x, fj.Gaussian())
    monkeypatch.setattr("fisher_jax.linalg.free_memory", lambda: 2**30)
    # 1.6 GB of weights in one layer: neither stored nor streamed.
    with pytest.raises(fj.ArgumentError, match=r"model mlp: weights take 1\.49 GiB of 1 GiB free; give streamed=True"):
        fj.models.build("mlp", **wide)
    plan = fj.plan(F)
    assert not plan.fits and plan.peak_bytes > 2**32 and "DOES NOT FIT: one stage" in repr(plan)
    with pytest.raises(fj.ArgumentError, match=r"gram: stage layers/1 takes 5\.96 GiB of 1 GiB free"):
        fj.spectrum(F)


def test_vectors_are_planned_and_end_at_rounding():
    # Two samples twice: half of the dual matrix is zero.
    x = np.repeat(np.random.default_rng(0).normal(size=(2, 8)), 2, axis=0).astype(np.float32)
    model = fj.models.build("mlp", inputs=8, outputs=3, width=16, key=jax.random.key(0))
    F = fj.fisher(model, x, fj.Gaussian())
    found = fj.spectrum(F, vectors=12)
    assert found.values.size == 6 and found.vectors.shape == (F.size, 6)
    np.testing.assert_allclose(F @ found.vectors, found.vectors * found.values[None], atol=1e-5 * found.lambda_max)
    few, many = fj.plan(F), fj.plan(F, vectors=12)
    assert many.peak_bytes > few.peak_bytes and many.seconds > few.seconds
    with pytest.raises(fj.ArgumentError, match="plan: vectors=13 exceeds 12"):
        fj.plan(F, vectors=13)
    with pytest.raises(fj.ArgumentError, match="gram: tile=0 is below 1"):
        F.gram(tile=0)


def test_a_matrix_of_zeros_has_zeros_only():
    model = fj.models.build("mlp", inputs=4, outputs=2, width=5, key=jax.random.key(0))
    F = fj.fisher(model, np.zeros((3, 4), np.float32), fj.Gaussian())
    found = fj.spectrum(F)
    assert (found.zeros, found.unresolved, found.values.size, found.lambda_max) == (F.size, 0, 0, 0.0)
    with pytest.raises(fj.ArgumentError, match=r"plot\.full: the spectrum has no eigenvalue above rounding"):
        fj.plot.full(found)


def test_results_of_the_other_kind_are_named():
    net, _, _ = MODELS["function"]("float32")
    F = fj.fisher(net, data("float32"), fj.Gaussian())
    found, top = fj.spectrum(F), fj.eigsh(F, 2, key=jax.random.key(0))
    for attempt, message in (
        (lambda: fj.plot.full(top), "plot.full: parts is neither a Spectrum"),
        (lambda: fj.plot.full({"layer": found}), "nor a dict with one under 'all'"),
        (lambda: fj.plot.spectrum(found), "plot.spectrum: top is a Spectrum"),
        (lambda: fj.summarize(F, found), "summarize: top is a Spectrum; give fj.eigsh"),
    ):
        with pytest.raises(fj.ArgumentError, match=message):
            attempt()
