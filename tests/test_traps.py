"""Where other tools fail: matrices and models on which some published tool returns a wrong answer in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import zoo
from cases import NnxNet, data, function
from flax import nnx

import fisher_jax as fj

KEY = jax.random.key(7)


def test_slow_decay_at_a_million(dtype):
    """n = 10⁶, {10, 9, 8, 7, 6, i^(-1/2)}: a tolerance that grows with n calls the first iterate converged."""
    values = np.r_[10.0, 9.0, 8.0, 7.0, 6.0, np.arange(1, 10**6 - 4) ** -0.5]
    result = fj.eigsh(zoo.diagonal(values, dtype), 5, method=fj.Lanczos(tol=1e-5, steps=25), key=KEY)
    assert bool(result.converged.all())
    error = np.abs(np.asarray(result.values, np.float64) - values[:5])
    assert (error <= np.asarray(result.bounds)).all() and error.max() <= 1e-5 * 10
    assert float(result.complete_above) < 6


def test_clusters_keep_their_multiplicity(dtype):
    """n = 10⁵, ten times 10, ten times 1, the rest 1e-3."""
    values = np.r_[np.full(10, 10.0), np.full(10, 1.0), np.full(10**5 - 20, 1e-3)]
    result = fj.eigsh(zoo.diagonal(values, dtype), 20, method=fj.Lanczos(tol=1e-5), key=KEY)
    assert bool(result.converged.all())
    assert (np.abs(np.asarray(result.values, np.float64) - values[:20]) <= np.asarray(result.bounds)).all()
    assert float(result.complete_above) < 1


@pytest.mark.parametrize("k", [20, 40])
def test_more_than_the_rank(k, dtype):
    """Gram matrix of rank 16: after the Krylov space closes, exact zeros, not noise and not wild values."""
    G = np.random.default_rng(0).normal(size=(400, 16)) / 20
    A = (G @ G.T).astype(dtype)
    A = (A + A.T) / 2
    truth = np.linalg.eigvalsh(A.astype(np.float64))[::-1]
    operator = fj.FunctionOperator(jax.tree_util.Partial(jnp.matmul, jnp.asarray(A)), 400, dtype, psd=True)
    result = fj.eigsh(operator, k, method=fj.Lanczos(tol=1e-5), key=KEY)
    assert bool(result.converged.all())
    assert (np.abs(np.asarray(result.values, np.float64) - truth[:k]) <= np.asarray(result.bounds)).all()
    assert not np.any(np.asarray(result.values[16:])), "past the rank: exactly zero"


@pytest.mark.parametrize("n", [5, 300])
def test_zero_operator(n, dtype):
    operator = fj.FunctionOperator(lambda V: 0 * V, n, dtype, psd=True)
    for method in (fj.Lanczos(), fj.Dense()):
        result = fj.eigsh(operator, 3, method=method, key=KEY)
        assert bool(result.converged.all()) and not np.any(np.asarray(result.values))
        assert float(np.max(result.bounds)) == 0 and float(result.complete_above) <= 0


def test_rank_deficient_fisher_beyond_its_rank(dtype):
    """k above the rank of F, through the dual: zeros with true null vectors of parameter space."""
    model, _, _ = function(dtype)
    x = data(dtype)
    F = fj.fisher(model, x, fj.Categorical())
    assert F.dual.size == 21 < F.size
    truth = np.linalg.eigvalsh(np.asarray(F.dense(), np.float64))[::-1]
    result = fj.eigsh(F, 30, key=KEY)
    assert bool(result.converged.all()) and result.vectors.shape == (F.size, 30)
    assert (np.abs(np.asarray(result.values, np.float64) - truth[:30]) <= np.asarray(result.bounds)).all()
    assert not np.any(np.asarray(result.values[14:])), "rank is N·(C − 1) = 14"
    V = np.asarray(result.vectors, np.float64)
    np.testing.assert_allclose(V.T @ V, np.eye(30), atol=1000 * oracle.eps(dtype))
    assert (
        np.linalg.norm(np.asarray(F @ V) - V * np.asarray(result.values), axis=0).max() <= 1e3 * oracle.eps(dtype) * truth[0]
    )


def test_duplicated_samples_through_lanczos(dtype):
    """Every sample twice: half of the dual is null, and every eigenvalue must still be there once."""
    model, _, _ = function(dtype)
    x = np.random.default_rng(0).normal(size=(100, 5)).astype(dtype)
    F, G = fj.fisher(model, np.concatenate([x, x]), fj.Gaussian()), fj.fisher(model, x, fj.Gaussian())
    truth = np.linalg.eigvalsh(np.asarray(G.dense(), np.float64))[::-1]
    result = fj.eigsh(F.dual, 12, method=fj.Lanczos(tol=1e-6), key=KEY)
    assert (np.abs(np.asarray(result.values, np.float64) - truth[:12]) <= np.asarray(result.bounds)).all()


def test_last_chunk_of_one_weighs_what_it_should(x64):
    """Averaging batch means puts 4 + 1 samples at equal weight: far off here, where the last sample is large."""
    x = data("float64", 5)
    x[-1] *= 10
    model, apply, params = function("float64")
    truth = oracle.exact("categorical", *oracle.jacobians(apply, params, x))
    F = fj.fisher(model, x, fj.Categorical(), chunk=4)
    assert oracle.relative(F @ np.eye(F.size), truth) <= 100 * oracle.eps("float64")
    means = [np.asarray(fj.fisher(model, part, fj.Categorical()).dense()) for part in (x[:4], x[4:])]
    assert oracle.relative((means[0] + means[1]) / 2, truth) > 0.1, "the trap is one"


def test_saturated_softmax_keeps_its_digits():
    """One class nearly certain, float32: √p u − p (√p·u) cancels to noise; the entries are known to full precision."""
    f = jnp.asarray([[20.0, 0.0, -3.0]], jnp.float32)
    u = jnp.eye(3, dtype=jnp.float32)[:, None]
    B = np.stack([np.asarray(fj.Categorical().factor(f, e))[0] for e in u], axis=1).astype(np.float64)
    truth = oracle.output_fisher("categorical", np.asarray(f, np.float64)[0])
    # 1 − p of the top class from the others, exact to float64 rounding.
    e = np.exp(np.array([0.0, -20.0, -23.0]))
    truth[0, 0] = e[0] * (e[1] + e[2]) / e.sum() ** 2
    assert np.abs(B @ B.T - truth).max() <= 20 * oracle.eps("float32") * np.abs(truth).max()


# --- models that break the rules --------------------------------------------------------------------------------------


def test_training_mode_modules_are_refused():
    model = NnxNet(jnp.float32, nnx.Rngs(0))
    x = data("float32")
    with pytest.raises(fj.ArgumentError, match=r"Dropout 'drop' active with rate=0.5; call model.eval\(\)"):
        fj.fisher(model, x, fj.Categorical())
    model.drop.deterministic = True
    model.norm.use_running_average = False
    with pytest.raises(fj.ArgumentError, match=r"BatchNorm 'norm' in training mode.*call model.eval\(\)"):
        fj.fisher(model, x, fj.Categorical())
    model.eval()
    assert fj.fisher(model, x, fj.Categorical()).size == 6 * 5 + 6 + 2 * 6 + 6 * 3 + 3


def plain(apply):
    return fj.Function(apply, {"w": jnp.ones((5, 3), jnp.float32)})


def test_batch_statistics_in_a_plain_function_are_refused():
    def normalized(p, x):
        return (x - x.mean(0, keepdims=True)) @ p["w"]

    def frozen(p, x):  # invisible to derivatives, but values depend on the batch
        return x @ p["w"] / jax.lax.stop_gradient(jnp.std(x))

    for apply in (normalized, frozen):
        with pytest.raises(fj.ArgumentError, match="model couples samples: an output changes with the rest of the batch"):
            fj.fisher(plain(apply), data("float32"), fj.Gaussian())


def test_randomness_is_refused():
    rng = np.random.default_rng(0)

    def impure(p, x):
        return x @ p["w"] * rng.uniform()

    def masked(p, x):  # the same mask at every call, another for each place in the batch
        return (x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape).astype(x.dtype)) @ p["w"]

    with pytest.raises(fj.ArgumentError, match="model is not deterministic: two evaluations differ"):
        fj.fisher(plain(impure), data("float32"), fj.Gaussian())
    with pytest.raises(fj.ArgumentError, match="depends on a sample's place in the batch"):
        fj.fisher(plain(masked), data("float32"), fj.Gaussian())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": np.full((4, 5), np.nan, np.float32)}, "fisher: x has 20 NaN or infinite value"),
        ({"model": fj.Function(lambda p, x: x @ p, jnp.full((5, 3), jnp.inf))}, "fisher: params.* has 15 NaN or infinite"),
        ({"x": np.ones((4, 6), np.float32)}, r"fisher: model rejects samples of shape \[\(6,\)\]"),
        ({"model": fj.Function(lambda p, x: (x @ p).sum(1), jnp.ones((5, 3)))}, "output of shape"),
        (
            {"model": fj.Function(lambda p, x: (x @ p).sum(0)[None], jnp.ones((5, 3)))},
            "maps 3 samples to an output of shape",
        ),
        ({"model": lambda x: x}, "model=function is not a model; pass an nnx.Module"),
        ({"likelihood": "categorical"}, "likelihood='categorical' is not a likelihood"),
        ({"kind": "exact"}, "kind='exact'; give fj.Exact"),
        ({"kind": fj.Empirical(np.zeros(3, int))}, r"y has shape \(3,\), x has 4 samples"),
        ({"kind": fj.Empirical(np.full(4, 7))}, r"labels y span 7..7; give classes 0..2"),
        ({"kind": fj.Empirical(np.zeros((4, 3), np.float32))}, "give integer class labels"),
        ({"weights": np.ones(3)}, r"weights has shape \(3,\)"),
        ({"weights": np.zeros(4)}, "weights has negative, NaN or only zero"),
        ({"chunk": 0}, "chunk=0 is below 1"),
        ({"chunk": "big"}, "chunk='big' is not an integer"),
        ({"x": np.ones((0, 5), np.float32)}, "at least one sample"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {
        "model": fj.Function(lambda p, x: x @ p, jnp.ones((5, 3))),
        "x": np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32),
        "likelihood": fj.Categorical(),
    } | change
    model, x, likelihood = (arguments.pop(name) for name in ("model", "x", "likelihood"))
    with pytest.raises(fj.ArgumentError, match=message) as caught:
        fj.fisher(model, x, likelihood, **arguments)
    assert "\n" not in str(caught.value)


def test_monte_carlo_needs_a_key_and_loss_a_number():
    with pytest.raises(fj.ArgumentError, match="MonteCarlo: key is missing"):
        fj.MonteCarlo(2)
    model = fj.Function(lambda p, x: x @ p, jnp.ones((5, 3)))
    with pytest.raises(fj.ArgumentError, match=r"loss returns shape \(3,\) for one sample; return one number"):
        fj.ggn(model, (np.ones((4, 5), np.float32), np.ones((4, 3), np.float32)), lambda f, y: f - y)
    with pytest.raises(fj.ArgumentError, match=r"give the pair \(x, y\)"):
        fj.hessian(model, np.ones((4, 5), np.float32), fj.Gaussian())
