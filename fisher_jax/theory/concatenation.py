"""Perceptrons whose blocks add units to all that came before."""

from typing import Any

import jax
import jax.numpy as jnp

from fisher_jax.theory.recursion import Gate, Tangent, as_kernel, readout, run, start

Array = jax.Array


def concatenating(
    K: Any,
    inputs: float,
    growth: float,
    depth: int,
    gate: Gate,
    *,
    variance: Any = 2.0,
    readout_variance: Any = 1.0,
    ntk: bool = False,
) -> Tangent:
    """The tangent kernel of `h^{l+1} = [h^l; g(W^l h^l)]`, output `W h^L`, D_l = D_0 + l k units, `W^l ~ N(0, s/D_l)`.

    K and T are means over the units of the stream:

        S = s K,  K ← (D_l K + k E[g g'])/D_{l+1},  T ← (D_l T + k E[ġ ġ'] (s T + D_l K))/D_{l+1},  Θ = so² T^L + D_L K^L

    ReLU, s = 2, |x|² = D_0: `θ₁ = D_L + so² (k/2) Σ_l D_l/D_{l+1}`, linear in L.

    Args:
        K: `(N, N)` input kernel x·x'/d, or the cosine of two inputs. inputs: D_0. growth: k. depth: number of blocks L.
        gate: the activation. variance: s. readout_variance: so². ntk: the NTK parametrization.

    Returns:
        Tangent.

    Reference: derived, checked on finite networks. Huang et al., CVPR 2017, fully connected.
    """
    K = as_kernel(K)

    def step(K: Array, mean: Array, T: Array, unit: Array, D: Array) -> tuple[Array, Array, Array]:
        V, Vd = gate(variance * K)
        own = unit * (variance if ntk else D) * K
        return (D * K + growth * V) / (D + growth), mean, (D * T + growth * Vd * (variance * T + own)) / (D + growth)

    s = run(step, start(K), inputs + growth * jnp.arange(depth, dtype=K.dtype), gate.homogeneous)
    return readout(s, readout_variance, inputs + depth * growth, gate.homogeneous, ntk)
