"""Trace estimators: intervals that hold, rates as published, hostile operators; truth from closed forms and NumPy."""

import os
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import zoo
from cases import NnxNet, data, function

import fisher_jax as fj
from fisher_jax.traces import base, hutchinson, hutchpp, xnystrace, xtrace

KEY = jax.random.key(5)
N = 100
STOCHASTIC = [fj.Hutchinson(24), fj.HutchPP(24), fj.XTrace(24), fj.XNysTrace(24)]


def operator(matrix, psd=True):
    """Known through products only."""
    matrix = jnp.asarray(matrix)
    return fj.FunctionOperator(jax.tree_util.Partial(jnp.matmul, matrix), len(matrix), matrix.dtype, psd=psd)


# --- intervals: 200 seeds in one program ------------------------------------------------------------------------------


def _hutchinson(M, count, key):
    X = jax.random.normal(key, (count, len(M)))
    return hutchinson.combine([hutchinson.block_of(x, x @ M) for x in (X[:8], X[8:]) if len(x)]), count


def _hutchpp(M, count, key):
    first, second = jax.random.split(key)
    s = count // 3
    W, X = jax.random.normal(first, (s, len(M))), jax.random.normal(second, (count - 2 * s, len(M)))
    Q = base.orthonormal(W[:0], base.sketch(W, W @ M))
    return hutchpp.remainder(Q, Q @ M, X, X @ M), len(X)


def _xtrace(M, count, key):
    X = jax.random.normal(key, (count // 2, len(M)))
    B = base.sketch(X, X @ M)
    Q = base.orthonormal(X[:0], B)
    return xtrace.leave_one_out(X, X @ M, B, Q, Q @ M), len(X)


def _xnystrace(M, count, key):
    X = jax.random.normal(key, (count, len(M)))
    return xnystrace.leave_one_out(X, X @ M)[0], count


METHODS = {"hutchinson": _hutchinson, "hutch++": _hutchpp, "xtrace": _xtrace, "xnystrace": _xnystrace}


@partial(jax.jit, static_argnums=(0, 2))
def _runs(method, M, count, keys):
    return jax.vmap(lambda key: METHODS[method](M, count, key)[0])(keys)


def intervals(method, M, count, seeds=200, psd=True):
    """(lower, upper, value) of many runs, `(seeds,)` each."""
    sums = _runs(method, jnp.asarray(M), count, jax.random.split(KEY, seeds))
    number = {"hutch++": count - 2 * (count // 3), "xtrace": count // 2}.get(method, count)
    lower, upper, _ = base.interval(sums, number, psd, 0.95)
    return lower, upper, np.asarray(sums.value)


def _wishart(rows):
    G = np.random.default_rng(0).normal(size=(N, rows))
    return G @ G.T / rows


SPECTRA = {
    "flat": np.eye(N),
    "geometric": zoo.prescribed(0.9 ** np.arange(N)),
    "fast": zoo.prescribed(0.6 ** np.arange(N)),
    "inverse squares": zoo.prescribed(1.0 / np.arange(1, N + 1) ** 2),
    "one eigenvalue": zoo.prescribed(np.r_[1.0, np.zeros(N - 1)]),
    "one over a bulk": zoo.prescribed(np.r_[30.0, np.ones(N - 1)]),
    "three over a bulk": zoo.prescribed(np.r_[5.0, 4.0, 3.0, np.full(N - 3, 0.1)]),
    "Wishart": _wishart(2 * N),
    "Wishart of low rank": _wishart(N // 4),
}
INDEFINITE = {
    "line": zoo.prescribed(np.linspace(4, -9, N)),
    "one above": zoo.prescribed(np.r_[50.0, np.linspace(-1, 1, N - 1)]),
    "one below": zoo.prescribed(np.r_[-50.0, np.linspace(-1, 1, N - 1)]),
    "two that cancel": zoo.prescribed(np.r_[1.0, -1.0, np.zeros(N - 2)]),
    "alternating": zoo.prescribed(0.8 ** np.arange(N) * (-1.0) ** np.arange(N)),
}


@pytest.mark.parametrize("count", [6, 30])
@pytest.mark.parametrize("method", METHODS)
def test_intervals_hold(method, count, x64):
    for name, M in SPECTRA.items():
        truth = np.trace(M)
        lower, upper, _ = intervals(method, M, count)
        slack = 1e-12 * truth  # rounding, which the estimate adds later
        held = np.mean((lower - slack <= truth) & (truth <= upper + slack))
        assert held >= 0.95, (name, held)


@pytest.mark.parametrize("count", [6, 30])
@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_intervals_hold_for_eigenvalues_of_both_signs(method, count, x64):
    for name, M in INDEFINITE.items():
        truth, slack = np.trace(M), 1e-12 * np.abs(np.linalg.eigvalsh(M)).sum()
        lower, upper, _ = intervals(method, M, count, psd=False)
        held = np.mean((lower - slack <= truth) & (truth <= upper + slack))
        assert held >= 0.95, (name, held)
