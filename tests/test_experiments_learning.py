"""Learning rates and generalization gaps of trained networks against closed forms, explicit NumPy, and theory."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fisher_jax as fj
from fisher_jax.theory import learning_rate as limits

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(6, 24)).astype(np.float32)


# --- the largest stable learning rate ---------------------------------------------------------------------------------


def heavy_ball(factor, momentum, steps):
    """Of `½ λ e²` from rest, at rate factor · 2 (1 + β)/λ: e after 0, 1, ... steps, with e = 1 at the start."""
    e, velocity, errors = 1.0, 0.0, [1.0]
    for _ in range(steps):
        velocity = momentum * velocity + e
        e -= factor * 2 * (1 + momentum) * velocity
        errors.append(e)
    return np.array(errors)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_descent_on_a_parabola_is_the_recursion(momentum, x64):
    """One sample of one output: every loss, the curvature, and the limit itself are known."""
    model = fj.Function(lambda p, x: x @ p, jnp.ones((2, 1)))
    found = fj.experiments.learning_rate(
        model, np.array([[1.0, 2.0]]), momentum=momentum, factors=(0.6, 0.95, 1.05), steps=60, key=KEY
    )
    assert found.lambda_max == pytest.approx(5) and found.limit == pytest.approx(2 * (1 + momentum) / 5)
    for c, loss in zip(found.factors, found.loss, strict=True):
        expected = heavy_ball(float(c), momentum, 60)[:61] ** 2
        assert np.asarray(loss / loss[0]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert 0.94 < found.lower <= 1 < found.upper < 1.06
    assert np.isnan(found.predicted)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_no_stable_mode_rises_further_than_is_allowed(momentum):
    rise = (1 + momentum) / (1 - momentum)
    highest = max(np.abs(heavy_ball(c, momentum, 2000)).max() for c in np.linspace(0.001, 0.9999, 200))
    assert highest <= rise * (1 + 1e-9)
    assert np.abs(heavy_ball(1.0, momentum, 2000)).max() == pytest.approx(rise, rel=0.01)


VARIANTS = {
    "mlp": ("mlp", {"depth": 3, "width": 48}, {}),
    "momentum": ("mlp", {"depth": 3, "width": 48}, {"momentum": 0.9}),
    "skip one": ("resmlp", {"depth": 2, "skip": 1}, {}),
    "skip two": ("resmlp", {"depth": 3}, {}),
    "concatenating": ("densemlp", {"depth": 3, "growth": 8}, {}),
    "population norm": ("resmlp", {"depth": 3, "norm": "population"}, {}),
    "fixup": ("resmlp", {"depth": 3, "residual": "fixup"}, {}),
    "mean network": ("resmlp", {"depth": 3, "survival": 0.5, "dropout": 0.3}, {"masks": "mean"}),
    "batch norm": ("resmlp", {"depth": 3, "norm": "batch"}, {"bn": "frozen"}),
}


@pytest.mark.filterwarnings("ignore:theory of")
@pytest.mark.parametrize("case", VARIANTS)
def test_the_limit_is_two_over_lambda_max(case):
    """The loss never rises below, by far above; the bracket holds the limit."""
    name, options, chosen = VARIANTS[case]
    found = fj.experiments.learning_rate(name, X, key=KEY, **chosen, **options)
    c, transient = np.asarray(found.factors), np.asarray(found.transient)
    rise = (1 + found.momentum) / (1 - found.momentum)
    assert np.all(transient[c <= 0.95] <= 1.001 * rise**2) and np.all(transient[c >= 1.05] > 10 * rise**2)
    assert 0.95 <= found.lower <= 1.005 and 0.995 <= found.upper <= 1.05
    theory = {k: v for k, v in chosen.items() if k in ("masks", "bn")}
    assert found.predicted == fj.theory.predict(name, x=X, **theory, **options).lambda_max


def test_above_the_limit_the_last_loss_is_no_judge():
    """At 1.5 times the limit a wide network rises a thousandfold and ends below where it began."""
    found = fj.experiments.learning_rate("mlp", X, key=KEY, depth=3, width=128, factors=(0.9, 1.5))
    at = int(np.argmin(np.abs(np.asarray(found.factors) - 1.5)))
    assert found.transient[at] > 1e3 and found.loss[at, -1] < 0.01 * found.loss[at, 0] and found.unstable[at]


def test_lambda_max_and_descent_of_a_network_of_ones_own(x64):
    """Several outputs, against explicit Jacobians and steps."""
    rng = np.random.default_rng(1)
    params = {"A": jnp.asarray(rng.normal(size=(3, 4))), "B": jnp.asarray(rng.normal(size=(4, 2)))}
    model = fj.Function(lambda p, x: jnp.tanh(x @ p["A"]) @ p["B"], params)
    x = rng.normal(size=(5, 3))
    found = fj.experiments.learning_rate(model, x, factors=(0.5, 0.97, 1.05, 2.0), key=KEY, steps=400)
    A, B = (np.asarray(params[k]) for k in "AB")
    rows = []
    for row, k in itertools.product(x, range(2)):
        h = np.tanh(row @ A)
        rows.append(np.concatenate([np.outer(row, (1 - h**2) * B[:, k]).ravel(), np.outer(h, np.eye(2)[k]).ravel()]))
    assert found.lambda_max == pytest.approx(np.linalg.eigvalsh(np.array(rows) @ np.array(rows).T / 5)[-1], rel=1e-10)
    assert found.largest == pytest.approx(2 / found.lambda_max, rel=0.05)


def test_learning_rates_are_saved_drawn_and_refused(tmp_path):
    model = fj.Function(lambda p, x: x @ p, jnp.ones((24, 1)))
    calls = []
    found = fj.experiments.learning_rate(
        model, X, factors=(0.8, 1.2), steps=50, key=KEY, progress=lambda *done: calls.append(done)
    )
    assert calls == [(2, 4), (4, 4)]
    fj.save(found, tmp_path / "rates.npz")
    assert repr(fj.load(tmp_path / "rates.npz")) == repr(found)
    assert "largest stable rate, measured" in repr(found) and "not covered" in repr(found)
    # All stable, or none: the bracket is open.
    for factors, ends in (((0.5, 0.9), (0.9, np.inf)), ((1.5, 2.0), (0.0, 1.5))):
        open_ = fj.experiments.learning_rate(model, X, factors=factors, steps=50, key=KEY)
        assert (open_.lower, open_.upper) == ends and open_.factors.size == 2
    figure = fj.plot.learning_rate({"a": found, "b": open_})
    assert len(figure.axes[0].lines) >= 4
    for arguments, message in (
        ({"factors": (1.0, 0.5)}, r"factors=\(1.0, 0.5\); give two or more, ascending"),
        ({"momentum": 1.0}, r"momentum=1.0; give a number from 0"),
        ({"depth": 3}, r"\['depth'\] beside a model"),
        ({"steps": 0}, r"steps=0 is below 1"),
    ):
        with pytest.raises(fj.ArgumentError, match=message):
            fj.experiments.learning_rate(model, X, key=KEY, **arguments)
    with pytest.raises(fj.ArgumentError, match=r"λ_max=0"):
        fj.experiments.learning_rate(model, 0 * X, key=KEY)
    with pytest.raises(fj.ArgumentError, match=r"model='gpt' takes no features"):
        fj.experiments.learning_rate("gpt", X, key=KEY)
    with pytest.raises(fj.ArgumentError, match=r"LearningRates"):
        fj.plot.learning_rate({"a": 1})


def test_stochastic_descent_on_a_linearized_network(x64):
    """Mean square error of batches drawn with replacement: its threshold lies between the bound and 2/λ_max.

    In the residuals r of the linearized network a batch B moves `r ← r − η/|B| Σ_{n in B} Θ[:, n] r_n`, linear in r rᵀ.
    """
    N = 6
    model = fj.models.build("mlp", inputs=24, outputs=1, depth=3, width=48, key=KEY)
    kernel = N * np.asarray(fj.fisher(model, X.astype(np.float64), fj.Gaussian()).gram(), np.float64)
    largest, eye = np.linalg.eigvalsh(kernel)[-1] / N, np.eye(N)
    pulls = [np.outer(kernel[:, n], eye[n]) for n in range(N)]  # Θ[:, n] eₙᵀ
    mean = kernel / N
    square = sum(np.kron(p, p) for p in pulls) / N

    def growth(rate, batch):
        first = np.kron(mean, eye) + np.kron(eye, mean)
        second = square / batch + (1 - 1 / batch) * np.kron(mean, mean)
        return np.abs(np.linalg.eigvals(np.kron(eye, eye) - rate * first + rate**2 * second)).max()

    # The map itself, over all batches of two.
    total = np.zeros((N**2, N**2))
    for a, b in itertools.product(range(N), repeat=2):
        step = eye - 0.1 / largest * (pulls[a] + pulls[b]) / 2
        total += np.kron(step, step) / N**2
    assert growth(0.1 / largest, 2) == pytest.approx(np.abs(np.linalg.eigvals(total)).max(), rel=1e-10)
    thresholds = []
    for batch in (1, 2, 4, 16, 10**6):
        low, high = 0.0, 4 / largest
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if growth(middle, batch) < 1 else (low, middle)
        bound = float(limits.stochastic(largest, np.diagonal(kernel).max(), batch))
        assert bound <= low * (1 + 1e-9) and low <= 2 / largest * (1 + 1e-9)
        thresholds.append(low * largest)
    assert sorted(thresholds) == thresholds and thresholds[0] < 1 and thresholds[-1] == pytest.approx(2, rel=1e-4)


# --- the generalization gap -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_with_enough_samples_every_linear_network_is_least_squares(optimized):
    """In expectation over Gaussian data, with N > D and noise σ: train (1 − D/N), test 1 + D/(N − D − 1), times D σ²/2."""
    N, D, noise, seeds = 20, 3, 0.5, 60
    settings = {"samples": N, "features": D, "matrices": 4, "noise": noise, "seeds": seeds, "steps": 6000, "key": KEY}
    found = fj.experiments.linear_generalization(**settings)
    train, test, left_out = (np.asarray(a, np.float64) for a in (found.train, found.test, found.left_out))
    assert found.names == ("mlp", "skip one", "skip two")
    for a in (train, test, left_out):
        assert a[1] == pytest.approx(a[2], rel=1e-3, abs=1e-4)

    def close(values, expected):
        error = values.std(ddof=1) / seeds**0.5
        return abs(values.mean() - expected) < 4 * error < 0.4 * expected

    unit = D * noise**2 / 2
    assert close(train[2], unit * (1 - D / N)) and close(test[2], unit * (1 + D / (N - D - 1)))
    # A sample that was left out is a new one to a network of N − 1.
    assert close((train[2, :, None] + left_out[2]).mean(axis=1), unit * (1 + D / (N - 1 - D - 1)))
    assert np.all(left_out[1:].mean(axis=2) > 0) and np.all(train[1:] <= train[0] * (1 + 1e-4))


def test_as_many_samples_as_features_tell_the_teacher(optimized):
    """Without noise, and not with one sample less."""
    settings = {"samples": 3, "features": 3, "matrices": 2, "noise": 0.0, "seeds": 9, "steps": 6000, "key": KEY}
    found = fj.experiments.linear_generalization(**settings)
    assert np.all(np.median(np.asarray(found.test)[1:], axis=1) < 1e-4)
    assert np.all(np.median(np.asarray(found.stability)[1:], axis=1) > 1e-3)


def paired(found):
    gap = np.asarray(found.gap, np.float64)
    for more, less in ((0, 1), (1, 2)):
        difference = gap[more] - gap[less]
        yield difference.mean(), difference.std(ddof=1) / difference.size**0.5


def within_bounds(found):
    """In every run: the gap within the bound, each leave-one-out change within its half."""
    bound = np.asarray(found.bound)
    assert np.all(np.isfinite(bound)) and np.all(np.asarray(found.gap) <= bound)
    assert np.all(2 * np.abs(np.asarray(found.left_out)).max(axis=2) <= bound)


def test_with_few_samples_skips_over_two_generalize_best(optimized):
    settings = {"samples": 4, "features": 8, "matrices": 8, "seeds": 12, "steps": 2000, "key": KEY}
    found = fj.experiments.linear_generalization(**settings)
    within_bounds(found)
    assert all(mean > 2 * error for mean, error in paired(found))
    assert np.all(np.asarray(found.train)[1:] < 1e-3)
    factor = np.median(np.asarray(found.bound), axis=1)
    assert factor[0] > 1e3 * factor[1] and factor[1] > factor[2]


# Of 24 other networks: mean gap, its standard error, and the median of the leave-one-out stability.
HANDBOOK = ((4.73, 0.39, 3.01), (3.48, 0.51, 2.48), (2.21, 0.27, 1.07))


@pytest.mark.slow
def test_the_gaps_of_the_handbook(optimized):
    found = fj.experiments.linear_generalization(key=KEY)
    within_bounds(found)
    assert np.all(np.asarray(found.train)[1:] < 1e-3) and np.median(np.asarray(found.train)[0]) < 0.016
    gap, stability = np.asarray(found.gap, np.float64), np.asarray(found.stability, np.float64)
    for ours, (mean, error, _) in zip(gap, HANDBOOK, strict=True):
        assert abs(ours.mean() - mean) < 2 * np.hypot(error, ours.std(ddof=1) / 24**0.5)
    assert np.all(np.diff(np.median(stability, axis=1)) < 0)
    assert all(mean > 1.4 * error for mean, error in paired(found))
    assert np.mean(gap[0] > gap[1]) > 0.8 and np.mean(gap[1] > gap[2]) > 0.8


def test_one_layer_on_classes_is_least_squares(x64):
    """Trained to the end, and stopped on the way."""
    x, y = fj.data.load("digits", samples=60)
    x = np.asarray(x[:, 20:26], np.float64)
    labels = np.eye(10)[y]
    settings = {"seeds": 2, "key": KEY}
    one = {"one layer": ("mlp", {"depth": 1})}
    found = fj.experiments.generalization(one, (x[:40], y[:40]), (x[40:], labels[40:]), loss=1e-6, steps=1000, **settings)
    W = np.linalg.lstsq(x[:40], labels[:40], rcond=None)[0]
    losses = 0.5 * np.sum((x @ W - labels) ** 2, axis=1)
    assert np.asarray(found.train) == pytest.approx(losses[:40].mean(), rel=1e-6)
    assert np.asarray(found.test) == pytest.approx(losses[40:].mean(), rel=1e-6)
    assert found.stability is None and "1e-06" in dict(found.info)["loss"]
    stop = 1.5 * losses[:40].mean()
    early = fj.experiments.generalization(one, (x[:40], y[:40]), (x[40:], labels[40:]), loss=stop, steps=1000, **settings)
    train = np.asarray(early.train)
    assert np.all(train <= stop) and np.all(train > 0.7 * stop)


@pytest.mark.slow
def test_gaps_of_networks_at_equal_training_loss(optimized, tmp_path):
    x, y = fj.data.load("digits", samples=150)
    variants = {"mlp": ("mlp", {"depth": 3, "width": 24}), "fixup": ("resmlp", {"depth": 2, "residual": "fixup"})}
    calls = []
    found = fj.experiments.generalization(
        variants, (x[:50], y[:50]), (x[50:], y[50:]), loss=0.1, seeds=2, key=KEY, progress=lambda *done: calls.append(done)
    )
    assert np.all(np.asarray(found.train) <= 0.1) and np.all(np.asarray(found.train) > 0.08)
    assert np.all(np.asarray(found.gap) > 0) and calls[-1] == (16000, 16000)
    fj.save(found, tmp_path / "gaps.npz")
    again = fj.load(tmp_path / "gaps.npz")
    assert again.names == ("mlp", "fixup") and repr(again) == repr(found) and "2 seeds" in repr(found)
    assert len(fj.plot.generalization(found).axes[0].patches) == 2
    with pytest.raises(fj.ArgumentError, match=r"variants is empty"):
        fj.experiments.generalization({}, (x, y), (x, y), key=KEY)
    with pytest.raises(fj.ArgumentError, match=r"test of shapes \(10, 3\)"):
        fj.experiments.generalization(variants, (x, y), (x[:10, :3], y[:10]), key=KEY)
    with pytest.raises(fj.ArgumentError, match=r"train is no pair"):
        fj.experiments.generalization(variants, (x, y[:3]), (x, y), key=KEY)
    with pytest.raises(fj.ArgumentError, match=r"matrices=3 is odd"):
        fj.experiments.linear_generalization(matrices=3, key=KEY)
    with pytest.raises(fj.ArgumentError, match=r"result is a int"):
        fj.plot.generalization(1)
