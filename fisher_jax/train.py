"""Training with Optax: masks and batch statistics active, checkpoints in Orbax, the spectrum measured on the way.

    history = fj.train.fit(model, (x, y), fj.Categorical(), optimizer=fj.train.Optimizer("momentum", 0.1), key=key)

Nothing but weights, running statistics and the optimizer's state is carried from step to step: the order of the samples and
all masks follow from the key and the number of the step, so that a run which was cut off and goes on ends in the same bits.
"""

import dataclasses
import math
import os
import re
import time
import warnings
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fisher_jax import _checks
from fisher_jax.likelihoods import Bernoulli, Categorical, Likelihood
from fisher_jax.results import Training, provenance

Array = jax.Array

RATES = {"sgd": 0.1, "momentum": 0.1, "adam": 1e-3}
SCHEDULES = ("constant", "linear", "cosine", "step")
# Samples of a test set that are evaluated at once.
EVALUATED = 512
CHECKPOINT_SECONDS = 10.0
COLUMNS = ("loss", "accuracy", "test_loss", "test_accuracy", "rate", "seconds")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What `fit` descends with, made of Optax transformations.

    Args:
        name: "sgd", "momentum" (heavy ball) or "adam".
        rate: largest learning rate; 0.1, for Adam 0.001, unless given.
        schedule: of the rate after the warm-up: "constant"; "linear" or "cosine" down to zero; "step": a tenth from one half
            of the steps on, a hundredth from three quarters.
        warmup: share of the steps in which the rate rises linearly from zero.
        momentum: of "momentum".
        decay: weight decay of all arrays with two or more axes: added to the gradient, for Adam to the step (AdamW).

    Reference: He et al., CVPR 2016, section 4.2 (step); Loshchilov and Hutter, ICLR 2019 (AdamW).
    """

    name: str = "momentum"
    rate: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.1
    momentum: float = 0.9
    decay: float = 5e-4

    def __post_init__(self) -> None:
        for name, value, known in (("name", self.name, tuple(RATES)), ("schedule", self.schedule, SCHEDULES)):
            if value not in known:
                raise _checks.fail("Optimizer", f"{name}={value!r} is unknown", f"choose among {', '.join(known)}")
        if self.rate is not None:
            _checks.positive("Optimizer", "rate", self.rate)
        for name in ("warmup", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise _checks.fail("Optimizer", f"{name}={getattr(self, name)!r}", "give a number from 0 to below 1")
        if not 0 <= self.decay < math.inf:
            raise _checks.fail("Optimizer", f"decay={self.decay!r}", "give a number >= 0")

    def learning_rate(self, steps: int) -> optax.Schedule:
        """Of each of so many steps."""
        peak = RATES[self.name] if self.rate is None else self.rate
        rising = int(self.warmup * steps)
        falling = max(1, steps - rising)
        after = {
            "constant": lambda: optax.constant_schedule(peak),
            "linear": lambda: optax.linear_schedule(peak, 0.0, falling),
            "cosine": lambda: optax.cosine_decay_schedule(peak, falling),
            "step": lambda: optax.piecewise_constant_schedule(
                peak, {max(0, steps // 2 - rising): 0.1, max(1, 3 * steps // 4 - rising): 0.1}
            ),
        }[self.schedule]()
        if rising:
            after = optax.join_schedules([optax.linear_schedule(0.0, peak, rising), after], [rising])

        def rate(step: Any) -> Any:
            # Optax mixes integers and floats, which users may have forbidden.
            with jax.numpy_dtype_promotion("standard"):
                return after(step)

        return rate

    def transformation(self, steps: int) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(self.decay, mask=lambda params: jax.tree.map(lambda a: a.ndim > 1, params))
        parts = {
            "sgd": [decay],
            "momentum": [decay, optax.trace(self.momentum)],
            "adam": [optax.scale_by_adam(), decay],
        }[self.name]
        return optax.chain(*parts, optax.scale_by_learning_rate(self.learning_rate(steps)))


class Progress(NamedTuple):
    """State of a running training, handed to a progress callback."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float  # of this step
    test_accuracy: float  # after the last epoch


