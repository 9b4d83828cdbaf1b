"""Theory against its reference numbers, closed forms, Monte Carlo, matrix products, and finite networks."""

import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special

import fisher_jax as fj
from fisher_jax.theory import conditional, duals, learning_rate, masks, normalization, one_hidden_layer, separability, spectra
from fisher_jax.theory import stability
from fisher_jax.theory.concatenation import concatenating
from fisher_jax.theory.mlp import mlp
from fisher_jax.theory.network import OPTIONS, network
from fisher_jax.theory.recursion import Gate
from fisher_jax.theory.residual import skip_one, skip_one_post, skip_two

RELU = Gate(duals.dual("relu"))
D = 256

# --- reference numbers ------------------------------------------------------------------------------------------------

# (θ₁, θ₂)/D by depth and cosine of the inputs, made by a program that shares nothing with this one.
REFERENCE = json.loads((pathlib.Path(__file__).parent / "theory_reference.json").read_text())
PREDICTED = {
    "mlp_he (so2=2)": ("mlp", lambda L: {}),
    "mlp_he (so2=1)": ("mlp", lambda L: {"readout_variance": 1.0}),
    "mlp_linear sw2=1": ("mlp", lambda L: {"activation": "linear", "weight_variance": 1.0}),
    "res1pre": ("resmlp", lambda L: {"skip": 1}),
    "res1post": ("resmlp", lambda L: {"skip": 1, "form": "post"}),
    "res2": ("resmlp", lambda L: {}),
    "res2 He/He": ("resmlp", lambda L: {"variances": (2.0, 2.0)}),
    "res2 F&I-BN": ("resmlp", lambda L: {"norm": "population"}),
    "res2 1/sqrtL": ("resmlp", lambda L: {"scale": "depth"}),
    "res2 Fixup (so2=1)": ("resmlp", lambda L: {"residual": "fixup"}),
    "res2 SD mean-net p=.5": ("resmlp", lambda L: {"survival": 0.5}),
    "dense k=D0/4": ("densemlp", lambda L: {"growth": D // 4}),
    "dense k=D0": ("densemlp", lambda L: {"growth": D}),
}
TANH = "mlp_tanh sw2=3 sb2=.64"
# Theirs does not count the gradients of the biases; tanh was integrated with 61 Gauss–Hermite nodes.
WITH_BIASES = {
    "mlp_erf sw2=2 sb2=.1": (duals.dual("erf"), 2.0, 0.1),
    TANH: (duals.dual("tanh", 61, "hermite"), 3.0, 0.64),
}


def test_reference_is_covered():
    assert set(PREDICTED) | set(WITH_BIASES) == set(REFERENCE)


@pytest.mark.parametrize("case", PREDICTED)
def test_kernels_equal_the_reference(case, x64):
    """The last of three inputs has the cosines 0 and 0.5 to the others."""
    name, options = PREDICTED[case]
    K = jnp.array([[1, 0.3, 0.0], [0.3, 1, 0.5], [0.0, 0.5, 1]])
    for depth, by_cosine in REFERENCE[case].items():
        net = network(name, D, 1, {"depth": int(depth)} | options(int(depth)))
        theta = np.asarray(net.tangent(K, net.gate(), net.survivals).theta) / D
        (theta1, at_zero), (_, at_half) = by_cosine["0.0"], by_cosine["0.5"]
        assert theta[2] == pytest.approx([at_zero, at_half, theta1], rel=1e-12)


@pytest.mark.parametrize("case", PREDICTED)
def test_predictions_equal_the_reference(case):
    """Trace, λ_max, bulk and second moment; in float64 whatever the precision of the session."""
    (name, options), depth = PREDICTED[case], 4
    theta1, theta2 = REFERENCE[case]["4"]["0.5"]
    law = fj.theory.predict(name, inputs=D, outputs=2, samples=3, cosine=0.5, depth=depth, **options(depth))
    assert law.trace == pytest.approx(2 * D * theta1, rel=1e-12)
    assert law.lambda_max == pytest.approx(D * (theta1 + 2 * theta2) / 3, rel=1e-12)
    assert law.bulk == pytest.approx(D * (theta1 - theta2) / 3, rel=1e-12)
    assert law.second_moment == pytest.approx(2 * D**2 * (theta1**2 + 2 * theta2**2) / 3 / law.size, rel=1e-12)
    assert law.max_learning_rate == pytest.approx(2 / law.lambda_max, rel=1e-12)


@pytest.mark.parametrize("case", WITH_BIASES)
def test_kernels_with_biases_equal_the_reference(case, x64):
    dual, weights, biases = WITH_BIASES[case]
    for depth, by_cosine in REFERENCE[case].items():
        for cosine, (theta1, theta2) in by_cosine.items():
            settings = {"weight_variance": weights, "bias_variance": biases, "train_biases": False}
            theta = np.asarray(mlp(float(cosine), [D] * int(depth), Gate(dual), **settings).theta) / D
            assert theta[0] == pytest.approx([theta1, theta2], rel=1e-10)


def test_the_reference_for_tanh_is_off_by_its_quadrature(x64):
    """One layer at variance 3.64, by an adaptive rule: its 61 nodes are wrong in the third digit, ours are not."""
    a = 3.64

    def mean(f):
        return (
            scipy.integrate.quad(lambda z: f(a**0.5 * z) * np.exp(-(z**2) / 2), -12, 12, epsabs=1e-13)[0]
            / (2 * np.pi) ** 0.5
        )

    exact = mean(lambda u: np.tanh(u) ** 2) + 3 * mean(lambda u: np.cosh(u) ** -4.0)
    settings = {"weight_variance": 3.0, "bias_variance": 0.64, "train_biases": False}
    ours = float(mlp(0.0, [D, D], Gate(duals.dual("tanh")), **settings).theta[0, 0]) / D
    assert ours == pytest.approx(exact, rel=1e-12)
    assert 1e-3 < REFERENCE[TANH]["2"]["0.0"][0] / exact - 1 < 3e-3


# --- predict ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_options_and_sizes_are_those_of_the_models(name):
    known = fj.models.options(name)
    assert known == OPTIONS[name]
    for options in ({}, {"depth": 1}, {"residual": "skipinit"}, {"skip": 1, "width": 7}, {"form": "post", "skip": 1},
                    {"residual": "fixup-scalars"}, {"bias_variance": 0.1}):  # fmt: skip
        if set(options) <= set(known):
            assert network(name, 9, 4, options).size == fj.models.count(name, inputs=9, outputs=4, **options)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("resnet", {}, "name='resnet' is not covered; theory covers mlp, resmlp, densemlp"),
        ("mlp", {"skip": 1}, "option skip=1 is not covered; it covers .*weight_variance"),
        ("mlp", {"activation": "swish"}, "phi='swish' is unknown; choose among relu"),
        ("mlp", {"norm": "layer"}, "norm='layer' is unknown; choose among"),
        ("mlp", {"norm": "population"}, "norm='population' is not covered; choose skip=2"),
        ("mlp", {"depth": 0}, "depth=0 is below 1"),
        ("mlp", {"dropout": 1.0}, "dropout=1.0 is not covered"),
        ("mlp", {"norm": "batch"}, "bn is missing"),
        ("mlp", {"norm": "batch", "bn": "train"}, "no closed form is known; choose bn=\"frozen\""),
        ("mlp", {"bn": "frozen"}, "the model has no batch normalization"),
        ("mlp", {"masks": "average"}, "neither dropout nor stochastic depth"),
        ("mlp", {"samples": None}, "samples is missing"),
        ("mlp", {"cosine": -0.5}, "cosine=-0.5 between 8 samples"),
        ("mlp", {"likelihood": "poisson"}, "likelihood='poisson' is not covered"),
        ("mlp", {"likelihood": "categorical", "outputs": 3}, "key is missing"),
        ("mlp", {"width": 2, "samples": 10**4}, "exceed the .* parameters"),
        ("resmlp", {"width": 8}, "width=8 differs from the 64 inputs"),
        ("resmlp", {"skip": 1, "residual": "fixup"}, "residual='fixup' with skip=1 is not covered"),
        ("resmlp", {"survival": 0.5, "masks": "average"}, "key is missing"),
        ("resmlp", {"survival": 0.5, "dropout": 0.5, "masks": "average", "key": 0}, "together are not covered"),
    ],
)  # fmt: skip
def test_what_theory_does_not_cover_is_refused(name, options, message):
    with pytest.raises(fj.ArgumentError, match=message):
        fj.theory.predict(name, **({"inputs": 64, "samples": 8} | options))


