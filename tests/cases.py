"""Small models of every kind, with data: (name, model, apply, params, x)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

import fisher_jax as fj

N, D, H, C = 7, 5, 6, 3


def data(dtype, n=N):
    return np.random.default_rng(1).normal(size=(n, D)).astype(dtype)


def labels(name, n=N):
    rng = np.random.default_rng(2)
    return {
        "gaussian": rng.normal(size=(n, C)),
        "categorical": rng.integers(0, C, n),
        "bernoulli": rng.integers(0, 2, (n, C)).astype(float),
        "poisson": rng.poisson(1.0, (n, C)).astype(float),
    }[name]


LIKELIHOODS = {
    "gaussian": fj.Gaussian(0.5),
    "categorical": fj.Categorical(),
    "bernoulli": fj.Bernoulli(),
    "poisson": fj.Poisson(),
}


def function(dtype):
    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=(D, H)) / 2, dtype),
        "b": jnp.asarray(rng.normal(size=(H,)) / 2, dtype),
        "c": jnp.asarray(rng.normal(size=(H, C)) / 2, dtype),
    }

    def apply(p, x):
        return jnp.tanh(x @ p["a"] + p["b"][None, :]) @ p["c"]

    return fj.Function(apply, params), apply, params


class NnxNet(nnx.Module):
    def __init__(self, dtype, rngs):
        self.first = nnx.Linear(D, H, param_dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(H, param_dtype=dtype, use_running_average=True, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(H, C, param_dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(jnp.tanh(self.norm(self.first(x)))))


def nnx_model(dtype):
    model = NnxNet(jnp.dtype(dtype), nnx.Rngs(0))
    model.eval()
    statistics = {"mean": 0.1 * np.arange(H), "var": 1 + 0.2 * np.arange(H)}
    nnx.update(model.norm, {name: jnp.asarray(value, dtype) for name, value in statistics.items()})
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    rest64 = jax.tree.map(lambda a: np.asarray(a, np.float64) if a.dtype == dtype else a, rest)

    def apply(p, x):
        return nnx.merge(graphdef, p, rest64, copy=True)(x)

    return model, apply, nnx.to_pure_dict(params)


class LinenNet(linen.Module):
    dtype: str

    @linen.compact
    def __call__(self, x):
        return linen.Dense(C, param_dtype=self.dtype)(jnp.tanh(linen.Dense(H, param_dtype=self.dtype)(x)))


def linen_model(dtype):
    module = LinenNet(dtype)
    variables = module.init(jax.random.key(0), jnp.zeros((1, D), dtype))
    return fj.from_linen(module, variables), lambda p, x: module.apply({"params": p}, x), variables["params"]


MODELS = {"function": function, "nnx": nnx_model, "linen": linen_model}
