"""Dropout, stochastic depth and batch normalization: which matrix it is, against enumeration and explicit functions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx

import fisher_jax as fj

X = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
KEY = jax.random.key(7)


def build(name="resmlp", outputs=2, **options):
    return fj.models.build(name, inputs=6, outputs=outputs, key=jax.random.key(3), **options)


def explicit(apply, params, x=X):
    """K of the Gaussian likelihood from reverse mode, sample by sample or jointly."""
    outputs = apply(params, x)
    J = jax.jacrev(apply)(params, x)
    A = np.concatenate([np.asarray(a).reshape(outputs.size, -1) for a in jax.tree.leaves(J)], axis=1)
    return A @ A.T / len(x)


def weights(model):
    return [np.asarray(a) for a in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))]


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["inverted", "raw"])
def test_a_draw_of_dropout_is_one_of_all_masks(form):
    model = build("mlp", depth=2, width=4, dropout=0.3, dropout_form=form)
    params = [jnp.asarray(w) for w in weights(model)]

    def kernel(mask):
        factor = 1 if form == "raw" else 1 / 0.7

        def apply(p, x):
            return (factor * jnp.asarray(mask)[None] * jax.nn.relu(x @ p[0])) @ p[1]

        return explicit(apply, params)

    K = fj.fisher(model, X, fj.Gaussian(), masks=fj.Fixed(KEY)).gram()
    masks = [m for m in itertools.product([0.0, 1.0], repeat=4) if any(m)]
    hits = [m for m in masks if oracle.relative(K, kernel(m)) < 1e-5]
    assert len(hits) == 1
    others = [fj.fisher(model, X, fj.Gaussian(), masks=fj.Fixed(jax.random.key(s))).gram() for s in range(8)]
    assert len({float(np.trace(k)) for k in others}) > 2, "other keys are other masks"
    mean = fj.fisher(model, X, fj.Gaussian(), masks="mean").gram()
    assert oracle.relative(mean, kernel([0.7] * 4)) < 1e-5


@pytest.mark.parametrize("scanned", [False, True])
def test_a_draw_of_stochastic_depth_is_one_of_all_subnetworks(scanned):
    model = build(depth=3, survival=0.6, survival_schedule="linear", scanned=scanned)
    first, second, readout = (w for w in weights(build(depth=3, scanned=True)))
    p = [jnp.asarray(a) for a in (first, second, readout)]

    def kernel(kept):
        def apply(p, x):
            h = x
            for block, b in enumerate(kept):
                h = h + b * jax.nn.relu(h @ p[0][block]) @ p[1][block]
            return h @ p[2]

        return explicit(apply, p)

    K = fj.fisher(model, X, fj.Gaussian(), masks=fj.Fixed(KEY)).gram()
    assert len([b for b in itertools.product([0.0, 1.0], repeat=3) if oracle.relative(K, kernel(b)) < 1e-5]) == 1
    survival = [1 - block / 3 * 0.4 for block in (1, 2, 3)]
    assert oracle.relative(fj.fisher(model, X, fj.Gaussian(), masks="mean").gram(), kernel(survival)) < 1e-5
    assert oracle.relative(fj.fisher(model, X, fj.Gaussian()).gram(), kernel(survival)) < 1e-5
    kept = [np.trace(fj.fisher(model, X, fj.Gaussian(), masks=fj.Fixed(jax.random.key(s))).gram()) for s in range(10)]
    assert len({round(float(t), 3) for t in kept}) > 2


def test_averages_over_masks():
    model = build(depth=2, survival=0.5)
    masks = fj.Average(4, KEY, shared=True)
    F = fj.fisher(model, X, fj.Gaussian(), masks=masks)
    singles = [fj.fisher(model, X, fj.Gaussian(), masks=fj.Fixed(k)) for k in jax.random.split(KEY, 4)]
    assert oracle.relative(F.dense(), np.mean([one.dense() for one in singles], axis=0)) < 1e-5
    assert F.factor.shape[0] == 4 * 5 * 2
    # Masks of their own for every sample: every sample's matrix is that of one of the four subnetworks, or two.
    own = fj.fisher(model, X, fj.Gaussian(), masks=fj.Average(2, KEY))
    assert float(own.trace()) == pytest.approx(float(np.trace(own.gram())), rel=1e-5)
    assert own.gradient_norms().shape == (10, 2)
    repeats = fj.fisher(model, X, fj.Categorical(), masks=fj.Average(3, KEY), kind=fj.Empirical(np.arange(5) % 2))
    assert repeats.gram().shape == (15, 15)
    weighted = fj.fisher(model, X, fj.Gaussian(), masks=masks, weights=[1, 0, 0, 0, 0])
    first = [fj.fisher(model, X[:1], fj.Gaussian(), masks=fj.Fixed(k)) for k in jax.random.split(KEY, 4)]
    assert oracle.relative(weighted.dense(), np.mean([one.dense() for one in first], axis=0)) < 1e-5


def test_four_summaries():
    model = build(depth=3, survival=0.5)
    found = fj.over_masks(model, X, fj.Gaussian(), draws=6, key=KEY)
    singles = [fj.fisher(model, X, fj.Gaussian(), masks=fj.Fixed(k)) for k in jax.random.split(KEY, 6)]
    tops = [np.linalg.eigvalsh(one.gram())[-1] for one in singles]
    traces = [float(one.trace()) for one in singles]
    assert found.average_of_largest == pytest.approx(np.mean(tops), rel=1e-5)
    assert found.average_of_largest_error == pytest.approx(np.std(tops, ddof=1) / 6**0.5, rel=1e-4)
    assert found.trace == pytest.approx(np.mean(traces), rel=1e-5)
    assert found.trace_error == pytest.approx(np.std(traces, ddof=1) / 6**0.5, rel=1e-4)
    average = np.mean([one.dense() for one in singles], axis=0)
    assert found.largest_of_average == pytest.approx(np.linalg.eigvalsh(average)[-1], rel=1e-4)
    mean = fj.fisher(model, X, fj.Gaussian())
    assert found.largest_of_mean_network == pytest.approx(float(fj.spectrum(mean).lambda_max), rel=1e-5)
    assert found.largest_of_average <= found.average_of_largest * (1 + 1e-6)
    assert "average over masks of λ_max" in repr(found)


def test_dropout_of_flax_itself():
    class Net(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))])
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=2))

        def __call__(self, x):
            return self.layers[1](self.dropout(jnp.tanh(self.layers[0](x))))

    model = Net()
    with pytest.raises(fj.ArgumentError, match=r"Dropout 'dropout' active with rate=0.5; .*masks="):
        fj.fisher(model, X, fj.Gaussian())
    one, same, other = (fj.fisher(model, X, fj.Gaussian(), masks=fj.Fixed(k)).gram() for k in (KEY, KEY, jax.random.key(1)))
    assert np.array_equal(one, same) and not np.allclose(one, other)
    assert not model.dropout.deterministic, "the model is left as it was"


# --- batch normalization ----------------------------------------------------------------------------------------------


def test_batch_statistics_frozen_and_differentiated():
    model = build(depth=2, norm="batch")
    p = [jnp.asarray(a) for a in weights(build(depth=2, scanned=True))]

    def network(mode):
        def apply(p, x):
            h = x
            for block in range(2):
                u = h @ p[0][block]
                mean, var = u.mean(0, keepdims=True), u.var(0, keepdims=True)
                if mode == "frozen":
                    mean, var = jax.lax.stop_gradient((mean, var))
                if mode == "eval":
                    mean, var = jnp.zeros_like(mean), jnp.ones_like(var)
                h = h + jax.nn.relu((u - mean) / jnp.sqrt(var + 1e-6)) @ p[1][block]
            return h @ p[2]

        return apply

    kernels = {}
    for mode in ("eval", "frozen", "train"):
        F = fj.fisher(model, X, fj.Gaussian(), bn=mode)
        kernels[mode] = np.asarray(F.gram())
        assert oracle.relative(kernels[mode], explicit(network(mode), p)) < 1e-5, mode
        assert float(F.trace()) == pytest.approx(np.trace(kernels[mode]), rel=1e-5)
        top = fj.eigsh(F, 2, key=KEY)
        np.testing.assert_allclose(top.values, np.linalg.eigvalsh(kernels[mode])[::-1][:2], rtol=1e-5)
    assert oracle.relative(kernels["frozen"], kernels["train"]) > 0.01
    stacked = fj.fisher(build(depth=2, norm="batch", scanned=True), X, fj.Gaussian(), bn="frozen")
    assert oracle.relative(stacked.gram(), kernels["frozen"]) < 1e-5
    assert float(np.abs(model.blocks[0].norm.mean[...]).max()) == 0, "the model is left as it was"


def test_mean_subtraction_projects_the_dual_matrix():
    plain, centred = build(depth=2), build(depth=2, output_norm="mean")
    K = fj.fisher(plain, X, fj.Gaussian()).gram()
    H = np.kron(np.eye(5) - 1 / 5, np.eye(2))
    assert oracle.relative(fj.fisher(centred, X, fj.Gaussian(), bn="train").gram(), H @ K @ H) < 1e-5
    assert oracle.relative(fj.fisher(centred, X, fj.Gaussian(), bn="frozen").gram(), K) < 1e-5


def test_weights_and_softmax_of_a_joint_map():
    model, w = build(depth=1, norm="batch", outputs=3), np.arange(1.0, 6)
    F = fj.fisher(model, X, fj.Categorical(), bn="train", weights=w)
    params = [jnp.asarray(a, jnp.float32) for a in weights(build(depth=1, scanned=True, outputs=3))]

    def apply(p, x):
        u = x @ p[0][0]
        h = x + jax.nn.relu((u - u.mean(0)[None]) / jnp.sqrt(u.var(0)[None] + 1e-6)) @ p[1][0]
        return h @ p[2]

    f = np.asarray(apply(params, X), np.float64)
    q = np.exp(f) / np.exp(f).sum(1, keepdims=True)
    J = jax.jacrev(apply)(params, X)
    J = np.concatenate([np.asarray(a, np.float64).reshape(5, 3, -1) for a in J], axis=2)
    middle = np.stack([np.diag(p) - np.outer(p, p) for p in q]) * (w / w.sum())[:, None, None]
    assert float(F.trace()) == pytest.approx(np.einsum("ncp,ncd,ndp->", J, middle, J), rel=1e-4)


@pytest.mark.parametrize(
    "options, chosen, message",
    [
        ({}, {"masks": "some"}, "masks='some' is unknown"),
        ({}, {"masks": fj.Fixed(KEY)}, "neither dropout nor stochastic depth"),
        ({}, {"bn": "frozen"}, "bn='frozen', but the model has no batch normalization"),
        ({"norm": "batch"}, {"bn": "test"}, "bn='test' is unknown"),
        ({"norm": "batch", "dropout": 0.1}, {"bn": "frozen", "masks": fj.Fixed(KEY)}, "together with random masks"),
        ({"norm": "batch"}, {"bn": "train", "kind": fj.Empirical(np.zeros((5, 2)))}, "no per-sample gradients"),
        ({"norm": "batch"}, {"bn": "train", "weights": np.ones(4)}, r"weights of shape \(4,\)"),
    ],
)
def test_refusals(options, chosen, message):
    model = nnx.Linear(6, 2, rngs=nnx.Rngs(0)) if "neither" in message else build(**options)
    with pytest.raises(fj.ArgumentError, match=message):
        fj.fisher(model, X, fj.Gaussian(), **chosen)


def test_training_mode_needs_a_choice():
    model = build(norm="batch")
    model.train()
    with pytest.raises(fj.ArgumentError, match=r"BatchNorm 'blocks/0/norm' in training mode.*bn="):
        fj.fisher(model, X, fj.Gaussian())
    model = build(dropout=0.5)
    model.train()
    with pytest.raises(fj.ArgumentError, match=r"Dropout 'blocks/0/dropout' active; .*masks="):
        fj.fisher(model, X, fj.Gaussian())
    # One choice does not make the other.
    both = build(dropout=0.5, norm="batch")
    both.train()
    with pytest.raises(fj.ArgumentError, match=r"Dropout 'blocks/0/dropout' active"):
        fj.fisher(both, X, fj.Gaussian(), bn="train")
    with pytest.raises(fj.ArgumentError, match=r"Dropout 'blocks/0/dropout' active"):
        fj.fisher(both, X, fj.Gaussian(), bn="frozen")
    with pytest.raises(fj.ArgumentError, match=r"BatchNorm 'blocks/0/norm' in training mode"):
        fj.fisher(both, X, fj.Gaussian(), masks=fj.Fixed(KEY))
    with pytest.raises(fj.ArgumentError, match=r"model rejects x of shape \[\(5, 4\)\]"):
        fj.fisher(build(norm="batch"), X[:, :4], fj.Gaussian(), bn="frozen")
    listed = fj.fisher(build(norm="batch"), X.tolist(), fj.Gaussian(), bn="frozen").gram()
    assert oracle.relative(listed, fj.fisher(build(norm="batch"), X, fj.Gaussian(), bn="frozen").gram()) < 1e-6
    chosen = fj.fisher(both, X, fj.Gaussian(), masks="mean", bn="train").gram()
    both.eval()
    assert oracle.relative(chosen, fj.fisher(both, X, fj.Gaussian(), bn="train").gram()) == 0
    with pytest.raises(fj.ArgumentError, match=r"with masks or bn; pass an nnx\.Module"):
        fj.fisher(fj.Function(lambda p, x: x @ p, np.ones((6, 2))), X, fj.Gaussian(), masks="mean")
    with pytest.raises(fj.ArgumentError, match="Average: key is missing"):
        fj.Average(3)
    with pytest.raises(fj.ArgumentError, match=r"kind=\.\.\. is not an option"):
        fj.over_masks(model, X, fj.Gaussian(), key=KEY, kind=fj.Exact())
