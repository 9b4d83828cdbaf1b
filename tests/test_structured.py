"""Products from kept layer inputs and cotangents, against explicit float64 Jacobians."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import AxisType
from test_gram import MODELS, explicit, problem

import fisher_jax as fj
from fisher_jax import structured

KEY = jax.random.key(0)


@pytest.fixture
def kept(monkeypatch):
    """Networks of a test are too small for it to pay."""
    monkeypatch.setattr(sys.modules["fisher_jax.fisher"], "pays", lambda *arguments: True)


def close(a, b, dtype):
    assert oracle.relative(a, b) <= 100 * oracle.eps(dtype)


@pytest.mark.parametrize("name, dtype", [*((n, "float64") for n in MODELS), ("dense", "float32"), ("conv", "float32")])
def test_products_equal_those_of_the_explicit_jacobian(name, dtype, kept):
    with jax.enable_x64(dtype == "float64"):
        apply, params, x, _ = problem(name, dtype)
        F = fj.fisher(fj.Function(apply, params), x, fj.Gaussian())
        A = explicit(apply, params, x)[1] / np.sqrt(len(x))
        G = F.prepared(3, 1)
        assert G is not F and G.size == A.shape[1] and G.dual.size == A.shape[0]
        rng = np.random.default_rng(1)
        V, U = (rng.normal(size=(n, 3)).astype(dtype) for n in A.shape[::-1])
        close(G @ V, A.T @ (A @ V), dtype)
        close(G.dual @ U, A @ (A.T @ U), dtype)
        close(G.from_dual(jnp.asarray(U)), A.T @ U, dtype)
        close(G.dual.from_dual(jnp.asarray(V)), A @ V, dtype)


@pytest.mark.parametrize("kind", ["categorical", "centred", "draws", "tokens"])
def test_likelihoods_labels_weights_and_centring(kind, kept, x64):
    name = "layers of cells" if kind == "tokens" else "dense"
    apply, params, x, _ = problem(name, "float64")
    model, y = fj.Function(apply, params), np.arange(len(x)) % 2
    if kind == "centred":
        F = fj.gradient_covariance(model, (x, y), fj.Categorical())
    elif kind == "draws":
        F = fj.fisher(model, x, fj.Categorical(), kind=fj.MonteCarlo(3, key=KEY))
    else:
        F = fj.fisher(model, x, fj.Categorical(), weights=np.arange(1.0, len(x) + 1))
    A = np.asarray(F.factor.dense())
    U = np.random.default_rng(0).normal(size=(A.shape[0], 2))
    close(F.dual.prepared(2, 1) @ U, A @ (A.T @ U), "float64")


def test_spread_over_devices_and_made_in_batches(kept, monkeypatch):
    """403 samples on 8 devices need padding."""
    model = fj.models.build("mlp", inputs=10, outputs=4, width=24, key=KEY)
    x = np.random.default_rng(0).normal(size=(403, 10)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    F, G = (fj.fisher(model, x, fj.Categorical(), mesh=m) for m in (None, mesh))
    V = np.random.default_rng(1).normal(size=(F.size, 2)).astype(np.float32)
    spread = G.prepared(2, 1)
    g = spread.kept.layers[0][1]
    assert g.shape[0] == 408 and g.sharding.shard_shape(g.shape)[0] == 51
    close(spread @ V, F @ V, "float32")
    monkeypatch.setattr(structured, "batch_samples", lambda factor, each: 100)
    close(F.prepared(2, 1) @ V, F @ V, "float32")


def test_the_eigensolver_keeps_features_where_it_pays():
    """Convolutions and many products: yes. A few products, dense layers, which a pass takes at full speed on a CPU: no."""
    apply, params, _, _ = problem("conv", "float32")
    x = np.random.default_rng(0).normal(size=(60, 6, 6, 2)).astype(np.float32)
    F = fj.fisher(fj.Function(apply, params), x, fj.Gaussian())
    assert isinstance(F.prepared(4, 100), structured.StructuredOperator)
    assert F.prepared(4, 1) is F
    dense = fj.models.build("mlp", inputs=64, outputs=10, width=256, depth=3, key=KEY)
    M = fj.fisher(dense, np.ones((5, 64), np.float32), fj.Gaussian())
    assert M.prepared(1, 100) is M and M.dual.prepared(8, 1000).size == M.dual.size
    top = fj.eigsh(F, 6, method=fj.Lanczos(tol=1e-5, block=2), key=KEY)
    truth = np.asarray(fj.spectrum(F).values[:6])
    assert bool(top.converged.all())
    assert dict(top.info)["features"] == "kept"
    assert "features" not in dict(fj.eigsh(M, 2, method=fj.Lanczos(), key=KEY).info)
    assert (np.abs(np.asarray(top.values) - truth) <= np.asarray(top.bounds) + 1e-6 * truth[0]).all()


def test_no_memory_no_features(kept, monkeypatch):
    apply, params, x, _ = problem("dense", "float32")
    F = fj.fisher(fj.Function(apply, params), x, fj.Gaussian())
    monkeypatch.setattr("fisher_jax.linalg.free_memory", lambda: 1000)
    assert F.prepared(1, 1) is F


# --- reduced precision ------------------------------------------------------------------------------------------------


def test_bfloat16_says_what_it_cannot_resolve(kept):
    """Values within their bounds of the float64 truth; below the measured error of a product there is none."""
    model = fj.models.build("mlp", inputs=64, outputs=10, width=32, depth=2, key=KEY)
    x, _ = fj.data.load("digits", samples=120)
    F = fj.fisher(model, x, fj.Categorical())
    truth = np.linalg.eigvalsh(np.asarray(F.dual.dense(), np.float64))[::-1]
    with pytest.warns(UserWarning, match="lie below the error of products in bfloat16 and are NaN; raise precision"):
        top = fj.eigsh(F, 40, method=fj.Lanczos(tol=1e-6, precision="bfloat16"), key=KEY)
    done = np.asarray(top.converged)
    assert 2 <= done.sum() < 40 and np.isnan(np.asarray(top.values)[~done]).all()
    errors = np.abs(np.asarray(top.values, np.float64) - truth[:40])[done]
    assert (errors <= np.asarray(top.bounds)[done]).all()
    assert errors.max() > 10 * oracle.eps("float32") * truth[0], "bfloat16 it was"
    # Vectors lifted from the dual need ten times the error.
    assert truth[int(done.sum())] < 10 * float(top.floor) and 1e-3 < float(top.floor) / truth[0] < 0.1
    assert dict(top.info)["matmul_precision"] == "bfloat16" and "unresolved" in dict(top.info)["note"]


def test_the_error_of_reduced_products_is_that_of_the_matrix(kept):
    """Rounding what is kept changes M itself, which two reduced products of one vector do not show."""
    model = fj.models.build("mlp", inputs=64, outputs=10, width=32, depth=2, key=KEY)
    x, _ = fj.data.load("digits", samples=60)
    F = fj.fisher(model, x, fj.Gaussian())
    G = F.prepared(1, 1).reduced("bfloat16")
    leaves = jax.tree.leaves(G.kept.layers)
    assert all(a.dtype == jnp.bfloat16 for a in leaves)
    exact, half = (np.asarray(M.dual @ np.eye(M.dual.size, dtype=np.float32), np.float64) for M in (F, G))
    error = np.linalg.norm(half - exact, 2)
    top = fj.eigsh(F, 5, method=fj.Lanczos(precision="bfloat16"), key=KEY)
    assert error <= float(top.floor) <= 30 * error


def test_precision_without_such_hardware_is_full_and_unknown_is_refused():
    operator = fj.MatrixOperator(np.diag(np.arange(300.0)).astype(np.float32))
    top = fj.eigsh(operator, 3, method=fj.Lanczos(tol=1e-5, precision="tensorfloat32"), key=KEY)
    np.testing.assert_allclose(top.values, [299, 298, 297], rtol=1e-5)
    with pytest.raises(fj.ArgumentError, match=r"precision='half' is not known; give one of highest, tensorfloat32"):
        fj.Lanczos(precision="half")
