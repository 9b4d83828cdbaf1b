"""The dual matrix from layers, against explicit float64 Jacobians, for every way a parameter may meet data."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import fisher_jax as fj
from fisher_jax.gram import Tiles, gram
from fisher_jax.kernels import layout

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape) / np.sqrt(max(1, np.prod(shape[:-1])))


def dense(p, x):
    return jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"]


def residual(p, x):
    h = x @ p["in"]
    for w, v in zip(p["w"], p["v"], strict=True):
        h = h + jnp.tanh(h @ w) @ v
    return h @ p["out"]


def convolution(**options):
    def apply(p, x):
        h = jax.lax.conv_general_dilated(x, p["w"], dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)
        h = jnp.tanh(h + p["b"][None, None, None])
        return h.reshape(h.shape[0], -1) @ p["v"]

    return apply


def channels_first(p, x):
    h = jnp.tanh(jax.lax.conv_general_dilated(jnp.moveaxis(x, 3, 1), p["w"], (1, 1), "SAME"))
    return jnp.mean(h, axis=(2, 3)) @ p["v"]


def attention(p, x):
    q, k, v = (jnp.einsum("ntd,dhe->nthe", x, p[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("nthe,nshe->nhts", q, k), axis=-1)
    return jnp.einsum("nthe,hed->ntd", jnp.einsum("nhts,nshe->nthe", weights, v), p["o"]).mean(1)


def embedding(p, x):
    return jnp.tanh(p["table"][x] @ p["w"]).mean(1)


def tied(p, x):
    """The table reads tokens in and scores them out."""
    h = jnp.tanh(p["table"][x].mean(1) @ p["w"] + p["b"][None])
    return h @ p["table"].T


def tied_layers(p, x):
    for _ in range(3):
        x = jnp.tanh(x @ p["w"] + p["b"][None])
    return x[:, :2]


def layer_norm(p, x):
    h = x @ p["w"]
    h = (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True) + 1e-5)
    return (h * p["scale"][None] + p["shift"][None]) @ p["v"]


def recurrent(p, x):
    def step(h, row):
        h = jnp.tanh(h @ p["u"] + row @ p["w"] + p["b"][None])
        return h, None

    h, _ = jax.lax.scan(step, jnp.zeros((x.shape[0], p["u"].shape[0]), x.dtype), jnp.moveaxis(x, 1, 0))
    return h @ p["v"]


def deep_scan(p, x):
    def block(h, layer):
        return h + jnp.tanh(h @ layer["w"] + layer["b"][None]), None

    return jax.lax.scan(block, x, p)[0][:, :2]


def layers_of_cells(p, x):
    """A loop over layers, each with weights of its own and one matrix shared by all, around a loop over time."""

    def layer(rows, own):
        def step(h, row):
            h = jnp.tanh(h @ own["u"] + row @ p["w"] + own["b"][None] + p["c"][None])
            return h, h

        return jax.lax.scan(step, jnp.zeros_like(rows[0]), rows, reverse=True)[1], None

    rows, _ = jax.lax.scan(layer, jnp.moveaxis(x, 1, 0), {"u": p["u"], "b": p["b"]})
    return rows[0] @ p["v"]


def looped_lookup(p, x):
    """Tables looked up in a loop, one for all steps and one for every step; a shared weight with biases of its own."""

    def step(h, item):
        token, table, bias = item
        return jnp.tanh(h @ p["w"] + bias[None]) + p["table"][token] + table[token], None

    h = jnp.zeros((x.shape[0], 4), p["w"].dtype)
    return jax.lax.scan(step, h, (x.T, p["tables"], p["b"]))[0][:, :2]


def mapped_branch(p, x):
    """Branches that are still branches in the program of one sample, with sites in both."""

    def one(row):
        def first(p):
            return row @ p["w"] + p["b"]

        def second(p):
            return jnp.tanh(row @ (2.0 * p["w"]) + p["b"]) @ p["s"] * p["s"][0, 0]

        return jax.lax.cond(row[0] > 0, first, second, p)

    return jax.lax.map(one, x)


def bias_beside(p, x):
    """A layer's output used with its bias and without it, in a call of its own too, and with two biases."""
    h = x @ p["w"]
    g = h @ p["u"]
    g = jax.jit(lambda g, b: g + b[None])(g, p["b"]) * g + jnp.tanh(g + p["c"][None])
    return (jnp.tanh(h + p["b"][None]) + h) @ p["v"] + g @ p["v"]


def bias_of_other_loops(p, x):
    """A weight for each step of the outer loop; biases for each step, for each inner step, and for all."""

    def layer(h, own):
        def step(h, bias):
            return jnp.tanh(h @ own["w"] + p["b"]) + jnp.tanh(h @ own["u"] + bias[None]) + jnp.tanh(
                h @ p["s"] + own["c"]
            ), None

        return jax.lax.scan(step, h, p["d"])[0], None

    return jax.lax.scan(layer, x, {"w": p["w"], "u": p["u"], "c": p["c"]})[0] @ p["v"]


