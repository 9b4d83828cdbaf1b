"""The spectrum during training: the right numbers, one program, a file that survives, and what is refused."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import linen, nnx

import fisher_jax as fj

KEY = jax.random.key(0)
X = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)
Y = np.arange(7) % 3


def networks(count, seed=0, **options):
    """The same network with weights that move."""
    options = {"depth": 2, "width": 6} | options
    for i in range(count):
        model = fj.models.build("mlp", inputs=5, outputs=3, key=jax.random.key(seed), **options)
        other = fj.models.build("mlp", inputs=5, outputs=3, key=jax.random.key(seed + 1), **options)
        mixed = jax.tree.map(lambda a, b, t=0.1 * i: a + t * b, *(nnx.state(m, nnx.Param) for m in (model, other)))
        nnx.update(model, mixed)
        yield model


def eigenvalues(model, x=X):
    """Of the exact categorical Fisher matrix, from explicit Jacobians in float64."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    outputs, J = oracle.jacobians(lambda p, x: nnx.merge(graphdef, p, rest, copy=True)(x), nnx.to_pure_dict(params), x)
    return np.linalg.eigvalsh(oracle.exact("categorical", outputs, J))[::-1]


@pytest.mark.parametrize("method", [None, fj.Lanczos(tol=1e-4), fj.Dense(), fj.Gram(tol=1e-4)])
def test_each_measurement_is_the_spectrum_of_its_moment(method):
    tracker = fj.track(X, fj.Categorical(), every=3, k=4, method=method, key=KEY)
    moments = list(networks(7))
    for step, model in enumerate(moments):
        found = tracker(step, model, loss=0.5, rate=0.1)
        assert (found is None) == (step % 3 != 0)
    history = tracker.history
    assert history.steps.tolist() == [0, 3, 6]
    for row, step in enumerate((0, 3, 6)):
        truth = eigenvalues(moments[step])
        assert np.all(
            np.abs(np.asarray(history.values[row]) - truth[:4]) <= np.asarray(history.bounds[row]) + 1e-6 * truth[0]
        )
        assert float(history.bounds[row].max()) < 1e-2 * truth[0]
        # The values listed are the largest: the next one is not above what the row says.
        assert truth[4] <= float(history.complete_above[row]) * (1 + 1e-5)
        if method is None:
            assert float(history.trace[row]) == pytest.approx(truth.sum(), rel=1e-5)
    assert history.loss.tolist() == [0.5] * 3 and np.allclose(history.rate, 0.1)
    assert (np.asarray(history.products) > 0).all() == (method is not None)


def test_the_iteration_starts_from_the_last_eigenvectors():
    x = np.random.default_rng(2).normal(size=(60, 5)).astype(np.float32)
    model = next(networks(1, width=40))
    tracker = fj.track(x, fj.Categorical(), every=1, k=3, method=fj.Lanczos(tol=1e-3), key=KEY)
    for step in range(2):
        tracker(step, model)
    first, second = tracker.history.products
    assert second < first
    np.testing.assert_allclose(*tracker.history.values, rtol=1e-4)


def test_many_samples_are_iterated_on_and_few_are_not():
    x = np.random.default_rng(2).normal(size=(400, 5)).astype(np.float32)
    for n, products in ((300, False), (400, True)):
        tracker = fj.track(x[:n], fj.Categorical(), every=1, k=2, key=KEY)
        model = next(networks(1))
        tracker(0, model)
        assert (float(tracker.history.products[0]) > 0) == products
        assert float(tracker.history.values[0, 0]) == pytest.approx(eigenvalues(model, x[:n])[0], rel=1e-3)


def test_nothing_is_traced_twice():
    traces = []

    class Counted(nnx.Module):
        def __init__(self, key):
            self.w = nnx.Param(jax.random.normal(key, (5, 3)))

        def __call__(self, x):
            traces.append(isinstance(x, jax.core.Tracer))
            return jnp.tanh(x @ self.w[...])

    for method in (None, fj.Lanczos()):
        tracker = fj.track(X, fj.Categorical(), every=1, k=2, method=method, key=KEY)
        tracker(0, Counted(jax.random.key(0)))
        tracker(1, Counted(jax.random.key(1)))  # vectors to start from are there for the first time
        count = len(traces)
        for step in range(2, 5):
            tracker(step, Counted(jax.random.key(step)))
        assert len(traces) == count > 0


