"""What a computation will cost, before it starts."""

from typing import Any, overload

import jax
import jax.numpy as jnp

from fisher_jax import _checks, linalg
from fisher_jax.costs import matmul_rate
from fisher_jax.fisher import FisherOperator, StreamedFisher
from fisher_jax.gram import Tiles
from fisher_jax.kernels import layout
from fisher_jax.operators import as_operator
from fisher_jax.results import EigenPlan, Plan
from fisher_jax.solvers.api import check_function
from fisher_jax.solvers.auto import Auto
from fisher_jax.spectrum import MAX_SIZE, MAX_SIZE_WITH_VECTORS, group_parameters
from fisher_jax.streamed import no_products, stage_bytes, stage_shapes

# LAPACK reduces to tridiagonal form half in matrix-vector products: its rate over that of a matrix product, on a CPU.
LAPACK_SHARE = 0.2


@overload
def plan(F: FisherOperator, k: None = None, *, by: str | None = None, vectors: int = 0) -> Plan: ...


@overload
def plan(F: Any, k: int, *, method: Auto = Auto()) -> EigenPlan: ...


def plan(
    F: Any, k: int | None = None, *, method: Auto = Auto(), by: str | None = None, vectors: int = 0
) -> Plan | EigenPlan:
    """What `fj.spectrum(F)`, or with k `fj.eigsh(F, k)`, will do: operations, bytes, expected seconds, the method chosen.

    Nothing of it is computed, but two products of a function, to see what these take. Times come from the rate of a matrix
    product measured once per process; expect them within a factor of two or three.

    Args:
        F: from `fj.fisher` or `fj.gradient_covariance`; with k, whatever `fj.eigsh` takes.
        k: how many of the largest pairs. method: `fj.Auto(tol)`.
        by, vectors: as in `fj.spectrum`, without k.

    Returns:
        Plan, whose `fits` says whether `fj.spectrum` would start, or EigenPlan, whose first route is the one that is taken.
        Both print themselves.

    Raises:
        ArgumentError: F has no factor, k or vectors out of range, an unknown `by`.
    """
    if k is not None:
        operator = as_operator("plan", F)
        if by is not None or vectors:
            raise _checks.fail("plan", f"k={k} with by={by!r}, vectors={vectors}", "leave out k for the whole spectrum")
        if isinstance(operator, StreamedFisher):
            raise no_products()
        check_function("plan", operator)
        if not isinstance(method, Auto):
            raise _checks.fail("plan", f"method={method!r} leaves no choice", "give fj.Auto(tol)")
        return method.plan(operator, _checks.integer("plan", "k", k, 1, operator.size))
    if not isinstance(F, FisherOperator):
        raise _checks.fail("plan", f"F is a {type(F).__name__}", "give fj.fisher(...) or fj.gradient_covariance(...)")
    if by not in (None, "layer", "block"):
        raise _checks.fail("plan", f"by={by!r} is not known", 'give "layer", "block" or None')
    if vectors and isinstance(F, StreamedFisher):
        raise _checks.fail("plan", f"vectors={vectors} of a streamed network", "leave vectors out")
    vectors = _checks.integer("plan", "vectors", vectors, 0, min(F.factor.shape))
    factor, itemsize = F.factor, jnp.dtype(F.dtype).itemsize
    (rows, size), samples, R = factor.shape, factor.jacobian.data.samples, factor.rows_per_sample
    paths, free = factor.jacobian.network.paths, linalg.free_memory()
    streamed = isinstance(F, StreamedFisher)
    dual = rows <= size or by is not None or streamed
    n = rows if dual else size
    groups = [range(len(paths))] if by is None else group_parameters(F, by)[1]
    parts = len(groups)

    forward, passes, matrix, features, kernels = 0.0, R + 1, 0.0, 0, []
    cost, roomy = 0.0, True
    for first, piece in stage_shapes(factor) if streamed else [(0, factor)]:
        count = len(piece.jacobian.network.params)
        group = tuple(next(g for g, members in enumerate(groups) if first + i in members) for i in range(count))
        chosen = layout(piece, group)
        tiles = Tiles.of(piece, group, chosen)
        features, roomy = max(features, tiles.bytes), roomy and tiles.fits
        forward += 2.0 * sum(
            s.shape[0] * s.shape[1] * (1 if s.lookup else s.shape[2]) * s.shape[3] for s in chosen.found.sites
        )
        matrix += sum(k.operations for k in chosen.kernels)
        cost += sum(k.cost for k in chosen.kernels)
        kernels += [
            (" + ".join(paths[first + i] for i in k.parameters), k.kind, k.operations, k.reason) for k in chosen.kernels
        ]
    if streamed:
        # Beside the largest stage the inputs of all stages, and cotangents on both its sides.
        widths = [a.size for _, piece in stage_shapes(factor) for a in jax.tree.leaves(piece.jacobian.data.x)]
        taken = stage_bytes(factor)[1]
        roomy = roomy and taken <= free
        features += taken + (sum(widths) + 2 * R * max(widths)) * itemsize
        passes = 2 * R + 2
    operations = {
        "layer inputs and cotangents": samples * passes * forward,
        "matrix": matrix if dual else float(rows) * size**2,
        # With vectors, divide and conquer and going back from tridiagonal form: about twice 4/3 n³ more.
        "diagonalization": ((1 if by is None else parts + 1) + (2 if vectors else 0)) * 4 / 3 * float(n) ** 3,
    }
    rate = matmul_rate()
    time_in = (
        operations | {"diagonalization": operations["diagonalization"] / LAPACK_SHARE} | ({"matrix": cost} if dual else {})
    )
    seconds = sum(time_in.values()) / rate
    matrices = (2 if by is None else parts + 2) + (2 if vectors else 0)
    fitting = min(MAX_SIZE_WITH_VECTORS if vectors else MAX_SIZE, int((free / matrices / itemsize) ** 0.5))
    return Plan(
        route="dual" if dual else "primal",
        size=size,
        dual_size=rows,
        kernels=tuple(kernels),
        operations=tuple(operations.items()),
        matrix_bytes=n * n * itemsize,
        feature_bytes=features,
        peak_bytes=matrices * n * n * itemsize + features,
        free_bytes=free,
        rate=rate,
        seconds=seconds,
        fits=n <= fitting and roomy,
        samples=samples,
        nearest=fitting // R,
    )
