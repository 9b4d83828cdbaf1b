"""How long parts of a solve take on this machine, from shapes and two measured rates: what `fj.Auto` chooses by.

Costs are in operations of a large matrix product. The rate of these, and that of reading from memory, are measured once per
process.
"""

import time
from functools import cache, lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from fisher_jax import _checks, linalg
from fisher_jax.factor import Factor
from fisher_jax.kernels import PASS, PASS_ELSEWHERE, layout
from fisher_jax.operators import LinearOperator, MatrixOperator, SparseOperator, apply
from fisher_jax.structured import counts, product_operations

# Where several processes have to come to the same decision, none measures.
NOMINAL_RATE = 1e11
# Diagonalizing with vectors: operations over n³ of a matrix product that takes as long (a CPU, timed), with one LAPACK
# thread and with all; and seconds for small n.
EIGH_ONE, EIGH_ALL, EIGH_LEAST = 25.0, 15.0, 3e-4
# QR of k vectors of length n, over n k²: LAPACK goes through memory for it.
ORTHONORMAL = 100.0
# Tiles of K reach half the rate of a large product (`benchmarks/gram.py`).
TILED = 2.0
# Numbers moved for each entry of a sparse matrix and column.
GATHER = 4.0


@cache
def matmul_rate(precision: str = "highest") -> float:
    """Operations per second of a float32 matrix product of 2048 rows on the default device; `precision` as in JAX."""
    return NOMINAL_RATE if jax.process_count() > 1 else 2 * 2048**3 / _shortest(2048, 2048, precision)


@cache
def pass_cost() -> float:
    """Operations of a matrix product that take as long as to read one number from memory, as products with vectors do."""
    if jax.process_count() > 1:
        return PASS.get(jax.default_backend(), PASS_ELSEWHERE)
    return matmul_rate() * _shortest(4096, 1, "highest") / 4096**2


def _shortest(n: int, columns: int, precision: str) -> float:
    """Seconds of a product of an (n, n) matrix with so many columns."""
    with jax.ensure_compile_time_eval(), jax.default_matmul_precision(precision):
        a, v = jnp.ones((n, n), jnp.float32), jnp.ones((n, columns), jnp.float32)
        multiply = jax.jit(jnp.matmul)
        jax.block_until_ready(multiply(a, v))
        times = []
        for _ in range(3):
            began = time.perf_counter()
            jax.block_until_ready(multiply(a, v))
            times.append(time.perf_counter() - began)
    return min(times)


def seconds(operations: float) -> float:
    return operations / matmul_rate()


def eigh_seconds(n: int) -> float:
    return EIGH_LEAST + seconds((EIGH_ONE if n < linalg.THREADED else EIGH_ALL) * float(n) ** 3)


def product_seconds(operator: LinearOperator, columns: int, products: float) -> float:
    """Of one product with `columns` vectors, on average over so many products of single vectors.

    Known for explicit matrices and for factors of a network; measured otherwise, which compiles what a solve needs anyway.
    """
    wide = jnp.dtype(operator.dtype).itemsize / 4  # float64 takes twice the bytes, and operations at half the rate
    if isinstance(operator, MatrixOperator):
        return seconds(wide * float(operator.size) ** 2 * max(pass_cost(), 2.0 * columns))
    if isinstance(operator, SparseOperator):
        return seconds(wide * GATHER * pass_cost() * operator.entries.size * columns)
    factor = getattr(operator, "factor", None)
    if isinstance(factor, Factor):
        plain, kept, made = product_operations(factor, columns)
        return seconds(wide * columns * min(plain, kept + made / products))
    if _checks.traced(operator) or jax.process_count() > 1:
        return seconds(wide * 4 * pass_cost() * operator.size * columns)
    V = jnp.ones((operator.size, columns), operator.dtype)
    jax.block_until_ready(apply(operator, V))
    began = time.perf_counter()
    jax.block_until_ready(apply(operator, V))
    return time.perf_counter() - began


def gram_seconds(factor: Factor) -> float:
    """Of building the dual matrix K from the layers."""
    leaves, structure = jax.tree.flatten(factor)
    return seconds(TILED * _gram_operations(structure, tuple((a.shape, a.dtype) for a in leaves)))


@lru_cache(maxsize=128)
def _gram_operations(structure: Any, shapes: tuple[Any, ...]) -> float:
    factor = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*s) for s in shapes])
    chosen = layout(factor, (0,) * len(factor.jacobian.network.params))
    _, passes, _ = counts(factor)
    made = factor.jacobian.data.samples * (factor.rows_per_sample + 1) * 2 * passes
    return made + sum(k.cost for k in chosen.kernels)


def primal_seconds(factor: Factor) -> float:
    """Of building F from explicit per-sample gradients."""
    rows, size = factor.shape
    _, passes, _ = counts(factor)
    made = factor.jacobian.data.samples * (factor.rows_per_sample + 1) * 2 * passes
    return seconds(made + rows * float(size) ** 2 + 2 * pass_cost() * rows * float(size))
