"""How far apart inputs and classes stay on their way through random networks, beside the recursions of theory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fisher_jax import _checks, models
from fisher_jax.findings import ClassErrors, Separability
from fisher_jax.results import provenance
from fisher_jax.theory import separability as theory

Array = jax.Array

# The names of `theory.separability.mixing` -> (model, options), He-ReLU and without biases.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("mlp", {}),
    "skip one": ("resmlp", {"skip": 1}),
    "skip two": ("resmlp", {}),
    "population": ("resmlp", {"norm": "population"}),
    "concatenating": ("densemlp", {}),
    "depth": ("resmlp", {"scale": "depth"}),
}


def separability(
    kind: str, *, angle: float = 1.0, depth: int = 10, width: int = 400, seeds: int = 10, key: Array
) -> Separability:
    """Angle, norms, distance and co-activation of two inputs after each layer or block, in random networks and by theory.

        cos t' = mix ψ(t) + (1 − mix) cos t,  |h'|² = |h|²/(1 − mix),  P(active for both) = (1 − t/π)/2

    Args:
        kind: "mlp", "skip one", "skip two", "population" (skip two with the batch norm of Furusho and Ikeda),
            "concatenating" (each block adds as many units as there are inputs) or "depth" (skip two, branches over √L).
        angle: t between the two inputs, in radians, of |x|² = width. depth: hidden layers or blocks L.
        width: units of the stream, D. seeds: networks. key: JAX random key.

    Returns:
        Separability; `fj.plot.separability` draws it.

    Raises:
        ArgumentError: an unknown kind, an angle outside (0, π].

    Reference: Furusho and Ikeda, ACML 2019, Thms 2, 5, 6, 11, and Eq. 8; `theory.separability`.
    """
    depth, width, seeds = _sizes("separability", kind, depth, width, seeds)
    if not 0 < angle <= np.pi:
        raise _checks.fail("separability", f"angle={angle!r}", "give radians in (0, π]")
    x = np.zeros((2, width), np.float32)
    x[0, 0], x[1, :2] = 1, (np.cos(angle), np.sin(angle))

    def network(key: Array) -> tuple[Array, ...]:
        model = build(kind, depth, width, key)
        h = streams(model, jnp.asarray(width**0.5 * x))
        squares = jnp.stack([jnp.sum(a**2, axis=1) for a in h])
        gaps = jnp.stack([jnp.sum((a[0] - a[1]) ** 2) for a in h])
        # Through the distance of unit vectors, which keeps its digits at small angles.
        units = [a / jnp.linalg.norm(a, axis=1, keepdims=True) for a in h]
        turned = jnp.stack([2 * jnp.arcsin(jnp.minimum(jnp.linalg.norm(u[0] - u[1]) / 2, 1)) for u in units])
        both = jnp.stack([jnp.mean(jnp.all(u > 0, axis=0)) for u in preactivations(model, h)])
        return turned, jnp.mean(squares, axis=1) / width, gaps / width, both

    angles, norms, distances, both = _over_seeds(network, seeds, key)
    with jax.enable_x64(True):
        mix = theory.mixing(kind, depth)
        t, square = theory.angles(angle, mix), theory.norms(mix)
        predicted = [np.asarray(a) for a in (t, square, theory.distance(square, square, t), theory.coactivation(t[:-1]))]
    return Separability(
        *(jnp.asarray(a, jnp.float32) for a in predicted),
        angle=angles,
        norm=norms,
        distance=distances,
        coactivation=both,
        kind=kind,
        info=provenance(key=key, angle=angle, depth=depth, width=width),
    )


def class_errors(
    kind: str, plus: Any, minus: Any, *, depth: int = 10, width: int = 400, seeds: int = 10, key: Array
) -> ClassErrors:
    """The bound on the error of two classes after each layer or block, beside the error of the best threshold.

        inf_b P(error) <= 1/(1 + r²),  r = v·(m₊ − m₋)/(√(vᵀΣ₊v) + √(vᵀΣ₋v)),  v = m₊ − m₋

    Means and covariances are those of the samples, for which the bound holds exactly. Both numbers depend on inner products
    only: theory gives them at infinite width from the angles of all pairs of samples.

    Args:
        kind: as in `separability`. plus, minus: inputs of the two classes, `(N₊, d)` and `(N₋, d)`, d ≤ width; zeros are
            appended, which changes no angle. depth, width, seeds, key: as in `separability`.

    Returns:
        ClassErrors; the error of a threshold is the larger of the two classes' errors.

    Raises:
        ArgumentError: an unknown kind, inputs of different or too many features.

    Reference: Furusho and Ikeda, ACML 2019, Thm 1 (Eq. 7); angles as in `separability`.
    """
    where = "class_errors"
    depth, width, seeds = _sizes(where, kind, depth, width, seeds)
    plus, minus = np.asarray(plus, np.float32), np.asarray(minus, np.float32)
    if plus.ndim != 2 or minus.ndim != 2 or plus.shape[1] != minus.shape[1] or plus.shape[1] > width:
        raise _checks.fail(
            where, f"classes of shapes {plus.shape} and {minus.shape} at width {width}", "give (N, d) both, d <= width"
        )
    if min(len(plus), len(minus)) < 2:
        raise _checks.fail(where, f"classes of {len(plus)} and {len(minus)} samples", "give at least two of each")
    samples = np.concatenate([plus, minus])
    # |x|² = width on average, so that the stream has units of order one.
    x = np.pad(samples, ((0, 0), (0, width - samples.shape[1]))) * (width / np.mean(np.sum(samples**2, axis=1))) ** 0.5
    # v·h of the sum of samples with these weights is m₊ − m₋.
    weights = np.concatenate([np.full(len(plus), 1 / len(plus)), np.full(len(minus), -1 / len(minus))])

    def judged(projections: Array) -> tuple[Array, Array]:
        first, second = projections[: len(plus)], projections[len(plus) :]
        return bound_along(first, second), best_threshold_error(first, second)

    def network(key: Array) -> tuple[Array, Array]:
        h = streams(build(kind, depth, width, key), jnp.asarray(x, jnp.float32))
        found = [judged(a @ (jnp.asarray(weights, a.dtype) @ a)) for a in h]
        return jnp.stack([bound for bound, _ in found]), jnp.stack([error for _, error in found])

    bound, error = _over_seeds(network, seeds, key)
    with jax.enable_x64(True):
        mix = theory.mixing(kind, depth)
        x = jnp.asarray(x, float)
        lengths = jnp.linalg.norm(x, axis=1)
        outer = lengths[:, None] * lengths[None, :]
        t = theory.angles(jnp.arccos(jnp.clip(x @ x.T / outer, -1, 1)), mix)
        kernels = theory.norms(mix)[:, None, None] * outer[None] * jnp.cos(t)
        predicted_bound, predicted_error = jax.vmap(judged)(kernels @ jnp.asarray(weights))
        predicted = [np.asarray(a) for a in (predicted_bound, predicted_error)]
    return ClassErrors(
        bound=bound,
        error=error,
        predicted_bound=jnp.asarray(predicted[0], jnp.float32),
        predicted_error=jnp.asarray(predicted[1], jnp.float32),
        kind=kind,
        info=provenance(key=key, plus=len(plus), minus=len(minus), depth=depth, width=width),
    )


def bound_along(plus: Array, minus: Array) -> Array:
    """1/(1 + r²) of the projections of two classes on one direction."""
    means, covariances = ((plus.mean()[None], minus.mean()[None]), (plus.var()[None, None], minus.var()[None, None]))
    return theory.class_error_bound(jnp.ones(1), means, covariances)


def best_threshold_error(plus: Array, minus: Array) -> Array:
    """Least possible `max(P(plus <= b), P(minus > b))` over all thresholds b; those at the samples are enough."""
    b = jnp.concatenate([plus, minus])
    missed = jnp.mean(plus[None, :] <= b[:, None], axis=1)
    false = jnp.mean(minus[None, :] > b[:, None], axis=1)
    return jnp.min(jnp.maximum(missed, false))


class Watched(nnx.Module):
    """A part of a network that keeps what came in."""

    def __init__(self, part: Any):
        self.part = part

    def __call__(self, h: Array) -> Array:
        self.seen = nnx.Intermediate(h)
        return self.part(h)


def streams(model: Any, x: Array) -> list[Array]:
    """(h⁰, h¹, ..., h^L) of a perceptron: what goes into each layer or block and into the readout, by one forward pass."""
    model = nnx.clone(model)
    parts = "layers" if hasattr(model, "layers") else "blocks"
    watched = [Watched(part) for part in getattr(model, parts)]
    setattr(model, parts, nnx.List(watched))
    # In an MLP the last of the layers is the readout.
    if hasattr(model, "readout"):
        model.readout = Watched(model.readout)
        watched.append(model.readout)
    model(x)
    return [part.seen[...] for part in watched]


def preactivations(model: Any, h: list[Array]) -> list[Array]:
    """What the activation of each layer or block sees, up to a positive factor, given its inputs (h⁰, ..., h^{L−1})."""
    if hasattr(model, "layers"):
        return [layer(a) for layer, a in zip(model.layers, h[:-1], strict=False)]
    return [block.first(a) if block.second is not None else a for block, a in zip(model.blocks, h[:-1], strict=True)]


def build(kind: str, depth: int, width: int, key: Array) -> Any:
    """The network of a kind with so many hidden layers or blocks."""
    name, options = KINDS[kind]
    sizes: dict[str, Any] = {"mlp": {"depth": depth + 1, "width": width}, "densemlp": {"depth": depth, "growth": width}}
    chosen: dict[str, Any] = sizes.get(name, {"depth": depth}) | options
    return models.build(name, inputs=width, outputs=1, key=key, **chosen)


def _over_seeds(network: Any, seeds: int, key: Array) -> Any:
    """One after the other in one program: weights of many deep networks at once would not fit in cache, nor in memory."""
    return jax.jit(lambda keys: jax.lax.map(network, keys))(jax.random.split(key, seeds))


def _sizes(where: str, kind: str, depth: int, width: int, seeds: int) -> tuple[int, int, int]:
    if kind not in KINDS:
        raise _checks.fail(where, f"kind={kind!r} is unknown", f"choose among {', '.join(KINDS)}")
    return (
        _checks.integer(where, "depth", depth, 1),
        _checks.integer(where, "width", width, 2),
        _checks.integer(where, "seeds", seeds, 2),
    )
