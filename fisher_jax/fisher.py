"""The Fisher matrix and its kin as operators: F, its dual K, Gauss–Newton, Hessian, centred gradient covariance."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fisher_jax import _checks, linalg, modes, rows, streamed
from fisher_jax._record import record
from fisher_jax.factor import (
    ROW_BATCH_BYTES,
    Chunks,
    Factor,
    Jacobian,
    OutputSpace,
    automatic,
    bytes_per_sample,
    choose_chunk,
    dense_gram,
    linearize_outputs,
    make_chunks,
)
from fisher_jax.functional import Network, Selection, Streamed, check_rules, network, output_structure
from fisher_jax.gram import Reporter, gram
from fisher_jax.likelihoods import Likelihood
from fisher_jax.operators import LinearOperator, require_room
from fisher_jax.structured import pays, structured

Array = jax.Array

# --- kinds of Fisher --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Exact:
    """The Fisher matrix itself: the expectation over labels drawn from the model, in closed form."""


@dataclasses.dataclass(frozen=True)
class MonteCarlo:
    """Labels drawn from the model: an unbiased estimate of the exact Fisher with `draws` labels per sample.

    Args:
        draws: labels per sample; the error falls as draws^(-1/2).
        key: JAX random key. Each sample's labels depend on the key and its index only, not on chunks or devices.
    """

    draws: int = 1
    key: Any = None

    def __post_init__(self) -> None:
        _checks.integer("MonteCarlo", "draws", self.draws, 1)
        if self.key is None:
            raise _checks.fail("MonteCarlo", "key is missing", "give key=jax.random.key(seed)")


@dataclasses.dataclass(frozen=True, eq=False)
class Empirical:
    """The given labels: the uncentred second moment of the loss gradients.

    Args:
        y: labels, leading axis N.
    """

    y: Any


# --- operators --------------------------------------------------------------------------------------------------------


@record
class FisherOperator(LinearOperator):
    """`F = Aᵀ A`, size P: the Fisher matrix of the selected parameters, averaged over all samples."""

    factor: Factor

    psd = True

    @property
    def size(self) -> int:
        return self.factor.shape[1]

    @property
    def dtype(self) -> Any:
        return self.factor.dtype

    def matmat(self, V: Array) -> Array:
        return self.factor.primal(V)

    @property
    def dual(self) -> "DualOperator":
        """`K = A Aᵀ`, size N·C (N·draws for sampled labels, N for given ones): the same nonzero eigenvalues."""
        return DualOperator(self.factor)

    def from_dual(self, U: Array) -> Array:
        """Eigenvectors of K `(N·C, k)` -> those of F, not normalized: `Aᵀ U`."""
        return self.factor.rmatmat(U)

    def prepared(self, columns: int, products: float) -> LinearOperator:
        """With layer inputs and output cotangents kept, where that makes so many products cheaper; see `structured`."""
        return _prepared(self, True, columns, products)

    def gram(self, *, tile: int | None = None, progress: Reporter | None = None) -> Array:
        """The dual matrix K = A Aᵀ as an array `(N·C, N·C)`, from the layers where they have structure.

        Args:
            tile: samples in a tile; chosen unless given. progress: called with (tiles done, tiles in all).
        """
        return self.grams(tile=tile, progress=progress)[0]

    def grams(self, groups: Any = None, *, tile: int | None = None, progress: Reporter | None = None) -> list[Array]:
        """K in parts: one matrix for each group of parameter numbers; their sum is K."""
        return gram(self.factor, groups=groups, tile=tile, progress=progress)

    def dense(self) -> Array:
        """F as an array `(P, P)`, from explicit per-sample gradients."""
        require_room("fisher.dense", self.size, self.size, self.dtype)
        return dense_gram(self.factor)

    def trace(self) -> Array:
        """Exact trace, from layer inputs and output cotangents: the sum of the squared rows of A."""
        return _total(self._row_norms(self.factor))

    def _row_norms(self, factor: Factor) -> Array:
        return rows.row_norms(factor)

    def diagonal(self) -> Array:
        """Exact diagonal `(P,)`, from layer inputs and output cotangents."""
        return rows.diagonal(self.factor)

    def gradient_norms(self) -> Array:
        """Norms of the per-sample gradients `(N, R)`, without sample weights, nowhere formed.

        R is one for given labels (‖∇ log p(y_n)‖), the number of draws for sampled ones (over √draws), and the number of
        outputs for the exact Fisher, where the squares of a sample add up to the trace of its own Fisher matrix.
        """
        factor = dataclasses.replace(self.factor, centre=None)
        data = factor.jacobian.data
        count = jnp.sum(jnp.any(data.scale.reshape(*data.scale.shape[:2], -1) != 0, axis=-1))
        scale = jnp.ones_like(data.scale) if data.scale.ndim == 2 else data.scale * jnp.sqrt(count).astype(self.dtype)
        jacobian = dataclasses.replace(factor.jacobian, data=dataclasses.replace(data, scale=scale))
        norms = self._row_norms(dataclasses.replace(factor, jacobian=jacobian))
        return jnp.sqrt(norms).reshape(data.samples, -1)

    def unravel(self, v: Any) -> Any:
        """A vector `(P,)` as the model's parameter pytree; parameters not selected by `where` are zero."""
        return self.factor.jacobian.network.unravel(jnp.asarray(v, self.dtype))


