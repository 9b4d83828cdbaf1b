"""`scipy_eigsh`: our eigensolvers behind the signature of `scipy.sparse.linalg.eigsh`.

Smallest eigenvalues are the largest of −M. Those of largest magnitude come from both ends: how many from which end, a short
Lanczos run tells beforehand; afterwards each end must know that nothing larger is missing, or is asked for more.
"""

import numbers
import warnings
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import _checks, krylov, linalg
from fisher_jax.operators import LinearOperator, ScaledOperator, SignedOperator, apply, as_operator
from fisher_jax.results import EigenResult
from fisher_jax.solvers import unseen
from fisher_jax.solvers.api import check_function
from fisher_jax.solvers.base import check_symmetry
from fisher_jax.solvers.dense import MAX_SIZE
from fisher_jax.solvers.lanczos import Lanczos
from fisher_jax.solvers.lifting import complete as complete_rows

WHERE = "scipy_eigsh"
# Up to this size diagonalizing takes less time than compiling an iteration.
DENSE_SIZE = 1000
WHICH = ("LM", "SM", "LA", "SA", "BE")
# Below this multiple of k rows, most of the space would be asked for: it is diagonalized.
SHARE = 4
# tol=0, in units of rounding, and the restarts in which that is to be reached: each rounds the basis anew, so that what
# takes many is given a second try with less to reach.
UNITS, UNITS_RESTARTS = (16, 128), 100


def scipy_eigsh(
    A: Any,
    k: int = 6,
    M: Any = None,
    sigma: Any = None,
    which: str = "LM",
    v0: Any = None,
    ncv: int | None = None,
    maxiter: int | None = None,
    tol: Any = 0,
    return_eigenvectors: bool = True,
    Minv: Any = None,
    OPinv: Any = None,
    mode: str = "normal",
    rng: Any = None,
) -> Any:
    """`scipy.sparse.linalg.eigsh` for real symmetric matrices: same arguments, order of values, shapes and exceptions.

    Other than there, copies of repeated eigenvalues are found; `tol` is relative to the largest magnitude, not to each
    value; up to 1000 rows, or 4 k, the matrix is diagonalized, and v0, ncv, maxiter and tol, which describe an iteration,
    have no part; equal arguments give equal numbers.

    Args:
        A: anything `fj.eigsh` takes: array (NumPy, JAX), sparse matrix (SciPy, JAX `BCOO`), SciPy `LinearOperator` (each
            product goes through the host), or an operator such as `fj.hessian(...)`. float32 gives float32; float64 and
            integers give float64, also without `jax_enable_x64`.
        k: how many, below the size n; an array with k >= n gets all n, with a warning.
        M, sigma, Minv, OPinv, mode: generalized problems and shifts; refused.
        which: LM or SM: largest or smallest magnitude; LA or SA: largest or smallest; BE: k // 2 smallest, the others
            largest. SM takes a matrix that is small enough to diagonalize, or known to have no negative eigenvalue.
        v0: start vector `(n,)`; random unless given.
        ncv: basis vectors, k < ncv <= n; default 2 k + 22.
        maxiter: most restarts; default 10 n.
        tol: a pair is converged when ‖A v − λ v‖ <= tol·max|λ|; 0 is as accurate as the precision allows.
        return_eigenvectors: false for values only.
        rng: seed or `numpy.random.Generator`; None is a fixed seed.

    Returns:
        NumPy arrays, values `(k,)` ascending and vectors `(n, k)` in columns; values only, in SciPy's order (LM: by rising
        magnitude, SM: by falling magnitude, SA: falling), without vectors.

    Raises:
        ArgumentError: a ValueError; unknown or unsupported arguments, a matrix that is not symmetric, not finite or complex.
        TypeError: k >= n for a matrix that is no array.
        scipy.sparse.linalg.ArpackNoConvergence: with what has converged as `eigenvalues` and `eigenvectors`.
    """
    from scipy.sparse.linalg import ArpackNoConvergence

    for name, value in (("M", M), ("sigma", sigma), ("Minv", Minv), ("OPinv", OPinv)):
        if value is not None:
            raise _checks.fail(WHERE, f"{name} is not supported", f"leave out {name}, or use scipy.sparse.linalg.eigsh")
    if mode != "normal":
        raise _checks.fail(WHERE, f"mode={mode!r} is not supported", "give 'normal', or use scipy.sparse.linalg.eigsh")
    if which not in WHICH:
        raise _checks.fail(WHERE, f"which={which!r} is unknown", f"give one of {', '.join(WHICH)}")
    k = _checks.integer(WHERE, "k", k, 1)
    if not isinstance(tol, numbers.Real) or not 0 <= float(tol) < np.inf:
        raise _checks.fail(WHERE, f"tol={tol!r} is not a number >= 0", "give tol >= 0")
    seed = 0 if rng is None else int(np.random.default_rng(rng).integers(2**31))
    A = _floating(A)
    with jax.enable_x64(True) if getattr(A, "dtype", None) == np.float64 else nullcontext():
        operator = as_operator(WHERE, A)
        check_function(WHERE, operator)
        n = operator.size
        if k >= n:
            if not isinstance(A, (jax.Array, np.ndarray)):
                raise TypeError(
                    f"{WHERE}: k={k} is not below the size {n} of a {type(A).__name__}; reduce k or give an array"
                )
            warnings.warn(f"{WHERE}: k={k} is not below the size {n}: all {n} are given", RuntimeWarning, stacklevel=2)
        if ncv is not None:
            _checks.integer(WHERE, "ncv", ncv, k + 1, n)
        if maxiter is not None:
            _checks.integer(WHERE, "maxiter", maxiter, 1)
        if v0 is not None and np.shape(v0) != (n,):
            raise _checks.fail(WHERE, f"v0 has shape {np.shape(v0)}", f"give a vector of shape ({n},)")
        if v0 is not None:
            _checks.finite(WHERE, "v0", np.asarray(v0), "give a start vector without NaN")
        if operator.psd:
            which = {"LM": "LA", "SM": "SA"}.get(which, which)
        if n <= max(DENSE_SIZE, SHARE * k) or which == "SM":
            if n > max(MAX_SIZE, SHARE * k):
                remedy = "use scipy.sparse.linalg.eigsh with sigma=0"
                raise _checks.fail(WHERE, f"which='SM' with {n} rows would take a factorization", remedy)
            found = _Found(*_diagonalize(operator), True, "")
        else:
            steps, restarts = None if ncv is None else max(ncv, k + 2), 10 * n if maxiter is None else maxiter
            tries = ((float(tol), restarts),)
            if not tol:
                first, second = (units * linalg.eps(operator.dtype) for units in UNITS)
                tries = (first, min(restarts, UNITS_RESTARTS)), (second, restarts)
            methods = tuple(Lanczos(tol=t, steps=steps, restarts=r) for t, r in tries)
            found = _iterate(_Ends(operator, methods, v0, jax.random.key(seed)), which, k)
        values, vectors = (np.asarray(a) for a in (found.values, found.vectors))
    chosen = _choose(values, which, min(k, values.size))
    if not found.complete:
        note = f"; {found.note}" if found.note else ""
        raise ArpackNoConvergence(
            f"No convergence ({chosen.size}/{k} eigenvectors converged){note}", values[chosen], vectors[:, chosen]
        )
    if return_eigenvectors:
        return values[chosen], vectors[:, chosen]
    values = values[chosen]
    if which in ("LM", "SM"):
        order = np.argsort(np.abs(values))
        return values[order if which == "LM" else order[::-1]]
    return values[::-1] if which == "SA" else values


