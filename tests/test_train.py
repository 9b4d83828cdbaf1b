"""Training against the same descent in NumPy, masks and statistics, cut-off runs, and what it reaches on digits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fisher_jax as fj
from fisher_jax.train import Optimizer, fit

KEY = jax.random.key(3)


def problem(samples=12, inputs=4, outputs=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(samples, inputs)).astype(np.float32), rng.integers(0, outputs, samples)


def linear(inputs=4, outputs=3):
    return fj.models.build("mlp", inputs=inputs, outputs=outputs, depth=1, width=4, activation="linear", key=KEY)


def weights(model):
    return [np.asarray(a) for a in jax.tree.leaves(nnx.state(model, nnx.Param))]


def descent(W, x, y, steps, rate, momentum=0.0, decay=0.0):
    """Softmax regression by gradient descent with heavy ball and weight decay, float64."""
    W, v = W.astype(np.float64), 0.0
    losses = []
    for t in range(steps):
        z = x @ W
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        losses.append(-np.log(p[np.arange(len(y)), y]).mean())
        v = momentum * v + x.T @ (p - np.eye(W.shape[1])[y]) / len(y) + decay * W
        W = W - rate(t) * v
    return W, losses


@pytest.mark.parametrize("name, momentum, decay", [("sgd", 0.0, 0.0), ("sgd", 0.0, 0.1), ("momentum", 0.8, 0.01)])
def test_descent_is_that_of_numpy(name, momentum, decay):
    x, y = problem()
    model = linear()
    (W,) = weights(model)
    optimizer = Optimizer(name, 0.3, "linear", warmup=0.2, momentum=momentum, decay=decay)
    history = fit(model, (x, y), fj.Categorical(), optimizer=optimizer, epochs=10, batch=12, key=KEY)

    def rate(t):  # two steps of warm-up, then eight down to zero
        return 0.3 * t / 2 if t < 2 else 0.3 * (1 - (t - 2) / 8)

    expected, losses = descent(W, x, y, 10, rate, momentum, decay)
    np.testing.assert_allclose(weights(model)[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-5)
    np.testing.assert_allclose(history.rate, [rate(t) for t in range(10)], rtol=1e-6, atol=1e-8)
    assert history.steps.tolist() == list(range(1, 11)) and np.isnan(np.asarray(history.test_loss)).all()


def test_adam_with_decoupled_decay_is_that_of_numpy():
    x, y = problem()
    model = linear()
    (W,) = weights(model)
    fit(
        model,
        (x, y),
        fj.Categorical(),
        optimizer=Optimizer("adam", 0.05, "constant", 0.0, decay=0.1),
        epochs=6,
        batch=12,
        key=KEY,
    )
    W, m, v = W.astype(np.float64), 0.0, 0.0
    for t in range(1, 7):
        z = x @ W
        g = x.T @ (np.exp(z) / np.exp(z).sum(1, keepdims=True) - np.eye(3)[y]) / 12
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        W = W - 0.05 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.1 * W)
    np.testing.assert_allclose(weights(model)[0], W, rtol=1e-4, atol=1e-5)


def test_schedules():
    steps = 40
    for schedule, expected in {
        "constant": lambda s: 1.0,
        "linear": lambda s: 1 - s,
        "cosine": lambda s: (1 + np.cos(np.pi * s)) / 2,
    }.items():
        rate = Optimizer(rate=2.0, schedule=schedule, warmup=0.25).learning_rate(steps)
        for t in (0, 5, 9, 10, 25, 39):
            wanted = t / 10 if t < 10 else expected((t - 10) / 30)
            assert float(rate(t)) == pytest.approx(2 * wanted, abs=1e-6)
    rate = Optimizer(rate=2.0, schedule="step", warmup=0.1).learning_rate(steps)
    assert [round(float(rate(t)), 6) for t in (2, 4, 19, 21, 29, 31)] == [1.0, 2.0, 2.0, 0.2, 0.2, 0.02]
    # Without --rate each has its own.
    assert float(Optimizer("adam", warmup=0).learning_rate(5)(0)) == pytest.approx(1e-3)


def test_batches_go_once_through_the_data_in_a_new_order_each_epoch():
    """Linear outputs, Gaussian: at a vanishing rate the loss of a step tells which samples were in its batch."""
    x = 2.0 ** np.arange(8, dtype=np.float32)[:, None]
    y = np.zeros((8, 1), np.float32)
    seen = []

    class Spy(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones((1, 1)))

        def __call__(self, x):
            jax.debug.callback(lambda a: seen.append(np.asarray(a)[:, 0].tolist()), x, ordered=True)
            return x @ self.w[...]

    fit(Spy(), (x, y), fj.Gaussian(), optimizer=optax.sgd(0.0), epochs=2, batch=3, key=KEY)
    first, second = (np.concatenate(batches).tolist() for batches in (seen[:2], seen[2:]))
    for epoch in (first, second):
        assert len(epoch) == len(set(epoch)) == 6 and set(epoch) <= set(x[:, 0].tolist())
    assert first != second


def test_running_statistics_follow_the_batches_and_are_given_back():
    x, y = problem(32)
    model = fj.models.build("mlp", inputs=4, outputs=3, depth=2, width=5, norm="batch", key=KEY)
    W = weights(model)[0]
    fit(model, (x, y), fj.Categorical(), optimizer=optax.sgd(0.0), epochs=3, batch=32, key=KEY)
    statistics = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    found = {a.shape: np.asarray(a) for a in jax.tree.leaves(statistics) if np.abs(np.asarray(a)).max() < 5}
    mean = jax.tree.leaves({k: v for k, v in statistics["norms"][0].items() if k == "mean"})[0]
    np.testing.assert_allclose(mean, (1 - 0.9**3) * (x @ W).mean(0), rtol=1e-4, atol=1e-6)
    assert found
    # In evaluation mode, ready to be measured.
    assert fj.fisher(model, x, fj.Categorical()).size == sum(w.size for w in weights(model))


def test_statistics_of_stacked_blocks_are_those_of_the_blocks():
    """A loop over blocks writes to their statistics, also when data is checked."""
    x, y = problem(32)
    found = []
    for scanned in (False, True):
        model = fj.models.build("resmlp", inputs=4, outputs=3, depth=2, norm="batch", scanned=scanned, key=KEY)
        found.append(fit(model, (x, y), fj.Categorical(), epochs=2, batch=8, key=KEY))
    np.testing.assert_allclose(found[0].loss, found[1].loss, rtol=1e-5)


@pytest.mark.parametrize("scanned", [False, True])
def test_masks_are_active_and_new_in_every_step(scanned):
    x, y = (np.tile(a[:1], (8,) + (1,) * (a.ndim - 1)) for a in problem())  # the order of equal samples changes nothing
    options = {"depth": 3, "dropout": 0.5, "survival": 0.5, "scanned": scanned}
    model = fj.models.build("resmlp", inputs=4, outputs=3, key=KEY, **options)
    history = fit(model, (x, y), fj.Categorical(), optimizer=optax.sgd(0.0), epochs=4, batch=8, key=KEY, test=(x, y))
    assert len({round(float(loss), 5) for loss in history.loss}) == 4
    assert len({round(float(loss), 5) for loss in history.test_loss}) == 1


class Stop(Exception):
    pass


class StopAt:
    """In place of a tracker: ends the run."""

    last_step = None

    def __init__(self, step):
        self.step = step

    def due(self, step):
        return step == self.step

    def rewind(self, step):
        pass

    def measure(self, step, model, **facts):
        raise Stop


OPTIONS = {"depth": 2, "norm": "batch", "dropout": 0.2, "survival": 0.8}


def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(tmp_path):
    x, y = problem(20)

    def run(directory, track=None):
        model = fj.models.build("resmlp", inputs=4, outputs=3, key=KEY, **OPTIONS)
        settings = {"epochs": 4, "batch": 6, "key": KEY, "test": (x, y), "directory": directory, "track": track}
        return model, fit(model, (x, y), fj.Categorical(), **settings)

    whole, history = run(None)
    with pytest.raises(Stop):
        run(tmp_path / "run", StopAt(7))  # in the third epoch
    again, resumed = run(tmp_path / "run")
    for a, b in zip(jax.tree.leaves(nnx.state(whole)), jax.tree.leaves(nnx.state(again)), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            assert np.array_equal(a, b)
    for name in ("loss", "accuracy", "test_loss", "rate", "steps"):
        assert np.array_equal(getattr(history, name), getattr(resumed, name)), name
    # A run that has ended gives its outcome again; one of other settings is refused and leaves all as it was.
    third, same = run(tmp_path / "run")
    assert np.array_equal(same.loss, history.loss) and np.array_equal(weights(third)[0], weights(whole)[0])
    model = fj.models.build("resmlp", inputs=4, outputs=3, key=KEY, **OPTIONS)
    before = weights(model)
    good = {"epochs": 4, "batch": 6, "key": KEY, "directory": tmp_path / "run"}
    for changed, message in (
        ({"epochs": 5}, "epochs 4, not 5"),
        ({"optimizer": Optimizer(rate=0.2)}, "optimizer Optimizer"),
        ({"key": jax.random.key(9)}, "key "),
    ):
        with pytest.raises(fj.ArgumentError, match=message):
            fit(model, (x, y), fj.Categorical(), **(good | changed))
    with pytest.raises(fj.ArgumentError, match="data "):
        fit(model, (x + 1, y), fj.Categorical(), **good)
    assert all(np.array_equal(a, b) for a, b in zip(before, weights(model), strict=True))
    for changed, seed, message in (
        ({"activation": "tanh"}, KEY, "network or optimizer "),
        ({"dropout": 0.3}, KEY, "network or optimizer "),
        ({}, jax.random.key(8), "initial weights "),
    ):
        other = fj.models.build("resmlp", inputs=4, outputs=3, key=seed, **(OPTIONS | changed))
        with pytest.raises(fj.ArgumentError, match=message):
            fit(other, (x, y), fj.Categorical(), **good)


def test_an_optimizer_of_ones_own_is_known_by_what_it_computes(tmp_path):
    x, y = problem()

    def run(optimizer):
        return fit(linear(), (x, y), fj.Categorical(), optimizer=optimizer, epochs=2, batch=4, key=KEY, directory=tmp_path)

    first = run(optax.sgd(0.1))
    assert run(optax.sgd(0.1)).loss.tolist() == first.loss.tolist()
    for other in (optax.sgd(0.5), optax.adam(0.1)):
        with pytest.raises(fj.ArgumentError, match="network or optimizer "):
            run(other)


def test_a_run_that_diverges_ends_with_finite_weights():
    x, y = problem()
    model = linear()
    with pytest.warns(UserWarning, match=r"the loss of epoch \d+ is no number"):
        history = fit(
            model, (1e3 * x, (1e30 * y[:, None] * np.ones(3)).astype(np.float32)), fj.Gaussian(),
            optimizer=Optimizer("sgd", 1e9, "constant", 0.0), epochs=50, batch=12, key=KEY,
        )  # fmt: skip
    assert not np.isfinite(history.loss[-1]) and history.loss.size < 50
    assert np.isfinite(weights(model)[0]).all()


def test_a_measurement_that_fails_ends_the_run_as_divergence_does():
    """The update of the first step is too large for float32: the loss before it is finite."""
    x, y = problem()
    model = linear()
    tracker = fj.track(x[:4], fj.Categorical(), every=1, k=2, key=KEY)
    with pytest.warns(UserWarning, match=r"the loss of epoch \d+ is no number"):
        fit(
            model, (x, y), fj.Categorical(), epochs=5, batch=4, key=KEY, track=tracker,
            optimizer=Optimizer("sgd", 3e38, "constant", 0.0, decay=1.0),
        )  # fmt: skip
    assert np.isfinite(weights(model)[0]).all() and np.isfinite(np.asarray(tracker.history.values)).all()


def test_each_measurement_stands_beside_the_loss_of_the_step_before():
    x, y = problem()
    losses = []

    class Spy:
        last_step = None

        def due(self, step):
            return True

        def rewind(self, step):
            pass

        def measure(self, step, model, loss, rate):
            losses.append(loss)

    history = fit(linear(), (x, y), fj.Categorical(), epochs=3, batch=4, key=KEY, track=Spy())
    assert losses[0] is None and len(losses) == 10
    np.testing.assert_allclose(np.reshape(losses[1:], (3, 3)).mean(axis=1), history.loss, rtol=1e-6)


def test_tokens_count_as_samples_do():
    """Loss per token: a sequence whose tokens are all alike trains as one of them."""
    model = fj.models.build("gpt", inputs=4, outputs=5, depth=1, width=8, heads=2, key=KEY)
    x = np.tile(np.arange(4), (6, 1))
    y = np.random.default_rng(0).integers(0, 5, (6, 4))
    expected = -np.take_along_axis(np.asarray(jax.nn.log_softmax(model(jnp.asarray(x)))), y[..., None], -1).mean()
    history = fit(model, (x, y), fj.Categorical(), optimizer=optax.sgd(0.0), epochs=1, batch=6, key=KEY, test=(x, y))
    assert float(history.loss[0]) == pytest.approx(expected, rel=1e-5) == float(history.test_loss[0])


def test_bad_input_is_refused_by_name():
    x, y = problem()
    model = linear()
    good = {"key": KEY, "batch": 4, "epochs": 1}
    nan = x.copy()
    nan[2, 1] = np.nan
    for arguments, options, message in (
        ((object(), (x, y), fj.Categorical()), {}, "model=object is not an nnx.Module"),
        ((model, (x, y), "softmax"), {}, "likelihood='softmax'"),
        ((model, x, fj.Categorical()), {}, "data is no pair"),
        ((model, (x, None), fj.Categorical()), {}, "data is no pair"),
        ((model, (x, y[:5]), fj.Categorical()), {}, "as many labels"),
        ((model, (nan, y), fj.Categorical()), {}, "data x has 1 NaN"),
        ((model, (x[:, :3], y), fj.Categorical()), {}, "model rejects data"),
        ((model, (x, y + 1), fj.Categorical()), {}, r"labels y span 1\.\.3"),
        ((model, (x, y), fj.Categorical()), {"test": (x, y + 1)}, r"labels y span 1\.\.3"),
        ((model, (x, y[:, None] * np.ones(3)), fj.Bernoulli()), {}, r"labels y span 0\.\.2; give 0 or 1"),
        ((model, (x, -y[:, None] * np.ones(3)), fj.Poisson()), {}, "labels y go down to -2"),
        ((model, (x, 1.0 * y), fj.Gaussian()), {}, r"give y of shape \(12, 3\)"),
        ((model, (x, y), fj.Categorical()), {"batch": 13}, "batch=13 exceeds 12"),
        ((model, (x, y), fj.Categorical()), {"epochs": 0}, "epochs=0"),
        ((model, (x, y), fj.Categorical()), {"key": 3}, "key=3"),
        ((model, (x, y), fj.Categorical()), {"optimizer": "adam"}, "optimizer='adam'"),
    ):
        with pytest.raises(fj.ArgumentError, match=message):
            fit(*arguments, **(good | options))
    for options, message in (
        ({"name": "lion"}, "name='lion'"),
        ({"schedule": "exp"}, "schedule='exp'"),
        ({"rate": -1.0}, "rate=-1"),
        ({"warmup": 1.0}, "warmup=1"),
        ({"decay": -0.1}, "decay=-0.1"),
    ):
        with pytest.raises(fj.ArgumentError, match=message):
            Optimizer(**options)


def test_history_is_saved_and_loaded(tmp_path):
    x, y = problem()
    history = fit(linear(), (x, y), fj.Categorical(), epochs=2, batch=4, key=KEY)
    fj.save(history, tmp_path / "training.npz")
    again = fj.load(tmp_path / "training.npz")
    assert repr(again) == repr(history) and "epochs" in dict(again.info)


def test_digits_are_learned():
    x, y = fj.data.load("digits")
    data, test = fj.data.split(x, y, 0.2, jax.random.key(0))
    assert len(test[0]) == 359 and len(data[0]) == 1438
    assert not {a.tobytes() for a in test[0]} & {a.tobytes() for a in data[0]}
    model = fj.models.build("resmlp", inputs=64, outputs=10, depth=2, norm="batch", key=KEY)
    history = fit(model, data, fj.Categorical(), epochs=8, test=test, key=KEY)
    z = np.asarray(model(jnp.asarray(test[0])))
    reached = np.mean(z.argmax(1) == test[1])
    assert reached > 0.95 and reached == pytest.approx(float(history.test_accuracy[-1]))


@pytest.mark.slow
def test_a_narrow_resnet_learns_digits(optimized):
    x, y = fj.data.load("digits")
    data, test = fj.data.split(x.reshape(-1, 8, 8, 1), y, 0.2, jax.random.key(0))
    model = fj.models.build("resnet20", inputs=(8, 8, 1), outputs=10, width=8, key=KEY)
    history = fit(model, data, fj.Categorical(), epochs=30, test=test, key=KEY)
    assert float(history.test_accuracy[-1]) >= 0.97
