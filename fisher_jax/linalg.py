"""Small linear algebra and numerical facts shared by operators and solvers."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from threadpoolctl import threadpool_limits

Array = jax.Array


def precise_jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` with matrix products at full precision: TF32 or bfloat16 products ruin a Krylov basis."""

    @functools.wraps(function)
    def full_precision(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return jax.jit(full_precision, **options)


def loops_are_slow() -> bool:
    """On a CPU, XLA runs convolutions inside a loop tens of times slower than outside."""
    return jax.default_backend() == "cpu"


def free_memory() -> int:
    """Bytes free on the default device; on a CPU, those the operating system can give without swapping."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        with open("/proc/meminfo") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


# Below this size a second LAPACK thread gains a third at best.
THREADED = 2000


def lapack(n: int = 0) -> Any:
    """Surrounds decompositions of matrices of n rows: one LAPACK thread for small ones.

    OpenBLAS's threads spin while they wait for each other, and for a while after each call. Products that run meanwhile take
    twice as long, and on a machine with other work a decomposition of 300 rows takes a second instead of 10 ms.
    """
    return threadpool_limits(1 if n < THREADED else None, "blas")


def eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


def power_of_two(rows: Array) -> Array:
    """A power of two near 1 / (largest norm of the rows), found without squares that vanish or overflow; 1 for zero."""
    largest = jnp.max(jnp.abs(rows))
    safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    norm = jnp.max(jnp.linalg.norm(rows / safe, axis=1))
    # Not so large that the inverse is no number.
    most = jnp.finfo(rows.dtype).maxexp - 8
    exponent = jnp.clip(jnp.frexp(safe)[1] + jnp.frexp(jnp.where(norm > 0, norm, 1))[1], -most, most)
    return jnp.ldexp(jnp.ones((), rows.dtype), -exponent)


# Length over which a CPU sums a product of vectors in one go.
PANEL = 4096


def inner(W: Array, V: Array) -> Array:
    """`W Vᵀ` of rows `(b, n)` and `(m, n)`, summed by panels of the long axis.

    A CPU adds a dot product up in a few running sums: over 10⁵ float32 numbers that costs two digits, and with them the
    orthogonality of a basis. Accelerators sum in trees.
    """
    n = W.shape[1]
    full = n // PANEL

    def part(first: Any, width: int) -> Array:
        # (V Wᵀ)ᵀ: a CPU streams V once for a single w, where W Vᵀ takes five times as long.
        w, v = (jax.lax.dynamic_slice_in_dim(rows, first, width, 1) for rows in (W, V))
        return (v @ w.T).T

    if full < 8 or jax.default_backend() != "cpu":
        return part(0, n)
    zero = jnp.zeros((W.shape[0], V.shape[0]), W.dtype)
    total = jax.lax.fori_loop(0, full, lambda i, total: total + part(jnp.asarray(i, jnp.int32) * PANEL, PANEL), zero)
    return total + part(full * PANEL, n % PANEL) if n % PANEL else total


def orthonormal(W: Array, V: Array, norm: Array, key: Array) -> Array:
    """Orthonormal rows, orthogonal to V, whose span has that of W; where W vanishes to rounding, random ones.

    Each round divides by the square roots of the eigenvalues of W Wᵀ, kept from falling below their rounding error; a
    few rounds reach any condition number. A random part as small as rounding gives a vanished row a direction.

    Reference: Fukaya et al., SIAM J. Sci. Comput. 42(1), 2020 (shifted Cholesky QR).
    """
    b, n = W.shape
    unit = eps(W.dtype)
    W = W + unit * jnp.where(norm > 0, norm, 1) * jax.random.normal(key, W.shape, W.dtype) / n**0.5
    for last in (False, False, True, True):
        if last:
            W = W - inner(W, V) @ V
        squares = inner(W, W)
        lengths, U = jnp.linalg.eigh((squares + squares.T) / 2)
        W = (U / jnp.sqrt(jnp.maximum(lengths, b * unit * lengths[-1]))[None]).T @ W
    return W


def error_bounds(values: Array, residuals: Array, rest: Array, floor: Array, wanted: Array) -> Array:
    """Absolute error bound of each Ritz value.

    A residual r always puts an eigenvalue within r. If no other eigenvalue lies within `gap` of the value, the error is at
    most r² / gap (Kato–Temple; Parlett, The Symmetric Eigenvalue Problem, 11.7), used where the gap exceeds twice the
    Frobenius norm of all residuals. `floor` is what rounding in the products can add.

    Args:
        values: `(k,)` Ritz values. residuals: `(k,)`. rest: bound on every eigenvalue not among `values` (NaN: unknown).
        floor: rounding error of the products, absolute. wanted: `(k,)` bool, the entries that count.

    Returns:
        `(k,)` bounds.
    """
    coupling = jnp.linalg.norm(jnp.where(wanted, residuals, 0))
    other = wanted[None, :] & ~jnp.eye(values.size, dtype=bool)
    apart = jnp.where(other, jnp.abs(values[:, None] - values[None, :]), jnp.inf)
    gap = jnp.minimum(jnp.min(apart, axis=1), jnp.abs(values - rest)) - coupling
    tight = (gap > coupling) & (values > rest)
    return jnp.where(tight, residuals**2 / jnp.where(tight, gap, 1.0), residuals) + floor