@jax.tree_util.register_static
class StreamedFisher(FisherOperator):
    """The Fisher matrix of a network whose weights are not kept: K, its spectrum, trace and diagonal; no products."""

    dual = None  # type: ignore[assignment]

    def matmat(self, V: Array) -> Array:
        raise streamed.no_products()

    def prepared(self, columns: int, products: float) -> LinearOperator:
        raise streamed.no_products()

    def dense(self) -> Array:
        raise streamed.no_products()

    def grams(self, groups: Any = None, *, tile: int | None = None, progress: Reporter | None = None) -> list[Array]:
        return streamed.streamed_gram(self.factor, groups=groups, tile=tile, progress=progress)

    def _row_norms(self, factor: Factor) -> Array:
        return sum(streamed.over_stages(factor, rows.row_norms))  # type: ignore[return-value]

    def diagonal(self) -> Array:
        require_room("fisher.diagonal", 2, self.size, self.dtype)
        return jnp.concatenate(streamed.over_stages(self.factor, rows.diagonal))


@record
class DualOperator(LinearOperator):
    """`K = A Aᵀ`: the Gram matrix of per-sample gradients (neural tangent kernel over N, weighted by the likelihood)."""

    factor: Factor

    psd = True

    @property
    def size(self) -> int:
        return self.factor.shape[0]

    @property
    def dtype(self) -> Any:
        return self.factor.dtype

    @property
    def dual(self) -> FisherOperator:
        return FisherOperator(self.factor)

    def from_dual(self, U: Array) -> Array:
        """Eigenvectors of F `(P, k)` -> those of K, not normalized: `A U`."""
        return self.factor.matmat(U)

    def matmat(self, V: Array) -> Array:
        return self.factor.matmat(self.factor.rmatmat(V))

    def prepared(self, columns: int, products: float) -> LinearOperator:
        """As that of F."""
        return _prepared(self, False, columns, products)

    def dense(self) -> Array:
        """K as an array, as `F.gram()`."""
        return gram(self.factor)[0]

    def diagonal(self) -> Array:
        """Squared norms of the rows of A `(N·C,)`: of per-sample gradients times the root of the sample's weight."""
        return rows.row_norms(self.factor)

    def trace(self) -> Array:
        return _total(rows.row_norms(self.factor))


def _prepared(operator: FisherOperator | DualOperator, primal: bool, columns: int, products: float) -> LinearOperator:
    if _checks.traced(operator) or not pays(operator.factor, columns, products):
        return operator
    kept = structured(operator.factor, primal)
    return operator if kept is None else kept


@record
class GaussNewtonOperator(LinearOperator):
    """`G = Jᵀ H J / N`: H is the Hessian of the loss in the outputs, block diagonal over samples."""

    jacobian: Jacobian
    loss: Any

    @property
    def size(self) -> int:
        return self.jacobian.network.size

    @property
    def dtype(self) -> Any:
        return self.jacobian.network.dtype

    def matmat(self, V: Array) -> Array:
        return self.jacobian.sandwich(V, lambda z, t, chunk: _loss_hessian(self.loss, z, t, chunk))

    def trace(self) -> Array:
        """Exact trace, from per-sample gradients: `Σ_n Σ_c (J_nᵀ e_c)·(J_nᵀ H_n e_c)`."""
        return _total(_gauss_newton_traces(self))

    def unravel(self, v: Any) -> Any:
        """A vector `(P,)` as the model's parameter pytree."""
        return self.jacobian.network.unravel(jnp.asarray(v, self.dtype))


