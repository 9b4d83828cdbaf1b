"""Phase diagram, weight ensembles, training and separability against integrals, closed forms, NumPy and the recursions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special

import fisher_jax as fj
from fisher_jax.experiments.initialization import settle_statistics
from fisher_jax.experiments.separability import KINDS, best_threshold_error, bound_along, build, preactivations, streams
from fisher_jax.models.blocks import orthogonal
from fisher_jax.theory import edge_of_chaos

KEY = jax.random.key(0)
FUNCTIONS = {"tanh": np.tanh, "erf": scipy.special.erf, "relu": lambda u: np.maximum(u, 0)}
SLOPES = {
    "tanh": lambda u: np.cosh(u) ** -2.0,
    "erf": lambda u: 2 / np.pi**0.5 * np.exp(-(u**2)),
    "relu": lambda u: (u > 0) * 1.0,
}


def gaussian_mean(f, variance):
    """E[f(√variance z)] by SciPy's adaptive rule."""

    def integrand(z):
        return f(variance**0.5 * z) * np.exp(-(z**2) / 2) / (2 * np.pi) ** 0.5

    return scipy.integrate.quad(integrand, -12, 12, points=[0.0], epsabs=1e-12, epsrel=1e-12, limit=200)[0]


# --- edge of chaos ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "erf", "relu"])
@pytest.mark.parametrize("weights, biases", [(0.6, 0.2), (1.5, 0.05), (1.9, 0.0), (3.0, 0.64)])
def test_fixed_point_and_chi_by_iteration_and_integrals(activation, weights, biases, x64):
    phi = edge_of_chaos.of(activation)
    q = float(edge_of_chaos.fixed_point(phi, weights, biases))
    chi = float(edge_of_chaos.susceptibility(phi, weights, biases))
    if activation == "relu":
        assert chi == pytest.approx(weights / 2, rel=1e-14)
        assert q == (pytest.approx(biases / (1 - weights / 2), rel=1e-12) if weights < 2 else np.inf)
        return
    assert q == pytest.approx(weights * gaussian_mean(lambda u: FUNCTIONS[activation](u) ** 2, q) + biases, rel=1e-9)
    assert chi == pytest.approx(weights * gaussian_mean(lambda u: SLOPES[activation](u) ** 2, q), rel=1e-9)
    # It is where the layers lead, and no other root.
    variance = weights + biases
    for _ in range(40):
        variance = weights * gaussian_mean(lambda u: FUNCTIONS[activation](u) ** 2, variance) + biases
    assert variance == pytest.approx(q, rel=0.02, abs=1e-6)


def test_the_edge_in_closed_form_and_of_the_literature(x64):
    tanh, erf, relu = (edge_of_chaos.of(name) for name in ("tanh", "erf", "relu"))
    # 1/φ'(0)² without biases; the points of tanh: Schoenholz et al. (2017); Xiao et al. (2018), to their digits.
    found = edge_of_chaos.edge(tanh, [0.0, 0.05, 2.01e-5])
    assert found[0] == pytest.approx(1, rel=1e-12)
    assert round(found[1], 2) == 1.76 and round(found[2], 2) == 1.05
    assert edge_of_chaos.edge(erf, [0.0])[0] == pytest.approx(np.pi / 4, rel=1e-12)
    assert edge_of_chaos.edge(relu, [0.0, 0.3]) == pytest.approx([2, 2])
    for phi in (tanh, erf):
        for biases, weights in zip((0.05, 0.5, 1.5), edge_of_chaos.edge(phi, [0.05, 0.5, 1.5]), strict=True):
            assert float(edge_of_chaos.susceptibility(phi, weights, biases)) == pytest.approx(1, rel=1e-9)
    # On the edge itself the root is a double one; order below, chaos above.
    assert float(edge_of_chaos.susceptibility(tanh, 1.0, 0.0)) == pytest.approx(1, abs=1e-9)
    assert float(edge_of_chaos.fixed_point(tanh, 0.9, 0.0)) == pytest.approx(0, abs=1e-12)
    # ReLU on its line keeps the variance of the first layer.
    assert float(edge_of_chaos.fixed_point(relu, 2.0, 0.0)) == 2.0
    assert float(edge_of_chaos.fixed_point(relu, 2.0, 0.1)) == np.inf == float(edge_of_chaos.fixed_point(relu, 2.5, 0.0))


