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

from fisher_jax.linalg import PANEL, eps, inner

Array = jax.Array

# A remainder below this many units of rounding of ‖M‖ is taken for zero. Above it, even a direction made of rounding noise
# is a valid basis vector, since it is orthogonalized again; a larger threshold would drop couplings that the residuals show.
BREAKDOWN = 8
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
    fresh: Array  # (m + b,) bool: rows that breakdown has replaced by random directions since the last compression
    skew: Array  # () largest |q·M v − v·M q| met, zero but for rounding if M is symmetric
    loose: Array  # () bool: an injection has left couplings out, the skew is no longer measured
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
        jnp.zeros(m + b, bool),
        zero,
        jnp.zeros((), bool),
        key,
    )
    Q, _, _, key = _orthonormalize(block, empty.vectors, jnp.linalg.norm(block, axis=1), zero, key)
    return empty._replace(vectors=jax.lax.dynamic_update_slice(empty.vectors, Q, (0, 0)), key=key)


def next_block(basis: Basis) -> Array:
    """The block `(n, b)` that is to be multiplied by M."""
    return jax.lax.dynamic_slice_in_dim(basis.vectors, basis.size, basis.C.shape[0]).T


def expand(apply: Any, basis: Basis) -> Basis:
    """One block step: multiply Q, orthogonalize, append. Needs size + b <= m."""
    return append(basis, apply(next_block(basis)).T)


def append(basis: Basis, W: Array) -> Basis:
    """Append the product `W = (M Q)ᵀ` `(b, n)` of the next block, and its remainder as the block after it."""
    b, m = basis.C.shape
    V, j = basis.vectors, basis.size
    images = jax.lax.dynamic_update_slice_in_dim(basis.images, W, j, axis=0)
    before = jnp.linalg.norm(W, axis=1)
    # Two passes, the first against the last two blocks alone: but for restarts, only there M Q has any component.
    last = jnp.maximum(j - b, 0)
    near = jax.lax.dynamic_slice_in_dim(V, last, min(2 * b, m + b))
    local = inner(W, near)
    W = W - local @ near
    H = inner(W, V)
    W = W - H @ V
    H = jax.lax.dynamic_update_slice(H, jax.lax.dynamic_slice(H, (_ZERO, last), local.shape) + local, (_ZERO, last))
    norm = jnp.maximum(basis.norm, jnp.max(jnp.linalg.norm(H, axis=1)))
    Q, R, vanished, key = _orthonormalize(W, V, before, norm, basis.key)
    T = jax.lax.dynamic_update_slice(basis.T, H[:, :m].T, (_ZERO, j))
    T = jax.lax.dynamic_update_slice(T, H[:, :m], (j, _ZERO))
    C = jax.lax.dynamic_update_slice(jnp.zeros_like(basis.C), R.T, (_ZERO, j))
    V = jax.lax.dynamic_update_slice_in_dim(V, Q, j + b, axis=0)
    fresh = jax.lax.dynamic_update_slice_in_dim(basis.fresh, vanished, j + b, axis=0)
    # The old coupling is Q M Vᵀ, known before from M Vᵀ, now from M Qᵀ.
    earlier = (jnp.arange(m, dtype=jnp.int32)[None] < j) & ~basis.loose
    skew = jnp.maximum(basis.skew, jnp.max(jnp.where(earlier, jnp.abs(H[:, :m] - basis.C), 0)))
    return Basis(V, images, T, C, j + b, norm, fresh, skew, basis.loose, key)


def _orthonormalize(W: Array, V: Array, before: Array, norm: Array, key: Array) -> tuple[Array, Array, Array, Array]:
    """Rows of W -> orthonormal Q with `W = R Q`, orthogonal to V; vanished rows, which are told, become random (R zero).

    `before` `(b,)`: norms of the rows before they were orthogonalized to V.
    """
    b, n = W.shape
    threshold = BREAKDOWN * eps(W.dtype) * norm

    def remove(w: Array, Q: Array) -> Array:
        return w - inner(w[None], V)[0] @ V - inner(w[None], Q)[0] @ Q

    def random_direction(Q: Array, key: Array) -> Array:
        w = jax.random.normal(key, (n,), W.dtype)
        w = jax.lax.fori_loop(0, 3, lambda _, w: remove(w / jnp.linalg.norm(w), Q), w)
        return w / jnp.linalg.norm(w)

    def row(i: Any, carry: Any) -> Any:
        Q, R, broke, key = carry
        key, fresh = jax.random.split(key)
        w = W[i]
        first = inner(w[None], Q)[0]
        w = w - first @ Q
        second = inner(w[None], Q)[0]
        w = w - second @ Q
        length = jnp.linalg.norm(w)
        vanished = ~(length > threshold)

        def keep(_: None) -> Array:
            q = w / length
            # Two passes leave the square of a dot product's rounding error over what remains: where little remains, remove
            # once more.
            q = jax.lax.cond(length < 0.1 * before[i], lambda q: remove(q, Q), lambda q: q, q)
            return q / jnp.linalg.norm(q)

        q = jax.lax.cond(vanished, lambda _: random_direction(Q, fresh), keep, None)
        coefficients = (first + second).at[i].set(jnp.where(vanished, 0, length))
        return Q.at[i].set(q), R.at[i].set(coefficients), broke.at[i].set(vanished), key

    zeros = jnp.zeros((b, n), W.dtype), jnp.zeros((b, b), W.dtype), jnp.zeros(b, bool)
    return jax.lax.fori_loop(0, b, row, (*zeros, key))


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