@record
class HessianOperator(LinearOperator):
    """The Hessian of the mean loss: symmetric, in general indefinite."""

    network: Network
    data: Chunks
    stored: Any  # linearized gradient of the only chunk, or None
    loss: Any

    @property
    def size(self) -> int:
        return self.network.size

    @property
    def dtype(self) -> Any:
        return self.network.dtype

    def matmat(self, V: Array) -> Array:
        def products(hessian: Any) -> Array:
            return jax.lax.map(lambda v: self.network.ravel(hessian(self.network.split(v))), V.T)

        if self.stored is not None:
            return products(self.stored).T

        def step(total: Array, chunk: Chunks) -> tuple[Array, None]:
            return total + products(_linearize_gradient(self.network, self.loss, chunk)), None

        return jax.lax.scan(step, jnp.zeros(V.T.shape, self.dtype), self.data)[0].T

    def unravel(self, v: Any) -> Any:
        """A vector `(P,)` as the model's parameter pytree."""
        return self.network.unravel(jnp.asarray(v, self.dtype))


def _loss_sum(loss: Any, z: Any, chunk: Chunks) -> Array:
    """Weighted sum of the losses of a chunk; `loss` acts on one sample."""
    labels = jax.tree.map(lambda a: a[:, 0], chunk.labels)
    return jnp.sum(jax.vmap(loss)(z, labels) * chunk.scale**2)


def _loss_hessian(loss: Any, z: Any, t: Any, chunk: Chunks) -> Any:
    return jax.jvp(jax.grad(lambda z: _loss_sum(loss, z, chunk)), (z,), (t,))[1]


