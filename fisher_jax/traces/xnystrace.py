"""XNysTrace: leave-one-out on Nyström approximations, for matrices without negative eigenvalues."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fisher_jax import _checks, linalg
from fisher_jax.estimates import Estimate
from fisher_jax.operators import LinearOperator
from fisher_jax.traces.base import Source, Sums, check_options, drive, fourth_moment, jackknife

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class XNysTrace:
    """`tr M ≈ mean over i of tr M̂_i + x_iᵀ (M − M̂_i) x_i`, M̂_i the Nyström approximation of M from all x_j but x_i.

    For positive semidefinite matrices, where it needs the fewest products: each serves the approximation and the probe.

    Args:
        products: with the matrix; with `tol`, the most.
        tol: stop where half the interval is at most tol·|value|.

    Reference: Epperly, Tropp and Webber, SIAM J. Matrix Anal. Appl. 45(1), 2024, section 2.4.
    """

    products: int = 100
    tol: float | None = None

    def __post_init__(self) -> None:
        check_options(self, "products", 1)

    def estimate(self, operator: LinearOperator, *, key: Array, confidence: float, progress: Any = None) -> Estimate:
        if not operator.psd:
            raise _checks.fail(
                "XNysTrace", f"{operator!r} is not known to be psd", "use fj.XTrace(), or say psd=True if it is"
            )
        return drive(self, operator, self.products, 16, key=key, confidence=confidence, progress=progress)

    def grow(self, source: Source, state: Any, products: int) -> "State":
        none = jnp.zeros((0, source.side.size), source.side.dtype)
        state = State(none, none) if state is None else state
        rows = source.probes(source.key, state.probes.shape[0], products)
        return State(jnp.concatenate([state.probes, rows]), jnp.concatenate([state.images, source.times(rows)]))

    def sums(self, operator: LinearOperator, state: "State") -> tuple[Sums, int]:
        sums, lowest = leave_one_out(*state)
        if float(lowest) < -1e4 * linalg.eps(operator.dtype):
            raise _checks.fail(
                "XNysTrace", f"{operator!r} has negative eigenvalues (found on a sketch)", "use fj.XTrace(), with psd=False"
            )
        return sums, state.probes.shape[0]


class State(NamedTuple):
    """Rows `(m, n)`."""

    probes: Array  # x_i
    images: Array  # M x_i


@linalg.precise_jit
def leave_one_out(X: Array, Y: Array) -> tuple[Sums, Array]:
    """Rows: X Gaussian, Y = X M. Also the smallest eigenvalue of X M Xᵀ over the largest.

    With `H = X M Xᵀ`, `U = H⁻¹ X M` and `G = U Uᵀ`, leaving out a set I changes H⁻¹ and M̂ by what their rows in I span:

        tr M̂_I = tr M̂ − tr (H⁻¹)_II⁻¹ G_II        x_jᵀ (M − M̂_I) x_j = ((H⁻¹)_II⁻¹)_jj        (M − M̂_j) x_j = u_j / (H⁻¹)_jj

    I = {j} gives the numbers that are averaged, I = {i, j} those of the jackknife. Derived. M is shifted by what rounding
    leaves undetermined, so that H has an inverse, and the trace of the shift subtracted.
    """
    m, n = X.shape
    eps = linalg.eps(X.dtype)
    H = linalg.inner(X, Y)
    H = (H + H.T) / 2
    plain = jnp.linalg.eigvalsh(H)
    largest = jnp.maximum(jnp.max(jnp.abs(plain)), jnp.finfo(X.dtype).tiny)
    shift = 4 * eps * largest / n
    Y = Y + shift * X
    values, V = jnp.linalg.eigh(H + shift * linalg.inner(X, X))
    V = V / jnp.sqrt(jnp.maximum(values, eps * largest))[None, :]
    approximation = V.T @ Y  # its Gram matrix has the eigenvalues of M̂
    U = V @ approximation
    inverse, G = V @ V.T, linalg.inner(U, U)
    h, g = jnp.diag(inverse), jnp.diag(G)
    total = jnp.sum(approximation**2) - shift * n
    each = total - g / h + 1 / h
    gram = G / h[:, None] / h[None, :]
    # Entry [i, j]: probe j without i and j.
    pair = jnp.maximum(h[:, None] * h[None, :] - inverse**2, eps * h[:, None] * h[None, :])
    known = total - (g[:, None] * h[None, :] - 2 * G * inverse + g[None, :] * h[:, None]) / pair
    twice = known + h[:, None] / pair
    sums = Sums(jnp.mean(each), jnp.trace(gram) / m, fourth_moment(gram), jackknife(twice))
    return sums, plain[0] / largest
