"""The Kronecker-factored approximation of a Fisher matrix, beside the matrix itself."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg

from fisher_jax import _checks, linalg
from fisher_jax.fisher import FisherOperator, StreamedFisher
from fisher_jax.results import Spectrum, provenance
from fisher_jax.rows import Kronecker, kronecker
from fisher_jax.spectrum import dense_floor, group_parameters, spectrum


def kronecker_factors(F: FisherOperator) -> dict[str, Kronecker]:
    """The Kronecker factors of the layers of a Fisher matrix, exact sums over all samples and outputs.

        F_layer ≈ E[Σ_t a aᵀ] ⊗ E[Σ_r Σ_t g gᵀ] / T

    with a the layer's input, g the cotangent of its output, at each of T positions (one in a dense layer). A bias that is
    added to the output right away shares the layer's factors: the last row and column of the inputs' one.

    Args:
        F: from `fj.fisher`.

    Returns:
        dict: path of the weight -> Kronecker (inputs, outputs). Parameters met in other ways (norm scales, tied weights)
        have none.

    Reference: Martens and Grosse, ICML 2015, section 3; Grosse and Martens, ICML 2016, section 3 (several positions).
    """
    paths = _factor("kronecker_factors", F).jacobian.network.paths
    return {paths[index[0]]: found for index, found in kronecker(F.factor, (0,) * len(paths))[0].items()}


def kfac_spectrum(F: FisherOperator, *, by: str | None = None) -> Any:
    """All eigenvalues of the Kronecker-factored approximation (K-FAC) of a Fisher matrix, to hold against `fj.spectrum(F)`.

    The approximation is block diagonal over layers, and the eigenvalues of a layer's block are the products of those of its
    two factors (`fj.kronecker_factors`). Parameters without factors keep their exact block, one for each parameter.

    Args:
        F: from `fj.fisher`.
        by: "layer" or "block": also the part of every layer or block, as `fj.spectrum(F, by=by)` gives them.

    Returns:
        Spectrum; with `by`, a dict of them by path, the whole under "all".

    Raises:
        ArgumentError: the eigenvalues, up to one for each parameter, do not fit in memory; F is a centred covariance.

    Reference: Martens and Grosse, ICML 2015, section 4.
    """
    factor = _factor("kfac_spectrum", F)
    network = factor.jacobian.network
    count, itemsize = len(network.params), np.dtype(F.dtype).itemsize
    if by not in (None, "layer", "block"):
        raise _checks.fail("kfac_spectrum", f"by={by!r} is not known", 'give "layer", "block" or None')
    wanted, free = 3 * F.size * itemsize, linalg.free_memory()
    if wanted > free:
        raise _checks.fail(
            "kfac_spectrum",
            f"{F.size} eigenvalues take {wanted / 2**30:.1f} GiB of {free / 2**30:.1f} GiB free",
            "choose layers with where=, or take fj.kronecker_factors(F)",
        )
    names, groups = group_parameters(F, by) if by else (["all"], [list(range(count))])
    group = tuple(next(g for g, members in enumerate(groups) if i in members) for i in range(count))
    factors, rest = kronecker(factor, group)
    parts: dict[str, list[Spectrum]] = {name: [] for name in names}
    for parameters, pair in factors.items():
        size = sum(network.params[i].size for i in parameters)
        parts[names[group[parameters[0]]]].append(_products(F, pair, size))
    for index in rest:
        jacobian = dataclasses.replace(factor.jacobian, network=network.only({index}), stored=None)
        parts[names[group[index]]].append(spectrum(FisherOperator(dataclasses.replace(factor, jacobian=jacobian))))
    unmet = set(range(count)) - {i for parameters in factors for i in parameters} - set(rest)
    unused = [sum(network.params[i].size for i in unmet if group[i] == g) for g in range(len(names))]
    whole = _joined(F, [part for found in parts.values() for part in found], sum(unused))
    if not by:
        return whole
    return {"all": whole} | {name: _joined(F, parts[name], unused[g]) for g, name in enumerate(names)}


def _factor(where: str, F: Any) -> Any:
    if not isinstance(F, FisherOperator):
        raise _checks.fail(where, f"F is a {type(F).__name__}", "give fj.fisher(...)")
    if isinstance(F, StreamedFisher):
        raise _checks.fail(where, "F is that of a streamed network", "build the model without streamed=True")
    if F.factor.centre is not None:
        raise _checks.fail(where, "F is a centred gradient covariance, without Kronecker factors", "give fj.fisher(...)")
    return F.factor


def _products(F: FisherOperator, pair: Kronecker, size: int) -> Spectrum:
    """Spectrum of `inputs ⊗ outputs`, for each of B matrices."""
    values, floor, trace, square, rank = [], 0.0, 0.0, 0.0, 0
    positions, R = F.factor.jacobian.data.samples * pair.positions, F.factor.rows_per_sample
    for inputs, outputs in zip(np.asarray(pair.inputs), np.asarray(pair.outputs), strict=True):
        if inputs.ndim == 1:
            a, a_floor = inputs, 0.0
        else:
            a = scipy.linalg.eigvalsh(inputs)
            a_floor = dense_floor(a, a.dtype)
        g = scipy.linalg.eigvalsh(outputs)
        floor = max(floor, a_floor * g.max() + dense_floor(g, g.dtype) * a.max())
        values.append(np.outer(a, g).ravel())
        rank += min(a.size, positions) * min(g.size, positions * R)
        trace += float(np.trace(inputs) if inputs.ndim == 2 else inputs.sum()) * float(np.trace(outputs))
        square += float(np.linalg.norm(inputs)) ** 2 * float(np.linalg.norm(outputs)) ** 2
    return _spectrum(F, np.concatenate(values), floor, size, size - rank, trace, square**0.5)


def _joined(F: FisherOperator, parts: list[Spectrum], unused: int) -> Spectrum:
    """Spectrum of a block diagonal matrix; `unused` parameters have no gradient anywhere."""
    values = np.concatenate([np.zeros(0), *(np.asarray(p.values) for p in parts)])
    zeros = unused + sum(p.zeros for p in parts)
    floor = max((p.floor for p in parts), default=0.0)
    trace, square = sum(p.trace for p in parts), sum(p.frobenius**2 for p in parts)
    return _spectrum(F, values, floor, unused + sum(p.size for p in parts), zeros, trace, square**0.5)


def _spectrum(
    F: FisherOperator, values: np.ndarray, floor: float, size: int, zeros: int, trace: float, frobenius: float
) -> Spectrum:
    kept = np.sort(values[values > floor])[::-1].astype(F.dtype)
    return Spectrum(
        values=jnp.asarray(kept),
        vectors=None,
        floor=float(floor),
        unresolved=size - zeros - kept.size,
        zeros=zeros,
        size=size,
        dual_size=F.factor.shape[0],
        trace=float(trace),
        frobenius=float(frobenius),
        method="K-FAC: products of the eigenvalues of the layers' factors",
        info=provenance(dtype=F.dtype, size=size),
    )
