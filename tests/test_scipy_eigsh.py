"""The wrapper with SciPy's signature: SciPy's own tests, every kind of matrix and end of the spectrum, errors as SciPy's.

Of SciPy's tests of `eigsh` these do not apply: generalized problems (M), shifts (sigma) and complex matrices, which are
refused; `test_symmetric_no_convergence`, whose 30 rows are diagonalized (and which converges in the five restarts it allows
if they are not); `test_reentering`, whose operator is not symmetric, which is noticed.
"""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import scipy.sparse as ss
import zoo
from cases import data, function
from jax.experimental import sparse as jax_sparse
from scipy.sparse import linalg as sl

import fisher_jax as fj
from fisher_jax.operators import HostOperator, as_operator
from fisher_jax.solvers import scipy_api

KEY = jax.random.key(5)
WHICH = ["LM", "SM", "LA", "SA", "BE"]


def wanted(truth, which, k):
    """The k of all eigenvalues that `which` means, ascending."""
    truth = np.sort(np.asarray(truth, np.float64))
    by_size = truth[np.argsort(np.abs(truth), kind="stable")]
    low = k // 2
    return np.sort(
        {
            "LM": by_size[-k:],
            "SM": by_size[:k],
            "LA": truth[-k:],
            "SA": truth[:k],
            "BE": np.r_[truth[:low], truth[truth.size - (k - low) :]],
        }[which]
    )


@pytest.fixture
def iterates(monkeypatch):
    """Small matrices go through the iteration, as large ones do."""
    monkeypatch.setattr(scipy_api, "DENSE_SIZE", 0)


# --- SciPy's own tests ------------------------------------------------------------------------------------------------


@pytest.fixture
def theirs(monkeypatch):
    module = pytest.importorskip("scipy.sparse.linalg._eigen.arpack.tests.test_arpack")
    monkeypatch.setattr(module, "eigsh", fj.scipy_eigsh)
    return module


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("letter", ["f", "d"])
def test_symmetric_modes_of_scipy(theirs, letter, which, kind):
    parameters = theirs.SymmetricParams()
    theirs.test_symmetric_modes(parameters.real_test_cases[0], letter, which, parameters.mattypes[kind], None, "normal")


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("letter", ["f", "d"])
def test_start_vectors_of_scipy(theirs, letter, k):
    theirs.test_symmetric_starting_vector(k, theirs.SymmetricParams().real_test_cases[0], letter)


def test_threads_of_scipy(theirs):
    theirs.test_parallel_threads(3)


@pytest.mark.parametrize("case, arguments", [(1, ()), (0, (0.5,))])
def test_what_does_not_apply_is_refused(theirs, case, arguments):
    with pytest.raises(
        fj.ArgumentError, match=r"(M|sigma) is not supported; leave out .*, or use scipy.sparse.linalg.eigsh"
    ):
        D = theirs.SymmetricParams().real_test_cases[case]
        theirs.test_symmetric_modes(D, "d", "LM", np.asarray, *(arguments or (None,)), "normal")
    with pytest.raises(fj.ArgumentError, match="dtype complex128 is not supported"):
        fj.scipy_eigsh(theirs.SymmetricParams().complex_test_cases[0]["mat"], 2)


def test_no_vectors_come_in_the_order_of_scipy():
    A = zoo.prescribed(np.r_[-20, -15.5, -7, 12, 11, 10, 0.5, -0.25, np.linspace(-5.1, 4.9, 52)])
    for matrix in (A, A + 30 * np.eye(60)):
        for which in WHICH:
            for k in (4, 5):
                # A basis of nearly the whole space: with that of 20 vectors, ARPACK misses some of the smallest magnitude.
                given = {"k": k, "which": which, "ncv": 59}
                theirs = sl.eigsh(matrix, return_eigenvectors=False, **given)
                np.testing.assert_allclose(fj.scipy_eigsh(matrix, return_eigenvectors=False, **given), theirs, atol=1e-9)
                values, vectors = fj.scipy_eigsh(matrix, **given)
                np.testing.assert_allclose(values, sl.eigsh(matrix, **given)[0], atol=1e-9)
                assert type(values) is np.ndarray and vectors.shape == (60, k) and type(vectors) is np.ndarray


# --- the iteration ----------------------------------------------------------------------------------------------------

