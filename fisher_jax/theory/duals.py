"""Dual activations: what a layer of infinitely many units does to variances and covariances of its inputs.

    V(a, b, c) = E[φ(u) φ(v)],  Vd(a, b, c) = E[φ'(u) φ'(v)],  (u, v) ~ N(0, [[a, b], [b, c]])

Arrays of equal rank, elementwise; `of_kernel` takes a whole `(N, N)` matrix.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import _checks

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Dual:
    """V, Vd and the mean E[φ(√a z)] of an activation; `homogeneous`: φ(t u) = t φ(u) for t > 0."""

    V: Callable[[Array, Array, Array], Array]
    Vd: Callable[[Array, Array, Array], Array]
    mean: Callable[[Array], Array]
    homogeneous: bool = False


def dual(phi: str | Callable[[Array], Array], nodes: int = 161, rule: str = "trapezoid") -> Dual:
    """The dual of an activation, in closed form for relu, erf and linear, by quadrature for all others.

    Args:
        phi: relu, erf, linear, tanh, gelu, or a smooth elementwise function.
        nodes: of the quadrature, in each of two dimensions. rule: "trapezoid" or "hermite"; see `quadrature`.

    Returns:
        Dual.

    Raises:
        ArgumentError: an unknown name.
    """
    if phi == "relu" or phi is jax.nn.relu:
        return Dual(relu, relu_slope, lambda a: jnp.sqrt(a / (2 * jnp.pi)), homogeneous=True)
    if phi == "linear":
        return Dual(lambda a, b, c: b, lambda a, b, c: jnp.ones_like(b), jnp.zeros_like, homogeneous=True)
    if phi == "erf" or phi is jax.scipy.special.erf:
        return Dual(erf, erf_slope, jnp.zeros_like)
    if isinstance(phi, str):
        named = {"tanh": jnp.tanh, "gelu": lambda u: jax.nn.gelu(u, approximate=False)}
        if phi not in named:
            raise _checks.fail(
                "theory.dual", f"phi={phi!r} is unknown", "choose among relu, tanh, erf, gelu, linear, or give a function"
            )
        return dual(named[phi], nodes, rule)
    if rule not in ("trapezoid", "hermite"):
        raise _checks.fail("theory.dual", f"rule={rule!r} is unknown", "choose trapezoid or hermite")
    return quadrature(phi, _checks.integer("theory.dual", "nodes", nodes, 2), rule)


def of_kernel(function: Callable[[Array, Array, Array], Array], K: Array) -> Array:
    """V or Vd of all pairs of an `(N, N)` covariance."""
    variances = jnp.diagonal(K)
    return function(variances[:, None], K, variances[None, :])


def cosine(a: Array, b: Array, c: Array) -> Array:
    """b / √(a c), within [−1, 1]; exactly 1 for a = b = c, where relu's slope has an infinite derivative."""
    scale = jnp.sqrt(a * c)
    return jnp.clip(b / jnp.where(scale > 0, scale, 1), -1, 1)


@jax.custom_jvp
def arc_cosine(c: Array) -> Array:
    """ψ(t) = [sin t + (π − t) cos t] / π of c = cos t: the arc-cosine kernel of degree 1 (Cho and Saul, NeurIPS 2009)."""
    return (jnp.sqrt(1 - c**2) + (jnp.pi - jnp.arccos(c)) * c) / jnp.pi


@arc_cosine.defjvp
def _arc_cosine_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return arc_cosine(*primals), coactivation(*primals) * tangents[0]


@jax.custom_jvp
def coactivation(c: Array) -> Array:
    """κ₀ = 1 − t/π of c = cos t: twice the probability that two unit normals of correlation c are both positive."""
    return 1 - jnp.arccos(c) / jnp.pi


@coactivation.defjvp
def _coactivation_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # Infinite for equal inputs, which stay equal whatever is varied: their derivative is zero.
    square = 1 - primals[0] ** 2
    slope = jnp.where(square > 0, 1 / (jnp.pi * jnp.sqrt(jnp.where(square > 0, square, 1))), 0)
    return coactivation(*primals), slope * tangents[0]