class _State(NamedTuple):
    """All that a step changes."""

    params: Any
    statistics: Any  # of batch norm
    optimizer: Any


def fit(
    model: nnx.Module,
    data: tuple[Any, Any],
    likelihood: Likelihood,
    *,
    optimizer: Optimizer | optax.GradientTransformation = Optimizer(),
    epochs: int = 30,
    batch: int = 64,
    test: tuple[Any, Any] | None = None,
    key: Array,
    track: Any = None,
    directory: Any = None,
    progress: Callable[[Progress], None] | None = None,
) -> Training:
    """Train a network: its weights and running statistics are changed in place.

    The loss is the mean negative log-likelihood of samples (and tokens); dropout and stochastic depth are active, batch norm
    uses the statistics of the batch and updates the running ones. Every epoch goes once through the data in a new random
    order, without the rest that fills no batch.

    Args:
        model: an `nnx.Module`; it is left in evaluation mode.
        data: `(x, y)`, leading axis N. test: likewise, evaluated after every epoch.
        likelihood: of the outputs, as in `fj.fisher`.
        optimizer: an `Optimizer`, or an Optax transformation of your own.
        epochs, batch: passes through the data, samples per step.
        key: JAX random key, for the order of the samples and the masks.
        track: from `fj.track(...)`: measures the spectrum of the network in evaluation mode before each step that is due,
            and after the last, beside the loss of the step before. Steps count from zero; what it holds of later ones is
            forgotten.
        directory: for checkpoints after an epoch, at most one every ten seconds and one at the end, the last two kept. A run
            of the same settings goes on where it ended.
        progress: called with `Progress` a few times a second.

    Returns:
        Training: one row for each epoch. With a loss that is no number the run ends early, with a warning, and the model
        keeps the weights of the epoch before.

    Raises:
        ArgumentError: not a module, shapes and labels that do not fit, NaN in the data; a directory with a run of other
            settings.
    """
    if not isinstance(model, nnx.Module):
        raise _checks.fail("fit", f"model={type(model).__name__} is not an nnx.Module", "give fj.models.build(...)")
    if not isinstance(likelihood, Likelihood):
        raise _checks.fail("fit", f"likelihood={likelihood!r} is not a likelihood", "give fj.Categorical(), ...")
    if not isinstance(key, jax.Array) or key.size > 2:
        raise _checks.fail("fit", f"key={key!r} is not a JAX random key", "give key=jax.random.key(seed)")
    run = _Run(model, _pair(data, "data"), likelihood, key)
    x, y = run.data
    samples, epochs = len(jax.tree.leaves(x)[0]), _checks.integer("fit", "epochs", epochs, 1)
    batch = _checks.integer("fit", "batch", batch, 1, samples)
    per_epoch = samples // batch
    steps = epochs * per_epoch
    known = isinstance(optimizer, Optimizer)
    rate: Any = optimizer.learning_rate(steps) if known else lambda step: math.nan
    transformation = optimizer.transformation(steps) if known else optimizer
    if not isinstance(transformation, optax.GradientTransformation):
        raise _checks.fail("fit", f"optimizer={optimizer!r}", "give fj.train.Optimizer(...) or an Optax transformation")
    test = None if test is None else run.fitting(_pair(test, "test"), "test")

    state = run.start(transformation)
    settings = {
        "optimizer": repr(optimizer) if known else "of your own",
        "epochs": epochs,
        "batch": batch,
        "samples": samples,
        "likelihood": repr(likelihood),
        "key": dict(provenance(key))["key"],
        "data": _checksum((x, y)),
    }
    step_of = run.step(transformation)
    if directory is not None:
        # Network and optimizer with all their numbers, as one program; addresses of functions differ in each run.
        text = str(jax.make_jaxpr(step_of)(state, 0, *_take((x, y), np.arange(batch))))
        settings |= {"initial weights": _checksum((state.params, state.statistics))}
        settings |= {"network or optimizer": f"{zlib.crc32(re.sub(r'0x[0-9a-f]+', '', text).encode()):08x}"}
    files = None if directory is None else _Checkpoints(directory, settings)
    rows: list[dict[str, float]] = []
    if files is not None:
        state, rows = files.restore(state)
    if track is not None:
        track.rewind(len(rows) * per_epoch + (len(rows) == epochs))
    shown, sound = 0.0, True
    try:
        for epoch in range(len(rows), epochs):
            began, before, measured = time.perf_counter(), state, []
            order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), samples))
            for i in range(per_epoch):
                step = epoch * per_epoch + i
                if track is not None and track.due(step):
                    loss = float(measured[-1][0]) if measured else rows[-1]["last loss"] if rows else None
                    if not (sound := _measured(track, step, run.network(state), loss=loss, rate=float(rate(step)))):
                        break
                state, facts = step_of(state, step, *_take((x, y), order[i * batch : (i + 1) * batch]))
                measured.append(facts)
                if progress is not None and (time.perf_counter() - shown > 0.2 or step + 1 == steps):
                    accuracy = rows[-1]["test_accuracy"] if rows else math.nan
                    progress(Progress(epoch, epochs, step + 1, steps, float(facts[0]), accuracy))
                    shown = time.perf_counter()
            facts = np.asarray(measured, np.float64).reshape(-1, 2)
            loss, accuracy = facts.mean(axis=0).tolist() if sound and run.finite(state) else (math.nan, math.nan)
            row = {"loss": loss, "accuracy": accuracy, "test_loss": math.nan, "test_accuracy": math.nan}
            if math.isfinite(loss) and test is not None:
                row["test_loss"], row["test_accuracy"] = run.evaluate(state, test)
            last = {
                "rate": float(rate((epoch + 1) * per_epoch - 1)),
                "last loss": float(facts[-1, 0]) if facts.size else loss,
            }
            rows.append(row | last | {"seconds": time.perf_counter() - began})
            if not math.isfinite(loss):
                state = before
                warnings.warn(f"fit: the loss of epoch {epoch + 1} is no number: stopped; lower the rate", stacklevel=2)
                break
            if files is not None:
                files.keep(len(rows), state, rows)
        else:
            if track is not None and track.last_step != steps:
                track.measure(steps, run.network(state), loss=rows[-1]["last loss"], rate=rows[-1]["rate"])
    finally:
        run.give_back(model, state)
        if files is not None:
            files.close()
    table = {name: jnp.asarray([row[name] for row in rows], jnp.float32) for name in COLUMNS}
    count = jnp.arange(1, len(rows) + 1, dtype=jnp.int32)
    return Training(epochs=count, steps=per_epoch * count, **table, info=provenance(**(settings | {"key": key})))