def out_of_range(p, x):
    """Token numbers past the table look up zeros, negative ones too where nothing wraps them; small ones are clipped."""
    numbers = jax.lax.GatherDimensionNumbers((2,), (0,), (0,))
    raw = jax.lax.gather(p["table"], x[..., None] - 3, numbers, (1, 4), mode="fill", fill_value=0.0)
    clipped = jnp.take(p["long"], (40 * x).astype(jnp.uint8), axis=0, mode="clip")
    h = p["table"].at[2 * x].get(mode="fill", fill_value=0.0) + jnp.tanh(raw) + clipped
    return jnp.tanh(h + p["other"].at[2 * x[:, :1]].get(mode="fill", fill_value=0.0)).mean(1) @ p["w"]


def squared(p, x):
    return jnp.tanh(x @ (p["w"] ** 2)) @ p["v"]


def branch(p, x):
    return jax.vmap(lambda row: jax.lax.cond(row[0] > 0, lambda: row @ p["w"], lambda: jnp.tanh(row @ p["w"]) @ p["s"]))(x)


def unused(p, x):
    return x @ p["w"]


def experts(p, x):
    """A batch of matrices, one for each group of inputs."""
    h = jnp.einsum("ngi,gio->ngo", x.reshape(x.shape[0], 2, -1), p["w"]) + p["b"][None]
    return jnp.tanh(h).sum(1)


def disguised(p, x):
    """NTK scaling, transposition, reshaping, reversal, a slice and a quotient on the way to the data."""
    w = jnp.flip((0.5 * p["w"]).T.reshape(4, 5).T, 0)
    h = jnp.tanh(x @ (-w / 3.0) + 0.1 * p["b"][1:5].reshape(1, 4))
    return h @ p["v"][:, :2]


def both(p, x):
    """A product of two parameters meets the data."""
    return x @ (p["w"] @ p["v"])


def rule(p, x):
    """A parameter inside a function with a derivative rule of its own, which is not the derivative of its program."""

    @jax.custom_jvp
    def rounded(w):
        return jnp.round(4 * w) / 4

    rounded.defjvp(lambda primals, tangents: (rounded(*primals), tangents[0]))
    return x @ rounded(p["w"])


def checkpointed(p, x):
    return jax.checkpoint(dense)(p, x)


