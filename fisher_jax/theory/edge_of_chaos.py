"""Order and chaos in wide perceptrons: where the variance of the pre-activations settles, and what happens to differences.

Two inputs that nearly agree move together through the layers if χ < 1, in the ordered phase, and apart if χ > 1, in the
chaotic one; gradients vanish or explode alike. The edge of chaos is χ = 1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from fisher_jax import _checks
from fisher_jax.theory.duals import Dual, dual

Array = jax.Array

# Bounded ones, which have a fixed point always, and homogeneous ones, of which it is known in closed form.
ACTIVATIONS = ("tanh", "erf", "relu", "linear")
# Newton's method halves the distance to a double root, that of an odd function at the edge without biases.
STEPS = 64


def of(activation: str) -> Dual:
    """The dual of one of `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise _checks.fail(
            "edge_of_chaos", f"activation={activation!r} is not covered", f"choose among {', '.join(ACTIVATIONS)}"
        )
    return dual(activation)


def fixed_point(phi: Dual, weight_variance: Any, bias_variance: Any) -> Array:
    """The variance q* that the pre-activations approach, layer by layer, from inputs with |x|² = d.

        q* = σ_w² E[φ(√q* z)²] + σ_b²

    Newton's method from above, where the right side, concave in q, leads down to the largest root. For relu and linear it
    is a straight line of slope m = σ_w² E[φ(z)²]: q* = σ_b²/(1 − m) for m < 1; at m = 1 without biases the variance stays
    that of the first layer, σ_w²; else it grows without bound, and q* is infinite.

    Args:
        phi: from `of`. weight_variance, bias_variance: σ_w² and σ_b², numbers.

    Returns:
        (): q*.

    Reference: Poole et al., NeurIPS 2016, Eq. 3 and 4 (from memory, checked by iteration).
    """
    weight_variance, bias_variance = jnp.asarray(weight_variance, float), jnp.asarray(bias_variance, float)

    def following(q: Array) -> Array:
        return weight_variance * phi.V(q, q, q) + bias_variance

    if phi.homogeneous:
        slope = following(jnp.ones_like(weight_variance)) - bias_variance
        settled = bias_variance / jnp.where(slope < 1, 1 - slope, 1)
        stays = jnp.where((slope == 1) & (bias_variance == 0), weight_variance, jnp.inf)
        return jnp.where(slope < 1, settled, stays)

    def newton(_: Any, q: Array) -> Array:
        value, slope = jax.jvp(following, (q,), (jnp.ones_like(q),))
        # Above the root the slope is below one; rounding may leave it at one, or q just below the root.
        step = (value - q) / jnp.where(slope < 1, 1 - slope, 1)
        return jnp.maximum(q + jnp.minimum(step, 0), 0)

    return jax.lax.fori_loop(0, STEPS, newton, weight_variance + bias_variance)


def susceptibility(phi: Dual, weight_variance: Any, bias_variance: Any) -> Array:
    """χ = σ_w² E[φ'(√q* z)²], by which a layer multiplies the square of a small difference, and of a gradient.

    For relu σ_w²/2, whatever the variance. Args as `fixed_point`.

    Reference: Poole et al., NeurIPS 2016, Eq. 5; Schoenholz et al., ICLR 2017 (from memory, checked by SciPy's integrals).
    """
    q = jnp.ones_like(jnp.asarray(weight_variance, float))
    if not phi.homogeneous:
        q = fixed_point(phi, weight_variance, bias_variance)
    return weight_variance * phi.Vd(q, q, q)


def edge(phi: Dual, bias_variances: Any) -> np.ndarray:
    """The weight variances σ_w² at which χ = 1, one for each bias variance.

    On the edge σ_w² = 1/E[φ'(√q z)²], and σ_b² = q − E[φ²]/E[φ'²] grows with q from zero: one root for each. Without biases
    σ_w² = 1/φ'(0)², for tanh 1 and for erf π/4. For relu it is the line σ_w² = 2: with biases the variance diverges there.

    Args:
        phi: from `of`. bias_variances: σ_b² `(B,)`.

    Returns:
        `(B,)`, float64 on the host.

    Reference: Pennington et al., NeurIPS 2017; Schoenholz et al., ICLR 2017: (1.76, 0.05) for tanh (from memory, checked).
    """
    bias_variances = np.asarray(bias_variances, float)
    with jax.enable_x64(True):
        moments = jax.jit(lambda q: (phi.V(q, q, q), phi.Vd(q, q, q)))

        def at(q: float) -> tuple[float, float]:
            V, Vd = moments(jnp.asarray(q, float))
            return float(1 / Vd), float(q - V / Vd)

        if phi.homogeneous:
            return np.full(bias_variances.shape, at(1.0)[0])
        found = []
        for bias_variance in bias_variances:

            def missing(q: float, bias_variance: float = bias_variance) -> float:
                return at(q)[1] - bias_variance

            high = 1.0
            while missing(high) <= 0:
                high *= 2
            root: Any = scipy.optimize.brentq(missing, 0.0, high, xtol=1e-14)
            found.append(at(root)[0])
        return np.asarray(found)
