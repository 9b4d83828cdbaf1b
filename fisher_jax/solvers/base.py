"""What all eigensolvers share: the finish that turns approximate eigenvectors into a certified result."""

import dataclasses
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fisher_jax import _checks, linalg
from fisher_jax.operators import LinearOperator, apply
from fisher_jax.results import EigenResult
from fisher_jax.structured import StructuredOperator

Array = jax.Array


class Progress(NamedTuple):
    """State of a running solve, handed to a progress callback."""

    products: int
    converged: int
    wanted: int
    worst: float  # largest residual estimate among the wanted pairs, relative to λ_max
    phase: str


Reporter = Callable[[Progress], None]


def check_symmetry(where: str, operator: Any, skew: float, most: float) -> None:
    """Refuse an operator whose products show it not to be symmetric; `skew` and `most` are relative to ‖M‖."""
    if skew > most:
        raise _checks.fail(
            where,
            f"{operator!r} is not symmetric: u·M v and v·M u differ by {skew:.1e} ‖M‖",
            "give a product with a symmetric matrix, such as (M + Mᵀ)/2",
        )


def apply_rows(operator: Any, rows: Array, block: int, compiled: Any = apply) -> Array:
    """`M` on the rows of `(k, n)`, `block` at a time through the compiled product."""
    k = rows.shape[0]
    padded = jnp.pad(rows, ((0, -k % block), (0, 0))).reshape(-1, block, rows.shape[1])
    if _checks.traced((operator, rows)):
        products = jax.lax.map(lambda Q: compiled(operator, Q.T).T, padded)
        return products.reshape(-1, products.shape[-1])[:k]
    # One at a time: several programs with collectives in flight can starve each other of threads on virtual CPU devices.
    images = None
    for i in range(len(padded)):
        image = jax.block_until_ready(compiled(operator, _pick(padded, i)).T)
        images = jnp.zeros((len(padded), *image.shape), image.dtype) if images is None else images
        images = _place(images, image, i)
    return rows[:0] if images is None else images.reshape(-1, images.shape[-1])[:k]


@jax.jit
def _pick(blocks: Array, i: Any) -> Array:
    return jax.lax.dynamic_index_in_dim(blocks, i, keepdims=False).T


@partial(jax.jit, donate_argnums=0)
def _place(images: Array, image: Array, i: Any) -> Array:
    return jax.lax.dynamic_update_index_in_dim(images, image, i, 0)


def features(operator: LinearOperator) -> dict[str, str]:
    """For the provenance of a result: were products taken from kept layer inputs and cotangents?"""
    return {"features": "kept"} if isinstance(operator, StructuredOperator) else {}


def smaller_side(operator: LinearOperator) -> LinearOperator:
    """The dual of a factored operator where that is smaller, else the operator itself."""
    dual = operator.dual
    return dual if dual is not None and dual.size < operator.size else operator


def keep_above(result: EigenResult, above: Any) -> EigenResult:
    """Only the values that may be above a threshold, given their bounds; others are dropped, or NaN inside jit."""
    kept = (result.values + result.bounds > above) & result.converged
    dropped = jnp.max(jnp.where(result.converged & ~kept, result.values + result.bounds, -jnp.inf))
    result = dataclasses.replace(result, complete_above=jnp.maximum(result.complete_above, dropped))
    if _checks.traced(result):
        mark = jnp.where(kept, 1.0, jnp.nan).astype(result.values.dtype)
        fields = {name: getattr(result, name) * mark for name in ("values", "bounds", "vectors")}
        return dataclasses.replace(result, converged=kept, **fields)
    index = jnp.flatnonzero(kept)
    fields = {name: getattr(result, name)[index] for name in ("values", "bounds", "residuals", "converged")}
    return dataclasses.replace(result, vectors=result.vectors[:, index], **fields)


@linalg.precise_jit
def measured(vectors: Array, products: Array) -> tuple[Array, Array]:
    """Rayleigh quotients and residual norms of rows `(k, n)` given their products with M."""
    squares = jnp.sum(vectors**2, axis=1)
    values = jnp.sum(vectors * products, axis=1) / squares
    return values, jnp.linalg.norm(products - values[:, None] * vectors, axis=1) / jnp.sqrt(squares)


