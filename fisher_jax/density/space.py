"""What is probed: the smaller side of an operator, without known eigenvectors and without what is zero for certain."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import _checks, linalg
from fisher_jax._record import record, static
from fisher_jax.factor import Factor, scaled
from fisher_jax.fisher import DualOperator, FisherOperator
from fisher_jax.operators import FunctionOperator, LinearOperator, MatrixOperator, ScaledOperator
from fisher_jax.results import EigenResult
from fisher_jax.solvers.base import apply_rows, smaller_side
from fisher_jax.solvers.lifting import from_dual
from fisher_jax.solvers.start import measure
from fisher_jax.structured import StructuredOperator

Array = jax.Array
Reporter = Callable[[int, int], None]

# Of a `top` that belongs to the operator, measured residuals are at most so many times those that it says.
FOREIGN = 10


@record
class Range:
    """The orthogonal complement of the null space of the dual `A Aᵀ` that is known in advance."""

    kept: Array  # (n,) 1 or 0: rows of samples that have weight
    null: Array | None  # (n,) the null vectors of the output Fisher matrices, one after the other
    groups: Array | None  # (n,) which of them a row belongs to
    centre: Array | None  # (n,) what centring projects out
    dimension: int = static()
    vectors: int = static()  # null vectors, or none

    def project(self, rows: Array) -> Array:
        rows = rows * self.kept[None]
        if self.centre is not None:
            rows = rows - jnp.outer(rows @ self.centre, self.centre)
        if self.null is None or self.groups is None:
            return rows
        along = jax.ops.segment_sum((rows * self.null[None]).T, self.groups, self.vectors)
        return rows - self.null[None] * along[self.groups].T


def known_range(factor: Factor) -> Range:
    """Samples and tokens without weight, the null vector √p of softmax, and the mean of centred gradients are no rows."""
    kept, null = (np.asarray(a) for a in _rows(factor))
    samples, each = factor.jacobian.data.samples, factor.rows_per_sample
    active = int(np.count_nonzero(kept))
    if factor.jacobian.data.labels is not None or not factor.likelihood.null_dimensions:
        return Range(jnp.asarray(kept), None, None, factor.centre, dimension=active - (factor.centre is not None), vectors=0)
    # Output vectors lie along the last axis of each output.
    lengths = [n for s in factor.jacobian.space.shapes for n in [s[-1]] * math.prod(s[:-1])]
    within = np.repeat(np.arange(len(lengths)), lengths)
    groups = (np.arange(samples)[:, None] * len(lengths) + within[None]).reshape(samples * each)
    lost = np.unique(groups[(kept > 0) & (null != 0)]).size
    vectors = samples * len(lengths)
    return Range(
        jnp.asarray(kept), jnp.asarray(null), jnp.asarray(groups, jnp.int32), None, dimension=active - lost, vectors=vectors
    )


@linalg.precise_jit
def _rows(factor: Factor) -> tuple[Array, Array]:
    """(1 where a row of A has weight, null vectors of B), both `(rows,)`."""
    data, network, space = factor.jacobian.data, factor.jacobian.network, factor.jacobian.space

    def one(chunk: Any) -> tuple[Array, Array]:
        z = network(network.params, chunk.x)
        if chunk.labels is not None:
            weight = jnp.max(chunk.scale.reshape(chunk.scale.shape[0], -1), axis=1, keepdims=True)
            kept = jnp.broadcast_to(weight != 0, (weight.shape[0], factor.rows_per_sample))
            return kept.astype(factor.dtype), jnp.zeros(kept.shape, factor.dtype)
        weight = space.flatten(scaled(jax.tree.map(jnp.ones_like, z), chunk.scale))
        return (weight != 0).astype(factor.dtype), space.flatten(factor.likelihood.null(z))

    kept, null = jax.lax.map(one, data)
    return data.rows(kept), data.rows(null)


@record
class Space:
    """The operator near norm one, the directions left to probe, and what is known of the others."""

    side: ScaledOperator
    range: Range | None
    deflated: Array  # (k, n) orthonormal rows
    atoms: Array  # (k,) their eigenvalues
    bounds: Array  # (k,) absolute bound on the error of each
    noise: float  # rounding error of a product relative to its result, for a random vector
    leak: float  # Σ |λᵢ − μᵢ| over all eigenvalues is at most this if those of the compressed operator are μᵢ
    size: int  # of the operator as given
    dimension: int  # that are probed
    hidden: int  # eigenvalues in these that are zero for certain
    spent: int  # products so far
    dual: bool

    def probes(self, key: Array, count: int) -> Array:
        """Gaussian vectors in the probed directions, rows `(count, n)`; row i depends on the key and i alone."""
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
        return _inside(jax.vmap(lambda k: jax.random.normal(k, (self.side.size,), self.side.dtype))(keys), self)

    def product(self, rows: Array) -> Array:
        """The scaled operator on rows `(k, n)` that lie in the probed directions, and only what stays in them."""
        # Networks take the columns of a block in a loop, which on a CPU is slow at convolutions.
        explicit = isinstance(self.side.operator, (MatrixOperator, FunctionOperator, StructuredOperator))
        block = 1 if linalg.loops_are_slow() and not explicit else rows.shape[0]
        return _without(apply_rows(self.side, rows, block), self.deflated)

    def unscaled(self, values: Any) -> np.ndarray:
        return np.asarray(values, np.float64) / float(self.side.scale)


@linalg.precise_jit
def _inside(rows: Array, space: Space) -> Array:
    rows = rows if space.range is None else space.range.project(rows)
    return _without(rows, space.deflated)


@linalg.precise_jit
def _without(rows: Array, deflated: Array) -> Array:
    if not deflated.shape[0]:
        return rows
    for _ in range(2):
        rows = rows - linalg.inner(rows, deflated) @ deflated
    return rows


def space(operator: LinearOperator, top: EigenResult | None, key: Array) -> Space:
    """Measure the scale and rounding error of the operator; find what need not be probed."""
    side = smaller_side(operator)
    z = jax.random.normal(jax.random.fold_in(key, 2**31 - 1), (1, side.size), side.dtype)
    _, noise, scale = measure("density", side, z)
    near_one = ScaledOperator(side.prepared(8, 500), scale)
    known = known_range(side.factor) if isinstance(side, DualOperator) else None
    dimension = side.size if known is None else known.dimension
    deflated, atoms, bounds, leak = _deflate(operator, side, near_one, known, top)
    k = deflated.shape[0]
    # Rank that shapes, weights and the likelihood allow.
    rank = dimension
    if isinstance(operator, (FisherOperator, DualOperator)):
        rank = min(dimension, operator.factor.rank_bound())
    return Space(
        near_one,
        known,
        deflated,
        atoms,
        bounds,
        noise=float(noise),
        leak=leak,
        size=operator.size,
        dimension=max(0, dimension - k),
        hidden=max(0, dimension - max(rank, k)),
        spent=2 + k,
        dual=side is not operator,
    )


def _deflate(
    operator: LinearOperator, side: LinearOperator, near_one: ScaledOperator, known: Range | None, top: EigenResult | None
) -> tuple[Array, Array, Array, float]:
    """(orthonormal rows, eigenvalues, their bounds, what the residuals of the rows can move the other eigenvalues by).

    With U exact eigenvectors the rest of the spectrum is that of `(1 − Uᵀ U) M (1 − Uᵀ U)`. With residuals `R = M Uᵀ −
    Uᵀ U M Uᵀ` the difference of the two matrices has nuclear norm at most `2 √k ‖R‖`, which bounds `Σ |λᵢ − μᵢ|` (Mirsky).
    """
    none = jnp.zeros((0, side.size), side.dtype), jnp.zeros(0, side.dtype), jnp.zeros(0, side.dtype), 0.0
    if top is None:
        return none
    # What is zero to rounding has no image in the dual, and is no outlier.
    index = np.flatnonzero(np.asarray(top.converged & (jnp.abs(top.values) > 10 * top.floor)))
    if not index.size:
        return none
    rows = jnp.asarray(top.vectors[:, index].T, side.dtype)
    if side is not operator:
        rows = apply_rows(side, rows, 1, from_dual)
        rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    if known is not None:
        rows = known.project(rows)
    for _ in range(2):  # Cholesky QR: the vectors are orthogonal to begin with, but for the lifting
        gram = np.asarray(linalg.inner(rows, rows), np.float64)
        rows = jnp.asarray(np.linalg.inv(np.linalg.cholesky(gram)), side.dtype) @ rows
    images = apply_rows(near_one, rows, 1)
    size = float(jnp.linalg.norm(_without(images, rows))) / float(near_one.scale)
    values, bounds = top.values[index], top.bounds[index]
    off = float(jnp.max(jnp.abs(jnp.sum(rows * images, axis=1) / near_one.scale - values)))
    # Their own residuals and bounds say how far products of the same matrix can be off.
    own = FOREIGN * float(jnp.max(top.residuals[index]) + jnp.max(bounds) + top.floor)
    if not max(size, off) <= own:
        raise _checks.fail(
            "density", f"top has residuals of {max(size, off):.2g} with this operator", "give fj.eigsh of the same operator"
        )
    return rows, values, bounds, 2 * index.size**0.5 * size
