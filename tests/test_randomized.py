"""Randomized block Krylov, Nyström and single-pass sketches: golden values, traps, bounds as often as stated."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import scipy.sparse
import zoo
from jax.sharding import AxisType
from test_eigsh import check, products

import fisher_jax as fj
from fisher_jax import linalg
from fisher_jax.operators import apply
from fisher_jax.solvers import randomized, sketch, unseen

KEY = jax.random.key(11)
METHOD = fj.Randomized(tol=1e-5)
PSD = [name for name, values in zoo.SPECTRA.items() if np.min(values) >= 0]


def psd(A):
    """A matrix as an operator that says it has no negative eigenvalue."""
    return fj.FunctionOperator(jax.tree_util.Partial(jnp.matmul, jnp.asarray(A)), len(A), A.dtype, psd=True)


def psd_diagonal(values):
    diagonal = jnp.asarray(values, jnp.float32)
    return fj.FunctionOperator(jax.tree_util.Partial(lambda d, V: d[:, None] * V, diagonal), len(values), psd=True)


def eigenvalues(A):
    return np.linalg.eigvalsh(np.asarray(A, np.float64))[::-1]


def digits(samples, width=10):
    x, _ = fj.data.load("digits", samples=samples)
    model = fj.models.build("mlp", inputs=64, outputs=10, depth=2, width=width, key=jax.random.key(0))
    return model, x


@pytest.fixture(scope="module")
def digits_matrix():
    """The dual of a real Fisher matrix, of 30 samples, with its eigenvalues."""
    model, x = digits(30)
    K = np.asarray(fj.fisher(model, x, fj.Categorical()).dual.dense())
    return (K + K.T) / 2


def quietly(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fj.eigsh(*arguments, **options)


def both_precisions(names):
    """All in float64; in float32 three of them, the others marked slow: each compiles anew."""
    quick = ("geometric 0.7", "rank 3", "pairs")
    slow = [pytest.param(n, "float32", marks=pytest.mark.slow) for n in names if n not in quick]
    return [*((n, "float64") for n in names), *((n, "float32") for n in names if n in quick), *slow]


# --- golden values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, dtype", both_precisions([name for name in zoo.SPECTRA if name != "all negative"]), indirect=["dtype"]
)
def test_zoo(name, dtype):
    operator, truth = zoo.matrix(name, dtype)
    result = fj.eigsh(operator, 5, method=METHOD, key=KEY)
    check(result, operator, truth, 5)
    norm, unit = np.abs(truth).max(), oracle.eps(dtype)
    # PRIMME's rule for what is accepted.
    assert (np.abs(np.asarray(result.values) - truth[:5]) <= float(result.tol) * norm).all()
    assert (np.asarray(result.residuals) <= (float(result.tol) + 100 * unit) * np.sqrt(5) * norm).all()
    assert truth[5] <= float(result.complete_above) + 100 * unit * norm


def test_values_near_zero_below_large_negative_ones_are_not_reached_and_that_is_said():
    operator, _ = zoo.matrix("all negative", "float32")
    with pytest.warns(
        UserWarning, match="5 of 5 eigenvalues did not converge and are NaN; raise passes or tol of fj.Randomized"
    ):
        result = fj.eigsh(operator, 5, method=fj.Randomized(tol=1e-5, passes=8), key=KEY)
    assert np.isnan(result.values).all() and not result.converged.any() and np.isnan(float(result.complete_above))


@pytest.mark.parametrize("name, dtype", both_precisions(PSD), indirect=["dtype"])
def test_zoo_by_nystrom(name, dtype):
    """What is given holds; spectra that do not decay within the rank are given up, and that is said."""
    operator, truth = zoo.matrix(name, dtype)
    result = quietly(psd(operator.matrix), 5, method=fj.Nystrom(tol=1e-2, doublings=2), key=KEY)
    done, values, bounds = (np.asarray(a) for a in (result.converged, result.values, result.bounds))
    slack = 20 * oracle.eps("float64") * truth[0]
    if name in ("geometric 0.7", "rank 3", "rank 3, repeated", "zero", "identity", "flat then drop"):
        assert done.all()
    for value, bound in zip(values[done], bounds[done], strict=True):
        assert np.abs(truth - value).min() <= bound + slack
    V = np.asarray(result.vectors, np.float64)[:, done]
    R = np.asarray(operator.matrix, np.float64) @ V - V * values[done]
    np.testing.assert_allclose(
        np.linalg.norm(R, axis=0), np.asarray(result.residuals)[done], atol=100 * oracle.eps(dtype) * truth[0]
    )
    assert truth[5] <= float(result.complete_above) + slack


# --- traps ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_slow_decay_at_a_million():
    values = np.r_[10.0, 9.0, 8.0, 7.0, 6.0, np.arange(1, 10**6 - 4) ** -0.5]
    method = fj.Randomized(tol=1e-4, oversampling=3, depth=3)
    result = fj.eigsh(zoo.diagonal(values, "float32"), 5, method=method, key=KEY)
    assert bool(result.converged.all())
    error = np.abs(np.asarray(result.values, np.float64) - values[:5])
    assert (error <= np.asarray(result.bounds)).all() and error.max() <= 1e-4 * 10
    assert values[5] <= float(result.complete_above) < 6


@pytest.mark.slow
def test_slow_decay_by_nystrom_is_not_converged_and_never_wrong():
    values = np.r_[10.0, 9.0, 8.0, 7.0, 6.0, np.arange(1, 10**5 - 4) ** -0.5]
    with pytest.warns(UserWarning, match="did not converge and are NaN; raise rank, doublings or tol"):
        result = fj.eigsh(zoo.diagonal(values, "float32"), 5, method=fj.Nystrom(tol=1e-3, doublings=0), key=KEY)
    assert not result.converged.any() and np.isnan(result.values).all()
    assert values[5] <= float(result.complete_above)


@pytest.mark.slow
def test_clusters_keep_their_multiplicity(dtype):
    values = np.r_[np.full(10, 10.0), np.full(10, 1.0), np.full(10**4, 1e-3)]
    result = fj.eigsh(zoo.diagonal(values, dtype), 20, method=METHOD, key=KEY)
    assert bool(result.converged.all())
    assert (np.abs(np.asarray(result.values, np.float64) - values[:20]) <= np.asarray(result.bounds)).all()
    assert float(result.complete_above) < 1


@pytest.mark.parametrize("searched", [True, False])
def test_what_the_start_does_not_see_is_found_by_the_search(searched, monkeypatch, x64):
    """A start block without any of the largest eigenvector: without the search it would be missed."""
    begin = randomized._begin

    def blind(*arguments):
        basis = begin(*arguments)
        b = basis.C.shape[0]
        rows = linalg.orthonormal(basis.vectors[:b].at[:, 0].set(0), jnp.zeros_like(basis.vectors[:1]), jnp.ones(()), KEY)
        return basis._replace(vectors=basis.vectors.at[:b].set(rows))

    monkeypatch.setattr(randomized, "_begin", blind)
    if not searched:
        nothing = jnp.asarray(-jnp.inf)
        monkeypatch.setattr(unseen, "search", lambda *a: unseen.Found(nothing, nothing, nothing, 0))
    values = np.r_[1.5, 1.0, 0.9, 0.01 * np.linspace(1, 0, 400)]
    result = fj.eigsh(zoo.diagonal(values, "float64"), 2, method=fj.Randomized(tol=1e-3), key=KEY)
    np.testing.assert_allclose(result.values, [1.5, 1.0] if searched else [1.0, 0.9], atol=1e-3)


@pytest.mark.parametrize("method", [METHOD, fj.Nystrom(rank=45)])
def test_more_than_the_rank(method, dtype):
    G = np.random.default_rng(0).normal(size=(400, 16)) / 20
    A = (G @ G.T).astype(dtype)
    A = (A + A.T) / 2
    truth = eigenvalues(A)
    result = fj.eigsh(psd(A), 40, method=method, key=KEY)
    assert bool(result.converged.all())
    assert (np.abs(np.asarray(result.values, np.float64) - truth[:40]) <= np.asarray(result.bounds)).all()
    assert not np.any(np.asarray(result.values[16:])), "past the rank: exactly zero"


@pytest.mark.parametrize("method", [METHOD, fj.Nystrom()])
def test_zero_operator(method):
    operator = fj.FunctionOperator(lambda V: 0 * V, 300, psd=True)
    result = fj.eigsh(operator, 3, method=method, key=KEY)
    assert bool(result.converged.all()) and not np.any(np.asarray(result.values))
    assert float(np.max(result.bounds)) == 0 and float(result.complete_above) <= 0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("method", [METHOD, fj.Nystrom(tol=1e-3)])
def test_norms_whose_squares_vanish_or_overflow(scale, method):
    values = np.r_[3.0, 2.0, 1.9, 0.5 ** np.arange(1, 300)]
    A = (zoo.prescribed(values) * scale).astype(np.float32)
    result = fj.eigsh(psd(A), 2, method=method, key=KEY)
    assert bool(result.converged.all())
    np.testing.assert_allclose(np.asarray(result.values, np.float64) / scale, values[:2], rtol=1e-4)
    assert 1.9 * (1 - 1e-6) <= float(result.complete_above) / scale <= 3


def test_indefinite_largest_are_algebraic(x64):
    """Large negative eigenvalues converge first and are not asked for."""
    values = np.r_[3.0, 2.0, 1.0, np.linspace(0.5, -2, 300), -20, -30]
    result = fj.eigsh(zoo.diagonal(values, "float64"), 3, method=fj.Randomized(tol=1e-8), key=KEY)
    np.testing.assert_allclose(result.values, [3, 2, 1], atol=1e-6)
    assert 0.5 <= float(result.complete_above) < 1


# --- Fisher matrices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [fj.Randomized(tol=1e-4, depth=3), fj.Nystrom(tol=3e-2)])
def test_fisher_through_the_dual(method, digits_matrix):
    """Values are those of K, vectors and residuals those of F."""
    model, x = digits(30)
    F = fj.fisher(model, x, fj.Categorical())
    truth = eigenvalues(digits_matrix)
    result = fj.eigsh(F, 4, method=method, key=KEY)
    assert bool(result.converged.all()) and "on the dual" in result.method
    assert (np.abs(np.asarray(result.values) - truth[:4]) <= np.asarray(result.bounds)).all()
    V, values = np.asarray(result.vectors, np.float64), np.asarray(result.values, np.float64)
    true = np.linalg.norm(np.asarray(F.dense(), np.float64) @ V - V * values, axis=0)
    assert (np.abs(true - np.asarray(result.residuals)) <= 1e-4 * truth[0]).all()
    assert (true <= float(result.tol) * truth[0] * 1.01).all() and truth[4] <= float(result.complete_above)


def test_rank_deficient_fisher_beyond_its_rank():
    """Six samples, each five times: k above the rank 54, zeros with null vectors of parameter space."""
    model, x = digits(6)
    F = fj.fisher(model, np.tile(x, (5, 1)), fj.Categorical())
    truth = eigenvalues(fj.fisher(model, x, fj.Categorical()).dual.dense())
    result = fj.eigsh(F, 58, method=fj.Randomized(tol=1e-4, oversampling=4, depth=2), key=KEY)
    assert bool(result.converged.all()) and "Randomized" in result.method
    assert (np.abs(np.asarray(result.values, np.float64) - truth[:58]) <= np.asarray(result.bounds)).all()
    assert not np.any(np.asarray(result.values[54:])), "rank is N·(C − 1) = 54"
    V = np.asarray(result.vectors, np.float64)
    np.testing.assert_allclose(V.T @ V, np.eye(58), atol=1e-3)
    assert np.linalg.norm(np.asarray(F @ V) - V * np.asarray(result.values), axis=0).max() <= 1e-4 * truth[0]


def test_chunks_and_devices_give_the_same_numbers():
    model, x = digits(61, width=12)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    whole, chunked, spread = (fj.fisher(model, x, fj.Categorical(), **o) for o in ({}, {"chunk": 20}, {"mesh": mesh}))
    method = fj.Randomized(tol=1e-4, oversampling=4, depth=4)
    a, b, c = (fj.eigsh(F, 4, method=method, key=KEY) for F in (whole, chunked, spread))
    assert bool(a.converged.all()) and bool(c.converged.all())
    for other in (b, c):
        np.testing.assert_allclose(other.values, a.values, rtol=100 * oracle.eps("float32"))


# --- behaviour --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [METHOD, fj.Nystrom(tol=1e-2)])
def test_same_key_same_bits_another_key_others(method):
    operator, _ = zoo.matrix("geometric 0.7", "float32")
    a, b, c = (fj.eigsh(psd(operator.matrix), 4, method=method, key=jax.random.key(s)) for s in (1, 1, 2))
    assert np.array_equal(a.values, b.values) and np.array_equal(a.vectors, b.vectors)
    assert not np.array_equal(a.vectors, c.vectors)


@pytest.mark.parametrize("method", [METHOD, fj.Nystrom()])
def test_what_is_refused(method):
    random = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
    M = jnp.asarray(random + random.T + 0.02 * random)
    with pytest.raises(fj.ArgumentError, match="is not symmetric"):
        fj.eigsh(fj.FunctionOperator(lambda V: M @ V, 300, psd=True), 3, method=method, key=KEY)
    with pytest.raises(fj.ArgumentError, match="returned NaN or infinity"):
        fj.eigsh(fj.FunctionOperator(lambda V: V / 0, 500, psd=True), 2, method=method, key=KEY)
    with pytest.raises(fj.ArgumentError, match=r"is traced; use method=fj\.Lanczos"):
        jax.jit(lambda A: fj.eigsh(fj.MatrixOperator(A), 2, method=method, key=KEY).values)(M + M.T)


def test_nystrom_needs_psd():
    operator, _ = zoo.matrix("indefinite", "float32")
    with pytest.raises(fj.ArgumentError, match="is not known to be positive semidefinite"):
        fj.eigsh(operator, 3, method=fj.Nystrom(), key=KEY)
    with pytest.raises(fj.ArgumentError, match="has a negative eigenvalue"):
        fj.eigsh(psd(operator.matrix), 3, method=fj.Nystrom(), key=KEY)
    with pytest.raises(fj.ArgumentError, match="rank=3 does not exceed k=3"):
        fj.eigsh(psd(operator.matrix), 3, method=fj.Nystrom(rank=3), key=KEY)
    A, truth = zoo.matrix("rank 3", "float32")
    for said in (fj.MatrixOperator(A.matrix, psd=True), fj.SparseOperator(scipy.sparse.csr_array(A.matrix), psd=True)):
        check(fj.eigsh(said, 4, method=fj.Nystrom(), key=KEY), said, truth, 4)


def test_nystrom_gives_up_when_the_decay_shows_that_it_cannot_reach_the_tolerance():
    values = (1 + np.arange(5000.0)) ** -0.5
    with pytest.warns(UserWarning, match="did not converge"):
        result = fj.eigsh(psd_diagonal(values), 5, method=fj.Nystrom(tol=1e-6), key=KEY)
    assert "more doublings would not reach tol=1e-06, use fj.Lanczos()" in dict(result.info)["note"]
    assert int(result.matvecs) < 200


@pytest.mark.slow
def test_nystrom_does_not_give_up_on_what_gets_there():
    """A fast decay, of which the first ranks show little."""
    fast = fj.eigsh(psd_diagonal(np.exp(-np.arange(1000.0) / 8)), 5, method=fj.Nystrom(tol=1e-5), key=KEY)
    assert bool(fast.converged.all()) and "rank 160" in fast.method


def test_nystrom_does_not_exclude_what_did_not_converge():
    values = np.r_[1.0, 0.97, 0.5, np.linspace(0.3, 0, 397)]
    operator = fj.MatrixOperator(zoo.prescribed(values).astype(np.float32), psd=True)
    for seed in range(10):
        result = quietly(operator, 3, method=fj.Nystrom(doublings=0, tol=0.05, rank=60), key=jax.random.key(seed))
        assert not bool(result.converged.all()) and float(result.complete_above) >= 1


def test_start_vectors(x64):
    operator, truth = zoo.matrix("condition 1e5", "float64")
    method = fj.Randomized(tol=1e-6, oversampling=4)
    plain = fj.eigsh(operator, 3, method=method, key=KEY)
    exact = np.linalg.eigh(np.asarray(operator.matrix))[1][:, ::-1]
    near = exact[:, :3] + 1e-4 * np.random.default_rng(0).normal(size=(zoo.N, 3))
    for start in (near, exact[:, :20], exact[:, 30:33]):
        result = fj.eigsh(operator, 3, v0=start, method=method, key=KEY)
        check(result, operator, truth, 3)
        if start is near:
            assert products(result) < products(plain)


def test_start_vector_and_threshold(x64):
    operator, truth = zoo.matrix("outliers over a bulk", "float64")
    method = fj.Randomized(tol=1e-6)
    check(fj.eigsh(operator, 4, v0=np.ones(zoo.N), method=method, key=KEY), operator, truth, 4)
    result = fj.eigsh(operator, 4, above=10.0, method=method, key=KEY)
    assert result.values.shape == (3,) and float(result.complete_above) <= 10


def test_progress_and_interruption_keep_what_converged(x64):
    import _thread

    values = np.r_[100.0, 60.0, 40.0, 1 + 1e-4 * np.linspace(1, 0, 2000)]
    seen = []

    def interrupt(progress):
        seen.append(progress)
        if progress.converged == 3 and len(seen) > 3:
            _thread.interrupt_main()

    method = fj.Randomized(tol=1e-9, oversampling=2)
    with pytest.warns(UserWarning, match="did not converge"):
        result = fj.eigsh(zoo.diagonal(values, "float64"), 6, method=method, key=KEY, progress=interrupt)
    assert np.array_equal(result.converged, [True, True, True, False, False, False])
    np.testing.assert_allclose(result.values[:3], values[:3], rtol=1e-8)
    assert "interrupted" in dict(result.info)["note"] and seen[0].wanted == 6
    assert [p.products for p in seen] == sorted({p.products for p in seen})


@pytest.mark.parametrize("rank", [40, 3, 0])
def test_orthonormal_whatever_the_rank(rank, dtype):
    """Rows of any condition, of low rank, or zero: orthonormal, orthogonal to V, with the span of W in it."""
    rng = np.random.default_rng(0)
    V = np.linalg.qr(rng.normal(size=(500, 10)))[0].T.astype(dtype)
    W = (
        np.geomspace(1, oracle.eps(dtype) / 4, 40)[:, None] * rng.normal(size=(40, 500))
        if rank == 40
        else np.zeros((40, 500))
    )
    W[:rank] = W[:rank] if rank == 40 else rng.normal(size=(rank, 500))
    W = (W - W @ V.T @ V).astype(dtype)
    Q = jax.jit(linalg.orthonormal)(jnp.asarray(W), jnp.asarray(V), jnp.ones((), dtype), KEY)
    unit, Q = oracle.eps(dtype), np.asarray(Q, np.float64)
    np.testing.assert_allclose(Q @ Q.T, np.eye(40), atol=50 * unit)
    np.testing.assert_allclose(Q @ V.T, 0, atol=50 * unit)
    assert np.linalg.norm(W - W @ Q.T @ Q) <= 100 * unit * max(1.0, np.linalg.norm(W))


# --- sketches ---------------------------------------------------------------------------------------------------------


def sketched(model, batches, rank=40, **options):
    size = fj.fisher(model, batches[0], fj.Categorical()).size
    result = fj.Sketch(size, rank, key=KEY, **options)
    for batch in batches:
        result = result.add(fj.fisher(model, batch, fj.Categorical()), weight=len(batch))
    return result


def test_sketch_of_batches_is_that_of_all_data():
    """Any cut, any order, a last batch of one, and two sketches added: the same matrix."""
    model, x = digits(41, width=8)
    whole, short, back = (sketched(model, parts) for parts in ([x], [x[:20], x[20:40], x[40:]], [x[40:], x[:40]]))
    added = sketched(model, [x[:25]]) + sketched(model, [x[25:]])
    truth = eigenvalues(fj.fisher(model, x, fj.Categorical()).dense())
    top = whole.eigsh(5, tol=1)
    assert bool(top.converged.all()) and top.vectors.shape == (whole.size, 5)
    values, bounds = np.asarray(top.values, np.float64), np.asarray(top.bounds, np.float64)
    floor = float(top.floor)
    assert (values - floor <= truth[:5]).all() and (truth[:5] <= values + bounds).all()
    assert truth[5] <= float(top.complete_above)
    F = np.asarray(fj.fisher(model, x, fj.Categorical()).dense(), np.float64)
    V = np.asarray(top.vectors, np.float64)
    assert (np.linalg.norm(F @ V - V * values, axis=0) <= np.asarray(top.residuals)).all()
    for other in (short, back, added):
        assert other.weight == 41
        np.testing.assert_allclose(other.eigsh(5, tol=1).values, values, atol=20 * floor)
    # Batches of equal weight are another matrix: the trap is one.
    equal = fj.Sketch(whole.size, 40, key=KEY)
    for part in (x[:40], x[40:]):
        equal = equal.add(fj.fisher(model, part, fj.Categorical()), weight=1)
    assert np.abs(np.asarray(equal.eigsh(5, tol=1).values) - values).max() > 1000 * floor


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_sketch_of_a_matrix_of_low_rank_is_exact(scale, dtype):
    values = np.r_[5.0, 5.0, 3.0, 1.0, np.zeros(196)]
    A = (zoo.prescribed(values) * scale).astype(dtype)
    top = fj.Sketch(200, 12, key=KEY).add(psd(A), weight=1).eigsh(6)
    assert bool(top.converged.all())
    found = np.asarray(top.values, np.float64) / scale
    np.testing.assert_allclose(found, values[:6], atol=1000 * oracle.eps(dtype))
    assert (np.abs(found - values[:6]) <= np.asarray(top.bounds, np.float64) / scale).all()


def test_sketch_says_what_it_does_not_know(tmp_path):
    A = zoo.prescribed(np.linspace(1, 0.5, 200)).astype(np.float32)
    made = fj.Sketch(200, 10, key=KEY).add(psd(A), weight=3)
    with pytest.warns(UserWarning, match=r"the error may be .* λ_max, values are NaN"):
        top = made.eigsh(2)
    assert np.isnan(top.values).all() and not top.converged.any() and float(top.complete_above) >= 1
    assert "not measured" in repr(top) and "rank 10" in repr(made)
    fj.save(made, tmp_path / "sketch.npz")
    again = fj.load(tmp_path / "sketch.npz")
    assert np.array_equal(again.eigsh(2, tol=10).values, made.eigsh(2, tol=10).values) and (again + made).weight == 6


def test_sketch_refusals():
    A = psd(np.eye(60, dtype=np.float32))
    empty = fj.Sketch(60, 10, key=KEY, tests=5)
    made = empty.add(A, weight=2)
    for action, message in (
        (lambda: empty.eigsh(2), "the sketch is empty"),
        (lambda: made.eigsh(10), "k=10 exceeds 9; make the sketch with rank > 10"),
        (lambda: empty.add(A, weight=0), "weight=0 is not a positive number"),
        (lambda: empty.add(fj.MatrixOperator(np.eye(60, dtype=np.float32)), weight=1), "not known to be positive"),
        (lambda: empty.add(psd(np.eye(61, dtype=np.float32)), weight=1), "operator has size 61, not 60"),
        (lambda: empty.add(psd(np.full((60, 60), np.nan, np.float32)), weight=1), "returned NaN or infinity"),
        (lambda: made + fj.Sketch(60, 10, key=jax.random.key(1), tests=5), "have different random vectors"),
        (lambda: fj.Sketch(60, 50, key=KEY), "rank=50 and tests=30 exceed size 60"),
        (lambda: fj.Sketch(60, 10, key=3), "key=3 is not a JAX random key"),
        (lambda: empty.add(psd(np.triu(np.ones((60, 60), np.float32))), weight=1).eigsh(2), "is not symmetric"),
        (lambda: empty.add(psd(-np.eye(60, dtype=np.float32)), weight=1).eigsh(2), "has a negative eigenvalue"),
    ):
        with pytest.raises(fj.ArgumentError, match=message):
            action()
    assert (empty + made).weight == (made + empty).weight == 2


# --- bounds hold as often as stated -----------------------------------------------------------------------------------

SEEDS = 200


@pytest.fixture(
    params=["digits", pytest.param("uniform", marks=pytest.mark.slow), pytest.param("power law", marks=pytest.mark.slow)]
)
def spectrum(request, digits_matrix):
    values = {
        "digits": eigenvalues(digits_matrix) / eigenvalues(digits_matrix)[0],
        "uniform": np.linspace(1, 0, 300),
        "power law": np.arange(1, 301) ** -1.0,
    }[request.param]
    return np.maximum(values, 0)


def test_error_of_nystrom_within_its_bound(spectrum, x64, optimized):
    """‖M − M̂‖ from test vectors against the norm of the explicit difference, over 200 seeds; M̂ from below."""
    A, r, tests = jnp.asarray(zoo.prescribed(spectrum)), 20, 10

    @jax.jit
    def one(key):
        k_rows, k_tests = jax.random.split(key)
        Omega, Psi = (jax.random.normal(k, (s, len(A))) for k, s in ((k_rows, r), (k_tests, tests)))
        vectors = jnp.concatenate([Omega, Psi, Omega[:1]]) / len(A) ** 0.5
        vectors = vectors.at[-1].multiply(sketch._ALPHA)
        values, rows, _, unit, left, _, _ = sketch._read(vectors, vectors @ A, r)
        E = A - unit * (rows.T * values[None]) @ rows
        return jnp.linalg.eigvalsh(E)[jnp.asarray([0, -1])], unit * left, unit * values

    ends, left, values = (np.asarray(a) for a in jax.lax.map(one, jax.random.split(KEY, SEEDS)))
    truth = np.abs(ends).max(axis=1)
    assert (ends[:, 0] >= -1e-12).all(), "M̂ <= M"
    ordered = np.sort(spectrum)[::-1][:r]
    assert (values <= ordered + 1e-12).all() and (ordered <= values + truth[:, None] + 1e-12).all()
    assert (truth <= left / sketch._least(tests)).mean() >= 1 - 2e-3 - 0.005


def test_odds_of_test_vectors_are_sharp():
    """Of a matrix of rank one the bound fails exactly as often as stated."""
    chance = np.linalg.norm(np.random.default_rng(0).normal(size=(200_000, 30)), axis=1) <= sketch._least(30)
    assert abs(chance.mean() - 1e-3) <= 4 * np.sqrt(1e-3 / 200_000)


def test_search_bounds_what_is_not_in_the_list(spectrum, x64):
    """`unseen.search` after the first three pairs, over 200 seeds and after any number of its steps."""
    values = np.sort(spectrum)[::-1]
    operator, n, k, steps = zoo.diagonal(values, "float64"), len(spectrum), 3, 6
    rows, noise = jnp.eye(n)[:k], jnp.asarray(1e-15)

    @jax.jit
    def one(key):
        run, block = unseen._begin(rows, jnp.asarray(values[:k]), jnp.asarray(values[0]), steps, key)
        bounds = []
        for _ in range(steps):
            run, block, _, bound = unseen._step(run, apply(operator, block.T), k, jnp.asarray(0.0), noise)
            bounds.append(bound)
        return jnp.stack(bounds)

    bounds = np.asarray(jax.lax.map(one, jax.random.split(KEY, SEEDS)))
    assert (values[k] <= bounds).mean() >= 1 - 2e-3 - 0.003
    assert np.isfinite(bounds[:, -1]).all() and np.median(bounds[:, -1]) < 2 * values[k] + 1e-9


def test_coupling_raises_the_others_by_no_more_than_stated(x64):
    """Eigenvalues of two coupled blocks against the formula, which is exact for blocks of one."""
    rng = np.random.default_rng(0)
    for _ in range(SEEDS):
        wanted, others = np.sort(rng.uniform(1, 2, 3)), rng.uniform(-1, rng.uniform(0, 1), 6)
        C = rng.normal(size=(3, 6)) * 10.0 ** rng.uniform(-3, 0)
        e, ceiling = jnp.asarray(np.linalg.norm(C, 2)), jnp.asarray(others.max())
        largest = eigenvalues(np.block([[np.diag(wanted), C], [C.T, np.diag(others)]]))[3]
        assert largest <= float(ceiling + randomized._shift(e, wanted[0] - ceiling)) + 1e-12
    pair = eigenvalues(np.array([[1.0, 0.3], [0.3, 0.5]]))
    assert 1 - pair[1] - 0.5 == pytest.approx(float(randomized._shift(jnp.asarray(0.3), jnp.asarray(0.5))))


def test_a_residual_that_only_lifting_makes_small_is_converged():
    """Far above the others, residuals lie along these, and lifting shrinks them."""
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.normal(size=(n, 200)))[0] for n in (200, 400))
    values = np.r_[1, 0.9, 0.8, 0.7, np.linspace(0.03, 1e-3, 196)]
    x = ((U * np.sqrt(200 * values)) @ V.T).astype(np.float32)
    F = fj.fisher(fj.Function(lambda p, x: x @ p["w"], {"w": jnp.zeros((400, 1))}), x, fj.Gaussian())
    for tol in (1.8e-3, 1e-5):
        for seed in range(6):
            result = fj.eigsh(F, 4, method=fj.Randomized(tol, oversampling=1), key=jax.random.key(seed))
            assert bool(result.converged.all())
            np.testing.assert_allclose(result.values, values[:4], rtol=1e-4)


@pytest.mark.parametrize("keys", [20, pytest.param(SEEDS, marks=pytest.mark.slow)])
def test_bound_of_a_solve_holds(keys, digits_matrix):
    """The whole method on a real Fisher matrix: what is not in the list is below `complete_above`."""
    truth, operator = eigenvalues(digits_matrix), psd(digits_matrix)
    for seed in range(keys):
        result = quietly(operator, 3, method=fj.Lanczos(tol=1e-2, steps=12), key=jax.random.key(seed))
        assert truth[3] <= float(result.complete_above)
        assert (np.abs(np.asarray(result.values) - truth[:3]) <= np.asarray(result.bounds)).all()
        result = quietly(operator, 3, method=fj.Randomized(tol=1e-2, oversampling=3, depth=3), key=jax.random.key(seed))
        assert truth[3] <= float(result.complete_above)
        assert (np.abs(np.asarray(result.values) - truth[:3]) <= np.asarray(result.bounds)).all()
        result = quietly(operator, 3, method=fj.Nystrom(tol=5e-2), key=jax.random.key(seed))
        assert truth[3] <= float(result.complete_above)
