"""Single-pass sketch: the largest eigenvalues of a matrix that is a mean over data which can be read only once.

Each batch is multiplied by the same random vectors, and the products are averaged: F is linear in the samples. At the end,
Nyström's approximation comes from the first r vectors, and its error from the others, which the approximation has not seen:
an eigenvector u of E = F − F̂ with eigenvalue ±‖E‖ has

    ‖E‖ ‖Ψᵀ u‖ = ‖(E Ψ)ᵀ u‖ <= ‖E Ψ‖,    ‖Ψᵀ u‖² ~ χ² with as many degrees of freedom as test vectors Ψ

Reference: Tropp, Yurtsever, Udell and Cevher, NeurIPS 2017 (fixed-rank approximation of a streamed matrix). The error bound
is derived and checked; with many test vectors it is sharper than that from the longest column of E Ψ (Halko, Martinsson and
Tropp, SIAM Review 53(2), 2011, lemma 4.1).
"""

import dataclasses
import math
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import _checks, linalg
from fisher_jax._record import record, static
from fisher_jax.linalg import inner
from fisher_jax.operators import as_operator
from fisher_jax.results import EigenResult, provenance, register
from fisher_jax.solvers.nystrom import approximate, check_products, multiply, require_psd
from fisher_jax.solvers.unseen import FAILURE

Array = jax.Array

# The product of the first vector times a number that is no power of two rounds differently everywhere.
_ALPHA = 0.7390851332151607


@record
class Sketch:
    """What one pass over the data leaves of a positive semidefinite matrix: its products with random vectors.

        sketch = fj.Sketch(F.size, 50, key=key)
        for x in batches:
            sketch = sketch.add(fj.fisher(model, x, likelihood), weight=len(x))
        top = sketch.eigsh(10)

    Sketches of parts of the data, made with the same key, add up: `sketch + other`. Where the spectrum decays slowly, as it
    does at initialization, the error of all values at once is that of the many left out: raise rank, or `tol` of `eigsh`.

    Args:
        size: rows of the matrix, P.
        rank: of the approximation, r. Memory: 3 (r + tests) vectors while adding.
        key: JAX random key.
        tests: vectors kept for the error bound, which grows like ‖E‖_F / √tests where many eigenvalues are left out.
    """

    size: int = static()
    rank: int = static()
    key: Any
    tests: int = static(default=30)
    images: Any = None  # (r + tests + 1, P) mean products with the random vectors, rows; None before the first batch
    weight: float = 0.0  # of all batches
    products: int = 0

    def __post_init__(self) -> None:
        for name, least in (("size", 2), ("rank", 2), ("tests", 5)):
            _checks.integer("Sketch", name, getattr(self, name), least)
        if self.rank + self.tests > self.size:
            raise _checks.fail(
                "Sketch",
                f"rank={self.rank} and tests={self.tests} exceed size {self.size}",
                "add the matrices themselves, and use fj.eigsh",
            )
        key = self.key
        if not isinstance(key, (jax.Array, np.ndarray)):
            raise _checks.fail("Sketch", f"key={key!r} is not a JAX random key", "give key=jax.random.key(seed)")
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            # Two words are a key that is saved with the rest.
            object.__setattr__(self, "key", jax.random.bits(key, (2,), jnp.uint32))

    def __repr__(self) -> str:
        what = f"size {self.size}, rank {self.rank}, {self.tests} tests"
        return f"Sketch: {what}, weight {self.weight:g}, {self.products} products"

    def add(self, operator: Any, *, weight: float) -> "Sketch":
        """The sketch with one more batch.

        Args:
            operator: of the batch, `fj.fisher(...)`: a mean over its samples.
            weight: of the batch, its number of samples (or the sum of their weights).

        Raises:
            ArgumentError: another size or type than before, an operator that is not positive semidefinite or returns NaN.
        """
        where = "Sketch.add"
        operator, weight = as_operator(where, operator), _checks.positive(where, "weight", weight)
        require_psd(where, operator)
        if operator.size != self.size:
            raise _checks.fail(where, f"operator has size {operator.size}, not {self.size}", "give batches of one model")
        if self.images is not None and self.images.dtype != operator.dtype:
            raise _checks.fail(where, f"operator is {operator.dtype}, not {self.images.dtype}", "give batches of one type")
        vectors = _vectors(self.key, self.rank, self.tests, self.size, jnp.dtype(operator.dtype).name)
        images = multiply(operator.prepared(len(vectors), len(vectors)), vectors)
        if not bool(jnp.isfinite(jnp.sum(images * linalg.power_of_two(images)))):
            raise _checks.fail(where, "the operator returned NaN or infinity", "check the weights, the data and the scale")
        return dataclasses.replace(
            self,
            images=_mean(self.images, self.weight, images, weight),
            weight=self.weight + weight,
            products=self.products + images.shape[0],
        )

    def __add__(self, other: "Sketch") -> "Sketch":
        """Sketches of two parts of the data, made with the same key."""
        same = all(getattr(self, name) == getattr(other, name) for name in ("size", "rank", "tests"))
        if not same or not np.array_equal(self.key, other.key):
            raise _checks.fail("Sketch", f"{self!r} and {other!r} have different random vectors", "make both with one key")
        if self.images is None or other.images is None:
            return other if self.images is None else self
        return dataclasses.replace(
            self,
            images=_mean(self.images, self.weight, other.images, other.weight),
            weight=self.weight + other.weight,
            products=self.products + other.products,
        )

    def eigsh(self, k: int, *, tol: float = 0.1) -> EigenResult:
        """The k largest eigenvalues that the sketch knows, each with `value <= λ <= value + bound`, but for rounding.

        Nothing more is multiplied: `residuals` are not measured but the bound on ‖F − F̂‖, which holds for all at once with
        the failure probability in `info`. True ones are mostly far smaller, for eigenvalues above the bulk.

        Args:
            k: how many, below the rank.
            tol: the largest bound over λ_max with which values are given; beyond, all are NaN, and a warning says so.

        Raises:
            ArgumentError: nothing was added, k is not below the rank, the batches were not symmetric.
        """
        where = "Sketch.eigsh"
        k = _checks.integer(where, "k", k, 1, self.rank - 1, f"make the sketch with rank > {k}")
        tol = _checks.positive(where, "tol", tol)
        if self.images is None:
            raise _checks.fail(where, "the sketch is empty", "add batches first")
        dtype = self.images.dtype
        vectors = _vectors(self.key, self.rank, self.tests, self.size, dtype.name)
        values, rows, noise, unit, left, skew, lowest = _read(vectors, self.images, self.rank)
        check_products(self, values, skew, lowest, noise)
        error = left / _least(self.tests)
        norm, floor = values[0], noise * values[0]
        converged = jnp.full(k, error <= tol * norm + floor)
        if not bool(converged.all()):
            warnings.warn(
                f"Sketch.eigsh: the error may be {float(error / norm):.2g} λ_max, values are NaN; raise rank, tests or tol",
                stacklevel=2,
            )

        def given(a: Array) -> Array:
            return jnp.where(converged.reshape(-1, *[1] * (a.ndim - 1)), a, jnp.nan)

        return EigenResult(
            values=unit * given(values[:k]),
            vectors=given(rows[:k]).T,
            residuals=unit * jnp.full(k, error),
            bounds=unit * given(jnp.full(k, error + floor)),
            converged=converged,
            matvecs=jnp.asarray(self.products),
            floor=unit * floor,
            tol=jnp.maximum(jnp.asarray(tol, dtype), noise),
            # Of all if none is given.
            complete_above=unit * (jnp.where(converged[0], values[k], values[0]) + error + floor),
            method=f"Sketch of rank {self.rank}, {self.tests} tests",
            info=provenance(
                dtype=dtype,
                key=self.key,
                size=self.size,
                weight=self.weight,
                failure_probability=FAILURE,
                note="residuals are a bound from test vectors, not measured",
            ),
        )


