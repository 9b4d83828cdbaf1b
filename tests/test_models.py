"""Models against the theory of wide networks at initialization, and weights to and from disk."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fisher_jax as fj


def ensemble(name, seeds, samples=16, inputs=256, fisher=None, **options):
    """(trace, λ_max) / inputs of the Gaussian Fisher of many networks with fresh data and weights, in one program."""

    @jax.jit
    @jax.vmap
    def one(key):
        k_data, k_model, k_masks = jax.random.split(key, 3)
        x = jax.random.normal(k_data, (samples, inputs))
        model = fj.models.build(name, inputs=inputs, outputs=1, key=k_model, **options)
        chosen = {k: v(k_masks) if callable(v) else v for k, v in (fisher or {}).items()}
        K = fj.fisher(model, x, fj.Gaussian(), **chosen).gram()
        return jnp.trace(K), jnp.linalg.eigvalsh(K)[-1]

    return np.array(one(jax.random.split(jax.random.key(0), seeds))) / inputs


# Predictions of the infinite-width recursions (trace, λ_max) / D at D = 256 and N = 16 samples x ~ N(0, I), one output, no
# biases. Tolerances: four standard errors at these sizes and seeds, and the O(1/D) bias of λ_max.
MEAN_FIELD = [
    ("mlp", {"depth": 3, "width": 256}, 3.0, None),
    ("mlp", {"depth": 4, "width": 256}, 4.0, 1.244),
    ("mlp", {"depth": 4, "width": 256, "weights": "orthogonal"}, 4.0, 1.244),
    ("mlp", {"depth": 4, "width": 256, "readout_variance": 1.0}, 2.5, None),
    ("resmlp", {"depth": 2}, 10.0, 2.976),
    ("resmlp", {"depth": 4}, 64.0, 22.35),
    ("resmlp", {"depth": 2, "variances": (2.0, 2.0)}, 21.0, None),
    ("resmlp", {"depth": 2, "skip": 1, "variances": (2.0, 1.0)}, 10.0, 2.285),
    ("resmlp", {"depth": 2, "skip": 1, "variances": (1.0, 1.0)}, 6.0, None),
    ("resmlp", {"depth": 2, "skip": 1, "form": "post"}, 6.900, 2.410),
    ("resmlp", {"depth": 2, "skip": 1, "form": "linear", "variances": (1.0, 1.0)}, 12.0, None),
    ("resmlp", {"depth": 8, "norm": "population"}, 15.72, 5.060),
    ("resmlp", {"depth": 16, "norm": "population", "scanned": True}, 35.93, 12.31),
    ("resmlp", {"depth": 8, "residual": "fixup"}, 2.0, 0.430),
    ("resmlp", {"depth": 16, "residual": "fixup"}, 2.0, 0.430),
    ("resmlp", {"depth": 8, "residual": "fixup-scalars"}, 2.0 + 8 / 256, None),
    ("resmlp", {"depth": 16, "residual": "skipinit"}, 1.0625, None),
    ("resmlp", {"depth": 8, "scale": "depth"}, 5.987, None),
    ("densemlp", {"depth": 4, "growth": 64}, 2.421, 0.506),
    ("densemlp", {"depth": 8, "growth": 64}, 3.873, 1.050),
    # Stochastic depth in evaluation mode.
    ("resmlp", {"depth": 4, "survival": 0.8}, 24.2, None),
    ("resmlp", {"depth": 4, "survival": 0.5}, 5.371, None),
]


@pytest.mark.parametrize("name, options, trace, largest", MEAN_FIELD)
def test_trace_and_largest_eigenvalue_as_theory_says(name, options, trace, largest):
    seeds = 30
    measured = ensemble(name, seeds, **options).mean(axis=1)
    depth = options["depth"]
    deviation = (2.5 * depth / 256) ** 0.5 if name == "mlp" else min(depth / 256, 1 / 16) ** 0.5
    tolerance = 4 * deviation / seeds**0.5
    assert measured[0] == pytest.approx(trace, rel=tolerance)
    if largest is not None:
        # The bias is positive: up to 12/D at depth 1 and 2, 6/D below.
        bias = (12 if depth <= 2 else 6) / 256
        assert largest * (1 - tolerance) <= measured[1] <= largest * (1 + tolerance + bias)


def test_random_masks_as_theory_says():
    """E_mask[F(mask)] of dropout at rate 1 − p: traces L p^{1−L} (inverted), L p^{L−1} (raw); and of stochastic depth."""
    masks = {"masks": lambda key: fj.Average(8, key)}
    for form, trace in (("inverted", 3 * 0.5**-2), ("raw", 3 * 0.5**2)):
        options = {"depth": 3, "width": 256, "dropout": 0.5, "dropout_form": form}
        found = ensemble("mlp", 20, samples=8, fisher=masks, **options)
        assert found[0].mean() == pytest.approx(trace, rel=0.12)
    # λ_max of the mean network is that without dropout, or p^{2(L−1)} of it.
    mean = ensemble("mlp", 20, samples=8, fisher={"masks": "mean"}, **options)[0].mean()
    assert mean == pytest.approx(3 * 0.5**4, rel=0.12)
    # Stochastic depth: (1 + p)^L + (3/2) L p (1 + p)^{L−1}.
    for p, trace in ((0.8, 38.5), (0.5, 15.19)):
        found = ensemble("resmlp", 20, samples=6, fisher=masks, depth=4, survival=p)
        error = 4 * found[0].std() / 20**0.5 + 0.03 * trace
        assert abs(found[0].mean() - trace) < error < 0.25 * trace
    largest = ensemble("resmlp", 20, samples=6, fisher={"masks": "mean"}, depth=4, survival=0.8)[1].mean()
    assert largest == pytest.approx(9.80, rel=0.15)


def test_batch_norm_as_theory_says():
    """Real batch statistics at N = 64: the kernel prediction for D = 256, frozen; differentiated they are smaller."""
    for depth, trace, largest in ((2, 3.823, 0.7160), (4, 7.774, 1.566)):
        frozen = ensemble("resmlp", 12, samples=64, fisher={"bn": "frozen"}, depth=depth, norm="batch").mean(axis=1)
        assert frozen[0] == pytest.approx(trace, rel=0.1) and frozen[1] == pytest.approx(largest, rel=0.12)
    train = ensemble("resmlp", 6, samples=16, fisher={"bn": "train"}, depth=4, norm="batch").mean(axis=1)
    frozen = ensemble("resmlp", 6, samples=16, fisher={"bn": "frozen"}, depth=4, norm="batch").mean(axis=1)
    assert train[0] < frozen[0]


def test_ntk_parametrization_is_the_standard_kernel_over_fan_in():
    """θ = Σ_l (σ²/fan_in) qhat q̃: for equal widths M the standard one over M/σ², so L M at σ² = 2 becomes 2 L."""
    found = ensemble("mlp", 20, depth=3, width=256, parametrization="ntk")[0].mean() * 256
    assert found == pytest.approx(2 * 3, rel=0.2)


def psi(cosine):
    """E φ(u)φ(v) over E φ(u)² for ReLU of normal u, v with this correlation (the arc-cosine kernel)."""
    angle = np.arccos(np.clip(cosine, -1, 1))
    return (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi


# What block b of a He network does to the squared length of the stream, and to the cosine of two streams.
FORWARD = [
    ("mlp", {"depth": 6, "width": 256}, lambda b: 1, lambda c, b: psi(c)),
    ("resmlp", {"depth": 5}, lambda b: 2, lambda c, b: (psi(c) + c) / 2),
    ("resmlp", {"depth": 5, "scanned": True}, lambda b: 2, lambda c, b: (psi(c) + c) / 2),
    ("resmlp", {"depth": 5, "skip": 1}, lambda b: 2, lambda c, b: (psi(c) + c) / 2),
    ("resmlp", {"depth": 5, "scale": "depth"}, lambda b: 1 + 1 / 5, lambda c, b: (psi(c) / 5 + c) / (1 + 1 / 5)),
    (
        "resmlp",
        {"depth": 5, "norm": "population"},
        lambda b: (b + 3) / (b + 2),
        lambda c, b: (psi(c) + (b + 2) * c) / (b + 3),
    ),
    ("resmlp", {"depth": 5, "residual": "fixup"}, lambda b: 1, lambda c, b: c),
    ("resmlp", {"depth": 5, "residual": "skipinit"}, lambda b: 1, lambda c, b: c),
    ("resmlp", {"depth": 5, "survival": 0.7}, lambda b: 1.49, lambda c, b: (0.49 * psi(c) + c) / 1.49),
    ("resmlp", {"depth": 5, "activation": "linear", "variances": (1.0, 1.0)}, lambda b: 2, lambda c, b: c),
    ("densemlp", {"depth": 5, "growth": 256}, lambda b: (b + 2) / (b + 1), lambda c, b: (psi(c) + (b + 1) * c) / (b + 2)),
]


@pytest.mark.parametrize("name, options, growth, turn", FORWARD)
@pytest.mark.parametrize("angle", [1.0, np.pi / 2])
def test_forward_variance_and_angle(name, options, growth, turn, angle):
    """Lengths and angles of what the readout sees, over the seeds of one program, against the recursions."""
    width, seeds, blocks = 256, 16, options["depth"] - (name == "mlp")
    x = np.zeros((2, width), np.float32)
    x[0, 0], x[1, :2] = 1, (np.cos(angle), np.sin(angle))
    # Turned at random, so that no axis is special.
    x = jnp.asarray(x @ np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0].astype(np.float32) * 16)

    @jax.jit
    @jax.vmap
    def streams(key):
        model = fj.models.build(name, inputs=width, outputs=1, key=key, **options)
        if name == "mlp":
            model.layers[-1] = Same()
        else:
            model.readout = Same()
        return model(x)

    h = np.asarray(streams(jax.random.split(jax.random.key(1), seeds)), np.float64)
    square, cosine = 256.0, np.cos(angle)
    for block in range(blocks):
        square, cosine = square * growth(block), turn(cosine, block)
    lengths = (h**2).sum(axis=2)
    angles = np.arccos(h[:, 0] @ h[:, 1].T / np.sqrt(lengths[:, 0, None] * lengths[:, 1])).diagonal()
    # Four standard errors; of lengths that vary from unit to unit, and where nothing does, rounding.
    for found, expected in ((lengths.mean(axis=1) / square, 1.0), (angles, np.arccos(cosine))):
        error = 4 * found.std(ddof=1) / seeds**0.5 + 1e-3
        assert abs(found.mean() - expected) < error < 0.35


class Same(nnx.Module):
    def __call__(self, h):
        return h


def test_depth_a_thousand_compiles_in_seconds():
    model = fj.models.build("resmlp", inputs=16, outputs=2, depth=1000, scale="depth", scanned=True, key=jax.random.key(0))
    F = fj.fisher(model, np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32), fj.Gaussian())
    assert F.size == 2 * 1000 * 256 + 32
    assert float(F.trace()) == pytest.approx(float(np.trace(F.gram())), rel=1e-4)


def test_one_program_for_all_seeds():
    traced = []

    @jax.jit
    def trace(key, x):
        traced.append(1)
        model = fj.models.build("resmlp", inputs=4, outputs=2, depth=2, survival=0.5, key=key)
        return fj.fisher(model, x, fj.Gaussian()).trace()

    x = np.ones((3, 4), np.float32)
    values = {float(trace(jax.random.key(seed), x)) for seed in range(4)}
    assert len(traced) == 1 and len(values) == 4


def test_parameter_counts_and_shapes():
    key = jax.random.key(0)

    def count(name, **options):
        return fj.fisher(
            fj.models.build(name, inputs=64, outputs=10, key=key, **options), np.ones((2, 64), np.float32), fj.Gaussian()
        ).size

    assert count("mlp") == 64 * 256 + 256 * 256 + 256 * 10
    assert count("mlp", depth=2, width=32, bias_variance=0.1) == 64 * 32 + 32 + 32 * 10 + 10
    assert count("mlp", depth=1) == 640
    assert count("resmlp") == 4 * 2 * 64 * 64 + 640
    assert count("resmlp", skip=1, width=32, depth=3) == 64 * 32 + 3 * 32 * 32 + 320
    assert count("resmlp", skip=1, form="post", depth=3) == 3 * 64 * 64 + 640


def test_variances_of_the_initialization():
    model = fj.models.build("resmlp", inputs=512, outputs=64, depth=1, key=jax.random.key(0), readout_variance=3.0)
    first, second = model.blocks[0].first, model.blocks[0].second
    for layer, variance in ((first, 2.0), (second, 1.0), (model.readout, 3.0)):
        assert float(np.var(layer.kernel[...])) * 512 == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("resnext", {}), "model='resnext' is unknown; choose among mlp, resmlp"),
        (("mlp", {"skips": 1}), "model mlp: option skips=1 is unknown; it has depth, width"),
        (("mlp", {"depth": 0}), "model mlp: depth=0 is below 1"),
        (("mlp", {"activation": "swish"}), "activation='swish' is unknown; choose among relu"),
        (("resmlp", {"skip": 3}), "resmlp: skip=3 is not 1 or 2"),
        (("resmlp", {"width": 8}), "resmlp: width=8 differs from the 64 inputs"),
        (("resmlp", {"skip": 1, "form": "side"}), "resmlp: form='side' is unknown"),
    ],
)
def test_bad_options(arguments, message):
    name, options = arguments
    with pytest.raises(fj.ArgumentError, match=message):
        fj.models.build(name, inputs=64, outputs=10, key=jax.random.key(0), **options)


# --- weights ----------------------------------------------------------------------------------------------------------


def small(seed, **options):
    return fj.models.build("resmlp", inputs=4, outputs=2, depth=2, key=jax.random.key(seed), **options)


@pytest.mark.parametrize("name", ["weights.npz", "orbax"])
def test_weights_round_trip(name, tmp_path):
    source, target, x = small(0), small(1), np.ones((3, 4), np.float32)
    assert not np.allclose(source(x), target(x))
    fj.models.save_weights(source, tmp_path / name)
    fj.models.load_weights(target, tmp_path / name)
    assert np.array_equal(source(x), target(x))


def test_a_checkpoint_written_by_orbax_alone(tmp_path):
    import orbax.checkpoint as ocp

    source, target = small(0), small(1)
    with ocp.StandardCheckpointer() as checkpointer:
        state = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(source, nnx.Param)))
        checkpointer.save(tmp_path / "mine", json.loads(json.dumps({"blocks": {}})) | _strings(state))
    fj.models.load_weights(target, tmp_path / "mine")
    assert np.array_equal(source.readout.kernel[...], target.readout.kernel[...])


def _strings(tree):
    return {str(k): _strings(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def test_bad_checkpoints_are_named_and_change_nothing(tmp_path):
    model = small(0)
    before = np.asarray(model.readout.kernel[...])
    with pytest.raises(fj.ArgumentError, match=r"does not exist; give an Orbax directory or an \.npz"):
        fj.models.load_weights(model, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(fj.ArgumentError, match="empty is not an Orbax checkpoint"):
        fj.models.load_weights(model, tmp_path / "empty")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(fj.ArgumentError, match=r"is not an \.npz of arrays"):
        fj.models.load_weights(model, tmp_path / "text.npz")
    path = tmp_path / "w.npz"
    fj.models.save_weights(small(0, readout_variance=2.0), path)
    with np.load(path) as file:
        good = dict(file)
    assert set(good) == {
        "blocks/0/first/kernel",
        "blocks/0/second/kernel",
        "blocks/1/first/kernel",
        "blocks/1/second/kernel",
        "readout/kernel",
    }
    changes = {
        r"lacks readout/kernel": lambda a: a.pop("readout/kernel"),
        r"has unknown extra": lambda a: a.update(extra=np.zeros(2)),
        r"readout/kernel is float32\[5, 2\], the model has \[4, 2\]": lambda a: a.update(
            {"readout/kernel": np.zeros((5, 2), "f")}
        ),
        r"readout/kernel has 8 NaN": lambda a: a.update({"readout/kernel": np.full((4, 2), np.nan, "f")}),
    }
    for message, change in changes.items():
        bad = dict(good)
        change(bad)
        np.savez(path, **bad)
        with pytest.raises(fj.ArgumentError, match=message):
            fj.models.load_weights(model, path)
    assert np.array_equal(before, model.readout.kernel[...])
    assert sorted(p.name for p in pathlib.Path(tmp_path).iterdir()) == ["empty", "text.npz", "w.npz"]


def test_a_checkpoint_of_the_nnx_state(tmp_path):
    import orbax.checkpoint as ocp

    source, target = small(0), small(1)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(source, nnx.Param))
    fj.models.load_weights(target, tmp_path / "state")
    assert np.array_equal(source.readout.kernel[...], target.readout.kernel[...])
