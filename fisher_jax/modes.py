"""Dropout, stochastic depth and batch normalization: which of several matrices is meant, as a function of samples.

A network with random masks is a deterministic function of (sample, seed): each sample and draw becomes one row of data, and
the engine sees nothing random. Batch statistics are either numbers, or part of the joint map of a whole batch.
"""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from fisher_jax import _checks
from fisher_jax.functional import Function, refuse_training_mode

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Fixed:
    """One draw of the masks of dropout and stochastic depth, the same for every sample: one subnetwork.

    Args:
        key: JAX random key that names the draw.
    """

    key: Any

    draws = 1


@dataclasses.dataclass(frozen=True)
class Average:
    """The average over masks, `E_mask[F(mask)]`, estimated with `draws` masks for each sample.

    Args:
        draws: masks per sample; the error of the trace falls as draws^(-1/2). Every draw adds N samples to the problem.
        key: JAX random key.
        shared: the masks of a draw are the same for all samples: F is then the average over `draws` subnetworks, the one of
            every draw `fj.Fixed(jax.random.split(key, draws)[s])`. Otherwise every sample has masks of its own, as in
            training. The expectation is the same.
    """

    draws: int = 1
    key: Any = None
    shared: bool = False

    def __post_init__(self) -> None:
        _checks.integer("Average", "draws", self.draws, 1)
        if self.key is None:
            raise _checks.fail("Average", "key is missing", "give key=jax.random.key(seed)")


def prepare(model: Any, x: Any, masks: Fixed | Average | str | None, bn: Any, where: str) -> tuple[Any, Any]:
    """(model, x) of the chosen mode: x with every sample `draws` times, or for bn="train" as one sample, the batch."""
    if masks not in (None, "mean") and not isinstance(masks, (Fixed, Average)):
        raise _checks.fail(where, f"masks={masks!r} is unknown", 'give "mean", fj.Fixed(key) or fj.Average(draws, key)')
    if bn not in (None, "eval", "frozen", "train"):
        raise _checks.fail(where, f"bn={bn!r} is unknown", 'give "eval", "frozen" or "train"')
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(model, nnx.Module):
        raise _checks.fail(
            where, f"model={type(model).__name__} with masks or bn", "pass an nnx.Module, or make the choice in the function"
        )
    if isinstance(x, (list, tuple)) and any(np.ndim(a) == 0 for a in jax.tree.leaves(x)):
        x = np.asarray(x)  # nested lists of numbers
    model = nnx.clone(model)
    normed = bool(_modules(model, "use_running_average"))
    if bn is not None and not normed:
        raise _checks.fail(where, f"bn={bn!r}, but the model has no batch normalization", "leave bn out")
    random = not isinstance(masks, str | None)
    if masks is not None:
        if random and not _modules(model, "deterministic"):
            raise _checks.fail(
                where, f"masks={masks!r}, but the model has neither dropout nor stochastic depth", "leave it out"
            )
        model.set_attributes(deterministic=not random, raise_if_not_found=False)
    if bn == "eval":
        model.set_attributes(use_running_average=True)
    elif bn is not None:
        if random:
            raise _checks.fail(where, f"bn={bn!r} together with random masks", 'give bn="eval", or masks="mean"')
        model.set_attributes(use_running_average=False)
    # What was left to the model must be in evaluation mode: the functions made below are not asked again.
    asked = nnx.clone(model)
    asked.set_attributes(
        **({} if masks is None else {"deterministic": True}),
        **({} if bn is None else {"use_running_average": True}),
        raise_if_not_found=False,
    )
    refuse_training_mode(asked, where)
    if bn == "frozen":
        _freeze(model, x, where)
    if bn == "train":
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        batch = jax.tree.map(lambda a: jnp.asarray(a)[None], x)
        return Function(Partial(_Joint(graphdef), rest), nnx.to_pure_dict(params)), batch
    if masks is None or isinstance(masks, str):
        return model, x
    graphdef, params, keys, rest = nnx.split(model, nnx.Param, nnx.RngKey, ...)
    samples = jax.tree.leaves(x)[0].shape[0]
    rows = jax.tree.map(lambda a: jnp.repeat(jnp.asarray(a), masks.draws, axis=0), x)
    function = Function(Partial(_Masked(graphdef), (keys, rest)), nnx.to_pure_dict(params))
    return function, {"sample": rows, "seed": _seeds(masks, samples)}


def repeated(tree: Any, masks: Any) -> Any:
    """Labels or weights of the samples, once for every draw."""
    return jax.tree.map(lambda a: np.repeat(np.asarray(a), masks.draws, axis=0), tree)


def _modules(model: Any, attribute: str) -> list[Any]:
    from flax import nnx

    return [module for _, module in nnx.iter_modules(model) if hasattr(module, attribute)]


def _freeze(model: Any, x: Any, where: str) -> None:
    """Let the running statistics be those of `x`, layer after layer, and use them."""
    # Without momentum a forward pass leaves the statistics of its batch behind.
    model.set_attributes(momentum=0.0, raise_if_not_found=False)
    try:
        model(jax.tree.map(jnp.asarray, x))
    except (TypeError, ValueError) as error:
        shapes = [np.shape(a) for a in jax.tree.leaves(x)]
        reason = str(error).strip().splitlines()[0]
        raise _checks.fail(where, f"model rejects x of shape {shapes} ({reason})", "match x to the model") from error
    model.set_attributes(use_running_average=True)


def _seeds(masks: Fixed | Average, samples: int) -> Array:
    """One number for each sample and draw, `(N · draws,)`."""
    if isinstance(masks, Fixed):
        return jnp.broadcast_to(_number(masks.key), (samples,))
    if masks.shared:
        return jnp.tile(jax.vmap(_number)(jax.random.split(masks.key, masks.draws)), samples)
    return _number(masks.key, (samples * masks.draws,))


def _number(key: Array, shape: tuple[int, ...] = ()) -> Array:
    return jax.random.bits(key, shape, "uint32")


@dataclasses.dataclass(frozen=True)
class _Masked:
    """A network whose random streams start from the seed that comes with each sample."""

    graphdef: Any

    def __call__(self, state: Any, params: Any, x: Any) -> Any:
        from flax import nnx

        keys, rest = state

        def one(sample: Any, seed: Array) -> Any:
            def fold(key: Array) -> Array:  # of stacked blocks there are several
                return jax.random.fold_in(key, seed) if key.ndim == 0 else jax.vmap(fold)(key)

            model = nnx.merge(self.graphdef, params, jax.tree.map(fold, keys), rest, copy=True)
            return jax.tree.map(lambda a: a[0], model(jax.tree.map(lambda a: a[None], sample)))

        return jax.vmap(one)(x["sample"], x["seed"])


@dataclasses.dataclass(frozen=True)
class _Joint:
    """Batches as samples: `(B, N, ...)` to `(B, N, C)`, each batch with its own statistics."""

    graphdef: Any

    def __call__(self, rest: Any, params: Any, x: Any) -> Any:
        from flax import nnx

        return jax.vmap(lambda batch: nnx.merge(self.graphdef, params, rest, copy=True)(batch))(x)
