"""From a tangent kernel to eigenvalues of the Fisher matrix: outliers, bulk, normalized outputs, softmax, clusters.

The nonzero eigenvalues of F are those of `Θ/N`, Θ over samples and outputs. At infinite width the outputs are independent:
each eigenvalue of the `(N, N)` kernel of one output occurs C times.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg

Array = jax.Array


def two_levels(theta1: Any, theta2: Any, samples: float) -> tuple[Array, Array]:
    """(λ_max, bulk) of a kernel with θ₁ on the diagonal and θ₂ elsewhere.

        λ_max = [θ₁ + (N − 1) θ₂]/N  (C times),  bulk = (θ₁ − θ₂)/N  ((N − 1) C times)

    Hence trace C θ₁ and ‖F‖² = C [θ₁² + (N − 1) θ₂²]/N.

    Reference: Karakida et al., AISTATS 2019 (from memory, derived again, checked on finite networks).
    """
    theta1, theta2 = jnp.asarray(theta1, float), jnp.asarray(theta2, float)
    return theta2 + (theta1 - theta2) / samples, (theta1 - theta2) / samples


def eigenvalues(theta: Array) -> Array:
    """All N eigenvalues of `Θ/N`, descending; each occurs C times in F."""
    return jnp.linalg.eigvalsh(theta)[..., ::-1] / theta.shape[-1]


def largest(theta: Any, k: int) -> np.ndarray:
    """The k largest of `eigenvalues`, k < N, by Lanczos iteration (ARPACK) in place of the whole `(N, N)` problem."""
    theta = np.asarray(theta)
    values, vectors = _largest(lambda v: theta @ v, len(theta), k, vectors=True)
    # One start vector sees one copy of a repeated eigenvalue: search with another, orthogonal to what was found.
    while vectors.shape[1] < len(theta):

        def rest(v: np.ndarray, V: np.ndarray = vectors) -> np.ndarray:
            u = theta @ (v - V @ (V.T @ v))
            return u - V @ (V.T @ u)

        more, vector = _largest(rest, len(theta), 1, vectors=True, seed=vectors.shape[1])
        if more[0] <= values[k - 1] * (1 + 1e-9):
            break
        values, vectors = np.sort(np.r_[values, more])[::-1], np.c_[vectors, vector]
    return values[:k] / len(theta)


def _largest(product: Callable[[np.ndarray], np.ndarray], size: int, k: int, vectors: bool = False, seed: int = 0) -> Any:
    operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=product, dtype=np.float64)  # type: ignore[call-arg]
    start = np.random.default_rng(seed).normal(size=size)  # ARPACK's own differs from call to call
    tol: Any = 1e-6
    found = scipy.sparse.linalg.eigsh(operator, k, which="LA", v0=start, tol=tol, return_eigenvectors=vectors)
    return (found[0][::-1], found[1][:, ::-1]) if vectors else np.sort(found)[::-1]


def mean_subtracted(theta: Array) -> Array:
    """`H Θ H`, `H = I − 11ᵀ/N`: the kernel of outputs minus their mean over the batch, without the C outliers.

    For two values: all (N − 1) C eigenvalues have the mean (θ₁ − θ₂)/N.

    Reference: the idea is Karakida et al., NeurIPS 2019 (abstract); derived. The removal is exact.
    """
    return theta - jnp.mean(theta, 1)[:, None] - jnp.mean(theta, 0)[None, :] + jnp.mean(theta)


def normalized(theta: Array, f: Array) -> Array:
    """`P Θ P / sd²` of one output f `(N,)` that is normalized over the batch, `P = H − f̂ f̂ᵀ/N`, f̂ = (f − mean)/sd.

    Reference: derived.
    """
    centre = f - jnp.mean(f)
    deviation = jnp.sqrt(jnp.mean(centre**2))
    unit = centre / jnp.linalg.norm(centre)
    P = jnp.eye(f.size, dtype=theta.dtype) - 1 / f.size - unit[:, None] * unit[None, :]
    return P @ theta @ P / deviation**2


def mean_subtracted_edge(at_one: Any, at_zero: Any, slope_at_zero: Any, samples: float, inputs: float) -> Array:
    """λ_max after mean subtraction, for Gaussian inputs: `[g(1) − g(0) − g'(0) + g'(0) (1 + √(N/d))²]/N`.

    g(c) is the kernel at input cosine c. Infinite width first: finite networks lie above, by 13 % at N/M = 1/16 and 30 % at
    1/4; for N near M there is no accurate closed form.

    Reference: derived from El Karoui's linearization, Ann. Stat. 38, 2010.
    """
    bulk = jnp.asarray(at_one, float) - at_zero - slope_at_zero
    return (bulk + slope_at_zero * (1 + (samples / inputs) ** 0.5) ** 2) / samples


def softmax_outliers(theta1: Any, theta2: Any, p: Array) -> Array:
    """The C − 1 outliers of softmax outputs with probabilities p `(N, C)`, descending.

        θ₂ w_k + [(θ₁ − θ₂)/N] (v_kᵀ Q2 v_k)/w_k,  (w_k, v_k) of Q̄ = mean Q_n, Q2 = mean Q_n²,  Q_n = diag(p_n) − p_n p_nᵀ

    The C-th is in the bulk: Q_n 1 = 0 for every n. First order in (θ₁ − θ₂)/(N θ₂): the smallest may lie in the bulk.
    The trace is θ₁ mean(1 − Σ p²).

    Reference: derived, checked on finite networks.
    """
    Q = output_fisher(p)
    w, v = jnp.linalg.eigh(jnp.mean(Q, 0))
    w, v = w[:0:-1], v[:, :0:-1]
    second = jnp.mean(jnp.square(jnp.linalg.norm(Q @ v[None], axis=1)), 0)
    bulk = (jnp.asarray(theta1, float) - theta2) / p.shape[0]
    return jnp.sort(theta2 * w + bulk * second / w)[::-1]


def softmax_eigenvalues(theta: Array, p: Array) -> Array:
    """All N C eigenvalues of `Q^½ (Θ ⊗ I) Q^½/N`, descending, for probabilities p `(N, C)`."""
    N, C = p.shape
    # Q = B Bᵀ with B = (I − p 1ᵀ) diag(√p): no root of a singular matrix.
    B = (jnp.eye(C, dtype=p.dtype)[None] - p[:, :, None]) * jnp.sqrt(p)[:, None, :]
    K = jnp.einsum("nki,nm,mkj->nimj", B, theta, B, precision="highest").reshape(N * C, N * C)
    return jnp.linalg.eigvalsh((K + K.T) / 2)[::-1] / N


def softmax_largest(theta: Any, p: Any, k: int) -> np.ndarray:
    """The k largest of `softmax_eigenvalues`, k < N C, from products with Θ alone: no matrix of N C rows is formed."""
    theta, p = np.asarray(theta), np.asarray(p)
    root = np.sqrt(p)

    def product(v: np.ndarray) -> np.ndarray:
        u = root * v.reshape(p.shape)
        u = theta @ (u - p * u.sum(1, keepdims=True))  # Θ B v
        return (root * (u - np.sum(p * u, 1, keepdims=True))).ravel()  # Bᵀ

    return _largest(product, p.size, k) / len(p)


def output_fisher(p: Array) -> Array:
    """`Q_n = diag(p_n) − p_n p_nᵀ`, `(N, C, C)`."""
    return p[:, :, None] * jnp.eye(p.shape[1], dtype=p.dtype)[None] - p[:, :, None] * p[:, None, :]


@functools.partial(jax.jit, static_argnames=("outputs", "draws"))
def softmax_probabilities(covariance: Array, outputs: int, key: Array, draws: int) -> Array:
    """Softmax of `draws` networks at initialization, `(draws, N, C)`: independent Gaussian outputs of this covariance."""
    # Equal samples make it singular: rounding is lifted above zero.
    lift = 10 * covariance.shape[0] * jnp.finfo(covariance.dtype).eps * jnp.max(jnp.diagonal(covariance))
    root = jnp.linalg.cholesky(covariance + lift * jnp.eye(covariance.shape[0], dtype=covariance.dtype))
    z = jax.random.normal(key, (draws, covariance.shape[0], outputs), covariance.dtype)
    return jax.nn.softmax(jnp.einsum("nm,smc->snc", root, z, precision="highest"), axis=-1)


def clustered(theta1: Any, within: Any, between: Any, samples: int, clusters: int) -> tuple[Array, Array, Array]:
    """(λ_max, cluster outliers, bulk) of data in K equal clusters, with the kernel `within` and `between` clusters.

        [θ₁ + (N/K − 1) w + (N − N/K) b]/N   C times
        [θ₁ + (N/K − 1) w − (N/K) b]/N       (K − 1) C times
        (θ₁ − w)/N                           the rest

    Reference: derived, checked on finite networks.
    """
    each = samples / clusters
    inside = jnp.asarray(theta1, float) + (each - 1) * within
    return (inside + (samples - each) * between) / samples, (inside - each * between) / samples, (theta1 - within) / samples
