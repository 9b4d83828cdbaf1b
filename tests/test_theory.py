"""Theory against its reference numbers, closed forms, Monte Carlo, matrix products, and finite networks."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special

import fisher_jax as fj
from fisher_jax.theory import duals
from fisher_jax.theory.mlp import mlp
from fisher_jax.theory.network import OPTIONS, network
from fisher_jax.theory.recursion import Gate

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
