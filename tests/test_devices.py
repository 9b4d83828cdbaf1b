"""Eight virtual devices: the same numbers as on one, to round-off; memory as stated."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import AxisType

import fisher_jax as fj
from fisher_jax.gram import samples_at
from fisher_jax.kernels import features
from fisher_jax.operators import apply
from fisher_jax.solvers import lanczos


@pytest.fixture(scope="module")
def problem():
    model = fj.models.build("mlp", inputs=10, outputs=4, width=48, bias_variance=0.1, key=jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(403, 10)).astype(np.float32)  # not a multiple of 8
    return model, x


def mesh(kind):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("chunk", ["auto", 100])
def test_mesh_gives_the_same_numbers(problem, chunk, kind):
    model, x = problem
    assert jax.device_count() == 8
    F, G = fj.fisher(model, x, fj.Categorical()), fj.fisher(model, x, fj.Categorical(), chunk=chunk, mesh=mesh(kind))
    data = jax.tree.leaves(G.factor.jacobian.data.x)[0]
    assert len(data.sharding.device_set) == 8 and data.addressable_shards[0].data.shape[1] * 8 == data.shape[1]
    if chunk == "auto":
        # The stored linearization is spread out too: most of its bytes are not on every device.
        stored = jax.tree.leaves(G.factor.jacobian.stored)
        whole = sum(a.nbytes for a in stored)
        assert sum(a.addressable_shards[0].data.nbytes for a in stored) < 0.6 * whole
    v = np.random.default_rng(1).normal(size=(F.size, 2)).astype(np.float32)
    tolerance = 100 * oracle.eps("float32")
    assert oracle.relative(G @ v, F @ v) <= tolerance
    u = np.random.default_rng(2).normal(size=F.dual.size).astype(np.float32)
    assert oracle.relative(G.dual @ u, F.dual @ u) <= tolerance
    assert abs(float(G.trace()) / float(F.trace()) - 1) <= tolerance
    method = fj.Lanczos(tol=1e-5)
    a, b = (fj.eigsh(M, 6, method=method, key=jax.random.key(3)) for M in (F, G))
    assert (np.abs(np.asarray(a.values) - np.asarray(b.values)) <= np.asarray(a.bounds)).all()
    assert bool(b.converged.all())


def test_monte_carlo_labels_do_not_depend_on_devices(problem):
    model, x = problem
    kind = fj.MonteCarlo(2, key=jax.random.key(1))
    F, G = (fj.fisher(model, x, fj.Categorical(), kind=kind, mesh=m) for m in (None, mesh(AxisType.Auto)))
    assert oracle.relative(G.diagonal(), F.diagonal()) <= 100 * oracle.eps("float32")


def test_gram_and_sums_over_rows_on_a_mesh(problem):
    """Samples of a tile spread over the devices, two on each with padding; K on all of them."""
    model, x = problem
    F, G = (fj.fisher(model, x[:37], fj.Categorical(), mesh=m) for m in (None, mesh(AxisType.Auto)))
    tolerance = 100 * oracle.eps("float32")
    truth = np.asarray(F.factor.dense()) @ np.asarray(F.factor.dense()).T
    K = G.gram(tile=10)
    assert oracle.relative(K, truth) <= tolerance and K.is_fully_replicated
    batch = samples_at(G.factor, 0, 10)
    assert batch.scale.shape == (16,) and batch.scale.sharding.shard_shape((16,)) == (2,)
    for a in jax.tree.leaves(features(G.factor, batch, (0,) * 6)):
        assert a.sharding.shard_shape(a.shape)[0] == a.shape[0] // 8, a.sharding
    assert oracle.relative(G.dual.diagonal(), np.diag(truth)) <= tolerance
    assert oracle.relative(G.diagonal(), F.diagonal()) <= tolerance
    a, b = fj.spectrum(F), fj.spectrum(G)
    np.testing.assert_allclose(b.values[:20], a.values[:20], atol=a.floor)


@pytest.mark.parametrize("block", [1, 2])
def test_memory_of_lanczos_is_two_bases_and_few_work_vectors(block):
    """XLA's own account of the loop: state 2 m + b vectors in place, at most 5 b + 3 work vectors beside it."""
    n, m, k = 200_000, 30, 4
    column = jnp.ones((n, 1), jnp.float32)
    operator = fj.FunctionOperator(jax.tree_util.Partial(lambda d, V: d @ (d.T @ V), column), n, psd=True)
    plan = lanczos._Plan(k, m, block, 10, False, False, n)
    limits = lanczos._Limits(*(jnp.asarray(v, jnp.float32) for v in (1e-6, 1e-7, 0.0)))
    state = jax.eval_shape(lambda: lanczos._begin(plan, jnp.ones((block, n)), jax.random.key(0)))
    compiled = lanczos._advance.lower(operator, state, limits, plan, jnp.asarray(5, jnp.int32)).compile()
    memory = compiled.memory_analysis()
    vector = 4 * n
    assert memory.alias_size_in_bytes >= (2 * m + block) * vector, "the state is updated in place"
    assert memory.temp_size_in_bytes <= (5 * block + 3) * vector, memory.temp_size_in_bytes / vector


def test_chunks_bound_the_memory_of_a_product():
    """A chunk of an eighth of the samples takes a fraction of the memory of one pass over all."""
    model = fj.models.build("mlp", inputs=16, outputs=4, width=256, key=jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(4096, 16)).astype(np.float32)

    def temporary(chunk):
        F = fj.fisher(model, x, fj.Categorical(), chunk=chunk)
        stored = sum(a.nbytes for a in jax.tree.leaves(F.factor.jacobian.stored))
        V = jax.ShapeDtypeStruct((F.size, 1), jnp.float32)
        return stored + apply.lower(F, V).compile().memory_analysis().temp_size_in_bytes

    assert temporary(512) < 0.35 * temporary("auto")
