"""Lanczos factorization with full reorthogonalization: grow a basis, read off Ritz pairs, compress, inject.

    M Vᵀ = Vᵀ T + Qᵀ C        V: rows are an orthonormal basis, T = V M Vᵀ, Q: the next block, C: its coupling to V

The factorization is kept in this general (Krylov–Schur) form, with T full instead of tridiagonal, so that thick restarts,
breakdown and blocks are one case. Every new block is orthogonalized against the whole basis twice; where the remainder
vanishes, a random orthogonal direction takes its place with coupling zero. Rank-deficient matrices make this the normal
case, and it is what finds repeated eigenvalues.

Reference: Wu and Simon, SIAM J. Matrix Anal. Appl. 22(2), 2000 (thick restart); Stewart, ibid. 23(3), 2001 (Krylov–Schur);
Giraud et al., Numer. Math. 101, 2005 (twice is enough).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax.linalg import eps

Array = jax.Array

# A remainder below this many units of rounding of ‖M‖ is noise, not a direction.
BREAKDOWN = 64
# Columns of the basis rotated at once in a restart, so that it happens in place.
PANEL = 4096
# Row and column numbers are int32 also where x64 is enabled.
_ZERO = np.int32(0)


class Basis(NamedTuple):
    """State of a factorization with at most m basis vectors of length n in blocks of b."""

    vectors: Array  # (m + b, n): rows < size are V, the next b rows are Q, the others zero
    images: Array  # (m, n): rows < size are the products M V as they came out, for true residuals
    T: Array  # (m, m)
    C: Array  # (b, m)
    size: Array  # ()
    norm: Array  # () estimate of ‖M‖ from below, the scale for breakdown: largest product or Ritz value so far
    closed: Array  # () bool: a breakdown happened since the last compression
    key: Array


def start(block: Array, m: int, key: Array) -> Basis:
    """A factorization of size 0 whose first block spans the rows of `block` `(b, n)`."""
    b, n = block.shape
    zero = jnp.zeros((), block.dtype)
    empty = Basis(
        jnp.zeros((m + b, n), block.dtype),
        jnp.zeros((m, n), block.dtype),
        jnp.zeros((m, m), block.dtype),
        jnp.zeros((b, m), block.dtype),
        jnp.zeros((), jnp.int32),
        zero,
        jnp.zeros((), bool),
        key,
    )
    Q, _, _, key = _orthonormalize(block, empty.vectors, jnp.linalg.norm(block, axis=1), zero, key)
    return empty._replace(vectors=jax.lax.dynamic_update_slice(empty.vectors, Q, (0, 0)), key=key)


def expand(apply: Any, basis: Basis) -> Basis:
    """One block step: multiply Q, orthogonalize, append. Needs size + b <= m."""
    b, m = basis.C.shape
    V, j = basis.vectors, basis.size
    Q = jax.lax.dynamic_slice_in_dim(V, j, b)
    W = apply(Q.T).T
    images = jax.lax.dynamic_update_slice_in_dim(basis.images, W, j, axis=0)
    H = W @ V.T
    W = W - H @ V
    again = W @ V.T
    once = jnp.linalg.norm(W, axis=1)
    W, H = W - again @ V, H + again
    norm = jnp.maximum(basis.norm, jnp.max(jnp.linalg.norm(H, axis=1)))
    Q, R, broke, key = _orthonormalize(W, V, once, norm, basis.key)
    T = jax.lax.dynamic_update_slice(basis.T, H[:, :m].T, (_ZERO, j))
    T = jax.lax.dynamic_update_slice(T, H[:, :m], (j, _ZERO))
    C = jax.lax.dynamic_update_slice(jnp.zeros_like(basis.C), R.T, (_ZERO, j))
    V = jax.lax.dynamic_update_slice_in_dim(V, Q, j + b, axis=0)
    return Basis(V, images, T, C, j + b, norm, basis.closed | broke, key)


def _orthonormalize(W: Array, V: Array, once: Array, norm: Array, key: Array) -> tuple[Array, Array, Array, Array]:
    """Rows of W -> orthonormal Q with `W = R Q`, orthogonal to V; vanishing rows become random directions (R zero).

    `once` `(b,)`: norms of the rows before they were orthogonalized to V for the second time.
    """
    b, n = W.shape
    threshold = BREAKDOWN * eps(W.dtype) * norm

    def remove(w: Array, Q: Array) -> Array:
        return w - (V @ w) @ V - (Q @ w) @ Q

    def random_direction(Q: Array, key: Array) -> Array:
        w = jax.random.normal(key, (n,), W.dtype)
        for _ in range(3):
            w = remove(w / jnp.linalg.norm(w), Q)
        return w / jnp.linalg.norm(w)

    def row(i: Array, carry: Any) -> Any:
        Q, R, broke, key = carry
        key, fresh = jax.random.split(key)
        w = W[i]
        first = Q @ w
        w = w - first @ Q
        second = Q @ w
        w = w - second @ Q
        length = jnp.linalg.norm(w)
        vanished = ~(length > threshold)

        def keep(_: None) -> Array:
            q = w / length
            # Much cancellation leaves the normalized remainder only roughly orthogonal: remove once more.
            q = jax.lax.cond(length < 0.1 * once[i], lambda q: remove(q, Q), lambda q: q, q)
            return q / jnp.linalg.norm(q)

        q = jax.lax.cond(vanished, lambda _: random_direction(Q, fresh), keep, None)
        coefficients = (first + second).at[i].set(jnp.where(vanished, 0, length))
        return Q.at[i].set(q), R.at[i].set(coefficients), broke | vanished, key

    zeros = jnp.zeros((b, n), W.dtype), jnp.zeros((b, b), W.dtype), jnp.zeros((), bool)
    return jax.lax.fori_loop(0, b, row, (*zeros, key))


def orthonormal_rows(W: Array, key: Array) -> Array:
    """Gram–Schmidt on the rows of W `(k, n)`; rows that vanish become random directions orthogonal to the others."""
    lengths = jnp.linalg.norm(W, axis=1)
    return _orthonormalize(W, jnp.zeros_like(W[:1]), lengths, jnp.max(lengths), key)[0]


def ritz(basis: Basis, skip: Any = 0) -> tuple[Array, Array, Array]:
    """Ritz values `(m,)` descending, coefficient columns S `(m, m)`, residual norms `(m,)` of rows skip..size of the basis.

    Entries past the number of rows used are meaningless; they come last.
    """
    m = basis.T.shape[0]
    index = jnp.arange(m, dtype=jnp.int32)
    used = (index >= skip) & (index < basis.size)
    T = jnp.where(used[:, None] & used[None, :], (basis.T + basis.T.T) / 2, 0)
    low = -(1 + 2 * m * jnp.max(jnp.abs(T)))
    values, S = jnp.linalg.eigh(T + jnp.diag(jnp.where(used, 0, low)))
    S = jnp.where(used[:, None], S[:, ::-1], 0)
    return values[::-1], S, jnp.linalg.norm(basis.C @ S, axis=0)


def _rotate(rows: Array, S: Array, finish: Any = None) -> Array:
    """`Sᵀ rows[:m]` in place, by panels of columns; `finish(new panel, old panel)` may then edit each panel."""
    m, n = S.shape[0], rows.shape[1]

    def panel(rows: Array, first: Any, width: int) -> Array:
        first = jnp.asarray(first, jnp.int32)
        old = jax.lax.dynamic_slice(rows, (_ZERO, first), (rows.shape[0], width))
        new = jnp.pad(S.T @ old[:m], ((0, rows.shape[0] - m), (0, 0)))
        return jax.lax.dynamic_update_slice(rows, new if finish is None else finish(new, old), (_ZERO, first))

    full = n // PANEL
    if full:
        rows = jax.lax.fori_loop(0, full, lambda i, V: panel(V, i * PANEL, PANEL), rows)
    return panel(rows, full * PANEL, n % PANEL) if n % PANEL else rows


def compress(basis: Basis, values: Array, S: Array, keep: Array) -> Basis:
    """Thick restart: the basis becomes the first `keep` Ritz vectors; the next block and its coupling stay."""
    b, m = basis.C.shape
    keep = keep.astype(jnp.int32)
    kept = jnp.arange(m, dtype=jnp.int32) < keep
    S = jnp.where(kept, S, 0)

    def move_block(new: Array, old: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(new, jax.lax.dynamic_slice_in_dim(old, basis.size, b), keep, axis=0)

    return basis._replace(
        vectors=_rotate(basis.vectors, S, move_block),
        images=_rotate(basis.images, S),
        T=jnp.diag(jnp.where(kept, values, 0)),
        C=basis.C @ S,
        size=keep,
        closed=jnp.zeros((), bool),
    )


def inject(basis: Basis) -> Basis:
    """Replace the next block by random directions orthogonal to the basis; couplings are dropped."""
    b = basis.C.shape[0]
    zero = jnp.zeros((b, basis.vectors.shape[1]), basis.vectors.dtype)
    V = jax.lax.dynamic_update_slice_in_dim(basis.vectors, zero, basis.size, axis=0)
    Q, _, _, key = _orthonormalize(zero, V, zero[:, 0], basis.norm, basis.key)
    V = jax.lax.dynamic_update_slice_in_dim(V, Q, basis.size, axis=0)
    return basis._replace(vectors=V, C=jnp.zeros_like(basis.C), key=key)
