"""Moments against eigenvalues from NumPy in float64: exact where they say so, within their intervals elsewhere."""

import dataclasses
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import zoo
from cases import LIKELIHOODS, data, function

import fisher_jax as fj
from fisher_jax.moments import ROWS

# The package has the function under this name.
module = sys.modules["fisher_jax.moments"]

KEY = jax.random.key(2)


def truth(values):
    """All fields from the eigenvalues."""
    values = np.asarray(values, np.float64)
    trace, square, largest = values.sum(), (values**2).sum(), values.max()
    return {
        "trace": trace,
        "mean_eigenvalue": trace / values.size,
        "second_moment": square / values.size,
        "frobenius": square**0.5,
        "lambda_max": largest,
        "effective_rank": trace / largest,
        "participation_ratio": trace**2 / square,
        "stable_rank": square / largest**2,
    }


def check(found, values, exact):
    for name, value in truth(values).items():
        estimate = getattr(found, name)
        assert estimate.lower <= value <= estimate.upper, (name, estimate, value)
        assert estimate.lower <= estimate.value <= estimate.upper and estimate.confidence >= 0.95
        if exact:
            assert estimate.exact and estimate.upper - estimate.lower <= 2e3 * oracle.eps("float32") * abs(value)


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
@pytest.mark.parametrize("samples", [4, 40])
def test_fisher_exact(samples, likelihood, x64):
    """Through the dual (12 rows) and the primal (54), without a key."""
    model, apply, params = function("float64")
    x = data("float64", samples)
    F = fj.fisher(model, x, LIKELIHOODS[likelihood])
    found = fj.moments(F)
    check(found, np.linalg.eigvalsh(oracle.exact(likelihood, *oracle.jacobians(apply, params, x))), exact=True)
    assert found.size == F.size and all(getattr(found, name).products == 0 for name, _, _ in ROWS)
    # Of the dual: the same but for the averages over its size.
    dual = fj.moments(F.dual)
    assert dual.size == F.dual.size and dual.frobenius.value == pytest.approx(found.frobenius.value, rel=1e-12)


def test_streamed_and_centred(x64):
    build = {"inputs": 5, "outputs": 3, "key": jax.random.key(1), "depth": 2, "width": 7}
    stored, streamed = fj.models.build("mlp", **build), fj.models.build("mlp", streamed=True, **build)
    x = np.random.default_rng(0).normal(size=(11, 5))
    values = np.linalg.eigvalsh(np.asarray(fj.fisher(stored, x, fj.Categorical()).dense()))
    check(fj.moments(fj.fisher(streamed, x, fj.Categorical())), values, exact=True)
    centred = fj.gradient_covariance(stored, (x, np.arange(11) % 3), fj.Categorical())
    check(fj.moments(centred), np.linalg.eigvalsh(np.asarray(centred.dense())), exact=True)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("name", ["identity", "rank 3", "outliers over a bulk", "condition 1e5", "geometric 0.7"])
def test_arrays(name, scale, dtype):
    values = zoo.SPECTRA[name] / np.max(zoo.SPECTRA[name])
    if dtype == "float32" and name == "condition 1e5" and scale < 1:
        scale = 1e-25
    A = (zoo.prescribed(values) * scale).astype(dtype)
    found = fj.moments(A)
    check(found, np.linalg.eigvalsh(A.astype(np.float64)), exact=True)


@pytest.mark.parametrize("scale", [1e-25, pytest.param(1e25, marks=pytest.mark.slow)])
def test_products_only(scale, dtype, monkeypatch):
    """Too large to be formed: everything is estimated, and the key decides."""
    monkeypatch.setattr(module, "FORMED_BY_PRODUCTS", 100)
    values = scale * 1.0 / np.arange(1, 1501)
    F = zoo.diagonal(values, dtype)
    for seed in range(2):
        found = fj.moments(F, key=jax.random.key(seed))
        check(found, np.asarray(values.astype(dtype), np.float64), exact=False)
        assert not found.trace.exact and found.trace.products == 100 and found.frobenius.products % 2 == 1, (
            "one, and two for each of F²"
        )
        # Worth something: λ_max to 2 %, ‖F‖ to 2 %, the ratios to 15 %.
        for name, width in (("lambda_max", 0.02), ("frobenius", 0.02), ("effective_rank", 0.15), ("stable_rank", 0.1)):
            e = getattr(found, name)
            assert e.upper - e.lower <= 2 * width * e.value, (name, e)
    assert repr(fj.moments(F, key=KEY)) == repr(fj.moments(F, key=KEY)) != repr(fj.moments(F, key=jax.random.key(3)))


