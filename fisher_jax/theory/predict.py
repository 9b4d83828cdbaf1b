"""One line from a model's name and options to what theory says of its Fisher spectrum."""

import dataclasses
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import _checks
from fisher_jax.likelihoods import Categorical, Gaussian
from fisher_jax.results import Law
from fisher_jax.theory.levels import Levels, levels
from fisher_jax.theory.network import Network, network
from fisher_jax.theory.recursion import as_kernel, two_valued

Array = jax.Array


def predict(
    name: str,
    *,
    inputs: int | None = None,
    outputs: int = 1,
    samples: float | None = None,
    x: Any = None,
    kernel: Any = None,
    cosine: float = 0.0,
    likelihood: Any = "gaussian",
    masks: Any = None,
    bn: str | None = None,
    draws: int | None = None,
    key: Any = None,
    k: int | None = None,
    **options: Any,
) -> Law:
    """The Fisher spectrum of a wide network at initialization, from its architecture alone.

        λ(F) = λ(Θ)/N,  Θ(x, x') = E[∇f(x)·∇f(x')] at infinite width

    Args:
        name: mlp, resmlp or densemlp; options: those of `fj.models.build`, with its defaults.
        inputs: features of a sample, d. outputs: C. samples: N.
        x: data `(N, d)`; or kernel: `(N, N)` matrix x·x'/d. Without both: N samples with |x|² = d and this cosine between
            any two, as x ~ N(0, 1) has nearly. The exact kernel matters where N/d is not small and the outputs have no mean
            over samples (odd activations without biases, few layers). Of skips with the activation last, form="post", the
            means of samples over their features count too: known from x, zero otherwise.
        likelihood: "gaussian" or "categorical", or `fj.Gaussian(noise)`, `fj.Categorical()`.
        masks: of dropout and stochastic depth, as in `fj.fisher`: "mean" or None: the network without masks;
            "one" or `fj.Fixed(key)`: one draw, in expectation over draws; "typical": one of the median number of surviving
            branches; `fj.Average(draws, key)`: the average over so many; "average": over all, of which the largest
            eigenvalues are given.
        bn: of batch normalization: "eval": the running statistics of a new network, that is, none; "frozen"; "train": of
            the outputs only.
        draws: of the softmax, 16 unless given, and of the masks of stochastic depth for "average", 256. key: for both.
        k: the k largest eigenvalues alone, and the trace: what thousands of samples leave time for.

    Returns:
        Law, with estimates of how much networks of this width differ. Computed in float64 on the host; to differentiate,
        take the recursions, such as `theory.residual.skip_two`.

    Raises:
        ArgumentError: an option that theory does not cover, or arguments that do not fit.

    Warns:
        Depth too large for the width; a largest eigenvalue that random fluctuations of the bulk exceed.

    Reference: Karakida et al., AISTATS 2019; Furusho and Ikeda, ACML 2019; each recursion states its own.
    """
    with jax.enable_x64(True):
        K, samples, inputs = _inputs(inputs, samples, x, kernel, cosine)
        net = network(name, inputs, outputs, options)
        if x is not None:
            net = dataclasses.replace(net, means=jnp.mean(jnp.asarray(np.asarray(x), float), axis=1))
        scale, softmax = _likelihood(likelihood)
        if not math.isinf(samples) and samples * net.outputs > net.size:
            raise _checks.fail(
                "theory.predict",
                f"samples={samples:g} times {net.outputs} outputs exceed the {net.size} parameters",
                "take fewer samples or a wider network",
            )
        if bn not in (None, "eval", "frozen", "train"):
            raise _checks.fail("theory.predict", f"bn={bn!r} is unknown", 'give "eval", "frozen" or "train"')
        if net.norm == "batch" or net.output_norm != "none":
            if bn is None:
                raise _checks.fail("theory.predict", "bn is missing", 'give bn="eval", "frozen" or "train"')
        elif bn is not None:
            raise _checks.fail("theory.predict", f"bn={bn!r}, but the model has no batch normalization", "leave bn out")
        k = None if k is None else _checks.integer("theory.predict", "k", k, 1)
        found = levels(net, K, samples, masks, bn, draws, key, softmax, k)
        return _law(net, K, samples, found, scale, softmax, k, _which(net, masks, bn))