IMAGE, TOKENS, VECTOR, SERIES = (5, 6, 6, 2), None, (6, 5), (5, 4, 3)
MODELS = {
    "dense": (dense, {"w": normal(5, 7), "b": normal(7), "v": normal(7, 3)}, VECTOR, {"outer": 2}),
    "residual": (
        residual,
        {"in": normal(5, 4), "w": [normal(4, 6)] * 2, "v": [normal(6, 4)] * 2, "out": normal(4, 2)},
        VECTOR,
        {"sites": 6},
    ),
    "conv": (
        convolution(window_strides=(1, 1), padding="SAME"),
        {"w": normal(3, 3, 2, 4), "b": normal(4), "v": normal(144, 2)},
        IMAGE,
        {"sites": 2},
    ),
    "conv strided": (
        convolution(window_strides=(2, 3), padding=((1, 0), (2, 1))),
        {"w": normal(3, 2, 2, 4), "b": normal(4), "v": normal(36, 2)},
        IMAGE,
        {"sites": 2},
    ),
    "conv dilated": (
        convolution(window_strides=(1, 1), padding=((0, 1), (0, 0)), rhs_dilation=(2, 1), lhs_dilation=(1, 2)),
        {"w": normal(3, 3, 2, 4), "b": normal(4), "v": normal(3 * 9 * 4, 2)},
        IMAGE,
        {"sites": 2},
    ),
    "conv grouped": (
        convolution(window_strides=(1, 1), padding="SAME", feature_group_count=2),
        {"w": normal(3, 3, 1, 6), "b": normal(6), "v": normal(216, 2)},
        IMAGE,
        {"sites": 2},
    ),
    "channels first": (channels_first, {"w": normal(4, 2, 3, 3), "v": normal(4, 2)}, IMAGE, {"sites": 2}),
    "attention": (
        attention,
        {"q": normal(3, 2, 4), "k": normal(3, 2, 4), "v": normal(3, 2, 4), "o": normal(2, 4, 3)},
        SERIES,
        {"sites": 4},
    ),
    "embedding": (embedding, {"table": normal(9, 4), "w": normal(4, 3)}, TOKENS, {"sites": 2}),
    "tied": (tied, {"table": normal(9, 4), "w": normal(4, 4), "b": normal(4)}, TOKENS, {"sites": 3}),
    "tied layers": (tied_layers, {"w": normal(5, 5), "b": normal(5)}, VECTOR, {"sites": 3}),
    "layer norm": (
        layer_norm,
        {"w": normal(5, 6), "scale": 1 + normal(6), "shift": normal(6), "v": normal(6, 3)},
        VECTOR,
        {"outer": 2},
    ),
    "recurrent": (
        recurrent,
        {"u": normal(4, 4), "w": normal(3, 4), "b": normal(4), "v": normal(4, 2)},
        SERIES,
        {"sites": 3},
    ),
    "deep scan": (deep_scan, {"w": normal(6, 5, 5), "b": normal(6, 5)}, VECTOR, {"outer": 1}),
    "layers of cells": (
        layers_of_cells,
        {"u": normal(2, 3, 3), "b": normal(2, 3), "w": normal(3, 3), "c": normal(3), "v": normal(3, 2)},
        SERIES,
        {"sites": 3},
    ),
    "looped lookup": (
        looped_lookup,
        {"w": normal(4, 4), "b": normal(4, 4), "table": normal(9, 4), "tables": normal(4, 9, 4)},
        TOKENS,
        {"sites": 3},
    ),
    "mapped branch": (mapped_branch, {"w": normal(5, 3), "b": normal(3), "s": normal(3, 3)}, VECTOR, {"sites": 3}),
    "bias beside": (
        bias_beside,
        {"w": normal(5, 4), "u": normal(4, 4), "b": normal(4), "c": normal(4), "v": normal(4, 2)},
        VECTOR,
        {"sites": 4},
    ),
    "bias of other loops": (
        bias_of_other_loops,
        {
            **{name: normal(2, 4, 4) for name in "wu"},
            **{"c": normal(2, 1, 4), "b": normal(1, 4), "d": normal(3, 4), "s": normal(4, 4), "v": normal(4, 2)},
        },
        (5, 4),
        {"sites": 4},
    ),
    "out of range": (
        out_of_range,
        {"table": normal(9, 4), "long": normal(300, 4), "other": normal(9, 4), "w": normal(4, 3)},
        TOKENS,
        {"sites": 5},
    ),
    "squared": (squared, {"w": normal(5, 4), "v": normal(4, 2)}, VECTOR, {"sites": 1}),
    "branch": (branch, {"w": normal(5, 3), "s": normal(3, 3)}, VECTOR, {}),
    "unused": (unused, {"w": normal(5, 3), "z": normal(4)}, VECTOR, {"outer": 1}),
    "experts": (experts, {"w": normal(2, 3, 4), "b": normal(2, 4)}, (5, 6), {"sites": 1}),
    "disguised": (disguised, {"w": normal(5, 4), "b": normal(6), "v": normal(4, 3)}, VECTOR, {"sites": 2}),
    "both": (both, {"w": normal(5, 4), "v": normal(4, 3)}, VECTOR, {}),
    "rule": (rule, {"w": normal(5, 3)}, VECTOR, {}),
    "checkpointed": (checkpointed, {"w": normal(5, 7), "b": normal(7), "v": normal(7, 3)}, VECTOR, {"outer": 2}),
}


def problem(name, dtype):
    apply, params, shape, expected = MODELS[name]
    rng = np.random.default_rng(3)
    x = rng.integers(0, 9, (6, 4)).astype(np.int32) if shape is None else rng.normal(size=shape).astype(dtype)
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
    return apply, params, x, expected