def test_intervals_hold_together(x64, monkeypatch):
    """All eight at once, for 40 keys: at most 2 + 3 with any outside."""
    monkeypatch.setattr(module, "FORMED_BY_PRODUCTS", 100)
    # The largest eigenvalue is another test's; here it would take most of the time.
    exact = fj.Estimate(1.0, 1.0, 1.0, 0.0, 0)
    monkeypatch.setattr(module, "_largest", lambda operator, key, progress: exact)
    values = 1.0 / np.arange(1, 401) ** 0.7
    F, expected = zoo.diagonal(values, "float64"), truth(values)
    missed = 0
    for seed in range(40):
        found = fj.moments(F, key=jax.random.key(seed))
        missed += any(not getattr(found, n).lower <= v <= getattr(found, n).upper for n, v in expected.items())
    assert missed <= 5


def test_a_large_matrix_is_formed_and_iterated_on(monkeypatch):
    """Between 2000 and 10 000 rows: ‖F‖ exact from the entries, λ_max by Lanczos on them."""
    monkeypatch.setattr(module, "DIAGONALIZED", 20)
    F = fj.fisher(function("float32")[0], data("float32", 400), fj.Categorical())
    with pytest.raises(fj.ArgumentError, match=r"moments: key=None, but 54 rows are too many"):
        fj.moments(F)
    found = fj.moments(F, key=KEY)
    check(found, np.linalg.eigvalsh(np.asarray(F.dense(), np.float64)), exact=False)
    assert found.frobenius.exact and found.trace.exact and found.frobenius.products == 0


@pytest.mark.parametrize("known, upper", [(np.nan, np.inf), (3.0, 3.0), (1.5, 2.1)])
def test_what_may_have_been_missed_is_in_the_interval(known, upper, monkeypatch):
    def solve(self, operator, k, **options):
        found = fj.eigsh(np.diag(np.r_[2.0, np.ones(9)]).astype(np.float32), k, method=fj.Dense(), key=KEY)
        return dataclasses.replace(found, complete_above=jnp.asarray(known), bounds=jnp.full(k, 0.1))

    monkeypatch.setattr(module.Auto, "solve", solve)
    found = module._largest(zoo.diagonal(np.ones(20), "float32"), KEY, None)
    assert found.upper == pytest.approx(upper) and found.lower == pytest.approx(1.9) and not found.exact


def test_eigenvalues_of_both_signs(x64, monkeypatch):
    A = zoo.prescribed(zoo.SPECTRA["indefinite"])
    values = np.linalg.eigvalsh(A)
    for F in (A, fj.FunctionOperator(jax.tree_util.Partial(jnp.matmul, jnp.asarray(A)), len(A), "float64")):
        found, expected = fj.moments(F), truth(values)
        for name, _, needs_psd in ROWS:
            e = getattr(found, name)
            assert math.isnan(e.value) if needs_psd else e.lower <= expected[name] <= e.upper
        assert repr(found).count("not defined: eigenvalues may be negative") == 3
    # Not said to be psd, but seen to be.
    assert fj.moments(A @ A).stable_rank.exact
    monkeypatch.setattr(module, "FORMED_BY_PRODUCTS", 10)
    monkeypatch.setattr(module, "DIAGONALIZED", 10)
    found = fj.moments(F, key=KEY)
    for name in ("trace", "frobenius", "lambda_max"):
        assert getattr(found, name).lower <= expected[name] <= getattr(found, name).upper


def test_zero_nan_and_one(dtype):
    found = fj.moments(np.zeros((4, 4), dtype))
    assert found.trace.value == found.frobenius.value == found.lambda_max.value == 0
    assert math.isnan(found.effective_rank.value) and "not defined" in repr(found)
    found = fj.moments(fj.FunctionOperator(lambda V: 3 * V, 1, dtype, psd=True))
    check(found, [3.0], exact=True)
    with pytest.raises(fj.ArgumentError, match=r"moments: .* returned NaN or infinity"):
        fj.moments(fj.FunctionOperator(lambda V: V / 0, 5, dtype))
    with pytest.raises(fj.ArgumentError, match=r"moments: operator is a list"):
        fj.moments([1.0])


def test_prints_saves_and_loads(tmp_path):
    found = fj.moments(np.diag(np.array([4.0, 1.0, 1.0, 0.0], np.float32)))
    fj.save(found, tmp_path / "moments.npz")
    again = fj.load(tmp_path / "moments.npz")
    assert isinstance(again, fj.Moments) and dataclasses.asdict(again) == dataclasses.asdict(found)
    lines = repr(found).splitlines()
    assert len(lines) == 10 and any(line.startswith("effective rank, trace/λ_max     1.5 ") for line in lines)
    plain = json.loads(found.to_json())
    assert plain["stable_rank"]["value"] == pytest.approx(18 / 16) and plain["size"] == 4


def test_agrees_with_summarize_and_spectrum():
    F = fj.fisher(function("float32")[0], data("float32"), fj.Categorical())
    found, whole, summary = fj.moments(F), fj.spectrum(F), fj.summarize(F, fj.eigsh(F, 5, key=KEY))
    for name in ("trace", "frobenius", "lambda_max", "effective_rank", "participation_ratio", "second_moment"):
        assert getattr(found, name).value == pytest.approx(getattr(whole, name), rel=1e-4)
    assert found.effective_rank.value == pytest.approx(summary.effective_rank, rel=1e-4)
