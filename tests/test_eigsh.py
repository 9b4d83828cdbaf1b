"""Every solver on every matrix of the zoo, in both precisions; Lanczos in its parts."""

import dataclasses
import threading
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import scipy.sparse
import zoo
from cases import data, function

import fisher_jax as fj
from fisher_jax import krylov
from fisher_jax.solvers import unseen

KEY = jax.random.key(11)
METHODS = {
    "dense": fj.Dense(),
    "lanczos": fj.Lanczos(tol=1e-5),
    "lanczos, small basis": fj.Lanczos(tol=1e-5, steps=18),
    "block 3": fj.Lanczos(tol=1e-5, block=3),
    "auto": fj.Auto(),
}


def products(result):
    return int(dict(result.info)["products_to_convergence"])


def check(result, operator, truth, k):
    """Values against truth within their bounds, residuals recomputed in float64, vectors orthonormal, nothing hidden."""
    values, bounds = np.asarray(result.values, np.float64), np.asarray(result.bounds, np.float64)
    norm, unit = np.abs(truth).max(), oracle.eps(result.values.dtype)
    assert values.shape == (k,) and result.vectors.shape == (operator.size, k)
    assert bool(result.converged.all()), result
    assert (np.diff(values) <= 0).all()
    # The k-th value really is the k-th eigenvalue, with its multiplicity, within the bound that is claimed.
    # The truth is itself from LAPACK in float64, good to some units of its rounding.
    assert (np.abs(values - truth[:k]) <= bounds + 20 * oracle.eps("float64") * norm).all(), (values - truth[:k], bounds)
    # A bound is worth something: at most the tolerance plus rounding.
    assert bounds.max() <= (float(result.tol) + 100 * unit * np.sqrt(operator.size)) * norm + 1e-30
    V = np.asarray(result.vectors, np.float64)
    np.testing.assert_allclose(V.T @ V, np.eye(k), atol=100 * unit * np.sqrt(k))
    M = np.asarray(operator.dense(), np.float64)
    residuals = np.linalg.norm(M @ V - V * values, axis=0)
    slack = 100 * unit * norm
    assert (np.abs(residuals - np.asarray(result.residuals)) <= slack).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", zoo.SPECTRA)
def test_zoo(name, method, dtype):
    operator, truth = zoo.matrix(name, dtype)
    check(fj.eigsh(operator, 5, method=METHODS[method], key=KEY), operator, truth, 5)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("method", ["dense", "lanczos", "auto"])
def test_tiny(n, method, dtype):
    A = zoo.prescribed(np.arange(1.0, n + 1)).astype(dtype)
    for k in range(1, n + 1):
        truth = np.linalg.eigvalsh(A.astype(np.float64))[::-1]
        check(fj.eigsh(fj.MatrixOperator(A), k, method=METHODS[method], key=KEY), fj.MatrixOperator(A), truth, k)


def test_all_eigenvalues(dtype):
    operator, truth = zoo.matrix("arange", dtype)
    check(fj.eigsh(operator, zoo.N, method=fj.Lanczos(), key=KEY), operator, truth, zoo.N)


def test_every_eigenvalue_twice(dtype):
    operator, truth = zoo.ring_laplacian(400, dtype)
    result = fj.eigsh(operator, 7, method=fj.Lanczos(tol=1e-5, block=2, steps=120), key=KEY)
    assert (np.abs(np.asarray(result.values) - truth[:7]) <= np.asarray(result.bounds)).all()
    # One start vector cannot resolve pairs this close together; that is said.
    result = fj.eigsh(operator, 7, method=fj.Lanczos(tol=1e-5), key=KEY)
    assert float(result.complete_above) > 4 and "copies of those listed may be" in repr(result)


@pytest.mark.parametrize("seed", range(6))
def test_missed_copies_are_found(seed, x64):
    """A repeated eigenvalue above a dense bulk: one start vector sees it once, the search must find the copies."""
    values = np.r_[np.full(4, 2.0), 1.9, 1.8, np.linspace(1.0, 0.0, 594)]
    result = fj.eigsh(zoo.diagonal(values, "float64"), 3, method=fj.Lanczos(tol=1e-8), key=jax.random.key(seed))
    np.testing.assert_allclose(result.values, values[:3], atol=1e-7)