class _Found(NamedTuple):
    """Eigenpairs among which are the wanted ones, unless incomplete; values ascending."""

    values: Any  # (j,)
    vectors: Any  # (n, j)
    complete: bool
    note: str


def _floating(A: Any) -> Any:
    """Integers become float64, as in SciPy; all else is left to `as_operator`."""
    dtype = getattr(A, "dtype", None)
    if (
        isinstance(A, LinearOperator)
        or dtype is None
        or dtype in (np.float32, np.float64)
        or not np.can_cast(dtype, np.float64)
    ):
        return A
    if isinstance(A, jax.Array):
        return np.asarray(A).astype(np.float64)
    return A.astype(np.float64) if hasattr(A, "astype") else A * np.float64(1)


def _choose(values: np.ndarray, which: str, k: int) -> np.ndarray:
    """Indices, ascending, of the wanted k of ascending values."""
    n = values.size
    if which in ("LM", "SM"):
        order = np.argsort(np.abs(values), kind="stable")
        return np.sort(order[n - k :] if which == "LM" else order[:k])
    low = {"LA": 0, "SA": k, "BE": k // 2}[which]
    return np.r_[:low, n - k + low : n]


def _diagonalize(operator: LinearOperator) -> tuple[np.ndarray, np.ndarray]:
    import scipy.linalg

    matrix = np.asarray(operator.dense())
    _checks.finite(WHERE, "A", matrix, "check the entries and the scale")
    skew, scale = np.abs(matrix - matrix.T).max(), np.abs(matrix).max()
    check_symmetry("eigsh", operator, float(skew / scale) if scale else 0.0, 1e4 * linalg.eps(matrix.dtype))
    values, vectors = scipy.linalg.eigh(matrix)
    return values, vectors


# --- both ends --------------------------------------------------------------------------------------------------------


class _Ends(NamedTuple):
    """One operator, asked for its largest or smallest eigenvalues."""

    operator: LinearOperator
    methods: tuple[Lanczos, ...]  # the next where one does not converge
    v0: Any
    key: jax.Array

    def solve(self, sign: int, k: int) -> EigenResult:
        side = self.operator
        if sign < 0 or not side.psd:  # those that are have a dual, which may be smaller
            side = SignedOperator(side, jnp.asarray(sign, side.dtype))
        for method in self.methods:
            result = method.solve(side, k, key=self.key, v0=self.v0)
            if bool(result.converged.all()) or "interrupted" in dict(result.info).get("note", ""):
                break
        return result


def _iterate(ends: _Ends, which: str, k: int) -> _Found:
    if which == "LM":
        return _largest_magnitude(ends, k)
    low = {"LA": 0, "SA": k, "BE": k // 2}[which]
    return _merge(ends, {sign: ends.solve(sign, count) for sign, count in ((1, k - low), (-1, low)) if count}, k)


def _merge(ends: _Ends, results: dict[int, EigenResult], k: int) -> _Found:
    """What has converged at both ends, ascending."""
    parts, notes = [], []
    for sign in sorted(results, reverse=True):
        result = results[sign]
        done = np.asarray(result.converged)
        parts.append((sign * np.asarray(result.values)[done], np.asarray(result.vectors)[:, done]))
        notes += [note for name, note in result.info if name == "note"]
    complete = all(bool(result.converged.all()) for result in results.values())
    values, vectors = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
    if complete and len(parts) == 2:
        (high, _), (low, _) = parts
        # Do the ends meet? Then all the spectrum between is one eigenvalue, such as zero where the rank is low, and every
        # direction orthogonal to the vectors of the others belongs to it. Each end has found some, without the other.
        meet = high.min() - 2 * max(float(result.tol) for result in results.values()) * np.abs(values).max()
        if low.max() >= meet:
            own = np.r_[np.ones(high.size, bool), low < meet]
            first = np.argsort(~own, kind="stable")
            rows = complete_rows(jnp.asarray(vectors[:, first].T), own.size, jnp.asarray(own[first]), ends.key)
            values, vectors = values[first], np.asarray(rows).T
    order = np.argsort(values, kind="stable")
    return _Found(values[order], vectors[:, order], complete and values.size >= k, "; ".join(notes))


def _largest_magnitude(ends: _Ends, k: int) -> _Found:
    run = _short_run(ends, k)
    ritz = np.asarray(_ritz_values(run.basis))
    positive = int(np.sum(ritz[np.argsort(np.abs(ritz))[-k:]] > 0))
    results = {sign: ends.solve(sign, count) for sign, count in ((1, positive), (-1, k - positive)) if count}
    while True:
        found = _merge(ends, results, k)
        if not found.complete:
            return found
        least = float(np.sort(np.abs(found.values))[-k])
        more = {}
        for sign in (1, -1):
            if sign not in results:
                if not run.excludes(sign, least):
                    more[sign] = 1
            elif not _enough(results[sign], least, k):
                count = results[sign].values.size
                more[sign] = min(k, count + 1 + count // 4)
        if not more:
            return found
        results |= {sign: ends.solve(sign, count) for sign, count in more.items()}


def _enough(result: EigenResult, least: float, k: int) -> bool:
    """Has this end given all its eigenvalues whose magnitude exceeds `least`, the smallest of the k chosen?"""
    return result.values.size >= k or float(result.values[-1]) < least or float(result.complete_above) <= least


class _Run(NamedTuple):
    """A Lanczos run from a random start without restart, which sees both ends."""

    basis: krylov.Basis
    scale: jax.Array  # () that of the operator it ran on

    def excludes(self, sign: int, number: float) -> bool:
        """No eigenvalue of ±M above the number, up to the failure probability of `unseen`?"""
        return bool(_excludes(self.basis, jnp.asarray(sign, self.scale.dtype), self.scale * number))


def _short_run(ends: _Ends, k: int) -> _Run:
    operator, m = ends.operator, 2 * k + 20
    k_start, k_run = jax.random.split(ends.key)
    start = jax.random.normal(k_start, (1, operator.size), operator.dtype)
    # About 1/‖M‖: the entries of the start are of size one.
    side = ScaledOperator(operator, operator.size**0.5 * linalg.power_of_two(apply(operator, start.T).T))
    basis = _start(start, m, k_run)
    for _ in range(m):
        basis = _expand(side, basis)
    return _Run(basis, side.scale)


_start = linalg.precise_jit(krylov.start, static_argnums=1)


@linalg.precise_jit
def _expand(side: LinearOperator, basis: krylov.Basis) -> krylov.Basis:
    return krylov.expand(lambda V: apply(side, V), basis)


@linalg.precise_jit
def _ritz_values(basis: krylov.Basis) -> jax.Array:
    return krylov.ritz(basis)[0]


@linalg.precise_jit
def _excludes(basis: krylov.Basis, sign: jax.Array, number: jax.Array) -> jax.Array:
    basis = basis._replace(T=sign * basis.T)
    seen = krylov.ritz(basis)[0][0]
    zero, n = jnp.zeros((), jnp.int32), basis.vectors.shape[1]
    noise = jnp.asarray(10 * linalg.eps(number.dtype), number.dtype)
    odds, starts = unseen.log_odds(basis, zero, n, seen, number[None], noise)
    return (number > seen) & unseen.excluded(odds, starts)[0]
