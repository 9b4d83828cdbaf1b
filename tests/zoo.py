"""Symmetric matrices with known eigenvalues: (name, operator, all eigenvalues descending in float64)."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse as ss

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


def laplacian(shape, dtype):
    """On a grid with zero boundary, matrix-free: sums of 4 sin²(πj/(2(n+1))), one of each dimension."""

    def product(V):
        grid = V.reshape(*shape, V.shape[1])
        image = 2 * len(shape) * grid
        for axis in range(len(shape)):
            zero = [(1, 1) if a == axis else (0, 0) for a in range(grid.ndim)]
            padded = jnp.pad(grid, zero)
            for ends in ((0, -2), (2, None)):
                image = image - padded[tuple(slice(*ends) if a == axis else slice(None) for a in range(grid.ndim))]
        return image.reshape(V.shape)

    values = np.zeros(1)
    for n in shape:
        values = np.add.outer(values, 4 * np.sin(np.pi * np.arange(1, n + 1) / (2 * (n + 1))) ** 2).ravel()
    return fj.FunctionOperator(product, values.size, dtype, psd=True), np.sort(values)[::-1]


def triangular_walk(m):
    """Random walk on the sites of a triangle of the square lattice, D^(-1/2) A D^(-1/2), and the degrees."""
    place = {site: at for at, site in enumerate((i, j) for i in range(m) for j in range(m - i))}
    links = [(place[i, j], place[to]) for i, j in place for to in ((i + 1, j), (i, j + 1)) if to in place]
    rows, columns = np.array(links).T
    A = ss.coo_array((np.ones(len(links)), (rows, columns)), (len(place), len(place)))
    A = A + A.T
    degrees = np.asarray(A.sum(axis=1)).ravel()
    parity = np.array([(-1) ** (i + j) for i, j in place])
    return ss.csr_array(ss.diags_array(degrees**-0.5) @ A @ ss.diags_array(degrees**-0.5)), degrees, parity


def tridiagonal(main, off):
    return ss.diags_array([off, main, off], offsets=[-1, 0, 1])


def sakurai(n):
    """Second difference squared: 16 cos⁴(πj/(2(n+1))) (Sakurai, Tadano, Inadomi, Nagashima, 2006)."""
    second = tridiagonal(np.full(n, 2.0), -np.ones(n - 1))
    return ss.csr_array(second @ second), 16 * np.cos(np.pi * np.arange(1, n + 1) / (2 * (n + 1))) ** 4


def mikota(n):
    """M^(-1/2) K M^(-1/2) of a chain of masses 1/j: the squares 1, 4, ..., n² (Mikota, 2001)."""
    j = np.arange(1.0, n + 1)
    K = tridiagonal(2 * (n - j) + 1, -(n - j[:-1]))
    return ss.csr_array(ss.diags_array(j**0.5) @ K @ ss.diags_array(j**0.5)), j[::-1] ** 2


def elastic_rod(n):
    """L⁻¹ K L⁻ᵀ, L Lᵀ the mass matrix of linear elements, one end fixed: 6 n² (1 − cos θ)/(2 + cos θ), θ = (j − ½)π/n."""
    K, M = (
        tridiagonal(np.full(n, d), np.full(n - 1, o)).toarray() for d, o in ((2.0 * n, -1.0 * n), (4 / 6 / n, 1 / 6 / n))
    )
    K[-1, -1], M[-1, -1] = K[-1, -1] / 2, M[-1, -1] / 2
    half = scipy.linalg.solve_triangular(np.linalg.cholesky(M), K, lower=True)
    A = scipy.linalg.solve_triangular(np.linalg.cholesky(M), half.T, lower=True)
    cos = np.cos((np.arange(n, 0, -1) - 0.5) * np.pi / n)
    return (A + A.T) / 2, 6 * n**2 * (1 - cos) / (2 + cos)


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
