"""The spectra of many random networks, a batch of them in one program."""

from collections.abc import Callable
from functools import partial
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

    # Weights are drawn one array after the other: in one program, their drawing would take longer to compile than the rest.
    def draw(key: Array) -> tuple[Any, Any]:
        return nnx.split(models.build(name, inputs=x.shape[1], outputs=outputs, key=key, **options))

    keys = jax.vmap(jax.random.split)(jax.random.split(key, seeds))
    graph, first = draw(keys[0, 0])

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 0, None))
    def dual(state: Any, key: Array, x: Array) -> Array:
        chosen = Fixed(key) if masks == "one" else Average(draws, key) if masks == "average" else masks
        return fisher(nnx.merge(graph, state), x, likelihood, masks=chosen, bn=bn).gram()

    weights = sum(leaf.size for leaf in jax.tree.leaves(first))
    batch = min(seeds, max(1, BATCH_WEIGHTS // weights))
    found = []
    for start in range(0, seeds, batch):
        # A last batch that is not full takes earlier networks again: one shape, one program.
        at = min(start, seeds - batch)
        states = [draw(keys[i, 0])[1] for i in range(at, at + batch)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        K = np.asarray(dual(stacked, keys[at : at + batch, 1], x), np.float64)[start - at :]
        if not np.isfinite(K).all():
            raise _checks.fail(
                "ensemble", f"{name} with {options} overflows {x.dtype}", "enable x64, or take a smaller depth"
            )
        found.append(np.linalg.eigvalsh(K)[:, ::-1])
        if progress is not None:
            progress(start + len(K), seeds)
    return np.concatenate(found)