@dataclasses.dataclass(frozen=True)
class MaskLaw:
    """What theory says of the numbers of `fj.over_masks`; they grow with depth at different rates.

    - `trace`: of the average, `tr E[F(mask)]`: (1 + p)^L L for stochastic depth, L p^{1−L} for inverted dropout in an MLP.
    - `largest_of_average`: `λ_max(E[F(mask)])`. For stochastic depth from draws: no closed form is known.
    - `average_of_largest`: `E[λ_max(F(mask))]`, never smaller: growth 1 + p.
    - `largest_of_mean_network`, `trace_of_mean_network`: without masks, branches times p: growth 1 + p².
    - `largest_of_typical`: λ_max at the median number of surviving branches: growth 2^p.
    """

    draws: int
    trace: float
    largest_of_average: float
    average_of_largest: float
    largest_of_mean_network: float
    trace_of_mean_network: float
    largest_of_typical: float

    def __repr__(self) -> str:
        rows = (
            ("trace of the average over masks", self.trace),
            ("λ_max of the average over masks", self.largest_of_average),
            ("average over masks of λ_max", self.average_of_largest),
            ("λ_max of the mean network", self.largest_of_mean_network),
            ("trace of the mean network", self.trace_of_mean_network),
            ("λ_max of the typical network", self.largest_of_typical),
        )
        return "\n".join(f"{name:<33} {value:.6g}" for name, value in rows)


def over_masks(name: str, *, draws: int = 256, key: Any = None, **arguments: Any) -> MaskLaw:
    """The trace and the largest eigenvalues under dropout or stochastic depth, kept apart.

    Args:
        name, arguments: as in `predict`. draws: of the masks of stochastic depth. key: JAX random key for them.

    Returns:
        MaskLaw.
    """
    average, one, mean, typical = (
        predict(name, masks=masks, draws=draws, key=key, **arguments) for masks in ("average", "one", "mean", "typical")
    )
    return MaskLaw(
        draws=draws,
        trace=average.trace,
        largest_of_average=average.lambda_max,
        average_of_largest=one.lambda_max,
        largest_of_mean_network=mean.lambda_max,
        trace_of_mean_network=mean.trace,
        largest_of_typical=typical.lambda_max,
    )


def _inputs(inputs: Any, samples: Any, x: Any, kernel: Any, cosine: float) -> tuple[Array, float, int]:
    """(kernel `(N, N)` or of two inputs, N, d)."""
    where = "theory.predict"
    measured = x is not None
    if measured:
        x = jnp.asarray(np.asarray(x), float)
        if x.ndim != 2 or kernel is not None:
            raise _checks.fail(where, f"x of shape {x.shape}", "give x (N, d), without kernel")
        if inputs not in (None, x.shape[1]):
            raise _checks.fail(where, f"inputs={inputs} differs from x of shape {x.shape}", "leave inputs out")
        inputs, kernel = x.shape[1], jnp.matmul(x, x.T, precision="highest") / x.shape[1]
    if inputs is None:
        raise _checks.fail(where, "inputs is missing", "give inputs=..., the features of a sample")
    inputs = _checks.integer(where, "inputs", inputs, 1)
    if kernel is not None:
        K = as_kernel(np.asarray(kernel))
        _checks.finite(where, "kernel", K, "give finite data")
        host = np.asarray(K)
        # Of x it is one, and the check takes as long as the spectrum.
        if not measured and (
            not np.allclose(host, host.T, rtol=1e-5) or np.linalg.eigvalsh(host)[0] < -1e-5 * np.abs(host).max()
        ):
            raise _checks.fail(where, f"kernel of shape {K.shape} is no matrix of inner products", "give x·x'/d, or x=...")
        if samples not in (None, K.shape[0]):
            raise _checks.fail(where, f"samples={samples} differs from the kernel of shape {K.shape}", "leave samples out")
        return K, K.shape[0], inputs
    if samples is None:
        raise _checks.fail(where, "samples is missing", "give samples=..., x=... or kernel=...")
    samples = samples if samples == math.inf else _checks.integer(where, "samples", samples, 1)
    if not -1 / max(samples - 1, 1) - 1e-9 <= cosine <= 1:
        raise _checks.fail(
            where, f"cosine={cosine} between {samples} samples", "give a number between -1/(samples - 1) and 1"
        )
    return two_valued(cosine), samples, inputs


def _likelihood(likelihood: Any) -> tuple[float, bool]:
    """(factor of F, is it softmax)."""
    if isinstance(likelihood, Gaussian):
        return 1 / likelihood.noise**2, False
    if likelihood == "gaussian":
        return 1.0, False
    if isinstance(likelihood, Categorical) or likelihood == "categorical":
        return 1.0, True
    raise _checks.fail(
        "theory.predict", f"likelihood={likelihood!r} is not covered", 'give "gaussian" or "categorical", or their records'
    )