class Change(NamedTuple):
    """What a restart does to the long vectors; the small arrays have changed already."""

    rotate: Array  # () bool: rows < keep become Sᵀ V, the next block moves from row `size` to row `keep`
    S: Array  # (m, m), columns from `keep` on zero
    size: Array  # ()
    keep: Array  # ()
    inject: Array  # () bool: the next block becomes random directions orthogonal to the basis


def unchanged(basis: Basis) -> Change:
    no = jnp.zeros((), bool)
    return Change(no, jnp.zeros_like(basis.T), basis.size, basis.size, no)


def compress(basis: Basis, values: Array, S: Array, keep: Array, inject: bool = False) -> tuple[Basis, Change]:
    """Thick restart: the basis becomes the first `keep` Ritz vectors; the next block stays, or is replaced.

    Only small arrays are touched here; `move` then does the same to the vectors.
    """
    keep = keep.astype(jnp.int32)
    kept = jnp.arange(basis.T.shape[0], dtype=jnp.int32) < keep
    S = jnp.where(kept, S, 0)
    small = basis._replace(
        T=jnp.diag(jnp.where(kept, values, 0)),
        C=jnp.zeros_like(basis.C) if inject else basis.C @ S,
        size=keep,
        fresh=jnp.zeros_like(basis.fresh),
        loose=basis.loose | inject,
    )
    return small, Change(jnp.ones((), bool), S, basis.size, keep, jnp.asarray(inject))


def move(basis: Basis, change: Change) -> Basis:
    """Carry out a change on the vectors, in place: loops of no or one pass instead of branches, which would copy them."""
    b = basis.C.shape[0]

    def move_block(new: Array, old: Array) -> Array:
        block = jnp.where(change.inject, 0, jax.lax.dynamic_slice_in_dim(old, change.size, b))
        return jax.lax.dynamic_update_slice_in_dim(new, block, change.keep, axis=0)

    vectors = _rotate(basis.vectors, change, move_block)
    images = _rotate(basis.images, change, lambda new, old: new)
    key, fresh = jax.random.split(basis.key)

    block = jax.lax.dynamic_slice_in_dim(vectors, change.keep, b)

    def random_block(vectors: Array) -> Array:
        return _orthonormalize(jnp.zeros_like(block), vectors, jnp.zeros_like(block[:, 0]), basis.norm, fresh)[0]

    block = jax.lax.cond(change.inject, random_block, lambda vectors: block, vectors)
    vectors = jax.lax.dynamic_update_slice_in_dim(vectors, block, change.keep, axis=0)
    return basis._replace(vectors=vectors, images=images, key=key)


def _rotate(rows: Array, change: Change, finish: Any) -> Array:
    """`Sᵀ rows[:m]`, the other rows zero, in place by panels of columns; `finish(new panel, old panel)` edits each panel."""
    m, n = change.S.shape[0], rows.shape[1]

    def panel(rows: Array, first: Any, width: int) -> Array:
        first = jnp.asarray(first, jnp.int32)
        old = jax.lax.dynamic_slice(rows, (_ZERO, first), (rows.shape[0], width))
        new = jnp.pad(change.S.T @ old[:m], ((0, rows.shape[0] - m), (0, 0)))
        return jax.lax.dynamic_update_slice(rows, finish(new, old), (_ZERO, first))

    full, passes = n // PANEL, change.rotate.astype(jnp.int32)
    if full:
        rows = jax.lax.fori_loop(0, full * passes, lambda i, V: panel(V, i * PANEL, PANEL), rows)
    if n % PANEL:
        rows = jax.lax.fori_loop(0, passes, lambda i, V: panel(V, full * PANEL, n % PANEL), rows)
    return rows
