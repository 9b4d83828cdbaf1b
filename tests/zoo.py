"""Symmetric matrices with known eigenvalues: (name, operator, all eigenvalues descending in float64)."""

import jax
import jax.numpy as jnp
import numpy as np

import fisher_jax as fj


def prescribed(values, seed=0):
    """Dense Q diag(values) Qᵀ with a random orthogonal Q."""
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    A = (Q * np.asarray(values, np.float64)) @ Q.T
    return (A + A.T) / 2


def diagonal(values, dtype):
    """Matrix-free diag(values), any size."""
    values = jnp.asarray(values, dtype)
    psd = bool((values >= 0).all())
    return fj.FunctionOperator(jax.tree_util.Partial(_scale, values), values.size, dtype, psd=psd)


def _scale(values, V):
    return values[:, None] * V


def ring_laplacian(n, dtype):
    """2(1 − cos 2πk/n): every eigenvalue but the ends twice."""
    return fj.FunctionOperator(
        lambda V: 2 * V - jnp.roll(V, 1, axis=0) - jnp.roll(V, -1, axis=0), n, dtype, psd=True
    ), np.sort(2 * (1 - np.cos(2 * np.pi * np.arange(n) / n)))[::-1]


N = 160
SPECTRA = {
    "arange": np.arange(1.0, N + 1),
    "geometric 0.7": 0.7 ** np.arange(N),
    "condition 1e5": np.geomspace(1e5, 1, N),
    "flat then drop": np.r_[np.ones(20), 1e-3 * np.ones(N - 20)],
    "identity": np.ones(N),
    "top value 6 times": np.r_[np.full(6, 5.0), np.linspace(4, 0.1, N - 6)],
    "pairs": np.repeat(np.linspace(10, 1, N // 2), 2),
    "rank 3": np.r_[3.0, 2.0, 1.0, np.zeros(N - 3)],
    "rank 3, repeated": np.r_[3.0, 3.0, 1.0, np.zeros(N - 3)],
    "zero": np.zeros(N),
    "tight cluster": np.r_[10.0, 10 - 1e-3, 10 - 2e-3, np.linspace(5, 0, N - 3)],
    "indefinite": np.linspace(4, -9, N),
    "all negative": -np.geomspace(1, 1e3, N),
    "outliers over a bulk": np.r_[50, 30, 20, np.random.default_rng(1).uniform(0, 1, N - 3)],
}


def matrix(name, dtype):
    """Operator and eigenvalues of the matrix as rounded to dtype."""
    A = prescribed(SPECTRA[name]).astype(dtype)
    return fj.MatrixOperator(A), np.linalg.eigvalsh(A.astype(np.float64))[::-1]