def test_without_the_search_copies_are_missed(x64, monkeypatch):
    """The previous test can fail: with a search too short to see anything, a copy stays hidden."""
    from fisher_jax.solvers import lanczos

    monkeypatch.setattr(
        lanczos,
        "_judge",
        lambda state, limits, plan, full: (
            state._replace(phase=jnp.full_like(state.phase, 2)),
            krylov.unchanged(state.basis),
        ),
    )
    values = np.r_[np.full(4, 2.0), 1.9, 1.8, np.linspace(1.0, 0.0, 594)]
    method = fj.Lanczos(tol=1e-8, steps=31)  # a shape of its own: nothing compiled with the real search is reused
    result = fj.eigsh(zoo.diagonal(values, "float64"), 3, method=method, key=jax.random.key(0))
    assert abs(float(result.values[1]) - 2.0) > 1e-3


# --- every eigenvalue above a threshold -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, above",
    [
        ("outliers over a bulk", 10.0),
        ("top value 6 times", 4.5),
        ("pairs", 8.0),
        ("flat then drop", 0.5),
        ("rank 3", 0.5),
        ("indefinite", 3.0),
    ],
)
@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_above(name, above, method, dtype):
    operator, truth = zoo.matrix(name, dtype)
    wanted = truth[truth > above]
    result = fj.eigsh(operator, 40, above=above, method=METHODS[method], key=KEY)
    assert result.values.shape == wanted.shape and bool(result.converged.all())
    slack = 20 * oracle.eps("float64") * np.abs(truth).max()
    assert (np.abs(np.asarray(result.values) - wanted) <= np.asarray(result.bounds) + slack).all()
    assert float(result.complete_above) <= above


def test_above_everything_and_above_too_many(x64):
    operator, truth = zoo.matrix("arange", "float64")
    assert fj.eigsh(operator, 5, above=1000.0, method=fj.Lanczos(), key=KEY).values.size == 0
    for method in (fj.Lanczos(), fj.Dense()):
        with pytest.warns(UserWarning, match="cannot exclude further eigenvalues above 100"):
            result = fj.eigsh(operator, 5, above=100.0, method=method, key=KEY)
        np.testing.assert_allclose(result.values, truth[:5], rtol=1e-6)


def test_bound_on_the_rest_holds(x64):
    """complete_above really bounds what is not in the list: over many keys, on a spectrum that decays slowly."""
    values = np.sort(np.random.default_rng(0).uniform(0, 1, 500) ** 3)[::-1]
    for seed in range(20):
        result = fj.eigsh(zoo.diagonal(values, "float64"), 3, method=fj.Lanczos(tol=1e-6), key=jax.random.key(seed))
        assert values[3] <= float(result.complete_above)


@pytest.mark.parametrize(
    "values, block, steps",
    [
        (np.r_[1.3, np.linspace(0, 1, 79)], 1, 7),
        (np.r_[1.02, np.linspace(-1, 1, 79)], 1, 20),
        (np.r_[1.3, np.linspace(0, 1, 79)], 2, 5),
        (np.r_[1.3, np.linspace(0, 1, 79)], 4, 3),
        (np.r_[3e-13, np.zeros(79)], 1, 3),  # Krylov spaces close at once unless the start sees the first
    ],
)
def test_odds_of_missing_an_eigenvalue_are_as_stated(values, block, steps, x64):
    """Over random starts, odds below p at the top eigenvalue come with probability at most p, and not much less."""
    operator = zoo.diagonal(values, "float64")
    top = float(values[0])

    @jax.jit
    def odds(key):
        basis = krylov.start(jax.random.normal(key, (block, values.size), jnp.float64), steps * block, key)
        basis = basis._replace(norm=jnp.ones(()))
        for _ in range(steps):
            basis = krylov.expand(operator.matmat, basis)
        seen = krylov.ritz(basis)[0][0]
        odds, _ = unseen.log_odds(basis, jnp.int32(0), values.size, seen, jnp.asarray([top]), jnp.asarray(1e-16))
        return seen, odds[0]

    seen, found = (np.asarray(a) for a in jax.lax.map(odds, jax.random.split(KEY, 2000)))
    assert (found <= 0).all() and (seen <= top * (1 + 1e-12)).all()
    for p in (0.5, 0.2, 0.05):
        assert (np.exp(found) <= p).mean() <= p + 3 * np.sqrt(p / found.size)
    assert (np.exp(found) <= 0.5).any()