@linalg.precise_jit
def _gauss_newton_traces(G: GaussNewtonOperator) -> Array:
    """Trace of each sample's term `(N,)`."""
    space, net = G.jacobian.space, G.jacobian.network

    def one(sample: Chunks) -> Array:
        sample = jax.tree.map(lambda a: a[None], sample)
        z, pullback = jax.vjp(lambda p: net(p, sample.x), net.params)

        def term(e: Array) -> Array:
            e = space.unflatten(e[None])
            pairs = zip(pullback(e)[0], pullback(_loss_hessian(G.loss, z, e, sample))[0], strict=True)
            return sum(jnp.vdot(a, b) for a, b in pairs)  # type: ignore[return-value]

        return jnp.sum(jax.lax.map(term, jnp.eye(space.size, dtype=G.dtype)))

    data = G.jacobian.data.batches(max(1, min(G.jacobian.data.samples, ROW_BATCH_BYTES // (4 * G.size))))
    return jax.lax.map(jax.vmap(one), data).reshape(-1)[: data.samples]


@linalg.precise_jit
def _linearize_gradient(network: Network, loss: Any, chunk: Chunks) -> Any:
    gradient = jax.grad(lambda p: _loss_sum(loss, network(p, chunk.x), chunk))
    return jax.linearize(gradient, network.params)[1]


def _total(norms: Array) -> Array:
    """Sum of many positive numbers, in float64 on the host outside jit."""
    if _checks.traced(norms):
        return jnp.sum(norms)
    return jnp.asarray(np.asarray(norms, np.float64).sum(), norms.dtype)


# --- construction -----------------------------------------------------------------------------------------------------


def fisher(
    model: Any,
    x: Any,
    likelihood: Likelihood,
    *,
    kind: Exact | MonteCarlo | Empirical = Exact(),
    where: Selection = None,
    chunk: int | str = "auto",
    mesh: Mesh | None = None,
    weights: Any = None,
    masks: Any = None,
    bn: str | None = None,
) -> FisherOperator:
    """The Fisher information matrix of a network on data, as an operator.

    Outputs `(N, T, C)` are summed over tokens within a sample, as the log-likelihood of a sequence is: for a loss that is a
    mean over T tokens, eigenvalues are T times smaller.

        F = Σ_n w_n J_nᵀ B_n B_nᵀ J_n / Σ_n w_n

    with J_n the Jacobian of sample n's outputs and `B_n B_nᵀ` the Fisher matrix of the likelihood at those outputs. Nothing
    of size P² is formed.

    Args:
        model: an `nnx.Module` in evaluation mode, `fj.from_linen(module, variables)`, `fj.Function(apply, params)`, or
            `fj.Streamed(stages)`, for which K, spectrum, trace and diagonal exist but no products.
        x: inputs, array or pytree of arrays with leading axis N.
        likelihood: `fj.Gaussian()`, `fj.Categorical()`, `fj.Bernoulli()`, `fj.Poisson()` or your own.
        kind: `fj.Exact()`, `fj.MonteCarlo(draws, key)` or `fj.Empirical(y)`.
        where: parameters to keep, by path: a glob such as `"blocks/0"` or `"*/kernel"`, a list of them, or a predicate.
        chunk: samples per pass; "auto" stores one linearization of all samples if it fits, a number below N bounds memory.
        mesh: devices over which to spread the samples.
        weights: per sample `(N,)`, a weighted mean (weight 0 is the sample left out); or per token `(N, T)`, a sum over
            tokens, averaged over the samples that have a nonzero token.
        masks: of dropout and stochastic depth, for an `nnx.Module`: "mean" for the network without masks (its evaluation
            mode), `fj.Fixed(key)` for one draw, `fj.Average(draws, key)` for the average of F over masks. The four summaries
            one can make of these differ: `fj.over_masks` gives them all.
        bn: batch normalization, for an `nnx.Module`: "eval" for the running statistics; "frozen" for the statistics of x as
            constants; "train" for the joint map of x as one batch, with the derivative through its statistics (no labels).

    Returns:
        FisherOperator of size P; `F @ v`, `F.dual`, `F.trace()`, `F.dense()`, `fj.eigsh(F, k, key=key)`.

    Raises:
        ArgumentError: NaN in data or weights, shapes that do not fit, active dropout or training-mode batch norm, a model
            that is random or couples the samples of a batch.

    Reference: Amari, Neural Computation 10(2), 1998; Martens, JMLR 21(146), 2020, sections 5 and 9.
    """
    where_called = "fisher"
    if not isinstance(likelihood, Likelihood):
        raise _checks.fail(
            where_called, f"likelihood={likelihood!r} is not a likelihood", "give fj.Categorical(), fj.Gaussian(), ..."
        )
    if isinstance(model, Streamed) and (where is not None or mesh is not None or chunk != "auto"):
        raise _checks.fail(where_called, "a streamed model takes neither where, chunk nor mesh", "leave them out")
    if masks is not None or bn is not None:
        if bn == "train":
            weights = _joint_weights(weights, x, kind, where_called)
        model, x = modes.prepare(model, x, masks, bn, where_called)
        if isinstance(masks, modes.Average):
            weights = None if weights is None else modes.repeated(np.asarray(weights), masks)
            kind = Empirical(modes.repeated(kind.y, masks)) if isinstance(kind, Empirical) else kind
    net, x, samples, outputs = _inputs(model, x, where, where_called)
    if likelihood.null_dimensions and any(a.shape[-1] <= likelihood.null_dimensions for a in jax.tree.leaves(outputs)):
        raise _checks.fail(
            where_called,
            f"{likelihood!r} needs at least two outputs, the model has one",
            "use fj.Bernoulli() for two classes",
        )
    scale, _ = _scales(weights, samples, outputs, where_called)
    if isinstance(kind, Empirical):
        labels = _labels(kind.y, samples, where_called, likelihood, outputs)
    elif isinstance(kind, MonteCarlo):
        labels = _draw_labels(net, x, likelihood, kind)
    elif isinstance(kind, Exact):
        labels = None
    else:
        raise _checks.fail(where_called, f"kind={kind!r}", "give fj.Exact(), fj.MonteCarlo(...) or fj.Empirical(y)")
    if isinstance(model, Streamed):
        data = make_chunks(x, scale, labels, samples, samples, None)
        return StreamedFisher(Factor(Jacobian(net, data, None, OutputSpace.of(outputs)), likelihood))
    jacobian = _jacobian(net, x, scale, labels, samples, outputs, chunk, mesh, where_called)
    return FisherOperator(Factor(jacobian, likelihood))


def _joint_weights(weights: Any, x: Any, kind: Any, where: str) -> np.ndarray:
    """The samples of one batch are the tokens of the one sample that it is: `(1, N)`, with sum one."""
    if isinstance(kind, Empirical):
        raise _checks.fail(
            where,
            'kind=Empirical with bn="train": the joint map has no per-sample gradients',
            "give fj.Exact() or bn='frozen'",
        )
    samples = np.shape(jax.tree.leaves(x)[0])[0]
    weights = np.ones(samples) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (samples,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise _checks.fail(where, f'weights of shape {weights.shape} with bn="train"', f"give ({samples},), none below 0")
    return (weights / weights.sum())[None]


def gradient_covariance(
    model: Any,
    xy: tuple[Any, Any],
    likelihood: Likelihood,
    *,
    where: Selection = None,
    chunk: int | str = "auto",
    mesh: Mesh | None = None,
    weights: Any = None,
) -> FisherOperator:
    """Covariance of the per-sample loss gradients, `(1/N) Σ g gᵀ − ḡ ḡᵀ`: the noise of stochastic gradient descent.

    Weights enter as √w on the scores, as in all matrices here: for tokens with weights other than 0 and 1 this is not the
    covariance of the gradients of the weighted loss. Computed as `Aᵀ (I − a aᵀ) A` with the empirical factor A and the unit
    vector a of weights, so that it stays positive semidefinite to rounding. Arguments as in `fj.fisher`, with `xy = (x, y)`.

    Returns:
        FisherOperator; its dual has size N.
    """
    x, y = _pair(xy, "gradient_covariance")
    F = fisher(model, x, likelihood, kind=Empirical(y), where=where, chunk=chunk, mesh=mesh, weights=weights)
    samples = F.factor.jacobian.data.samples
    _, mass = _scales(weights, samples, None, "gradient_covariance")
    return FisherOperator(dataclasses.replace(F.factor, centre=jnp.asarray(mass, F.dtype)))


def ggn(
    model: Any,
    xy: tuple[Any, Any],
    loss: Any,
    *,
    where: Selection = None,
    chunk: int | str = "auto",
    mesh: Mesh | None = None,
    weights: Any = None,
) -> LinearOperator:
    """Generalized Gauss–Newton matrix `G = (1/N) Σ_n J_nᵀ ∇²_f loss(f_n, y_n) J_n`.

    Args:
        model, where, chunk, mesh, weights: as in `fj.fisher`.
        xy: `(x, y)`, both with leading axis N.
        loss: `loss(f, y) -> number` for one sample, twice differentiable in f; or a likelihood, whose Gauss–Newton matrix is
            its exact Fisher matrix (all four have natural parameters as outputs) and does not depend on y.

    Returns:
        FisherOperator for a likelihood, else GaussNewtonOperator (no dual: the loss has no factor B).

    Reference: Schraudolph, Neural Computation 14(7), 2002; Martens, JMLR 21(146), 2020, section 8.
    """
    x, y = _pair(xy, "ggn")
    if isinstance(loss, Likelihood):
        return fisher(model, x, loss, where=where, chunk=chunk, mesh=mesh, weights=weights)
    net, x, samples, outputs = _inputs(model, x, where, "ggn")
    labels = _labels(y, samples, "ggn")
    scale, _ = _scales(weights, samples, outputs, "ggn", tokens=False)
    _check_loss(loss, outputs, labels, "ggn")
    jacobian = _jacobian(net, x, scale, labels, samples, outputs, chunk, mesh, "ggn")
    return GaussNewtonOperator(jacobian, jax.tree_util.Partial(loss))


def hessian(
    model: Any,
    xy: tuple[Any, Any],
    loss: Any,
    *,
    where: Selection = None,
    chunk: int | str = "auto",
    mesh: Mesh | None = None,
    weights: Any = None,
) -> HessianOperator:
    """Hessian of the mean loss, `(1/N) Σ_n ∇²_θ loss(f_n, y_n)`, for comparison with F.

    Arguments as in `fj.ggn`; with a likelihood the loss is its negative log-likelihood.
    """
    x, y = _pair(xy, "hessian")
    net, x, samples, outputs = _inputs(model, x, where, "hessian")
    if isinstance(loss, Likelihood):
        labels = _labels(y, samples, "hessian", loss, outputs)
        loss = _NegativeLogLikelihood(loss)
    else:
        labels = _labels(y, samples, "hessian")
        _check_loss(loss, outputs, labels, "hessian")
    scale, _ = _scales(weights, samples, outputs, "hessian", tokens=False)
    loss = jax.tree_util.Partial(loss)

    def prepare(net: Network, x: Any, scale: Any, labels: Any) -> Any:
        return _linearize_gradient(net, loss, Chunks(x, scale, labels, 1))

    size, stored = choose_chunk(lambda: bytes_per_sample(prepare, net, x, scale, labels), samples, chunk, "hessian")
    net, data = _place(net, make_chunks(x, scale, labels, samples, size, mesh), mesh)
    linear = _linearize_gradient(net, loss, jax.tree.map(lambda a: a[0], data)) if stored else None
    return HessianOperator(net, data, linear, loss)


@dataclasses.dataclass(frozen=True)
class _NegativeLogLikelihood:
    """Per-sample loss of a likelihood; compared by value."""

    likelihood: Likelihood

    def __call__(self, f: Any, y: Any) -> Array:
        return self.likelihood.nll(*jax.tree.map(lambda a: a[None], (f, y)))[0]


def _pair(xy: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(xy, (tuple, list)) or len(xy) != 2:
        raise _checks.fail(where, f"data is a {type(xy).__name__}", "give the pair (x, y)")
    return xy[0], xy[1]


def _inputs(model: Any, x: Any, select: Any, where: str) -> tuple[Network, Any, int, Any]:
    """Checked network, inputs as arrays, number of samples, output structure of one sample."""
    net: Any = streamed.StreamedNetwork(model) if isinstance(model, Streamed) else network(model, where, select)
    if isinstance(x, (list, tuple)) and any(np.ndim(a) == 0 for a in jax.tree.leaves(x)):
        x = np.asarray(x)  # nested lists of numbers
    x = jax.tree.map(lambda a: a if isinstance(a, jax.Array) else np.asarray(a), x)
    leaves = jax.tree.leaves(x)
    lengths = {a.shape[0] if a.ndim else 0 for a in leaves}
    if len(lengths) != 1 or 0 in lengths:
        raise _checks.fail(where, f"x has shapes {[a.shape for a in leaves]}", "give at least one sample, leading axis N")
    x = jax.tree.map(_canonical, x)
    _checks.finite(where, "x", x, "clean the data")
    outputs = output_structure(net, x, where)
    # A streamed network's stages act sample by sample by contract: trying it out takes minutes.
    if not isinstance(model, Streamed) and not _checks.traced((net, x)):
        check_rules(net, x, where)
    return net, x, lengths.pop(), outputs


def _canonical(a: Any) -> Any:
    """NumPy's float64 and int64 as JAX would hold them (float32 and int32 unless x64 is enabled)."""
    wanted = jax.dtypes.canonicalize_dtype(a.dtype)
    return a if a.dtype == wanted else a.astype(wanted)


def _jacobian(
    net: Network, x: Any, scale: Any, labels: Any, samples: int, outputs: Any, chunk: Any, mesh: Mesh | None, where: str
) -> Jacobian:
    size, stored = choose_chunk(lambda: bytes_per_sample(linearize_outputs, net, x), samples, chunk, where)
    net, data = _place(net, make_chunks(x, scale, labels, samples, size, mesh), mesh)
    linear = linearize_outputs(net, jax.tree.map(lambda a: a[0], data.x)) if stored else None
    return Jacobian(net, data, linear, OutputSpace.of(outputs))


def _place(net: Network, data: Chunks, mesh: Mesh | None) -> tuple[Network, Chunks]:
    """Parameters on every device of the mesh; the data was sharded when it was folded."""
    mesh = automatic(mesh)
    if mesh is not None:
        net = jax.device_put(net, NamedSharding(mesh, PartitionSpec()))
    return net, data


def _scales(
    weights: Any, samples: int, outputs: Any, where: str, tokens: bool = True
) -> tuple[np.ndarray | Array, np.ndarray | Array]:
    """(√weight per sample or token, √weight per sample with squares summing to 1)."""
    dtype = (
        jax.dtypes.canonicalize_dtype(np.float64)
        if outputs is None
        else np.dtype(jnp.result_type(*jax.tree.leaves(outputs)))
    )
    if weights is None:
        mass = np.full((samples,), 1 / math.sqrt(samples), dtype)
        return mass, mass
    weights = np.asarray(weights, np.float64)
    if weights.ndim not in (1, 2 if tokens else 1) or weights.shape[0] != samples:
        shapes = f"({samples},) or ({samples}, T)" if tokens else f"({samples},)"
        raise _checks.fail(where, f"weights has shape {weights.shape}", f"give {shapes}")
    if weights.ndim == 2 and outputs is not None:
        for leaf in jax.tree.leaves(outputs):
            if leaf.ndim < 2 or leaf.shape[0] != weights.shape[1]:
                raise _checks.fail(
                    where, f"weights has shape {weights.shape}, outputs (N, {leaf.shape})", "give one weight per token"
                )
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise _checks.fail(where, "weights has negative, NaN or only zero entries", "give weights >= 0, some above 0")
    if weights.ndim == 1:
        mass = np.sqrt(weights / weights.sum()).astype(dtype)
        return mass, mass
    active = (weights > 0).any(axis=1)
    return np.sqrt(weights / active.sum()).astype(dtype), (active / math.sqrt(active.sum())).astype(dtype)


def _labels(y: Any, samples: int, where: str, likelihood: Likelihood | None = None, outputs: Any = None) -> Any:
    """Labels with a draws axis of one, leaves `(N, 1, ...)`, checked against the outputs for a likelihood."""
    y = jax.tree.map(lambda a: _canonical(a if isinstance(a, jax.Array) else np.asarray(a)), y)
    for leaf in jax.tree.leaves(y):
        if leaf.ndim < 1 or leaf.shape[0] != samples:
            raise _checks.fail(where, f"y has shape {leaf.shape}, x has {samples} samples", "give one label per sample")
    _checks.finite(where, "y", y, "clean the labels")
    if likelihood is not None:
        structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct((samples, *a.shape), a.dtype), outputs)
        likelihood.check_labels(where, structs, y)
        # Real-valued targets take the dtype of the outputs; class indices stay integers.
        y = jax.tree.map(lambda a, s: a.astype(s.dtype) if a.shape == s.shape else a, y, structs)
    return jax.tree.map(lambda a: a[:, None], y)


def _check_loss(loss: Any, outputs: Any, labels: Any, where: str) -> None:
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[2:], a.dtype), labels)
    value = jax.eval_shape(loss, outputs, one)
    if getattr(value, "shape", None) != ():
        raise _checks.fail(
            where, f"loss returns shape {getattr(value, 'shape', None)} for one sample", "return one number per sample"
        )


@linalg.precise_jit
def _outputs_of(net: Network, x: Any) -> Any:
    return net(net.params, x)


def _draw_labels(net: Network, x: Any, likelihood: Likelihood, kind: MonteCarlo) -> Any:
    """Labels for every sample, leaves `(N, draws, ...)`; a sample's draws depend on its index and the key alone."""
    samples = jax.tree.leaves(x)[0].shape[0]

    def draw(index: Array, z: Any) -> Any:
        keys = jax.random.split(jax.random.fold_in(kind.key, index), kind.draws)
        return jax.vmap(lambda k: likelihood.sample(k, z))(keys)

    if isinstance(net, streamed.StreamedNetwork):
        return jax.vmap(draw)(jnp.arange(samples), net((), x))

    def one(index: Array, x: Any) -> Any:
        z = jax.tree.map(lambda a: a[0], _outputs_of(net, jax.tree.map(lambda a: a[None], x)))
        return draw(index, z)

    return jax.lax.map(lambda item: one(*item), (jnp.arange(samples), jax.tree.map(jnp.asarray, x)), batch_size=256)