SPECTRA = {
    "both ends": np.r_[-9, -6, -4, 8, 7, 5, np.random.default_rng(0).uniform(-1, 1, 194)],
    "no negative": np.r_[9.0, 8, 7, 6, np.random.default_rng(0).uniform(0, 1, 196)],
    "no positive": -np.r_[9.0, 8, 7, 6, np.random.default_rng(0).uniform(0, 1, 196)],
    "repeated": np.r_[np.full(2, 5.0), np.full(2, -5.0), np.full(4, -3.0), np.random.default_rng(0).uniform(-1, 1, 192)],
    "bulk": np.linspace(-1, 1.1, 200),
    "identity": np.ones(200),
    "zero": np.zeros(200),
    "rank 2": np.r_[3.0, -2.0, np.zeros(198)],
}


@pytest.mark.parametrize("name", SPECTRA)
def test_both_ends(name, iterates):
    A = zoo.prescribed(SPECTRA[name])
    truth = np.linalg.eigvalsh(A)
    for which in ("LM", "LA", "SA", "BE"):
        values, vectors = fj.scipy_eigsh(A, 4, which=which)
        assert values.dtype == vectors.dtype == np.float64 and not jax.config.jax_enable_x64  # nothing leaks
        oracle.accepted(lambda V: A @ V, values, vectors, wanted(truth, which, 4), 1e-12, "float64")


def test_a_spectrum_that_is_symmetric_about_zero(iterates):
    """Two-colourable: with λ comes −λ. 1 and −1, with known eigenvectors, tie for the largest magnitude."""
    A, degrees, parity = zoo.triangular_walk(20)
    values, vectors = fj.scipy_eigsh(A, 2)
    oracle.accepted(lambda V: A @ V, values, vectors, [-1.0, 1.0], 1e-12, "float64")
    for v, sign in zip(vectors.T, (parity, 1), strict=True):
        assert abs(v @ (sign * np.sqrt(degrees / degrees.sum()))) > 1 - 1e-12
    np.testing.assert_allclose(np.abs(fj.scipy_eigsh(A, 1)[0]), 1, atol=1e-12)


def test_copies_that_the_short_run_has_not_seen(iterates):
    d = np.r_[5.0, 5.0, 5.0, -4.0, -3.5, -3.0, np.random.default_rng(0).uniform(-1, 1, 194)]
    np.testing.assert_allclose(fj.scipy_eigsh(ss.diags_array(d), 4)[0], [-4, 5, 5, 5], atol=1e-12)


def test_a_short_run_that_takes_the_ends_for_each_other(iterates, monkeypatch):
    """However wrong the counts to begin with, each end is asked again."""
    real = scipy_api._ritz_values
    monkeypatch.setattr(scipy_api, "_ritz_values", lambda basis: -real(basis))
    bulk = np.random.default_rng(0).uniform(-1, 1, 196)
    for first in ([5.0, 4, 3, 2], [-5.0, -4, -3, 2]):
        values = fj.scipy_eigsh(ss.diags_array(np.r_[first, bulk]), 2)[0]
        np.testing.assert_allclose(values, np.sort(first[:2]), atol=1e-12)


def kinds(A):
    """The same matrix in every form that is taken."""
    yield "array", A
    yield "csr", ss.csr_array(A)
    yield "sparse matrix of the old kind", ss.csc_matrix(A)
    yield "LinearOperator", sl.aslinearoperator(A)
    if A.dtype == np.float32:
        yield "JAX array", jnp.asarray(A)
        yield "BCOO", jax_sparse.BCOO.fromdense(jnp.asarray(A))
        yield "operator", fj.FunctionOperator(jax.tree_util.Partial(jnp.matmul, jnp.asarray(A)), len(A))


@pytest.mark.parametrize("letter", ["f", "d"])
def test_every_kind_of_matrix(letter, iterates):
    A = zoo.prescribed(SPECTRA["both ends"]).astype(letter)
    tol = 128 * oracle.eps(A.dtype)
    for name, matrix in kinds(A):
        values, vectors = fj.scipy_eigsh(matrix, 4, which="BE")
        assert values.dtype == vectors.dtype == A.dtype, name
        truth = wanted(np.linalg.eigvalsh(A.astype("d")), "BE", 4)
        oracle.accepted(lambda V: A.astype("d") @ V, values, vectors, truth, tol, A.dtype)


