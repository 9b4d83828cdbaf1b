"""What a computation will cost, before it starts."""

import time
from functools import cache

import jax
import jax.numpy as jnp

from fisher_jax import _checks, linalg
from fisher_jax.fisher import FisherOperator
from fisher_jax.gram import feature_bytes, layout, tile_samples
from fisher_jax.results import Plan
from fisher_jax.spectrum import MAX_SIZE

# LAPACK reduces to tridiagonal form half in matrix-vector products: its rate over that of a matrix product, on a CPU.
LAPACK_SHARE = 0.2


def plan(F: FisherOperator) -> Plan:
    """Operations, bytes, expected seconds and the kernel of every parameter for `fj.spectrum(F)`; nothing is computed.

    Times come from the rate of a matrix product measured once per process; expect them within a factor of two or three.

    Args:
        F: from `fj.fisher` or `fj.gradient_covariance`.

    Returns:
        Plan, which prints itself; `plan.fits` says whether `fj.spectrum` would start.
    """
    if not isinstance(F, FisherOperator):
        raise _checks.fail("plan", f"F is a {type(F).__name__}", "give fj.fisher(...) or fj.gradient_covariance(...)")
    factor = F.factor
    network, itemsize = factor.jacobian.network, jnp.dtype(F.dtype).itemsize
    (rows, size), samples, R = factor.shape, factor.jacobian.data.samples, factor.rows_per_sample
    dual = rows <= size
    n = min(rows, size)
    group = (0,) * len(network.params)
    found = layout(factor, group)
    per_sample = feature_bytes(factor, group)
    c = tile_samples(factor, per_sample)
    forward = 2.0 * sum(s.shape[0] * s.shape[1] * (1 if s.lookup else s.shape[2]) * s.shape[3] for s in found.found.sites)
    matrix = sum(k.operations for k in found.kernels) if dual else float(rows) * size**2
    operations = {
        "layer inputs and cotangents": samples * (R + 1) * forward,
        "matrix": matrix,
        "diagonalization": 4 / 3 * float(n) ** 3,
    }
    rate = matmul_rate()
    seconds = (operations["layer inputs and cotangents"] + matrix) / rate + operations["diagonalization"] / (
        LAPACK_SHARE * rate
    )
    free = linalg.free_memory()
    features = per_sample * samples
    kept = features <= free // 4
    peak = 2 * n * n * itemsize + (features if kept else 2 * c * per_sample)
    fitting = min(MAX_SIZE, int((free / 2 / itemsize) ** 0.5))
    paths = network.paths
    kernels = tuple((" + ".join(paths[i] for i in k.parameters), k.kind, k.operations, k.reason) for k in found.kernels)
    return Plan(
        route="dual" if dual else "primal",
        size=size,
        dual_size=rows,
        kernels=kernels,
        operations=tuple(operations.items()),
        matrix_bytes=n * n * itemsize,
        feature_bytes=features if kept else 2 * c * per_sample,
        peak_bytes=peak,
        free_bytes=free,
        rate=rate,
        seconds=seconds,
        fits=n <= fitting,
        nearest=fitting // R,
    )


@cache
def matmul_rate() -> float:
    """Operations per second of a float32 matrix product of 2048 rows on the default device."""
    n = 2048
    a = jnp.ones((n, n), jnp.float32)
    multiply = linalg.precise_jit(lambda a: a @ a)
    jax.block_until_ready(multiply(a))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(multiply(a))
        times.append(time.perf_counter() - began)
    return 2 * n**3 / min(times)