def test_outside_its_range_theory_warns():
    with pytest.warns(UserWarning, match="at depth 40 and width 256 one network may differ by 62 %"):
        fj.theory.predict("mlp", inputs=256, samples=8, depth=40)
    with pytest.warns(UserWarning, match="does not stand out of the bulk"):
        fj.theory.predict("mlp", inputs=256, samples=8, depth=4, activation="tanh", weight_variance=1.5)


def test_a_law_prints_itself_and_is_saved(tmp_path):
    law = fj.theory.predict("resmlp", inputs=64, outputs=3, samples=8)
    assert "largest stable learning rate 2/λ_max" in repr(law) and "skip two, N = 8, two values" in repr(law)
    fj.save(law, tmp_path / "law.npz")
    again = fj.load(tmp_path / "law.npz")
    assert isinstance(again, fj.Law) and repr(again) == repr(law) and again.counts.tolist() == [3, 21]
    assert law.zeros == law.size - 24 and law.outliers == 3


# --- dual activations -------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "relu": lambda u: np.maximum(u, 0),
    "erf": scipy.special.erf,
    "linear": lambda u: u,
    "tanh": np.tanh,
    "gelu": lambda u: u * (1 + scipy.special.erf(u / 2**0.5)) / 2,
}
DERIVATIVES = {
    "relu": lambda u: (u > 0) * 1.0,
    "erf": lambda u: 2 / np.pi**0.5 * np.exp(-(u**2)),
    "linear": np.ones_like,
    "tanh": lambda u: 1 / np.cosh(u) ** 2,
    "gelu": lambda u: (1 + scipy.special.erf(u / 2**0.5)) / 2 + u * np.exp(-(u**2) / 2) / (2 * np.pi) ** 0.5,
}
COVARIANCES = [(2.0, 1.0, 1.5), (0.3, -0.25, 1.2), (1.0, 0.999, 1.0)]