class _Run:
    """A network apart: what a step changes, and what stays."""

    def __init__(self, model: nnx.Module, data: tuple[Any, Any], likelihood: Likelihood, key: Array):
        self.likelihood = likelihood
        model.eval()
        self.evaluation = nnx.split(model)[0]
        copy = nnx.clone(model)
        copy.train()
        self.training, self.params, self.statistics, keys, self.rest = nnx.split(
            copy, nnx.Param, nnx.BatchStat, nnx.RngKey, ...
        )
        word = jax.random.bits(key, (), "uint32")
        self.keys = jax.tree.map(lambda k: _fold(k, word), keys)
        self.data = self.fitting(data, "data")
        self._evaluate = jax.jit(self._sums)
        self._finite = jax.jit(lambda tree: jnp.all(jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(tree)])))

    def start(self, transformation: optax.GradientTransformation) -> _State:
        params = nnx.to_pure_dict(self.params)
        return _State(params, nnx.to_pure_dict(self.statistics), transformation.init(params))

    def step(self, transformation: optax.GradientTransformation) -> Any:
        """(state, number of the step, x, y) -> (state, (loss, accuracy)), compiled."""

        def step(state: _State, number: Array, x: Any, y: Any) -> tuple[_State, tuple[Array, Array]]:
            keys = jax.tree.map(lambda k: _fold(k, number), self.keys)

            def loss(params: Any) -> tuple[Array, Any]:
                network = self._merge(self.training, params, state.statistics, keys)
                z = network(x)
                statistics = nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))
                return jnp.mean(self._losses(z, y)), (statistics, jnp.mean(self._hits(z, y)))

            (value, (statistics, hits)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
            with jax.numpy_dtype_promotion("standard"):
                updates, optimizer = transformation.update(gradient, state.optimizer, state.params)
            return _State(optax.apply_updates(state.params, updates), statistics, optimizer), (value, hits)

        return jax.jit(step)

    def network(self, state: _State) -> nnx.Module:
        """In evaluation mode."""
        return self._merge(self.evaluation, state.params, state.statistics, self.keys)

    def finite(self, state: _State) -> bool:
        return bool(self._finite((state.params, state.statistics)))

    def give_back(self, model: nnx.Module, state: _State) -> None:
        for kind, tree in ((nnx.Param, state.params), (nnx.BatchStat, state.statistics)):
            own = nnx.state(model, kind)
            nnx.replace_by_pure_dict(own, tree)
            nnx.update(model, own)

    def evaluate(self, state: _State, data: tuple[Any, Any]) -> tuple[float, float]:
        """Mean loss and accuracy, in evaluation mode."""
        samples = len(jax.tree.leaves(data)[0])
        size, sums = min(samples, EVALUATED), np.zeros(2)
        for first in range(0, samples, size):
            # The last batch is as long as the others, its repeated samples of weight zero.
            index = np.minimum(np.arange(first, first + size), samples - 1)
            inside = np.arange(first, first + size) < samples
            sums += np.asarray(self._evaluate(state, inside, *_take(data, index)), np.float64)
        return float(sums[0] / samples), float(sums[1] / samples)

    def fitting(self, data: tuple[Any, Any], name: str) -> tuple[Any, Any]:
        """Data as arrays that fit the network and the likelihood, else an error."""
        x, y = (jax.tree.map(np.asarray, part) for part in data)
        shapes = [a.shape for a in jax.tree.leaves((x, y))]
        lengths = {shape[0] if shape else 0 for shape in shapes}
        if len(lengths) != 1 or 0 in lengths:
            raise _checks.fail("fit", f"{name} has shapes {shapes}", "give as many labels as inputs")
        _checks.finite("fit", f"{name} x", x, "clean the data")
        _checks.finite("fit", f"{name} y", y, "clean the labels")
        x, y = jax.tree.map(_canonical, (x, y))
        few = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape[1:]), a.dtype), x)

        # Merged where it is called: a loop over stacked blocks writes to their statistics.
        def network(x: Any) -> Any:
            return self._merge(self.evaluation, self.params, self.statistics, self.keys)(x)

        try:
            outputs = jax.eval_shape(network, few)
        except (TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise _checks.fail(
                "fit", f"model rejects {name} of shapes {shapes} ({reason})", "match x to the model"
            ) from error
        structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct((*lengths, *a.shape[1:]), a.dtype), outputs)
        self.likelihood.check_labels("fit", structs, y)
        return x, jax.tree.map(lambda a, s: a.astype(s.dtype) if a.shape == s.shape else a, y, structs)

    def _merge(self, graphdef: Any, params: Any, statistics: Any, keys: Any) -> Any:
        return nnx.merge(graphdef, params, statistics, keys, self.rest, copy=True)

    def _losses(self, z: Any, y: Any) -> Array:
        """Of each sample, mean over tokens."""
        tokens = {math.prod(leaf.shape[1:-1]) for leaf in jax.tree.leaves(z)}
        return self.likelihood.nll(z, y) / max(tokens)

    def _hits(self, z: Any, y: Any) -> Array:
        """Share of right answers of each sample; NaN where there is no such thing."""
        if not isinstance(z, jax.Array) or not isinstance(self.likelihood, Categorical | Bernoulli):
            return jnp.full((), jnp.nan)
        right = jnp.argmax(z, axis=-1) == y if isinstance(self.likelihood, Categorical) else (z > 0) == (y > 0.5)
        return jnp.mean(right.reshape(right.shape[0], -1).astype(jnp.float32), axis=1)

    def _sums(self, state: _State, inside: Array, x: Any, y: Any) -> tuple[Array, Array]:
        z = self.network(state)(x)
        losses, hits = (jnp.sum(jnp.where(inside, part, 0)) for part in (self._losses(z, y), self._hits(z, y)))
        return losses, hits


