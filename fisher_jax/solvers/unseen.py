"""How large can an eigenvalue be that a Lanczos run from a random start has not seen?

Let u be a unit eigenvector with eigenvalue λ above all Ritz values, V the basis of a run, T = V M Vᵀ, Q the next block and C
its coupling. Multiplying `M Vᵀ = Vᵀ T + Qᵀ C` by u gives `(λ − T) V u = Cᵀ Q u`, so that the start block S has

    ‖S u‖ <= ‖E₀ᵀ (λ − T)⁻¹ Cᵀ‖,    E₀ᵀ: the first block of rows; for one start vector the right side is Π βᵢ / Π (λ − θᵢ)

which falls with every step. A random start has ‖S u‖ >= t / √n except with probability 0.8 t. Together they exclude every λ
that makes the right side small. Nothing is assumed about the spectrum, its sign or its width.

Reference: van Dorsselaer, Hochstenbach and van der Vorst, SIAM J. Matrix Anal. Appl. 22(3), 2000.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import linalg
from fisher_jax.krylov import BREAKDOWN, Basis

Array = jax.Array

# Probability with which `complete_above` may be wrong.
FAILURE = 1e-3
# Candidates for λ lie above the largest Ritz value by ‖M‖ · 2^(1 − i/8), steps of 9 % down to what float32 can tell apart.
CANDIDATES = 8 * 22


def candidates(seen: Array, norm: Array, goal: Array) -> Array:
    """Numbers above `seen`, `(CANDIDATES + 1,)`; `goal` is among them if it is one."""
    above = seen + norm * 2.0 ** (1 - jnp.arange(CANDIDATES, dtype=seen.dtype) / 8)
    return jnp.append(above, jnp.where(goal > seen, goal, above[0]))


def excluded(odds: Array, starts: Array) -> Array:
    """Is an eigenvalue that `starts` random starts have missed, with the sum `odds` of their log odds, out of the question?

    Each start's odds are what a uniform random number at worst would be, and minus the sum of k of their logarithms has a
    Gamma(k) distribution, whose tail counts; not their product, which is small for many uniform numbers. It is asked after
    each start: the k-th time is allowed FAILURE / (k (k + 1)), in all FAILURE.
    """
    k = starts.astype(odds.dtype)
    tail = jax.scipy.special.gammaincc(k, jnp.clip(-odds, 0, 1e4))
    return (tail * k * (k + 1) <= FAILURE) & (starts > 0)


def log_odds(basis: Basis, first: Array, n: int, seen: Array, numbers: Array, noise: Array) -> tuple[Array, Array]:
    """Log odds `(g,)` that the run in rows first.. of the basis misses an eigenvalue of each of `numbers`; starts made.

    Where a Krylov space has closed (rows marked fresh) the run goes on from another random start: log odds add up.

    Args:
        n: length of the vectors. seen: largest Ritz value of the run, below all `numbers`.
        noise: relative rounding error of a product; its component along u is 1/√n of it.
    """
    b, tiny = basis.C.shape[0], jnp.finfo(numbers.dtype).tiny
    gap = jnp.maximum(numbers - seen, tiny)
    rounding = jnp.log(noise * basis.norm / math.sqrt(n)) - jnp.log(gap)
    dropped = BREAKDOWN * linalg.eps(numbers.dtype) * basis.norm
    eye = jnp.broadcast_to(jnp.eye(b, dtype=numbers.dtype), (numbers.size, b, b))

    def solve(D: Array, B: Array) -> Array:
        return B / D if b == 1 else jnp.linalg.solve(D, B)

    def length(X: Array) -> Array:
        return jnp.linalg.norm(X, axis=(1, 2))

    def one_block(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        # Elimination from the top: D is a Schur complement of λ − T, and X · exp(scale) the product of all D⁻¹ Bᵀ so far, in
        # the end the corner of the inverse times Cᵀ. Products only: no digits cancel.
        odds, eliminated, X, scale, starts = carry
        row = first + i * b
        last = row + b >= basis.size
        diagonal = jax.lax.dynamic_slice(basis.T, (row, row), (b, b))
        below = jax.lax.dynamic_slice(basis.T, (row + b, row), (b, b))
        B = jnp.where(last, jax.lax.dynamic_slice_in_dim(basis.C, row, b, 1), below)
        closing = jnp.any(jax.lax.dynamic_slice_in_dim(basis.fresh, row + b, b))
        D = numbers[:, None, None] * eye - (diagonal + diagonal.T)[None] / 2 - eliminated
        W = jnp.swapaxes(solve(D, jnp.swapaxes(X, 1, 2)), 1, 2)
        B = jnp.broadcast_to(B, eye.shape)
        Bt = jnp.swapaxes(B, 1, 2)
        X = W @ Bt
        size = length(X)
        reach = scale + jnp.log(size + jnp.where(closing, dropped, 0) * length(W))
        missed = math.log(0.8 * math.sqrt(n)) + jnp.logaddexp(reach, rounding)
        missed = jnp.where(jnp.isnan(missed), 0, jnp.minimum(missed, 0))
        size = jnp.maximum(size, tiny)
        ends = last | closing
        return (
            odds + jnp.where(ends, missed, 0),
            jnp.where(ends, 0, B @ solve(D, Bt)),
            jnp.where(ends, eye, X / size[:, None, None]),
            jnp.where(ends, 0, scale + jnp.log(size)),
            starts + ends.astype(jnp.int32),
        )

    zero = jnp.zeros(numbers.shape, numbers.dtype)
    blocks = (basis.size - first) // b
    carry = zero, jnp.zeros_like(eye), eye, zero, jnp.zeros((), jnp.int32)
    odds, _, _, _, starts = jax.lax.fori_loop(np.int32(0), blocks, one_block, carry)
    return odds, starts