def test_modes_are_those_of_fisher():
    for options, chosen in (
        ({"norm": "batch"}, {"bn": "frozen"}),
        ({"norm": "batch"}, {"bn": "train"}),
        ({"dropout": 0.5}, {"masks": fj.Average(3, KEY)}),
        ({"dropout": 0.5}, {"masks": fj.Fixed(KEY), "where": "layers/0"}),
        ({}, {"kind": fj.MonteCarlo(2, KEY)}),
        ({}, {"kind": fj.Empirical(Y)}),
        ({}, {"weights": np.arange(7.0)}),
    ):
        tracker = fj.track(X, fj.Categorical(), every=1, k=2, key=KEY, **chosen)
        for step, model in enumerate(networks(2, **options)):
            tracker(step, model)
            exact = fj.spectrum(fj.fisher(model, X, fj.Categorical(), **chosen))
            np.testing.assert_allclose(tracker.history.values[step], exact.values[:2], rtol=1e-4)


def test_other_models_are_tracked_too():
    module = linen.Dense(3)
    variables = module.init(jax.random.key(0), X)

    def apply(params, x):
        return x @ params["w"]

    for model in (fj.from_linen(module, variables), fj.Function(apply, {"w": jnp.ones((5, 3))})):
        tracker = fj.track(X, fj.Categorical(), every=1, k=2, key=KEY)
        tracker(0, model)
        tracker(1, model)
        exact = fj.spectrum(fj.fisher(model, X, fj.Categorical())).values[:2]
        np.testing.assert_allclose(tracker.history.values, np.stack([exact] * 2), rtol=1e-5)


def test_over_a_mesh():
    mesh = jax.make_mesh((4,), ("data",))
    model = next(networks(1))
    tracker = fj.track(X, fj.Categorical(), every=1, k=3, key=KEY, mesh=mesh)
    for step in range(2):
        tracker(step, model)
    np.testing.assert_allclose(tracker.history.values[1], eigenvalues(model)[:3], rtol=1e-5)


def test_eigenvalues_that_are_zero():
    """Three samples: rank 6. What lies beyond is zero within its bound."""
    tracker = fj.track(X[:3], fj.Categorical(), every=1, k=9, key=KEY)
    tracker(0, next(networks(1)))
    values, bounds = tracker.history.values[0], tracker.history.bounds[0]
    assert (values[:6] > bounds[:6]).all() and (values[6:] == 0).all() and (bounds[6:] > 0).all()


# --- the file ---------------------------------------------------------------------------------------------------------


def record(path, steps, k=2, **options):
    tracker = fj.track(X, fj.Categorical(), every=1, k=k, key=KEY, path=path, **options)
    for step, model in zip(steps, networks(20), strict=False):
        tracker(step, model, loss=float(step))
    return tracker


def lines(path):
    header, *found = (json.loads(line) for line in path.read_text().splitlines())
    assert set(header) == {"track"}
    return found


def test_the_file_goes_on_and_goes_back(tmp_path):
    path = tmp_path / "track.jsonl"
    record(path, (0, 10, 20))
    found = lines(path)
    assert [line["step"] for line in found] == [0, 10, 20] and found[0]["rate"] is None and found[1]["loss"] == 10
    # A run that was cut off while it wrote: the rest of a line is dropped, the others stay.
    whole = path.read_text()
    path.write_text(whole[:-30])
    tracker = record(path, (20, 30))
    assert [line["step"] for line in lines(path)] == [0, 10, 20, 30] == tracker.history.steps.tolist()
    # Training went back to a checkpoint.
    record(path, (10,))
    assert [line["step"] for line in lines(path)] == [0, 10] and os.listdir(tmp_path) == ["track.jsonl"]
    assert np.isnan(float(record(path, (20,)).history.rate[0]))


def test_files_of_others_are_refused_and_stay(tmp_path):
    for text in ('{"loss": 1.0}\n', "step,loss\n0,1\n", "[1, 2]\n", '{"step": 0, "values": 3}\n', "\x00\x01\n"):
        path = tmp_path / "other"
        path.write_text(text)
        with pytest.raises(fj.ArgumentError, match=r"is no record of fj\.track"):
            fj.track(X, fj.Categorical(), every=1, key=KEY, path=path)
        assert path.read_text() == text
    path = tmp_path / "track.jsonl"
    record(path, (0,))
    before = path.read_text()
    for options, message in (
        ({"k": 3}, "k=2, not 3"),
        ({"every": 2}, "every=1, not 2"),
        ({"where": "layers/0"}, "where=None, not 'layers/0'"),
        ({"kind": fj.MonteCarlo(1, KEY)}, "kind=None, not MonteCarlo"),
        ({"kind": fj.Empirical(Y)}, "kind=None, not Empirical"),
        ({"weights": np.arange(7.0)}, "weights=None"),
        ({"masks": fj.Fixed(KEY)}, "masks=None, not Fixed"),
        ({"method": fj.Lanczos()}, "method=None, not Lanczos"),
    ):
        with pytest.raises(fj.ArgumentError, match=f"is a record with {message}"):
            fj.track(X, fj.Categorical(), **({"every": 1, "k": 2, "key": KEY, "path": path} | options))
    for x, likelihood, message in ((X + 1, fj.Categorical(), "samples="), (X, fj.Gaussian(), "likelihood=")):
        with pytest.raises(fj.ArgumentError, match=f"is a record with {message}"):
            fj.track(x, likelihood, every=1, k=2, key=KEY, path=path)
    # Chunks change no number.
    fj.track(X, fj.Categorical(), every=1, k=2, key=KEY, path=path, chunk=3)
    assert path.read_text() == before
    with pytest.raises(fj.ArgumentError, match="no such directory"):
        fj.track(X, fj.Categorical(), every=1, key=KEY, path=tmp_path / "none" / "track.jsonl")


