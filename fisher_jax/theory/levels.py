"""Which of several matrices is meant, and its eigenvalues: likelihood, output norm, batch statistics, random masks."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import _checks
from fisher_jax.theory import masks as random_masks
from fisher_jax.theory import normalization, spectra
from fisher_jax.theory.network import Network
from fisher_jax.theory.recursion import Tangent

Array = jax.Array

# Rows of the largest kernel that is made for masks, samples times draws; and samples up to which batch statistics are exact.
MOST_ROWS = 4096
MOST_EXACT = 512


@dataclasses.dataclass
class Levels:
    """Eigenvalues of F, times 4^exponent: (value, how many of each), their trace, and how many there are in all."""

    values: np.ndarray
    counts: np.ndarray
    rank: float
    trace: float
    tangent: Tangent
    exponent: float
    outliers: int | None = None
    spread: float = 0.0  # squared relative deviation beside that of the weights
    square: float | None = None  # ‖F‖_F² in expectation, times 16^exponent, where it is not that of the values
    note: str = ""


def levels(
    net: Network,
    K: Array,
    samples: float,
    masks: Any,
    bn: str | None,
    draws: int | None,
    key: Any,
    softmax: bool,
    k: int | None,
) -> Levels:
    """Eigenvalues of the matrix that the choices name: all, or at least the k largest.

    `K` is `(N, N)`, or stands for N samples by two.
    """
    where = f"theory of {net.name}"
    each = None if k is None else -(-k // net.outputs)  # of one output
    if masks not in (None, "mean"):
        for other, present in (("softmax", softmax), ("batch normalization", bn not in (None, "eval"))):
            if present:
                raise _checks.fail(where, f"random masks with {other} are not covered", 'choose masks="mean"')
        chosen = _draws(net, masks, draws, key)
        return (_with_depth if net.stochastic else _with_dropout)(net, K, samples, chosen, each)
    keep = 1 - net.dropout if net.dropout_form == "raw" else 1.0
    gate = net.gate(keep**2, keep)
    if net.norm == "batch" and bn == "train":
        raise _checks.fail(
            where, "bn='train' with norm='batch': no closed form is known", 'choose bn="frozen", which is above'
        )
    if net.norm == "batch" and bn == "frozen":
        if gate.dual.homogeneous and 5 <= samples <= MOST_EXACT:
            K, norm = of_samples(K, samples), normalization.by_own_variance(gate.dual)
        else:
            norm = normalization.by_mean_variance(gate.dual, _stands_for(K, samples))
        gate = dataclasses.replace(gate, norm=norm)
    tangent = net.tangent(K, gate, net.survivals)
    if softmax:
        return _softmax(net, tangent, samples, bn, draws, key, k)
    return _gaussian(net, tangent, samples, bn, each)


@dataclasses.dataclass(frozen=True)
class Draws:
    """Masks: how many for each sample, or infinitely many; are they the same for all samples; is one the typical one."""

    count: float
    shared: bool
    number: int  # to draw where the kernel has no closed form
    key: Any
    typical: bool = False


def _draws(net: Network, masks: Any, draws: int | None, key: Any) -> Draws:
    where = f"theory of {net.name}"
    if masks not in ("average", "one", "typical") and not hasattr(masks, "draws"):
        choices = 'give "mean", "one", "typical", "average", fj.Fixed(key) or fj.Average(draws, key)'
        raise _checks.fail(where, f"masks={masks!r} is unknown", choices)
    if net.dropout == 0 and not net.stochastic:
        raise _checks.fail(where, f"masks={masks!r}, but the model has neither dropout nor stochastic depth", "leave it out")
    if masks == "average":
        return Draws(math.inf, False, _checks.integer(where, "draws", 256 if draws is None else draws, 1), key)
    if isinstance(masks, str):
        return Draws(1, True, 1, None, masks == "typical")
    return Draws(masks.draws, getattr(masks, "shared", True), masks.draws, masks.key)


def _stands_for(K: Array, samples: float) -> float | None:
    """N, if K is a two-valued kernel that stands for more than its two rows."""
    return None if K.shape[0] == samples else samples


def of_samples(K: Array, samples: float) -> Array:
    """The `(N, N)` matrix of a two-valued kernel."""
    if K.shape[0] == samples:
        return K
    if samples > MOST_ROWS:
        raise _checks.fail(
            "theory.predict", f"samples={samples:g} need a kernel of so many rows", f"take at most {MOST_ROWS}"
        )
    return jnp.where(jnp.eye(int(samples), dtype=bool), K[0, 0], K[0, 1])


def _eigenvalues(theta: Array, k: int | None) -> np.ndarray:
    """Of `Θ/N`, all or the k largest."""
    return np.asarray(spectra.eigenvalues(theta)) if k is None or k >= theta.shape[0] else spectra.largest(theta, k)


def _spectrum(theta: Array, samples: float, k: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of one output, and how many of each."""
    if theta.shape[0] == samples:
        values = _eigenvalues(theta, k)
        return values, np.ones(values.size)
    levels = spectra.two_levels(theta[0, 0], theta[0, 1], samples)
    return np.array([float(level) for level in levels]), np.array([1.0, samples - 1])