def certify(
    operator: LinearOperator,
    vectors: Array,
    values: Array,
    residuals: Array,
    norm: Array,
    relative_floor: Array,
    tol: Any,
    rest: Array,
    matvecs: Any,
    *,
    unit: Any = 1.0,
    within: Array | None = None,
    wanted: Array | None = None,
    **static: Any,
) -> EigenResult:
    """Sort, decide convergence, bound the error of each value.

    Args:
        vectors: rows `(k, n)`. values, residuals: `(k,)` from `measured`.
        norm: of the operator: the largest eigenvalue in absolute value, λ_max for a positive semidefinite one.
        relative_floor: rounding error of a product over the norm.
        rest: bound on all eigenvalues not among these (NaN if unknown).
        unit: what all values above are in units of; the result is not.
        within: `(k,)` residuals that bound the error of the values, where these differ (those of the dual problem).
        wanted: `(k,)` bool, entries to report; others become NaN.
    """
    within = residuals if within is None else within
    wanted = jnp.ones(values.shape, bool) if wanted is None else wanted
    unit, limit = jnp.asarray(unit, values.dtype), jnp.asarray(tol, values.dtype)
    fields = _certified(operator.psd, vectors, values, residuals, within, wanted, norm, relative_floor, limit, rest, unit)
    return EigenResult(**fields, matvecs=jnp.asarray(matvecs), **static)


@partial(linalg.precise_jit, static_argnums=0)
def _certified(
    psd: bool,
    vectors: Array,
    values: Array,
    residuals: Array,
    within: Array,
    wanted: Array,
    norm: Array,
    relative_floor: Array,
    tol: Array,
    rest: Array,
    unit: Array,
) -> dict[str, Array]:
    """The arrays of an `EigenResult`; see `certify`."""
    order = jnp.argsort(-values)
    values, residuals, vectors, within, wanted = (a[order] for a in (values, residuals, vectors, within, wanted))
    floor, tol = relative_floor * norm, jnp.maximum(tol, relative_floor)
    # A residual is itself known up to the floor.
    converged = wanted & (residuals <= tol * norm + floor)
    # What did not converge is not in the list: with the coupling to the rest, the eigenvalues there reach as far as this.
    left = ~converged & jnp.isfinite(values)
    reach = jnp.maximum(rest, jnp.max(jnp.where(left, values, -jnp.inf))) + jnp.linalg.norm(jnp.where(left, within, 0))
    rest = jnp.where(jnp.any(left), reach, rest)
    bounds = linalg.error_bounds(values, within, rest, floor, wanted)
    if psd:
        # Not distinguishable from zero: report zero, with a bound that covers the value found.
        null = jnp.abs(values) <= bounds
        bounds, values = jnp.where(null, bounds + jnp.abs(values), bounds), jnp.where(null, 0, values)
    return {
        "values": unit * jnp.where(converged, values, jnp.nan),
        "vectors": jnp.where(converged[:, None], vectors, jnp.nan).T,
        "residuals": unit * residuals,
        "bounds": unit * jnp.where(converged, bounds, jnp.nan),
        "converged": converged,
        "floor": unit * floor,
        "tol": tol,
        "complete_above": unit * (rest + floor),
    }


class HostLoop:
    """Surrounds a loop of products and small decompositions.

    The first Ctrl-C becomes a flag that is looked at between steps, so that no state is lost; the second raises. LAPACK gets
    one thread.
    """

    def __enter__(self) -> "HostLoop":
        self.asked = False
        self.lapack = linalg.lapack().__enter__()
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\ninterrupted: finishing with what has converged; Ctrl-C again to stop at once", file=sys.stderr)

    def __exit__(self, *exception: Any) -> None:
        self.lapack.__exit__(*exception)
        if self.main:
            signal.signal(signal.SIGINT, self.before)
