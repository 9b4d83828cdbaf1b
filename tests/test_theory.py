"""Theory against its reference numbers, closed forms, Monte Carlo, matrix products, and finite networks."""

import itertools
import json
import math
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special

import fisher_jax as fj
from fisher_jax.theory import (
    conditional,
    duals,
    learning_rate,
    masks,
    normalization,
    one_hidden_layer,
    separability,
    spectra,
    stability,
)
from fisher_jax.theory.concatenation import concatenating
from fisher_jax.theory.mlp import mlp
from fisher_jax.theory.network import OPTIONS, network
from fisher_jax.theory.recursion import Gate
from fisher_jax.theory.residual import skip_one, skip_one_post, skip_two

RELU = Gate(duals.dual("relu"))
D = 256

# --- reference numbers ------------------------------------------------------------------------------------------------

# (θ₁, θ₂)/D by depth and cosine of the inputs, made by another program.
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
        ("mlp", {"samples": None, "kernel": [[1.0, 2.0], [2.0, 1.0]]}, "is no matrix of inner products"),
        ("mlp", {"samples": None, "kernel": [[1.0, math.nan], [0.0, 1.0]]}, "kernel has 1 NaN"),
        ("mlp", {"samples": 3, "kernel": [[1.0, 0.0], [0.0, 1.0]]}, "samples=3 differs from the kernel"),
        ("mlp", {"samples": None, "x": np.ones((3, 5))}, "inputs=64 differs from x of shape"),
        ("resmlp", {"survival": 0.5, "masks": fj.Average(2000, jax.random.key(0))}, "8 samples times 2000 draws"),
        ("mlp", {"output_norm": "batch", "bn": "train"}, "for given outputs"),
        ("mlp", {"dropout": 0.5, "masks": "average", "likelihood": "categorical"}, "random masks with softmax"),
        ("mlp", {"likelihood": "poisson"}, "likelihood='poisson' is not covered"),
        ("mlp", {"likelihood": "categorical", "outputs": 3}, "key is missing"),
        ("mlp", {"width": 2, "samples": 10**4}, "exceed the .* parameters"),
        ("resmlp", {"width": 8}, "width=8 differs from the 64 inputs"),
        ("resmlp", {"skip": 1, "residual": "fixup"}, "residual='fixup' with skip=1 is not covered"),
        ("resmlp", {"survival": 0.5, "masks": "average"}, "key is missing"),
        ("resmlp", {"survival": 0.5, "dropout": 0.5, "masks": "average", "key": 0}, "together are not covered"),
        ("mlp", {"likelihood": "categorical", "key": 0}, "outputs=1 with softmax: its only probability is one"),
        ("mlp", {"likelihood": "categorical", "outputs": 300, "key": 0}, "2400 samples times outputs .* or give k"),
        ("mlp", {"k": 0}, "k=0 is below 1"),
        ("mlp", {"dropout": "much"}, "dropout='much' is not a number; give a number"),
        ("mlp", {"weight_variance": -1.0}, "weight_variance=-1.0 is not a number; give a number >= 0"),
        ("resmlp", {"variances": 2.0}, "variances=2.0 is not two numbers; give two numbers >= 0"),
        ("resmlp", {"scale": "width"}, "scale='width' is not a number"),
        ("resmlp", {"gain": math.nan}, "gain=nan is not a number"),
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


@pytest.mark.parametrize("name, options", [
    ("mlp", {"depth": 3}),
    ("mlp", {"depth": 3, "likelihood": "categorical", "draws": 3}),
    ("mlp", {"dropout": 0.3, "masks": fj.Average(3, jax.random.key(0))}),
    ("resmlp", {"survival": 0.7, "masks": "one"}),
    ("resmlp", {"survival": 0.7, "masks": fj.Average(3, jax.random.key(0))}),
    ("resmlp", {"survival": 0.7, "masks": "average", "draws": 5}),
])  # fmt: skip
def test_the_k_largest_are_those_of_all(name, options):
    x = np.random.default_rng(0).normal(size=(12, 40)) + 0.3
    samples = {"x": x}
    if options.get("masks") == "average":
        samples = {"inputs": 40, "samples": 12, "cosine": 0.1}
    options = {"outputs": 3, "key": jax.random.key(0)} | samples | options
    law, some = fj.theory.predict(name, **options), fj.theory.predict(name, k=7, **options)
    assert some.expanded(9) == pytest.approx(np.r_[law.expanded(7), np.nan, np.nan], rel=1e-9, nan_ok=True)
    names = ("trace", "dual_size", "size", "outliers", "deviation", "bias")
    assert [getattr(some, n) for n in names] == [getattr(law, n) for n in names]
    assert np.isnan(some.frobenius) and "as far as predicted" in repr(some)
    assert fj.theory.predict(name, k=10**6, **options).expanded(40) == pytest.approx(law.expanded(40), nan_ok=True)


def test_values_by_rank():
    law = fj.theory.predict("resmlp", inputs=64, outputs=3, samples=2)
    assert law.expanded(8).tolist()[:6] == [float(law.values[0])] * 3 + [float(law.values[1])] * 3
    assert np.isnan(law.expanded(8)[6:]).all() and law.expanded(2).tolist() == [float(law.values[0])] * 2


def test_the_k_largest_warn_as_all_do():
    """Whether λ_max stands out depends on the mean of the bulk, which the k largest do not show."""
    for shape, expected in (((24, 64), 0), ((12, 400), 1)):
        x = np.random.default_rng(0).normal(size=shape)
        for k in (None, 3):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                fj.theory.predict("mlp", x=x, activation="erf", weight_variance=1.5, k=k)
            assert sum("does not stand out" in str(w.message) for w in caught) == expected, (shape, k)


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
    ("mlp", {"output_norm": "batch", "bn": "frozen", "depth": 2}),
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
    assert one.frobenius == pytest.approx(other.frobenius, rel=1e-9)
    if options.get("masks") == "one":  # expectations of eigenvalues: those of their squares are larger
        assert one.frobenius > 1.1 * np.linalg.norm(flat[0])
    else:
        assert one.frobenius == pytest.approx(np.linalg.norm(flat[0]), rel=1e-9)