def _gaussian(net: Network, tangent: Tangent, samples: float, bn: Any, k: int | None) -> Levels:
    theta, shift = tangent.scaled, float(tangent.exponent)
    outliers, spread = None, 0.0
    if net.output_norm == "batch" and bn == "train":
        raise _checks.fail(
            "theory", "output_norm='batch' with bn='train'", "see fj.theory.spectra.normalized, for given outputs"
        )
    if net.output_norm == "batch" and bn == "frozen":
        covariance = normalization.centred(tangent.forward, _stands_for(theta, samples))
        variance = jnp.mean(jnp.diagonal(covariance))
        square = jnp.mean(covariance**2)
        if _stands_for(theta, samples):
            square = covariance[0, 0] ** 2 / samples + (1 - 1 / samples) * covariance[0, 1] ** 2
        # The variance over the batch is random, as χ² of 2/spread numbers is: E[1/variance] exceeds 1/E[variance].
        spread = float(2 * square / variance**2)
        if spread > 0.5:
            raise _checks.fail("theory", f"output_norm='batch' with {samples} samples", "take more: the variance is random")
        theta = theta / (variance * (1 - spread))
        shift -= float(tangent.forward_exponent)
    if net.output_norm == "mean" and bn == "train":
        theta, outliers = normalization.centred(theta, _stands_for(theta, samples)), 0
    values, counts = _spectrum(theta, samples, k)
    C = net.outputs
    trace = C * float(jnp.mean(jnp.diagonal(theta)))
    return Levels(values, C * counts, C * samples, trace, tangent, shift, outliers=outliers, spread=spread / C)


def _softmax(net: Network, tangent: Tangent, samples: float, bn: Any, draws: int | None, key: Any, k: int | None) -> Levels:
    where = "theory.predict"
    if bn not in (None, "eval") and net.output_norm != "none":
        raise _checks.fail(where, f"output_norm={net.output_norm!r} with softmax", "choose likelihood='gaussian'")
    if net.outputs == 1:
        raise _checks.fail(where, "outputs=1 with softmax: its only probability is one, F is zero", "give outputs >= 2")
    if key is None:
        raise _checks.fail(where, "key is missing", "give key=jax.random.key(seed): softmax probabilities are drawn")
    rows = samples * net.outputs
    few = None if k is None or k >= rows else k
    if few is None and rows > MOST_ROWS // 2:
        remedy = f"take at most {MOST_ROWS // 2}, or give k: the largest alone"
        raise _checks.fail(where, f"{rows:g} samples times outputs with softmax", remedy)
    theta = of_samples(tangent.scaled, samples)
    covariance = of_samples(tangent.forward, samples) * 4.0 ** float(tangent.forward_exponent)
    draws = _checks.integer(where, "draws", 16 if draws is None else draws, 1)
    P = spectra.softmax_probabilities(covariance, net.outputs, key, draws)
    found = [spectra.softmax_largest(theta, p, few) if few else spectra.softmax_eigenvalues(theta, p) for p in P]
    # One direction of each sample's outputs carries nothing: N eigenvalues are zero for certain.
    rank = samples * (net.outputs - 1)
    drawn = np.stack([np.asarray(one) for one in found])[:, : int(rank)]
    values = drawn.mean(axis=0)
    square = None if few else float(np.mean(np.sum(drawn**2, axis=1)))
    traces = np.asarray(jnp.sum(jnp.diagonal(theta)[None, :] * (1 - jnp.sum(P**2, -1)), 1)) / samples
    spread = float(traces.var(ddof=1) / traces.mean() ** 2) if draws > 1 else 0.0
    note = f"mean over {draws} draws of the outputs"
    exponent, outliers = float(tangent.exponent), net.outputs - 1
    return Levels(
        values,
        np.ones_like(values),
        rank,
        float(traces.mean()),
        tangent,
        exponent,
        outliers=outliers,
        spread=spread,
        square=square,
        note=note,
    )


