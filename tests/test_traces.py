"""Trace estimators: intervals that hold, rates as published, hostile operators; truth from closed forms and NumPy."""

import dataclasses
import os
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import scipy.sparse
import zoo
from cases import data, function

import fisher_jax as fj
from fisher_jax.traces import base, hutchinson, hutchpp, xnystrace, xtrace

KEY = jax.random.key(5)
N = 100
STOCHASTIC = [fj.Hutchinson(24), fj.HutchPP(24), fj.XTrace(24), fj.XNysTrace(24)]


def operator(matrix, psd=True):
    """Known through products only."""
    matrix = jnp.asarray(matrix)
    return fj.FunctionOperator(jax.tree_util.Partial(jnp.matmul, matrix), len(matrix), matrix.dtype, psd=psd)


# --- intervals: 200 seeds in one program ------------------------------------------------------------------------------


def _hutchinson(M, count, key):
    X = jax.random.normal(key, (count, len(M)))
    return hutchinson.combine([hutchinson.block_of(x, x @ M) for x in (X[:8], X[8:]) if len(x)]), count


def _hutchpp(M, count, key):
    first, second = jax.random.split(key)
    s = count // 3
    W, X = jax.random.normal(first, (s, len(M))), jax.random.normal(second, (count - 2 * s, len(M)))
    Q = base.orthonormal(W[:0], base.sketch(W, W @ M))
    return hutchpp.remainder(Q, Q @ M, X, X @ M), len(X)