def test_kernels_are_differentiable(x64):
    """∂θ₁/∂σ_w² = L (L − 1) M/2 at He's point; others by central differences; equal and nearly equal inputs among them."""
    L = 5
    slope = jax.grad(lambda v: mlp(0.3, [D] * L, RELU, weight_variance=v).theta[0, 0])(2.0)
    assert float(slope) == pytest.approx(D * L * (L - 1) / 2, rel=1e-12)
    K = jnp.array([[1.0, 1.0, 0.2], [1.0, 1.0, 0.2], [0.2, 0.2, 0.8]])
    tanh = Gate(duals.dual("tanh", 15))
    for f in (
        lambda v: jnp.sum(skip_two(K, 4, 3, RELU, variances=(v, 1.0), scale=0.9).theta),
        lambda v: jnp.sum(skip_two(K, 4, 2, tanh, variances=(v, 1.0)).theta),
        lambda v: jnp.sum(skip_one_post(K * v, 4, 2, tanh).theta),
        lambda v: jnp.sum(concatenating(K * v, 4, 3, 3, RELU).theta),
    ):
        step = 1e-5
        assert float(jax.grad(f)(1.7)) == pytest.approx(float(f(1.7 + step) - f(1.7 - step)) / (2 * step), rel=1e-7)


@pytest.mark.parametrize("ntk", [False, True])
@pytest.mark.parametrize("name", ["mlp", "skip two", "pre", "post", "concatenating"])
def test_linear_kernels_are_derivatives_of_the_output_covariance(name, ntk, x64):
    """A linear network is of first order in each weight: Θ = Σ (fan_in, or σ²) ∂E[f f']/∂σ², over the weight matrices."""
    K, linear, L = jnp.array([[1.0, 0.4], [0.4, 1.3]]), Gate(duals.dual("linear")), 3
    d, M, k = 5.0, 7.0, 4.0
    shared = {"gain": 0.8, "scale": 1.2, "ntk": ntk}

    def tangent(v):
        if name == "mlp":
            return mlp(K, [d, M, M], linear, weight_variance=v[0], readout_variance=v[1], ntk=ntk)
        if name == "skip two":
            return skip_two(K, d, L, linear, variances=(v[0], v[2]), readout_variance=v[1], **shared)
        if name == "pre":
            return skip_one(K, d, M, L, linear, variance=v[0], readout_variance=v[1], input_variance=v[2], **shared)
        if name == "post":
            return skip_one_post(K, d, L, linear, variance=v[0], readout_variance=v[1], **shared)
        return concatenating(K, d, k, L if ntk else 1, linear, variance=v[0], readout_variance=v[1], ntk=ntk)

    def covariance(v):
        found = tangent(v)
        return found.forward * 4**found.forward_exponent

    v = jnp.array([0.7, 1.4, 0.6])
    hidden, last, third = jnp.moveaxis(jax.jacobian(covariance)(v), -1, 0)
    fan_in = {"mlp": (M, M, 0), "skip two": (d, d, d), "pre": (M, M, d), "post": (d, d, 0), "concatenating": (d, d + k, 0)}[
        name
    ]
    first, second, other = v if ntk else fan_in
    expected = first * hidden + second * last + other * third
    if name == "mlp" and not ntk:  # the first of the two hidden layers has another width
        expected = expected + (d - M) * hidden / 2
    assert np.asarray(tangent(v).theta) == pytest.approx(np.asarray(expected), rel=1e-12)


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
    shifts = skip_two(0.0, 100, L, RELU, variances=(2 / L, 0.0), learned_shift=True)
    assert np.asarray(shifts.theta[0]) == pytest.approx([200 + L, 100 / np.pi + L], rel=1e-10)
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


# --- random masks -----------------------------------------------------------------------------------------------------


def test_dropouts_three_kernels(x64):
    """θ₁, θ_s, θ₂ of a ReLU MLP of four layers at p = 1/2, and λ_max of averages over twelve and over all draws."""
    pairs, second = masks.doubled(jnp.eye(2), 0.5)
    theta = np.asarray(mlp(pairs, [1] * 4, Gate(duals.dual("relu"), second)).theta)
    assert theta[0, 0] == pytest.approx(4 / 0.5**3, rel=1e-12)
    assert [theta[0, 2], theta[0, 1], theta[0, 3]] == pytest.approx([3.469, 2.254, 2.254], rel=1e-3)
    some, all_, mean = (
        fj.theory.predict("mlp", inputs=D, width=D, samples=8, depth=4, dropout=0.5, masks=chosen).lambda_max / D
        for chosen in (fj.Average(12, jax.random.key(0)), "average", "mean")
    )
    assert [some, all_, mean] == pytest.approx([2.703, 2.406, 1.428], rel=1e-3)
    for form, depth, scale in (("raw", 5, 0.7**4), ("inverted", 5, 0.7**-4)):
        law = fj.theory.predict(
            "mlp", inputs=D, width=D, samples=8, depth=depth, dropout=0.3, dropout_form=form, masks="average"
        )
        assert law.trace == pytest.approx(depth * D * scale, rel=1e-12)
    residual = fj.theory.predict(
        "resmlp", inputs=D, samples=6, depth=5, dropout=0.5, masks=fj.Average(12, jax.random.key(0))
    )
    assert residual.trace == pytest.approx(D * (3**5 + 1.5 * 10 * 3**4), rel=1e-12)
    assert residual.lambda_max == pytest.approx(151.9 * D, rel=1e-3)