register(Sketch)


def _vectors(key: Any, rank: int, tests: int, size: int, dtype: str) -> Array:
    """Normal random vectors of length about one, rows; the last is a multiple of the first."""
    return _draw(jnp.asarray(key), (rank + tests, size), dtype)


@partial(linalg.precise_jit, static_argnums=(1, 2))
def _draw(key: Array, shape: tuple[int, int], dtype: str) -> Array:
    key = jax.random.wrap_key_data(key, impl="threefry2x32")
    rows = jax.random.normal(key, shape, dtype) / math.sqrt(shape[1])
    return jnp.concatenate([rows, _ALPHA * rows[:1]])


def _mean(a: Any, first: float, b: Array, second: float) -> Array:
    return b if a is None else a + (b - a) * jnp.asarray(second / (first + second), b.dtype)


@partial(linalg.precise_jit, static_argnums=2)
def _read(vectors: Array, images: Array, rank: int) -> tuple[Array, ...]:
    """(eigenvalues and eigenvectors of F̂, relative rounding error, unit of the values, ‖E Ψ‖, skew, lowest eigenvalue)."""
    scale = linalg.power_of_two(images)
    images = images * scale
    defect = jnp.linalg.norm(images[0] - images[-1] / _ALPHA)
    length = jnp.linalg.norm(images[0])
    noise = 4 * jnp.maximum(defect / jnp.maximum(length, jnp.finfo(length.dtype).tiny), linalg.eps(length.dtype))
    values, rows, skew, lowest = approximate(vectors[:rank], images[:rank], noise)
    tests, tested = vectors[rank:-1], images[rank:-1]
    left = (tested - (inner(tests, rows) * values[None]) @ rows) * math.sqrt(vectors.shape[1])
    most = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(inner(left, left))[-1], 0))
    return values, rows, noise, 1 / scale, most, skew, lowest


def _least(tests: int) -> float:
    """Below this the norm of a standard normal vector with so many entries lies with probability FAILURE."""
    from scipy.special import gammaincinv

    return math.sqrt(2 * gammaincinv(tests / 2, FAILURE))