class _Checkpoints:
    """States after an epoch, with the rows so far; written in the background, and not more often than is of use."""

    def __init__(self, directory: Any, settings: dict[str, Any]):
        import orbax.checkpoint as ocp

        self.ocp, self.settings = ocp, settings
        self.directory = os.path.abspath(os.fspath(directory))
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self.manager = ocp.CheckpointManager(self.directory, options=options, item_names=("state", "run"))
        self.written, self.pending = time.perf_counter(), None

    def keep(self, epoch: int, state: _State, rows: list[dict[str, float]]) -> None:
        self.pending = epoch, state, list(rows)
        if time.perf_counter() - self.written > CHECKPOINT_SECONDS:
            self.write()

    def write(self) -> None:
        if self.pending is None:
            return
        (epoch, state, rows), args = self.pending, self.ocp.args
        run = {"settings": self.settings, "rows": [{n: v if math.isfinite(v) else None for n, v in r.items()} for r in rows]}
        self.manager.save(epoch, args=args.Composite(state=args.StandardSave(_flat(state)), run=args.JsonSave(run)))
        self.written, self.pending = time.perf_counter(), None

    def restore(self, state: _State) -> tuple[_State, list[dict[str, float]]]:
        """The last state of a run of the same settings; the given one if there is none."""
        latest, args = self.manager.latest_step(), self.ocp.args
        if latest is None:
            return state, []
        run = self.manager.restore(latest, args=args.Composite(run=args.JsonRestore()))["run"]
        for name, value in self.settings.items():
            if (found := run["settings"].get(name)) != value:
                raise _checks.fail(
                    "fit", f"directory={self.directory!r} is of a run with {name} {found}, not {value}", "give another one"
                )
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = {
            n: jax.ShapeDtypeStruct(np.shape(a), jnp.asarray(a).dtype, sharding=place) for n, a in _flat(state).items()
        }
        found = self.manager.restore(latest, args=args.Composite(state=args.StandardRestore(wanted)))["state"]
        leaves = [found[name] for name in wanted]
        rows = [{name: math.nan if value is None else value for name, value in row.items()} for row in run["rows"]]
        return jax.tree.unflatten(jax.tree.structure(state), leaves), rows

    def close(self) -> None:
        """Also when the run was cut off: the last epoch that ended is written."""
        self.write()
        self.manager.wait_until_finished()
        self.manager.close()


