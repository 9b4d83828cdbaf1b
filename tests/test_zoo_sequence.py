"""Transformers, recurrent networks and tables: sizes, causality, the dual matrix of tokens."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx

import fisher_jax as fj
from fisher_jax.models import gpt, regressor, rnn, vit, vrnn
from fisher_jax.models.attention import Attention, LayerNorm
from fisher_jax.models.gpt import GPT
from fisher_jax.models.regressor import Regressor
from fisher_jax.models.rnn import RNN
from fisher_jax.models.vit import ViT
from fisher_jax.models.vrnn import VRNN

RNG = np.random.default_rng(0)
N, T, C = 3, 4, 2
SERIES = RNG.normal(size=(N, T, 3))
TOKENS = RNG.integers(0, 5, (N, T)).astype(np.int32)
IMAGES = RNG.normal(size=(N, 4, 8, 3))
MIXED = {"numeric": RNG.normal(size=(N, 3)), "categorical": RNG.integers(0, 4, (N, 2)).astype(np.int32)}
LATENT = {"inputs": SERIES, "targets": RNG.normal(size=(N, T, C)), "noise": RNG.normal(size=(N, T, 2))}
ONE = {"weight_variance": 1.0, "heads": 2, "width": 8, "depth": 1}

# name -> (class, inputs, outputs, options, data)
TINY = {
    "vit": (ViT, (4, 8, 3), C, ONE | {"patch": 4}, IMAGES),
    "gpt": (GPT, T + 1, 5, ONE, TOKENS),
    "gpt untied": (GPT, T, 5, ONE | {"depth": 2, "tied": False, "norm": "post", "skip": False}, TOKENS),
    "regressor with categories": (
        Regressor,
        3,
        C,
        {"width": 8, "cardinalities": (4, 6), "embedding": 3, "norm": "layer", "activation": "tanh"},
        MIXED,
    ),
    "gru": (RNN, 3, C, {"width": 8, "depth": 2}, SERIES),
    "vrnn": (VRNN, 3, C, {"width": 8, "latent": 2}, LATENT),
    "vrnn prior": (VRNN, 3, C, {"width": 8, "latent": 2, "latents": "prior"}, LATENT),
}


def double(a):
    return a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a


def tiny(name, **more):
    """A small network in evaluation mode, float64, all parameters (biases too) away from their start; and data."""
    make, inputs, outputs, options, x = TINY[name]
    model = make(inputs=inputs, outputs=outputs, rngs=nnx.Rngs(params=0, dropout=1), **options, **more)
    model.eval()
    state = jax.tree.map(double, nnx.state(model, nnx.Param))
    rng = np.random.default_rng(1)
    nnx.update(model, jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape), state))
    return model, x


def count(make, **options):
    model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0), **options))
    return sum(math.prod(a.shape) for a in jax.tree.leaves(nnx.state(model, nnx.Param)))


def count_deep(make, **options):
    """The same for equal blocks, from depths 1 and 2."""
    one, two = (count(make, **options | {"depth": depth}) for depth in (1, 2))
    return one + (options["depth"] - 1) * (two - one)


@pytest.mark.parametrize(
    "make, presets, counts",
    [
        # DeiT (Ti, S) and torchvision (B, L, H).
        (
            ViT,
            vit.PRESETS,
            {
                "vit-ti16": 5_717_416,
                "vit-s16": 22_050_664,
                "vit-b16": 86_567_656,
                "vit-l16": 304_326_632,
                "vit-h14": 632_045_800,
            },
        ),
        # Hugging Face transformers.
        (
            GPT,
            gpt.PRESETS,
            {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200},
        ),
    ],
)
def test_published_parameter_counts(make, presets, counts):
    assert {name: count_deep(make, **presets[name]) for name in counts} == counts


def test_parameter_counts_of_cells_and_tables():
    """Those of Keras: GRU(reset_after=False) and LSTM."""
    for cell, gates in (("gru", 3), ("lstm", 4)):
        readout = 16 * 2 + 2
        assert count(RNN, inputs=5, outputs=2, width=16, cell=cell) == gates * 16 * (5 + 16 + 1) + readout
    tables = 7 * 3 + 4 * 3
    layers = (2 + 6) * 16 + 16 + 16 * 16 + 16 + 16 + 1
    assert count(Regressor, inputs=2, outputs=1, width=16, cardinalities=(7, 4), embedding=3) == tables + layers


def test_presets_are_options():
    for make, presets in ((GPT, gpt.PRESETS), (Regressor, regressor.PRESETS), (RNN, rnn.PRESETS), (VRNN, vrnn.PRESETS)):
        for options in presets.values():
            assert count(make, **{"inputs": 3, "outputs": 2} | options | {"depth": 2}) > 0


def jacobian(model, x):
    """J `(N, outputs, P)`, one sample at a time, float64."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def one(params, row):
        row = jax.tree.map(lambda a: a[None], row)
        return nnx.merge(graphdef, params, rest)(row)[0]

    differentiate, blocks = jax.jit(jax.jacrev(one)), []
    for row in [jax.tree.map(lambda a, n=n: a[n], x) for n in range(N)]:
        found = jax.tree.leaves(differentiate(params, row))
        blocks.append(np.concatenate([np.asarray(a).reshape(one(params, row).size, -1) for a in found], axis=1))
    return np.stack(blocks)


