"""XTrace: every random vector serves the sketch and, against the sketch of all others, as a probe."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fisher_jax import linalg
from fisher_jax.estimates import Estimate
from fisher_jax.operators import LinearOperator
from fisher_jax.traces.base import Source, Sums, check_options, drive, fourth_moment, jackknife, orthonormal, sketch

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class XTrace:
    """`tr M ≈ mean over i of tr Q_iᵀ M Q_i + x_iᵀ P_i M P_i x_i`, Q_i a basis of M x_j for all j but i, P_i = I − Q_i Q_iᵀ.

    For symmetric matrices of any sign; half of the products for the x_i, half for their basis. All Q_i come from one basis:
    `Q_i Q_iᵀ = Q (I − s_i s_iᵀ) Qᵀ` with s_i orthogonal to all M x_j but the i-th.

    Args:
        products: with the matrix, at least 2; with `tol`, the most.
        tol: stop where half the interval is at most tol·|value|.

    Reference: Epperly, Tropp and Webber, SIAM J. Matrix Anal. Appl. 45(1), 2024, section 2.
    """

    products: int = 100
    tol: float | None = None

    def __post_init__(self) -> None:
        check_options(self, "products", 2)

    def estimate(self, operator: LinearOperator, *, key: Array, confidence: float, progress: Any = None) -> Estimate:
        return drive(self, operator, self.products, 16, key=key, confidence=confidence, progress=progress)

    def grow(self, source: Source, state: Any, products: int) -> "State":
        none = jnp.zeros((0, source.side.size), source.side.dtype)
        state = State(none, none, none, none, none) if state is None else state
        have = state.probes.shape[0]
        rows = source.probes(source.key, have, products // 2)
        images = source.times(rows)
        sketched = sketch(rows, images)
        basis = orthonormal(state.basis, sketched)
        new = (rows, images, sketched, basis[have:], source.times(basis[have:]))
        return State(*(jnp.concatenate(pair) for pair in zip(state, new, strict=True)))

    def sums(self, operator: LinearOperator, state: "State") -> tuple[Sums, int]:
        return leave_one_out(*state), state.probes.shape[0]


class State(NamedTuple):
    """Rows `(k, n)`."""

    probes: Array  # x_i
    images: Array  # M x_i
    sketched: Array  # what the basis spans
    basis: Array
    basis_images: Array


@linalg.precise_jit
def leave_one_out(X: Array, Y: Array, B: Array, Q: Array, Z: Array) -> Sums:
    """Rows: X Gaussian with Y = X M, B = Y but for rounding, Q an orthonormal basis of B with Z = Q M.

    With r_j = (I − Q Qᵀ) x_j, what leaving out a set I returns to the probe is Q p, p the projection of w_j = Qᵀ x_j on the
    span of s_i, i ∈ I:

        known part  tr H − (sum of sᵀ H s over an orthonormal basis of the span),  H = Qᵀ M Q
        probe       (r_j + Q p)ᵀ M (r_j + Q p) = r_jᵀ M r_j + 2 pᵀ Qᵀ M r_j + pᵀ H p

    I = {j} gives the numbers that are averaged, I = {i, j} those of the jackknife. Derived.
    """
    k = X.shape[0]
    R = jnp.triu(linalg.inner(Q, B))  # B = Rᵀ Q in rows
    S = jax.scipy.linalg.solve_triangular(R, jnp.eye(k, dtype=X.dtype), trans="T")
    S = S / jnp.linalg.norm(S, axis=0, keepdims=True)  # columns s_i
    H, W = linalg.inner(Q, Z), linalg.inner(Q, X)
    rest, rest_images = X - W.T @ Q, Y - W.T @ Z
    own = jax.vmap(jnp.vdot)(rest, rest_images)
    E = linalg.inner(Q, rest_images)
    C, U, F, K = S.T @ S, S.T @ W, S.T @ E, S.T @ H @ S
    u, f, h, total = jnp.diag(U), jnp.diag(F), jnp.diag(K), jnp.trace(H)
    values = total - h + own + 2 * u * f + u**2 * h
    # P_i M P_i x_i
    moved = S * u[None, :]
    images = rest_images + moved.T @ Z
    inside = linalg.inner(Q, images)
    images = images - (inside - S * jnp.sum(S * inside, axis=0, keepdims=True)).T @ Q
    gram = linalg.inner(images, images)
    # Entry [i, j]: probe j without i and j; its coefficients on s_j and s_i.
    apart = jnp.maximum(1 - C**2, linalg.eps(X.dtype))
    a, b = (u[None, :] - C * U) / apart, (U - C * u[None, :]) / apart
    known = total - (h[:, None] + h[None, :] - 2 * C * K) / apart
    twice = known + own[None, :] + 2 * (a * f[None, :] + b * F) + a**2 * h[None, :] + 2 * a * b * K + b**2 * h[:, None]
    return Sums(jnp.mean(values), jnp.trace(gram) / k, fourth_moment(gram), jackknife(twice))
