"""The generalization gap of trained networks: deep linear ones beside the bound of algorithmic stability, and others."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fisher_jax import _checks, linalg, models
from fisher_jax.findings import Generalization
from fisher_jax.fisher import fisher
from fisher_jax.functional import Network, network
from fisher_jax.likelihoods import Gaussian
from fisher_jax.results import provenance
from fisher_jax.solvers import eigsh
from fisher_jax.theory.learning_rate import gradient_descent
from fisher_jax.theory.stability import architecture_factor

Array = jax.Array

# Kinds of `theory.stability`, with the variance of the weights times their fan-in: the MLP keeps the length of its input,
# the residual networks start near the identity.
VARIANCES = {"mlp": 1.0, "skip one": 0.1, "skip two": 0.1}
DEPARTURE = 0.3  # of the teacher from the identity
# Of the trainings of other networks; the fraction is that of the largest stable rate.
MOMENTUM, FRACTION = 0.9, 0.1
# Steps between two calls of the progress callback.
CHUNK = 1000

Progress = Callable[[int, int], None]


def linear_generalization(
    *,
    samples: int = 6,
    features: int = 8,
    matrices: int = 8,
    noise: float = 0.3,
    seeds: int = 24,
    steps: int = 16_000,
    key: Array,
    progress: Progress | None = None,
) -> Generalization:
    """Gap and leave-one-out stability of deep linear networks without skips, with skips over one matrix and over two.

        f(x) = T_B ... T_1 x,  T = W (mlp), I + W (skip one), I + W₂ W₁ (skip two)
        y = (I + 0.3 G/√D) x + noise,  x ~ N(0, I)

    Gradient descent on (1/2N) Σ |f − y|², on all samples and on all but one: N + 1 trainings for each seed, all seeds in one
    program. The kinds are given the same data. The rate of a training is a quarter of 2/λ_max at the start, or near the
    identity if that is less.

    With N < D many networks fit the data, and the gap depends on which one is found. With N >= D there is a single map of
    least loss, and all networks that reach it have the same gap. With |N − D| <= 3 the gap has no finite variance over data
    sets, with |N − D| <= 1 no finite mean: compare the kinds seed by seed.

    Args:
        samples: N. features: D, inputs and outputs. matrices: L, even. noise: standard deviation of a label's component.
        seeds: data sets and initial weights. steps: of each training. key: JAX random key.
        progress: called with (steps done, steps in all).

    Returns:
        Generalization; the test loss is the exact expectation over x and noise. `bound` is 2 ρ² R²/σ_min(X)² A, with the
        largest residual ρ, input R and factor A = up/lo of the N + 1 networks at the end of training: proven if the
        path between them stays within these, and they reach the least loss.

    Raises:
        ArgumentError: an odd number of matrices, less than two samples.

    Reference: `theory.stability` (derived); gap and variance of least squares for N >= D derived.
    """
    where = "linear_generalization"
    N, D = _checks.integer(where, "samples", samples, 2), _checks.integer(where, "features", features, 1)
    L = _checks.integer(where, "matrices", matrices, 2)
    if L % 2:
        raise _checks.fail(where, f"matrices={L} is odd", "give an even number: skips over two take pairs")
    seeds, steps = _checks.integer(where, "seeds", seeds, 1), _checks.integer(where, "steps", steps, 1)
    if not (isinstance(noise, (int, float)) and 0 <= noise < math.inf):
        raise _checks.fail(where, f"noise={noise!r}", "give a number >= 0")
    keys = jax.random.split(key, (seeds, 4))
    teacher = jax.vmap(lambda k: jnp.eye(D) + DEPARTURE / math.sqrt(D) * jax.random.normal(k, (D, D)))(keys[:, 0])
    x = jax.vmap(lambda k: jax.random.normal(k, (N, D)))(keys[:, 1])
    y = jnp.einsum("sij,snj->sni", teacher, x, precision="highest")
    y += noise * jax.vmap(lambda k: jax.random.normal(k, (N, D)))(keys[:, 2])

    parts = []
    for number, (kind, variance) in enumerate(VARIANCES.items()):
        shape = (L // 2, 2, D, D) if kind == "skip two" else (L, D, D)
        weights = math.sqrt(variance / D) * jax.vmap(lambda k, shape=shape: jax.random.normal(k, shape))(keys[:, 3])
        weights, rates = _start(weights, x, kind=kind)
        for done in range(0, steps, CHUNK):
            count = min(CHUNK, steps - done)
            weights = _descend(weights, x, y, rates, kind=kind, steps=count)
            if progress is not None:
                jax.block_until_ready(weights)
                progress(number * steps + done + count, len(VARIANCES) * steps)
        host = [np.asarray(a, np.float64) for a in (weights, x, y, teacher)]
        parts.append(_measure(*host, noise=noise, kind=kind))
    train, test, left_out, bound = (jnp.asarray(np.stack(part), x.dtype) for part in zip(*parts, strict=True))
    settings = {"samples": N, "features": D, "matrices": L, "noise": noise, "steps": steps}
    return Generalization(tuple(VARIANCES), train, test, left_out, bound, provenance(key, x.dtype, **settings))


def _maps(weights: Any, kind: str) -> Any:
    """The product T_B ... T_1 `(..., D, D)` of weights `(..., B, [2,] D, D)`, arrays of NumPy or JAX."""
    blocks = weights[..., 1, :, :] @ weights[..., 0, :, :] if kind == "skip two" else weights
    if kind != "mlp":
        blocks = blocks + np.broadcast_to(np.eye(blocks.shape[-1], dtype=blocks.dtype), blocks.shape)
    return functools.reduce(lambda T, b: blocks[..., b, :, :] @ T, range(1, blocks.shape[-3]), blocks[..., 0, :, :])


def _subsets(N: int) -> np.ndarray:
    """Weights of the samples `(N + 1, N)`: all, and all but one, each set of sum one."""
    return np.concatenate([np.full((1, N), 1 / N), (1 - np.eye(N)) / (N - 1)]).astype(np.float32)


@functools.partial(linalg.precise_jit, static_argnames="kind")
def _start(weights: Array, x: Array, *, kind: str) -> tuple[Array, Array]:
    """Weights `(S, N + 1, ...)` and rates `(S, N + 1)` of all trainings."""
    N, D = x.shape[1:]
    matrices = weights[0].size // D**2

    def one(weights: Array, x: Array) -> Array:
        J = jax.jacobian(lambda w: x @ _maps(w, kind).T)(weights).reshape(N, -1)  # (N, D·P)

        def rate(m: Array) -> Array:
            root = jnp.sqrt(m)[:, None]
            rows = (root * J).reshape(N * D, -1)
            near_identity = matrices * jnp.linalg.norm(root * x, 2) ** 2
            return 0.5 / jnp.maximum(jnp.linalg.eigvalsh(rows @ rows.T)[-1], near_identity)

        return jax.vmap(rate)(jnp.asarray(_subsets(N), x.dtype))

    rates = jax.vmap(one)(weights, x)
    return jnp.broadcast_to(weights[:, None], (*rates.shape, *weights.shape[1:])), rates


@functools.partial(linalg.precise_jit, static_argnames=("kind", "steps"))
def _descend(weights: Array, x: Array, y: Array, rates: Array, *, kind: str, steps: int) -> Array:
    def one(w: Array, x: Array, y: Array, m: Array, rate: Array) -> Array:
        def risk(w: Array) -> Array:
            return 0.5 * jnp.sum(m[:, None] * (x @ _maps(w, kind).T - y) ** 2)

        return jax.lax.fori_loop(0, steps, lambda _, w: w - rate * jax.grad(risk)(w), w)

    trainings = jax.vmap(one, in_axes=(0, None, None, 0, 0))
    subsets = jnp.asarray(_subsets(x.shape[1]), x.dtype)
    return jax.vmap(trainings, in_axes=(0, 0, 0, None, 0))(weights, x, y, subsets, rates)


def _measure(weights: Any, x: Any, y: Any, teacher: Any, *, noise: float, kind: str) -> tuple[Any, ...]:
    """(train `(S,)`, test `(S,)`, left_out `(S, N)`, bound `(S,)`), in float64."""
    (S, N, D), maps = x.shape, _maps(weights, kind)
    losses = 0.5 * np.sum((np.einsum("stij,snj->stni", maps, x) - y[:, None]) ** 2, axis=-1)  # (S, N + 1, N)
    test = 0.5 * np.sum((maps[:, 0] - teacher) ** 2, axis=(-2, -1)) + 0.5 * D * noise**2
    left_out = np.diagonal(losses[:, 1:], axis1=1, axis2=2) - losses[:, 0]
    # Of the data without any one sample too: for N <= D that is no smaller than with all.
    subsets = [np.arange(N), *(np.delete(np.arange(N), n) for n in range(N))]
    smallest = np.min([np.linalg.svd(x[:, rows], compute_uv=False)[:, -1] for rows in subsets], axis=0)
    with jax.enable_x64(True):
        each = jax.vmap(lambda w: architecture_factor(list(w), kind)[:2])
        up, lo = (np.asarray(a).reshape(S, -1) for a in each(weights.reshape(-1, *weights.shape[2:])))
    residual2, input2 = 2 * losses.max(axis=(1, 2)), np.sum(x**2, axis=-1).max(axis=1)
    bound = 2 * residual2 * input2 / smallest**2 * up.max(axis=1) / lo.min(axis=1)
    return losses[:, 0].mean(axis=1), test, left_out, bound


def generalization(
    variants: Mapping[str, tuple[str, Mapping[str, Any]]],
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    loss: float = 0.05,
    steps: int = 8000,
    seeds: int = 6,
    key: Array,
    progress: Progress | None = None,
) -> Generalization:
    """Test minus training loss of networks that were trained to the same training loss.

    Full-batch gradient descent with momentum β = 0.9 on (1/2N) Σ |f − y|², at a tenth of 2 (1 + β)/λ_max of each network at
    the start (at a half, narrow ReLU networks got stuck); a network that has reached the loss asked for stays
    as it is. Without masks, and with the running statistics of batch norm. All seeds of a variant are one program.

    Args:
        variants: of each name, an architecture of `fj.models` and its options.
        train, test: `(x, y)`; y numbers `(N, C)`, or classes `(N,)`, of which the vectors 0 ... 1 ... 0 are taken.
        loss: where to stop. steps: at most. seeds: initial weights. key: JAX random key.
        progress: called with (steps done, steps in all).

    Returns:
        Generalization, without stability and bound. A training loss above `loss` is of a network that got no further: its
        gap is a lower bound.

    Raises:
        ArgumentError: no variants, shapes that do not fit, a network that diverges.

    Reference: the ordering of the linear case (`linear_generalization`) is no theorem here.
    """
    where = "generalization"
    if not variants:
        raise _checks.fail(where, "variants is empty", 'give {"resnet": ("resmlp", {"depth": 4})}')
    seeds, steps = _checks.integer(where, "seeds", seeds, 1), _checks.integer(where, "steps", steps, 1)
    loss = _checks.positive(where, "loss", loss)
    (x, y), held = _numbers(train, "train"), _numbers(test, "test")
    if (held[0].shape[1:], held[1].shape[1]) != (x.shape[1:], y.shape[1]):
        shapes = f"test of shapes {held[0].shape}, {held[1].shape}"
        raise _checks.fail(where, shapes, f"give those of train, {x.shape}, {y.shape}, with the classes of both")
    optimizer = optax.sgd(1.0, MOMENTUM)
    rows = []
    for number, (label, (name, options)) in enumerate(variants.items()):
        nets, rates = [], []
        for seed in jax.random.split(key, seeds):
            inputs = x.shape[1] if x.ndim == 2 else x.shape[1:]
            model = models.build(name, inputs=inputs, outputs=y.shape[1], key=seed, **options)
            largest = eigsh(fisher(model, x, Gaussian()), 1, key=seed).values[0]
            nets.append(network(model, where, None))
            rates.append(FRACTION * gradient_descent(largest, MOMENTUM))
        net, rates = nets[0], jnp.stack(rates)
        params = jax.tree.map(lambda *a: jnp.stack(a), *(n.params for n in nets))
        run = params, jax.vmap(optimizer.init)(params)
        for done in range(0, steps, CHUNK):
            count = min(CHUNK, steps - done)
            run, last = _fit(net, run, x, y, rates, loss, optimizer=optimizer, steps=count)
            if progress is not None:
                jax.block_until_ready(run)
                progress(number * steps + done + count, len(variants) * steps)
            if not np.isfinite(last).all():
                raise _checks.fail(where, f"{label!r} diverges", "take a smaller depth, or a norm")
            if (np.asarray(last) <= loss).all():
                break
        rows.append([_losses(net, run[0], *data) for data in ((x, y), held)])
    if progress is not None:
        progress(len(variants) * steps, len(variants) * steps)
    settings = {"loss": loss, "momentum": MOMENTUM, "rate": f"{FRACTION} of the limit", "steps": steps}
    found = jnp.stack([jnp.stack(row) for row in rows])  # (A, 2, S)
    return Generalization(tuple(variants), found[:, 0], found[:, 1], None, None, provenance(key, x.dtype, **settings))


def _numbers(data: Any, name: str) -> tuple[Array, Array]:
    if not isinstance(data, (tuple, list)) or len(data) != 2 or data[1] is None or len(data[0]) != len(data[1]):
        raise _checks.fail("generalization", f"{name} is no pair of inputs and as many labels", f"give {name}=(x, y)")
    x, y = jnp.asarray(data[0], float), np.asarray(data[1])
    if y.ndim == 1 and np.issubdtype(y.dtype, np.integer):
        y = np.eye(int(y.max()) + 1)[y]
    if y.ndim != 2:
        raise _checks.fail("generalization", f"labels of {name} of shape {y.shape}", "give (N, C), or classes (N,)")
    return x, jnp.asarray(y, float)


def _risk(net: Network, params: Any, x: Array, y: Array) -> Array:
    return 0.5 * jnp.mean(jnp.sum((net(params, x) - y) ** 2, axis=1))


@linalg.precise_jit
def _losses(net: Network, params: Any, x: Array, y: Array) -> Array:
    return jax.vmap(lambda p: _risk(net, p, x, y))(params)


@functools.partial(linalg.precise_jit, static_argnames=("optimizer", "steps"))
def _fit(
    net: Network, run: Any, x: Array, y: Array, rates: Array, loss: Array, *, optimizer: Any, steps: int
) -> tuple[Any, Array]:
    """Weights and momenta after so many steps of rate times the optimizer's, and the losses before the last of them."""

    def one(run: Any, rate: Array) -> tuple[Any, Array]:
        def step(_: Any, carry: Any) -> Any:
            (params, state), _ = carry
            value, gradient = jax.value_and_grad(lambda p: _risk(net, p, x, y))(params)
            updates, moved = optimizer.update(gradient, state)
            new = optax.apply_updates(params, jax.tree.map(lambda u: rate * u, updates)), moved
            return jax.tree.map(lambda a, b: jnp.where(value <= loss, a, b), (params, state), new), value

        return jax.lax.fori_loop(0, steps, step, (run, jnp.zeros((), y.dtype)))

    return jax.vmap(one)(run, rates)