def _xtrace(M, count, key):
    X = jax.random.normal(key, (count // 2, len(M)))
    B = base.sketch(X, X @ M)
    Q = base.orthonormal(X[:0], B)
    return xtrace.leave_one_out(X, X @ M, B, Q, Q @ M), len(X)


def _xnystrace(M, count, key):
    X = jax.random.normal(key, (count, len(M)))
    return xnystrace.leave_one_out(X, X @ M)[0], count


METHODS = {"hutchinson": _hutchinson, "hutch++": _hutchpp, "xtrace": _xtrace, "xnystrace": _xnystrace}


@partial(jax.jit, static_argnums=(0, 2))
def _runs(method, M, count, keys):
    return jax.vmap(lambda key: METHODS[method](M, count, key)[0])(keys)


def intervals(method, M, count, seeds=200, psd=True):
    """(lower, upper, value) of many runs, `(seeds,)` each."""
    sums = _runs(method, jnp.asarray(M), count, jax.random.split(KEY, seeds))
    number = {"hutch++": count - 2 * (count // 3), "xtrace": count // 2}.get(method, count)
    lower, upper, _ = base.interval(sums, number, psd, 0.95)
    return lower, upper, np.asarray(sums.value)


def _wishart(rows):
    G = np.random.default_rng(0).normal(size=(N, rows))
    return G @ G.T / rows


SPECTRA = {
    "flat": np.eye(N),
    "geometric": zoo.prescribed(0.9 ** np.arange(N)),
    "fast": zoo.prescribed(0.6 ** np.arange(N)),
    "inverse squares": zoo.prescribed(1.0 / np.arange(1, N + 1) ** 2),
    "one eigenvalue": zoo.prescribed(np.r_[1.0, np.zeros(N - 1)]),
    "one over a bulk": zoo.prescribed(np.r_[30.0, np.ones(N - 1)]),
    "three over a bulk": zoo.prescribed(np.r_[5.0, 4.0, 3.0, np.full(N - 3, 0.1)]),
    "Wishart": _wishart(2 * N),
    "Wishart of low rank": _wishart(N // 4),
}
INDEFINITE = {
    "line": zoo.prescribed(np.linspace(4, -9, N)),
    "one above": zoo.prescribed(np.r_[50.0, np.linspace(-1, 1, N - 1)]),
    "one below": zoo.prescribed(np.r_[-50.0, np.linspace(-1, 1, N - 1)]),
    "two that cancel": zoo.prescribed(np.r_[1.0, -1.0, np.zeros(N - 2)]),
    "alternating": zoo.prescribed(0.8 ** np.arange(N) * (-1.0) ** np.arange(N)),
}


@pytest.mark.parametrize("count", [6, 30])
@pytest.mark.parametrize("method", METHODS)
def test_intervals_hold(method, count, x64):
    for name, M in SPECTRA.items():
        truth = np.trace(M)
        lower, upper, _ = intervals(method, M, count)
        slack = 1e-12 * truth  # rounding, which the estimate adds later
        held = np.mean((lower - slack <= truth) & (truth <= upper + slack))
        assert held >= 0.95, (name, held)


@pytest.mark.parametrize("count", [6, 30])
@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_intervals_hold_for_eigenvalues_of_both_signs(method, count, x64):
    for name, M in INDEFINITE.items():
        truth, slack = np.trace(M), 1e-12 * np.abs(np.linalg.eigvalsh(M)).sum()
        lower, upper, _ = intervals(method, M, count, psd=False)
        held = np.mean((lower - slack <= truth) & (truth <= upper + slack))
        assert held >= 0.95, (name, held)


@pytest.mark.parametrize("method", METHODS)
def test_intervals_hold_on_a_fisher_matrix_and_its_dual(method, x64):
    """Of a perceptron on digits, from explicit Jacobians."""
    _, F, K = digits_network(20, "float64")
    truth = np.trace(F)
    for M in (F, K):
        lower, upper, _ = intervals(method, M, 24)
        assert np.mean((lower <= truth) & (truth <= upper)) >= 0.95


def digits_network(samples, dtype):
    """Fisher operator of a perceptron 64-3-10 on digits, F and K in float64 from explicit Jacobians."""
    x, rng = fj.data.load("digits", samples=samples)[0], np.random.default_rng(3)
    params = {"a": jnp.asarray(rng.normal(size=(64, 3)) / 8, dtype), "b": jnp.asarray(rng.normal(size=(3, 10)), dtype)}

    def apply(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    outputs, J = oracle.jacobians(apply, params, x)
    rows = [
        np.linalg.cholesky(oracle.output_fisher("categorical", f) + 1e-15 * np.eye(10)).T @ j
        for f, j in zip(outputs, J, strict=True)
    ]
    A = np.concatenate(rows) / samples**0.5
    F = fj.fisher(fj.Function(apply, params), jnp.asarray(x, dtype), fj.Categorical())
    return F, oracle.exact("categorical", outputs, J), A @ A.T


def test_an_interval_without_the_skewness_fails(x64, monkeypatch):
    """The tests above can fail: the quantiles of a normal number miss a dominating eigenvalue."""
    monkeypatch.setattr(base, "_quantile", lambda f, count, tail: np.full_like(f, 1.96 if tail < 0.5 else -1.96))
    truth = np.trace(SPECTRA["one eigenvalue"])
    lower, upper, _ = intervals("hutchinson", SPECTRA["one eigenvalue"], 3)
    assert np.mean((lower <= truth) & (truth <= upper)) < 0.9


def test_an_interval_without_the_jackknife_fails(x64):
    """Numbers that share vectors err together: as if they were independent, and by their scatter, the error is too small."""
    M, m = SPECTRA["geometric"], 30
    truth, keys = np.trace(M), jax.random.split(KEY, 200)
    sums = _runs("xnystrace", jnp.asarray(M), m, keys)
    lower, upper, _ = base.interval(sums._replace(jackknife=0 * sums.jackknife), m, True, 0.95)
    assert np.mean((lower <= truth) & (truth <= upper)) < 0.9
    # The published standard error, from the numbers themselves.
    scatter = []
    for key in keys:
        X = np.asarray(jax.random.normal(key, (m, N)))
        U = np.linalg.solve(X @ M @ X.T, X @ M)
        h = np.diag(np.linalg.inv(X @ M @ X.T))
        scatter.append(np.var((1 - np.sum(U * U, axis=1)) / h, ddof=1) / m)
    error = np.mean((np.asarray(sums.value) - truth) ** 2) ** 0.5
    assert error > 1.5 * np.mean(scatter) ** 0.5


# --- the estimators ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_estimators_are_unbiased(method, x64):
    for M in (SPECTRA["geometric"], SPECTRA["Wishart"], SPECTRA["three over a bulk"]):
        values = intervals(method, M, 9, seeds=2000)[2]
        assert abs(values.mean() - np.trace(M)) <= 4 * values.std() / 2000**0.5


@pytest.mark.parametrize("name", ["geometric", "Wishart"])
def test_leaving_out_is_leaving_out(name, x64):
    """Values and jackknife of one basis against as many sketches as there are probes and pairs, in NumPy."""
    M, k = SPECTRA[name], 6
    X = np.random.default_rng(1).normal(size=(k, N))

    def qr(kept, j):
        Q = np.linalg.qr((X[kept] @ M).T)[0] if kept else np.zeros((N, 0))
        rest = X[j] - Q @ (Q.T @ X[j])
        image = M @ rest
        return np.trace(Q.T @ M @ Q) + rest @ image, image - Q @ (Q.T @ image)

    def nystrom(kept, j):
        Y = (X[kept] @ M).T
        R = M - Y @ np.linalg.solve(X[kept] @ Y, Y.T)
        return np.trace(M - R) + X[j] @ R @ X[j], R @ X[j]

    B = base.sketch(jnp.asarray(X), jnp.asarray(X @ M))
    Q = base.orthonormal(B[:0], B)
    found = xtrace.leave_one_out(jnp.asarray(X), jnp.asarray(X @ M), B, Q, Q @ M), xnystrace.leave_one_out(X, X @ M)[0]
    for sums, one in zip(found, (qr, nystrom), strict=True):
        each = [one([i for i in range(k) if i != j], j) for j in range(k)]
        np.testing.assert_allclose(float(sums.value), np.mean([v for v, _ in each]), rtol=1e-9)
        np.testing.assert_allclose(float(sums.square), np.mean([w @ w for _, w in each]), rtol=1e-7)
        without = [
            np.mean([one([a for a in range(k) if a not in (i, j)], j)[0] for j in range(k) if j != i]) for i in range(k)
        ]
        np.testing.assert_allclose(float(sums.jackknife), np.var(without) * k, rtol=1e-6)


def test_fourth_moment_is_unbiased(x64):
    """In the mean over 4000 Gram matrices, within four standard errors."""
    M = SPECTRA["three over a bulk"]
    X = jax.random.normal(KEY, (4000, 5, N))
    found = np.asarray(jax.vmap(lambda X: base.fourth_moment(X @ M @ X.T))(X))
    assert abs(found.mean() - np.sum(M * M)) <= 4 * found.std() / 4000**0.5


def test_rates(x64):
    """Error over products: Hutchinson's falls as the root, that of the others at least as their inverse."""
    M = zoo.prescribed(1.0 / np.arange(1, N + 1))
    slopes = {}
    for method in METHODS:
        errors = [np.sqrt(np.mean((intervals(method, M, m)[2] - np.trace(M)) ** 2)) for m in (6, 48)]
        slopes[method] = np.log(errors[1] / errors[0]) / np.log(48 / 6)
    assert abs(slopes["hutchinson"] + 0.5) < 0.1, slopes
    assert all(slope < -0.9 for method, slope in slopes.items() if method != "hutchinson"), slopes


# --- from end to end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("method", STOCHASTIC, ids=lambda m: type(m).__name__)
def test_zoo(method, scale, dtype):
    for name in ("geometric 0.7", "condition 1e5", "identity", "rank 3, repeated", "outliers over a bulk", "indefinite"):
        values = zoo.SPECTRA[name]
        if name == "indefinite" and isinstance(method, fj.XNysTrace):
            continue
        norm = np.abs(values).max()
        A = (zoo.prescribed(values / norm) * scale).astype(dtype)
        result = fj.trace(operator(A, psd=name != "indefinite"), method=method, key=KEY)
        truth = np.trace(A.astype(np.float64))
        assert result.lower <= truth <= result.upper, (name, result, truth)
        assert result.products == 24 and result.confidence == 0.95
        if name.startswith("rank 3") and not isinstance(method, fj.Hutchinson):
            # Nothing is left: rounding only.
            assert result.upper - result.lower <= 1e3 * oracle.eps(dtype) * truth


def test_exact_where_structure_makes_it_cheap(dtype):
    F, truth, _ = digits_network(20, dtype)
    x, tolerance = data(dtype), 100 * oracle.eps(dtype)
    G = fj.ggn(function(dtype)[0], (x, np.zeros((7, 3), dtype)), lambda z, y: jnp.sum((z - y) ** 2) / 2)
    A = zoo.prescribed(zoo.SPECTRA["indefinite"]).astype(dtype)
    squares = np.sum(oracle.jacobians(*function(dtype)[1:], x)[1] ** 2) / 7
    for matrix, value in ((F, np.trace(truth)), (F.dual, np.trace(truth)), (A, -400.0), (G, squares)):
        result = fj.trace(matrix)
        assert result.exact and result.products == 0 and result.lower <= result.value <= result.upper
        assert abs(result.value - value) <= tolerance * abs(value)
    products = fj.trace(operator(A, psd=False), method=fj.ExactTrace())
    assert products.products == 160 and products.lower <= np.trace(A.astype(np.float64)) <= products.upper


def test_the_smaller_side_and_the_default(x64):
    for samples, side in ((20, "dual"), (40, "operator")):
        F, truth, _ = digits_network(samples, "float64")
        for method in (fj.Hutchinson(8), fj.XNysTrace(8)):
            result = fj.trace(F, method=method, key=KEY)
            assert dict(result.info)["side"] == side and result.lower <= np.trace(truth) <= result.upper
    A = zoo.prescribed(zoo.SPECTRA["geometric 0.7"])
    assert fj.trace(operator(A), key=KEY).method.startswith("XNysTrace")
    assert fj.trace(operator(A, psd=False), key=KEY).method.startswith("XTrace")


@pytest.mark.parametrize("method", [fj.Hutchinson, fj.HutchPP, fj.XTrace, fj.XNysTrace])
def test_as_many_products_as_rows_are_exact(method, x64):
    """Those of the stages before count, too."""
    for n in (1, 3, 10, 40):
        A = zoo.prescribed(np.arange(1.0, n + 1))
        for option in (method(max(n, 3)), method(10**6, tol=1e-9)):
            seen = []
            result = fj.trace(operator(A), method=option, key=KEY, progress=seen.append)
            before = seen[-1].products if seen else 0
            assert result.exact and result.products == before + n and (before > 0) == (n == 40 and option.tol is not None)
            assert abs(result.value - n * (n + 1) / 2) <= 1e-12 * n * n


@pytest.mark.parametrize("method", [fj.ExactTrace(), *STOCHASTIC], ids=lambda m: type(m).__name__)
def test_hostile_operators(method, dtype):
    zero = fj.trace(fj.FunctionOperator(lambda V: 0 * V, 50, dtype, psd=True), method=method, key=KEY)
    assert (zero.value, zero.lower, zero.upper) == (0, 0, 0) and zero.exact
    with pytest.raises(fj.ArgumentError, match="NaN or infinity"):
        fj.trace(fj.FunctionOperator(lambda V: V / 0, 50, dtype, psd=True), method=method, key=KEY)
    if isinstance(method, fj.ExactTrace):
        return
    with pytest.raises(fj.ArgumentError, match="not symmetric"):
        fj.trace(fj.FunctionOperator(lambda V: jnp.cumsum(V, axis=0), 50, dtype, psd=True), method=method, key=KEY)
    with pytest.raises(fj.ArgumentError, match=r"trace: function maps \(50, \d\) to"):
        fj.trace(fj.FunctionOperator(lambda V: V[:10], 50, dtype, psd=True), method=method, key=KEY)
    with pytest.raises(fj.ArgumentError, match="key=None"):
        fj.trace(operator(np.eye(50, dtype=dtype)), method=method)


def test_arguments():
    A = np.diag(np.linspace(1.0, -1.0, 50)).astype(np.float32)
    with pytest.raises(fj.ArgumentError, match="psd"):
        fj.trace(operator(A, psd=False), method=fj.XNysTrace(8), key=KEY)
    with pytest.raises(fj.ArgumentError, match="negative eigenvalues"):
        fj.trace(operator(A, psd=True), method=fj.XNysTrace(8), key=KEY)
    with pytest.raises(fj.ArgumentError, match=r"trace: method=SLQ\(.*\) is not a method; give one of .* fj.Hutchinson\("):
        fj.trace(np.eye(3, dtype=np.float32), method=fj.SLQ(), key=KEY)
    with pytest.raises(fj.ArgumentError, match="method='xtrace' is not a method"):
        fj.trace(A, method="xtrace")
    with pytest.raises(fj.ArgumentError, match="trace: operator is a list"):
        fj.trace([[1.0]])
    for method, name in ((fj.Hutchinson, "probes"), (fj.HutchPP, "products"), (fj.XTrace, "products")):
        with pytest.raises(fj.ArgumentError, match=f"{name}=0 is below"):
            method(0)
    with pytest.raises(fj.ArgumentError, match="tol=-1 is not a positive number"):
        fj.XNysTrace(8, tol=-1)


# --- growth to a tolerance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [fj.Hutchinson(900, 0.05), fj.HutchPP(900, 0.02), fj.XTrace(900, 0.02), fj.XNysTrace(900, 0.02)]
)
def test_tolerance(method, x64):
    """Stops where the interval is as narrow as asked; stopping early does not spoil it: 40 seeds, at most 2 + 3 missed."""
    values = 1.0 / np.arange(1, 1001) ** 1.2
    F, truth, missed = zoo.diagonal(values, "float64"), values.sum(), 0
    for seed in range(40):
        result = fj.trace(F, method=method, key=jax.random.key(seed))
        assert 16 <= result.products < 900 and result.upper - result.lower <= 2 * method.tol * result.value
        missed += not result.lower <= truth <= result.upper
    assert missed <= 5


def test_one_product_more_than_a_stage(x64):
    """Too few for another vector of the sketch."""
    F, truth = zoo.diagonal(0.9 ** np.arange(300), "float64"), np.sum(0.9 ** np.arange(300))
    for method, products in ((fj.HutchPP(25), 25), (fj.XTrace(17), 16), (fj.Hutchinson(17), 17), (fj.XNysTrace(17), 17)):
        result = fj.trace(F, method=method, key=KEY)
        assert result.products == products and result.lower <= truth <= result.upper


def test_growth_and_keys(x64):
    """The first stage of many is what so few products give; the same key, the same bits."""
    F = zoo.diagonal(0.9 ** np.arange(300), "float64")
    for method, first in ((fj.Hutchinson, 16), (fj.HutchPP, 24), (fj.XTrace, 16), (fj.XNysTrace, 16)):
        seen = []
        stopped = fj.trace(F, method=method(60, tol=100.0), key=KEY, progress=seen.append)
        few = fj.trace(F, method=method(first), key=KEY)
        assert stopped.products == first == seen[-1].products
        assert (stopped.value, stopped.lower, stopped.upper) == (few.value, few.lower, few.upper)
        assert repr(fj.trace(F, method=method(first), key=KEY)) == repr(few)
        assert fj.trace(F, method=method(first), key=jax.random.key(6)).value != few.value


def test_tolerance_that_is_not_reached():
    with pytest.warns(
        UserWarning, match=r"trace: after 40 products the interval is ± .* wider than tol=0.0001; give Hutchinson more"
    ):
        fj.trace(operator(np.eye(100, dtype=np.float32)), method=fj.Hutchinson(40, tol=1e-4), key=KEY)


@pytest.mark.parametrize("method", [fj.Hutchinson(900), fj.XTrace(900), fj.HutchPP(900), fj.XNysTrace(900)])
def test_interrupted(method, x64, capsys):
    """Ctrl-C gives what the products until then say, and says so."""
    F, values = zoo.diagonal(1.0 / np.arange(1, 1001), "float64"), 1.0 / np.arange(1, 1001)

    def stop(progress):
        if progress.products == 24:
            os.kill(os.getpid(), signal.SIGINT)

    result = fj.trace(F, method=method, key=KEY, progress=stop)
    assert 16 <= result.products < 100 and "interrupted" in dict(result.info)["note"]
    assert result.lower <= values.sum() <= result.upper
    assert "interrupted" in capsys.readouterr().err


# --- invariance -------------------------------------------------------------------------------------------------------


def test_chunks_order_and_devices_do_not_matter():
    model = fj.models.build("mlp", inputs=10, outputs=4, width=16, key=jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(203, 10)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    F = fj.fisher(model, x, fj.Categorical())
    others = [(x, {"chunk": 50}), (x, {"mesh": mesh}), (x[::-1].copy(), {})]
    for method in (fj.Hutchinson(8), fj.XNysTrace(8)):
        first = fj.trace(F, method=method, key=KEY)
        for rows, options in others:
            result = fj.trace(fj.fisher(model, rows, fj.Categorical(), **options), method=method, key=KEY)
            for name in ("value", "lower", "upper"):
                assert abs(getattr(result, name) / getattr(first, name) - 1) <= 1e-4, (options, name)


def test_an_estimate_prints_and_is_saved(tmp_path):
    result = fj.trace(operator(np.eye(300, dtype=np.float32)), method=fj.XTrace(20), key=KEY)
    fj.save(result, tmp_path / "trace.npz")
    assert dataclasses.astuple(fj.load(tmp_path / "trace.npz")) == dataclasses.astuple(result)
    assert "(95 %; 20 products, XTrace(products=20, tol=None))" in repr(result) and '"products": 20' in result.to_json()
    assert abs(float(result) - 300) < 60


def test_exact_trace_of_the_negative_allows_for_cancellation():
    M = np.random.default_rng(0).normal(size=(100, 100))
    M = M + M.T
    M = (M - np.eye(100) * np.trace(M) / 100).astype(np.float32)
    for operator in (fj.MatrixOperator(M), fj.SparseOperator(scipy.sparse.csr_array(M))):
        plain, negative = fj.trace(operator, method=fj.ExactTrace()), fj.trace(-operator, method=fj.ExactTrace())
        assert (negative.value, negative.lower, negative.upper) == (-plain.value, -plain.upper, -plain.lower)
        assert negative.lower <= -np.trace(M.astype(np.float64)) <= negative.upper