@pytest.mark.parametrize("phi", FUNCTIONS)
def test_duals_equal_monte_carlo(phi, dtype):
    z = np.random.default_rng(0).normal(size=(2, 400_000))
    dual = duals.dual(phi)
    for a, b, c in COVARIANCES:
        u = a**0.5 * z[0]
        v = b / a**0.5 * z[0] + (c - b**2 / a) ** 0.5 * z[1]
        arguments = [jnp.asarray(value, dtype) for value in (a, b, c)]
        for found, f in ((dual.V, FUNCTIONS[phi]), (dual.Vd, DERIVATIVES[phi])):
            products = f(u) * f(v)
            assert abs(float(found(*arguments)) - products.mean()) <= 4.5 * products.std() / z.shape[1] ** 0.5 + 1e-6
        mean = FUNCTIONS[phi](u)
        assert abs(float(dual.mean(arguments[0])) - mean.mean()) < 4.5 * mean.std() / z.shape[1] ** 0.5 + 1e-6


@pytest.mark.parametrize("phi", FUNCTIONS)
def test_the_derivative_of_v_in_the_covariance_is_vd(phi, x64):
    """Price's theorem; also where the inputs are nearly equal."""
    dual = duals.dual(phi)
    for covariance in COVARIANCES:
        arguments = [jnp.asarray(value) for value in covariance]
        assert float(jax.grad(dual.V, 1)(*arguments)) == pytest.approx(float(dual.Vd(*arguments)), rel=1e-8)


def test_quadrature_equals_the_closed_forms(x64):
    smooth, kinked = duals.quadrature(jax.scipy.special.erf), duals.quadrature(jax.nn.relu)
    for covariance in COVARIANCES:
        arguments = [jnp.asarray(value) for value in covariance]
        assert float(smooth.V(*arguments)) == pytest.approx(float(duals.dual("erf").V(*arguments)), rel=1e-12)
        assert float(smooth.Vd(*arguments)) == pytest.approx(float(duals.dual("erf").Vd(*arguments)), rel=1e-12)
        assert float(kinked.V(*arguments)) == pytest.approx(float(duals.dual("relu").V(*arguments)), rel=0.01)
    zero = jnp.zeros(())
    assert float(smooth.V(zero, zero, zero)) == 0.0


