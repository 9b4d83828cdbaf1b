"""Models against the theory of wide networks at initialization, and weights to and from disk."""

import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

import fisher_jax as fj


def spectra(name, seeds, samples=16, inputs=256, **options):
    """Mean over seeds of (trace, λ_max) of the Gaussian Fisher with fresh data and weights."""
    found = []
    for seed in range(seeds):
        k_data, k_model = jax.random.split(jax.random.key(seed))
        x = jax.random.normal(k_data, (samples, inputs))
        model = fj.models.build(name, inputs=inputs, outputs=1, key=k_model, **options)
        F = fj.fisher(model, x, fj.Gaussian())
        exact = fj.spectrum(F)
        found.append((exact.trace, exact.lambda_max))
    return np.mean(found, axis=0)


# Predictions of the infinite-width recursions and relative tolerances: four standard errors at these widths and seeds,
# plus the O(1/width) bias of λ_max. Data x ~ N(0, I), one output, no biases.
@pytest.mark.parametrize(
    "name, options, trace, largest, tolerance",
    [
        ("mlp", {"depth": 3, "width": 256}, 3.0, None, 0.15),
        ("mlp", {"depth": 4, "width": 256}, 4.0, 1.244, 0.18),
        ("resmlp", {"depth": 2}, 10.0, 2.976, 0.15),
        ("resmlp", {"depth": 4}, 64.0, 22.35, 0.18),
        ("resmlp", {"depth": 2, "variances": (2.0, 2.0)}, 21.0, None, 0.15),
        ("resmlp", {"depth": 2, "skip": 1, "variances": (2.0, 1.0)}, 10.0, 2.285, 0.15),
        ("resmlp", {"depth": 2, "skip": 1, "variances": (1.0, 1.0)}, 6.0, None, 0.15),
        ("resmlp", {"depth": 2, "skip": 1, "form": "post"}, 6.900, 2.410, 0.15),
        ("resmlp", {"depth": 2, "skip": 1, "form": "linear", "variances": (1.0, 1.0)}, 12.0, None, 0.15),
    ],
)
def test_trace_and_largest_eigenvalue_as_theory_says(name, options, trace, largest, tolerance):
    measured = spectra(name, seeds=10, **options) / 256
    assert measured[0] == pytest.approx(trace, rel=tolerance)
    if largest is not None:
        assert measured[1] == pytest.approx(largest, rel=tolerance)


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
    first, second = model.blocks[0]
    for layer, variance in ((first, 2.0), (second, 1.0), (model.readout, 3.0)):
        assert float(np.var(layer.kernel[...])) * 512 == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("resnet", {}), "model='resnet' is unknown; choose among mlp, resmlp"),
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
        "blocks/0/0/kernel",
        "blocks/0/1/kernel",
        "blocks/1/0/kernel",
        "blocks/1/1/kernel",
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
