"""How large can an eigenvalue be that a Lanczos run from a random start has not seen?

Let u be a unit eigenvector with eigenvalue λ above all Ritz values, V the basis of a run, T = V M Vᵀ, Q the next block and C
its coupling. Multiplying `M Vᵀ = Vᵀ T + Qᵀ C` by u gives `(λ − T) V u = Cᵀ Q u`, so that the start block S has

    ‖S u‖ <= ‖E₀ᵀ (λ − T)⁻¹ Cᵀ‖,    E₀ᵀ: the first block of rows; for one start vector the right side is Π βᵢ / Π (λ − θᵢ)

which falls with every step. A random start of b orthonormal rows has ‖S u‖ >= r except with probability `volume(b) r^b`,
the density of S u at zero times the volume of a ball; 0.8 √n r for one vector. Together they exclude every λ that makes the
right side small. Nothing is assumed about the spectrum, its sign or its width.

Reference: van Dorsselaer, Hochstenbach and van der Vorst, SIAM J. Matrix Anal. Appl. 22(3), 2000; for blocks derived and
checked.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import krylov, linalg
from fisher_jax.krylov import BREAKDOWN, Basis
from fisher_jax.operators import apply

Array = jax.Array

# Probability with which `complete_above` may be wrong.
FAILURE = 1e-3
# Vectors multiplied at once in `search`; its steps, at least, and the most it looks at.
BLOCK, FIRST_STEPS, MOST_STEPS = 2, 6, 18
# A search is good enough when its bound exceeds the largest value it has met by no more than this fraction.
MARGIN = 0.5
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


def _log_volume(rows: int, n: int) -> float:
    """Logarithm of what r^rows is multiplied by: S u has density at most Γ(n/2) / (π^(b/2) Γ((n − b)/2))."""
    return math.lgamma(n / 2) - math.lgamma(max(n - rows, 1) / 2) - math.lgamma(rows / 2 + 1)


def log_odds(basis: Basis, first: Array, n: int, seen: Array, numbers: Array, noise: Array) -> tuple[Array, Array]:
    """Log odds `(g,)` that the run in rows first.. of the basis misses an eigenvalue of each of `numbers`; starts made.

    Where a Krylov space has closed (rows marked fresh) the run goes on from another random start: log odds add up. In a
    block that closes in part only the fresh rows are random.

    Args:
        n: length of the vectors. seen: largest Ritz value of the run, below all `numbers`.
        noise: relative rounding error of a product; its component along u is 1/√n of it.
    """
    b, tiny = basis.C.shape[0], jnp.finfo(numbers.dtype).tiny
    gap = jnp.maximum(numbers - seen, tiny)
    rounding = jnp.log(noise * basis.norm * math.sqrt(b / n)) - jnp.log(gap)
    dropped = BREAKDOWN * linalg.eps(numbers.dtype) * basis.norm
    volume = jnp.asarray([_log_volume(rows, n) for rows in range(b + 1)], numbers.dtype)
    eye = jnp.broadcast_to(jnp.eye(b, dtype=numbers.dtype), (numbers.size, b, b))

    def solve(D: Array, B: Array) -> Array:
        return B / D if b == 1 else jnp.linalg.solve(D, B)

    def length(X: Array) -> Array:
        return jnp.linalg.norm(X, axis=(1, 2))

    def one_block(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        # Elimination from the top: D is a Schur complement of λ − T, and X · exp(scale) the product of all D⁻¹ Bᵀ so far, in
        # the end the corner of the inverse times Cᵀ. Products only: no digits cancel.
        odds, eliminated, X, scale, starts, free = carry
        row = first + i * b
        last = row + b >= basis.size
        diagonal = jax.lax.dynamic_slice(basis.T, (row, row), (b, b))
        below = jax.lax.dynamic_slice(basis.T, (row + b, row), (b, b))
        B = jnp.where(last, jax.lax.dynamic_slice_in_dim(basis.C, row, b, 1), below)
        fresh = jax.lax.dynamic_slice_in_dim(basis.fresh, row + b, b)
        closing = jnp.any(fresh)
        D = numbers[:, None, None] * eye - (diagonal + diagonal.T)[None] / 2 - eliminated
        W = jnp.swapaxes(solve(D, jnp.swapaxes(X, 1, 2)), 1, 2)
        B = jnp.broadcast_to(B, eye.shape)
        Bt = jnp.swapaxes(B, 1, 2)
        X = W @ Bt
        size = length(X)
        reach = scale + jnp.log(size + jnp.where(closing, dropped, 0) * length(W))
        missed = volume[free] + free.astype(reach.dtype) * jnp.logaddexp(reach, rounding)
        missed = jnp.where(jnp.isnan(missed), 0, jnp.minimum(missed, 0))
        size = jnp.maximum(size, tiny)
        ends = last | closing
        return (
            odds + jnp.where(ends, missed, 0),
            jnp.where(ends, 0, B @ solve(D, Bt)),
            jnp.where(ends, eye, X / size[:, None, None]),
            jnp.where(ends, 0, scale + jnp.log(size)),
            starts + ends.astype(jnp.int32),
            jnp.where(closing, jnp.sum(fresh, dtype=jnp.int32), free),
        )

    zero = jnp.zeros(numbers.shape, numbers.dtype)
    blocks = (basis.size - first) // b
    carry = zero, jnp.zeros_like(eye), eye, zero, jnp.zeros((), jnp.int32), jnp.full((), b, jnp.int32)
    odds, _, _, _, starts, _ = jax.lax.fori_loop(np.int32(0), blocks, one_block, carry)
    return odds, starts


class Found(NamedTuple):
    """What a search says of the eigenvalues of an operator orthogonal to the vectors it was given."""

    seen: Array  # () largest value met
    bound: Array  # () on all of them, with failure probability FAILURE
    row: Array  # (1, n) Ritz vector of `seen`
    steps: int  # taken, of BLOCK products each


def search(
    operator: Any, rows: Array, values: Array, norm: Array, noise: Array, goal: Array, key: Array, steps: int, proof: bool
) -> Found:
    """Block Lanczos from a random start: bound the eigenvalues of an operator orthogonal to some vectors.

    Args:
        operator: anything with products; not traced.
        rows: orthonormal `(k, n)`, close to eigenvectors with eigenvalues `values` `(k,)`; k may be zero.
        norm: of the operator. noise: relative rounding error of its products.
        goal: a bound below this is good enough; without `proof` also one that is tight.
        steps: of `BLOCK` products each, the most of them, up to `MOST_STEPS`.
    """
    # Few shapes, so that few programs are compiled.
    room = min(-(-steps // FIRST_STEPS) * FIRST_STEPS, MOST_STEPS, (rows.shape[1] - len(rows)) // BLOCK - 1)
    run, block = _begin(rows, values, norm, room, key)
    seen = bound = jnp.full((), jnp.nan, rows.dtype)
    taken = 0
    while taken < min(steps, room):
        run, block, seen, bound = _step(run, jax.block_until_ready(apply(operator, block.T)), len(rows), goal, noise)
        taken += 1
        tight = float(bound) < float(norm) and float(bound - seen) <= MARGIN * abs(float(seen))
        if float(bound + noise * norm) <= float(goal) or (tight and not proof):
            break
    # Of a zero operator there is nothing that could be large.
    return Found(seen, jnp.where(run.norm > 0, bound, seen), _largest(run, len(rows)), taken)


@partial(linalg.precise_jit, static_argnums=3)
def _begin(rows: Array, values: Array, norm: Array, steps: int, key: Array) -> tuple[Basis, Array]:
    """A basis of the given rows and, as the next block, random directions orthogonal to them; that block."""
    (k, n), dtype = rows.shape, rows.dtype
    m = k + BLOCK * steps
    key, fill = jax.random.split(key)
    block = linalg.orthonormal(jnp.zeros((BLOCK, n), dtype), rows, jnp.ones((), dtype), fill)
    vectors = jnp.zeros((m + BLOCK, n), dtype).at[: k + BLOCK].set(jnp.concatenate([rows, block]))
    T, C = jnp.zeros((m, m), dtype).at[:k, :k].set(jnp.diag(values)), jnp.zeros((BLOCK, m), dtype)
    zero, loose = jnp.zeros((), dtype), jnp.ones((), bool)
    size = jnp.asarray(k, jnp.int32)
    basis = Basis(vectors, jnp.zeros((m, n), dtype), T, C, size, norm, jnp.zeros(m + BLOCK, bool), zero, loose, key)
    return basis, block


@partial(linalg.precise_jit, static_argnums=2, donate_argnums=0)
def _step(run: Basis, image: Array, first: int, goal: Array, noise: Array) -> tuple[Basis, Array, Array, Array]:
    """(basis with the product of its next block appended, the block after, largest value met, bound)."""
    run = krylov.expand(lambda _: image, run)
    seen = krylov.ritz(run, first)[0][0]
    numbers = candidates(seen, run.norm, goal - noise * run.norm)
    odds, starts = log_odds(run, jnp.asarray(first, jnp.int32), run.vectors.shape[1], seen, numbers, noise)
    bound = jnp.min(jnp.where(excluded(odds, starts), numbers, jnp.inf))
    return run, jax.lax.dynamic_slice_in_dim(run.vectors, run.size, BLOCK), seen, bound


@partial(linalg.precise_jit, static_argnums=1)
def _largest(run: Basis, first: int) -> Array:
    return krylov.ritz(run, first)[1][:, :1].T @ run.vectors[: run.T.shape[0]]