def test_odds_of_many_starts_are_not_their_product(x64):
    """Sums of logarithms of uniform numbers, the worst case: each rule is wrong with at most the stated probability."""
    uniform = np.random.default_rng(0).uniform(size=(20000, 30))
    sums = jnp.asarray(np.cumsum(np.log(uniform), axis=1))
    wrong = np.asarray(jax.vmap(unseen.excluded)(sums, jnp.broadcast_to(jnp.arange(1, 31, dtype=jnp.int32), sums.shape)))
    assert 0 < wrong.any(axis=1).mean() <= unseen.FAILURE + 3 * np.sqrt(unseen.FAILURE / 20000)
    assert (np.asarray(sums) <= np.log(unseen.FAILURE)).any(axis=1).mean() > 0.9  # the product would be


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hidden_eigenvalue_is_not_excluded_by_short_searches():
    """Many searches of two steps each, none of which can see much."""
    values = np.r_[10.0, 1.02, np.repeat(np.linspace(0, 1, 16), 125)[:1998]]
    operator = zoo.diagonal(values, "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [fj.eigsh(operator, 3, method=fj.Lanczos(steps=5), above=1.01, key=jax.random.key(s)) for s in range(40)]
    assert all(r.values.size == 2 or not float(r.complete_above) <= 1.01 for r in results)


@pytest.mark.parametrize(
    "values, method, k",
    [
        (np.geomspace(1, 1e-9, 200), fj.Dense(), 120),
        (np.geomspace(1, 1e-9, 200), fj.Dense(), 200),
        (np.geomspace(1, 1e-9, 45), fj.Lanczos(tol=1e-6), 36),
        pytest.param(np.geomspace(1, 1e-9, 45), fj.Randomized(tol=1e-6, depth=3), 36, marks=pytest.mark.slow),
        pytest.param(np.geomspace(1, 1e-9, 45), fj.Nystrom(tol=1e-6), 36, marks=pytest.mark.slow),
    ],
    ids=lambda value: "" if isinstance(value, np.ndarray) else str(value).split("(")[0],
)
def test_none_is_lost_in_lifting_from_the_dual(values, method, k):
    """Down to rounding, values above `complete_above` are in the list, each within its bound."""
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.normal(size=(n, 200)))[0] for n in (200, 400))
    x = ((U * np.sqrt(200 * np.pad(values, (0, 200 - len(values))))) @ V.T).astype(np.float32)
    truth = np.linalg.svd(x.astype(np.float64), compute_uv=False) ** 2 / 200
    F = fj.fisher(fj.Function(lambda p, x: x @ p["w"], {"w": jnp.zeros((400, 1))}), x, fj.Gaussian())
    result = fj.eigsh(F, k, method=method, key=KEY)
    above = truth > float(result.complete_above)
    assert bool(result.converged.all()) and above.sum() <= k and above[:15].all()
    errors = np.abs(np.asarray(result.values, np.float64) - truth[:k])
    assert (errors <= np.asarray(result.bounds))[above[:k]].all()


