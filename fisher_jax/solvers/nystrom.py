"""Nyström approximation: a positive semidefinite matrix from its products with r random vectors, in one pass.

    M̂ = (M Ω)(Ωᵀ M Ω)⁺(M Ω)ᵀ,    0 <= M̂ <= M,    λ_i(M̂) <= λ_i(M) <= λ_i(M̂) + ‖M − M̂‖

A few Lanczos steps with M − M̂ from a random start bound the error (`unseen.py`).

Reference: Tropp, Yurtsever, Udell and Cevher, NeurIPS 2017, algorithm 3 (the stable form with a shift); Martinsson and
Tropp, Acta Numerica 29, 2020, section 14.4.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fisher_jax import _checks, linalg
from fisher_jax._record import record
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
from fisher_jax.solvers.lifting import lift_pairs
from fisher_jax.solvers.start import start_block

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Nystrom:
    """Nyström approximation of a positive semidefinite operator, of a rank that doubles until the wanted pairs converge.

    All products of a rank are one block, and none waits for another. Without powers of M the residuals are no smaller than
    the tail of the spectrum allows: for spectra that decay fast, or data that is expensive to pass over.

    Args:
        tol: a pair is converged when ‖M v − λ v‖ <= tol·λ_max, measured with products of its own.
        rank: the first; default 2 k + 10. Memory: 5 vectors for each.
        doublings: give up after so many.
    """

    tol: float = 1e-2
    rank: int | None = None
    doublings: int = 5

    def __post_init__(self) -> None:
        _checks.tolerance("Nystrom", self.tol)
        _checks.integer("Nystrom", "doublings", self.doublings, 0)
        if self.rank is not None:
            _checks.integer("Nystrom", "rank", self.rank, 1)

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
            raise _checks.fail("Nystrom", "the operator is traced", "use method=fj.Lanczos() inside jit")
        require_psd("Nystrom", operator)
        rank = 2 * k + 10 if self.rank is None else self.rank
        if rank <= k:
            raise _checks.fail("Nystrom", f"rank={rank} does not exceed k={k}", f"give rank > {k}")
        operator = operator.prepared(rank, 2 * rank)
        side = smaller_side(operator)
        if 2 * rank >= side.size:
            return Dense().solve(operator, k, key=key, above=above)
        k_start, k_rows, k_error, k_lift = jax.random.split(key, 4)
        _, noise, scale, spent = start_block(side, operator, 1, None, k_start)
        lifted, side = side is not operator, ScaledOperator(side, scale)
        Omega = images = jnp.zeros((0, side.size), side.dtype)
        notes: list[str] = []
        worst: list[float] = []
        with HostLoop() as interrupt:
            for doubling in range(self.doublings + 1):
                k_rows, fresh = jax.random.split(k_rows)
                new = _directions(Omega, rank if doubling == 0 else len(Omega), fresh)
                Omega, images = jnp.concatenate([Omega, new]), jnp.concatenate([images, multiply(side, new)])
                found, kept, skew, lowest = approximate(Omega, images, noise)
                check_products(operator, found, skew, lowest, noise)
                rows, products = _rayleigh_ritz(kept[:k], multiply(side, kept[:k]))
                spent += len(new) + k
                values, within = measured(rows, products)
                norm, residuals, most = jnp.maximum(found[0], jnp.max(values)), within, -jnp.inf
                if lifted:
                    arguments = rows, products, values, norm, noise, jnp.asarray(self.tol, norm.dtype), k_lift
                    rows, values, residuals, within, most, extra = lift_pairs(operator, scale, *arguments)
                    spent += extra
                limit = jnp.maximum(self.tol, noise) * norm
                converged = residuals <= limit
                worst.append(float(jnp.max(residuals) / limit))
                if progress is not None:
                    now = float(jnp.max(residuals) / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
                    progress(Progress(spent, int(converged.sum()), k, now, f"rank {len(Omega)}"))
                if interrupt.asked:
                    notes.append("interrupted: only what had converged is given")
                if bool(converged.all()) or interrupt.asked or 4 * len(Omega) > side.size:
                    break
                left = self.doublings - doubling
                if left and _hopeless(worst, left):
                    notes.append(f"stopped: {left} more doublings would not reach tol={self.tol:g}, use fj.Lanczos()")
                    break
            error, steps = error_bound(side, found, kept, noise, found[k - 1] - found[k], k_error)
        # The i-th eigenvalue is at most the i-th found and the error: of all from the first that did not converge.
        first = k if bool(converged.all()) else int(jnp.argmin(converged))
        result = certify(
            operator,
            rows,
            values,
            residuals,
            norm,
            noise,
            self.tol,
            jnp.maximum(most, found[first] + error),
            spent + steps * unseen.BLOCK,
            unit=1 / scale,
            within=within,
            wanted=converged,
            method=f"Nystrom(tol={self.tol:g}), rank {len(Omega)}, on the " + ("dual" if lifted else "operator"),
            info=provenance(
                key,
                operator.dtype,
                size=operator.size,
                iterated=side.size,
                failure_probability=unseen.FAILURE,
                **features(operator),
                error=f"{float(error / scale):.6g}",
                **({"note": "; ".join(notes)} if notes else {}),
            ),
        )
        return result if above is None else keep_above(result, above)


def require_psd(where: str, operator: LinearOperator) -> None:
    if not operator.psd:
        raise _checks.fail(
            where,
            f"{operator!r} is not known to be positive semidefinite",
            "use fj.Randomized(), or say psd=True if it has none that is negative: fj.MatrixOperator(matrix, psd=True)",
        )


def check_products(operator: Any, values: Array, skew: Array, lowest: Array, noise: Array) -> None:
    """Refuse an operator whose products show it not to be finite, symmetric or positive semidefinite."""
    if not bool(jnp.isfinite(values).all()):
        raise _checks.fail("eigsh", "the operator returned NaN or infinity", "check the weights, the data and the scale")
    check_symmetry("eigsh", operator, float(skew), float(100 * noise))
    if float(lowest) < -100 * float(noise):
        raise _checks.fail("eigsh", f"{operator!r} has a negative eigenvalue", "use fj.Randomized() or fj.Lanczos()")


def multiply(side: Any, rows: Array) -> Array:
    return jax.block_until_ready(apply(side, rows.T).T)


@partial(linalg.precise_jit, static_argnums=1)
def _directions(Omega: Array, count: int, key: Array) -> Array:
    """Random orthonormal rows `(count, n)`, orthogonal to those of Ω."""
    rows = jax.random.normal(key, (count, Omega.shape[1]), Omega.dtype)
    return linalg.orthonormal(rows, Omega, jnp.ones((), Omega.dtype), key)


@linalg.precise_jit
def approximate(Omega: Array, images: Array, noise: Array) -> tuple[Array, Array, Array, Array]:
    """Eigenvalues `(r,)` descending and eigenvectors, rows `(r, n)`, of M̂ from rows Ω and M Ω; faults of Ωᵀ M Ω.

    Its skew and its lowest eigenvalue, both over the norm of M Ω, are zero or positive but for rounding.

    What is approximated is M + ν with ν as small as rounding, taken off the values again: the core is then never singular.
    """
    size = jnp.linalg.norm(images)
    safe = jnp.where(size > 0, size, 1)
    shift = noise * safe
    images = images + shift * Omega
    core = inner(Omega, images)
    lengths, U = jnp.linalg.eigh((core + core.T) / 2)
    W = (U / jnp.sqrt(jnp.maximum(lengths, shift))[None]).T @ images
    Q = linalg.orthonormal(W, jnp.zeros_like(W[:1]), jnp.sqrt(shift), jax.random.key(0))
    _, singular, V = jnp.linalg.svd(inner(W, Q), full_matrices=False)
    values = jnp.where(size > 0, jnp.maximum(singular**2 - shift, 0), 0)
    return values, V @ Q, jnp.max(jnp.abs(core - core.T)) / safe, lengths[0] / safe


def error_bound(side: Any, values: Array, rows: Array, noise: Array, goal: Array, key: Array) -> tuple[Array, int]:
    """(bound on λ_max(M − M̂) with failure probability 10⁻³, steps of the search for it, of which `goal` is good enough)."""
    none, left = jnp.zeros((0, side.size), side.dtype), Remainder(side, values, rows)
    found = unseen.search(left, none, none[:, 0], values[0], noise, goal, key, unseen.MOST_STEPS, False)
    return jnp.maximum(found.bound, 0), found.steps


@record
class Remainder(LinearOperator):
    """`M − M̂`."""

    operator: LinearOperator
    values: Array  # (r,)
    rows: Array  # (r, n)

    @property
    def size(self) -> int:
        return self.operator.size

    @property
    def dtype(self) -> Any:
        return self.operator.dtype

    def matmat(self, V: Array) -> Array:
        return self.operator.matmat(V) - self.rows.T @ (self.values[:, None] * (self.rows @ V))


def _hopeless(worst: list[float], left: int) -> bool:
    """Will the residual, in units of the tolerance at each rank so far, exceed one after `left` more doublings?

    Not even a residual that falls geometrically with the rank, its logarithm by twice as much at each doubling, would do.
    """
    if len(worst) < 2:
        return False
    fall = math.log(worst[-2] / worst[-1]) if worst[-1] > 0 else math.inf
    return math.log(worst[-1]) > max(fall, 0) * (2 ** (left + 1) - 2)


@linalg.precise_jit
def _rayleigh_ritz(rows: Array, images: Array) -> tuple[Array, Array]:
    """The best vectors in the span of orthonormal rows, and their products with M."""
    T = inner(rows, images)
    S = jnp.linalg.eigh((T + T.T) / 2)[1][:, ::-1].T
    return S @ rows, S @ images