def test_phase_diagram_equals_predict_and_networks(tmp_path, optimized):
    weights, biases, seeds = [0.8, 1.76, 2.5], [0.05, 0.4], 24
    sizes = {"samples": 6, "cosine": 0.5, "depth": 4, "width": 96}
    found = fj.experiments.phase_diagram("tanh", weights, biases, seeds=seeds, key=KEY, **sizes)
    law = fj.theory.predict("mlp", inputs=96, activation="tanh", weight_variance=1.76, bias_variance=0.4, **sizes)
    predicted = [float(a[1, 1]) for a in (found.trace, found.lambda_max, found.bulk)]
    assert predicted == pytest.approx([law.trace, law.lambda_max, law.bulk], rel=1e-6)
    assert float(found.chi[1, 0]) == pytest.approx(1, abs=1e-3) and np.all(np.diff(found.chi, axis=0) > 0)
    assert float(found.edge[0]) == pytest.approx(1.76095, abs=1e-5)
    for name in ("trace", "lambda_max", "bulk"):
        measured, expected = np.asarray(getattr(found, f"measured_{name}")), np.asarray(getattr(found, name))
        error = 4 * measured.std(axis=-1, ddof=1) / seeds**0.5
        # λ_max lies above by O(1/width), the more the more chaotic; the bulk below by what λ_max takes.
        bias = {"trace": 0.0, "lambda_max": 12 / 96, "bulk": 12 / 96}[name] * expected
        assert np.all(np.abs(measured.mean(axis=-1) - expected) < error + bias) and np.all(error < 0.45 * expected)
    fj.save(found, tmp_path / "phase.npz")
    assert repr(fj.load(tmp_path / "phase.npz")) == repr(found) and "χ" in repr(found)
    assert len(fj.plot.phase_diagram(found).axes) == 6 + 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"activation": "gelu"}, "activation='gelu' is not covered; choose among tanh, erf, relu"),
        ({"weight_variances": [-1.0]}, r"weight_variances=\[-1.0\]; give a list of numbers >= 0"),
        ({"samples": 200}, "samples=200 exceeds 128; give from 1 to as many as inputs"),
        ({"cosine": -0.5}, "cosine=-0.5 between 16 samples"),
        ({"seeds": 2}, "seeds=2 without key"),
    ],
)
def test_phase_diagram_refuses(arguments, message):
    usual = {"activation": "relu", "weight_variances": [1.0, 2.0], "bias_variances": [0.0, 0.1]}
    with pytest.raises(fj.ArgumentError, match=message):
        fj.experiments.phase_diagram(**(usual | arguments))


# --- orthogonal weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (3, 70), (129, 129), (150, 64)])
def test_orthogonal_weights_are_orthogonal(shape):
    W = np.asarray(orthogonal(KEY, shape), np.float64) / max(shape) ** 0.5
    gram = W @ W.T if shape[0] <= shape[1] else W.T @ W
    assert gram == pytest.approx(np.eye(min(shape)), abs=2e-6)


def test_orthogonal_weights_are_uniform():
    """Haar moments of 3 × 3: entries of mean 0 and square 1/3, E[(tr Q)²] = 1, E[(tr Q²)] = 1, both determinants."""
    draws = 8000
    Q = np.asarray(jax.vmap(lambda key: orthogonal(key, (3, 3)))(jax.random.split(KEY, draws)), np.float64) / 3**0.5
    assert np.abs(Q.mean(axis=0)).max() < 4.5 * (1 / 3 / draws) ** 0.5
    assert (Q**2).mean(axis=0) == pytest.approx(1 / 3, abs=4.5 * 0.3 / draws**0.5)
    trace, square = np.trace(Q, axis1=1, axis2=2), np.trace(Q @ Q, axis1=1, axis2=2)
    for found, expected in ((trace**2, 1), (square, 1), (np.linalg.det(Q), 0)):
        assert abs(found.mean() - expected) < 4.5 * found.std() / draws**0.5