def _flat(state: _State) -> dict[str, Any]:
    """Leaves by the name of their path."""
    return {jax.tree_util.keystr(p, simple=True, separator="."): a for p, a in jax.tree_util.tree_leaves_with_path(state)}


def _fold(key: Array, word: Any) -> Array:
    """Keys of stacked blocks come as arrays."""
    return jax.random.fold_in(key, word) if key.ndim == 0 else jax.vmap(lambda k: _fold(k, word))(key)


def _measured(track: Any, step: int, network: Any, **facts: Any) -> bool:
    """Measure; a network that was measured before and cannot be any more has diverged."""
    before = track.last_step
    try:
        track.measure(step, network, **facts)
    except _checks.ArgumentError:
        if before is None:
            raise
        return False
    return True


def _checksum(tree: Any) -> str:
    """Of at most the first thousand rows of each array."""
    parts = (np.ascontiguousarray(np.asarray(a)[:1000] if np.ndim(a) else a).tobytes() for a in jax.tree.leaves(tree))
    return f"{zlib.crc32(b''.join(parts)):08x}"


def _take(tree: Any, index: np.ndarray) -> Any:
    return jax.tree.map(lambda a: a[index], tree)


def _canonical(a: np.ndarray) -> np.ndarray:
    wanted = jax.dtypes.canonicalize_dtype(a.dtype)
    return a if a.dtype == wanted else a.astype(wanted)


def _pair(data: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(data, (tuple, list)) or len(data) != 2 or data[1] is None:
        raise _checks.fail("fit", f"{name} is no pair of inputs and labels", f"give {name}=(x, y)")
    return data[0], data[1]
