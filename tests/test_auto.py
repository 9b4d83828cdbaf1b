"""The default method: its model of the work against counts by hand, its choices, and that every route agrees."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import fisher_jax as fj
from fisher_jax import cli, costs
from fisher_jax.kernels import PASS
from fisher_jax.solvers import auto, start
from fisher_jax.solvers.dense import MAX_SIZE

RATE = 1e9


@pytest.fixture
def rate(monkeypatch):
    """A machine of known speed."""
    monkeypatch.setattr(costs, "matmul_rate", lambda precision="highest": RATE)
    monkeypatch.setattr(costs, "pass_cost", lambda: PASS["cpu"])


def perceptron(samples=30, width=16):
    model = fj.models.build("mlp", inputs=8, outputs=3, width=width, depth=3, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (samples, 8))
    return fj.fisher(model, x, fj.Categorical())


def matrix(n, key=0):
    """Eigenvalues 1, 1/2, 1/3, ... and its eigenvalues."""
    q = np.linalg.qr(np.random.default_rng(key).normal(size=(n, n)))[0]
    return ((q / np.arange(1, n + 1)) @ q.T).astype(np.float32)


def names(plan):
    return [type(r.method).__name__ for r in plan.routes]


def test_products_are_counted_as_by_hand(rate):
    F = perceptron()
    weights = 8 * 16 + 16 * 16 + 16 * 3
    assert costs.product_seconds(F, 1, 1e9) == pytest.approx(8 * weights * 30 / RATE)
    assert costs.product_seconds(F.dual, 1, 1e9) == costs.product_seconds(F, 1, 1e9)
    explicit = fj.MatrixOperator(np.eye(50, dtype=np.float32))
    assert costs.product_seconds(explicit, 1, 1) == pytest.approx(50**2 * PASS["cpu"] / RATE)
    assert costs.product_seconds(explicit, 32, 1) == pytest.approx(50**2 * 64 / RATE)
    sparse = fj.SparseOperator(scipy.sparse.eye_array(70, dtype=np.float32))
    assert costs.product_seconds(sparse, 2, 1) == pytest.approx(2 * 70 * costs.GATHER * PASS["cpu"] / RATE)


def test_an_unknown_product_is_measured(rate):
    calls = []

    def product(V):
        jax.debug.callback(lambda: calls.append(1))
        return 2 * V

    assert 0 < costs.product_seconds(fj.FunctionOperator(product, 100), 1, 1) < 10
    jax.effects_barrier()
    assert len(calls) == 2  # once to compile, once for the time


def test_processes_that_must_agree_do_not_measure(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    costs.matmul_rate.cache_clear()
    costs.pass_cost.cache_clear()
    assert costs.matmul_rate() == costs.NOMINAL_RATE and costs.pass_cost() == PASS["cpu"]
    costs.matmul_rate.cache_clear()
    costs.pass_cost.cache_clear()


def test_the_measured_rate_is_that_of_a_product():
    costs.matmul_rate.cache_clear()
    costs.pass_cost.cache_clear()
    assert 1e8 < costs.matmul_rate() < 1e16 and costs.matmul_rate() == costs.matmul_rate()
    # No slower from memory than a thousandth of the products' rate, no faster than the products themselves.
    assert 1 < costs.pass_cost() < 2000


def test_every_route_gives_the_same_eigenvalues():
    F = perceptron(samples=120)
    truth = np.linalg.eigvalsh(np.asarray(F.dual.dense(), np.float64))[::-1][:6]
    plan = fj.plan(F, 6)
    assert set(names(plan)) == {"Dense", "Lanczos", "Gram"} and plan.lifted and plan.iterated == 360
    for route in plan.routes:
        found = fj.eigsh(F, 6, method=route.method, key=jax.random.key(0))
        assert found.converged.all()
        np.testing.assert_allclose(found.values, truth, atol=float(jnp.max(found.bounds)) + 1e-6 * truth[0])


def test_what_the_plan_says_is_what_is_done():
    for operator, k in ((fj.MatrixOperator(matrix(200)), 5), (fj.MatrixOperator(matrix(2500)), 3), (perceptron(), 4)):
        taken = fj.plan(operator, k).routes[0].method
        assert fj.eigsh(operator, k, key=jax.random.key(0)).method.startswith(type(taken).__name__)


def test_small_matrices_are_diagonalized_and_large_ones_iterated(rate):
    assert names(fj.plan(matrix(100), 5))[0] == "Dense"
    large = fj.FunctionOperator(lambda V: V, MAX_SIZE + 1)
    assert names(fj.plan(large, 5)) == ["Lanczos"]
    # All pairs: an iteration would span the whole space.
    assert names(fj.plan(matrix(100), 100)) == ["Dense"]


def test_the_dual_is_built_where_parameters_are_many(rate):
    wide, narrow = perceptron(samples=200, width=1000), perceptron(samples=2000)
    assert wide.size > 100 * wide.dual.size and names(fj.plan(wide, 10))[0] == "Gram"
    # More samples than parameters: F itself is the smaller matrix.
    plan = fj.plan(narrow, 10)
    assert not plan.lifted and plan.iterated == narrow.size and "Gram" not in names(plan)


def test_what_does_not_fit_comes_last(rate, monkeypatch):
    F = perceptron(samples=200, width=1000)
    monkeypatch.setattr(auto.linalg, "free_memory", lambda: 2 * 10**6)
    plan = fj.plan(F, 10)
    assert names(plan)[0] == "Lanczos" and plan.routes[-1].bytes > 10**6 and "DOES NOT FIT" in repr(plan)


def test_blocks_where_several_vectors_cost_as_much_as_one(rate):
    blocks = {r.method.block: r.seconds for r in fj.plan(matrix(3000), 10).routes if hasattr(r.method, "block")}
    assert blocks[4] < blocks[1]
    # Networks take their columns one by one on a CPU.
    assert [r.method.block for r in fj.plan(perceptron(400), 10).routes if isinstance(r.method, fj.Lanczos)] == [1]


def test_reduced_precision_only_where_it_is_faster_and_the_tolerance_allows_it(monkeypatch):
    assert auto._precision(0.5) == "highest"  # a CPU gains nothing
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    speed = {"highest": 1.0, "tensorfloat32": 6.0, "bfloat16": 12.0}
    monkeypatch.setattr(costs, "matmul_rate", lambda precision="highest": RATE * speed[precision])
    assert [auto._precision(t) for t in (1e-6, 2e-2, 0.2)] == ["highest", "tensorfloat32", "bfloat16"]
    monkeypatch.setattr(costs, "matmul_rate", lambda precision="highest": RATE)
    assert auto._precision(0.2) == "highest"


def test_the_method_is_chosen_inside_jit():
    a = jnp.asarray(matrix(80))
    found = jax.jit(lambda a: fj.eigsh(a, 3, key=jax.random.key(0)).values)(a)
    np.testing.assert_allclose(found, [1, 1 / 2, 1 / 3], rtol=1e-4)


def test_the_plan_prints_routes_sizes_and_the_rate(rate):
    text = repr(fj.plan(perceptron(samples=200, width=100), 5))
    for part in (
        "the 5 largest of 11100 eigenvalues, through its dual of size 600",
        "Dense()",
        "Lanczos()",
        "products",
        "MiB",
    ):
        assert part in text, text
    assert "Lanczos(tol=0.01)" in repr(fj.plan(perceptron(samples=200), 5, method=fj.Auto(0.01)))


def test_bad_arguments_are_named():
    F = perceptron()
    with pytest.raises(fj.ArgumentError, match="plan: k=91 exceeds 90"):
        fj.plan(F.dual, 91)
    by: Any = {"by": "layer"}
    with pytest.raises(fj.ArgumentError, match=r"plan: k=3 with by='layer'"):
        fj.plan(F, 3, **by)
    with pytest.raises(fj.ArgumentError, match=r"plan: operator is a str"):
        fj.plan("F", 3)
    with pytest.raises(fj.ArgumentError, match=r"Auto: tol"):
        fj.Auto(tol=-1)
    with pytest.raises(fj.ArgumentError, match=r"plan: method=Lanczos\(.* leaves no choice"):
        fj.plan(F, 3, method=cast(Any, fj.Lanczos()))
    with pytest.raises(fj.ArgumentError, match=r"plan: function maps"):
        fj.plan(fj.FunctionOperator(lambda V: V[:2], 50), 3)


def test_what_no_method_can_do_is_refused_with_the_most_that_can():
    large = fj.FunctionOperator(lambda V: V, 20_000)
    for attempt in (lambda k: fj.plan(large, k), lambda k: fj.eigsh(large, k, key=jax.random.key(0))):
        with pytest.raises(fj.ArgumentError, match=r"k=10000 of 20000 rows.*give k <= 9988"):
            attempt(10_000)
    assert names(fj.plan(large, 9988)) == ["Lanczos"]


@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3])
def test_loose_tolerances_hold_for_lifted_pairs(tol):
    """Residuals grow by √(λ_max/λ) when they are lifted; a bound on that may be far too loose."""
    F = perceptron(samples=400, width=60)
    found = fj.eigsh(F, 60, method=fj.Lanczos(tol=tol), key=jax.random.key(0))
    assert found.converged.all()
    v = np.asarray(found.vectors, np.float64)
    residuals = np.linalg.norm(np.asarray(F @ found.vectors, np.float64) - v * np.asarray(found.values, np.float64), axis=0)
    assert residuals.max() <= 1.01 * tol * float(found.values[0])


def test_measuring_names_who_asked():
    with pytest.raises(fj.ArgumentError, match=r"density: the operator returned NaN"):
        start.measure("density", fj.FunctionOperator(lambda V: V * jnp.nan, 10), jnp.ones((1, 10)))


def test_the_command_line_plans_the_largest(capsys):
    assert cli.main(["plan", "--samples", "20", "-k", "5", "--tol", "1e-3"]) == 0
    out = capsys.readouterr().out
    assert "the 5 largest of" in out and "taken: Dense()" in out and "Lanczos(tol=0.001" in out
    assert cli.main(["plan", "--samples", "20", "-k", "5", "--by", "layer"]) == 2
    assert "leave out --by" in capsys.readouterr().err
