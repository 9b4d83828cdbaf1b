"""What the initialization decides: variances of weights and biases, Gaussian or orthogonal, random or trained weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fisher_jax import _checks, data, models, train
from fisher_jax.findings import PhaseDiagram, Pretraining, WeightEnsembles
from fisher_jax.fisher import fisher
from fisher_jax.likelihoods import Categorical, Gaussian
from fisher_jax.models.blocks import MOMENTUM, WEIGHTS
from fisher_jax.results import provenance
from fisher_jax.spectrum import spectrum
from fisher_jax.theory import edge_of_chaos, spectra
from fisher_jax.theory.mlp import mlp
from fisher_jax.theory.predict import predict
from fisher_jax.theory.recursion import Gate

Array = jax.Array

# Networks that are in memory at one time.
TOGETHER = 16
# What `pretraining` trains unless told: name -> (model, options).
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("mlp", {"depth": 6, "width": 64}),
    "skip two": ("resmlp", {"depth": 4}),
    "skip two, batch norm": ("resmlp", {"depth": 4, "norm": "batch"}),
}


def phase_diagram(
    activation: str,
    weight_variances: Any,
    bias_variances: Any,
    *,
    depth: int = 8,
    width: int = 128,
    samples: int = 16,
    cosine: float = 0.0,
    seeds: int = 0,
    key: Array | None = None,
) -> PhaseDiagram:
    """Trace, λ_max and bulk of perceptrons over a grid of variances (σ_w², σ_b²), with the edge of chaos.

        u^l = W^l h^{l−1} + b^l,  W ~ N(0, σ_w²/fan_in),  b ~ N(0, σ_b²);  the edge: χ = σ_w² E[φ'(√q* z)²] = 1

    One output, a Gaussian likelihood, biases trained also where σ_b = 0. Theory is one program over the grid, in float64;
    the networks are another: σ_w and σ_b scale standard normals, drawn anew at each point.

    Args:
        activation: tanh, erf, relu or linear. weight_variances: σ_w² `(A,)`. bias_variances: σ_b² `(B,)`.
        depth: weight matrices L. width: of the layers and of the inputs.
        samples: N inputs with |x|² = d, and this cosine between any two.
        seeds: networks measured at each point; 0: theory alone. key: JAX random key, for networks.

    Returns:
        PhaseDiagram; `fj.plot.phase_diagram` draws it. Finite networks lie above theory in λ_max where it has no outlier
        (odd activations, no biases, orthogonal inputs): there the bulk's own width decides.

    Raises:
        ArgumentError: an activation without a known fixed point, variances that are none, more samples than inputs.

    Reference: Schoenholz et al., ICLR 2017; Karakida et al., AISTATS 2019; `theory.edge_of_chaos`, `theory.mlp`.
    """
    where = "phase_diagram"
    phi = edge_of_chaos.of(activation)
    grid = [_variances(where, name, v) for name, v in (("weight", weight_variances), ("bias", bias_variances))]
    depth, width = _checks.integer(where, "depth", depth, 1), _checks.integer(where, "width", width, 1)
    seeds = _checks.integer(where, "seeds", seeds, 0)
    samples = _checks.integer(where, "samples", samples, 2)
    x = equiangular(where, samples, width, cosine)
    if seeds and key is None:
        raise _checks.fail(where, f"seeds={seeds} without key", "give key=jax.random.key(seed)")
    # Every point of the grid, row by row.
    weights, biases = (a.ravel() for a in np.meshgrid(*grid, indexing="ij"))
    shape = (grid[0].size, grid[1].size)

    def theory(weight_variance: Array, bias_variance: Array) -> tuple[Array, ...]:
        layers = [width] * depth
        theta = mlp(cosine, layers, Gate(phi), weight_variance=weight_variance, bias_variance=bias_variance).theta
        largest, bulk = spectra.two_levels(theta[0, 0], theta[0, 1], samples)
        return edge_of_chaos.susceptibility(phi, weight_variance, bias_variance), theta[0, 0], largest, bulk

    with jax.enable_x64(True):
        chi, trace, largest, bulk = (np.asarray(a).reshape(shape) for a in jax.jit(jax.vmap(theory))(weights, biases))

    def network(point: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weight_variance, bias_variance, key = point
        options: dict[str, Any] = {"activation": activation, "depth": depth, "width": width}
        options |= {"weight_variance": 1.0, "bias_variance": 1.0}
        model = models.build("mlp", inputs=width, outputs=1, key=key, **options)
        for layer in model.layers:
            layer.kernel[...] = jnp.sqrt(weight_variance) * layer.kernel[...]
            layer.bias[...] = jnp.sqrt(bias_variance) * layer.bias[...]
        return levels(model, jnp.asarray(x))

    measured = [np.zeros(0)] * 3
    if key is not None and seeds:
        # In float64: deep in the ordered phase the bulk is a millionth of λ_max.
        with jax.enable_x64(True):
            points = (np.repeat(weights, seeds), np.repeat(biases, seeds), jax.random.split(key, weights.size * seeds))
            program = jax.jit(lambda points: jax.lax.map(network, points, batch_size=TOGETHER))
            measured = [np.asarray(a) for a in program(points)]
    traces, tops, bulks = (jnp.asarray(a.reshape(*shape, seeds), jnp.float32) for a in measured)
    settings = {"depth": depth, "width": width, "samples": samples, "cosine": cosine, "networks": seeds}
    return PhaseDiagram(
        weight_variances=jnp.asarray(grid[0], jnp.float32),
        bias_variances=jnp.asarray(grid[1], jnp.float32),
        chi=jnp.asarray(chi, jnp.float32),
        edge=jnp.asarray(edge_of_chaos.edge(phi, grid[1]), jnp.float32),
        trace=jnp.asarray(trace, jnp.float32),
        lambda_max=jnp.asarray(largest, jnp.float32),
        bulk=jnp.asarray(bulk, jnp.float32),
        measured_trace=traces,
        measured_lambda_max=tops,
        measured_bulk=bulks,
        activation=activation,
        info=provenance(key=key, **settings),
    )


def orthogonal_against_gaussian(
    name: str = "mlp",
    *,
    inputs: int = 128,
    samples: int = 8,
    cosine: float = 0.5,
    seeds: int = 100,
    key: Array,
    **options: Any,
) -> WeightEnsembles:
    """Trace and λ_max of many networks with Gaussian weights, and of as many with orthogonal ones of equal variance.

    Their kernels have the same limit at large width, but a Gaussian layer changes the square of a length by √(2/M) of it, an
    orthogonal one not at all. So for a linear network of L layers and one sample: zero for orthogonal weights, and for
    Gaussian ones, to first order in 1/M,

        Var(trace)/trace² = (1/L²) Σ_{l,m} (1 + 2/M)^{L − 1 − |l − m|} − 1

    Args:
        name: a model of `fj.models` that takes features. inputs: d. samples, cosine: as in `phase_diagram`.
        seeds: networks of each kind. key: JAX random key. options: of the model.

    Returns:
        WeightEnsembles, beside the prediction of `fj.theory.predict`.

    Raises:
        ArgumentError: options that the model lacks or theory does not cover.

    Reference: Saxe et al., ICLR 2014 (orthogonal weights); the variance derived, checked on linear networks.
    """
    where = "orthogonal_against_gaussian"
    seeds = _checks.integer(where, "seeds", seeds, 2)
    if "weights" in options:
        raise _checks.fail(where, f"weights={options['weights']!r} is what is compared", "leave it out")
    x = equiangular(where, samples, inputs, cosine)
    law = predict(name, inputs=inputs, samples=samples, cosine=cosine, **options)

    def ensemble(weights: str) -> tuple[Array, Array]:
        def network(key: Array) -> tuple[Array, Array]:
            return levels(models.build(name, inputs=inputs, outputs=1, key=key, weights=weights, **options), jnp.asarray(x))[
                :2
            ]

        keys = jax.random.split(jax.random.fold_in(key, WEIGHTS.index(weights)), seeds)
        return jax.jit(lambda keys: jax.lax.map(network, keys, batch_size=TOGETHER))(keys)

    (trace, largest), (trace_orthogonal, largest_orthogonal) = (ensemble(weights) for weights in WEIGHTS)
    return WeightEnsembles(
        trace=jnp.stack([trace, trace_orthogonal]),
        lambda_max=jnp.stack([largest, largest_orthogonal]),
        predicted_trace=law.trace,
        predicted_lambda_max=law.lambda_max,
        method=law.method,
        info=provenance(key=key, model=name, inputs=inputs, samples=samples, cosine=cosine, **options),
    )


def pretraining(
    networks: dict[str, tuple[str, dict[str, Any]]] | None = None,
    *,
    epochs: int = 5,
    samples: int = 100,
    optimizer: train.Optimizer = train.Optimizer("adam"),
    key: Array,
) -> dict[str, Pretraining]:
    """The whole Fisher spectrum of networks on digits, at random initialization and after a few epochs of training.

    Softmax outputs, evaluation mode, held-out samples. With batch norm the running statistics are those of the training
    data already before the first step: those of a new network, zero and one, would be no normalization at all.

    Args:
        networks: name -> (model, options), of 64 inputs and 10 outputs; `NETWORKS` unless given: a perceptron, skips over
            two layers, and these with batch norm, all of similar size.
        epochs, optimizer: of `fj.train.fit`. samples: held-out ones that the spectrum is measured on.
        key: JAX random key for split, weights and training.

    Returns:
        Pretraining by name; `fj.plot.pretraining` draws them.
    """
    samples = _checks.integer("pretraining", "samples", samples, 1, 300)
    training, held = data.split(*data.load("digits"), 0.2, key)
    found = {}
    for name, (model_name, options) in (NETWORKS if networks is None else networks).items():
        model = models.build(model_name, inputs=64, outputs=10, key=key, **options)
        settle_statistics(model, training[0])
        before = spectrum(fisher(model, held[0][:samples], Categorical(), bn=_mode(model)))
        history = train.fit(model, training, Categorical(), optimizer=optimizer, epochs=epochs, test=held, key=key)
        after = spectrum(fisher(model, held[0][:samples], Categorical(), bn=_mode(model)))
        found[name] = Pretraining(before, after, history, outputs=10)
    return found


def levels(model: Any, x: Array) -> tuple[Array, Array, Array]:
    """(trace, λ_max, mean of the other N − 1) of the Gaussian Fisher matrix of a network with one output."""
    K = fisher(model, x, Gaussian()).gram()
    trace, largest = jnp.trace(K), jnp.linalg.eigvalsh(K)[-1]
    return trace, largest, (trace - largest) / (K.shape[0] - 1)


def equiangular(where: str, samples: int, inputs: int, cosine: float) -> np.ndarray:
    """N inputs `(N, d)` with |x|² = d and this cosine between any two: those of a kernel of two values."""
    inputs = _checks.integer(where, "inputs", inputs, 2)
    samples = _checks.integer(where, "samples", samples, 1, inputs, f"give from 1 to as many as inputs, {inputs}")
    if not -1 / max(samples - 1, 1) < cosine < 1:
        raise _checks.fail(where, f"cosine={cosine!r} between {samples} samples", "give a number in (-1/(samples - 1), 1)")
    root = np.linalg.cholesky((1 - cosine) * np.eye(samples) + cosine)
    return np.pad(inputs**0.5 * root, ((0, 0), (0, inputs - samples)))


def settle_statistics(model: nnx.Module, x: Any) -> None:
    """Let the running statistics of batch norm be those of x, without a change of the weights."""
    if not jax.tree.leaves(nnx.state(model, nnx.BatchStat)):
        return
    model.train()
    # What they held before fades by the momentum with each pass.
    for _ in range(int(np.ceil(np.log(1e-6) / np.log(MOMENTUM)))):
        model(jnp.asarray(x))
    model.eval()


def _mode(model: nnx.Module) -> str | None:
    return "eval" if jax.tree.leaves(nnx.state(model, nnx.BatchStat)) else None


def _variances(where: str, name: str, values: Any) -> np.ndarray:
    values = np.atleast_1d(np.asarray(values, float))
    if values.ndim != 1 or not values.size or not np.isfinite(values).all() or (values < 0).any():
        raise _checks.fail(where, f"{name}_variances={values.tolist()}", "give a list of numbers >= 0")
    return values