def test_steps_that_start_again_are_refused(tmp_path):
    tracker = record(tmp_path / "track.jsonl", (0, 4))
    model = next(networks(1))
    with pytest.raises(fj.ArgumentError, match="step=4 after step 4; count steps over all epochs"):
        tracker(4, model)
    tracker.rewind(4)
    tracker(4, model)
    assert tracker.history.steps.tolist() == [0, 4] == [line["step"] for line in lines(tmp_path / "track.jsonl")]


def test_history_is_saved_loaded_and_drawn(tmp_path):
    history = record(tmp_path / "track.jsonl", (0, 5)).history
    fj.save(history, tmp_path / "track.npz")
    again = fj.load(tmp_path / "track.npz")
    assert repr(again) == repr(history) and "2 measurements" in repr(history)
    fj.plot.track(again).savefig(tmp_path / "track.png")
    with pytest.raises(fj.ArgumentError, match="no Track with measurements"):
        fj.plot.track(fj.track(X, fj.Categorical(), every=1, key=KEY).history)


def test_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    tracker = fj.track(X, fj.Categorical(), every=1, k=2, key=KEY, tensorboard=tmp_path / "board")
    tracker(0, next(networks(1)), loss=1.0)
    tracker.close()
    (file,) = os.listdir(tmp_path / "board")
    text = (tmp_path / "board" / file).read_bytes()
    for name in (b"fisher/eigenvalue_1", b"fisher/eigenvalue_2", b"fisher/trace", b"training/loss"):
        assert name in text
    assert b"training/rate" not in text
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(fj.ArgumentError, match="tensorboardX is not installed; pip install tensorboardX"):
        fj.track(X, fj.Categorical(), every=1, key=KEY, tensorboard=tmp_path)


def test_bad_input_is_refused_by_name():
    model = next(networks(1))
    for options, message in (
        ({"every": 0}, "every=0"),
        ({"k": 0}, "k=0"),
        ({"method": "lanczos"}, "method='lanczos'"),
        ({"colour": 1}, "colour=... is not an option"),
    ):
        with pytest.raises(fj.ArgumentError, match=message):
            fj.track(X, fj.Categorical(), **({"every": 1, "key": KEY} | options))
    with pytest.raises(fj.ArgumentError, match="likelihood='x'"):
        fj.track(X, "x", every=1, key=KEY)
    with pytest.raises(fj.ArgumentError, match="k=1000 exceeds"):
        fj.track(X, fj.Categorical(), every=1, k=1000, key=KEY)(0, model)
    with pytest.raises(fj.ArgumentError, match="model rejects"):
        fj.track(X[:, :4], fj.Categorical(), every=1, key=KEY)(0, model)
    with pytest.raises(fj.ArgumentError, match="streamed"):
        streamed = fj.models.build("mlp", inputs=5, outputs=3, depth=1, width=4, key=KEY, streamed=True)
        fj.track(X, fj.Categorical(), every=1, key=KEY)(0, streamed)
    # In training mode with masks, and with weights that training has ruined.
    with pytest.raises(fj.ArgumentError, match="active"):
        dropping = next(networks(1, dropout=0.5))
        dropping.train()
        fj.track(X, fj.Categorical(), every=1, key=KEY)(0, dropping)
    tracker = fj.track(X, fj.Categorical(), every=1, k=2, key=KEY)
    tracker(0, model)
    nnx.update(model, jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), nnx.state(model, nnx.Param)))
    with pytest.raises(fj.ArgumentError, match="NaN"):
        tracker(1, model)
    assert tracker.history.steps.tolist() == [0]
