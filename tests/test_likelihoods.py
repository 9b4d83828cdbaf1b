"""B Bᵀ against explicit output Fisher matrices, scores against differentiation, samples against moments."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import LIKELIHOODS
from scipy import stats

import fisher_jax as fj


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_factor_squares_to_the_output_fisher(name, dtype):
    f = np.random.default_rng(0).normal(size=(4, 3)).astype(dtype) * 2
    likelihood = LIKELIHOODS[name]
    columns = [likelihood.factor(jnp.asarray(f), jnp.tile(e, (4, 1))) for e in np.eye(3, dtype=dtype)]
    B = np.stack([np.asarray(c, np.float64) for c in columns], axis=-1)
    for n in range(4):
        truth = oracle.output_fisher(name, f[n].astype(np.float64))
        assert oracle.relative(B[n] @ B[n].T, truth) <= 20 * oracle.eps(dtype)
    if name == "categorical":
        root = jnp.sqrt(jax.nn.softmax(jnp.asarray(f)))
        assert np.abs(likelihood.factor(jnp.asarray(f), root)).max() <= 20 * oracle.eps(dtype)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_nll_is_a_log_density_and_its_gradient_the_score(name, x64):
    rng = np.random.default_rng(1)
    f = rng.normal(size=(5, 3))
    y = {
        "gaussian": rng.normal(size=(5, 3)),
        "categorical": rng.integers(0, 3, 5),
        "bernoulli": rng.integers(0, 2, (5, 3)).astype(float),
        "poisson": rng.poisson(2.0, (5, 3)).astype(float),
    }[name]
    likelihood = LIKELIHOODS[name]
    expected = {
        "gaussian": lambda: -stats.norm(f, 0.5).logpdf(y).sum(1),
        "categorical": lambda: -np.log(oracle.softmax(f)[np.arange(5), y]),
        "bernoulli": lambda: -stats.bernoulli(1 / (1 + np.exp(-f))).logpmf(y).sum(1),
        "poisson": lambda: -stats.poisson(np.exp(f)).logpmf(y).sum(1),
    }[name]()
    np.testing.assert_allclose(likelihood.nll(jnp.asarray(f), jnp.asarray(y)), expected, rtol=1e-12)
    gradient = jax.grad(lambda f: -likelihood.nll(f, jnp.asarray(y)).sum())(jnp.asarray(f))
    np.testing.assert_allclose(gradient, [oracle.score(name, a, b) for a, b in zip(f, y, strict=True)], atol=1e-12)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_score_of_samples_has_mean_zero_and_the_fisher_as_covariance(name):
    f = jnp.asarray([[0.3, -1.0, 0.8]], jnp.float32)
    likelihood = LIKELIHOODS[name]
    y = jax.vmap(lambda k: likelihood.sample(k, f))(jax.random.split(jax.random.key(0), 40_000))
    scores = np.asarray(jax.vmap(lambda y: jax.grad(lambda f: -likelihood.nll(f, y).sum())(f))(y), np.float64)[:, 0]
    truth = oracle.output_fisher(name, np.asarray(f, np.float64)[0])
    # Five standard errors.
    assert (np.abs(scores.mean(0)) <= 5 * np.sqrt(np.diag(truth) / 40_000)).all()
    products = scores[:, :, None] * scores[:, None, :]
    assert (np.abs(products.mean(0) - truth) <= 5 * products.std(0) / 200 + 1e-9).all()


def test_no_class_by_class_block_is_formed():
    """Softmax over 50 000 classes: a C×C block would be 10 GB."""
    f = jnp.zeros((2, 50_000), jnp.float32)
    compiled = jax.jit(fj.Categorical().factor).lower(f, f).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 20 * f.nbytes


def test_your_own_likelihood(x64):
    """Exponential waiting times with log-rate outputs: the output Fisher matrix is the identity."""

    @fj.record
    class Exponential(fj.Likelihood):
        def _nll(self, f, y):
            return y * jnp.exp(f) - f

        def _factor(self, f, u):
            return u

        def _sample(self, key, f):
            return jax.random.exponential(key, f.shape, f.dtype) / jnp.exp(f)

    x = np.random.default_rng(0).normal(size=(9, 4))
    model = fj.Function(lambda p, x: x @ p, jnp.ones((4, 2)))
    F = fj.fisher(model, x, Exponential())
    assert oracle.relative(F.dense(), np.kron(x.T @ x / 9, np.eye(2))) <= 100 * oracle.eps("float64")
    M = fj.fisher(model, x, Exponential(), kind=fj.MonteCarlo(4000, key=jax.random.key(0)))
    assert oracle.relative(M.dense(), F.dense()) < 0.1
