"""Where gradient descent stops being stable: measured on the network itself, beside 2/λ_max and λ_max by theory."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fisher_jax import _checks, linalg, models, theory
from fisher_jax.findings import LearningRates
from fisher_jax.fisher import fisher
from fisher_jax.functional import Network
from fisher_jax.likelihoods import Gaussian
from fisher_jax.results import provenance
from fisher_jax.solvers import eigsh

Array = jax.Array

# The loss of a stable run does not rise, but for rounding; above the limit it grows by orders of magnitude.
ROUNDING, GROWTH = 1.001, 10.0
FACTORS = (0.5, 0.9, 0.95, 1.05, 1.1, 1.5, 2.0, 3.0)


def learning_rate(
    model: Any,
    x: Any,
    *,
    factors: Sequence[float] = FACTORS,
    momentum: float = 0.0,
    steps: int = 300,
    offset: float = 0.01,
    outputs: int | None = None,
    masks: Any = None,
    bn: str | None = None,
    key: Array,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> LearningRates:
    """Full-batch gradient descent from next to a minimum, at rates c times the largest stable one.

        E = (1/2N) Σ |f(x_n) − y_n|²,  rate = c · 2 (1 + β)/λ_max(F),  stable if c < 1

    Labels y are the outputs at the start plus uniform noise, so that F is the Hessian there up to a small remainder. A run
    is judged by its transient, the largest loss over the first: above the limit wide networks do not diverge but move to
    where λ_max is smaller, and their last loss may be the best of all. With momentum a stable mode may rise by
    (1 + β)/(1 − β) before it falls: the noise is smaller by that factor, and the loss may grow by its square. All rates are
    one program; it runs again with as many rates between the largest stable factor and the smallest unstable one.

    Args:
        model: a name of `fj.models`, with `outputs` (1 unless given) and `options` as in `fj.models.build`; or any model
            that `fj.fisher` takes, with outputs `(N, C)` or `(N, T, C)`.
        x: inputs, leading axis N. masks, bn: as in `fj.fisher`: bn="frozen" for the statistics of x as constants.
        factors: c, ascending. momentum: β of the heavy ball. steps: of each run. A factor of 1 + δ shows only after some
            1/δ steps.
        offset: largest distance of a label from the output, over the root mean square of the outputs.
        key: JAX random key, for weights and labels.
        progress: called with (runs done, runs in all).

    Returns:
        LearningRates; `predicted` is λ_max by `fj.theory.predict` for a name it covers, else NaN.

    Raises:
        ArgumentError: factors not ascending, options beside a model, outputs that are no single array.

    Reference: standard (quadratic model); Lewkowycz et al., 2020, arXiv 2003.02218 (above the limit); amplification derived.
    """
    where = "learning_rate"
    factors = [_checks.positive(where, "factors", float(c)) for c in factors]
    if len(factors) < 2 or sorted(set(factors)) != factors:
        raise _checks.fail(where, f"factors={tuple(factors)}", "give two or more, ascending")
    if not 0 <= momentum < 1:
        raise _checks.fail(where, f"momentum={momentum!r}", "give a number from 0 to below 1")
    steps, offset = _checks.integer(where, "steps", steps, 1), _checks.positive(where, "offset", offset)
    k_model, k_labels, k_solve = jax.random.split(key, 3)
    predicted, note = math.nan, "no name was given"
    if isinstance(model, str):
        outputs = 1 if outputs is None else outputs
        predicted, note = _theory(model, x, outputs, masks, bn, options)
        shape = np.shape(x)[1:]
        if models.takes(model) not in ("features", "image"):
            raise _checks.fail(where, f"model={model!r} takes no features", "build it and give the model itself")
        inputs = shape[0] if len(shape) == 1 else shape
        model = models.build(model, inputs=inputs, outputs=outputs, key=k_model, **options)
    elif options or outputs is not None:
        raise _checks.fail(where, f"outputs or {sorted(options)} beside a model", "give them with a name, or leave them out")

    F = fisher(model, x, Gaussian(), masks=masks, bn=bn)
    net, data = F.factor.jacobian.network, F.factor.jacobian.data
    x, scale = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (data.x, data.scale))
    start = net(net.params, x)
    if not isinstance(start, jax.Array):
        raise _checks.fail(where, "the model's outputs are no single array", "choose one of them in a function")
    largest = float(eigsh(F, 1, key=k_solve).values[0])
    if not largest > 0:
        raise _checks.fail(where, f"λ_max={largest}: no rate is too large", "check the weights and the data")
    limit = float(theory.learning_rate.gradient_descent(largest, momentum))
    rise = (1 + momentum) / (1 - momentum)
    # Far from the start in outputs is far in λ_max, and next to it is rounding.
    unit = offset * (float(jnp.sqrt(jnp.mean(start**2))) or 1.0)
    labels = start + unit / rise * jax.random.uniform(k_labels, start.shape, start.dtype, -1.0, 1.0)

    def losses(c: Any) -> np.ndarray:
        rates = limit * jnp.asarray(c, start.dtype)
        return np.asarray(_losses(net, x, scale, labels, rates, momentum=momentum, steps=steps))

    runs = 2 * len(factors)
    tried, found = np.array(factors), losses(factors)
    if progress is not None:
        progress(len(factors), runs)
    lower, upper = _bracket(tried, _transients(found) / rise**2)
    if lower > 0 and upper < math.inf:
        between = np.linspace(lower, upper, len(factors) + 2)[1:-1]
        tried, found = np.concatenate([tried, between]), np.concatenate([found, losses(between)])
        order = np.argsort(tried)
        tried, found = tried[order], found[order]
        lower, upper = _bracket(tried, _transients(found) / rise**2)
    if progress is not None:
        progress(runs, runs)
    transient = _transients(found)
    return LearningRates(
        factors=jnp.asarray(tried),
        loss=jnp.asarray(found),
        transient=jnp.asarray(transient),
        stable=jnp.asarray(transient <= ROUNDING * rise**2),
        unstable=jnp.asarray(transient > GROWTH * rise**2),
        lower=lower,
        upper=upper,
        limit=limit,
        lambda_max=largest,
        predicted=predicted,
        momentum=float(momentum),
        info=provenance(key, start.dtype, steps=steps, offset=offset, theory=note),
    )


@functools.partial(linalg.precise_jit, static_argnames=("momentum", "steps"))
def _losses(net: Network, x: Any, scale: Array, y: Array, rates: Array, *, momentum: float, steps: int) -> Array:
    """The losses before each of the steps, and after the last, `(rates, steps + 1)`."""

    def loss(params: Any) -> Array:
        weights = jnp.reshape(scale**2, scale.shape + (1,) * (y.ndim - scale.ndim))
        return 0.5 * jnp.sum(weights * (net(params, x) - y) ** 2)

    def descend(rate: Array) -> Array:
        optimizer = optax.sgd(rate, momentum or None)

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (net.params, optimizer.init(net.params)), None, length=steps + 1)[1]

    return jax.vmap(descend)(rates)


def _transients(losses: np.ndarray) -> np.ndarray:
    """Largest loss over the first; infinite if a run overflows."""
    with np.errstate(over="ignore"):
        return np.max(np.where(np.isfinite(losses), losses, np.inf), axis=1) / losses[:, 0]


def _bracket(factors: np.ndarray, growth: np.ndarray) -> tuple[float, float]:
    """(the largest stable factor below all unstable ones, 0 if none; the smallest unstable one, infinite if none)."""
    upper = float(factors[growth > GROWTH].min(initial=math.inf))
    return float(factors[(growth <= ROUNDING) & (factors < upper)].max(initial=0.0)), upper


def _theory(name: str, x: Any, outputs: int, masks: Any, bn: str | None, options: Any) -> tuple[float, str]:
    try:
        law = theory.predict(name, x=x, outputs=outputs, masks=masks, bn=bn, **options)
    except _checks.ArgumentError as error:
        return math.nan, str(error)
    return law.lambda_max, law.method
