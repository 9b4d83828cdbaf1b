"""Every nonzero eigenvalue of a Fisher matrix, exactly: the dual matrix from its layers, then one dense diagonalization."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from fisher_jax import _checks, linalg
from fisher_jax.fisher import FisherOperator, StreamedFisher
from fisher_jax.gram import Reporter
from fisher_jax.results import Spectrum, provenance
from fisher_jax.solvers.lifting import complete, lift

Array = jax.Array

# The matrix itself has at most 2³¹ entries, as far as LAPACK's 32-bit indices are known to reach.
MAX_SIZE = 46_000
# With vectors, divide and conquer states its workspace of 1 + 6 n + 2 n² numbers as a 32-bit integer.
MAX_SIZE_WITH_VECTORS = 32_000


def spectrum(
    F: FisherOperator, *, by: str | None = None, vectors: int = 0, tile: int | None = None, progress: Reporter | None = None
) -> Any:
    """All eigenvalues of a Fisher matrix, without iteration, through the smaller of F and its dual.

        K = A Aᵀ (N·C, N·C) has the nonzero eigenvalues of F = Aᵀ A (P, P)

    K is built from layer inputs and output cotangents (`fisher_jax.gram`), F, where it is the smaller one, from per-sample
    gradients. Trace and Frobenius norm come from the entries of the matrix, not from its eigenvalues.

    Args:
        F: from `fj.fisher` or `fj.gradient_covariance`.
        by: "layer" or "block": also the diagonal block of F of every layer (parameters with the same path but for the last
            part) or block (the same first part, and its number), from the same pass.
        vectors: how many leading eigenvectors to give, `(P, k)`, lifted to parameter space, at most as many as there are
            values above rounding; costs O(n³) more when not zero. With `by`, those of the whole.
        tile: samples in a tile of K. progress: called with (tiles done, tiles in all).

    Returns:
        Spectrum; with `by`, a dict of them by path, the whole under "all" (`fj.save` takes them one by one).

    Raises:
        ArgumentError: the matrix does not fit, or is beyond what LAPACK addresses.
    """
    if not isinstance(F, FisherOperator):
        raise _checks.fail("spectrum", f"F is a {type(F).__name__}", "give fj.fisher(...) or fj.gradient_covariance(...)")
    if by not in (None, "layer", "block"):
        raise _checks.fail("spectrum", f"by={by!r} is not known", 'give "layer", "block" or None')
    rows, size = F.factor.shape
    vectors = _checks.integer("spectrum", "vectors", vectors, 0, min(rows, size))
    kept = not isinstance(F, StreamedFisher)
    if vectors and not kept:
        raise _checks.fail("spectrum", f"vectors={vectors} of a streamed network", "leave vectors out")
    n = rows if by or not kept else min(rows, size)
    names, groups = group_parameters(F, by) if by else ([], [])
    # The matrix (one for each part, and their sum) and the copy that LAPACK works in; with vectors its workspace.
    copies = (2 if by is None else len(names) + 2) + (2 if vectors else 0)
    itemsize = np.dtype(F.dtype).itemsize
    addressed, free = MAX_SIZE_WITH_VECTORS if vectors else MAX_SIZE, linalg.free_memory()
    largest = min(addressed, int((free / copies / itemsize) ** 0.5))
    if n > largest:
        taken, free = copies * n * n * itemsize / 2**30, free / 2**30
        raise _checks.fail(
            "spectrum",
            f"{n} x {n} is more than LAPACK addresses ({addressed})"
            if n > addressed
            else f"{copies} matrices of {n} x {n} numbers take {taken:.1f} GiB of {free:.1f} GiB free",
            f"take N <= {largest // F.factor.rows_per_sample} samples, or for the largest fj.eigsh(F, k, key=key), with "
            "method=fj.Gram() to store K",
        )
    if by:
        matrices = dict(zip(names, F.grams(groups, tile=tile, progress=progress), strict=True))
        sizes = {
            name: sum(F.factor.jacobian.network.params[i].size for i in g) for name, g in zip(names, groups, strict=True)
        }
        whole = sum(matrices.values())
        result = {"all": _solve(F, whole, True, vectors, size)}
        for name in names:
            result[name] = _solve(F, matrices.pop(name), True, 0, sizes[name])
        return result
    dual = rows <= size or not kept
    matrix = F.gram(tile=tile, progress=progress) if dual else F.dense()
    return _solve(F, matrix, dual, vectors, size)


def group_parameters(F: FisherOperator, by: str) -> tuple[list[str], list[list[int]]]:
    """Names of layers or blocks, and the numbers of the parameters of each."""
    groups: dict[str, list[int]] = {}
    for index, path in enumerate(F.factor.jacobian.network.paths):
        parts = path.split("/")
        if by == "layer":
            name = "/".join(parts[:-1]) or path
        else:
            name = "/".join(parts[: 2 if len(parts) > 2 and parts[1].isdigit() else 1])
        groups.setdefault(name, []).append(index)
    return list(groups), list(groups.values())


def _solve(F: FisherOperator, matrix: Any, dual: bool, vectors: int, size: int) -> Spectrum:
    """Diagonalize K or F in LAPACK, which works in the one copy made here: transposed, in the column order it needs.

    The matrix is freed: while LAPACK runs there is one.
    """
    host = np.array(matrix)
    matrix.delete()
    n = host.shape[0]
    if not np.isfinite(host.ravel()[:: n + 1]).all():
        raise _checks.fail("spectrum", "the matrix has NaN or infinity", "check the weights, the data and the scale")
    trace = float(np.trace(host, dtype=np.float64))
    frobenius = float(np.sqrt(sum(np.dot(row, row) for row in (r.astype(np.float64) for r in host))))
    lifted = None
    if vectors:
        with linalg.lapack(n):
            values, U = scipy.linalg.eigh(host.T, overwrite_a=True, check_finite=False, driver="evd")
        # Below rounding a vector would be any of the null space's.
        vectors = min(vectors, int(np.count_nonzero(values > dense_floor(values, host.dtype))))
        rows = jnp.asarray(U[:, ::-1][:, :vectors].T)
        if dual and vectors:
            rows = complete(lift(F, rows), vectors, jnp.ones(vectors, bool), jax.random.key(0))
        lifted = rows.T if vectors else jnp.zeros((F.size, 0), F.dtype)
    else:
        with linalg.lapack(n):
            values = scipy.linalg.eigvalsh(host.T, overwrite_a=True, check_finite=False, driver="evd")
    floor = dense_floor(values, host.dtype)
    values = values[::-1]
    kept = values[values > floor]
    rank = min(size, F.factor.rank_bound()) if frobenius else 0
    return Spectrum(
        values=jnp.asarray(kept),
        vectors=lifted,
        floor=floor,
        unresolved=rank - kept.size,
        zeros=size - rank,
        size=size,
        dual_size=F.factor.shape[0],
        trace=trace,
        frobenius=frobenius,
        method=("dual, from layers" if dual else "primal, from per-sample gradients") + f"; LAPACK on {n} x {n}",
        info=provenance(dtype=F.dtype, size=size, formed=n),
    )


def dense_floor(values: np.ndarray, dtype: Any) -> float:
    """Rounding in the entries of the matrix and in LAPACK: several times what float64 shows up to n = 3000."""
    return 8 * linalg.eps(dtype) * max(1.0, values.size**0.5 / 4) * float(np.abs(values).max(initial=0.0))
