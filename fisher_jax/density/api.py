"""`density`: the one entry to spectral densities."""

from typing import Any

import jax

from fisher_jax import _checks
from fisher_jax.density.base import Density
from fisher_jax.density.kpm import KPM
from fisher_jax.density.slq import SLQ
from fisher_jax.density.space import Reporter, space
from fisher_jax.operators import as_operator
from fisher_jax.results import EigenResult


def density(
    operator: Any, *, method: Any = SLQ(), top: EigenResult | None = None, key: jax.Array, progress: Reporter | None = None
) -> Density:
    """The spectral density of a symmetric operator from products with Gaussian probes, with intervals for what follows.

        ρ(λ) = Σᵢ K(λ − λᵢ) / r,    Σᵢ f(λᵢ) = d E[zᵀ f(M) z / zᵀ z],    z Gaussian in the d dimensions that are probed

    Works in the smaller of primal and dual space. Eigenvalues that are zero for certain are a number, not a bump.

    Args:
        operator: any `LinearOperator`: a Fisher operator, `fj.FunctionOperator(f, n)`; or a symmetric array.
        method: `fj.SLQ(steps, probes)`, which bounds what it integrates, or `fj.KPM(degree, probes)`, a second opinion.
        top: `fj.eigsh` of the same operator: what has converged is projected out of the probes and kept as exact atoms.
        key: JAX random key; probe i depends on the key and i alone.
        progress: called with (steps done, steps in all).

    Returns:
        Density.

    Raises:
        ArgumentError: an operator that is not symmetric or returns NaN, a `top` of another one, or inside jit.

    Reference: Lin, Saad and Yang, SIAM Review 58(1), 2016; Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38(4), 2017.
    """
    operator = as_operator("density", operator)
    if not isinstance(key, jax.Array) or (jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape):
        raise _checks.fail("density", f"key={key!r} is not a JAX random key", "give key=jax.random.key(seed)")
    if _checks.traced((operator, key)):
        raise _checks.fail("density", "operator or key is traced", "call it outside jit")
    if not isinstance(method, (SLQ, KPM)):
        raise _checks.fail("density", f"method={method!r} is not a method", "give fj.SLQ(...) or fj.KPM(...)")
    if top is not None:
        if not isinstance(top, EigenResult):
            raise _checks.fail("density", f"top is a {type(top).__name__}", "give fj.eigsh(...) of the same operator")
        if top.vectors.shape[0] != operator.size:
            rows = top.vectors.shape[0]
            raise _checks.fail("density", f"top has vectors of {rows} entries", f"give fj.eigsh of size {operator.size}")
    probed = space(operator, top, key)
    return method.estimate(probed, key=key, progress=progress)
