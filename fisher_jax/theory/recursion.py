"""What the recursions share: the kernel that runs through the layers, and what an activation does to it.

The neural tangent kernel of one output, `Θ(x, x') = ∇f(x)·∇f(x')`, is carried forward: with T the tangent kernel of one unit
of the stream, a layer with the pre-activations' covariance S adds its own weights and multiplies by `σ² E[φ'φ']`. This is
the product of backward kernels read from the other end; nothing of the depth is stored.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fisher_jax import _checks
from fisher_jax._record import record
from fisher_jax.theory.duals import Dual, of_kernel

Array = jax.Array


def two_valued(off: Any, diagonal: Any = 1.0) -> Array:
    """The kernel of inputs of one norm and one angle, as that of two of them: `[[diagonal, off], [off, diagonal]]`."""
    off, diagonal = jnp.asarray(off, float), jnp.asarray(diagonal, float)
    return jnp.stack([jnp.stack([diagonal, off]), jnp.stack([off, diagonal])])


def as_kernel(K: Any) -> Array:
    """An `(N, N)` kernel; a number is the cosine of two inputs with |x|² = d."""
    K = jnp.asarray(K, float)
    if K.ndim == 0:
        return two_valued(K)
    if K.ndim != 2 or K.shape[0] != K.shape[1]:
        raise _checks.fail(
            "theory", f"kernel of shape {K.shape}", "give an (N, N) matrix x·x'/d, or the cosine of two inputs"
        )
    return K


@record
class Tangent:
    """A tangent kernel `scaled · 4^exponent`, of which the number may exceed what a float holds."""

    scaled: Array  # (N, N)
    exponent: Array  # ()
    forward: Array  # (N, N) covariance of an output over the weights, on the same scale if the activation is homogeneous
    forward_exponent: Array  # ()
    fresh: Array  # () sum over layers of the share of the stream that each makes, where the layers add to a stream

    @property
    def theta(self) -> Array:
        """Θ, infinite if it is too large for its precision."""
        return self.scaled * jnp.exp2(2 * self.exponent)

    @property
    def log_scale(self) -> Array:
        return self.exponent * jnp.log(jnp.asarray(4, self.exponent.dtype))


@record
class Stream:
    """What runs through the layers: second moment `K` and mean of the units, tangent kernel T of a unit, on scales 4^k."""

    K: Array  # (N, N), times 4^k if the network is homogeneous
    mean: Array  # (N,), times 2^k likewise
    T: Array  # (N, N), times 4^k
    k: Array  # ()
    fresh: Array  # ()


def start(K: Array, T: Any = 0.0) -> Stream:
    zero = jnp.zeros_like(K)
    return Stream(K, zero[0], zero + T, jnp.zeros((), K.dtype), jnp.zeros((), K.dtype))


def run(step: Callable[..., Any], stream: Stream, layers: Any, homogeneous: bool, every: bool = False) -> Any:
    """Apply `step(K, mean, T, unit, layer) -> (K, mean, T)` for each layer.

    T is affine in its last value; `unit` multiplies what is added to it. The scale is split off after each layer: of K and
    T together where a network is homogeneous, of T alone elsewhere.

    Args:
        layers: arrays whose leading axis is the depth. every: also return the stream after 0, 1, ..., L layers, stacked.
    """

    def body(s: Stream, layer: Any) -> tuple[Stream, Any]:
        unit = jnp.ones_like(s.k) if homogeneous else jnp.exp2(-2 * s.k)
        K, mean, T = step(s.K, s.mean, s.T, unit, layer)
        fresh = s.fresh + 1 - jnp.sum(jnp.diagonal(s.K)) / jnp.sum(jnp.diagonal(K))
        largest = jnp.max(jnp.abs(T))
        largest = jnp.maximum(largest, jnp.max(jnp.abs(K))) if homogeneous else largest
        exponent = jax.lax.stop_gradient(jnp.floor(jnp.log2(jnp.where(largest > 0, largest, 1)) / 2))
        shrink = jnp.exp2(-exponent)
        if homogeneous:
            K, mean = K * shrink**2, mean * shrink
        after = Stream(K, mean, T * shrink**2, s.k + exponent, fresh)
        return after, s if every else None

    last, before = jax.lax.scan(body, stream, layers)
    if not every:
        return last
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), before, last)


def readout(
    s: Stream, variance: Any, fan_in: float, homogeneous: bool, ntk: bool = False, bias: Any = None, learned: Any = 0.0
) -> Tangent:
    """`Θ = so² T + fan_in K + learned` (in the NTK parametrization so² K), and the output's covariance so² K + bias."""
    unit = jnp.ones_like(s.k) if homogeneous else jnp.exp2(-2 * s.k)
    unit = unit.reshape((*unit.shape, 1, 1)) if unit.ndim else unit
    theta = variance * s.T + unit * ((variance if ntk else fan_in) * s.K + learned)
    covariance = variance * s.K + (0.0 if bias is None else bias)
    return Tangent(theta, s.k, covariance, s.k if homogeneous else jnp.zeros_like(s.k), s.fresh)


@dataclasses.dataclass(frozen=True)
class Gate:
    """An activation with what stands around it: `g(u) = mask · φ(norm(β u))`.

    Calling it with the covariance of u gives `E[g(u) g(u')]` and `E[g'(u) g'(u')]`; `mean` gives E[g(u)].

    Args:
        dual: of φ.
        second: E[m m'] of the mask at equal and independent draws: a number, or one for each pair `(N, N)`. first: E[m].
        norm: None, or batch statistics: from the covariance of u to both expectations; see `normalization`.
    """

    dual: Dual
    second: Any = 1.0
    first: float = 1.0
    norm: Callable[[Array], tuple[Array, Array]] | None = None

    @property
    def homogeneous(self) -> bool:
        return self.dual.homogeneous and self.norm is None

    def __call__(self, S: Array, gain: Any = 1.0) -> tuple[Array, Array]:
        if self.norm is not None:
            V, Vd = self.norm(S)
        else:
            S = gain**2 * S
            V, Vd = of_kernel(self.dual.V, S), gain**2 * of_kernel(self.dual.Vd, S)
        return self.second * V, self.second * Vd

    def mean(self, S: Array, gain: Any = 1.0) -> Array:
        return self.first * self.dual.mean(gain**2 * jnp.diagonal(S))


def layers(depth: int, dtype: Any, *rows: Any) -> tuple[Array, ...]:
    """Settings of `depth` layers as arrays; a single number is that of all."""
    made = tuple(jnp.asarray(row, dtype) for row in rows)
    return tuple(jnp.broadcast_to(row, (depth,)) if row.ndim == 0 else row for row in made)
