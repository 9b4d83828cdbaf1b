"""Every architecture with every option: it builds, runs, has the K of an explicit Jacobian, and all weights have sites."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx

import fisher_jax as fj
from fisher_jax.kernels import layout

RNG = np.random.default_rng(0)
N, T = 2, 3
FEATURES, IMAGES, PATCHED = RNG.normal(size=(N, 3)), RNG.normal(size=(N, 8, 8, 2)), RNG.normal(size=(N, 4, 8, 2))
TOKENS = RNG.integers(0, 4, (N, T)).astype(np.int32)
SERIES = RNG.normal(size=(N, T, 2))
MIXED = {"numeric": FEATURES, "categorical": RNG.integers(0, 3, (N, 2)).astype(np.int32)}

# Architecture -> (inputs, outputs, options of the tiny network from which one is changed at a time).
BASES = {
    "mlp": (3, 2, {"depth": 3, "width": 4}),
    "resmlp": (3, 2, {"depth": 2}),
    "densemlp": (3, 2, {"depth": 2, "growth": 2}),
    "resnet": ((8, 8, 2), 2, {"depth": 8, "width": 2}),
    "imagenet_resnet": ((8, 8, 2), 2, {"depth": 10, "width": 2}),
    "vgg": ((8, 8, 2), 2, {"depth": 11, "width": 2}),
    "densenet": ((8, 8, 2), 2, {"depth": 7, "width": 2, "bottleneck": False}),
    "vit": ((4, 8, 2), 2, {"depth": 1, "width": 4, "heads": 2, "expansion": 2, "patch": 4}),
    "gpt": (T + 1, 4, {"depth": 1, "width": 4, "heads": 2, "expansion": 2}),
    "regressor": (3, 2, {"depth": 2, "width": 4}),
    "rnn": (2, 2, {"depth": 1, "width": 3}),
    "vrnn": (2, 2, {"depth": 1, "width": 3, "latent": 2}),
}


def data(name, options):
    """Samples of an architecture, float64."""
    if name == "regressor":
        return MIXED if options.get("cardinalities") else FEATURES
    if name == "vrnn":
        noise = np.random.default_rng(1).normal(size=(N, T, options["latent"]))
        return {"inputs": SERIES, "targets": SERIES[::-1], "noise": noise}
    return {"features": FEATURES, "image": PATCHED if name == "vit" else IMAGES, "tokens": TOKENS, "sequence": SERIES}[
        fj.models.takes(name)
    ]


class With:
    """A value that needs other options beside it."""

    def __init__(self, value, **companions):
        self.value, self.companions = value, companions


ACTIVATIONS = ["tanh", "erf", "gelu", "gelu-tanh", "linear"]
UNITS = {  # of all perceptrons of the mean-field literature
    "activation": ACTIVATIONS,
    "readout_variance": [0.7],
    "weights": ["orthogonal"],
    "parametrization": ["ntk"],
    "dropout": [0.3],
    "dropout_form": [With("raw", dropout=0.3)],
    "output_norm": ["mean", "batch"],
}
DEPTHS = {"dropout": [0.3], "survival": [0.6]}
RESIDUAL = DEPTHS | {  # of residual convolutional networks
    "skip": [False],
    "norm": ["none", "layer", "group"],
    "init": ["lecun", "orthogonal", With("fixup", norm="none"), "skipinit"],
    "survival_schedule": [With("uniform", survival=0.6)],
}
TRANSFORMER = DEPTHS | {
    "depth": [2],
    "width": [6],
    "heads": [1],
    "expansion": [3],
    "norm": ["post"],
    "skip": [False],
    "activation": ["relu", "tanh", "erf", "gelu-tanh", "linear"],
    "survival_schedule": [With("uniform", survival=0.6)],
    "weight_variance": [1.5],
}
# Architecture -> option -> values beside that of the base: of choices all others, of numbers one other.
VALUES = {
    "mlp": UNITS | {"depth": [1], "width": [5], "weight_variance": [1.5], "bias_variance": [0.1], "norm": ["batch"]},
    "resmlp": UNITS
    | {
        "depth": [3],
        "width": [With(4, skip=1)],
        "skip": [1],
        "form": [With("post", skip=1), With("linear", skip=1)],
        "variances": [(1.5, 0.5)],
        "input_variance": [With(0.5, skip=1)],
        "scale": [0.5, "depth"],
        "gain": [0.7],
        "norm": ["population", "batch"],
        "residual": ["fixup", "fixup-scalars", "skipinit"],
        "survival": [0.6],
        "survival_schedule": [With("linear", survival=0.6)],
        "scanned": [True],
    },
    "densemlp": UNITS | {"depth": [3], "growth": [3], "variance": [1.5], "norm": ["batch"]},
    "resnet": RESIDUAL | {"depth": [14], "width": [3], "widen": [With(2, depth=10)], "form": ["pre"], "shortcut": ["B"]},
    "imagenet_resnet": RESIDUAL | {"depth": [14], "width": [3], "shortcut": ["A"]},
    "vgg": {
        "depth": [13],
        "width": [3],
        "head": ["large"],
        "hidden": [With(5, head="large")],
        "norm": ["batch", "layer", "group"],
        "init": ["lecun", "orthogonal"],
        "dropout": [0.3],
    },
    "densenet": {
        "depth": [10],
        "width": [3],
        "bottleneck": [With(True, depth=10)],
        "compression": [1.0],
        "skip": [False],
        "norm": ["none", "layer", "group"],
        "init": ["lecun", "orthogonal"],
        "dropout": [0.3],
    },
    "vit": TRANSFORMER | {"patch": [2]},
    "gpt": TRANSFORMER | {"tied": [False], "activation": ["relu", "tanh", "erf", "gelu", "linear"]},
    "regressor": {
        "depth": [1],
        "width": [5],
        "cardinalities": [(3, 4)],
        "embedding": [With(2, cardinalities=(3, 4))],
        "norm": ["layer"],
        "activation": ACTIVATIONS,
        "dropout": [0.3],
        "weight_variance": [1.5],
        "readout_variance": [0.7],
    },
    "rnn": {
        "depth": [2],
        "width": [4],
        "cell": ["lstm"],
        "readouts": ["last"],
        "dropout": [0.3],
        "weights": ["orthogonal"],
        "weight_variance": [1.5],
        "readout_variance": [0.7],
    },
    "vrnn": {
        "depth": [2],
        "width": [4],
        "latent": [3],
        "latents": ["prior"],
        "activation": ["relu", "erf", "gelu", "gelu-tanh", "linear"],
        "weight_variance": [1.5],
    },
}


def cases(name):
    """(label, options) of the tiny network, and of it with one option changed."""
    yield f"{name}", BASES[name][2]
    for option, values in VALUES[name].items():
        for value in values:
            value, companions = (value.value, value.companions) if isinstance(value, With) else (value, {})
            yield f"{name} {option}={value}", BASES[name][2] | companions | {option: value}


# Where each network takes seconds to compile, those with one option changed are slow tests, and fast ones change many.
PACKED = {
    "resnet": [
        {"form": "pre", "shortcut": "B", "norm": "none", "init": "fixup", "dropout": 0.3},
        {"depth": 10, "widen": 2, "norm": "layer", "init": "skipinit", "survival": 0.6, "survival_schedule": "uniform"},
        {"width": 3, "norm": "group", "init": "orthogonal", "skip": False},
    ],
    "imagenet_resnet": [
        {"depth": 14, "shortcut": "A", "init": "skipinit", "survival": 0.6, "survival_schedule": "uniform"},
        {"width": 3, "norm": "none", "init": "lecun", "skip": False, "dropout": 0.3},
    ],
    "vgg": [
        {"depth": 13, "width": 3, "norm": "batch", "init": "orthogonal"},
        {"head": "large", "hidden": 5, "dropout": 0.3},
    ],
    "densenet": [
        {"depth": 10, "bottleneck": True, "width": 3, "compression": 1.0},
        {"skip": False, "norm": "group", "init": "orthogonal", "dropout": 0.3},
    ],
    "vit": [
        {"patch": 2, "heads": 1, "norm": "post", "activation": "tanh", "survival": 0.6, "survival_schedule": "uniform"},
        {
            "depth": 2,
            "width": 6,
            "expansion": 3,
            "skip": False,
            "activation": "relu",
            "dropout": 0.3,
            "weight_variance": 1.5,
        },
    ],
    "gpt": [
        {"depth": 2, "tied": False, "norm": "post", "skip": False, "activation": "erf", "heads": 1, "expansion": 3},
        {"width": 6, "survival": 0.6, "survival_schedule": "uniform", "dropout": 0.3, "weight_variance": 1.5},
    ],
    "regressor": [{"cardinalities": (3, 4), "embedding": 3, "norm": "layer", "activation": "tanh"}],
    "rnn": [
        {"cell": "lstm", "readouts": "last", "weights": "orthogonal", "weight_variance": 1.5},
        {"depth": 2, "width": 4, "dropout": 0.3, "readout_variance": 0.7},
    ],
    "vrnn": [
        {"depth": 2, "width": 4, "latents": "prior", "activation": "relu", "weight_variance": 1.5},
        {"latent": 3, "activation": "gelu"},
    ],
}
CASES = {label: (name, options) for name in BASES for label, options in cases(name)}
SLOW = [label for label, (name, _) in CASES.items() if name in PACKED and name != "regressor"]
for name, packs in PACKED.items():
    CASES |= {f"{name} {', '.join(map(str, pack.values()))}": (name, BASES[name][2] | pack) for pack in packs}


def build(name, **options):
    inputs, outputs, _ = BASES[name]
    return fj.models.build(name, inputs=inputs, outputs=outputs, key=jax.random.key(0), **options)


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_architecture_has_a_base():
    assert BASES.keys() == VALUES.keys() == fj.models.MODELS.keys()


@pytest.mark.parametrize("name", BASES)
def test_every_option_has_all_its_values(name):
    """Of a choice, what the refusal of a wrong one lists; of true or false, both; of a number, another."""
    known = fj.models.options(name) | BASES[name][2]
    assert VALUES[name].keys() == known.keys()
    for option, values in VALUES[name].items():
        companions = {n: v for value in values if isinstance(value, With) for n, v in value.companions.items()}
        values = [value.value if isinstance(value, With) else value for value in values]
        texts = {value for value in [known[option], *values] if isinstance(value, str)}
        if texts:
            with pytest.raises(fj.ArgumentError, match=f"{option}='wrong' is unknown; choose among") as caught:
                build(name, **BASES[name][2] | companions | {option: "wrong"})
            assert texts == set(str(caught.value).split("choose among ")[1].split(", ")), option
        if isinstance(known[option], bool):
            assert values == [not known[option]], option
        assert values and known[option] not in values, option


@pytest.mark.parametrize("name", [name for name in PACKED if name in SLOW])
def test_fast_tests_change_every_option(name):
    assert set().union(*PACKED[name]) == VALUES[name].keys()


REFUSED = {
    "mlp": {
        "depth": [0, 1.5, None],
        "weight_variance": [-1, "large", None, [1]],
        "bias_variance": [-0.1],
        "dropout": [1.5, "x"],
    },
    "resmlp": {
        "width": [4],
        "skip": [3],
        "norm": [With("population", skip=1)],
        "residual": [With("fixup", skip=1)],
        "variances": [1.0, (1.0,), (-1.0, 1.0)],
        "scale": ["width", None, np.nan],
        "gain": ["x", None],
        "survival": [-0.1, None],
        "scanned": ["yes"],
    },
    "densemlp": {"growth": [0], "variance": [-1], "readout_variance": ["x"]},
    "resnet": {
        "depth": [9, With(8, widen=2)],
        "init": [With("fixup", norm="batch"), With("skipinit", skip=False), With("fixup", norm="none", skip=False)],
        "survival": [With(0.5, skip=False)],
        "skip": ["no"],
    },
    "imagenet_resnet": {"depth": [20], "init": [With("fixup", norm="group")], "survival": [With(0.5, skip=False)]},
    "vgg": {"depth": [12], "init": ["fixup", "skipinit"], "hidden": [0], "dropout": [-0.5]},
    "densenet": {"depth": [8, With(7, bottleneck=True)], "compression": [0, 1.5, None], "init": ["fixup"]},
    "vit": {"patch": [3], "heads": [3], "survival": [With(0.5, skip=False)], "weight_variance": [-1]},
    "gpt": {"heads": [3], "survival": [With(0.5, skip=False)], "tied": [None], "expansion": [0]},
    "regressor": {"cardinalities": [3, (0,), (1.5,)], "embedding": [0], "norm": ["batch"]},
    "rnn": {"depth": [0], "cell": ["elman"], "weight_variance": [np.inf]},
    "vrnn": {"latent": [0], "activation": ["softplus"]},
}


@pytest.mark.parametrize("name", BASES)
def test_wrong_values_and_combinations_are_refused(name):
    for option, values in REFUSED[name].items():
        for value in values:
            value, companions = (value.value, value.companions) if isinstance(value, With) else (value, {})
            with pytest.raises(fj.ArgumentError) as caught:
                nnx.eval_shape(lambda o=BASES[name][2] | companions | {option: value}: build(name, **o))
            assert option in str(caught.value) and "\n" not in str(caught.value)


# --- it builds and runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
def test_builds_and_runs_in_both_modes(name):
    """As it is built, in float32 and under strict promotion; shapes alone."""
    for label, (architecture, options) in CASES.items():
        if architecture != name:
            continue
        x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32 if a.dtype == np.float64 else a.dtype), data(name, options))

        def run(x, training, options=options):
            model = build(name, **options)
            if training:
                model.train()
            return model(x)

        for training in (False, True):
            outputs = jax.eval_shape(partial(run, training=training), x)
            sequence = fj.models.takes(name) in ("tokens", "sequence") and options.get("readouts") != "last"
            assert outputs.shape == (N, *((T,) if sequence else ()), BASES[name][1]), label
            assert outputs.dtype == jnp.float32, label


# --- K ----------------------------------------------------------------------------------------------------------------


def float64(name, **options):
    """The parts of a network (structure, parameters, the rest), in double precision and away from what it starts with."""
    rng = np.random.default_rng(2)

    def fill(path, a):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), a.shape)
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return jnp.zeros(a.shape, a.dtype)
        if "mean" in jax.tree_util.keystr(path):
            return jnp.asarray(rng.normal(size=a.shape) / 10)  # larger ones silence all units of a ReLU
        if a.ndim < 2:
            return jnp.asarray(rng.uniform(0.5, 1, a.shape))
        return jnp.asarray(rng.normal(size=a.shape) / np.sqrt(np.prod(a.shape[:-1])))

    graphdef, params, rest = nnx.split(nnx.eval_shape(lambda: build(name, **options)), nnx.Param, ...)
    return graphdef, *jax.tree_util.tree_map_with_path(fill, (nnx.to_pure_dict(params), rest))


KERNELS = {}


@partial(jax.jit, static_argnums=0)
def gram(graphdef, params, rest, x):
    """K by the engine. Under jit the network is not tried out, which takes most of the time: that is done once below."""
    F = fj.fisher(nnx.merge(graphdef, params, rest, copy=True), x, fj.Gaussian(0.5), chunk=1)
    network = F.factor.jacobian.network
    kernels = layout(F.factor, (0,) * len(network.paths)).kernels
    KERNELS[graphdef, shapes_of(params)] = kernels, network.paths, shapes_of(network.params)
    return F.gram()


def shapes_of(params):
    return tuple(a.shape for a in jax.tree.leaves(params))


@partial(jax.jit, static_argnums=0)
def jacobian(graphdef, params, rest, x):
    """J `(N · outputs, P)` by reverse mode, sample by sample."""

    def one(params, row):
        return nnx.merge(graphdef, params, rest, copy=True)(jax.tree.map(lambda a: a[None], row))[0].reshape(-1)

    found = jax.tree.leaves(jax.vmap(jax.jacrev(one), (None, 0))(params, x))
    return jnp.concatenate([a.reshape(a.shape[0] * a.shape[1], -1) for a in found], axis=1)


# Weights without a site, and why: per-sample gradients by backpropagation serve them.
EXPECTED_FALLBACKS = {
    "vit": {"positions": "added to the stream: its gradient is the cotangent there"},
    "gpt": {
        "positions": "added to the stream: its gradient is the cotangent there",
        "tokens": "reads tokens in and scores them out: the cross terms of both count",
    },
    "gpt, not tied": {"positions": "added to the stream: its gradient is the cotangent there"},
}
# Parts that the outputs do not depend on.
UNUSED = {"vrnn": {"prior"}, "vrnn, latents from the prior": {"encoder"}}


def expected(table, name, options):
    names = {("tied", False): ", not tied", ("latents", "prior"): ", latents from the prior"}
    return table.get(name + "".join(text for (option, value), text in names.items() if options.get(option) == value), {})


@pytest.mark.parametrize("label", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in CASES])
def test_gram_equals_the_explicit_one_and_weights_have_sites(label, x64):
    name, options = CASES[label]
    parts, x = float64(name, **options), data(name, options)
    K, J = gram(*parts, x), np.asarray(jacobian(*parts, x))
    truth = J @ J.T / 0.5**2 / N
    assert K.dtype == jnp.float64 and K.shape == truth.shape
    assert np.diag(truth).min() > 0, "no gradient is zero by chance"
    assert np.abs(K - truth).max() <= 100 * oracle.eps("float64") * np.abs(truth).max()
    kernels, paths, shapes = KERNELS[parts[0], shapes_of(parts[1])]
    matrix = [max(shape, default=1) < np.prod(shape) for shape in shapes]
    # A vector's gradient is one cotangent: there is nothing to find.
    fallen = {paths[i] for kernel in kernels if kernel.site is None for i in kernel.parameters if matrix[i]}
    assert fallen == set(expected(EXPECTED_FALLBACKS, name, options)), kernels
    used = {i for kernel in kernels for i in kernel.parameters}
    assert {paths[i].split("/")[0] for i in set(range(len(paths))) - used} == set(expected(UNUSED, name, options))


IMAGED = ("imagenet_resnet", "vgg", "densenet")  # as the one of small images, but slower


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in IMAGED else []) for n in BASES])
def test_as_users_call_it(name, x64):
    """The network is tried out and not refused; products with F of the softmax, and the plan."""
    options = BASES[name][2]
    (graphdef, params, rest), x = float64(name, **options), data(name, options)
    model, J = nnx.merge(graphdef, params, rest, copy=True), np.asarray(jacobian(graphdef, params, rest, x))
    F = fj.fisher(model, x, fj.Categorical())
    V = np.random.default_rng(3).normal(size=(F.size, 2))
    f = np.asarray(model(x)).reshape(-1, BASES[name][1])
    truth = 0
    for z, j in zip(f, J.reshape(*f.shape, -1), strict=True):
        truth = truth + j.T @ (oracle.output_fisher("categorical", z) @ (j @ V)) / N
    assert np.abs(F @ V - truth).max() <= 100 * oracle.eps("float64") * np.abs(truth).max()
    fallen = {path for path, *_, reason in fj.plan(F).kernels if "not recognized" in reason}
    assert fallen <= set(expected(EXPECTED_FALLBACKS, name, options))