def test_integers_are_float64():
    A = np.diag(np.arange(1, 9))
    A[0, 1] = A[1, 0] = 3
    truth = np.linalg.eigvalsh(A)[-2:]
    for matrix in (A, ss.csr_array(A), sl.aslinearoperator(A), jnp.asarray(A), A.astype("int8")):
        values = fj.scipy_eigsh(matrix, 2, return_eigenvectors=False)
        assert values.dtype == np.float64
        np.testing.assert_allclose(values, truth, rtol=1e-14)


@pytest.mark.slow
def test_both_ends_of_a_long_diagonal(optimized):
    d = np.random.default_rng(0).uniform(-1, 1, 10**5)
    d[:6] = 9, -8.5, 8, -7, 6, -5
    values, vectors = fj.scipy_eigsh(ss.diags_array(d), 4)
    np.testing.assert_allclose(values, [-8.5, -7, 8, 9], rtol=1e-14)
    np.testing.assert_allclose(np.abs(vectors[[1, 3, 2, 0], range(4)]), 1, atol=1e-13)


@pytest.mark.slow
def test_restarts_by_the_hundred(optimized):
    """The Laplacian of a line has gaps of 1e-5 at its end: the first try does not reach 16 units, the second does 128."""
    n = 1500
    A = ss.diags_array([-np.ones(n - 1), 2 * np.ones(n), -np.ones(n - 1)], offsets=[-1, 0, 1])
    values, vectors = fj.scipy_eigsh(A, 6)
    truth = 2 - 2 * np.cos(np.pi * np.arange(n - 5, n + 1) / (n + 1))
    oracle.accepted(lambda V: A @ V, values, vectors, truth, 256 * oracle.eps("float64"), "float64")


# --- operators of ours ------------------------------------------------------------------------------------------------


def test_hessian_at_both_ends(x64, iterates):
    model, _, _ = function("float64")
    H = fj.hessian(model, (data("float64"), np.arange(7) % 3), fj.Categorical())
    matrix = np.asarray(H.dense())
    truth = np.linalg.eigvalsh(matrix)
    assert truth[0] < -1e-3 < 1e-3 < truth[-1]
    for which in ("LM", "LA", "SA", "BE"):
        values, vectors = fj.scipy_eigsh(H, 3, which=which)
        oracle.accepted(lambda V: matrix @ V, values, vectors, wanted(truth, which, 3), 1e-12, "float64")
    lowest = fj.eigsh(-H, 3, key=KEY)
    np.testing.assert_allclose(-np.asarray(lowest.values), truth[:3], atol=1e-13)
    np.testing.assert_allclose(float((-H).trace()), -truth.sum(), rtol=1e-12)
    assert not (-H).psd


def test_fisher_through_its_dual_and_its_exact_zeros(x64, iterates):
    model, _, _ = function("float64")
    F = fj.fisher(model, data("float64"), fj.Categorical())
    truth = np.linalg.eigvalsh(np.asarray(F.dense()))
    np.testing.assert_allclose(fj.scipy_eigsh(F, 4)[0], truth[-4:], rtol=1e-10)
    values, vectors = fj.scipy_eigsh(F, 4, which="SM")
    np.testing.assert_allclose(values, 0, atol=1e-12)
    assert np.abs(np.asarray(F @ vectors)).max() <= 1e-12


# --- limits and errors ------------------------------------------------------------------------------------------------


def test_no_convergence_keeps_what_converged(iterates):
    d = np.r_[9.0, 7.0, 1 + 1e-3 * np.random.default_rng(0).random(400)]
    with pytest.raises(sl.ArpackNoConvergence, match=r"No convergence \(2/4 eigenvectors converged\)") as caught:
        fj.scipy_eigsh(ss.diags_array(d), 4, which="LA", maxiter=1, ncv=12)
    np.testing.assert_allclose(caught.value.eigenvalues, [7, 9], rtol=1e-12)
    assert caught.value.eigenvectors.shape == (402, 2)
    assert isinstance(caught.value, RuntimeError)


def test_a_looser_tolerance_takes_fewer_products(iterates):
    A, count = zoo.prescribed(SPECTRA["both ends"]), []

    def counted(v):
        count.append(1)
        return A @ v

    operator = sl.LinearOperator(A.shape, matvec=counted, dtype=float)
    needed = []
    for tol in (0, np.float32(1e-3)):
        count.clear()
        values, _ = fj.scipy_eigsh(operator, 2, which="LA", tol=tol)
        needed.append(len(count))
        np.testing.assert_allclose(values, [7, 8], rtol=1e-12 if tol == 0 else 1e-3)
    assert needed[1] < needed[0]


