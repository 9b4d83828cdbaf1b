"""`fj.eigsh` by itself, on the classics of the field whose eigenvalues have closed forms, by PRIMME's rule."""

import jax
import numpy as np
import oracle
import pytest
import zoo

import fisher_jax as fj

KEY = jax.random.key(2)


@pytest.mark.parametrize("shape, name", [((100,), "float64"), ((24, 24), "float32"), ((7, 8, 9), "float32")])
def test_laplacians(shape, name):
    """Line, square with its double eigenvalues, box; both ends, the small one to the precision of the large."""
    with jax.enable_x64(name == "float64"):
        operator, truth = zoo.laplacian(shape, name)
        M = np.asarray(operator.dense(), np.float64)
        np.testing.assert_allclose(np.linalg.eigvalsh(M), truth[::-1], atol=1e-12)
        for side, wanted in ((operator, truth[:5]), (-operator, -truth[::-1][:5])):
            found = fj.eigsh(side, 5, method=fj.Lanczos(tol=1e-6, steps=48), key=KEY)
            assert found.converged.all()
            sign = 1 if side is operator else -1
            # ‖A‖ is that of the whole matrix, whichever end is asked for.
            tol = 1e-6 * truth[0] / np.abs(wanted).max()
            oracle.accepted(lambda V, s=sign: s * (M @ V), found.values, found.vectors, wanted, tol, name)


@pytest.mark.parametrize("problem", [zoo.sakurai, zoo.mikota, zoo.elastic_rod])
@pytest.mark.parametrize("method", [fj.Lanczos(tol=1e-10), fj.Dense()])
def test_classics(problem, method, x64):
    A, truth = problem(120)
    np.testing.assert_allclose(np.linalg.eigvalsh(A @ np.eye(120))[::-1], truth, atol=1e-11 * truth[0])
    found = fj.eigsh(A, 6, method=method, key=KEY)
    assert found.converged.all()
    oracle.accepted(lambda V: A @ V, found.values, found.vectors, truth[:6], 1e-10, "float64")
    assert (np.abs(np.asarray(found.values) - truth[:6]) <= np.asarray(found.bounds) + 1e-13 * truth[0]).all()


@pytest.mark.parametrize("m", [14, 45])
def test_random_walk_on_a_triangle(m, x64):
    """1 with eigenvector √degree, and −1 with alternating signs; n = 105 and 1035, on either side of diagonalizing."""
    A, degrees, parity = zoo.triangular_walk(m)
    root = np.sqrt(degrees / degrees.sum())
    for side, sign, vector in ((A, 1, root), (-A, -1, parity * root)):
        found = fj.eigsh(side, 2, key=KEY)
        assert abs(float(found.values[0]) - 1) <= float(found.bounds[0]) + 1e-14
        assert float(found.values[1]) < 1 and abs(np.asarray(found.vectors)[:, 0] @ vector) > 1 - 1e-9, sign


def test_the_rule_refuses_what_is_wrong():
    A, truth = np.diag([3.0, 2.0, 1.0]), np.array([3.0, 2.0])
    V = np.eye(3)[:, :2]
    oracle.accepted(lambda V: A @ V, truth, V, truth, 1e-6, "float64")
    wrong = [(truth * [1, 1 + 1e-4], V), (truth, np.eye(3)[:, [0, 2]]), (truth, V[:, [0, 0]]), (truth, V * np.nan)]
    wrong.append((truth, V + 1e-4 * np.eye(3)[:, 2:]))
    for values, vectors in wrong:
        with pytest.raises(AssertionError):
            oracle.accepted(lambda V: A @ V, values, vectors, truth, 1e-6, "float64")
