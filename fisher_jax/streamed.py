"""Networks larger than memory: weights are made again from their key, stage by stage, forward and backward.

A streamed network is a chain of stages. Going forward, each stage's weights exist while its outputs are computed; the inputs
of all stages are kept. Going backward, the cotangents of a stage's outputs are all that the rest of the network is to it:
the stage with its weights is a small network whose Fisher matrix has given scores, and its part of K = Σ_stages K_stage
comes from the same code as any other K. Then the cotangents are pulled back to the stage's inputs, and its weights dropped.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from fisher_jax import _checks, linalg
from fisher_jax._record import record, static
from fisher_jax.factor import Chunks, Factor, Jacobian, OutputSpace
from fisher_jax.functional import Network, Stage, Streamed
from fisher_jax.gram import Reporter, gram

Array = jax.Array


@jax.tree_util.register_static
class StreamedNetwork:
    """What a streamed network is to the engine: shapes and paths of its parameters, and outputs; never the weights."""

    def __init__(self, model: Streamed):
        self.stages = model.stages
        self.shapes = [jax.eval_shape(stage.init, stage.state) for stage in self.stages]
        self.params = tuple(leaf for shapes in self.shapes for leaf in jax.tree.leaves(shapes))
        self.paths = [
            f"{stage.name}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
            for stage, shapes in zip(self.stages, self.shapes, strict=True)
            for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
        ]
        self.size = sum(math.prod(p.shape) for p in self.params)
        self.dtype = self.params[0].dtype

    def __call__(self, params: Any, x: Any) -> Any:
        for stage in self.stages:
            x = _apply(stage.apply, _init(stage.init, stage.state), x)
        return x

    def split(self, v: Array) -> Any:
        raise no_products()

    ravel = unravel = split


def no_products() -> _checks.ArgumentError:
    return _checks.fail("fisher", "a streamed network has no products with vectors", "use fj.spectrum(F) or F.gram()")


@record
class _Given:
    """A likelihood whose scores are given: cotangents of a stage's outputs, one for each row of a sample."""

    rows: int = static()
    null_dimensions = 0

    def score(self, z: Any, y: Any) -> Any:
        # The mean over draws is taken by the factor.
        return jax.tree.map(lambda g: math.sqrt(self.rows) * g, y)


_init = linalg.precise_jit(lambda init, state: init(state), static_argnums=0)
_apply = linalg.precise_jit(lambda apply, params, h: apply(params, h), static_argnums=0)


def _pull(apply: Any, params: Any, h: Any, cotangents: Any) -> Any:
    """Cotangents of the outputs, leaves `(N, R, ...)`, to those of the inputs."""
    pullback = jax.vjp(lambda h: apply(params, h), h)[1]
    return jax.vmap(lambda g: pullback(g)[0], in_axes=1, out_axes=1)(cotangents)


_pull_back = linalg.precise_jit(_pull, static_argnums=0)


def _stage_factor(stage: Stage, params: Any, h: Any, outputs: Any, cotangents: Any) -> Factor:
    leaves, treedef = jax.tree.flatten(params)
    names = tuple(jnp.dtype(a.dtype).name for a in leaves)
    network = Network(Partial(stage.apply), tuple(leaves), (), treedef, (True,) * len(leaves), names)
    samples, rows = jax.tree.leaves(cotangents)[0].shape[:2]
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), outputs)

    def chunk(a: Any) -> Any:
        return jax.ShapeDtypeStruct((1, *a.shape), a.dtype) if isinstance(a, jax.ShapeDtypeStruct) else a[None]

    scale = jax.tree.map(chunk, jax.tree.map(lambda a: jnp.ones(samples, a.dtype), leaves[0]))
    data = Chunks(jax.tree.map(chunk, h), scale, jax.tree.map(chunk, cotangents), samples)
    return Factor(Jacobian(network, data, None, OutputSpace.of(one)), _Given(rows))


def _cotangents(factor: Factor, z: Any) -> Any:
    """Those of the network's outputs, `√W B e_r` for every row r: leaves `(N, R, ...)`."""
    data = jax.tree.map(lambda a: a[0], factor.jacobian.data)
    basis = jnp.eye(factor.rows_per_sample, dtype=factor.dtype)
    expand = jax.vmap(lambda e: factor.expand(z, jnp.broadcast_to(e, (data.samples, e.size)), data), out_axes=1)
    return expand(basis)


