"""Hutchinson's estimator: the mean of xᵀ M x over random vectors."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fisher_jax import linalg
from fisher_jax.estimates import Estimate
from fisher_jax.operators import LinearOperator
from fisher_jax.traces.base import BLOCK, Source, Sums, check_options, drive, fourth_moment

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Hutchinson:
    """`tr M ≈ mean of xᵀ M x`, x Gaussian: the error falls as 1/√probes. Holds one block of vectors in memory.

    Args:
        probes: products with the matrix; with `tol`, the most.
        tol: stop where half the interval is at most tol·|value|.

    Reference: Girard, Numer. Math. 56, 1989; Hutchinson, Commun. Stat. Simul. Comput. 18(3), 1989. Gaussian vectors in
        place of signs, because the interval then depends on the eigenvalues alone.
    """

    probes: int = 100
    tol: float | None = None

    def __post_init__(self) -> None:
        check_options(self, "probes", 1)

    def estimate(self, operator: LinearOperator, *, key: Array, confidence: float, progress: Any = None) -> Estimate:
        return drive(self, operator, self.probes, 16, key=key, confidence=confidence, progress=progress)

    def grow(self, source: Source, state: Any, products: int) -> "list[Block]":
        blocks, size = state or [], BLOCK.get(jax.default_backend(), 32)
        for first in range(sum(b.count for b in blocks), products, size):
            rows = source.probes(source.key, first, min(first + size, products))
            blocks = [*blocks, block_of(rows, source.times(rows))]
        return blocks

    def sums(self, operator: LinearOperator, state: "list[Block]") -> tuple[Sums, int]:
        return combine(state), sum(b.count for b in state)


class Block(NamedTuple):
    """Sums over the probes of a block."""

    count: int
    value: Array  # () Σ xᵀ M x
    square: Array  # () Σ ‖M x‖²
    fourth: Array  # () estimate of tr M⁴


def block_of(rows: Array, images: Array) -> Block:
    return Block(rows.shape[0], *_block(rows, images))


@linalg.precise_jit
def _block(rows: Array, images: Array) -> tuple[Array, Array, Array]:
    gram = linalg.inner(images, images)
    return jnp.sum(jax.vmap(jnp.vdot)(rows, images)), jnp.trace(gram), fourth_moment(gram)


def combine(blocks: list[Block]) -> Sums:
    """The fourth moment from pairs within the blocks, each with the weight of its pairs."""
    count = sum(b.count for b in blocks)
    pairs = [(b.count - 1) * (b.count + 2) for b in blocks]
    fourth = sum(n * b.fourth for n, b in zip(pairs, blocks, strict=True)) / max(sum(pairs), 1)
    value, square = (sum(getattr(b, name) for b in blocks) / count for name in ("value", "square"))
    return Sums(jnp.asarray(value), jnp.asarray(square), jnp.asarray(fourth), jnp.zeros_like(jnp.asarray(value)))
