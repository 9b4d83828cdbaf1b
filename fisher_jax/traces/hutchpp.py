"""Hutch++: the trace on a sketched range exactly, Hutchinson on what is left."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fisher_jax import linalg
from fisher_jax.estimates import Estimate
from fisher_jax.operators import LinearOperator
from fisher_jax.traces.base import Source, Sums, check_options, drive, fourth_moment, orthonormal, sketch

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class HutchPP:
    """`tr M ≈ tr Qᵀ M Q + mean of xᵀ P M P x`, Q a basis of M Ω, P = I − Q Qᵀ: a third of the products for each of Ω, Q, x.

    The error falls as 1/products for positive semidefinite matrices, whatever the spectrum, faster where it decays.

    Args:
        products: with the matrix, at least 3; with `tol`, the most.
        tol: stop where half the interval is at most tol·|value|.

    Reference: Meyer, Musco, Musco and Woodruff, SOSA 2021, algorithm 1.
    """

    products: int = 99
    tol: float | None = None

    def __post_init__(self) -> None:
        check_options(self, "products", 3)

    def estimate(self, operator: LinearOperator, *, key: Array, confidence: float, progress: Any = None) -> Estimate:
        return drive(self, operator, self.products, 24, key=key, confidence=confidence, progress=progress)

    def grow(self, source: Source, state: Any, products: int) -> "State":
        key_sketch, key_probes = jax.random.split(source.key)
        none = jnp.zeros((0, source.side.size), source.side.dtype)
        state = State(none, none, none, none) if state is None else state
        third = products // 3
        rows = source.probes(key_sketch, state.basis.shape[0], third)
        basis = orthonormal(state.basis, sketch(rows, source.times(rows)))
        images = source.times(basis[state.basis.shape[0] :])
        probes = source.probes(key_probes, state.probes.shape[0], products - 2 * third)
        return State(
            basis,
            jnp.concatenate([state.basis_images, images]),
            jnp.concatenate([state.probes, probes]),
            jnp.concatenate([state.probe_images, source.times(probes)]),
        )

    def sums(self, operator: LinearOperator, state: "State") -> tuple[Sums, int]:
        return remainder(*state), state.probes.shape[0]


class State(NamedTuple):
    """Rows and their products."""

    basis: Array  # (s, n) orthonormal
    basis_images: Array
    probes: Array  # (p, n)
    probe_images: Array


@linalg.precise_jit
def remainder(Q: Array, Z: Array, X: Array, Y: Array) -> Sums:
    """Rows: Q orthonormal with Z = Q M, X Gaussian with Y = X M.

    The probes are projected after the product, `P M P x = P (M x − M Q Qᵀ x)`: they stay valid when Q grows.
    """
    inside = linalg.inner(X, Q)
    rows, images = X - inside @ Q, Y - inside @ Z
    images = images - linalg.inner(images, Q) @ Q
    values = jax.vmap(jnp.vdot)(rows, images)
    known = jnp.sum(jax.vmap(jnp.vdot)(Q, Z))
    gram = linalg.inner(images, images)
    return Sums(known + jnp.mean(values), jnp.trace(gram) / X.shape[0], fourth_moment(gram), jnp.zeros_like(known))
