"""Randomized block Krylov: a wide random block is multiplied a few times, and everything that comes out is kept.

    span { X, M X, ..., M^(d−1) X },    X: k + oversampling random directions

1. Multiply the newest block, remove the basis from the product, make it orthonormal; Rayleigh–Ritz in the basis. Where the
   basis is full, it shrinks to its best Ritz vectors and goes on.
2. When the wanted pairs have converged, a few steps from random directions orthogonal to them bound all that is not in the
   list (`unseen.py`). A value above the wanted ones is a missed eigenvalue: back to 1 with its vector.
3. Finish as Lanczos does: true residuals from the products of the basis, which are kept, and error bounds.

Reference: Musco and Musco, NeurIPS 2015, algorithm 2 (block Krylov); Halko, Martinsson and Tropp, SIAM Review 53(2), 2011,
section 4 (oversampling, a-posteriori estimates); Stewart, SIAM J. Matrix Anal. Appl. 23(3), 2001 (Krylov–Schur restart).
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fisher_jax import _checks, krylov, linalg
from fisher_jax.krylov import Basis
from fisher_jax.linalg import inner
from fisher_jax.operators import LinearOperator, ScaledOperator, apply
from fisher_jax.results import EigenResult, provenance
from fisher_jax.solvers import unseen
from fisher_jax.solvers.base import (
    HostLoop,
    Progress,
    Reporter,
    certify,
    check_symmetry,
    features,
    keep_above,
    measured,
    smaller_side,
)
from fisher_jax.solvers.dense import Dense
from fisher_jax.solvers.lanczos import SEARCH_SHARE
from fisher_jax.solvers.lifting import lift_pairs
from fisher_jax.solvers.start import given, start_block

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Randomized:
    """Randomized block Krylov iteration with wide blocks, in the smaller of primal and dual space.

    For hardware that multiplies a block of vectors in little more time than one, and for loose tolerances: all products are
    with blocks of k + oversampling vectors, few after one another. Repeated eigenvalues are found up to the width of the
    block. Counted in products, `fj.Lanczos` needs fewer.

    Args:
        tol: a pair is converged when ‖M v − λ v‖ <= tol·‖M‖. Below the rounding error of the products, that is used.
        oversampling: random directions beyond the k wanted.
        depth: blocks kept, at least 2. Memory: 2 depth (k + oversampling) vectors, half as many again in a restart.
        passes: give up after multiplying so many blocks.
    """

    tol: float = 1e-3
    oversampling: int = 10
    depth: int = 6
    passes: int = 100

    def __post_init__(self) -> None:
        _checks.tolerance("Randomized", self.tol)
        _checks.integer("Randomized", "oversampling", self.oversampling, 0)
        _checks.integer("Randomized", "depth", self.depth, 2)
        _checks.integer("Randomized", "passes", self.passes, 1)

    def solve(
        self,
        operator: LinearOperator,
        k: int,
        *,
        key: Array,
        v0: Any = None,
        above: Any = None,
        progress: Reporter | None = None,
    ) -> EigenResult:
        if _checks.traced((operator, key)):
            raise _checks.fail("Randomized", "the operator is traced", "use method=fj.Lanczos() inside jit")
        b = k + self.oversampling
        m = b * self.depth
        operator = operator.prepared(b, m)
        side = smaller_side(operator)
        if m + b >= side.size:
            # The basis would span the whole space.
            return Dense().solve(operator, k, key=key, above=above)
        lifted = side is not operator
        k_start, k_run, k_search, k_lift = jax.random.split(key, 4)
        first, noise, scale, spent = start_block(side, operator, 1, None, k_start)
        if v0 is not None:
            first, extra = given(side, operator, b, v0)
            spent += extra
        side, tol = ScaledOperator(side, scale), jnp.asarray(self.tol, side.dtype)
        basis, notes, rest, passes = _begin(first, b, m, k_run), [], jnp.asarray(jnp.nan, tol.dtype), 0
        with HostLoop() as interrupt:
            while True:
                basis, passes = _expand(side, basis), passes + 1
                look = _look(basis, k, lifted, tol, noise)
                _check_products(operator, look)
                if progress is not None:
                    done = int(look.converged.sum())
                    progress(Progress(spent + passes * b, done, k, float(look.worst), "iterating"))
                if interrupt.asked:
                    notes.append("interrupted: only what had converged is given")
                    break
                if bool(look.converged.all()):
                    k_search, fresh = jax.random.split(k_search)
                    rows, images = _pairs(basis, look, k)
                    values, _ = measured(rows, images)
                    lowest, slack = values[-1], jnp.maximum(tol, noise) * look.norm
                    coupling = _coupling(rows, images, values)
                    goal = lowest if above is None else scale * jnp.asarray(above, tol.dtype)
                    most = max(unseen.FIRST_STEPS, passes * b // (SEARCH_SHARE * unseen.BLOCK))
                    found = unseen.search(
                        side, rows, values, look.norm, noise, goal - coupling, fresh, most, above is not None
                    )
                    rest = found.bound + _shift(coupling, lowest - found.bound)
                    spent += found.steps * unseen.BLOCK
                    if float(found.seen) <= float(lowest + slack) or passes >= self.passes:
                        break
                    # Only what has converged stays: the couplings of the others would be lost.
                    basis = _restart(basis, look, k, found.row)
                elif passes >= self.passes:
                    break
                elif int(basis.size) + b > m:
                    basis = _restart(basis, look, b * (self.depth // 2), None)
        rows, images = _pairs(basis, look, k)
        values, within = measured(rows, images)
        residuals, reachable, norm = within, noise, look.norm
        # Lifted residuals can be small where those of the dual are not.
        wanted = look.converged | (within <= jnp.maximum(tol, noise) * norm)
        if lifted:
            rows, values, residuals, within, most, extra = lift_pairs(
                operator, scale, rows, images, values, norm, noise, tol, k_lift
            )
            rest, spent = jnp.maximum(rest, most), spent + extra
            # Lifting divides by √λ, and the rounding error of the residuals with it.
            smallest = jnp.min(jnp.where(wanted & (values > 10 * noise * norm), values, norm))
            reachable = noise * jnp.sqrt(norm / smallest)
        if self.tol < float(reachable):
            notes.append(
                f"tol={self.tol:g} is below the rounding error of the residuals, {float(reachable):.1e}, used instead"
            )
        result = certify(
            operator,
            rows,
            values,
            residuals,
            norm,
            noise,
            jnp.maximum(tol, reachable),
            rest,
            spent + passes * b,
            unit=1 / scale,
            within=within,
            wanted=wanted,
            method=f"Randomized(tol={self.tol:g}, oversampling={self.oversampling}, depth={self.depth}) on the "
            + ("dual" if lifted else "operator"),
            info=provenance(
                key,
                operator.dtype,
                size=operator.size,
                iterated=side.size,
                failure_probability=unseen.FAILURE,
                **features(operator),
                products_to_convergence=2 + passes * b,
                **({"note": "; ".join(notes)} if notes else {}),
            ),
        )
        return result if above is None else keep_above(result, above)


class _Look(NamedTuple):
    """Rayleigh–Ritz in the basis."""

    values: Array  # (m,) descending
    S: Array  # (m, m) coefficient columns
    converged: Array  # (k,) bool
    worst: Array  # () largest residual estimate of the wanted pairs, over ‖M‖
    norm: Array  # ()
    skew: Array  # () over ‖M‖
    most: Array  # () skew that rounding can explain


# --- the basis --------------------------------------------------------------------------------------------------------


@partial(linalg.precise_jit, static_argnums=(1, 2))
def _begin(first: Array, b: int, m: int, key: Array) -> Basis:
    """An empty basis whose next block is `first` `(j, n)` and b − j random directions."""
    (j, n), dtype = first.shape, first.dtype
    key, k_rows, k_fill = jax.random.split(key, 3)
    rows = jnp.concatenate([first, jax.random.normal(k_rows, (b - j, n), dtype) / jnp.sqrt(jnp.asarray(n, dtype))])
    zero, empty = jnp.zeros((), dtype), jnp.zeros((m + b, n), dtype)
    vectors = jax.lax.dynamic_update_slice(empty, linalg.orthonormal(rows, empty[:1], jnp.ones((), dtype), k_fill), (0, 0))
    none, false = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    small = jnp.zeros((m, m), dtype), jnp.zeros((b, m), dtype)
    return Basis(vectors, empty[:m], *small, none, zero, jnp.zeros(m + b, bool), zero, false, key)


@partial(linalg.precise_jit, donate_argnums=1)
def _expand(side: Any, basis: Basis) -> Basis:
    """`krylov.expand` for wide blocks, made orthonormal by matrix products instead of row by row."""
    b, m = basis.C.shape
    V, j, zero = basis.vectors, basis.size, jnp.zeros((), jnp.int32)
    W = apply(side, jax.lax.dynamic_slice_in_dim(V, j, b).T).T
    images = jax.lax.dynamic_update_slice_in_dim(basis.images, W, j, axis=0)
    H = inner(W, V)
    W = W - H @ V
    again = inner(W, V)
    W, H = W - again @ V, (H + again)[:, :m]
    norm = jnp.maximum(basis.norm, jnp.max(jnp.linalg.norm(H, axis=1)))
    key, fill = jax.random.split(basis.key)
    Q = linalg.orthonormal(W, V, norm, fill)
    T = jax.lax.dynamic_update_slice(basis.T, H.T, (zero, j))
    T = jax.lax.dynamic_update_slice(T, H, (j, zero))
    C = jax.lax.dynamic_update_slice(jnp.zeros_like(basis.C), inner(Q, W), (zero, j))
    V = jax.lax.dynamic_update_slice_in_dim(V, Q, j + b, axis=0)
    # The old coupling is Q M Vᵀ, known before from M Vᵀ, now from M Qᵀ.
    earlier = (jnp.arange(m, dtype=jnp.int32)[None] < j) & ~basis.loose
    skew = jnp.maximum(basis.skew, jnp.max(jnp.where(earlier, jnp.abs(H - basis.C), 0)))
    return basis._replace(vectors=V, images=images, T=T, C=C, size=j + b, norm=norm, skew=skew, key=key)


@partial(linalg.precise_jit, static_argnums=(1, 2))
def _look(basis: Basis, k: int, lifted: bool, tol: Array, noise: Array) -> _Look:
    b = basis.C.shape[0]
    values, S, residuals = krylov.ritz(basis)
    used = jnp.arange(values.size, dtype=jnp.int32) < basis.size
    norm = jnp.maximum(basis.norm, jnp.max(jnp.where(used, jnp.abs(values), 0)))
    values, wanted, residuals = jnp.where(used, values, 0), values[:k], residuals[:k]
    if lifted:
        # The residual in parameter space is ‖Aᵀ r‖ / √λ, and r lies in the next block Q, of which ‖Aᵀ q‖² = q·K q is
        # about that of the last block; nothing is known of it after the first.
        last = jnp.max(jax.lax.dynamic_slice_in_dim(jnp.diag(basis.T), basis.size - b, b))
        along = jnp.where(basis.size > b, jnp.clip(2 * last, 0, norm), norm)
        # Values lost in rounding have no meaningful image; they are not waited for.
        resolved = wanted > 10 * noise * norm
        residuals = residuals * jnp.where(resolved, jnp.sqrt(along / jnp.where(resolved, wanted, 1)), 1)
    safe = jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)
    return _Look(
        values,
        S,
        # Twice as strict as asked for: the estimate of a lifted residual is one.
        residuals <= jnp.maximum(tol / 2, noise) * norm,
        jnp.max(residuals) / safe,
        norm,
        basis.skew / safe,
        jnp.maximum(100 * noise, 10 * tol),
    )


def _check_products(operator: LinearOperator, look: _Look) -> None:
    if not bool(jnp.isfinite(look.norm)):
        raise _checks.fail("eigsh", "the operator returned NaN or infinity", "check the weights, the data and the scale")
    check_symmetry("eigsh", operator, float(look.skew), float(look.most))


@partial(linalg.precise_jit, static_argnums=2, donate_argnums=0)
def _restart(basis: Basis, look: _Look, keep: int, row: Array | None) -> Basis:
    """The basis becomes its first `keep` Ritz vectors; the next block stays, or becomes `row` `(1, n)` and random ones."""
    b, m = basis.C.shape
    small, _ = krylov.compress(basis, look.values, look.S, jnp.asarray(keep, jnp.int32), row is not None)
    best = look.S[:, :keep].T
    vectors = jnp.zeros_like(basis.vectors).at[:keep].set(best @ basis.vectors[:m])
    images = jnp.zeros_like(basis.images).at[:keep].set(best @ basis.images)
    key, fill = jax.random.split(basis.key)
    if row is None:
        block = jax.lax.dynamic_slice_in_dim(basis.vectors, basis.size, b)
    else:
        block = linalg.orthonormal(jnp.pad(row, ((0, b - 1), (0, 0))), vectors, jnp.ones((), row.dtype), fill)
    return small._replace(vectors=vectors.at[keep : keep + b].set(block), images=images, key=key)


@partial(linalg.precise_jit, static_argnums=2)
def _pairs(basis: Basis, look: _Look, k: int) -> tuple[Array, Array]:
    """The k first Ritz vectors, rows `(k, n)`, and their products with M."""
    S = look.S[:, :k].T
    return S @ basis.vectors[: S.shape[1]], S @ basis.images


@linalg.precise_jit
def _coupling(rows: Array, images: Array, values: Array) -> Array:
    """Spectral norm of the residuals `M Q − Q Θ` of all wanted pairs: what couples them to the rest of the space."""
    R = images - values[:, None] * rows
    return jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(inner(R, R))[-1], 0))


def _shift(coupling: Array, gap: Array) -> Array:
    """How far a coupling to wanted values a gap above can raise the largest of the others.

    Reference: Li and Li, Linear Algebra Appl. 395, 2005: 2 e² / (g + √(g² + 4 e²)), at most e.
    """
    gap = jnp.maximum(gap, 0)
    total = gap + jnp.sqrt(gap**2 + 4 * coupling**2)
    return jnp.where(total > 0, 2 * coupling**2 / jnp.where(total > 0, total, 1), 0)