def stage_factors(factor: Factor, progress: Reporter | None = None) -> Iterator[tuple[int, Factor]]:
    """(number of its first parameter, factor with its weights) of every stage, from the last to the first.

    Factors must be used at once: the next step of the iterator makes the weights of another stage.
    """
    network: Any = factor.jacobian.network
    x = jax.tree.map(lambda a: a[0], factor.jacobian.data.x)
    stages, done = network.stages, 0
    total = 2 * len(stages)

    def report() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    inputs = [x]
    for stage in stages:
        inputs.append(jax.block_until_ready(_apply(stage.apply, _init(stage.init, stage.state), inputs[-1])))
        report()
    outputs = inputs.pop()
    cotangents = _cotangents(factor, outputs)
    first = len(network.params)
    for number in reversed(range(len(stages))):
        stage, h = stages[number], inputs.pop()
        params = _init(stage.init, stage.state)
        first -= len(jax.tree.leaves(params))
        yield first, _stage_factor(stage, params, h, outputs, cotangents)
        if number:
            cotangents = jax.block_until_ready(_pull_back(stage.apply, params, h, cotangents))
        outputs = h
        del params
        report()


def stage_shapes(factor: Factor) -> list[tuple[int, Factor]]:
    """As `stage_factors`, in order, with shapes for arrays: for plans."""
    network: Any = factor.jacobian.network
    R = factor.rows_per_sample
    h = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), factor.jacobian.data.x)
    result, first = [], 0
    for stage, params in zip(network.stages, network.shapes, strict=True):
        outputs = jax.eval_shape(stage.apply, params, h)
        cotangents = jax.tree.map(lambda a: jax.ShapeDtypeStruct((a.shape[0], R, *a.shape[1:]), a.dtype), outputs)
        result.append((first, _stage_factor(stage, params, h, outputs, cotangents)))
        first += len(jax.tree.leaves(params))
        h = outputs
    return result


# The weights of one stage, what they are made from and the copies XLA takes: so many times the weights (measured).
COPIES = 4


def stage_bytes(factor: Factor) -> tuple[str, int]:
    """Name of the stage with most weights, and the memory it takes while it exists."""
    network: Any = factor.jacobian.network
    sizes = [sum(p.size * p.dtype.itemsize for p in jax.tree.leaves(shapes)) for shapes in network.shapes]
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    return network.stages[largest].name, COPIES * sizes[largest]


def streamed_gram(
    factor: Factor, *, groups: Sequence[Sequence[int]] | None, tile: int | None, progress: Reporter | None
) -> list[Array]:
    """As `fisher_jax.gram.gram`."""
    groups = [range(len(factor.jacobian.network.params))] if groups is None else groups
    n = factor.shape[0]
    (name, taken), free = stage_bytes(factor), linalg.free_memory()
    if taken > free:
        raise _checks.fail(
            "gram", f"stage {name} takes {taken / 2**30:.3g} GiB of {free / 2**30:.3g} GiB free", "take narrower stages"
        )
    matrices: list[Any] = [None] * len(groups)
    for first, stage in stage_factors(factor, progress):
        count = len(stage.jacobian.network.params)
        parts = {g: [i - first for i in members if first <= i < first + count] for g, members in enumerate(groups)}
        parts = {g: members for g, members in parts.items() if members}
        for g, K in zip(parts, gram(stage, groups=list(parts.values()), tile=tile), strict=True):
            matrices[g] = K if matrices[g] is None else _add(matrices[g], K)
            jax.block_until_ready(matrices[g])
    return [jnp.zeros((n, n), factor.dtype) if K is None else K for K in matrices]


_add = jax.jit(jnp.add, donate_argnums=0)


def over_stages(factor: Factor, function: Callable[[Factor], Array]) -> list[Array]:
    """`function` of every stage's factor, in the order of the stages."""
    return [jax.block_until_ready(function(stage)) for _, stage in stage_factors(factor)][::-1]