@pytest.mark.parametrize("name", ["gpt", "gpt untied"])
def test_gram_of_tokens_equals_the_explicit_one(name, x64):
    model, x = tiny(name)
    F = fj.fisher(model, x, fj.Categorical())
    A = jacobian(model, x).reshape(-1, F.size) / np.sqrt(N)
    p = oracle.softmax(np.asarray(model(x))).reshape(-1, 5)
    B = (np.eye(5) - p[:, :, None]) * np.sqrt(p)[:, None]  # of each token: B Bᵀ = diag(p) − p pᵀ
    A = np.concatenate([b.T @ rows for b, rows in zip(B, A.reshape(-1, 5, F.size), strict=True)])
    K = F.gram()
    assert K.shape == (len(A), len(A))
    assert oracle.relative(K, A @ A.T) <= 100 * oracle.eps("float64")


@pytest.mark.parametrize("name", ["gpt", "gpt untied", "gru"])
def test_later_steps_leave_earlier_outputs(name, x64):
    model, x = tiny(name)
    for step in range(1, T):
        changed = x.copy()
        changed[:, step:] = (changed[:, step:] + 1) % 5
        before, after = np.asarray(model(x)), np.asarray(model(changed))
        np.testing.assert_array_equal(before[:, :step], after[:, :step])
        assert np.abs(before[:, step:] - after[:, step:]).min() > 0


