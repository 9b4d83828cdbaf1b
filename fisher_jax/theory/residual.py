"""Residual perceptrons: skips over one or two layers, with everything that theory puts into their branches."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fisher_jax.theory.recursion import Gate, Tangent, as_kernel, layers, readout, run, start

Array = jax.Array


def skip_two(
    K: Any,
    width: float,
    depth: int,
    gate: Gate,
    *,
    variances: Any = (2.0, 1.0),
    readout_variance: Any = 1.0,
    scale: Any = 1.0,
    gain: Any = 1.0,
    learned_shift: bool = False,
    learned_size: Any = 0.0,
    ntk: bool = False,
    every: bool = False,
) -> Tangent:
    """The tangent kernel of `h^{l+1} = h^l + a_l W₂ g(β_l W₁ h^l)`, `h⁰ = x`, output `W h^L`.

        S = s₁ K,  K ← K + a² s₂ E[g g'],  T ← T + a² { s₂ E[ġ ġ'] (s₁ T + D K) + D E[g g'] }
        Θ = so² T^L + D K^L

    ReLU, a = β = 1, γ = 1 + s₁s₂/2: `θ₁/D = γ^L + so² L (s₁ + s₂)/2 γ^{L−1}` (derived, checked on finite networks).

    - 1/√L: `scale = L^(−1/2)`; θ₁/D stays below 2.5 e.
    - population batch norm: `gain = (l + 2)^(−1/2)`; θ₁/D = (L + 2)/2 + (3/4)(L + 2)(H_{L+2} − 3/2).
    - Fixup: `variances = (2/L, 0)`; θ₁/D = 1 + so². Its shifts (`learned_shift`) add a² so² per block to all of Θ.
    - SkipInit: `scale = 0` and `learned_size`, what multiplies the branch beside its number, 1: a block adds so² s₂ E[g g'].
    - masks of stochastic depth: `scale` an array `(L, N)`, the branch's factor for every input.

    Args:
        K: `(N, N)` input kernel x·x'/d, or the cosine of two inputs. width: D. depth: number of blocks L.
        gate: the activation. variances: (s₁, s₂). readout_variance: so².
        scale: a, one number, one for each block `(L,)`, or `(L, N)`. gain: β, likewise.
        ntk: the NTK parametrization. every: the kernels of the networks of 0, 1, ..., L blocks, stacked.

    Returns:
        Tangent.

    Reference: the block is Eq. 2 and 6, population norm Eq. 3, 25 and 26, of Furusho and Ikeda, ACML 2019 (quoted); kernels
    derived. Zhang et al., ICLR 2019 (Fixup); De and Smith, NeurIPS 2020 (SkipInit): schemes from memory.
    """
    K = as_kernel(K)
    s1, s2 = variances
    w1, w2 = (s1, s2) if ntk else (width, width)

    def step(K: Array, mean: Array, T: Array, unit: Array, layer: Any) -> tuple[Array, Array, Array]:
        a, beta, size = layer
        V, Vd = gate(s1 * K, beta)
        a2 = _pairs(a)
        T = T + a2 * (s2 * Vd * (s1 * T + unit * w1 * K) + unit * w2 * V)
        T = T + unit * _pairs(size) * s2 * V
        if learned_shift:
            T = T + unit * a2
        return K + a2 * s2 * V, mean, T

    homogeneous = gate.homogeneous and not learned_shift
    s = run(step, start(K), layers(depth, K.dtype, scale, gain, learned_size), homogeneous, every)
    return readout(s, readout_variance, width, homogeneous, ntk)


def skip_one(
    K: Any,
    inputs: float,
    width: float,
    depth: int,
    gate: Gate,
    *,
    variance: Any = 2.0,
    input_variance: Any = 1.0,
    readout_variance: Any = 1.0,
    scale: Any = 1.0,
    gain: Any = 1.0,
    learned_size: Any = 0.0,
    ntk: bool = False,
    every: bool = False,
) -> Tangent:
    """The tangent kernel of `h^{l+1} = h^l + a_l W g(β_l h^l)`, `h⁰ = W_in x`: the activation first ("pre").

        S = K,  K ← K + a² s E[g g'],  T ← T + a² { s E[ġ ġ'] T + M E[g g'] },  K⁰ = s_in K₀, T⁰ = d K₀
        Θ = so² T^L + M K^L

    ReLU, γ = 1 + s/2, M = d, s_in = 1: `θ₁/M = (1 + so²) γ^L + so² (L/2) γ^{L−1}`. "linear": γ = 1 + s.

    Args: as `skip_two`; variance: s. inputs: d. width: M.

    Reference: derived, checked on finite networks.
    """
    K = as_kernel(K)
    w = variance if ntk else width

    def step(K: Array, mean: Array, T: Array, unit: Array, layer: Any) -> tuple[Array, Array, Array]:
        a, beta, size = layer
        V, Vd = gate(K, beta)
        a2 = _pairs(a)
        T = T + a2 * (variance * Vd * T + unit * w * V)
        T = T + unit * _pairs(size) * variance * V
        return K + a2 * variance * V, mean, T

    s = start(input_variance * K, (input_variance if ntk else inputs) * K)
    s = run(step, s, layers(depth, K.dtype, scale, gain, learned_size), gate.homogeneous, every)
    return readout(s, readout_variance, width, gate.homogeneous, ntk)


def skip_one_post(
    K: Any,
    width: float,
    depth: int,
    gate: Gate,
    *,
    variance: Any = 2.0,
    readout_variance: Any = 1.0,
    scale: Any = 1.0,
    gain: Any = 1.0,
    learned_size: Any = 0.0,
    mean: Any = 0.0,
    ntk: bool = False,
    every: bool = False,
) -> Tangent:
    """The tangent kernel of `h^{l+1} = h^l + a_l g(β_l W h^l)`, `h⁰ = x`: the activation last ("post").

    The branch may have a mean m = E[g], which adds up along the stream to that of the input over its features: μ ← μ + a m.

        S = s K,  K ← K + a (μ m'ᵀ + m μ'ᵀ) + a² E[g g'],  T ← T + a² E[ġ ġ'] (s T + D K),  Θ = so² T^L + D K^L

    He and ReLU: θ₁ grows as 2.90411^L, and θ₂/θ₁ → 1.

    Args: as `skip_two`; variance: s. width: D. mean: μ⁰ of each input over its features, a number or `(N,)`.

    Reference: derived, checked on finite networks.
    """
    K = as_kernel(K)
    w = variance if ntk else width

    def step(K: Array, mean: Array, T: Array, unit: Array, layer: Any) -> tuple[Array, Array, Array]:
        a, beta, size = layer
        V, Vd = gate(variance * K, beta)
        a, a2 = jnp.broadcast_to(a, mean.shape), _pairs(a)
        m = a * gate.mean(variance * K, beta)
        T = T + a2 * Vd * (variance * T + unit * w * K)
        T = T + unit * _pairs(size) * V
        cross = mean[:, None] * m[None, :]
        return K + cross + cross.T + a2 * V, mean + m, T

    stream = start(K)
    stream = dataclasses.replace(stream, mean=stream.mean + jnp.asarray(mean, K.dtype))
    s = run(step, stream, layers(depth, K.dtype, scale, gain, learned_size), gate.homogeneous, every)
    return readout(s, readout_variance, width, gate.homogeneous, ntk)


def _pairs(a: Array) -> Array:
    """a a', of one number or one for each input, `(1, 1)` or `(N, N)`."""
    a = jnp.atleast_1d(a)
    return a[:, None] * a[None, :]