# --- kernels ----------------------------------------------------------------------------------------------------------


def gradients(name, D, k, L, s1, s2, so2, rng, x):
    """Tangent kernel of one linear network of random weights, by matrix products: ∂f/∂W is a rank-one matrix."""

    def normal(rows, columns, variance):
        return rng.normal(size=(rows, columns)) * (variance / columns) ** 0.5

    # Maps h -> T h from layer to layer, and for each weight what comes in from h, and what its output does to the next h.
    maps, weights = [], []
    for layer in range(L):
        width = D + layer * k if name == "concatenating" else D
        eye = np.eye(width)
        if name == "mlp":
            W = normal(D, D, s1)
            maps.append(W), weights.append([(eye, eye)])
        elif name == "skip one":
            W = normal(D, D, s1)
            maps.append(eye + W), weights.append([(eye, eye)])
        elif name == "skip two":
            W1, W2 = normal(D, D, s1), normal(D, D, s2)
            maps.append(eye + W2 @ W1), weights.append([(eye, W2), (W1, eye)])
        else:
            W = normal(k, width, s1)
            below = np.vstack([np.zeros((width, k)), np.eye(k)])
            maps.append(np.vstack([eye, W])), weights.append([(eye, below)])
    out = normal(1, maps[-1].shape[0], so2)
    streams = [x]
    for T in maps:
        streams.append(streams[-1] @ T.T)
    theta, back = streams[-1] @ streams[-1].T, out
    for h, T, parts in zip(streams[-2::-1], maps[::-1], weights[::-1], strict=True):
        for before, after in parts:
            theta = theta + (h @ before.T) @ (h @ before.T).T * ((back @ after) @ (back @ after).T).item()
        back = back @ T
    return theta


@pytest.mark.parametrize("name", ["mlp", "skip one", "skip two", "concatenating"])
def test_linear_networks_by_matrix_products(name, x64):
    """For linear networks the expected kernel is exact at every width: 4000 networks of 6 units."""
    D, k, L, s1, s2, so2 = 6, 4, 3, 0.8, 0.5, 1.3
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, D))
    measured = np.array([gradients(name, D, k, L, s1, s2, so2, rng, x) for _ in range(4000)])
    K, linear = x @ x.T / D, Gate(duals.dual("linear"))
    made = {
        "mlp": lambda: mlp(K, [D] * (L + 1), linear, weight_variance=s1, readout_variance=so2),
        "skip two": lambda: skip_two(K, D, L, linear, variances=(s1, s2), readout_variance=so2),
        "skip one": lambda: skip_one_post(K, D, L, linear, variance=s1, readout_variance=so2),
        "concatenating": lambda: concatenating(K, D, k, L, linear, variance=s1, readout_variance=so2),
    }
    theta = np.asarray(made[name]().theta)
    error = measured.std(0) / len(measured) ** 0.5
    assert (np.abs(measured.mean(0) - theta) < 4.5 * error).all() and (error < 0.03 * theta.max()).all()
    if name == "skip one":  # without activation, first and last are the same, but for the embedding
        embedded = skip_one(K, D, D, L, linear, variance=s1, readout_variance=so2).theta
        grown = np.asarray(skip_one(K, D, D, L, linear, variance=s1, readout_variance=so2, input_variance=0.0).theta)
        assert np.asarray(embedded) == pytest.approx(theta + grown, rel=1e-12)


def test_one_layer_is_exact():
    """A linear layer has no randomness: every eigenvalue of the model's Fisher matrix, from the data alone."""
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    law = fj.theory.predict("mlp", x=x, outputs=3, depth=1, activation="linear")
    model = fj.models.build("mlp", inputs=8, outputs=3, depth=1, key=jax.random.key(0))
    exact = fj.spectrum(fj.fisher(model, x, fj.Gaussian()))
    assert np.repeat(law.values, law.counts.astype(int)) == pytest.approx(np.asarray(exact.values), rel=1e-5)
    assert (law.trace, law.second_moment) == pytest.approx((exact.trace, exact.second_moment), rel=1e-5)