def test_a_masked_kernel_by_counting_all_masks(x64):
    """Linear branches: the forward kernel averaged over all 2^L pairs of masks grows as λ₊ exactly."""
    L, p = 6, 0.8
    b = np.array(list(itertools.product([0.0, 1.0], repeat=L)))
    P = np.prod(np.where(b > 0, p, 1 - p), axis=1)
    tangent = skip_two(jnp.ones((64, 64)), 1, L, Gate(duals.dual("linear")), variances=(1.0, 1.0), scale=b.T)
    K = np.asarray(tangent.forward) * 4 ** float(tangent.forward_exponent)
    growth = masks.linear_growth(p)
    assert growth == pytest.approx(1.7062, rel=1e-4)
    assert np.linalg.eigvalsh(K * np.sqrt(np.outer(P, P)))[-1] == pytest.approx(growth**L, rel=1e-12)


def test_stochastic_depths_five_numbers():
    """(A) trace in closed form, (B) by enumeration of all masks, (C) between, (D) the mean network, (E) the median."""
    L, p, N = 4, np.array([0.9, 0.8, 0.7, 0.6]), 6
    options = {"inputs": D, "samples": N, "depth": L, "survival": 0.6, "survival_schedule": "linear"}
    found = fj.theory.over_masks("resmlp", draws=200, key=jax.random.key(0), **options)
    assert found.trace / D == pytest.approx(float(masks.depth_trace(p)), rel=1e-6)
    expected = 0.0
    plain = [1 / N + 0 / N]  # no block: the readout of independent inputs
    plain += [fj.theory.predict("resmlp", inputs=D, samples=N, depth=n).lambda_max / D for n in range(1, L + 1)]
    for b in itertools.product([0, 1], repeat=L):
        expected += np.prod(np.where(np.array(b) > 0, p, 1 - p)) * plain[sum(b)]
    assert found.average_of_largest / D == pytest.approx(expected, rel=1e-12)
    assert found.largest_of_typical / D == pytest.approx(plain[3], rel=1e-12)
    assert found.largest_of_mean_network < found.largest_of_average < found.average_of_largest
    uniform = fj.theory.predict("resmlp", inputs=D, samples=N, depth=8, survival=0.5)
    assert (uniform.trace / D, uniform.lambda_max / D) == pytest.approx((1.25**8 + 1.5 * 8 * 0.25 * 1.25**7, 8.17), rel=1e-3)
    with jax.enable_x64(True):
        draws = np.random.default_rng(0).random((40_000, L)) < p
        counted = np.bincount(draws.sum(1), minlength=L + 1) / len(draws)
        assert np.asarray(masks.survivors(p)) == pytest.approx(counted, abs=0.012)
        assert float(masks.survivors(p).sum()) == pytest.approx(1, rel=1e-12)


# --- batch statistics -------------------------------------------------------------------------------------------------


def test_batch_statistics_in_the_limit_of_large_batches(x64):
    """Products over the blocks in closed form, and their growth L^{π/(π−1)}; the variance is not (l + 2)/2."""
    L = 16
    gate = Gate(duals.dual("relu"), norm=normalization.by_mean_variance(duals.dual("relu"), np.inf))
    theta = np.asarray(skip_two(0.0, 1, L, gate).theta)
    block = np.arange(L)
    v = 1 + (0.5 - 1 / (2 * np.pi)) * block
    B1 = np.r_[np.cumprod((1 + 1 / (2 * v))[::-1])[::-1], 1.0]
    B2 = np.r_[np.cumprod((1 + 1 / (4 * v))[::-1])[::-1], 1.0]
    theta1 = 1 + L / 2 + np.sum(B1[1:] * (0.5 + (1 + block / 2) / (4 * v)))
    theta2 = L / (2 * np.pi) + np.sum(B2[1:] * (1 / (2 * np.pi) + block / (2 * np.pi) / (8 * v)))
    assert theta[0] == pytest.approx([theta1, theta2], rel=1e-12)
    assert theta[0] == pytest.approx([47.7006, 7.6307], rel=1e-5)
    # A L^α − B L, α = π/(π − 1): the local exponent comes down to α as L^(1 − α).
    deep = [float(skip_two(0.0, 1, depth, gate).theta[0, 0]) for depth in (2000, 4000, 8000)]
    alpha = np.pi / (np.pi - 1)
    above = np.diff(np.log2(deep)) - alpha
    assert 0 < above[1] < 0.012 and above[1] / above[0] == pytest.approx(2 ** (1 - alpha), abs=0.02)


