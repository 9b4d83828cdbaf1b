"""Spectral densities against explicit spectra, exact measures of the probes, Marchenko–Pastur, and each other."""

import dataclasses
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import scipy.stats
import zoo
from cases import data, function, labels
from scipy.stats import wasserstein_distance

import fisher_jax as fj
from fisher_jax.density import slq
from fisher_jax.density.base import closed
from fisher_jax.density.space import space

KEY = jax.random.key(5)
N = 96
WISHART = np.random.default_rng(0).normal(size=(N, 2 * N))
SPECTRA = {
    "flat": np.ones(N),
    "half": np.r_[np.ones(N // 2), np.zeros(N // 2)],
    "geometric": 0.7 ** np.arange(N),
    "one dominates": np.r_[1.0, 1e-3 * np.random.default_rng(1).uniform(size=N - 1)],
    "Wishart": np.linalg.eigvalsh(WISHART @ WISHART.T / (2 * N))[::-1],
}


def product(matrix, V):
    return matrix @ V


def semidefinite(values, dtype="float32"):
    matrix = jnp.asarray(zoo.prescribed(values), dtype)
    return fj.FunctionOperator(jax.tree_util.Partial(product, matrix), len(values), dtype, psd=True)


def groups(d, size):
    """Densities of `size` probes each from one of many: as many seeds."""
    for i in range(0, d.nodes.shape[0], size):
        part = slice(i, i + size)
        weights = np.asarray(d.weights[part], np.float64)
        arrays = {name: getattr(d, name)[part] for name in ("nodes", "means", "diagonal", "coupling")}
        nodes, diagonal, coupling = (np.asarray(arrays[name], np.float64) for name in ("nodes", "diagonal", "coupling"))
        ends = slq._ends(diagonal, coupling, nodes, weights / weights.sum(), d.dimension, d.psd, d.floor)
        yield dataclasses.replace(d, weights=weights / weights.sum(), ends=ends, **arrays)


def integrals(d, tau, delta):
    """The integrals of a Density as estimates, of a Spectrum as numbers."""
    return {
        "trace": d.trace() if callable(d.trace) else d.trace,
        "frobenius": d.frobenius() if callable(d.frobenius) else d.frobenius,
        "count": d.count_above(tau),
        "logdet": d.logdet(delta),
        "effective dimension": d.effective_dimension(delta),
    }


def truths(values, tau, delta):
    return {
        "trace": values.sum(),
        "frobenius": np.sqrt((values**2).sum()),
        "count": (values > tau).sum(),
        "logdet": np.log1p(values / delta).sum(),
        "effective dimension": (values / (values + delta)).sum(),
    }


def mass(d):
    """All eigenvalues that are not zero for certain: places and how many at each."""
    places = np.r_[np.asarray(d.atoms, np.float64), np.asarray(d.nodes, np.float64).ravel()]
    return places, np.r_[np.ones(d.atoms.size), d.dimension * np.asarray(d.weights, np.float64).ravel()]


# --- what the intervals promise ---------------------------------------------------------------------------------------


def check_coverage(d, values, tau, delta, size=8):
    """Of 200 groups of probes, each interval holds in 95 % at least."""
    truth, hits, width = truths(values, tau, delta), {}, {}
    for group in groups(d, size):
        for name, e in integrals(group, tau, delta).items():
            slack = 1e-6 * abs(truth[name])
            hits[name] = hits.get(name, 0) + (e.lower - slack <= truth[name] <= e.upper + slack)
            width[name] = width.get(name, 0) + (e.upper - e.lower) / 200
            assert e.lower <= e.value <= e.upper and e.products == d.products and e.confidence == 0.95
    assert all(count >= 190 for count in hits.values()), hits
    return width, truth


@pytest.mark.parametrize("name", SPECTRA)
def test_coverage(name):
    values = SPECTRA[name]
    tau, delta = (0.01 if name == "geometric" else 0.55) * values.max(), 0.01 * values.max()
    d = fj.density(semidefinite(values), method=fj.SLQ(steps=12, probes=1600), key=KEY)
    width, truth = check_coverage(d, values, tau, delta)
    # Not absurdly wide beside a normal distribution with the known variance 2 Σ (f − f̄)² / m.
    for key, f in {"trace": values, "logdet": np.log1p(values / delta)}.items():
        ideal = 2 * 1.96 * np.sqrt(2 * N * f.var() / 8)
        assert width[key] <= 2.5 * ideal + 1e-5 * truth[key], (key, width[key], ideal)


@pytest.mark.parametrize("steps, probes", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("name", ["one dominates", "geometric", "Wishart"])
def test_coverage_of_few_products(name, steps, probes):
    """A largest eigenvalue that no probe has seen much of, and no residual tells of."""
    values = SPECTRA[name]
    d = fj.density(semidefinite(values), method=fj.SLQ(steps=steps, probes=200 * probes), key=KEY)
    check_coverage(d, values, 0.3 * values.max(), 0.01 * values.max(), probes)


SIGNS = {
    "pair": np.r_[1.0, -1],
    "one of each": np.r_[5.0, -5, np.zeros(58)],
    "one against many": np.r_[5.0, np.full(59, -5 / 59)],
    "three": np.r_[5.0, 2, -1.5, 0.02 * np.random.default_rng(1).normal(size=57)],
}


@pytest.mark.parametrize("name", SIGNS)
@pytest.mark.parametrize("steps, probes", [(1, 1), (1, 3), (2, 1)])
def test_coverage_of_few_products_of_both_signs(name, steps, probes):
    """The node of one step has one sign and does not see the part of the other. And of −100 x."""
    values = SIGNS[name]
    d = fj.density(fj.MatrixOperator(np.diag(values).astype("float32")), method=fj.SLQ(steps, 200 * probes), key=KEY)
    found = [(g.trace(), g.integral(lambda x: -100 * x)) for g in groups(d, probes)]
    for i, factor in enumerate((1, -100)):
        assert sum(e[i].lower - 1e-3 <= factor * values.sum() <= e[i].upper + 1e-3 for e in found) >= 190


def test_coverage_of_a_sum_that_one_eigenvalue_makes_small():
    """The mirror of one that dominates: all but one take the largest value of f."""
    values = SPECTRA["one dominates"]
    d = fj.density(semidefinite(values), method=fj.SLQ(1, 200), key=KEY)
    found = [g.integral(lambda x: -x) for g in groups(d, 1)]
    assert sum(e.lower <= -values.sum() <= e.upper for e in found) >= 190


@pytest.mark.parametrize("away", [1e-3, 1e-4, 1e-5])
def test_a_space_closes_to_rounding_only(away):
    """A coupling of a few units of rounding hides a share of its square over the squared distance: not nothing."""
    operator = fj.MatrixOperator(np.diag(np.r_[1 + away, np.ones(59)]).astype("float32"), psd=True)
    d = fj.density(operator, method=fj.SLQ(4, 200), key=KEY)
    assert d.floor < away / 10
    counts = [(g.count_above(1 + away / 2), g.ends[1]) for g in groups(d, 1)]
    assert sum(e.lower <= 1 <= e.upper for e, _ in counts) >= 190
    assert sum(end >= 1 + away - 1e-6 for _, end in counts) >= 198


@pytest.mark.parametrize(
    "scale, precision", [(1e20, "float32"), (1e-25, "float32"), (1e200, "float64"), (1e-160, "float64")]
)
def test_squares_need_not_be_numbers(scale, precision):
    values = np.linspace(0.1, 1, 20)
    with jax.enable_x64(precision == "float64"), warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = (
            fj.density(fj.MatrixOperator(np.diag(s * values).astype(precision), psd=True), method=fj.SLQ(3, 2), key=KEY)
            for s in (1.0, scale)
        )
        assert repr(other)
        for a, b in ((one.frobenius(), other.frobenius()), (one.trace(), other.trace())):
            assert np.array([b.lower, b.value, b.upper]) / scale == pytest.approx([a.lower, a.value, a.upper], rel=1e-4)
        for a, b in ((one.logdet(0.1), other.logdet(0.1 * scale)), (one.count_above(0.5), other.count_above(0.5 * scale))):
            assert [b.lower, b.value, b.upper] == pytest.approx([a.lower, a.value, a.upper], rel=1e-3)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("steps, probes", [(1, 1), (2, 2), (8, 1)])
def test_ends_hold_all_eigenvalues(steps, probes, sign):
    values = sign * np.r_[5.0, 1e-2 * np.random.default_rng(2).normal(size=N - 1)]
    operator = fj.MatrixOperator(zoo.prescribed(values).astype("float32"))
    d = fj.density(operator, method=fj.SLQ(steps, 200 * probes), key=KEY)
    ends = np.array([group.ends for group in groups(d, probes)])
    assert ((ends[:, 0] <= values.min() + 1e-5) & (ends[:, 1] >= values.max() - 1e-5)).sum() >= 198
    if steps > 5:  # and are of use
        assert np.median(ends, axis=0) == pytest.approx([values.min(), values.max()], abs=3)


@pytest.fixture(scope="module")
def digits():
    """Digits, a perceptron of two layers: (F whose dual is smaller, F whose primal is), whole spectra of both."""
    x, _ = fj.data.load("digits")
    model = fj.models.build("mlp", inputs=64, outputs=10, width=12, depth=2, key=jax.random.key(0))
    few = fj.fisher(model, x[:24], fj.Categorical())
    many = fj.fisher(model, x[:160], fj.Categorical(), where="layers/1")
    return {"dual": (few, fj.spectrum(few)), "primal": (many, fj.spectrum(many))}


@pytest.mark.parametrize("side, outliers", [("dual", 0), ("dual", 9), ("primal", 0)])
def test_coverage_on_a_real_fisher_matrix(digits, side, outliers, optimized, monkeypatch):
    monkeypatch.setattr("fisher_jax.linalg.loops_are_slow", lambda: False)  # no convolutions here: all probes in one program
    F, exact = digits[side]
    assert (F.dual.size < F.size) == (side == "dual")
    values = np.asarray(exact.values, np.float64)
    top = fj.eigsh(F, outliers, key=KEY) if outliers else None
    d = fj.density(F, method=fj.SLQ(steps=24, probes=1600), top=top, key=KEY)
    assert ("on the dual" in d.method) == (side == "dual")
    check_coverage(d, values, 0.02 * values[0], 0.01 * values[0])


def test_coverage_of_an_indefinite_trace():
    """Both signs, most eigenvalues near zero."""
    values = np.r_[5.0, 2, -1.5, 0.02 * np.random.default_rng(2).normal(size=N - 3)]
    d = fj.density(fj.MatrixOperator(zoo.prescribed(values).astype("float32")), method=fj.SLQ(12, 1600), key=KEY)
    traces = [group.trace() for group in groups(d, 8)]
    assert sum(e.lower <= values.sum() <= e.upper for e in traces) >= 190
    assert np.mean([e.upper - e.lower for e in traces]) < 20


def test_a_wrong_interval_is_noticed():
    """The previous tests can fail: intervals from a normal distribution undercover where one eigenvalue dominates."""
    values = SPECTRA["one dominates"]
    d = fj.density(semidefinite(values), method=fj.SLQ(steps=12, probes=1600), key=KEY)
    traces = [group.trace() for group in groups(d, 8)]
    hits = sum(abs(e.value - values.sum()) <= 1.96 * e.standard_error for e in traces)
    assert hits < 190


def test_band_covers_the_smoothed_density():
    values = SPECTRA["Wishart"]
    d = fj.density(semidefinite(values), method=fj.SLQ(steps=60, probes=1600), key=KEY)
    grid = np.linspace(0.1, 2.5, 9)
    truth = scipy.stats.norm.pdf(grid[:, None], values, 0.1).mean(axis=1)
    hits = np.zeros(grid.size)
    for group in groups(d, 8):
        low, high = group.band(grid, width=0.1)
        hits += (low <= truth) & (truth <= high)
    assert (hits >= 190).all(), hits


@pytest.mark.parametrize("steps", [1, 3, 9])
@pytest.mark.parametrize("name", ["Wishart", "geometric", "one dominates"])
def test_quadrature_bounds_hold_probe_by_probe(name, steps, x64):
    """The exact measure of each probe, from the eigenvectors, lies within the bounds, always."""
    values = np.sort(SPECTRA[name])
    matrix = zoo.prescribed(values)
    exact, vectors = np.linalg.eigh(matrix)
    operator = semidefinite(values, "float64")
    d = fj.density(operator, method=fj.SLQ(steps=steps, probes=6), key=KEY)
    z = np.asarray(space(operator, None, KEY).probes(KEY, 6))
    shares = (z @ vectors) ** 2
    np.testing.assert_allclose(d.weights.sum(axis=1), shares.sum(axis=1) / shares.sum(), rtol=1e-12)
    shares /= shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(d.means, np.stack([shares @ exact, (shares @ exact**2) ** 0.5], axis=1), rtol=1e-10)
    weights = np.asarray(d.weights) / np.asarray(d.weights).sum(axis=1, keepdims=True)
    for power in range(2 * steps):
        np.testing.assert_allclose((weights * np.asarray(d.nodes) ** power).sum(1), shares @ exact**power, rtol=1e-9)
    rules = [closed(a, b) for a, b in zip(np.asarray(d.diagonal), np.asarray(d.coupling), strict=True)]
    gaps = []
    for p, rule in enumerate(rules):
        for tau in np.linspace(0, 1.1 * values.max(), 23) + 1e-3:
            low, high = d._above(rule, tau)
            assert low - 1e-9 <= shares[p, exact > tau].sum() <= high + 1e-9, (p, tau)
            gaps.append(high - low)
    assert np.mean(gaps) < 1.0 if steps == 1 else np.mean(gaps) < 0.5
    one = list(groups(d, 1))
    for p in range(6):
        for delta in (1e-3, 0.1, 10.0):
            for f, low, high in (
                (np.log1p(exact / delta), *bernstein(one[p], lambda x, t=delta: np.log1p(x / t))),
                (exact / (exact + delta), *bernstein(one[p], lambda x, t=delta: x / (x + t))),
            ):
                assert low - 1e-9 <= shares[p] @ f <= high + 1e-9


def bernstein(d, f):
    """The bounds of the steps alone: the pooled ratio itself."""
    seen = []
    spy = dataclasses.replace(d)
    object.__setattr__(spy, "_estimate", lambda name, f, low, high, slope: seen.extend([low, high]))
    spy._bernstein("bounds", f, np.ones_like)
    return seen


# --- known spectra ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [fj.SLQ(), fj.KPM()], ids=["SLQ", "KPM"])
@pytest.mark.parametrize("name", zoo.SPECTRA)
def test_zoo(name, method, dtype):
    """Mass one, nodes within the spectrum, trace and norm within their intervals, also after breakdown."""
    truth = zoo.matrix(name, dtype)[1]
    operator = fj.MatrixOperator(zoo.prescribed(zoo.SPECTRA[name]).astype(dtype))
    d = fj.density(operator, method=method, key=KEY)
    unit, norm = oracle.eps(dtype), np.abs(truth).max()
    nodes, weights = np.asarray(d.nodes, np.float64), np.asarray(d.weights, np.float64)
    assert (weights >= 0).all() and weights.sum() == pytest.approx(1, abs=100 * unit)
    if isinstance(method, fj.SLQ):
        used = weights > 0
        slack = 100 * unit * norm
        assert nodes[used].min() >= truth.min() - slack and nodes[used].max() <= truth.max() + slack
    for estimate, exact in ((d.trace(), truth.sum()), (d.frobenius(), np.sqrt((truth**2).sum()))):
        slack = 1e-3 * unit * abs(exact)
        assert estimate.lower - slack <= exact <= estimate.upper + slack, (estimate, exact)
    assert d.zeros == 0 and d.size == zoo.N and d.dimension == zoo.N
    if norm:
        grid = d.grid("linear", points=4001)
        assert np.trapezoid(d(grid), grid) == pytest.approx(1, abs=2e-3)
    elif isinstance(method, fj.SLQ):
        assert d.unresolved == pytest.approx(zoo.N) and d.trace().value == 0


@pytest.mark.parametrize("values", [0.7 ** np.arange(160), np.geomspace(1, 1e-6, 160)], ids=["geometric", "six decades"])
def test_bases_stay_orthonormal(values, dtype):
    """Also where next to nothing of a product is left over, which is when one pass of Gram–Schmidt does not do."""
    probed = space(zoo.diagonal(values, dtype), None, KEY)
    state = slq._begin(probed.probes(KEY, 3), 60)
    for j in range(60):
        state = slq._extend(state, probed.product(state.vectors[:, j]))
    for V in np.asarray(state.vectors, np.float64):
        V = V[np.any(V != 0, axis=1)]
        assert len(V) >= 30
        np.testing.assert_allclose(V @ V.T, np.eye(len(V)), atol=20 * oracle.eps(dtype))


def test_low_rank_is_exact(dtype):
    """Three eigenvalues: after four steps the space of each probe is closed, and nothing is left open but the probes."""
    d = fj.density(semidefinite(zoo.SPECTRA["rank 3"], dtype), key=KEY)
    for row, weights in zip(np.asarray(d.nodes), np.asarray(d.weights), strict=True):
        used = row[weights > 0]
        np.testing.assert_allclose(used, np.round(used), atol=100 * oracle.eps(dtype))
        assert set(np.round(used)) == {0, 1, 2, 3} and used.size <= 6
    count = d.count_above(0.5)
    nodes, weights = np.asarray(d.nodes), np.asarray(d.weights)
    assert count.value == pytest.approx(zoo.N * weights[nodes > 0.5].sum(), rel=1e-5)
    assert count.lower <= 3 <= count.upper and d.unresolved == pytest.approx(zoo.N - count.value, rel=1e-5)


def test_integral_of_any_function():
    values = SPECTRA["Wishart"]
    d = fj.density(semidefinite(values), method=fj.SLQ(probes=32), key=KEY)
    for f in (np.ones_like, np.cos, lambda x: (x > 1) - 0.5):
        estimate = d.integral(f)
        assert estimate.lower - 1e-4 <= f(values).sum() <= estimate.upper + 1e-4
    assert d.integral(np.ones_like).exact and d.integral(np.ones_like).value == pytest.approx(N)
    with np.errstate(invalid="ignore"), pytest.raises(fj.ArgumentError, match="f is not finite"):
        d.integral(lambda x: np.sqrt(x - 1e6))


def test_wishart_is_marchenko_pastur(optimized):
    """n = 2000, ratio 1/2: values of the density within 3 % of the largest, edges where they belong."""
    n = 2000
    X = np.random.default_rng(3).normal(size=(n, 2 * n)).astype(np.float32) / np.sqrt(2 * n)
    operator = fj.FunctionOperator(jax.tree_util.Partial(lambda X, V: X @ (X.T @ V), jnp.asarray(X)), n, psd=True)
    d = fj.density(operator, method=fj.SLQ(probes=32), key=KEY)
    left, right = (1 - np.sqrt(0.5)) ** 2, (1 + np.sqrt(0.5)) ** 2
    fine = np.linspace(left, right, 20001)
    law = np.sqrt(np.maximum((right - fine) * (fine - left), 0)) / (np.pi * fine)
    grid = np.linspace(0.0, 3.0, 61)
    smoothed = np.trapezoid(law * scipy.stats.norm.pdf(grid[:, None], fine, 0.05), fine, axis=1)
    assert np.abs(d(grid, width=0.05) - smoothed).max() <= 0.03 * smoothed.max()
    assert d.ends[0] == pytest.approx(left, abs=0.02) and d.ends[1] == pytest.approx(right, abs=0.02)
    # Integrated between, with the weight of the law.
    share = np.trapezoid(law[fine > 1], fine[fine > 1])
    count = d.count_above(1.0)
    assert count.lower <= n * share <= count.upper and count.upper - count.lower < 0.15 * n


def test_two_clusters():
    rng = np.random.default_rng(0)
    values = np.r_[rng.normal(10, 0.1, 60), rng.normal(1, 0.1, 240)]
    d = fj.density(semidefinite(values), method=fj.SLQ(steps=40, probes=16), key=KEY)
    count = d.count_above(5.0)
    assert count.lower <= 60 <= count.upper and count.upper - count.lower < 30
    grid = np.linspace(-1, 12, 2001)
    rho = d(grid, width=0.1)
    assert rho[(grid > 2) & (grid < 9)].max() < 1e-6 * rho.max()
    assert np.trapezoid(rho[grid > 5], grid[grid > 5]) == pytest.approx(count.value / 300, rel=1e-3)


@pytest.mark.parametrize("axis", ["linear", "log"])
def test_mass_of_the_density_is_one(axis):
    d = fj.density(semidefinite(np.geomspace(1e-3, 1, 200)), method=fj.SLQ(steps=60), key=KEY)
    grid = d.grid(axis, points=20001)
    line = np.log(grid) if axis == "log" else grid
    assert np.trapezoid(d(grid, axis=axis), line) == pytest.approx(1, abs=1e-4)
    low, high = d.band(grid, axis=axis)
    assert (low <= d(grid, axis=axis) + 1e-12).all() and (d(grid, axis=axis) <= high + 1e-12).all()
    if axis == "log":  # evenly spaced on that axis; its edges are rounded by the kernel
        inner = (grid > 5e-3) & (grid < 0.2)
        np.testing.assert_allclose(d(grid, axis="log", width=0.5)[inner], 1 / np.log(1e3), rtol=0.25)


def test_kpm_agrees_with_slq_and_the_truth():
    values = SPECTRA["Wishart"]
    a = fj.density(semidefinite(values), method=fj.SLQ(steps=60, probes=200), key=KEY)
    b = fj.density(semidefinite(values), method=fj.KPM(degree=200, probes=200), key=KEY)
    grid = np.linspace(0.0, 3.0, 61)
    truth = scipy.stats.norm.pdf(grid[:, None], values, 0.15).mean(axis=1)
    # The same probes: the two differ by the blur of Jackson's kernel alone.
    assert np.abs(a(grid, width=0.15) - b(grid, width=0.15)).max() < 0.02 * truth.max()
    assert np.abs(b(grid, width=0.15) - truth).max() < 0.04 * truth.max()
    np.testing.assert_allclose(a.means, b.means, rtol=1e-5)
    assert a.trace().value == pytest.approx(b.trace().value, rel=1e-5)


def test_kpm_widens_a_range_that_was_too_narrow(monkeypatch):
    from fisher_jax.density import kpm

    monkeypatch.setattr(kpm, "MARGIN", 0.4)
    values = SPECTRA["Wishart"]
    d = fj.density(semidefinite(values), method=fj.KPM(), key=KEY)
    assert d.ends[1] > values[0]


# --- Fisher matrices --------------------------------------------------------------------------------------------------


def kinds(dtype):
    """Fisher matrices of all kinds whose dual has null directions: by softmax, weights, labels, centring, tokens."""
    model, x, y = function(dtype)[0], data(dtype), labels("categorical")
    weights = np.array([1.0, 0, 2, 1, 0, 1, 3])
    softmax = fj.Categorical()
    return {
        "softmax": fj.fisher(model, x, softmax),
        "weights": fj.fisher(model, x, softmax, weights=weights),
        "squared error": fj.fisher(model, x, fj.Gaussian(), weights=weights),
        "given labels": fj.fisher(model, x, softmax, kind=fj.Empirical(y), weights=weights),
        "many draws": fj.fisher(model, x, softmax, kind=fj.MonteCarlo(4, key=KEY)),
        "centred": fj.gradient_covariance(model, (x, y), softmax),
        "pair": fj.fisher(pair(dtype), x, softmax),
    }


def pair(dtype):
    """Two outputs, one of them a sequence."""
    _, apply, params = function(dtype)
    wide = {"p": params, "w": jnp.asarray(np.random.default_rng(4).normal(size=(5, 8)), dtype)}
    return fj.Function(lambda p, x: {"a": apply(p["p"], x), "b": jnp.tanh(x @ p["w"]).reshape(-1, 2, 4)}, wide)


@pytest.mark.parametrize("name", kinds("float32"))
def test_zeros_are_a_number(name, x64):
    """What is zero for certain is neither probed nor a bump: the count is that of the whole spectrum."""
    F = kinds("float64")[name]
    exact = fj.spectrum(F)
    assert exact.dual_size < F.size or name == "many draws"
    d = fj.density(F, method=fj.SLQ(steps=60, probes=40), key=KEY)
    assert d.zeros == exact.zeros and d.size == F.size
    assert d.dimension + d.zeros - d.hidden == F.size
    assert d.hidden == (7 * 4 - 7 * 2 if name == "many draws" else 0)
    assert d.bulk + d.unresolved == pytest.approx(exact.values.size + exact.unresolved, rel=0.05 if d.hidden else 1e-6)
    # The rank is full but for what is known: not one node at zero.
    if not d.hidden and not exact.unresolved:
        assert d.unresolved < 1e-6 and float(d.ends[0]) >= 0.5 * float(exact.values[-1])
    tau, delta = 0.1 * exact.lambda_max, 0.05 * exact.lambda_max
    for key, e in integrals(d, tau, delta).items():
        assert e.lower <= integrals(exact, tau, delta)[key] <= e.upper, key


def test_a_likelihood_of_ones_own_needs_no_null_vectors(x64):
    """Null directions that are not told cost nothing but probes: they are zeros that the weights show."""

    @fj.record
    class Own(fj.Categorical):
        def _null(self, f):
            return jnp.zeros_like(f)

    F = fj.fisher(function("float64")[0], data("float64"), Own())
    d = fj.density(F, method=fj.SLQ(probes=64), key=KEY)
    assert (d.dimension, d.hidden, d.zeros) == (21, 7, F.size - 14)
    assert d.bulk == pytest.approx(14, rel=0.15)


def test_outliers_become_atoms(digits):
    F, exact = digits["dual"]
    values = np.asarray(exact.values, np.float64)
    top = fj.eigsh(F, 9, key=KEY, method=fj.Lanczos(tol=1e-6, steps=60))
    plain, d = (fj.density(F, top=given, key=jax.random.key(1)) for given in (None, top))
    np.testing.assert_array_equal(d.atoms, top.values)
    assert d.dimension == plain.dimension - 9 and d.zeros == exact.zeros
    # None of the outliers is left in the bulk, and what their errors can do is negligible.
    assert d.ends[1] == pytest.approx(values[9], rel=1e-3) and d.leak < 1e-3 * values[9]
    assert d.products == plain.products + 9
    tau, delta = 0.5 * values[9], 0.1 * values[9]
    before, after = integrals(plain, tau, delta), integrals(d, tau, delta)
    for key, truth in integrals(exact, tau, delta).items():
        assert after[key].lower <= truth <= after[key].upper
    assert after["trace"].upper - after["trace"].lower < 0.5 * (before["trace"].upper - before["trace"].lower)
    assert d.count_above(float(top.values[4]) * (1 - 1e-3)).lower >= 5
    _, counts = mass(d)
    assert counts.sum() + d.zeros - d.hidden == pytest.approx(F.size)


def test_outliers_of_a_matrix_without_dual(dtype):
    operator, truth = zoo.matrix("outliers over a bulk", dtype)
    top = fj.eigsh(operator, 5, key=KEY)
    # What has not converged is no atom.
    top = dataclasses.replace(top, converged=top.converged.at[3:].set(False))
    d = fj.density(operator, top=top, key=KEY)
    assert d.atoms.size == 3 and d.ends[1] == pytest.approx(truth[3], rel=1e-3)
    assert d.trace().lower <= truth.sum() <= d.trace().upper and d.count_above(2.0).value == pytest.approx(3)
    with pytest.raises(fj.ArgumentError, match=r"top has residuals of .* with this operator"):
        fj.density(zoo.matrix("arange", dtype)[0], top=top, key=KEY)


def test_the_whole_of_the_digits(optimized):
    """300 digits: distance to the whole spectrum, and counts within their intervals."""
    x, _ = fj.data.load("digits", samples=300)
    model = fj.models.build("mlp", inputs=64, outputs=10, width=32, depth=2, key=jax.random.key(0))
    check_whole(fj.fisher(model, x, fj.Categorical()))


@pytest.mark.slow
def test_the_whole_of_all_digits(optimized):
    x, _ = fj.data.load("digits")
    model = fj.models.build("mlp", inputs=64, outputs=10, key=jax.random.key(0))
    check_whole(fj.fisher(model, x, fj.Categorical()))


def check_whole(F):
    exact = fj.spectrum(F)
    values = np.r_[np.asarray(exact.values, np.float64), np.zeros(exact.unresolved)]
    top = fj.eigsh(F, 9, key=KEY, method=fj.Lanczos(tol=1e-5))
    for d, most in ((fj.density(F, key=KEY), 0.25), (fj.density(F, top=top, key=KEY), 0.12)):
        places, counts = mass(d)
        distance = wasserstein_distance(places, values, counts)
        assert distance <= most * values.mean(), (distance, values.mean())
        for factor in (0.3, 0.1, 1e-2, 1e-3):
            tau = factor * values[0]
            count = d.count_above(tau)
            assert count.lower <= exact.count_above(tau) <= count.upper
        for factor in (1e-2, 1e-3):
            for mine, theirs in (
                (d.logdet(factor * values[0]), exact.logdet(factor * values[0])),
                (d.effective_dimension(factor * values[0]), exact.effective_dimension(factor * values[0])),
            ):
                assert mine.lower <= theirs <= mine.upper
        assert d.trace().lower <= exact.trace <= d.trace().upper


def test_what_is_below_rounding_counts_in_integrals_of_an_exact_spectrum():
    """Of 100 eigenvalues below float32's rounding only the sum is known, from the trace; far above them no more counts."""
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.normal(size=(n, 200)))[0] for n in (200, 400))
    values = np.r_[np.geomspace(100, 1e-2, 100), np.full(100, 2e-5)]
    x = ((U * np.sqrt(200 * values)) @ V.T).astype(np.float32)
    F = fj.fisher(fj.Function(lambda p, x: x @ p["w"], {"w": jnp.zeros((400, 1))}), x, fj.Gaussian())
    exact, truth = fj.spectrum(F), np.linalg.svd(x.astype(np.float64), compute_uv=False) ** 2 / 200
    assert exact.unresolved == 100
    without = np.asarray(exact.values, np.float64)
    for delta, rel in ((1e-2, 2e-4), (1e-3, 2e-3)):
        dimension = (truth / (truth + delta)).sum()
        assert exact.logdet(delta) == pytest.approx(np.log1p(truth / delta).sum(), rel=rel)
        assert exact.effective_dimension(delta) == pytest.approx(dimension, rel=rel)
        assert (without / (without + delta)).sum() < (1 - 3 * rel) * dimension


def test_integrals_of_an_exact_spectrum(digits):
    F, exact = digits["primal"]
    values = np.linalg.eigvalsh(np.asarray(F.dense(), np.float64))
    truth = truths(np.maximum(values, 0), 0.02 * values[-1], 0.01 * values[-1])
    for name, number in integrals(exact, 0.02 * values[-1], 0.01 * values[-1]).items():
        assert number == pytest.approx(truth[name], rel=1e-4), name
        assert isinstance(number, (int, float))
    with pytest.raises(fj.ArgumentError, match=r"above=0.0 is below rounding"):
        exact.count_above(0.0)
    with pytest.raises(fj.ArgumentError, match=r"damping=0 is not a positive number"):
        exact.logdet(0)


# --- the same numbers, whatever the circumstances ---------------------------------------------------------------------


def test_same_key_same_bits(digits, tmp_path):
    F, _ = digits["dual"]
    a, b = (fj.density(F, method=fj.SLQ(20, 4), key=KEY) for _ in range(2))
    for name in ("nodes", "weights", "diagonal", "coupling"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    # More probes go on where fewer ended.
    more = fj.density(F, method=fj.SLQ(20, 6), key=KEY)
    np.testing.assert_allclose(more.diagonal[:4], a.diagonal, rtol=1e-4)
    fj.save(a, tmp_path / "d.npz")
    again = fj.load(tmp_path / "d.npz")
    assert repr(again) == repr(a) and repr(again.count_above(1.0)) == repr(a.count_above(1.0))
    kpm = fj.density(F, method=fj.KPM(20, 2), key=KEY)
    fj.save(kpm, tmp_path / "k.npz")
    assert repr(fj.load(tmp_path / "k.npz")) == repr(kpm)


@pytest.mark.parametrize("side", ["dual", "primal"])
def test_chunks_devices_and_order_do_not_matter(side):
    """Up to rounding. In parameter space the order of the samples neither; in the dual it permutes the probes."""
    model = fj.models.build("mlp", inputs=10, outputs=4, width=16 if side == "dual" else 3, key=jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(83, 10)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("data",))
    F = fj.fisher(model, x, fj.Categorical())
    assert (F.dual.size < F.size) == (side == "dual")
    method = fj.SLQ(steps=12, probes=3)
    a = fj.density(F, method=method, key=KEY)
    others = [fj.fisher(model, x, fj.Categorical(), chunk=20), fj.fisher(model, x, fj.Categorical(), mesh=mesh)]
    if side == "primal":
        others.append(fj.fisher(model, x[::-1].copy(), fj.Categorical()))
    for G in others:
        b = fj.density(G, method=method, key=KEY)
        np.testing.assert_allclose(b.means, a.means, rtol=1e-4)
        assert b.trace().value == pytest.approx(a.trace().value, rel=1e-4)
        assert b.logdet(0.1).value == pytest.approx(a.logdet(0.1).value, rel=1e-4)
        assert (b.dimension, b.zeros, b.products) == (a.dimension, a.zeros, a.products)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_does_not_matter(scale):
    values = SPECTRA["Wishart"]
    a = fj.density(semidefinite(values), method=fj.SLQ(20, 4), key=KEY)
    b = fj.density(semidefinite(scale * values), method=fj.SLQ(20, 4), key=KEY)
    np.testing.assert_allclose(np.asarray(b.nodes) / scale, a.nodes, rtol=1e-3)
    assert b.trace().value == pytest.approx(scale * a.trace().value, rel=1e-5)
    assert b.logdet(scale).value == pytest.approx(a.logdet(1.0).value, rel=1e-5)


def test_interruption_keeps_what_is_done():
    import signal

    seen = []

    def progress(done, total):
        seen.append((done, total))
        if done == 5:
            signal.raise_signal(signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    values = SPECTRA["Wishart"]
    d = fj.density(semidefinite(values), method=fj.SLQ(30, 4), key=KEY, progress=progress)
    whole = fj.density(semidefinite(values), method=fj.SLQ(5, 4), key=KEY)
    assert "interrupted after 5 of 30 steps" in repr(d) and seen == [(i, 30) for i in range(1, 6)]
    np.testing.assert_allclose(d.nodes, whole.nodes, rtol=1e-5)
    assert d.products == whole.products and d.logdet(0.1).lower == pytest.approx(whole.logdet(0.1).lower, rel=1e-4)


def test_a_top_of_another_matrix_is_refused():
    values = np.r_[500.0, 400, 300, np.linspace(1, 0.01, 97)]
    matrix = zoo.prescribed(values).astype(np.float32)
    top = fj.eigsh(fj.MatrixOperator(matrix * np.float32(0.99)), 3, key=KEY)
    with pytest.raises(fj.ArgumentError, match=r"top has residuals of .* with this operator"):
        fj.density(fj.MatrixOperator(matrix), top=top, key=KEY)


def test_counts_of_whole_spaces_reach_their_number():
    operator = semidefinite(np.r_[100.0, [0.1] * 119])
    for seed in range(20):
        count = fj.density(operator, method=fj.SLQ(8, 2), key=jax.random.key(seed)).count_above(0.011)
        assert count.lower <= 120 <= count.upper


@pytest.mark.parametrize("stop, left", [(5, fj.KPM(12, 4)), (1, fj.KPM(4, 4))])
def test_interruption_leaves_a_lower_degree(stop, left):
    import signal

    def progress(done, total):
        if done == stop:
            signal.raise_signal(signal.SIGINT)

    values = SPECTRA["Wishart"]
    d = fj.density(semidefinite(values), method=fj.KPM(80, 4), key=KEY, progress=progress)
    whole = fj.density(semidefinite(values), method=left, key=KEY)
    assert f"interrupted at degree {2 * stop + 1} of 80" in repr(d)
    assert d.products == whole.products and d.trace().value == pytest.approx(whole.trace().value, rel=1e-5)


@pytest.mark.parametrize("method", [fj.SLQ(10, 2), fj.KPM(10, 2)], ids=["SLQ", "KPM"])
def test_bad_operators(method):
    def broken(V):
        return jnp.where(jnp.sum(V[0]) > 1e9, V, V / 0)

    with pytest.raises(fj.ArgumentError, match="the operator returned NaN or infinity"):
        fj.density(fj.FunctionOperator(broken, 50), method=method, key=KEY)
    skew = jnp.asarray(np.triu(np.random.default_rng(0).normal(size=(60, 60))), jnp.float32)
    if isinstance(method, fj.SLQ):
        with pytest.raises(fj.ArgumentError, match="is not symmetric"):
            fj.density(fj.FunctionOperator(jax.tree_util.Partial(product, skew), 60), method=method, key=KEY)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"method": "slq"}, r"density: method='slq' is not a method; give fj.SLQ"),
        ({"method": fj.XTrace(9)}, r"density: method=XTrace\(.*\) is not a method; give fj.SLQ"),
        ({"top": 3}, "density: top is a int; give fj.eigsh"),
        ({"key": 3}, "density: key=3 is not a JAX random key"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(fj.ArgumentError, match=message):
        fj.density(semidefinite(np.ones(9)), **({"key": KEY} | arguments))
    with pytest.raises(fj.ArgumentError, match="SLQ: steps=0 is below 1"):
        fj.SLQ(steps=0)
    with pytest.raises(fj.ArgumentError, match=r"KPM: probes=2.5 is not an integer"):
        fj.KPM(probes=2.5)
    with pytest.raises(fj.ArgumentError, match="density: operator or key is traced"):
        jax.jit(lambda key: fj.density(np.eye(3, dtype=np.float32), key=key).trace().value)(KEY)


def test_what_has_no_answer_is_refused():
    d = fj.density(fj.MatrixOperator(np.diag(np.linspace(-1, 1, 50)).astype(np.float32)), method=fj.SLQ(10, 2), key=KEY)
    with pytest.raises(fj.ArgumentError, match=r"density.logdet: the operator has negative eigenvalues; use"):
        d.logdet(0.1)
    assert d.count_above(0.0).lower <= 25 <= d.count_above(0.0).upper
    with pytest.raises(fj.ArgumentError, match="axis='cubic' is not known"):
        d.grid("cubic")
    with pytest.raises(fj.ArgumentError, match="values has entries <= 0 on the axis 'log'"):
        d([0.0], axis="log")
    with pytest.raises(fj.ArgumentError, match="width=0 is not a positive number"):
        d([0.0], width=0)
    with pytest.raises(fj.ArgumentError, match="above=nan is not a finite number"):
        d.count_above(float("nan"))
    k = fj.density(np.eye(30, dtype=np.float32), method=fj.KPM(10, 2), key=KEY)
    with pytest.raises(fj.ArgumentError, match=r"density.count_above: nothing bounds the integrals of KPM\(degree=10"):
        k.count_above(0.5)
    huge = fj.FunctionOperator(lambda V: V, 10**6)
    with pytest.raises(fj.ArgumentError, match=r"SLQ: steps=10000 and probes=100 keep .* GiB of vectors, .*; give fewer"):
        fj.density(huge, method=fj.SLQ(10_000, 100), key=KEY)
    zero = fj.density(np.zeros((9, 9), np.float32), key=KEY)
    with pytest.raises(fj.ArgumentError, match="no eigenvalue above rounding"):
        zero.grid()
    assert not zero([0.5]).any() and not np.any(zero.band([0.5])) and zero.ends == (0, 0)
    assert zero.effective_dimension(1e300).upper == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "0 of 9" in repr(zero)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_picture(digits):
    """What is drawn is the density, per unit of the axis; outliers where they are; zeros in the title."""
    F, exact = digits["dual"]
    top = fj.eigsh(F, 3, key=KEY)
    d = fj.density(F, method=fj.SLQ(20, 4), top=top, key=KEY)
    figure = fj.plot.density(d, exact, "title")
    left, right = figure.axes
    for panel, axis, unit in ((left, "linear", 1.0), (right, "log", np.log(10))):
        curve = next(line for line in panel.lines if line.get_label() == "density of the bulk")
        grid, drawn = curve.get_data()
        np.testing.assert_allclose(drawn, d(grid, axis=axis) * d.bulk * unit, rtol=1e-6)
        stems = next(c for c in panel.collections if c.get_label() == "3 outliers, exact")
        np.testing.assert_allclose(np.array(stems.get_segments())[:, 0, 0], top.values, rtol=1e-6)
        bars = next(p for p in panel.patches if p.get_label() == "exact spectrum")
        heights, edges, _ = bars.get_data()
        width = np.diff(np.log10(edges)) if axis == "log" else np.diff(edges)
        assert (heights * width).sum() == pytest.approx(exact.values.size)
    assert f"{exact.zeros} exact zeros of {F.size}" in figure._suptitle.get_text()
    negative = fj.density(fj.MatrixOperator(np.diag(np.linspace(-1, 1, 50)).astype(np.float32)), key=KEY)
    law = fj.theory.predict("mlp", inputs=8, samples=8, depth=2)
    assert len(fj.plot.density(negative, theory=law).axes) == 1
    with pytest.raises(fj.ArgumentError, match=r"plot.density: result is a Spectrum"):
        fj.plot.density(exact)