def test_linear_ensembles_have_the_fluctuations_of_the_closed_form(optimized):
    """Orthogonal: L M exactly, whatever the seed. Gaussian: the sum of products of χ² variables."""
    L, M, seeds = 6, 64, 400
    found = fj.experiments.orthogonal_against_gaussian(
        inputs=M, samples=1, seeds=seeds, key=KEY, depth=L, width=M, activation="linear", weight_variance=1.0
    )
    gaussian, orthogonal_trace = np.asarray(found.trace, np.float64) / (L * M)
    assert orthogonal_trace == pytest.approx(1, rel=2e-5) and found.predicted_trace == pytest.approx(L * M)
    apart = np.abs(np.subtract.outer(np.arange(L), np.arange(L)))
    sd = (((1 + 2 / M) ** (L - 1 - apart)).mean() - 1) ** 0.5
    assert gaussian.mean() == pytest.approx(1, abs=4 * sd / seeds**0.5)
    # The standard error of a standard deviation, 1/√(2 seeds) for normal numbers; these have longer tails.
    assert gaussian.std(ddof=1) == pytest.approx(sd, rel=4 * 1.3 / (2 * seeds) ** 0.5)


def test_orthogonal_tanh_networks_share_the_mean_and_fluctuate_less(tmp_path, optimized):
    options = {"depth": 8, "width": 96, "activation": "tanh", "weight_variance": 1.0}
    found = fj.experiments.orthogonal_against_gaussian(inputs=96, samples=4, seeds=80, key=KEY, **options)
    for name in ("trace", "lambda_max"):
        values, expected = np.asarray(getattr(found, name), np.float64), getattr(found, f"predicted_{name}")
        sd = values.std(axis=1, ddof=1)
        assert np.all(np.abs(values.mean(axis=1) - expected) < 4 * sd / 80**0.5 + 0.03 * expected)
        assert sd[1] < 0.5 * sd[0]
    fj.save(found, tmp_path / "weights.npz")
    assert repr(fj.load(tmp_path / "weights.npz")) == repr(found) and "orthogonal" in repr(found)
    with pytest.raises(fj.ArgumentError, match="weights='gaussian' is what is compared"):
        fj.experiments.orthogonal_against_gaussian(key=KEY, weights="gaussian")


# --- training ---------------------------------------------------------------------------------------------------------


def test_spectra_before_and_after_training(optimized):
    """The record's numbers against an explicit Jacobian in float64, after training."""
    networks = {"batch": ("resmlp", {"depth": 1, "norm": "batch"})}
    with jax.enable_x64(False):
        (found,) = fj.experiments.pretraining(networks, epochs=2, samples=6, key=KEY).values()
    assert found.before.dual_size == 60 and found.history.epochs.size == 2
    assert found.before.lambda_max != found.after.lambda_max
    # The same network again, by hand.
    model = fj.models.build("resmlp", inputs=64, outputs=10, key=KEY, depth=1, norm="batch")
    training, held = fj.data.split(*fj.data.load("digits"), 0.2, KEY)
    W1, W2, W3 = (np.asarray(a[...], np.float64) for a in _kernels(model))
    u = training[0].astype(np.float64) @ W1
    mean, deviation = u.mean(axis=0), (u.var(axis=0) + 1e-6) ** 0.5
    total = np.zeros(())
    for x in held[0][:6].astype(np.float64):
        v = (x @ W1 - mean) / deviation
        a, h = np.maximum(v, 0), x + np.maximum(v, 0) @ W2
        z = h @ W3
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        J3 = np.einsum("h,kc->hkc", h, np.eye(10)).reshape(-1, 10)
        J2 = np.einsum("h,kc->hkc", a, W3).reshape(-1, 10)
        J1 = np.einsum("x,hc->xhc", x, ((v > 0) / deviation)[:, None] * (W2 @ W3)).reshape(-1, 10)
        J = np.concatenate([J1, J2, J3])
        total = total + np.trace(J @ (np.diag(p) - np.outer(p, p)) @ J.T) / 6
    assert found.before.trace == pytest.approx(float(total), rel=1e-3)
    assert "after 2 epochs: test accuracy" in repr(found)
    assert len(fj.plot.pretraining({"a": found, "b": found}).axes) == 2


def _kernels(model):
    return model.blocks[0].first.kernel, model.blocks[0].second.kernel, model.readout.kernel


