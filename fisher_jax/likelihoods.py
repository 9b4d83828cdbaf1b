"""Likelihoods p(y | f) of network outputs f: negative log-likelihood, factor of the output Fisher matrix, sampling.

The output Fisher matrix of one sample is `E_y[s sᵀ] = B Bᵀ` with the score `s = ∇_f log p(y | f)`. `factor(f, u)` is the
product `B u`; its transpose is derived by JAX. Outputs are `(N, C)`, `(N, T, C)` or a pytree of those (independent outputs).
Your own likelihood is one record with these three methods.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fisher_jax import _checks
from fisher_jax._record import record, static

Array = jax.Array


class Likelihood:
    """Base: subclasses give the three methods for one output array; this class maps them over a pytree of outputs."""

    # Exact zero eigenvalues of B Bᵀ per output vector, known in advance (1 for softmax).
    null_dimensions = 0

    def nll(self, f: Any, y: Any) -> Array:
        """Negative log-likelihood of each sample, `(N,)`: the sum over tokens and outputs."""
        _check_same_structure(f, y)
        terms = jax.tree.leaves(jax.tree.map(self._nll, f, y))
        return sum(jnp.sum(t.reshape(t.shape[0], -1), axis=1) for t in terms)  # type: ignore[return-value]

    def factor(self, f: Any, u: Any) -> Any:
        """The product `B u`; `u` and the result have the structure and shapes of the outputs `f`."""
        return jax.tree.map(self._factor, f, u)

    def null(self, f: Any) -> Any:
        """Unit vectors along the last axis that B maps to zero, in the structure and shapes of `f`; zeros if none."""
        return jax.tree.map(self._null, f)

    def score(self, f: Any, y: Any) -> Any:
        """Gradient of the log-likelihood in the outputs, structure and shapes of `f`."""
        return jax.tree.map(self._score, f, y)

    def sample(self, key: Array, f: Any) -> Any:
        """Labels `y ~ p(y | f)`, one for each output vector."""
        leaves, treedef = jax.tree.flatten(f)
        keys = jax.random.split(key, len(leaves))
        return treedef.unflatten([self._sample(k, leaf) for k, leaf in zip(keys, leaves, strict=True)])

    def check_labels(self, where: str, f: Any, y: Any) -> None:
        """Refuse labels whose shape or values do not fit outputs of shape `f` (shape structs), naming both."""
        _check_same_structure(f, y, where)
        jax.tree.map(lambda a, b: self._check_labels(where, a, b), f, y)

    def _check_labels(self, where: str, f: Any, y: Any) -> None:
        if tuple(y.shape) != tuple(f.shape):
            raise _checks.fail(
                where, f"labels y have shape {tuple(y.shape)}, outputs {tuple(f.shape)}", f"give y of shape {tuple(f.shape)}"
            )

    def _nll(self, f: Array, y: Array) -> Array:
        raise NotImplementedError

    def _score(self, f: Array, y: Array) -> Array:
        return jax.grad(lambda f: -jnp.sum(self._nll(f, y)))(f)

    def _factor(self, f: Array, u: Array) -> Array:
        raise NotImplementedError

    def _null(self, f: Array) -> Array:
        return jnp.zeros_like(f)

    def _sample(self, key: Array, f: Array) -> Array:
        raise NotImplementedError


@record
class Gaussian(Likelihood):
    """Independent normal outputs of standard deviation `noise`: `B = I / noise`, so `F = Jᵀ J / (N noise²)`.

    Args:
        noise: standard deviation of the observation, in the units of the outputs.
    """

    noise: float = static(default=1.0)

    def __post_init__(self) -> None:
        _checks.positive("Gaussian", "noise", self.noise)

    def _nll(self, f: Array, y: Array) -> Array:
        return 0.5 * ((y - f) / self.noise) ** 2 + math.log(self.noise) + 0.5 * math.log(2 * math.pi)

    def _factor(self, f: Array, u: Array) -> Array:
        return u / self.noise

    def _sample(self, key: Array, f: Array) -> Array:
        return f + self.noise * jax.random.normal(key, f.shape, f.dtype)


@record
class Categorical(Likelihood):
    """Softmax classification over the last axis; outputs are logits, labels are integers.

    `B Bᵀ = diag(p) − p pᵀ` with `B = (I − p 1ᵀ) diag(√p)`: C columns, one of them redundant since `B √p = 0`. No C×C block
    is formed. The entry of the likeliest class is minus the sum of the others (`1ᵀ B = 0`), which keeps full relative
    precision when a class is nearly certain; the direct formula would return rounding noise there.
    """

    null_dimensions = 1

    def _nll(self, f: Array, y: Array) -> Array:
        return jax.nn.logsumexp(f, axis=-1) - jnp.take_along_axis(f, y[..., None], axis=-1)[..., 0]

    def _score(self, f: Array, y: Array) -> Array:
        # 1 − p of the label as the sum of the others: for a nearly certain label the difference is rounding noise.
        label = jax.nn.one_hot(y, f.shape[-1], dtype=f.dtype)
        others = jax.nn.softmax(f, axis=-1) * (1 - label)
        return label * jnp.sum(others, axis=-1, keepdims=True) - others

    def _factor(self, f: Array, u: Array) -> Array:
        p = jax.nn.softmax(f, axis=-1)
        top = jax.nn.one_hot(jnp.argmax(f, axis=-1), f.shape[-1], dtype=f.dtype)
        root_u = jnp.sqrt(p) * u
        rest = (root_u - p * jnp.sum(root_u, axis=-1, keepdims=True)) * (1 - top)
        return rest - top * jnp.sum(rest, axis=-1, keepdims=True)

    def _null(self, f: Array) -> Array:
        return jnp.sqrt(jax.nn.softmax(f, axis=-1))

    def _sample(self, key: Array, f: Array) -> Array:
        return jax.random.categorical(key, f, axis=-1)

    def _check_labels(self, where: str, f: Any, y: Any) -> None:
        if tuple(y.shape) != tuple(f.shape[:-1]) or not jnp.issubdtype(y.dtype, jnp.integer):
            raise _checks.fail(
                where,
                f"labels y are {y.dtype}{list(y.shape)}, outputs have shape {tuple(f.shape)}",
                f"give integer class labels of shape {tuple(f.shape[:-1])}",
            )
        if not _checks.traced(y) and y.size and (int(y.min()) < 0 or int(y.max()) >= f.shape[-1]):
            raise _checks.fail(where, f"labels y span {int(y.min())}..{int(y.max())}", f"give classes 0..{f.shape[-1] - 1}")


@record
class Bernoulli(Likelihood):
    """Independent binary outputs; outputs are logits, labels 0 or 1: `B = diag(√(p (1 − p)))`."""

    def _nll(self, f: Array, y: Array) -> Array:
        return jax.nn.softplus(f) - y * f

    def _factor(self, f: Array, u: Array) -> Array:
        return jnp.sqrt(jax.nn.sigmoid(f) * jax.nn.sigmoid(-f)) * u

    def _sample(self, key: Array, f: Array) -> Array:
        return jax.random.bernoulli(key, jax.nn.sigmoid(f)).astype(f.dtype)

    def _check_labels(self, where: str, f: Any, y: Any) -> None:
        super()._check_labels(where, f, y)
        if not _checks.traced(y) and y.size and not (0 <= y.min() and y.max() <= 1):
            raise _checks.fail(where, f"labels y span {y.min():g}..{y.max():g}", "give 0 or 1")


@record
class Poisson(Likelihood):
    """Independent counts; outputs are log rates: `B = diag(exp(f / 2))`."""

    def _nll(self, f: Array, y: Array) -> Array:
        return jnp.exp(f) - y * f + jax.scipy.special.gammaln(y + 1.0)

    def _factor(self, f: Array, u: Array) -> Array:
        return jnp.exp(f / 2) * u

    def _sample(self, key: Array, f: Array) -> Array:
        return jax.random.poisson(key, jnp.exp(f)).astype(f.dtype)

    def _check_labels(self, where: str, f: Any, y: Any) -> None:
        super()._check_labels(where, f, y)
        if not _checks.traced(y) and y.size and not y.min() >= 0:
            raise _checks.fail(where, f"labels y go down to {y.min():g}", "give counts, none below 0")


def _check_same_structure(f: Any, y: Any, where: str = "likelihood") -> None:
    if jax.tree.structure(f) != jax.tree.structure(y):
        raise _checks.fail(
            where,
            f"labels y are {jax.tree.structure(y)}, outputs {jax.tree.structure(f)}",
            "give labels in the outputs' structure",
        )