def test_an_eigenvector_as_the_start_and_equal_numbers_from_equal_arguments(iterates):
    A = zoo.prescribed(SPECTRA["no negative"])
    start = np.linalg.eigh(A)[1][:, -1]
    np.testing.assert_allclose(fj.scipy_eigsh(A, 3, v0=start)[0], [7, 8, 9], rtol=1e-12)
    first, second, other = (fj.scipy_eigsh(A, 3, rng=rng)[1] for rng in (3, np.random.default_rng(3), None))
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    assert np.array_equal(other, fj.scipy_eigsh(A, 3)[1])


def test_k_of_all():
    A = zoo.prescribed([1.0, 2.0, 3.0])
    for k in (3, 5):
        with pytest.warns(RuntimeWarning, match=f"k={k} is not below the size 3: all 3 are given"):
            np.testing.assert_allclose(fj.scipy_eigsh(A, k)[0], [1, 2, 3])
        for matrix in (ss.csr_array(A), sl.aslinearoperator(A), fj.MatrixOperator(A.astype("f"))):
            with pytest.raises(TypeError, match=f"k={k} is not below the size 3"):
                fj.scipy_eigsh(matrix, k)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"k": 0}, "scipy_eigsh: k=0 is below 1"),
        ({"k": 2.0}, "k=2.0 is not an integer"),
        ({"which": "LR"}, "which='LR' is unknown; give one of LM, SM, LA, SA, BE"),
        ({"M": np.eye(8)}, "M is not supported; leave out M"),
        ({"sigma": 0.0}, "sigma is not supported"),
        ({"Minv": np.eye(8)}, "Minv is not supported"),
        ({"OPinv": np.eye(8)}, "OPinv is not supported"),
        ({"mode": "cayley"}, "mode='cayley' is not supported"),
        ({"tol": -1}, "tol=-1 is not a number >= 0"),
        ({"tol": np.nan}, "tol=nan is not a number >= 0"),
        ({"ncv": 2}, "ncv=2 is below 3"),
        ({"ncv": 9}, "ncv=9 exceeds 8"),
        ({"maxiter": 0}, "maxiter=0 is below 1"),
        ({"v0": np.ones(7)}, r"v0 has shape \(7,\); give a vector of shape \(8,\)"),
        ({"v0": np.full(8, np.nan)}, "v0 has 8 NaN"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(fj.ArgumentError, match=message):
        fj.scipy_eigsh(np.eye(8), **{"k": 2} | arguments)


@pytest.mark.parametrize(
    "matrix, message",
    [
        ([[1.0]], "scipy_eigsh: operator is a list"),
        (np.ones((2, 3)), r"matrix has shape \(2, 3\)"),
        (ss.csr_array(np.ones((2, 3))), r"matrix has shape \(2, 3\)"),
        (sl.aslinearoperator(np.ones((2, 3))), r"operator has shape \(2, 3\)"),
        (np.eye(3) * 1j, "dtype complex128 is not supported"),
        (np.triu(np.ones((4, 4))), "matrix - matrixᵀ reaches 1"),
        (ss.csr_array(np.triu(np.ones((4, 4)))), "matrix - matrixᵀ reaches 1"),
        (sl.aslinearoperator(np.triu(np.ones((4, 4)))), "is not symmetric"),
        (ss.csr_array(np.diag([np.nan, 1, 1, 1])), "matrix has 1 NaN"),
        (sl.aslinearoperator(np.diag([np.inf, 1, 1, 1])), "A has .* NaN or infinite"),
        (fj.FunctionOperator(lambda V: V[:2], 4), r"function maps \(4, 1\) to \(2, 1\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_bad_matrices(matrix, message):
    with pytest.raises(fj.ArgumentError, match=message):
        fj.scipy_eigsh(matrix, 1)


def test_smallest_magnitude_of_large_matrices_is_refused():
    with pytest.raises(fj.ArgumentError, match="which='SM' with 20000 rows would take a factorization"):
        fj.scipy_eigsh(ss.diags_array(np.arange(20000.0)), 3, which="SM")


def test_interruption_keeps_what_converged(iterates):
    import _thread

    d, count = np.r_[100.0, 60.0, 1 + 1e-4 * np.linspace(1, 0, 4000)], []

    def product(v):
        count.append(1)
        if len(count) == 60:
            _thread.interrupt_main()
        return d * v

    with pytest.raises(sl.ArpackNoConvergence, match=r"2/5 eigenvectors converged.*interrupted") as caught:
        fj.scipy_eigsh(sl.LinearOperator((d.size, d.size), matvec=product, dtype=float), 5, which="LA")
    np.testing.assert_allclose(caught.value.eigenvalues, [60, 100], rtol=1e-12)


# --- what stands for a matrix -----------------------------------------------------------------------------------------


def test_eigsh_takes_every_kind(dtype):
    A = zoo.prescribed(np.r_[5.0, 3.0, np.linspace(1, -2, 58)]).astype(dtype)
    truth = np.linalg.eigvalsh(A.astype("d"))[::-1]
    forms = [*kinds(A), ("BCOO", jax_sparse.BCOO.fromdense(jnp.asarray(A)))]
    for _, matrix in forms:
        for method in (fj.Dense(), fj.Lanczos()):
            found = fj.eigsh(matrix, 3, method=method, key=KEY)
            assert found.values.dtype == dtype
            assert (np.abs(np.asarray(found.values) - truth[:3]) <= np.asarray(found.bounds) + 1e-14).all()


def test_sparse_matrices_with_entries_stored_twice_and_padding():
    """What is stored twice adds up; entries that pad a BCOO count for nothing."""
    indices = np.array([[0, 0], [2, 1], [0, 0], [1, 2], [3, 3]])
    entries = np.array([1, 5, 2, 5, 7], np.float32)
    truth = np.array([[3, 0, 0], [0, 0, 5], [0, 5, 0]])
    padded = jax_sparse.BCOO((jnp.asarray(entries), jnp.asarray(indices)), shape=(3, 3))
    twice = ss.coo_array((entries[:4], tuple(indices[:4].T)), (3, 3))
    for matrix in (padded, twice):
        operator = as_operator("test", matrix)
        assert isinstance(operator, fj.SparseOperator) and operator.size == 3
        np.testing.assert_array_equal(operator.dense(), truth)
        np.testing.assert_array_equal(operator @ np.arange(3.0), truth @ np.arange(3))
        assert float(operator.trace()) == 3
    np.testing.assert_allclose(jax.jit(lambda o: fj.eigsh(o, 1, key=KEY).values)(operator), [5], rtol=1e-6)
    with pytest.raises(fj.ArgumentError, match="matrix is traced; make the operator outside jit"):
        jax.jit(lambda m: as_operator("test", m).trace())(padded)


@pytest.mark.parametrize("name", ["int32", "complex64", "float16"])
def test_other_types_are_refused_in_every_form(name):
    A = np.eye(4, dtype=name)
    forms = [A, jnp.asarray(A), sl.aslinearoperator(A), jax_sparse.BCOO.fromdense(jnp.asarray(A))]
    for matrix in forms if name == "float16" else [*forms, ss.csr_array(A)]:
        with pytest.raises(fj.ArgumentError, match=f"dtype {name} is not supported; give float32 or float64"):
            fj.eigsh(matrix, 1, key=KEY)


def test_products_on_the_host_lose_no_digit_and_share_a_program(x64):
    """float64 to the last digit in a callback, whatever its thread; one compiled product for all; none is kept alive."""
    traces, d = [], np.random.default_rng(0).normal(size=50)
    product = jax.jit(lambda operator, V: (traces.append(1), operator.matmat(V))[1])
    V = np.random.default_rng(1).normal(size=(50, 3))
    matrices = [sl.LinearOperator((50, 50), matvec=lambda v, s=s: s * d * v, dtype=float) for s in (1.0, 2.0)]
    operators = [HostOperator(matrix) for matrix in matrices]
    for scale, operator in zip((1.0, 2.0), operators, strict=True):
        assert np.array_equal(product(operator, V), scale * (d[:, None] * V))
    assert len(traces) == 1
    gone = weakref.ref(matrices[0])
    del matrices, operators, operator
    gc.collect()
    assert gone() is None


def test_a_product_on_the_host_gets_vectors():
    """As in SciPy's own solvers: `d * v` would be a square array for a column."""
    seen, d = set(), np.arange(1.0, 31)

    def product(v):
        seen.add(v.shape)
        return d * v

    values = fj.eigsh(sl.LinearOperator((30, 30), matvec=product, dtype="float32"), 2, key=KEY).values
    np.testing.assert_allclose(values, [30, 29], rtol=1e-6)
    assert seen <= {(30,), (30, 1)} and (30,) in seen
