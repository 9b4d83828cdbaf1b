"""The spectra of many random networks, a batch of them in one program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fisher_jax import _checks, models
from fisher_jax.fisher import fisher
from fisher_jax.modes import Average, Fixed

Array = jax.Array

# Weights of all networks of a batch together; more at once gain nothing.
BATCH_WEIGHTS = 2**24


def ensemble(
    name: str,
    x: Any,
    likelihood: Any,
    *,
    seeds: int,
    key: Any,
    outputs: int = 1,
    masks: str | None = None,
    draws: int = 1,
    bn: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> np.ndarray:
    """The nonzero side of the Fisher spectra of networks that differ by their seeds alone.

    Args:
        name, options: of `fj.models.build`. x: data `(N, d)`, the same for all. likelihood, outputs: as in `fj.fisher`.
        seeds: how many networks. key: JAX random key.
        masks: of dropout and stochastic depth: None or "mean": without; "one": one draw for each network, shared by its
            samples; "average": over `draws` for each sample.
        bn: of batch normalization, as in `fj.fisher`.
        progress: called with (networks done, networks in all).

    Returns:
        `(seeds, rows)` float64, descending: all eigenvalues of the dual matrix, rows N·C times draws. It is formed in
        float32 unless x64 is enabled, and diagonalized in float64.
    """
    seeds = _checks.integer("ensemble", "seeds", seeds, 1)
    if masks not in (None, "mean", "one", "average"):
        raise _checks.fail("ensemble", f"masks={masks!r} is unknown", 'give None, "mean", "one" or "average"')
    x = jnp.asarray(x, jnp.result_type(float))

    def dual(key: Array, x: Array) -> Array:
        weights, random = jax.random.split(key)
        model = models.build(name, inputs=x.shape[1], outputs=outputs, key=weights, **options)
        chosen = Fixed(random) if masks == "one" else Average(draws, random) if masks == "average" else masks
        return fisher(model, x, likelihood, masks=chosen, bn=bn).gram()

    keys = jax.random.split(key, seeds)
    shapes = nnx.eval_shape(lambda: models.build(name, inputs=x.shape[1], outputs=outputs, key=key, **options))
    batch = min(seeds, max(1, BATCH_WEIGHTS // models.size(shapes)))
    program = jax.jit(jax.vmap(dual, in_axes=(0, None)))
    found = []
    for start in range(0, seeds, batch):
        # A last batch that is not full takes earlier networks again: one shape, one program.
        at = min(start, seeds - batch)
        K = np.asarray(program(keys[at : at + batch], x), np.float64)[start - at :]
        if not np.isfinite(K).all():
            raise _checks.fail(
                "ensemble", f"{name} with {options} overflows {x.dtype}", "enable x64, or take a smaller depth"
            )
        found.append(np.linalg.eigvalsh(K)[:, ::-1])
        if progress is not None:
            progress(start + len(K), seeds)
    return np.concatenate(found)