def explicit(apply, params, x):
    """K of a Gaussian likelihood, float64: J Jᵀ / N."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    with jax.enable_x64(True):
        jacobian = jax.jit(jax.jacrev(lambda p, row: apply(p, row[None])[0]))
        rows = []
        for row in x:
            leaves = jax.tree.leaves(jacobian(params, row if row.dtype.kind == "i" else row.astype(np.float64)))
            rows.append(np.concatenate([np.asarray(a).reshape(a.shape[0], -1) for a in leaves], axis=1))
    J = np.concatenate(rows)
    return J @ J.T / len(x), J


SINGLE = ("dense", "conv grouped", "attention", "embedding", "layer norm", "layers of cells")


@pytest.mark.parametrize("name, dtype", [*((n, "float64") for n in MODELS), *((n, "float32") for n in SINGLE)])
def test_gram_equals_the_explicit_one(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        check_gram(name, dtype)


def check_gram(name, dtype):
    apply, params, x, expected = problem(name, dtype)
    F = fj.fisher(fj.Function(apply, params), x, fj.Gaussian())
    truth, _ = explicit(apply, params, x)
    assert oracle.relative(gram(F.factor, tile=None if dtype == "float32" else 4)[0], truth) <= 100 * oracle.eps(dtype)
    plan = layout(F.factor, (0,) * len(F.factor.jacobian.network.params))
    if "outer" in expected:
        assert sum(k.kind == "outer" for k in plan.kernels) == expected["outer"], plan.kernels
    if "sites" in expected:
        assert len(plan.found.sites) == expected["sites"], plan.kernels
    if dtype == "float64":
        # Sum over parameters is the whole.
        groups = [[i] for i in range(len(F.factor.jacobian.network.params))]
        assert oracle.relative(sum(gram(F.factor, groups=groups)), truth) <= 100 * oracle.eps(dtype)


def test_tiles_held_in_blocks_and_made_in_batches(x64, monkeypatch):
    """Memory for the features of two tiles at a time, made one sample after the other: the same K."""
    apply, params, x, _ = problem("conv", "float64")
    F = fj.fisher(fj.Function(apply, params), x, fj.Gaussian())
    group = (0,) * 3
    each = Tiles.of(F.factor, group, layout(F.factor, group)).each
    monkeypatch.setattr("fisher_jax.gram.BATCH_BYTES", {"cpu": each})
    monkeypatch.setattr("fisher_jax.linalg.free_memory", lambda: 4 * 2 * each)
    tiles = Tiles.of(F.factor, group, layout(F.factor, group), 1)
    assert (tiles.size, tiles.batch, tiles.held, tiles.count, tiles.bytes) == (1, 1, 2, 5, 3 * each)
    steps = []
    K = gram(F.factor, tile=1, progress=lambda *step: steps.append(step))[0]
    assert oracle.relative(K, explicit(apply, params, x)[0]) <= 100 * oracle.eps("float64")
    assert steps == [(i + 1, 15) for i in range(15)]
    monkeypatch.setattr("fisher_jax.linalg.free_memory", lambda: each)
    with pytest.raises(fj.ArgumentError, match=r"gram: .* of one sample take .* GiB; choose layers with where="):
        gram(F.factor)


@pytest.mark.parametrize("tied", [False, True])
def test_half_precision_weights_have_full_precision_gradients(tied):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(normal(4, 4), jnp.bfloat16), "b": jnp.asarray(normal(4), jnp.bfloat16)}
    x = rng.normal(size=(5, 4)).astype(np.float32)

    def apply(p, x):
        w, b = p["w"].astype(x.dtype), p["b"].astype(x.dtype)
        h = jnp.tanh(x @ w + b[None])
        return (jnp.tanh(h @ w + b[None]) if tied else h)[:, :2]

    F = fj.fisher(fj.Function(apply, params), x, fj.Gaussian())
    truth, J = explicit(apply, params, x)
    assert oracle.relative(F.gram(), truth) <= 100 * oracle.eps("float32")
    assert oracle.relative(F.diagonal(), (J**2).sum(0) / len(x)) <= 100 * oracle.eps("float32")


@pytest.mark.parametrize("kind", ["outer", "rows"])
def test_data_of_lower_precision_than_the_weights(kind, x64, monkeypatch):
    """A layer may multiply both as they are; what its inputs give must not be rounded to the precision of the data."""
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    params = {"w": jnp.asarray(normal(4, 3)), "v": jnp.asarray(normal(3, 2))}

    def apply(p, x):
        return jnp.tanh(jax.lax.dot(x, p["w"], preferred_element_type=jnp.float64)) @ p["v"]

    monkeypatch.setattr("fisher_jax.kernels.costs", lambda site, N, R: (1.0, 2.0) if kind == "outer" else (2.0, 1.0))
    F = fj.fisher(fj.Function(apply, params), x, fj.Gaussian())
    truth, _ = explicit(apply, params, x.astype(np.float64))
    assert oracle.relative(F.gram(), truth) <= 100 * oracle.eps("float64")


LOOPS = ["bias of other loops", "recurrent", "layers of cells", "looped lookup"]


@pytest.mark.parametrize("kind", ["outer", "rows"])
@pytest.mark.parametrize(
    "name", [*LOOPS, "residual", "conv grouped", "channels first", "attention", "embedding", "experts", "out of range"]
)
def test_either_kernel_gives_the_same(name, kind, x64, monkeypatch):
    monkeypatch.setattr("fisher_jax.kernels.costs", lambda site, N, R: (1.0, 2.0) if kind == "outer" else (2.0, 1.0))
    jax.clear_caches()
    apply, params, x, _ = problem(name, "float64")
    F = fj.fisher(fj.Function(apply, params), x, fj.Gaussian())
    plan = layout(F.factor, (0,) * len(F.factor.jacobian.network.params))
    assert any(k.kind == kind for k in plan.kernels)
    assert oracle.relative(gram(F.factor, tile=5)[0], explicit(apply, params, x)[0]) <= 100 * oracle.eps("float64")
    jax.clear_caches()
