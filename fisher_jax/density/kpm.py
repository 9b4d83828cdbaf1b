"""Kernel polynomial method: Chebyshev moments of each probe, damped so that no weight is negative.

    μₙ = zᵀ Tₙ(M̃) z / zᵀ z,    wₖ = (g₀ μ₀ + 2 Σₙ gₙ μₙ Tₙ(xₖ)) / K  at the Chebyshev points xₖ

with M̃ the operator mapped to [−1, 1] and Jackson's factors gₙ, which blur by π/degree of the half range. A second opinion
on SLQ: three vectors, no orthogonalization, no adaptation, and no bound for what it integrates.

Reference: Weiße, Wellein, Alvermann and Fehske, Rev. Mod. Phys. 78(1), 2006, II.B and II.C.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft

from fisher_jax import _checks, linalg
from fisher_jax.density.base import Density
from fisher_jax.density.space import Reporter, Space
from fisher_jax.results import provenance
from fisher_jax.solvers.base import HostLoop, features

Array = jax.Array

# Power iteration for the range: products, and the margin for what they have not reached.
POWER, MARGIN = 12, 1.1
# Chebyshev polynomials are at most one on the range and explode outside: a moment above this tells that it was too narrow.
OUTSIDE, WIDER, TRIES = 1.01, 1.5, 5


@dataclasses.dataclass(frozen=True)
class KPM:
    """Chebyshev moments with Jackson damping, in the smaller of primal and dual space.

    Args:
        degree: of the polynomials, from degree/2 products for each probe. The resolution is π/degree of half the range, and
            eigenvalues are not told from zero below π²/2 of its square: they all show as one bump there.
        probes: Gaussian vectors.
    """

    degree: int = 160
    probes: int = 8

    def __post_init__(self) -> None:
        _checks.integer("KPM", "degree", self.degree, 2)
        _checks.integer("KPM", "probes", self.probes, 1)

    def estimate(self, space: Space, *, key: Array, progress: Reporter | None = None) -> Density:
        z = space.probes(key, self.probes)
        shares = np.asarray(jnp.sum(z**2, axis=1), np.float64)
        shares = shares / shares.sum() if space.dimension else np.full(self.probes, 1 / self.probes)
        z = z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), jnp.finfo(z.dtype).tiny)
        norm, spent = _norm(space, z)
        half = self.degree // 2
        for _ in range(TRIES):
            low = 0.0 if space.side.psd else -norm
            moments = _moments(space, z, low, norm, half, progress)
            spent += moments.shape[1] // 2 * self.probes
            if np.abs(moments).max() <= OUTSIDE:  # false for NaN
                break
            norm *= WIDER
        else:
            raise _checks.fail("density", "the products are not those of a symmetric matrix", "check the operator for NaN")
        count = moments.shape[1]
        note = {"note": f"interrupted at degree {count - 1} of {2 * half}"} if count <= 2 * half else {}
        points = 2 * count
        x = np.cos(np.pi * (np.arange(points) + 0.5) / points)
        damped = np.pad(moments * _jackson(count), ((0, 0), (0, points - count)))
        weights = np.maximum(scipy.fft.dct(damped, type=3, axis=1) / points, 0)
        weights /= weights.sum(axis=1, keepdims=True)
        centre, radius = (norm + low) / 2, (norm - low) / 2
        first, second = moments[:, 1], (1 + moments[:, 2]) / 2
        square = centre**2 + 2 * centre * radius * first + radius**2 * second
        exact = np.stack([centre + radius * first, np.sqrt(np.maximum(square, 0))], axis=1)
        scale = float(space.side.scale)
        cast = partial(jnp.asarray, dtype=z.dtype)
        return Density(
            nodes=cast(np.broadcast_to((centre + radius * x) / scale, weights.shape)),
            weights=cast(weights * shares[:, None]),
            means=cast(exact / scale),
            diagonal=None,
            coupling=None,
            atoms=space.atoms,
            atom_bounds=space.bounds,
            ends=(low / scale, norm / scale),
            floor=float(space.noise * norm / scale),
            leak=space.leak,
            dimension=space.dimension,
            hidden=space.hidden,
            zeros=space.size - space.atoms.size - space.dimension + space.hidden,
            size=space.size,
            products=space.spent + spent,
            psd=bool(space.side.psd),
            method=f"KPM(degree={self.degree}, probes={self.probes}) on the " + ("dual" if space.dual else "operator"),
            info=provenance(key, z.dtype, size=space.size, probed=space.dimension, **features(space.side.operator), **note),
        )


def _norm(space: Space, z: Array) -> tuple[float, int]:
    """(about the norm of the operator, from above; products) by the power method on all probes."""
    largest = 0.0
    for _ in range(POWER):
        z = space.product(z)
        lengths = jnp.linalg.norm(z, axis=1, keepdims=True)
        largest = max(largest, float(lengths.max()))
        z = z / jnp.where(lengths > 0, lengths, 1)
    return MARGIN * largest or 1.0, POWER * z.shape[0]


def _moments(space: Space, z: Array, low: float, high: float, half: int, progress: Reporter | None) -> np.ndarray:
    """μ₀ ... μ of degree 2·half of unit probes `(probes, n)`: `T₂ₙ = 2 Tₙ² − 1`, `T₂ₙ₊₁ = 2 Tₙ₊₁ Tₙ − T₁`.

    Ctrl-C leaves those of a lower degree, two at least.
    """
    centre, radius = (jnp.asarray(v, z.dtype) for v in ((high + low) / 2, (high - low) / 2))
    before, now = z, (space.product(z) - centre * z) / radius
    moments = [jnp.ones(z.shape[0], z.dtype), _dots(now, z)]
    first = moments[1]
    with HostLoop() as interrupt:
        for n in range(1, half + 1):
            moments.append(2 * _dots(now, now) - 1)
            if n < half and not interrupt.asked:
                before, now = now, 2 * (space.product(now) - centre * now) / radius - before
                moments.append(2 * _dots(now, before) - first)
            if progress is not None:
                jax.block_until_ready(now)
                progress(n, half)
            if interrupt.asked:
                break
    return np.asarray(jnp.stack(moments, axis=1), np.float64)


@linalg.precise_jit
def _dots(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, axis=1)


def _jackson(count: int) -> np.ndarray:
    """Jackson's damping factors `(count,)`."""
    n, turn = np.arange(count), np.pi / (count + 1)
    return ((count - n + 1) * np.cos(n * turn) + np.sin(n * turn) / np.tan(turn)) / (count + 1)
