"""Perceptrons without skips."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fisher_jax.theory.recursion import Gate, Tangent, as_kernel, readout, run, start

Array = jax.Array


def mlp(
    K: Any,
    widths: Sequence[int],
    gate: Gate,
    *,
    weight_variance: Any = 2.0,
    bias_variance: Any = None,
    readout_variance: Any = None,
    ntk: bool = False,
    train_biases: bool = True,
) -> Tangent:
    """The tangent kernel of `u^l = W^l h^{l−1} + b^l`, `h^l = g(u^l)`, output `u^L`.

        S^l = σ_w² K^{l−1} + σ_b²,  K^l = E[g g'],  T^l = E[ġ ġ'] (σ_w² T^{l−1} + M_{l−1} K^{l−1} + 1)
        Θ = so² T^{L−1} + M_{L−1} K^{L−1} + 1

    The ones are the biases; in the NTK parametrization M becomes σ_w² and 1 becomes σ_b².

    Args:
        K: `(N, N)` input kernel x·x'/d, or the cosine of two inputs.
        widths: (M_0, ..., M_{L−1}), the inputs of the L weight matrices.
        gate: the activation. readout_variance: so²; σ_w² unless given.
        bias_variance: σ_b²; None: no biases. train_biases: count the biases' gradients, O(1) beside O(M).

    Returns:
        Tangent.

    Reference: derived; for ReLU with σ_w² = so² = 2 and widths M: θ₁ = L M (checked on finite networks). Karakida et al.,
    AISTATS 2019; Jacot et al., NeurIPS 2018.
    """
    K = as_kernel(K)
    bias = 0.0 if bias_variance is None else bias_variance
    learned = 0.0 if bias_variance is None or not train_biases else (bias if ntk else 1.0)
    homogeneous = gate.homogeneous and bias_variance is None

    def step(K: Array, mean: Array, T: Array, unit: Array, fan_in: Array) -> tuple[Array, Array, Array]:
        V, Vd = gate(weight_variance * K + bias)
        own = (weight_variance if ntk else fan_in) * K + learned
        return V, mean, Vd * (weight_variance * T + unit * own)

    s = run(step, start(K), jnp.asarray(widths[:-1], K.dtype), homogeneous)
    so = weight_variance if readout_variance is None else readout_variance
    return readout(s, so, widths[-1], homogeneous, ntk, bias_variance, learned)
