"""Float64 references that share no code with the library: explicit Jacobians, explicit output Fisher matrices, loops."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def jacobians(apply, params, x):
    """Outputs (N, ...) and Jacobians (N, outputs, P), float64, one sample at a time."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), params)
        flat, unravel = ravel_pytree(params)

        def one(flat, row):
            return apply(unravel(flat), row[None])[0]

        jacobian = jax.jit(jax.jacrev(one))
        rows = [jnp.asarray(np.asarray(row), jnp.float64) for row in x]
        outputs = np.stack([np.asarray(one(flat, row)) for row in rows])
        J = np.stack([np.asarray(jacobian(flat, row)) for row in rows])
        return outputs, J


def softmax(f):
    e = np.exp(f - f.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def output_fisher(name, f):
    """(C, C) Fisher matrix of one output vector."""
    if name == "gaussian":
        return np.eye(f.size) / 0.5**2
    if name == "categorical":
        p = softmax(f)
        return np.diag(p) - np.outer(p, p)
    if name == "bernoulli":
        p = 1 / (1 + np.exp(-f))
        return np.diag(p * (1 - p))
    if name == "poisson":
        return np.diag(np.exp(f))
    raise ValueError(name)


def score(name, f, y):
    """Gradient of log p(y | f) in f."""
    if name == "gaussian":
        return (y - f) / 0.5**2
    if name == "categorical":
        return np.eye(f.size)[y] - softmax(f)
    if name == "bernoulli":
        return y - 1 / (1 + np.exp(-f))
    if name == "poisson":
        return y - np.exp(f)
    raise ValueError(name)


def exact(name, outputs, J, weights=None):
    """Σ w Jᵀ H J / Σ w for outputs (N, C)."""
    weights = np.ones(len(J)) if weights is None else weights
    return sum(w * j.T @ output_fisher(name, f) @ j for w, f, j in zip(weights, outputs, J, strict=True)) / weights.sum()


def labelled(name, outputs, J, labels):
    """Mean over samples and draws of g gᵀ; labels (N, draws, ...)."""
    total = 0
    for f, j, ys in zip(outputs, J, labels, strict=True):
        for y in ys:
            g = j.T @ score(name, f, y)
            total = total + np.outer(g, g) / len(ys)
    return total / len(J)


def relative(a, b):
    """‖a − b‖ over ‖b‖ in the spectral norm for matrices."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    order = 2 if b.ndim == 2 else None
    return np.linalg.norm(a - b, order) / np.linalg.norm(b, order)


def accepted(multiply, values, vectors, truth, tol, dtype):
    """PRIMME's rule for k returned pairs: |Δλ| <= tol‖A‖ and ‖A v − λ v‖ <= (tol + eps) √k ‖A‖, residuals in float64.

    `multiply`: product with the matrix in float64; `truth`: the eigenvalues that were asked for, in the same order.
    """
    V, w, truth = (np.asarray(a, np.float64) for a in (vectors, values, truth))
    assert w.shape == truth.shape and V.shape[1:] == w.shape and np.isfinite(V).all()
    norm = max(np.abs(truth).max(), np.finfo(float).tiny)
    assert np.abs(w - truth).max() <= tol * norm, (w, truth)
    residuals = np.linalg.norm(multiply(V) - V * w, axis=0)
    assert residuals.max() <= (tol + eps(dtype)) * np.sqrt(w.size) * norm, residuals / norm
    np.testing.assert_allclose(V.T @ V, np.eye(w.size), atol=tol * w.size)
