"""What all trace estimators share: products with random vectors, the interval, growth until the interval is narrow.

Every method averages numbers of the form `known part + xᵀ R x` with Gaussian x and a symmetric remainder R: M itself for
Hutchinson, what a sketch has not captured for the others. Their variance is 2 ‖R‖_F², and `R x`, which is at hand, tells
‖R‖_F² without looking at how the numbers scatter.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import chdtri

from fisher_jax import _checks, linalg
from fisher_jax.estimates import Estimate
from fisher_jax.operators import LinearOperator
from fisher_jax.results import provenance
from fisher_jax.solvers.base import HostLoop, Progress, Reporter, apply_rows, smaller_side
from fisher_jax.traces.exact import ROUNDING, ExactTrace

Array = jax.Array

# Vectors multiplied at once: on a CPU they pass one by one in any case.
BLOCK = {"cpu": 8}
# Share of the failure probability that the quantiles use; the rest is for the variance, which is itself estimated. With all
# of it, too few of the intervals of few probes hold (tested).
SHARE = 0.5


class Sums(NamedTuple):
    """What the numbers of a method, in all `count` of them, say about the trace; in units of the scale."""

    value: Array  # () their mean
    square: Array  # () estimate of ‖R‖_F²
    fourth: Array  # () estimate of tr R⁴
    jackknife: Array  # () variance of the mean where the numbers share vectors, else zero


def check_options(method: Any, name: str, least: int) -> None:
    """The number of products and the tolerance of a method."""
    where = type(method).__name__
    _checks.integer(where, name, getattr(method, name), least)
    if method.tol is not None:
        _checks.positive(where, "tol", method.tol)


class Sampler(Protocol):
    """A method that grows: `grow` adds products up to a total, `sums` evaluates what there is."""

    @property
    def tol(self) -> float | None: ...

    def grow(self, source: "Source", state: Any, products: int) -> Any: ...

    def sums(self, operator: LinearOperator, state: Any) -> tuple[Sums, int]:
        """(Sums, count)"""
        ...


# --- random vectors and their products --------------------------------------------------------------------------------


class Source:
    """Products of an operator with rows, scaled to a norm near one; row i depends on the key and i only."""

    def __init__(self, operator: LinearOperator, key: Array, progress: Reporter | None):
        # Some dozens of products is what most estimates take.
        self.operator, self.side = operator, smaller_side(operator.prepared(BLOCK.get(jax.default_backend(), 32), 50))
        self.key, self.progress = key, progress
        self.scale: Array | None = None
        self.products, self.width = 0, float("nan")
        self.zero = False

    def probes(self, key: Array, first: int, last: int) -> Array:
        """Gaussian rows first … last − 1, `(last − first, n)`."""
        return _normal(key, jnp.arange(first, last, dtype=jnp.uint32), self.side.size, jnp.dtype(self.side.dtype).name)

    def times(self, rows: Array) -> Array:
        """`M` on rows `(k, n)`, times the scale."""
        if not rows.shape[0]:
            return rows
        block, images = BLOCK.get(jax.default_backend(), 32), []
        for first in range(0, rows.shape[0], block):
            part = rows[first : first + block]
            image = apply_rows(self.side, part, block)
            if image.shape != part.shape:
                raise _checks.fail("trace", f"function maps {part.T.shape} to {image.T.shape}", "map (n, k) to (n, k)")
            if self.scale is None:
                self.scale = linalg.power_of_two(image)
                self._check_symmetry(part, image * self.scale)
            images.append(image * self.scale)
            self.products += part.shape[0]
            if self.progress is not None:
                self.progress(Progress(self.products, 0, 1, self.width, "estimating the trace"))
        images = jnp.concatenate(images)
        if not bool(jnp.isfinite(images).all()):
            raise _checks.fail(
                "trace", f"{self.operator!r} returned NaN or infinity", "check the weights, the data and the scale"
            )
        return images

    def _check_symmetry(self, rows: Array, images: Array) -> None:
        skew, size, largest = (float(a) for a in _skew(rows, images))
        self.zero = largest == 0
        if skew > 1e3 * linalg.eps(rows.dtype) * size:
            raise _checks.fail(
                "trace",
                f"{self.operator!r} is not symmetric: u·M v and v·M u differ by {skew / size:.1e} |u| |M v|",
                "give a product with a symmetric matrix, such as (M + Mᵀ)/2",
            )


@partial(jax.jit, static_argnums=(2, 3))
def _normal(key: Array, indices: Array, n: int, dtype: str) -> Array:
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (n,), dtype))(indices)


@linalg.precise_jit
def _skew(rows: Array, images: Array) -> tuple[Array, Array, Array]:
    G = linalg.inner(rows, images)
    size = jnp.max(jnp.linalg.norm(rows, axis=1)) * jnp.max(jnp.linalg.norm(images, axis=1))
    return jnp.max(jnp.abs(G - G.T)), size, jnp.max(jnp.abs(images))


def orthonormal(Q: Array, rows: Array) -> Array:
    """Q `(j, n)`, orthonormal, continued by rows `(k, n)` orthogonalized one after another: `(j + k, n)`.

    Three passes: where a row lies in the span of the others but for rounding, the third makes that rounding orthogonal.
    """
    return _orthonormal(jnp.pad(Q, ((0, rows.shape[0]), (0, 0))), rows, Q.shape[0]) if rows.shape[0] else Q


@partial(linalg.precise_jit, static_argnums=2)
def _orthonormal(Q: Array, rows: Array, j: int) -> Array:
    def unit(w: Array) -> Array:
        return w / jnp.maximum(jnp.linalg.norm(w), jnp.finfo(w.dtype).tiny)

    def add(i: Any, Q: Array) -> Array:
        w = unit(rows[i])
        for _ in range(3):
            w = unit(w - linalg.inner(w[None], Q)[0] @ Q)
        return Q.at[j + i].set(w)

    return jax.lax.fori_loop(0, rows.shape[0], add, Q)


def sketch(rows: Array, images: Array) -> Array:
    """Rows that span the sketch: the images, and of the rows as much as rounding, so that no image vanishes."""
    lengths = jnp.linalg.norm(images, axis=1, keepdims=True) / jnp.sqrt(jnp.asarray(rows.shape[1], rows.dtype))
    return images + jnp.asarray(linalg.eps(rows.dtype), rows.dtype) * lengths * rows


def fourth_moment(gram: Array) -> Array:
    """Estimate of tr S² from the Gram matrix `G = X S Xᵀ` of m Gaussian rows, unbiased; derived.

    E‖G‖_F² = m (tr S)² + m (m + 1) tr S² and E (tr G)² = m² (tr S)² + 2 m tr S². Zero for m = 1, which tells nothing.
    """
    m = gram.shape[0]
    return (jnp.sum(gram**2) - jnp.trace(gram) ** 2 / m) / max((m - 1) * (m + 2), 1)


def jackknife(without: Array) -> Array:
    """Variance of a mean over m vectors, from its values without each of them.

    Entry [i, j] of `without` `(m, m)` is the number of vector j with neither i nor j in the sketch; the diagonal is free.
    """
    m = without.shape[0]
    means = jnp.sum(jnp.where(jnp.eye(m, dtype=bool), 0, without), axis=1) / max(m - 1, 1)
    return jnp.sum((means - jnp.mean(means)) ** 2)


# --- the interval -----------------------------------------------------------------------------------------------------


def interval(sums: Sums, count: int, psd: bool, confidence: float) -> tuple[Any, Any, Any]:
    """(lower, upper, standard error), without rounding.

    `xᵀ R x = Σ λ_j z_j²` is skewed where few eigenvalues dominate. With f = (tr R²)² / tr R⁴, the number of equal ones that
    would dominate alike, the mean u of m f squared normal numbers stands for both the value and its estimated variance:

        (u − 1) √(m f / 2) / √u     the quantiles that Student's would be for f → ∞

    It is exact for a single eigenvalue and for many. The skewness of an indefinite R may have either sign: the longer side
    is taken for both. Where the numbers share vectors, the jackknife is the variance if it is larger: its expectation is no
    smaller than the true variance of a mean over one vector less (Efron and Stein, Ann. Stat. 9(3), 1981).
    Derived; the coverage is tested on spectra of all kinds.
    """
    value, square, fourth, shared = (np.asarray(a, np.float64) for a in sums)
    miss = SHARE * (1 - confidence) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        f = np.where(fourth > 0, (square**2 - 2 * fourth / count) / fourth, np.inf)
    # One or two numbers do not tell f: the shorter side is that of many eigenvalues, the longer that of one.
    least, most = (f, f) if count > 2 else (np.ones_like(f), np.full_like(f, np.inf))
    below, above = _quantile(most, count, miss), -_quantile(least, count, 1 - miss)
    if not psd:
        below = above = np.maximum(below, above)
    error = np.sqrt(np.maximum(2 * square / count, shared))
    lower = value - below * error
    return np.maximum(lower, 0) if psd else lower, value + above * error, error


def _quantile(f: np.ndarray, count: int, tail: float) -> np.ndarray:
    """(u − 1) √(m f / 2) / √u for the u that is exceeded with probability `tail`."""
    freedom = np.clip(count * np.clip(f, 1, None), 1, 1e6)
    u = chdtri(freedom, tail) / freedom
    return (u - 1) * np.sqrt(freedom / 2) / np.sqrt(u)


# --- the run ----------------------------------------------------------------------------------------------------------


def drive(
    method: Sampler, operator: LinearOperator, cap: int, start: int, *, key: Array, confidence: float, progress: Any
) -> Estimate:
    """Grow by about half at a time, from `start` products to `cap` or to the tolerance; exact where that costs no more.

    Without a tolerance, too, products come in stages: Ctrl-C leaves what these have.
    """
    source = Source(operator, key, progress)
    n = source.side.size
    if method.tol is None and cap >= n:
        return ExactTrace().estimate(operator)
    state, done = None, 0
    with HostLoop() as interrupt:
        while True:
            done = min(cap, done + max(start, done // 2 // start * start))
            if done >= n:
                exact = ExactTrace().estimate(operator)
                return dataclasses.replace(exact, products=source.products + exact.products)
            state = method.grow(source, state, done)
            last = done == cap or interrupt.asked or source.zero
            if last or method.tol is not None:
                made = _evaluate(method, source, state, confidence)
                if last or source.width <= method.tol:  # type: ignore[operator]
                    break
    note = {"note": "interrupted: from the products until then"} if interrupt.asked and done < cap else {}
    side = "operator" if source.side is operator else "dual"
    return dataclasses.replace(made, info=provenance(key, operator.dtype, size=operator.size, side=side, **note))


def _evaluate(method: Sampler, source: Source, state: Any, confidence: float) -> Estimate:
    """The estimate in units of the operator; `source.width` becomes the half width of its interval over the value."""
    sums, count = method.sums(source.operator, state)
    lower, upper, error = (float(a) for a in interval(sums, count, source.operator.psd, confidence))
    value, unit = float(sums.value), 1 / float(source.scale)  # type: ignore[arg-type]
    rounding = ROUNDING * linalg.eps(source.side.dtype) * max(abs(value), error)
    if source.zero:
        value = lower = upper = error = rounding = 0.0
    lower, upper = lower - rounding, upper + rounding
    source.width = (upper - lower) / 2 / abs(value) if value else float("inf")
    return Estimate(unit * value, unit * lower, unit * upper, unit * error, source.products, confidence, method=repr(method))