@pytest.mark.parametrize("name, options", [
    ("mlp", {"activation": "gelu", "bias_variance": 0.2, "depth": 3}),
    ("resmlp", {"skip": 1, "form": "post", "depth": 3}),
    ("resmlp", {"survival": 0.7, "dropout": 0.2, "dropout_form": "raw", "depth": 3}),
    ("mlp", {"dropout": 0.3, "masks": fj.Average(3, jax.random.key(0)), "depth": 3}),
    ("mlp", {"dropout": 0.3, "masks": fj.Average(3, jax.random.key(0), shared=True), "depth": 3}),
    ("resmlp", {"survival": 0.7, "masks": "one", "depth": 3}),
    ("resmlp", {"survival": 0.7, "masks": fj.Average(3, jax.random.key(0), shared=True), "depth": 3}),
    ("mlp", {"norm": "batch", "bn": "frozen", "activation": "erf"}),
    ("mlp", {"output_norm": "mean", "bn": "train"}),
    ("mlp", {"output_norm": "batch", "bn": "frozen"}),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:theory of")
def test_a_matrix_gives_what_two_values_give(name, options):
    """Six inputs of one norm and angle, as a matrix and by their two values."""
    K = np.full((6, 6), 0.3) + 0.7 * np.eye(6)
    one = fj.theory.predict(name, inputs=32, outputs=2, samples=6, cosine=0.3, **options)
    other = fj.theory.predict(name, inputs=32, outputs=2, kernel=K, **options)
    flat = [np.sort(np.repeat(law.values, law.counts.astype(int)))[::-1] for law in (one, other)]
    assert flat[0] == pytest.approx(flat[1], rel=1e-9, abs=1e-12 * flat[0][0])
    assert one.trace == pytest.approx(other.trace, rel=1e-12) == pytest.approx(flat[0].sum(), rel=1e-9)
    assert one.frobenius == pytest.approx(np.linalg.norm(flat[0]), rel=1e-9)


def test_kernels_are_differentiable(x64):
    """∂θ₁/∂σ_w² = L (L − 1) M/2 at He's point; others by central differences; equal and nearly equal inputs among them."""
    L = 5
    slope = jax.grad(lambda v: mlp(0.3, [D] * L, RELU, weight_variance=v).theta[0, 0])(2.0)
    assert float(slope) == pytest.approx(D * L * (L - 1) / 2, rel=1e-12)
    K = jnp.array([[1.0, 1.0, 0.2], [1.0, 1.0, 0.2], [0.2, 0.2, 0.8]])
    tanh = Gate(duals.dual("tanh"))
    for f in (
        lambda v: jnp.sum(skip_two(K, 4, 3, RELU, variances=(v, 1.0), scale=0.9).theta),
        lambda v: jnp.sum(skip_two(K, 4, 3, tanh, variances=(v, 1.0)).theta),
        lambda v: jnp.sum(skip_one_post(K * v, 4, 3, tanh).theta),
        lambda v: jnp.sum(concatenating(K * v, 4, 3, 3, RELU).theta),
    ):
        step = 1e-5
        assert float(jax.grad(f)(1.7)) == pytest.approx(float(f(1.7 + step) - f(1.7 - step)) / (2 * step), rel=1e-7)


# --- growth with depth, to a thousand layers --------------------------------------------------------------------------


def log_theta(tangent):
    """Logarithms of θ₁ and θ₂."""
    return np.log(np.asarray(tangent.scaled)[0]) + float(tangent.log_scale)


def test_growth_laws_to_depth_1000(x64):
    """The acceptance table of the mean-field family: traces in closed form, at depths where the numbers leave a float."""
    L = 1000
    H = np.sum(1 / np.arange(1, L + 3))
    g, so2, s = 3.0, 1.0, 2.0
    assert log_theta(mlp(0.0, [1] * L, RELU)) == pytest.approx(np.log([L, 0.2533 * L]), abs=2e-4)
    assert np.exp(log_theta(skip_two(0.0, 1, L, RELU))[0] - L * np.log(2)) == pytest.approx(1 + 0.75 * L, rel=1e-10)
    huge = skip_two(0.0, 1, L, RELU, variances=(2.0, 2.0))
    assert log_theta(huge)[0] == pytest.approx(L * np.log(g) + np.log(1 + so2 * L * s / g), rel=1e-12)
    assert np.isinf(huge.theta[0, 0])
    assert np.exp(log_theta(skip_one(0.0, 1, 1, L, RELU))[0] - L * np.log(2)) == pytest.approx(2 + L / 4, rel=1e-10)
    population = skip_two(0.0, 1, L, RELU, gain=(np.arange(L) + 2) ** -0.5)
    assert float(population.theta[0, 0]) == pytest.approx((L + 2) / 2 + 0.75 * (L + 2) * (H - 1.5), rel=1e-10)
    assert float(skip_two(0.0, 1, L, RELU, scale=L**-0.5).theta[0, 0]) == pytest.approx(2.5 * np.e, rel=2e-3)
    fixup = skip_two(0.0, 1, L, RELU, variances=(2 / L, 0.0))
    assert np.asarray(fixup.theta[0]) == pytest.approx([2, 1 / np.pi], rel=1e-10)
    skipinit = skip_two(0.0, 100, L, RELU, scale=0.0, learned_size=1.0)
    assert np.asarray(skipinit.theta[0]) == pytest.approx([100 + L, L / np.pi], rel=1e-10)
    dense = float(concatenating(0.0, 4, 1, L, RELU).theta[0, 0])
    width = 4 + np.arange(L + 1)
    assert dense == pytest.approx(width[-1] + 0.5 * np.sum(width[:-1] / width[1:]), rel=1e-10)
    post = [log_theta(skip_one_post(0.0, 1, depth, RELU)) for depth in (L, L - 1)]
    assert np.exp(post[0] - post[1]) == pytest.approx([2.90411] * 2, rel=1e-5)
    assert post[0][0] == pytest.approx(post[0][1], abs=1e-6)  # θ₂/θ₁ -> 1
    chaotic = log_theta(mlp(0.1, [1] * L, Gate(duals.dual("erf")), weight_variance=4.0))
    assert np.isfinite(chaotic[0]) and chaotic[0] > 100


@pytest.mark.filterwarnings("ignore:theory of")
def test_mean_eigenvalues_and_largest_as_the_abstracts_claim():
    """Mean eigenvalue: flat in an MLP, exponential with skips, logarithmic with population norm; λ_max by its own laws."""

    def ratio(name, first, last, what, **options):
        return what(fj.theory.predict(name, inputs=512, samples=16, depth=last, **options)) / what(
            fj.theory.predict(name, inputs=512, samples=16, depth=first, **options)
        )

    mean, largest = (lambda law: law.mean_eigenvalue), (lambda law: law.lambda_max)
    assert ratio("mlp", 16, 32, mean, width=512) == pytest.approx((32 / 31) / (16 / 15), rel=1e-3)
    assert ratio("mlp", 16, 32, largest, width=512) == pytest.approx(1.92, rel=0.01)
    assert ratio("resmlp", 24, 25, mean) == pytest.approx(2, rel=1e-2)
    assert ratio("resmlp", 24, 25, largest) == pytest.approx(2.08, rel=5e-3)
    assert ratio("resmlp", 24, 25, largest, skip=1) == pytest.approx(2.06, rel=5e-3)
    assert np.log2(ratio("resmlp", 16, 32, mean, norm="population")) < 0.25
    assert np.log2(ratio("resmlp", 16, 32, largest, norm="population")) == pytest.approx(1.27, abs=0.01)
    assert np.log2(ratio("densemlp", 16, 32, largest, growth=128)) == pytest.approx(1.15, abs=0.01)
    law = fj.theory.predict("resmlp", inputs=10**6, outputs=2, samples=16, depth=1000, variances=(2.0, 2.0))
    assert np.isinf(law.trace) and law.log_trace == pytest.approx(1000 * np.log(3) + np.log(2e6 * (1 + 2000 / 3)), rel=1e-12)
    assert law.max_learning_rate == 0.0 and 2 < law.effective_rank < 8 and "e^" in repr(law)
