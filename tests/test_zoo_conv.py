"""Convolutional networks: the published parameter counts, initializations, plain twins."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fisher_jax as fj
from fisher_jax.models import densenet, imagenet_resnet, resnet, vgg
from fisher_jax.models.conv_blocks import Conv, Recipe, norm

CLASSES = {
    "resnet": resnet.ResNet,
    "imagenet": imagenet_resnet.ImageNetResNet,
    "vgg": vgg.VGG,
    "densenet": densenet.DenseNet,
}
SMALL, LARGE = ((32, 32, 3), 10), ((224, 224, 3), 1000)


def shapes(name, image, outputs, **options):
    """Parameters by path, without making them."""
    model = nnx.eval_shape(lambda: CLASSES[name](inputs=image, outputs=outputs, rngs=nnx.Rngs(0), **options))
    flat = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): a.shape for path, a in flat}


def size(*arguments, **options):
    return sum(math.prod(shape) for shape in shapes(*arguments, **options).values())


def build(name, image=(8, 8, 2), outputs=2, seed=0, **options):
    model = CLASSES[name](inputs=image, outputs=outputs, rngs=nnx.Rngs(seed), **options)
    model.eval()
    return model


# CIFAR, 10 classes: equal to the papers' rounded numbers (0.27, 0.46, 0.66, 0.85, 1.7 M; WRN 2.7, 11.0, 36.5, 0.6, 2.2,
# 8.9 M; DenseNet 1.0, 0.8, 15.3, 25.6 M), and to public implementations for post-activation ResNets and WRN-28-10.
# Pre-activation has the norms in other places, so as many. ImageNet: torchvision's. Norm scales and shifts count, running
# statistics do not.
PUBLISHED = {
    resnet: ("resnet", SMALL, {
        "resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018, "resnet110": 1_727_962,
        "preresnet20": 269_722, "preresnet56": 853_018, "preresnet110": 1_727_962,
        "wrn16-4": 2_748_890, "wrn16-8": 10_961_370, "wrn28-10": 36_479_194,
        "wrn40-1": 563_930, "wrn40-2": 2_243_546, "wrn40-4": 8_949_210,
    }),
    imagenet_resnet: ("imagenet", LARGE, {
        "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160,
        "resnet152": 60_192_808,
    }),
    vgg: ("vgg", LARGE, {
        "vgg11": 132_863_336, "vgg13": 133_047_848, "vgg16": 138_357_544, "vgg19": 143_667_240,
        "vgg11-bn": 132_868_840, "vgg13-bn": 133_053_736, "vgg16-bn": 138_365_992, "vgg19-bn": 143_678_248,
    }),
    densenet: ("densenet", SMALL, {"densenet-40-12": 1_019_722, "densenet-bc-100-12": 769_162}),
}  # fmt: skip
# Tracing these takes long.
SLOW = {"resnet110", "preresnet110", "resnet101", "resnet152"}
CASES = [
    pytest.param(module, preset, id=preset, marks=[pytest.mark.slow] if preset in SLOW else [])
    for module, (_, _, counts) in PUBLISHED.items()
    for preset in counts
]


@pytest.mark.parametrize("module, preset", CASES)
def test_published_parameter_counts(module, preset):
    name, data, counts = PUBLISHED[module]
    assert size(name, *data, **module.PRESETS[preset]) == counts[preset]


@pytest.mark.slow
@pytest.mark.parametrize("preset, count", [("densenet-bc-250-24", 15_324_406), ("densenet-bc-190-40", 25_624_430)])
def test_published_parameter_counts_of_deep_densenets(preset, count):
    assert size("densenet", *SMALL, **densenet.PRESETS[preset]) == count


def test_more_parameter_counts():
    assert size("vgg", *SMALL, **vgg.PRESETS["vgg16-cifar"]) == 14_728_266
    # Option B adds two normalized projections; Fixup has 5 scalars per block and 2 more for 1376 of norms.
    assert size("resnet", *SMALL, shortcut="B") == 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64) == 272_474
    assert size("resnet", *SMALL, norm="none", init="fixup") == 269_722 - 1376 + 47
    assert size("resnet", *SMALL, norm="none", init="skipinit") == 269_722 - 1376 + 9


@pytest.mark.parametrize("name", ["resnet", "imagenet"])
def test_the_plain_twin_lacks_only_the_projections(name):
    options = {"shortcut": "B", "norm": "group", "depth": 20 if name == "resnet" else 18}
    residual, plain = shapes(name, *SMALL, **options), shapes(name, *SMALL, skip=False, **options)
    assert plain.items() <= residual.items()
    lost = set(residual) - set(plain)
    assert lost and all("/shortcut/" in path for path in lost)
    block = build("resnet", depth=8, width=4, norm="none", skip=False).blocks[0]
    h = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
    first, second = block.branch.convs
    np.testing.assert_allclose(block(h), nnx.relu(second(nnx.relu(first(h)))), rtol=1e-5, atol=1e-6)


def test_the_plain_densenet_has_the_widths_of_the_concatenating_one():
    dense, plain = (shapes("densenet", *SMALL, depth=22, skip=skip) for skip in (True, False))
    assert dense.keys() == plain.keys()
    assert all(dense[path][-2] == plain[path][-2] for path in dense if path.endswith("conv/kernel"))
    assert dense["blocks/1/units/1/conv/kernel"] == (3, 3, 48, 12) and dense["blocks/2/units/0/conv/kernel"][2] == 24 + 24
    assert plain["blocks/1/units/1/conv/kernel"] == (3, 3, 48, 48)


# --- layers that Flax has, but not under strict promotion --------------------------------------------------------------


def test_group_norm_and_the_pool_of_a_transition_are_those_of_flax():
    h = jnp.asarray(np.random.default_rng(0).normal(1, 2, (2, 5, 4, 8)), jnp.float32)
    for kind, groups in (("layer", 1), ("group", 2)):
        ours, flax = norm(kind, 8, nnx.Rngs(0)), nnx.GroupNorm(8, groups, use_fast_variance=False, rngs=nnx.Rngs(0))
        for layer in (ours, flax):
            nnx.update(layer, {"scale": jnp.arange(8.0), "bias": jnp.arange(8.0) ** 2})
        np.testing.assert_allclose(ours(h), flax(h), rtol=1e-5, atol=1e-5)
    for image in (h, h[:, :1], h[:, :, :1], h[:, :3, :3]):
        transition = densenet.Transition(8, 4, Recipe("densenet", "none", "he", nnx.Rngs(0)))
        window = (min(2, image.shape[1]), min(2, image.shape[2]))
        with jax.numpy_dtype_promotion("standard"):
            expected = nnx.avg_pool(transition.unit(image), window, window)
        np.testing.assert_allclose(transition(image), expected, rtol=1e-5, atol=1e-6)


# --- initialization ---------------------------------------------------------------------------------------------------


def test_variances_of_convolutions():
    for weights, variance in (("gaussian", 2.0), ("orthogonal", 2.0), ("gaussian", 1.0)):
        W = Conv(32, 64, variance=variance, weights=weights, rngs=nnx.Rngs(0)).kernel[...]
        assert float(jnp.var(W)) * 32 * 9 == pytest.approx(variance, rel=0.05)
    W = Conv(8, 16, variance=2.0, weights="orthogonal", rngs=nnx.Rngs(0)).kernel[...].reshape(72, 16)
    np.testing.assert_allclose(W.T @ W, 2.0 * np.eye(16), atol=1e-5)


def squares(model, x):
    """Mean squares of the stream after the stem and after each block."""
    h, found = nnx.relu(model.norm(model.stem(x))), []
    for block in model.blocks:
        found.append(float(jnp.mean(h**2)))
        h = block(h)
    return np.array([*found, float(jnp.mean(h**2))])


def test_scale_of_the_stream():
    """Without skips He's weights keep the mean square, up to chance and zeros at the border, and LeCun's halve it in every
    layer; a residual stream grows, and one with Fixup or SkipInit does not until it is padded."""
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    base = {"image": (16, 16, 3), "depth": 20, "width": 32, "norm": "none"}
    he, lecun = (squares(build("resnet", skip=False, init=init, **base), x) for init in ("he", "lecun"))
    # Blocks of the first stage have 6 layers; each loses up to an eighth of the mean square at the border of 16 x 16.
    assert 0.3 < he[3] / he[0] < 3
    assert lecun[3] / lecun[0] == pytest.approx(he[3] / he[0] / 2**6, rel=1e-3)
    growing = squares(build("resnet", **base), x)
    assert growing[3] > 4 * growing[0]
    for init in ("fixup", "skipinit"):
        still = squares(build("resnet", init=init, **base), x)
        np.testing.assert_allclose(still[:4], still[0], rtol=1e-6)


def test_fixup_at_initialization():
    model = build("imagenet", depth=14, width=8, norm="none", init="fixup")
    first, second, last = model.blocks[3].branch.convs
    he = 2.0 / np.array([first.kernel[...].shape[2], 9 * 64])
    measured = [float(jnp.mean(conv.kernel[...] ** 2)) for conv in (first, second)]
    # L = 4 branches of m = 3 convolutions: deviations times L^(-1/4).
    np.testing.assert_allclose(measured, he * 4**-0.5, rtol=0.1)
    assert not np.any(last.kernel[...]) and not np.any(model.readout.kernel[...])
    assert not np.any(model(jnp.ones((1, 8, 8, 2))))


def test_training_mode_is_random_and_evaluation_is_not():
    model = build("resnet", depth=8, width=4, dropout=0.5, survival=0.5, survival_schedule="uniform")
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 2))
    assert np.array_equal(model(x), model(x))
    mean = np.array(model.norm.mean[...])
    model.train()
    assert not np.array_equal(model(x), model(x))
    assert not np.array_equal(mean, model.norm.mean[...])
    linear = build("resnet", depth=8, width=4, survival=0.4)
    assert [float(block.branch.depth.survival[...]) for block in linear.blocks] == pytest.approx([0.8, 0.6, 0.4])


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("resnet", {"depth": 21}, r"resnet: depth=21 has no three equal stages; give 6n \+ 2"),
        ("resnet", {"depth": 20, "widen": 2}, r"give 6n \+ 4 with widen"),
        ("resnet", {"norm": "instance"}, "norm='instance' is unknown; choose among none, batch, layer, group"),
        ("resnet", {"init": "xavier"}, "init='xavier' is unknown; choose among he, lecun, orthogonal, fixup, skipinit"),
        ("resnet", {"shortcut": "C"}, "shortcut='C' is unknown"),
        ("resnet", {"form": "both"}, "form='both' is unknown"),
        ("resnet", {"init": "fixup"}, "init=\"fixup\" with norm='batch'; Fixup replaces norms"),
        ("resnet", {"init": "skipinit", "skip": False}, "init='skipinit' with skip=False maps all to zero"),
        ("resnet", {"survival": 0.5, "skip": False}, "survival=0.5 with skip=False loses the signal"),
        ("resnet", {"survival_schedule": "cosine"}, "survival_schedule='cosine' is unknown"),
        ("resnet", {"dropout": 1.5}, "dropout=1.5 is no probability"),
        ("resnet", {"image": 64}, r"inputs=64 is not an image; give inputs=\(height, width, channels\)"),
        ("imagenet", {"depth": 20}, "imagenet_resnet: depth=20 is unknown; choose among 10, 14, 18"),
        ("vgg", {"depth": 12}, "vgg: depth=12 is unknown"),
        ("vgg", {"head": "medium"}, "head='medium' is unknown"),
        ("vgg", {"init": "fixup"}, "init='fixup' is unknown; choose among he, lecun, orthogonal"),
        ("densenet", {"depth": 21}, "densenet: depth=21 has no three equal stages"),
        ("densenet", {"compression": 0}, "compression=0 is no share"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(fj.ArgumentError, match=message):
        build(name, **options)