def _with_dropout(net: Network, K: Array, samples: float, draws: Draws, k: int | None) -> Levels:
    N, keep = K.shape[0], 1 - net.dropout
    pairs, second = random_masks.doubled(K, keep, net.dropout_form, draws.shared)
    gate = net.gate(second, random_masks.dropout_moments(keep, net.dropout_form)[2])
    tangent = net.tangent(pairs, gate, rows=np.tile(np.arange(N), 2))
    same, different = tangent.scaled[:N, :N], tangent.scaled[:N, N:]
    trace = net.outputs * float(jnp.mean(jnp.diagonal(same)))
    first, contrasts = random_masks.average_over_draws(same, different, draws.count)
    top, few = _spectrum(first, samples, k)
    rest, many = _spectrum(contrasts, samples, k)
    values, counts = np.r_[top, rest], np.r_[few, many * (0 if math.isinf(draws.count) else draws.count - 1)]
    kept, rank = counts > 0, net.outputs * samples * draws.count
    return Levels(values[kept], net.outputs * counts[kept], rank, trace, tangent, float(tangent.exponent))


def _with_depth(net: Network, K: Array, samples: float, draws: Draws, k: int | None) -> Levels:
    where = f"theory of {net.name}"
    if net.dropout > 0:
        raise _checks.fail(where, "dropout and stochastic depth together are not covered", 'choose masks="mean"')
    if net.norm != "none":
        raise _checks.fail(where, f"random masks with norm={net.norm!r} are not covered", 'choose masks="mean"')
    over_depths = _over_depths(net, K, samples, draws.typical, k)
    if draws.count == 1 and draws.shared:
        return over_depths
    if draws.key is None:
        raise _checks.fail(where, "key is missing", "give key=jax.random.key(seed): masks are drawn")
    p, S, C, two = net.survivals, draws.number, net.outputs, K.shape[0] != samples
    if two and (draws.shared or math.isinf(draws.count)):
        # The same S draws for all samples: kernels between draws at equal and at different inputs.
        b = np.asarray(jax.random.bernoulli(draws.key, p[:, None], (net.depth, S)), float)
        tangent = net.tangent(jnp.kron(K, jnp.ones((S, S))), net.gate(), np.tile(b, (1, 2)))
        equal, other = tangent.scaled[:S, :S], tangent.scaled[:S, S:]
        parts = (equal + (samples - 1) * other, equal - other)
        found = [_eigenvalues(part, k) for part in parts]
        values, counts = np.concatenate(found) / samples, np.repeat([1.0, samples - 1], [one.size for one in found])
    else:
        if samples * S > MOST_ROWS:
            raise _checks.fail(where, f"{samples:g} samples times {S} draws", f"take at most {MOST_ROWS} in all")
        # Rows: samples, draws. Shared draws come again for each sample.
        rows = S if draws.shared else int(samples) * S
        b = np.asarray(jax.random.bernoulli(draws.key, p[:, None], (net.depth, rows)), float)
        b = np.tile(b, (1, int(samples))) if draws.shared else b
        every = jnp.kron(of_samples(K, samples), jnp.ones((S, S)))
        tangent = net.tangent(every, net.gate(), b, rows=np.repeat(np.arange(int(samples)), S))
        values = _eigenvalues(tangent.scaled, k)
        counts, equal = np.ones(values.size), tangent.scaled
    trace, shift = C * float(jnp.mean(jnp.diagonal(equal))), float(tangent.exponent)
    if math.isinf(draws.count):  # the trace of the expectation is known
        trace = over_depths.trace * 4.0 ** (over_depths.exponent - shift)
    note = f"{S} draws of the masks"
    return Levels(values, C * counts, C * samples * draws.count, trace, tangent, shift, note=note)


def _over_depths(net: Network, K: Array, samples: float, typical: bool, k: int | None) -> Levels:
    """Expectation over the number of surviving branches, or its median: a network of n survivors is one of n blocks."""
    P = np.asarray(random_masks.survivors(net.survivals))
    P = np.eye(P.size)[np.searchsorted(np.cumsum(P), 0.5)] if typical else P
    kernels = net.tangent(K, net.gate(), every=True)
    exponents = np.asarray(kernels.exponent)
    likely = P > 0
    shift = float(exponents[likely].max())
    kept = zip(P[likely], 4.0 ** (exponents[likely] - shift), kernels.scaled[likely], strict=True)
    parts = [(p, theta, factor, *_spectrum(theta, samples, k)) for p, factor, theta in kept]
    values = np.sum([p * factor * values for p, _, factor, values, _ in parts], axis=0)
    traces = np.array([factor * float(jnp.mean(jnp.diagonal(theta))) for _, theta, factor, _, _ in parts])
    chances = np.array([p for p, *_ in parts])
    trace = float(chances @ traces)
    spread = float(chances @ traces**2) / trace**2 - 1
    square = sum(p * factor**2 * float(np.sum(counts * values**2)) for p, _, factor, values, counts in parts)
    note = "at the median number of surviving branches" if typical else "expectation over the number of surviving branches"
    C = net.outputs
    counts, square = C * parts[0][4], C * square if math.isfinite(samples) else None
    return Levels(values, counts, C * samples, C * trace, kernels, shift, spread=max(spread, 0.0), square=square, note=note)