def test_what_did_not_converge_is_not_excluded():
    """A threshold at a value repeated 40 times, where rounding keeps some from converging."""
    values = np.r_[[3.0] * 40, [2.0] * 40, np.linspace(1, 0, 220)]
    operator = fj.MatrixOperator(zoo.prescribed(values).astype(np.float32), psd=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fj.eigsh(operator, 50, above=3.0, method=fj.Lanczos(), key=KEY)
        few = fj.eigsh(operator, 3, method=fj.Lanczos(steps=9, restarts=1), key=KEY)
    assert result.values.size == 40 or float(result.complete_above) > 3 - 1e-5
    assert bool(few.converged.all()) or not float(few.complete_above) < 3 - 1e-5


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
@pytest.mark.parametrize("method", [fj.Lanczos(), fj.Randomized()], ids=["Lanczos", "Randomized"])
def test_starts_that_vanish_or_overflow(method, scale):
    operator, truth = zoo.matrix("condition 1e5", "float32")
    operator = fj.MatrixOperator(operator.matrix * np.float32(scale))
    null = np.zeros((zoo.N, 2), np.float32)
    for start in (null, null + 1e30, null + 1e-35, np.concatenate([null + 1e30, null], axis=1)):
        result = fj.eigsh(operator, 3, v0=start, method=method, key=KEY)
        np.testing.assert_allclose(np.asarray(result.values, np.float64) / scale, truth[:3], rtol=1e-4)
    exact = fj.eigsh(operator, 3, method=fj.Dense(), key=KEY).vectors
    near, far = (fj.eigsh(operator, 3, v0=s * exact, method=method, key=KEY) for s in (1.0, 1e30))
    assert products(near) == products(far)


def test_dense_of_weights_in_half_precision():
    """Products in bfloat16 err by more than the rounding of float32: the bounds say so, nothing is lost."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(30, 20)).astype(np.float32), rng.normal(size=(20, 4))
    F = fj.fisher(
        fj.Function(lambda p, x: x @ p["w"].astype(x.dtype), {"w": jnp.asarray(w, jnp.bfloat16)}), x, fj.Gaussian()
    )
    truth = np.repeat(np.linalg.eigvalsh(x.astype(np.float64) @ x.T / 30)[::-1], 4)
    result = fj.eigsh(F, 5, method=fj.Dense(), key=KEY)
    assert (
        bool(result.converged.all()) and (np.abs(np.asarray(result.values) - truth[:5]) <= np.asarray(result.bounds)).all()
    )


# --- behaviour --------------------------------------------------------------------------------------------------------


def test_tolerance_below_rounding_is_replaced_and_said():
    operator, truth = zoo.matrix("arange", "float32")
    result = fj.eigsh(operator, 3, method=fj.Lanczos(tol=1e-12), key=KEY)
    assert float(result.tol) > 1e-7 and bool(result.converged.all())
    assert "rounding error" in dict(result.info)["note"] and "rounding error" in repr(result)
    check(result, operator, truth, 3)


def test_not_converged_is_nan_and_warned():
    operator, _ = zoo.ring_laplacian(3000, "float32")
    with pytest.warns(UserWarning, match="did not converge and are NaN; raise steps or restarts"):
        result = fj.eigsh(operator, 4, method=fj.Lanczos(tol=1e-6, steps=14, restarts=0), key=KEY)
    assert not result.converged.any() and np.isnan(result.values).all() and np.isnan(result.vectors).all()


def test_same_key_same_bits():
    operator, _ = zoo.matrix("geometric 0.7", "float32")
    a, b = (fj.eigsh(operator, 4, method=fj.Lanczos(), key=KEY) for _ in range(2))
    assert np.array_equal(a.values, b.values) and np.array_equal(a.vectors, b.vectors)


def test_start_vector(x64):
    operator, truth = zoo.matrix("geometric 0.7", "float64")
    check(fj.eigsh(operator, 3, v0=np.ones(zoo.N), method=fj.Lanczos(), key=KEY), operator, truth, 3)
    # An exact eigenvector as the start: the Krylov space closes at once.
    start = np.linalg.eigh(np.asarray(operator.matrix))[1][:, -1]
    check(fj.eigsh(operator, 3, v0=start, method=fj.Lanczos(), key=KEY), operator, truth, 3)


@pytest.mark.parametrize("block", [1, 4])
def test_start_vectors(block, x64):
    """Near the answer fewer products are needed; whatever the start, the answer is the same."""
    operator, truth = zoo.matrix("condition 1e5", "float64")
    method = fj.Lanczos(tol=1e-6, block=block)
    plain = fj.eigsh(operator, 3, method=method, key=KEY)
    exact = np.linalg.eigh(np.asarray(operator.matrix))[1][:, ::-1]
    near = exact[:, :3] + 1e-4 * np.random.default_rng(0).normal(size=(zoo.N, 3))
    for start in (exact[:, :3], near, near[:, :1], exact[:, 10:17]):
        result = fj.eigsh(operator, 3, v0=start, method=method, key=KEY)
        check(result, operator, truth, 3)
        if start is near:
            assert products(result) < products(plain)


def test_start_vectors_are_lifted_to_the_dual(x64):
    x, _ = fj.data.load("digits", samples=30)
    model = fj.models.build("mlp", inputs=64, outputs=10, width=10, key=KEY)
    F = fj.fisher(model, x.astype(np.float64), fj.Categorical())
    exact = fj.eigsh(F, 4, method=fj.Dense(), key=KEY)
    plain, warm = (fj.eigsh(F, 4, v0=v0, method=fj.Lanczos(), key=KEY) for v0 in (None, exact.vectors))
    np.testing.assert_allclose(warm.values, exact.values, rtol=1e-8)
    assert products(warm) < products(plain)


def test_threads(x64):
    operator, truth = zoo.matrix("pairs", "float64")
    results = {}

    def run(seed):
        with jax.enable_x64(True):
            results[seed] = fj.eigsh(operator, 4, method=fj.Lanczos(), key=jax.random.key(seed))

    threads = [threading.Thread(target=run, args=(s,)) for s in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for result in results.values():
        check(result, operator, truth, 4)


def test_jitted_as_a_whole(dtype):
    operator, truth = zoo.matrix("outliers over a bulk", dtype)

    @jax.jit
    def solve(operator, key):
        return fj.eigsh(operator, 4, method=fj.Lanczos(tol=1e-5), key=key)

    check(solve(operator, KEY), operator, truth, 4)
    model, _, _ = function(dtype)
    F = fj.fisher(model, np.tile(data(dtype), (20, 1)) + np.arange(140, dtype=dtype)[:, None] / 50, fj.Categorical())
    assert "Fisher" in type(F).__name__
    truth = np.linalg.eigvalsh(np.asarray(F.dense(), np.float64))[::-1]
    result = solve(F, KEY)
    assert (np.abs(np.asarray(result.values) - truth[:4]) <= np.asarray(result.bounds)).all()


@pytest.mark.slow
def test_lifted_pairs_far_below_the_largest_converge_to_what_rounding_allows():
    """y = Aᵀu/√λ has the rounding error of u times √(λ_max/λ): reachable, or said; values keep their bounds."""
    x, _ = fj.data.load("digits", samples=150)
    model = fj.models.build("mlp", inputs=64, outputs=10, depth=2, width=100, key=jax.random.key(0))
    F = fj.fisher(model, x, fj.Categorical())
    truth = np.linalg.eigvalsh(np.asarray(F.dual.dense(), np.float64))[::-1]
    top = fj.eigsh(F, 150, method=fj.Lanczos(), key=KEY)
    assert bool(top.converged.all()) and truth[149] < 0.02 * truth[0]
    assert float(top.tol) > 1e-6 and "below the rounding error of the residuals" in repr(top)
    assert (np.abs(np.asarray(top.values) - truth[:150]) <= np.asarray(top.bounds)).all()
    V = np.asarray(top.vectors, np.float64)
    R = np.asarray(F.dense(), np.float64) @ V - V * np.asarray(top.values, np.float64)
    assert (np.linalg.norm(R, axis=0) <= float(top.tol) * truth[0] * 2).all()


def test_progress_and_interruption_keep_what_converged(x64):
    import _thread

    # Three values far above a slowly converging rest: interrupted after they are in.
    values = np.r_[100.0, 60.0, 40.0, 1 + 1e-4 * np.linspace(1, 0, 4000)]
    seen = []

    def interrupt(progress):
        seen.append(progress)
        if progress.products > 60:
            _thread.interrupt_main()

    with pytest.warns(UserWarning, match="did not converge"):
        result = fj.eigsh(zoo.diagonal(values, "float64"), 6, method=fj.Lanczos(tol=1e-9), key=KEY, progress=interrupt)
    assert np.array_equal(result.converged, [True, True, True, False, False, False])
    np.testing.assert_allclose(result.values[:3], values[:3], rtol=1e-8)
    assert "interrupted" in dict(result.info)["note"]
    assert [p.products for p in seen] == sorted({p.products for p in seen}) and seen[0].wanted == 6


def test_one_trace_for_a_whole_solve_and_for_equal_operators():
    """The product is traced once, whatever the number of steps, restarts, and separately built equal operators."""
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def scaled(values, V):
        return values[:, None] * V

    product = jax.jit(scaled)

    for seed in range(3):
        values = jnp.asarray(np.random.default_rng(seed).uniform(0, 1, 800) ** 4, jnp.float32)
        operator = fj.FunctionOperator(jax.tree_util.Partial(product, values), 800, jnp.float32, psd=True)
        fj.eigsh(operator, 4, method=fj.Lanczos(tol=1e-5), key=jax.random.key(seed))


def test_model_is_not_retraced_by_solves():
    traces = []
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(5, 40)), jnp.float32), "v": jnp.ones((40, 3)) / 7}

    def apply(p, x):
        traces.append(x.shape)
        return jnp.tanh(x @ p["w"]) @ p["v"]

    x = np.random.default_rng(1).normal(size=(300, 5)).astype(np.float32)
    for chunk in ("auto", 128):
        F = fj.fisher(fj.Function(apply, params), x, fj.Categorical(), chunk=chunk)
        fj.eigsh(F, 4, method=fj.Lanczos(tol=1e-4), key=jax.random.key(0))
        before = len(traces)
        for seed in range(2):
            weights = jax.tree.map(lambda a, s=seed: a * (1 + s), params)
            F = fj.fisher(fj.Function(apply, weights), x, fj.Categorical(), chunk=chunk)
            checked = len(traces)
            fj.eigsh(F, 4, method=fj.Lanczos(tol=1e-4), key=jax.random.key(seed))
            assert len(traces) == checked
        # Construction itself traces for shapes and for the check of the rules, a fixed number of times.
        assert len(traces) - before <= 2 * 6


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"k": 0}, "eigsh: k=0 is below 1; give k >= 1"),
        ({"k": 161}, "eigsh: k=161 exceeds size 160; give k <= 160"),
        ({"k": 2.5}, "eigsh: k=2.5 is not an integer"),
        ({"k": 3, "v0": np.ones(4), "method": fj.Lanczos()}, r"eigsh: v0 has shape \(4,\)"),
        ({"k": 3, "v0": np.full(160, np.nan), "method": fj.Lanczos()}, "eigsh: v0 has 160 NaN"),
        ({"k": 3, "v0": np.ones((160, 0)), "method": fj.Lanczos()}, r"eigsh: v0 has shape \(160, 0\); .* \(160, j\)"),
        ({"k": 9, "method": fj.Lanczos(steps=5)}, "Lanczos: steps=5 is too small for k=9"),
        ({"k": 9, "method": "lanczos"}, "eigsh: method='lanczos' is not a method"),
        ({"k": 9, "method": fj.Lanczos}, "eigsh: method=<class .*> is not a method"),
        ({"k": 9, "above": float("nan")}, "eigsh: above=nan is not a finite number"),
        ({"k": 9, "above": "1"}, "eigsh: above='1' is not a finite number"),
        ({"k": 9, "v0": np.ones(4)}, r"eigsh: v0 has shape \(4,\)"),
    ],
)
def test_bad_arguments(arguments, message):
    operator, _ = zoo.matrix("arange", "float32")
    with pytest.raises(fj.ArgumentError, match=message):
        fj.eigsh(operator, key=KEY, **arguments)


def test_arrays_are_operators(dtype):
    A = zoo.prescribed([3.0, 2.0, 1.0]).astype(dtype)
    for matrix in (A, jnp.asarray(A)):
        np.testing.assert_allclose(fj.eigsh(matrix, 2, key=KEY).values, [3, 2], rtol=1e-5)


def test_bad_operators():
    with pytest.raises(fj.ArgumentError, match="matrix - matrixᵀ reaches"):
        fj.MatrixOperator(np.triu(np.ones((3, 3))))
    with pytest.raises(fj.ArgumentError, match="matrix has shape"):
        fj.MatrixOperator(np.ones((3, 2)))
    with pytest.raises(fj.ArgumentError, match="operator is a list; give"):
        fj.eigsh([[1.0]], 1, key=KEY)
    with pytest.raises(fj.ArgumentError, match="returned NaN or infinity"):
        fj.eigsh(fj.FunctionOperator(lambda V: V / 0, 500), 2, method=fj.Lanczos(), key=KEY)
    for tol in (0, 1.0):
        for method in (fj.Lanczos, fj.Auto, fj.Randomized, fj.Nystrom):
            with pytest.raises(ValueError, match=f"{method.__name__}: tol={tol} is"):
                method(tol=tol)
    with pytest.raises(fj.ArgumentError, match=r"MatrixOperator: matrix has 1 NaN or infinite value\(s\) among 9"):
        fj.MatrixOperator(np.diag([1, np.nan, 2]))
    with pytest.raises(fj.ArgumentError, match="Dense: size 20000 exceeds 16000"):
        fj.eigsh(fj.FunctionOperator(lambda V: V, 20000), 2, method=fj.Dense(), key=KEY)


@pytest.mark.parametrize("make", [fj.MatrixOperator, lambda a: fj.SparseOperator(scipy.sparse.csr_array(a))])
@pytest.mark.parametrize("scale", [1e-50, 1e50])
def test_what_float32_does_not_hold_is_refused(make, scale):
    """float64 arrays become float32 unless x64 is enabled: zeros, or infinity."""
    with pytest.raises(fj.ArgumentError, match=r"entries of at most 3.0e[+-]50 leave the range of float32; enable x64"):
        make(scale * np.diag([1.0, 2.0, 3.0]))
    make(np.diag([1e-50, 2.0, 3.0]))
    with jax.enable_x64(True):
        assert float(fj.eigsh(make(scale * np.diag([1.0, 2.0, 3.0])), 1, key=KEY).values[0]) == pytest.approx(3 * scale)


@pytest.mark.parametrize("function", [lambda V: V**3, lambda V: 2 * V + 1, jnp.abs], ids=["cube", "shift", "abs"])
def test_functions_that_are_not_linear_are_refused(function):
    operator = fj.FunctionOperator(function, 200)
    for method in (fj.Lanczos(), fj.Randomized(), fj.Dense()):
        with pytest.raises(fj.ArgumentError, match=r"is not (linear|symmetric)"):
            fj.eigsh(operator, 3, method=method, key=KEY)
    with pytest.raises(fj.ArgumentError, match=r"is not (linear|symmetric)"):
        fj.density(operator, key=KEY)
    with pytest.raises(fj.ArgumentError, match=r"is not (linear|symmetric)"):
        fj.trace(operator, method=fj.XTrace(20), key=KEY)


def test_messages_name_what_helps():
    """Not the options of another method; no residual where there is none."""
    operator, _ = zoo.matrix("geometric 0.7", "float32")
    none = fj.EigenResult(
        *(jnp.full(s, jnp.nan) for s in ((2,), (5, 2), (2,), (2,))),
        converged=jnp.zeros(2, bool),
        matvecs=jnp.asarray(7),
        floor=jnp.asarray(1e-7),
        tol=jnp.asarray(1e-6),
        complete_above=jnp.asarray(jnp.nan),
        method="Randomized(tol=1e-06)",
    )
    assert repr(none).startswith("EigenResult: 0/2 converged, 7 products, Randomized(tol=1e-06)\n")
    doubtful = dataclasses.replace(fj.eigsh(operator, 2, method=fj.Dense(), key=KEY), complete_above=jnp.asarray(2.0))
    assert doubtful.completeness().endswith("copies of those listed may be")
    with pytest.warns(UserWarning, match=r"above 0.001 \(nothing is established\); raise k, or lower tol$"):
        fj.eigsh(operator, 2, method=fj.Lanczos(), above=1e-3, key=KEY)
    with pytest.raises(fj.ArgumentError, match="v0 is complex"):
        fj.eigsh(operator, 2, v0=1j * np.ones(operator.size), key=KEY)


# --- the factorization ------------------------------------------------------------------------------------------------


def expanded(operator, steps, m, block, seed=0):
    start = jax.random.normal(jax.random.key(seed), (block, operator.size), operator.dtype)
    basis = jax.jit(krylov.start, static_argnums=1)(start, m, jax.random.key(seed + 1))
    step = jax.jit(lambda basis: krylov.expand(operator.matmat, basis))
    for _ in range(steps):
        basis = step(basis)
    return basis


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("name", ["geometric 0.7", "rank 3", "zero", "identity", "arange", "pairs"])
def test_factorization_identities(name, block, dtype):
    """M Vᵀ = Vᵀ T + Qᵀ C and orthonormality, also after breakdown, compression and injection."""
    operator, truth = zoo.matrix(name, dtype)
    basis = expanded(operator, 6, 24, block)

    def check_identity(basis):
        j = int(basis.size)
        V, Q = np.asarray(basis.vectors[:j], np.float64), np.asarray(basis.vectors[j : j + block], np.float64)
        T, C = np.asarray(basis.T[:j, :j], np.float64), np.asarray(basis.C[:, :j], np.float64)
        M = np.asarray(operator.matrix, np.float64)
        unit = oracle.eps(dtype)
        scale = max(np.abs(truth).max(), 1e-30)
        both = np.concatenate([V, Q])
        np.testing.assert_allclose(both @ both.T, np.eye(len(both)), atol=100 * unit)
        # Breakdown drops couplings below 64 eps ‖M‖.
        np.testing.assert_allclose(M @ V.T, V.T @ T + Q.T @ C, atol=300 * unit * scale)
        np.testing.assert_allclose(np.asarray(basis.images[:j]), V @ M, atol=100 * unit * scale)

    check_identity(basis)
    values, S, _ = jax.jit(krylov.ritz)(basis)
    move = jax.jit(krylov.move)
    basis = move(*krylov.compress(basis, values, S, jnp.asarray(4)))
    check_identity(basis)
    basis = jax.jit(lambda basis: krylov.expand(operator.matmat, basis))(basis)
    check_identity(basis)
    unmoved = move(basis, krylov.unchanged(basis))
    assert np.array_equal(unmoved.vectors, basis.vectors) and np.array_equal(unmoved.images, basis.images)


def test_compress_in_panels(monkeypatch, x64):
    """Rotation by panels equals rotation at once, also when the panel does not divide the length."""
    operator, _ = zoo.matrix("arange", "float64")
    basis = expanded(operator, 8, 12, 1)
    values, S, _ = krylov.ritz(basis)
    whole = krylov.move(*krylov.compress(basis, values, S, jnp.asarray(5)))
    monkeypatch.setattr(krylov, "PANEL", 37)
    panels = krylov.move(*krylov.compress(basis, values, S, jnp.asarray(5)))
    np.testing.assert_allclose(panels.vectors, whole.vectors, atol=1e-14)
    np.testing.assert_allclose(panels.images, whole.images, atol=1e-12)


def test_no_warning_when_all_is_well():
    operator, _ = zoo.matrix("geometric 0.7", "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fj.eigsh(operator, 3, key=KEY)


def test_gram_stores_the_dual(x64):
    """Every product of the iteration is with the stored K; vectors and residuals are those of F."""
    x = np.random.default_rng(0).normal(size=(40, 5))
    params = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(5, 60))), "v": jnp.ones((60, 3)) / 8}
    model = fj.Function(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], params)
    F = fj.fisher(model, x, fj.Gaussian())
    found = fj.eigsh(F, 5, method=fj.Gram(), key=jax.random.key(0))
    truth = np.linalg.eigvalsh(np.asarray(F.dense()))[::-1][:5]
    assert found.converged.all() and (np.abs(np.asarray(found.values) - truth) <= np.asarray(found.bounds)).all()
    V = np.asarray(found.vectors)
    assert np.linalg.norm(np.asarray(F @ V) - V * truth, axis=0).max() <= 1e-6 * truth[0]
    assert found.method.startswith("Gram")
    with pytest.raises(fj.ArgumentError, match="has no layers to build K from"):
        fj.eigsh(fj.MatrixOperator(np.eye(4)), 1, method=fj.Gram(), key=jax.random.key(0))
    few = fj.fisher(fj.Function(lambda p, x: x @ p, jnp.ones((5, 1))), x, fj.Gaussian())
    with pytest.raises(fj.ArgumentError, match="K is 40 x 40, F 5"):
        fj.eigsh(few, 1, method=fj.Gram(), key=jax.random.key(0))