def test_a_masked_token_counts_nothing(x64):
    model, x = tiny("gpt")
    weights = np.ones((N, T))
    weights[:, -1] = 0
    K = np.asarray(fj.fisher(model, x, fj.Gaussian(), weights=weights).gram())
    rows = np.repeat(weights.reshape(-1) > 0, len(K) // (N * T))
    assert np.abs(K[~rows]).max() == 0
    shorter = fj.fisher(model, x[:, :-1], fj.Gaussian()).gram()
    assert oracle.relative(K[rows][:, rows], shorter) <= 100 * oracle.eps("float64")


@pytest.mark.parametrize("causal", [False, True])
def test_attention_and_norm_are_those_of_jax_and_flax(causal):
    layer = Attention(8, 2, causal, weight_variance=1.0, rngs=nnx.Rngs(0))
    h = jnp.asarray(RNG.normal(size=(N, T, 8)), jnp.float32)
    q, k, v = jnp.split(h @ layer.qkv.kernel[...], 3, axis=2)
    heads = [a.reshape(N, T, 2, 4) for a in (q, k, v)]
    expected = jax.nn.dot_product_attention(*heads, is_causal=causal).reshape(h.shape) @ layer.out.kernel[...]
    np.testing.assert_allclose(layer(h), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(LayerNorm(8)(h), nnx.LayerNorm(8, epsilon=1e-5, rngs=nnx.Rngs(0))(h), rtol=1e-5, atol=1e-6)


def test_attention_of_patches_sees_all_of_the_image(x64):
    model, x = tiny("vit")
    changed = x.copy()
    changed[:, :, 4:] += 1
    assert np.abs(np.asarray(model(x)) - np.asarray(model(changed))).min() > 0
    pixels = np.arange(4 * 4 * 3.0).reshape(1, 4, 4, 3)
    np.testing.assert_array_equal(vit.patches(pixels, 2)[0, 1], pixels[0, :2, 2:].reshape(-1))


def test_training_mode_is_random_and_evaluation_is_not(x64):
    model, x = tiny("gpt", dropout=0.3, survival=0.5)
    assert (model(x) == model(x)).all()
    model.train()
    assert not (model(x) == model(x)).all()
    with pytest.raises(fj.ArgumentError, match="fisher"):
        fj.fisher(model, x, fj.Categorical())


def test_latents_are_told_apart(x64):
    """The noise and the targets of a step enter as they should; the divergence is zero where encoder and prior agree."""
    for name in ("vrnn", "vrnn prior"):
        model, x = tiny(name)
        now = np.asarray(model(x))
        for part, at_once in (("noise", True), ("targets", name == "vrnn")):
            other = x | {part: np.concatenate([x[part][:, :1] + 1, x[part][:, 1:]], axis=1)}
            change = np.abs(np.asarray(model(other)) - now)
            assert (change[:, 0].max() > 0) == at_once and change[:, 1:].max() > 0
        assert (np.asarray(model.divergence(x)) > 0).all()
    for layer in model.encoder.layers[-1], model.prior.layers[-1]:
        layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
        layer.bias[...] = jnp.full_like(layer.bias[...], 0.3)
    np.testing.assert_allclose(model.divergence(x), 0, atol=1e-14)


@pytest.mark.parametrize(
    "make, options, message",
    [
        (ViT, {"inputs": (4, 6, 3), "patch": 4}, "vit: an image of 4 x 6 is not divisible by patch=4"),
        (ViT, {"inputs": 12}, "vit: inputs=12 is no image"),
        (GPT, {"inputs": 4, "width": 9}, "attention: width=9 is not divisible by heads=2"),
        (GPT, {"inputs": 4, "norm": "both"}, "transformer: norm='both' is unknown; choose among pre, post"),
        (GPT, {"inputs": 4, "skip": False, "survival": 0.5}, "transformer: survival below 1 with skip=False"),
        (GPT, {"inputs": 4, "activation": "swish"}, "transformer: activation='swish' is unknown"),
        (Regressor, {"inputs": 4, "norm": "batch"}, "regressor: norm='batch' is unknown"),
        (RNN, {"inputs": 4, "cell": "elman"}, "rnn: cell='elman' is unknown"),
        (RNN, {"inputs": 4, "readouts": "first"}, "rnn: readouts='first' is unknown"),
        (VRNN, {"inputs": 4, "latents": "both"}, "vrnn: latents='both' is unknown"),
    ],
)
def test_bad_options(make, options, message):
    with pytest.raises(fj.ArgumentError, match=message):
        make(outputs=2, rngs=nnx.Rngs(0), **{"depth": 1} | options)


def test_bad_data(x64):
    with pytest.raises(fj.ArgumentError, match="gpt: a sequence of 6 tokens exceeds the context 5"):
        tiny("gpt")[0](np.zeros((N, 6), np.int32))
    with pytest.raises(fj.ArgumentError, match="regressor: data have 3 numeric and 0 categorical columns"):
        tiny("regressor with categories")[0](MIXED["numeric"])
    with pytest.raises(fj.ArgumentError, match=r"vrnn: noise has shape \(3, 4, 1\)"):
        tiny("vrnn")[0](LATENT | {"noise": LATENT["noise"][..., :1]})