def test_the_widest_gap():
    assert fj.findings.widest_gap([9.0, 8.0, 2.0, 1.5, 0.1], 3) == (2, 4.0)
    assert fj.findings.widest_gap([9.0, 8.0, 2.0, 1.5, 0.1], 9) == (4, pytest.approx(15.0))


# --- separability -----------------------------------------------------------------------------------------------------

# Kind -> predicted angle from 1 and from π/2 after ten blocks (six, concatenating), and the norm, as tabulated before.
TABLE = {
    "mlp": (0.4487, 0.5125, 1),
    "skip two": (0.6280, 0.7848, 1024),
    "skip one": (0.6280, 0.7848, 1024),
    "population": (0.8431, 1.188, 6),
    "concatenating": (0.8413, 1.180, 7),
    "depth": (0.9056, 1.329, 1.1**10),
}


@pytest.mark.parametrize("kind", TABLE)
def test_angles_norms_and_distances_through_depth(kind, optimized):
    seeds, blocks = 10, 6 if kind == "concatenating" else 10
    for angle, tabulated in zip((1.0, np.pi / 2), TABLE[kind][:2], strict=True):
        found = fj.experiments.separability(kind, angle=angle, depth=blocks, seeds=seeds, key=jax.random.key(2))
        assert float(found.predicted_angle[-1]) == pytest.approx(tabulated, abs=5e-4 if tabulated > 1 else 5e-5)
        assert float(found.predicted_norm[-1]) == pytest.approx(TABLE[kind][2], rel=1e-5)
        for name in ("angle", "norm", "distance", "coactivation"):
            values, expected = np.asarray(getattr(found, name)), np.asarray(getattr(found, f"predicted_{name}"))
            error = 4 * values.std(axis=0, ddof=1) / seeds**0.5 + 1e-5 * expected
            assert np.all(np.abs(values.mean(axis=0) - expected) < error) and np.all(error < 0.8 * expected + 1e-6)


def test_coactivation_numbers_as_tabulated():
    """What the third layer or block sees, from an angle of one."""
    for kind, expected in (("mlp", 0.374), ("skip two", 0.358), ("population", 0.351)):
        found = fj.experiments.separability(kind, depth=3, width=4, seeds=2, key=KEY)
        assert round(float(found.predicted_coactivation[2]), 3) == expected


def test_streams_are_those_of_an_explicit_pass():
    """Each kind by NumPy in float64, from the weights of the network."""
    x = np.random.default_rng(0).normal(size=(3, 8))
    relu = FUNCTIONS["relu"]
    for kind in KINDS:
        model = build(kind, 3, 8, KEY)
        found = streams(model, jnp.asarray(x, jnp.float32))
        h, expected, units = x, [x], []
        if kind == "skip one":
            h = x @ np.asarray(model.embed.kernel[...], np.float64)
            expected = [h]
        for b in range(3):
            part = model.layers[b] if hasattr(model, "layers") else model.blocks[b].first
            W = np.asarray(part.kernel[...], np.float64)
            units.append(h if kind == "skip one" else h @ W)
            if kind == "mlp":
                h = relu(h @ W)
            elif kind == "concatenating":
                h = np.concatenate([h, relu(h @ W)], axis=1)
            elif kind == "skip one":
                h = h + relu(h) @ W
            else:
                gain = {"population": (b + 2) ** -0.5}.get(kind, 1.0)
                branch = relu(gain * (h @ W)) @ np.asarray(model.blocks[b].second.kernel[...], np.float64)
                h = h + (3**-0.5 if kind == "depth" else 1.0) * branch
            expected.append(h)
        assert len(found) == 4
        for a, b in zip(found, expected, strict=True):
            assert np.asarray(a) == pytest.approx(b, rel=1e-4, abs=1e-5)
        for a, b in zip(preactivations(model, found), units, strict=True):
            assert np.asarray(a) == pytest.approx(b, rel=1e-4, abs=1e-5)