def test_batch_statistics_of_a_finite_batch_equal_monte_carlo(x64):
    """Units normalized by their own deviation: 10⁵ drawn units."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(7, 9))
    K = root @ root.T
    V, Vd = normalization.by_own_variance(duals.dual("relu"))(jnp.asarray(K))
    u = rng.multivariate_normal(np.zeros(7), K, 100_000)
    u = u - u.mean(1, keepdims=True)
    scale = 1 / np.sqrt(np.mean(u**2, axis=1))
    for found, h in ((V, np.maximum(u, 0) * scale[:, None]), (Vd, (u > 0) * scale[:, None])):
        products = h[:, :, None] * h[:, None, :]
        assert (np.abs(products.mean(0) - np.asarray(found)) < 4.5 * products.std(0) / len(u) ** 0.5 + 1e-9).all()
    # A large batch has the deviation of its mean.
    K = np.eye(80) * 2 + 0.5
    own, mean = (
        f(jnp.asarray(K))
        for f in (normalization.by_own_variance(duals.dual("relu")), normalization.by_mean_variance(duals.dual("relu")))
    )
    assert np.asarray(own[0]) == pytest.approx(np.asarray(mean[0]), rel=3e-2)
    assert np.asarray(own[1]) == pytest.approx(np.asarray(mean[1]) * (1 + 2 / 79), rel=3e-3)


# --- from kernels to spectra ------------------------------------------------------------------------------------------


def test_levels_means_and_clusters_are_eigenvalues(x64):
    N, C, theta1, theta2 = 12, 3, 5.0, 1.5
    theta = np.full((N, N), theta2) + (theta1 - theta2) * np.eye(N)
    top, bulk = spectra.two_levels(theta1, theta2, N)
    assert np.asarray(spectra.eigenvalues(jnp.asarray(theta))) == pytest.approx([float(top), *[float(bulk)] * (N - 1)])
    H = np.eye(N) - 1 / N
    assert np.asarray(spectra.mean_subtracted(jnp.asarray(theta))) == pytest.approx(H @ theta @ H, abs=1e-12)
    each, within, between = N // C, 2.5, 0.7
    blocks = np.kron(np.eye(C), np.full((each, each), within - between)) + between + (theta1 - within) * np.eye(N)
    expected = spectra.clustered(theta1, within, between, N, C)
    values = np.linalg.eigvalsh(blocks / N)[::-1]
    assert values == pytest.approx(np.repeat([float(e) for e in expected], [1, C - 1, N - C]))
    # Normalized outputs: the kernel through the Jacobian of the normalization.
    rng = np.random.default_rng(0)
    root, f = rng.normal(size=(N, N)), jnp.asarray(rng.normal(size=N))
    J = jax.jacobian(lambda f: (f - jnp.mean(f)) / jnp.std(f))(f)
    found = spectra.normalized(jnp.asarray(root @ root.T), f)
    assert np.asarray(found) == pytest.approx(np.asarray(J @ root @ root.T @ J.T), rel=1e-9, abs=1e-9)


def test_softmax_has_one_outlier_less_than_classes(x64):
    N, C, theta1, theta2 = 40, 4, 12.0, 4.5
    p = scipy.special.softmax(np.random.default_rng(0).normal(size=(N, C)), axis=1)
    theta = np.full((N, N), theta2) + (theta1 - theta2) * np.eye(N)
    G = np.zeros((N, C, N, C))
    w, v = np.linalg.eigh(np.array([np.diag(row) - np.outer(row, row) for row in p]))
    roots = (v * np.sqrt(np.maximum(w, 0))[:, None, :]) @ np.swapaxes(v, 1, 2)
    for n, m in itertools.product(range(N), range(N)):
        G[n, :, m] = theta[n, m] * roots[n] @ roots[m] / N
    expected = np.linalg.eigvalsh(G.reshape(N * C, N * C))[::-1]
    values = np.asarray(spectra.softmax_eigenvalues(jnp.asarray(theta), jnp.asarray(p)))
    assert values == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert spectra.softmax_largest(theta, p, 9) == pytest.approx(expected[:9], rel=1e-9)
    root = np.random.default_rng(1).normal(size=(N, N))
    exact = np.linalg.eigvalsh(root @ root.T)[::-1] / N
    assert spectra.largest(root @ root.T, 9) == pytest.approx(exact[:9], rel=1e-9)
    outliers = np.asarray(spectra.softmax_outliers(theta1, theta2, jnp.asarray(p)))
    assert outliers.shape == (C - 1,) and outliers == pytest.approx(values[: C - 1], rel=2e-2)
    assert values[C - 1] < 0.3 * values[C - 2]
    assert values.sum() == pytest.approx(theta1 * np.mean(1 - np.sum(p**2, 1)), rel=1e-9)


def test_softmax_of_drawn_outputs(x64):
    """Differences of log-probabilities are Gaussian of twice the covariance, also where samples are equal or too many."""
    root = np.random.default_rng(0).normal(size=(8, 3))
    root[1] = root[0]
    covariance = root @ root.T
    p = np.asarray(spectra.softmax_probabilities(jnp.asarray(covariance), 2, jax.random.key(0), 20_000))
    assert p.shape == (20_000, 8, 2) and p[:, 0] == pytest.approx(p[:, 1], abs=1e-5)
    assert p.sum(2) == pytest.approx(1, rel=1e-12)
    u = np.log(p[..., 0]) - np.log(p[..., 1])
    products = u[:, :, None] * u[:, None, :]
    assert (np.abs(products.mean(0) - 2 * covariance) < 4.5 * products.std(0) / 20_000**0.5).all()


def test_the_edge_after_mean_subtraction(x64):
    """Against the eigenvalues of the kernel of Gaussian inputs; N/d = 1/2."""
    N, d = 200, 400
    x = np.random.default_rng(0).normal(size=(N, d))
    x *= (d / np.sum(x**2, 1, keepdims=True)) ** 0.5

    def kernel(c):
        return mlp(c, [1] * 3, RELU).theta[0, 1]

    edge = spectra.mean_subtracted_edge(3.0, kernel(0.0), jax.grad(kernel)(0.0), N, d)
    K = spectra.mean_subtracted(mlp(x @ x.T / d, [1] * 3, RELU).theta)
    assert float(spectra.eigenvalues(K)[0]) == pytest.approx(float(edge), rel=0.05)


# --- learning rates and stability -------------------------------------------------------------------------------------


def test_learning_rates_on_a_linear_model(x64):
    """Gradient descent with momentum as a matrix; stochastic batches through the exact second moments."""
    rng = np.random.default_rng(0)
    N, d = 5, 3
    X = rng.normal(size=(N, d))
    F = X.T @ X / N
    largest = np.linalg.eigvalsh(F)[-1]
    for beta in (0.0, 0.7):
        for factor, stable in ((0.99, True), (1.01, False)):
            step = factor * learning_rate.gradient_descent(largest, beta)
            companion = np.block([[(1 + beta) * np.eye(d) - step * F, -beta * np.eye(d)], [np.eye(d), np.zeros((d, d))]])
            assert (np.abs(np.linalg.eigvals(companion)).max() < 1) == stable

    def spread(step, batch):
        total = np.zeros((d * d, d * d))
        for rows in itertools.product(range(N), repeat=batch):
            A = np.eye(d) - step * X[list(rows)].T @ X[list(rows)] / batch
            total += np.kron(A, A) / N**batch
        return np.abs(np.linalg.eigvals(total)).max()

    for batch in (1, 2, 4):
        step = learning_rate.stochastic(largest, np.max(np.sum(X**2, 1)), batch)
        assert spread(step, batch) < 1 < spread(4 * step, batch)
    top, bulk = spectra.two_levels(5.0, 1.5, 12)
    assert learning_rate.gain_of_mean_subtraction(5.0, 1.5, 12) == pytest.approx(float(top / bulk))
    assert learning_rate.natural_gradient(3) == 2 / 3
    # Per-layer whitening: F <= blocks · blockdiag(F).
    root = rng.normal(size=(6, 4))
    F, D_ = root @ root.T, np.zeros((6, 6))
    D_[:2, :2], D_[2:4, 2:4], D_[4:, 4:] = F[:2, :2], F[2:4, 2:4], F[4:, 4:]
    assert np.abs(np.linalg.eigvals(np.linalg.solve(D_, F))).max() <= 3 + 1e-9


@pytest.mark.parametrize("kind", ["mlp", "skip one", "skip two"])
def test_stability_bounds_of_linear_networks_hold(kind, x64):
    """|∇ℓ|² <= ρ² R² up and |∇R_S|² >= 2 (σ_min(X)²/N) lo (R_S − R_S*), at random points, by automatic differentiation."""
    rng = np.random.default_rng(0)
    D_, N, L = 4, 6, 3

    def apply(weights, x):
        for W in weights:
            x = x @ (W if kind == "mlp" else jnp.eye(D_) + (W[1] @ W[0] if kind == "skip two" else W)).T
        return x

    @jax.jit
    def risk(weights, x, y):
        return jax.value_and_grad(lambda w: 0.5 * jnp.sum((apply(w, x) - y) ** 2) / len(x))(weights)

    def square(gradient):
        return sum(float(jnp.sum(a**2)) for a in gradient)

    for _ in range(10):
        shape = (2, D_, D_) if kind == "skip two" else (D_, D_)
        weights = [jnp.asarray(0.5 * rng.normal(size=shape)) for _ in range(L)]
        x, y = rng.normal(size=(2, N, D_))
        up, lo, A = (float(a) for a in stability.architecture_factor(weights, kind))
        for n in range(N):
            value, gradient = risk(weights, x[n : n + 1], y[n : n + 1])
            assert square(gradient) <= 2 * float(value) * np.sum(x[n] ** 2) * up * (1 + 1e-9)
        value, gradient = risk(weights, x, y)
        least = 0.5 * np.sum((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2) / N
        pl = np.linalg.svd(x)[1][-1] ** 2 / N * lo
        assert square(gradient) >= 2 * pl * (float(value) - least) * (1 - 1e-9)
        assert pytest.approx(up / lo) == A


def test_stability_numbers(x64):
    tau, L = 0.3, 8
    rng = np.random.default_rng(0)

    def factor(kind, shape, variance):
        return np.median([
            float(stability.architecture_factor(rng.normal(size=shape) * (variance / 10) ** 0.5, kind)[2]) for _ in range(9)
        ])  # fmt: skip

    # The ordering from eight matrices on.
    order = [
        factor("mlp", (8, 10, 10), 1.0),
        factor("skip one", (8, 10, 10), 0.25),
        factor("skip two", (4, 2, 10, 10), 0.25),
    ]
    assert order[0] > 1e3 * order[1] > 1e5 * order[2]
    for kind, shape in (("skip one", (L, 3, 3)), ("skip two", (L // 2, 2, 3, 3))):
        W = rng.normal(size=shape)
        W *= tau / np.linalg.norm(W, 2, axis=(-2, -1), keepdims=True)
        A = float(stability.architecture_factor(W, kind)[2])
        s = np.linalg.svd(W, compute_uv=False)
        conditioning = np.max(np.sum(s[..., 0] ** 2, -1) / np.sum(s[..., -1] ** 2, -1)) if kind == "skip two" else 1
        assert 1 <= A <= stability.architecture_bound(L, tau, kind) * conditioning
    W = rng.normal(size=(3, 2, 4, 4)) / 2
    up, lo = 0.0, 0.0
    for b in range(3):
        others = [np.linalg.svd(np.eye(4) + W[j, 1] @ W[j, 0], compute_uv=False) ** 2 for j in range(3) if j != b]
        own = np.linalg.svd(W[b], compute_uv=False) ** 2
        up += (own[0, 0] + own[1, 0]) * np.prod([s[0] for s in others])
        lo += (own[0, -1] + own[1, -1]) * np.prod([s[-1] for s in others])
    assert [float(a) for a in stability.architecture_factor(W, "skip two")] == pytest.approx([up, lo, up / lo])
    # Theta = [[2, 1], [1, 2]]: λ_min = 1.
    assert float(stability.kernel_stability(jnp.array([[2.0, 1.0], [1.0, 2.0]]), 3.0)) == pytest.approx(2 * 3 * 2 / 1)
    assert stability.replace_one(4.0, 0.5, 100) == pytest.approx(0.16)
    assert stability.risk_bound(0.1, 0.0, 1.0, 100, 0.05) == pytest.approx(0.1 + 0.1**0.5)
    assert stability.sgd_stability(1.0, 1.0, 1.0, 100, 11) == pytest.approx(2 / 10 * 2**0.5 * 10)


# --- separability -----------------------------------------------------------------------------------------------------


def test_angles_equal_those_of_the_kernels(x64):
    L, angle = 6, 1.0
    cosine = math.cos(angle)
    kernels = {
        "mlp": mlp(cosine, [1] * (L + 1), RELU),
        "skip two": skip_two(cosine, 1, L, RELU),
        "population": skip_two(cosine, 1, L, RELU, gain=(np.arange(L) + 2) ** -0.5),
        "depth": skip_two(cosine, 1, L, RELU, scale=L**-0.5),
        "concatenating": concatenating(cosine, 4, 2, L, RELU),
    }
    for kind, tangent in kernels.items():
        K = np.asarray(tangent.forward) * 4 ** float(tangent.forward_exponent)
        mix = separability.mixing(kind, L, 0.5)
        assert float(separability.angles(angle, mix)[-1]) == pytest.approx(math.acos(K[0, 1] / K[0, 0]), rel=1e-10)
        scale = {"mlp": 2.0, "concatenating": 1 / 4}.get(kind, 1.0)  # readout variance; norm over the number of units
        assert float(separability.norms(mix)[-1]) * scale == pytest.approx(
            K[0, 0] * ((1 + L * 0.5) / 4 if kind == "concatenating" else 1), rel=1e-10
        )


def test_angles_fall_as_one_over_depth(x64):
    """3π/L, 6π/L, 3π/ln L; values tabulated beforehand."""
    for kind, L, expected in (("mlp", 10, 0.3178), ("mlp", 100, 0.0773), ("mlp", 1000, 0.00919),
                              ("skip two", 100, 0.1345), ("population", 100, 0.4163)):  # fmt: skip
        assert float(separability.angles(0.5, separability.mixing(kind, L))[-1]) == pytest.approx(expected, rel=1e-3)
    deep = separability.angles(0.5, separability.mixing("mlp", 100_000))
    assert float(deep[-1]) * 100_000 == pytest.approx(3 * np.pi, rel=1e-2)
    t = np.linspace(0.1, 3, 5)
    assert np.asarray(separability.coactivation(t)) == pytest.approx(np.asarray(duals.coactivation(jnp.cos(t))) / 2)


def test_distances_and_the_class_error_bound(x64):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5))
    angle = math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert float(separability.distance(a @ a, b @ b, angle)) == pytest.approx(np.sum((a - b) ** 2))
    # The worst case meets the bound: two points each, one of them at the threshold.
    for r in (0.5, 2.0):
        error = 1 / (1 + r**2)
        values, chances = np.array([-r - 1 / r, 0.0]), np.array([error, 1 - error])  # the rarer one lies beyond
        mean = values @ chances
        variance = (values - mean) ** 2 @ chances
        found = separability.class_error_bound(np.ones(1), ([-mean], [mean]), ([[variance]], [[variance]]))
        ratio = -mean / variance**0.5
        assert float(found) == pytest.approx(1 / (1 + ratio**2))
    # And Gaussian classes lie below it.
    shift, S = np.array([1.0, 0.5]), np.array([[1.0, 0.3], [0.3, 0.6]])
    v = np.linalg.solve(S, shift)
    gaussian = scipy.special.ndtr(-(v @ shift) / (v @ S @ v) ** 0.5)
    bound = float(separability.class_error_bound(v, (shift, -shift), (S, S)))
    assert gaussian < bound < 0.5


# --- one hidden layer, one sample -------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi, sizes", [("erf", (24, 24, 24)), ("relu", (16, 24, 12)), ("tanh", (24, 14, 20))])
def test_one_hidden_layer_against_explicit_matrices(phi, sizes):
    """Quantiles of the eigenvalues of `E_x Σ_k ∇f_k ∇f_kᵀ` over 2·10⁴ inputs; one draw of weights of typical norm."""
    n0, n1, n2 = sizes
    rng = np.random.default_rng(0)
    W1, W2 = rng.normal(size=(n1, n0)), rng.normal(size=(n2, n1))
    W1, W2 = W1 * n1**0.5 / np.linalg.norm(W1), W2 * n2**0.5 / np.linalg.norm(W2)
    x = rng.normal(size=(20_000, n0))
    u = x @ W1.T
    h, slope = FUNCTIONS[phi](u), DERIVATIVES[phi](u)
    J = (slope[:, :, None] * x[:, None, :]).reshape(len(x), -1)  # ∂f_k/∂W₁ = W₂[k, i] φ'(u_i) x_j
    first = J.T @ J / len(x) * np.kron(W2.T @ W2, np.ones((n0, n0)))
    cross = np.einsum("ki,sij,sm->ijkm", W2, J.reshape(-1, n1, n0), h, optimize=True) / len(x)
    cross = cross.reshape(n1 * n0, n2 * n1)
    F = np.block([[first, cross], [cross.T, np.kron(np.eye(n2), h.T @ h / len(x))]])
    eigenvalues = np.linalg.eigvalsh(F)
    values, weights = one_hidden_layer.levels(duals.dual(phi), sizes)
    assert weights.sum() == pytest.approx(1, rel=1e-9)
    outliers = n2 if phi == "relu" else 0
    measured, bulk = eigenvalues[: len(eigenvalues) - outliers], values < (3.0 if outliers else np.inf)
    assert values @ weights == pytest.approx(eigenvalues.mean(), rel=0.03)
    if outliers:
        assert eigenvalues[-outliers:].min() > 1.5 * measured.max()
        assert 0.97 < eigenvalues[-outliers:].mean() / values[0] < 1.15
    for share in (0.3, 0.5, 0.7, 0.9):
        expected = one_hidden_layer.quantile(values[bulk], weights[bulk], share)
        assert abs(np.quantile(measured, share) - expected) < 0.12 * measured.max()
        if len(set(sizes)) == 1:  # repeated values, of unequal sizes, spread; the distance falls as 1/n
            assert abs(np.mean(measured < expected) - share) < 2.7 / n1


def test_linear_one_hidden_layer_is_half_zeros():
    """The rest are the sums of two Marchenko-Pastur values: mean 2, second moment 2·2 + 2, support up to 8."""
    values, weights = one_hidden_layer.levels(duals.dual("linear"), (30, 30, 30))
    zero = values < 1e-12
    assert weights[zero].sum() == pytest.approx(0.5, rel=1e-9)
    assert values @ weights == pytest.approx(1.0, rel=1e-6) and values**2 @ weights == pytest.approx(3.0, rel=1e-6)
    assert 7.9 < values[0] < 8
    k = one_hidden_layer.constants(duals.dual("erf"))
    assert k[1:] == pytest.approx((0.46456, 0.56941, 0.42441), rel=1e-4)


def test_density_and_levels_are_the_same_law():
    """G(z) as a double integral and as the mean over the levels."""
    z = np.array([0.3 + 0.1j, 1.5 + 0.05j, -1.0 + 0.2j])
    values, weights = one_hidden_layer.levels(duals.dual("tanh"), (9, 9, 9))
    direct = np.array([weights @ (1 / (p - values)) for p in z])
    assert one_hidden_layer.stieltjes(duals.dual("tanh"), z) == pytest.approx(direct, rel=1e-9)
    x = np.linspace(-3, 8, 4000)
    rho = one_hidden_layer.density(duals.dual("tanh"), x)
    assert np.sum(rho) * (x[1] - x[0]) == pytest.approx(1, abs=0.01)


def test_one_sample_of_an_orthogonal_network():
    """All M eigenvalues of one sample are L |x|², by the engine; for any network they are those of the sum over layers."""
    M, L = 24, 6
    x = np.random.default_rng(0).normal(size=(1, M)).astype(np.float32)
    options = {"depth": L, "width": M, "activation": "linear", "weight_variance": 1.0, "weights": "orthogonal"}
    model = fj.models.build("mlp", inputs=M, outputs=M, key=jax.random.key(0), **options)
    exact = np.asarray(fj.spectrum(fj.fisher(model, x, fj.Gaussian())).values)
    assert exact == pytest.approx(np.full(M, conditional.isometric(L, float(np.sum(x**2)))), rel=1e-4)
    rng = np.random.default_rng(1)
    W = [rng.normal(size=(5, 4)), rng.normal(size=(3, 5))]
    v = rng.normal(size=4)
    h = W[0] @ v
    J = np.hstack([np.kron(W[1], v[None]), np.kron(np.eye(3), h[None])])
    with jax.enable_x64(True):
        assert np.asarray(conditional.kernel([v @ v, h @ h], [W[1], np.eye(3)])) == pytest.approx(J @ J.T)


# --- finite networks --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:theory of")
@pytest.mark.parametrize("name, options, fisher, more, largest", [
    ("mlp", {"depth": 4, "activation": "erf", "weight_variance": 2.0, "bias_variance": 0.3, "parametrization": "ntk"}, {},
     {}, True),
    ("resmlp", {"depth": 3, "skip": 1, "form": "post", "gain": 0.7, "scale": 0.8}, {}, {}, True),
    ("resmlp", {"depth": 3, "activation": "tanh", "variances": (3.0, 1.0)}, {}, {}, False),
    ("mlp", {"depth": 4, "norm": "batch"}, {"bn": "frozen"}, {"samples": 32}, True),
    ("mlp", {"depth": 3}, {}, {"outputs": 3, "likelihood": "categorical"}, True),
    ("mlp", {"depth": 3, "readout_variance": 0.5, "output_norm": "batch"}, {"bn": "frozen"}, {"samples": 32}, True),
    ("resmlp", {"depth": 3, "skip": 1, "form": "post", "dropout": 0.4, "dropout_form": "raw"},
     {"masks": fj.Average(3, jax.random.key(5), shared=True)}, {}, True),
])  # fmt: skip
def test_finite_networks_as_predicted(name, options, fisher, more, largest):
    """32 networks of width 256: traces within four standard errors, the mean of the C largest eigenvalues within 8 %."""
    more = {"samples": 12, "outputs": 1, "likelihood": "gaussian"} | more
    outliers = more["outputs"] - (more["likelihood"] == "categorical")
    likelihood = fj.Categorical() if more["likelihood"] == "categorical" else fj.Gaussian()

    @jax.jit
    @jax.vmap
    def one(key):
        x = jax.random.normal(jax.random.fold_in(key, 0), (more["samples"], D))
        model = fj.models.build(name, inputs=D, outputs=more["outputs"], key=key, **options)
        K = fj.fisher(model, x, likelihood, **fisher).gram()
        return jnp.trace(K), jnp.mean(jnp.linalg.eigvalsh(K)[-outliers:])

    measured = np.array(one(jax.random.split(jax.random.key(1), 32)))
    law = fj.theory.predict(name, inputs=D, key=jax.random.key(0), **more, **options, **fisher)
    assert law.outliers == outliers
    error = measured.std(1) / 32**0.5
    assert abs(measured[0].mean() - law.trace) < 4 * error[0] < (0.3 if "output_norm" in options else 0.15) * law.trace
    assert measured[0].std() < 1.5 * law.deviation * law.trace
    if largest:
        top = np.repeat(law.values, law.counts.astype(int))[:outliers].mean()
        assert top * 0.96 - 3 * error[1] < measured[1].mean() < top * 1.08 + 3 * error[1]


@pytest.mark.filterwarnings("ignore:theory of")
@pytest.mark.parametrize("name, options", [("resmlp", {"depth": 2}), ("mlp", {"depth": 4, "width": 48})])
def test_the_excess_of_small_networks(name, options):
    """λ_max/trace of 400 networks of width 48 lies above by the fitted share, and single traces vary as estimated."""
    N, width = 8, 48

    @jax.jit
    @jax.vmap
    def one(key):
        x = jax.random.normal(jax.random.fold_in(key, 0), (N, width))
        K = fj.fisher(fj.models.build(name, inputs=width, outputs=1, key=key, **options), x, fj.Gaussian()).gram()
        return jnp.trace(K), jnp.linalg.eigvalsh(K)[-1]

    trace, largest = np.array(one(jax.random.split(jax.random.key(2), 400)))
    law = fj.theory.predict(name, inputs=width, samples=N, **options)
    excess = largest.mean() / trace.mean() * law.effective_rank - 1
    assert excess == pytest.approx(law.bias, abs=0.03) and law.bias > 0.08
    assert 0.5 < trace.std() / trace.mean() / law.deviation < 1


@pytest.mark.filterwarnings("ignore:theory of")
def test_the_largest_alone_are_those_of_the_whole_also_where_they_repeat():
    """Cyclic shifts of one signal: the kernel is circulant, its eigenvalues come in pairs."""
    signal = np.random.default_rng(0).normal(size=64)
    x = np.stack([np.roll(signal, i) for i in range(64)])
    whole = fj.theory.predict("mlp", x=x, depth=3).values
    assert whole[1] == pytest.approx(whole[2], rel=1e-9) and whole[3] < 0.99 * whole[2]
    for k in (1, 2, 3, 4, 7, 20):
        assert fj.theory.predict("mlp", x=x, depth=3, k=k).values == pytest.approx(whole[:k], rel=1e-5)


@pytest.mark.filterwarnings("ignore:theory of")
def test_beyond_floats_moments_are_infinite():
    assert fj.theory.predict("resmlp", inputs=2000, samples=50, depth=600).second_moment == math.inf


def test_moments_of_softmax_are_expectations_over_the_outputs():
    """‖F‖² = Σ_nm Θ_nm² tr(Q_n Q_m)/N² for each draw of the outputs; N eigenvalues are zero for certain."""
    N, C, key = 6, 3, jax.random.key(3)
    x = np.random.default_rng(0).normal(size=(N, 64))
    law = fj.theory.predict("mlp", x=x, depth=3, outputs=C, likelihood="categorical", draws=4, key=key)
    with jax.enable_x64(True):
        net = fj.theory.network.network("mlp", 64, C, {"depth": 3})
        tangent = net.tangent(jnp.asarray(x @ x.T / 64), net.gate())
        P = np.asarray(fj.theory.spectra.softmax_probabilities(tangent.forward * 4.0**tangent.forward_exponent, C, key, 4))
        theta = np.asarray(tangent.scaled) * 4.0 ** float(tangent.exponent)
    Q = np.einsum("snk,kl->snkl", P, np.eye(C)) - P[..., :, None] * P[..., None, :]
    squares = np.einsum("nm,snkl,smlk->s", theta**2, Q, Q) / N**2
    traces = np.einsum("n,snkk->s", np.diagonal(theta), Q) / N
    assert law.frobenius**2 == pytest.approx(squares.mean(), rel=1e-6) and law.dual_size == N * (C - 1)
    assert law.trace == pytest.approx(traces.mean(), rel=1e-6)
    assert law.deviation**2 - 2.5 * 3 / 256 == pytest.approx(traces.var(ddof=1) / traces.mean() ** 2, rel=1e-6)


def test_moments_of_one_subnetwork_are_expectations_over_how_many_branches_survive():
    from scipy.stats import binom

    arguments = {"inputs": 256, "samples": 8}
    law = fj.theory.predict("resmlp", depth=4, survival=0.8, masks="one", **arguments)
    plain = [fj.theory.predict("resmlp", depth=n, **arguments) for n in (1, 2, 3, 4)]
    # Without branches the readout alone is trained: K = I.
    traces, squares = [256.0] + [p.trace for p in plain], [256.0**2 / 8] + [p.frobenius**2 for p in plain]
    chance = binom.pmf(np.arange(5), 4, 0.8)
    assert law.trace == pytest.approx(chance @ traces, rel=1e-9) and law.frobenius**2 == pytest.approx(
        chance @ squares, rel=1e-9
    )
    spread = chance @ np.square(traces) / (chance @ traces) ** 2 - 1
    alike = fj.theory.predict("resmlp", depth=4, survival=0.8, masks="typical", **arguments)
    assert law.deviation**2 == pytest.approx(alike.deviation**2 + spread, rel=1e-2)


def test_means_over_features_count_where_the_activation_comes_last(x64):
    """48 networks on inputs of equal norm whose features have a mean: the stream adds to it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 128)) + 0.5
    x *= 128**0.5 / np.linalg.norm(x, axis=1, keepdims=True)
    options = {"depth": 3, "skip": 1, "form": "post"}
    found = fj.experiments.ensemble("resmlp", x, fj.Gaussian(), seeds=48, key=jax.random.key(0), scanned=True, **options)
    traces, law = found.sum(axis=1), fj.theory.predict("resmlp", x=x, **options)
    error = traces.std(ddof=1) / 48**0.5
    without = fj.theory.predict("resmlp", kernel=x @ x.T / 128, inputs=128, **options)
    assert abs(traces.mean() - law.trace) < 4 * error < 0.5 * (law.trace - without.trace)


def test_noise_scales_the_law():
    plain, quiet = (fj.theory.predict("mlp", inputs=32, samples=4, likelihood=fj.Gaussian(s)) for s in (1.0, 0.5))
    assert quiet.values == pytest.approx(4 * plain.values) and quiet.trace == pytest.approx(4 * plain.trace)
    assert plain.log_lambda_max + math.log(4) == pytest.approx(math.log(quiet.lambda_max), rel=1e-12)
    assert quiet.log_lambda_max == pytest.approx(math.log(quiet.lambda_max), rel=1e-12)