def _which(net: Network, masks: Any, bn: str | None) -> str:
    """Which of several matrices a law is about, in words."""
    words = {None: "", "eval": "batch norm in evaluation mode, ", "frozen": "batch norm frozen, ", "train": "batch norm, "}[
        bn
    ]
    if net.dropout > 0 or net.stochastic:
        named = {
            "mean": "mean network",
            "one": "one subnetwork",
            "typical": "typical subnetwork",
            "average": "average over masks",
        }
        number = getattr(masks, "draws", None)
        words += (f"average over {number} draws of masks" if number else named[masks or "mean"]) + ", "
    return words


def _law(
    net: Network, K: Array, samples: float, found: Levels, scale: float, softmax: bool, k: int | None, which: str
) -> Law:
    order = np.argsort(-found.values)
    order = order[np.isfinite(found.counts[order])]  # of infinitely many samples, the outliers
    values, counts = found.values[order] * scale, found.counts[order]
    if k is not None:
        counts = np.clip(k - np.cumsum(counts) + counts, 0, counts)
        values, counts = values[counts > 0], counts[counts > 0]
    factor = 4.0**found.exponent if found.exponent < 510 else math.inf
    shift = found.exponent * math.log(4)
    largest, trace = float(values[0]), scale * float(found.trace)
    outliers = net.outputs if found.outliers is None else found.outliers
    of_width, bias = _finite_width(net, net.randomness(found.tangent))
    deviation = math.hypot(of_width, found.spread**0.5)
    N = samples
    _warn(net, K, samples, of_width, values, counts, found.rank, trace, 0 if softmax else outliers)
    info = [("valid for", f"initialization, width ≫ depth and samples ({net.stream} units here)")]
    info += [("drawn", found.note)] if found.note else []
    with np.errstate(over="ignore", invalid="ignore"):
        square = np.sum(counts * values**2) if found.square is None else found.square * scale**2
        frobenius = float(np.sqrt(square) * factor) if counts.sum() == found.rank else math.nan
        return Law(
            values=values * factor,  # type: ignore[arg-type]
            counts=counts,  # type: ignore[arg-type]
            trace=trace * factor,
            frobenius=frobenius,
            outliers=outliers,
            size=net.size,
            dual_size=int(found.rank) if math.isfinite(found.rank) else net.size,
            log_trace=math.log(trace) + shift if trace > 0 else -math.inf,
            log_lambda_max=math.log(largest) + shift if largest > 0 else -math.inf,
            deviation=deviation,
            bias=bias,
            method=f"theory: {net.kind}, {which}"
            + (f"kernel of {int(N)} samples" if K.shape[0] == N else f"N = {N:g}, two values"),
            info=tuple(info),
        )


def _finite_width(net: Network, randomness: float) -> tuple[float, float]:
    """(deviation of one network's trace, share by which λ_max/trace lies above on average), both to first order in 1/width.

    Fitted to ensembles of 600 ReLU networks of widths 48 and 96, N = 4 and 16: the excess is c/width at both, whatever N,
    with c from 4.3 (shallow) to 10 (MLP of 8 layers), within about 1 of 4.3 + 0.09 R² for R layers' worth of randomness; 1.5
    with the activation last. The deviations were 0.3 to 0.95 of the estimate. Traces have no bias.
    """
    if not randomness:
        return 0.0, 0.0
    excess = 1.5 if net.kind == "skip one, post" else 4.3 + 0.09 * randomness**2
    return math.sqrt(2.5 * randomness / net.stream), excess / net.stream


def _warn(
    net: Network,
    K: Array,
    samples: float,
    deviation: float,
    values: np.ndarray,
    counts: np.ndarray,
    rank: float,
    trace: float,
    outliers: int,
) -> None:
    if deviation > 0.5:
        message = (
            f"theory of {net.name}: at depth {net.depth} and width {net.stream} one network may differ by "
            f"{100 * deviation:.0f} %; the prediction holds for widths far above the depth"
        )
        warnings.warn(message, stacklevel=4)
    exact = deviation == 0 and K.shape[0] == samples
    if not outliers or math.isinf(samples) or samples == 1 or exact:
        return
    below = values < values[0]
    many, bulk = counts[~below].sum(), values[0]
    if many < rank < math.inf:  # also where the values are the k largest alone
        bulk = (trace - many * values[0]) / (rank - many)
    elif below.any():
        bulk = np.average(values[below], weights=counts[below])
    if values[0] < bulk * (1 + math.sqrt(samples / net.stream)) ** 2:
        message = (
            f"theory of {net.name}: λ_max={values[0]:.3g} does not stand out of the bulk, whose fluctuations at width "
            f"{net.stream} exceed it; use the trace, or x=... for shallow networks"
        )
        warnings.warn(message, stacklevel=4)