def test_class_errors_by_counting(x64):
    rng = np.random.default_rng(1)
    plus, minus = rng.normal(size=40) + 1, rng.normal(size=31) * 2
    r = (plus.mean() - minus.mean()) / (plus.std() + minus.std())
    assert float(bound_along(jnp.asarray(plus), jnp.asarray(minus))) == pytest.approx(1 / (1 + r**2))
    best = min(max((plus <= b).mean(), (minus > b).mean()) for b in np.linspace(-8, 8, 20001))
    assert float(best_threshold_error(jnp.asarray(plus), jnp.asarray(minus))) == pytest.approx(best)


@pytest.mark.parametrize("kind", ["mlp", "population", "concatenating"])
def test_the_class_error_bound_holds_through_depth(kind, tmp_path, optimized):
    x, y = fj.data.load("digits")
    plus, minus = x[y == 3][:60], x[y == 8][:60]
    found = fj.experiments.class_errors(kind, plus, minus, depth=4, width=100, seeds=4, key=KEY)
    assert np.all(np.asarray(found.error) <= np.asarray(found.bound) + 1e-6)
    assert np.all(np.asarray(found.predicted_error) <= np.asarray(found.predicted_bound))
    # At the input nothing is random: the bound of the data themselves.
    v = plus.mean(axis=0, dtype=float) - minus.mean(axis=0, dtype=float)
    r = (v @ v) / ((plus @ v).std() + (minus @ v).std())
    assert np.asarray(found.bound)[:, 0] == pytest.approx(1 / (1 + r**2), rel=1e-4)
    assert float(found.predicted_bound[0]) == pytest.approx(1 / (1 + r**2), rel=1e-5)
    fj.save(found, tmp_path / "errors.npz")
    assert repr(fj.load(tmp_path / "errors.npz")) == repr(found)
    assert len(fj.plot.class_errors({"a": found, "b": found}).axes) == 2


def test_the_bound_of_wide_networks_nears_that_of_infinite_width(optimized):
    """The excess of the bound falls as 1/width."""
    x, y = fj.data.load("digits")
    plus, minus = x[y == 3][:60], x[y == 8][:60]
    excess = []
    for width in (100, 800):
        found = fj.experiments.class_errors("mlp", plus, minus, depth=2, width=width, seeds=8, key=KEY)
        excess.append(np.asarray(found.bound)[:, -1].mean() / float(found.predicted_bound[-1]) - 1)
    assert 0.3 < excess[0] and abs(excess[1]) < excess[0] / 3


def test_separability_refuses_prints_and_draws(tmp_path):
    for arguments, message in (
        (("resnet",), "kind='resnet' is unknown; choose among mlp, skip one"),
        (("mlp", 4.0), r"angle=4.0; give radians in \(0, π\]"),
    ):
        with pytest.raises(fj.ArgumentError, match=message):
            fj.experiments.separability(arguments[0], angle=(*arguments, 1.0)[1], key=KEY)
    with pytest.raises(fj.ArgumentError, match=r"classes of shapes \(3, 9\) and \(3, 8\)"):
        fj.experiments.class_errors("mlp", np.ones((3, 9)), np.ones((3, 8)), key=KEY)
    found = fj.experiments.separability("mlp", depth=2, width=8, seeds=3, key=KEY)
    fj.save(found, tmp_path / "s.npz")
    assert repr(fj.load(tmp_path / "s.npz")) == repr(found) and "co-activation" in repr(found)
    assert len(fj.plot.separability({"a": found, "b": found}).axes) == 4
    for draw in (fj.plot.separability, fj.plot.class_errors, fj.plot.phase_diagram, fj.plot.pretraining):
        with pytest.raises(fj.ArgumentError, match=r"give fj\.experiments\."):
            draw({"a": 1})


def test_running_statistics_settle_without_training():
    model = fj.models.build("resmlp", inputs=8, outputs=2, depth=2, norm="batch", key=KEY)
    before = np.asarray(model.readout.kernel[...])
    x = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32) + 0.5
    settle_statistics(model, x)
    u = x @ np.asarray(model.blocks[0].first.kernel[...])
    assert np.asarray(model.blocks[0].norm.mean[...]) == pytest.approx(u.mean(axis=0), abs=1e-4)
    assert np.asarray(model.blocks[0].norm.var[...]) == pytest.approx(u.var(axis=0), rel=1e-4)
    assert np.array_equal(before, model.readout.kernel[...])