def relu(a: Array, b: Array, c: Array) -> Array:
    """V = (√(a c)/2) ψ(arccos(b/√(a c))).

    Reference: Furusho and Ikeda, ACML 2019, Lemma 13 and Eq. 16 (quoted).
    """
    return jnp.sqrt(a * c) / 2 * arc_cosine(cosine(a, b, c))


def relu_slope(a: Array, b: Array, c: Array) -> Array:
    """Vd = (π − arccos(b/√(a c))) / (2π).

    Reference: Furusho and Ikeda, ACML 2019, Lemma 13 and Eq. 16 (quoted).
    """
    return coactivation(cosine(a, b, c)) / 2


def erf(a: Array, b: Array, c: Array) -> Array:
    """V = (2/π) arcsin(2b / √((1 + 2a)(1 + 2c))).

    Reference: Williams, NeurIPS 1996 (from memory, checked by Monte Carlo).
    """
    return 2 / jnp.pi * jnp.arcsin(2 * b / jnp.sqrt((1 + 2 * a) * (1 + 2 * c)))


def erf_slope(a: Array, b: Array, c: Array) -> Array:
    """Vd = (4/π) / √((1 + 2a)(1 + 2c) − 4b²): the derivative of V in b."""
    return 4 / jnp.pi / jnp.sqrt((1 + 2 * a) * (1 + 2 * c) - 4 * b**2)


def quadrature(phi: Callable[[Array], Array], nodes: int = 161, rule: str = "trapezoid") -> Dual:
    """The dual of a smooth function, by a product rule in two standard normals.

    `u = √a z₁`, `v = (b/√a) z₁ + √(c − b²/a) z₂`; the trapezoidal rule on [−8, 8], or Gauss–Hermite. For a function that is
    analytic within ±i d the error of the trapezoidal rule is about exp(−2π d/(h √a)), h = 0.1 the spacing: for tanh below
    1e-8 up to variances of 20, 1e-4 at 100. With 61 nodes Gauss–Hermite is off by 1e-3 at a variance of 4. Functions with a
    kink reach h² in V and h in Vd.
    """
    if rule == "hermite":
        z0, w0 = np.polynomial.hermite_e.hermegauss(nodes)
    else:
        z0 = np.linspace(-8, 8, nodes)
        w0 = np.exp(-(z0**2) / 2)

    def points(like: Array) -> tuple[Array, Array]:
        return jnp.asarray(z0, like.dtype), jnp.asarray(w0 / np.sum(w0), like.dtype)

    def expectation(f: Callable[[Array], Array]) -> Callable[[Array, Array, Array], Array]:
        def pair(a: Array, b: Array, c: Array) -> Array:
            z, w = points(b)
            a, b, c = jnp.broadcast_arrays(a, b, c)
            safe = jnp.sqrt(jnp.where(a > 0, a, 1))
            root, along = (jnp.where(a > 0, value, 0) for value in (safe, b / safe))
            rest = c - along**2
            # At equal inputs the root of zero, whose derivative is infinite but meets one that is zero.
            across = jnp.where(rest > 0, jnp.sqrt(jnp.where(rest > 0, rest, 1)), 0)

            def slice_of_first(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
                z1, w1 = node
                second = jnp.tensordot(
                    f((along * z1)[..., None] + across[..., None] * z.reshape((1,) * b.ndim + (-1,))), w, 1
                )
                return total + w1 * f(root * z1) * second, None

            return jax.lax.scan(slice_of_first, jnp.zeros_like(b), (z, w))[0]

        return pair

    def mean(a: Array) -> Array:
        z, w = points(a)
        return jnp.tensordot(phi(jnp.sqrt(a)[..., None] * z.reshape((1,) * a.ndim + (-1,))), w, 1)

    def slope(u: Array) -> Array:
        return jax.jvp(phi, (u,), (jnp.ones_like(u),))[1]

    return Dual(expectation(phi), expectation(slope), mean)
