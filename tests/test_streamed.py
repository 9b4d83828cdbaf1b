"""Networks whose weights are not kept, against the same networks with stored weights."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import fisher_jax as fj

MODELS = {
    "mlp": ("mlp", {"depth": 4, "width": 7, "bias_variance": 0.1, "activation": "tanh"}),
    "resmlp": ("resmlp", {"depth": 3}),
    "resmlp with embedding": ("resmlp", {"depth": 2, "skip": 1, "width": 9, "scale": 0.5}),
}
X = np.random.default_rng(0).normal(size=(11, 5))


def pair(name, **options):
    kind, chosen = MODELS[name]
    build = {"inputs": 5, "outputs": 3, "key": jax.random.key(1), **chosen, **options}
    return fj.models.build(kind, **build), fj.models.build(kind, streamed=True, **build)


@pytest.mark.parametrize("kind", ["exact", "empirical", "mc", "weighted"])
@pytest.mark.parametrize("name", MODELS)
def test_same_matrix_as_stored(name, kind, x64):
    options = {
        "exact": {},
        "empirical": {"kind": fj.Empirical(np.arange(11) % 3)},
        "mc": {"kind": fj.MonteCarlo(2, jax.random.key(3))},
        "weighted": {"weights": np.arange(11.0)},
    }[kind]
    F, G = (fj.fisher(model, X, fj.Categorical(), **options) for model in pair(name))
    tolerance = 100 * oracle.eps(F.dtype)
    assert G.size == F.size and sorted(G.factor.jacobian.network.paths) == sorted(F.factor.jacobian.network.paths)
    truth = np.asarray(F.factor.dense()) @ np.asarray(F.factor.dense()).T
    assert oracle.relative(G.gram(tile=4), truth) <= tolerance
    assert float(G.trace()) == pytest.approx(np.trace(truth), rel=tolerance)
    if kind == "exact":
        order = np.argsort(G.factor.jacobian.network.paths, kind="stable")
        sizes = [p.size for p in G.factor.jacobian.network.params]
        parts = np.split(np.asarray(G.diagonal()), np.cumsum(sizes)[:-1])
        named = np.argsort(F.factor.jacobian.network.paths, kind="stable")
        stored = np.split(np.asarray(F.diagonal()), np.cumsum([p.size for p in F.factor.jacobian.network.params])[:-1])
        for i, j in zip(order, named, strict=True):
            assert oracle.relative(parts[i], stored[j]) <= tolerance
        assert oracle.relative(G.gradient_norms(), F.gradient_norms()) <= tolerance


def test_spectrum_and_its_parts():
    stored, streamed = pair("resmlp")
    F, G = (fj.fisher(model, X.astype(np.float32), fj.Gaussian()) for model in (stored, streamed))
    steps = []
    found, truth = fj.spectrum(G, by="block", progress=lambda *step: steps.append(step)), fj.spectrum(F, by="block")
    assert set(found) == set(truth) == {"all", "blocks/0", "blocks/1", "blocks/2", "readout"}
    for name, part in found.items():
        assert part.size == truth[name].size
        count = min(part.values.size, truth[name].values.size)
        np.testing.assert_allclose(part.values[:count], truth[name].values[:count], atol=part.floor)
        assert part.trace == pytest.approx(truth[name].trace, rel=1e-5)
    assert steps == [(i + 1, 8) for i in range(8)]
    plan = fj.plan(G)
    assert plan.size == F.size and {kind for _, kind, _, _ in plan.kernels} == {"outer"}
    assert dict(plan.operations)["matrix"] == dict(fj.plan(F).operations)["matrix"]
    assert len(plan.kernels) == 7 and "blocks/1/first/kernel" in repr(plan)


def test_other_data_and_odd_stages(x64):
    """Any chain of stages: a convolution over images, pooled, with a pytree between stages."""

    def images(params, x):
        h = jax.lax.conv_general_dilated(x, params["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return {"h": jnp.tanh(h), "mean": x.mean((1, 2))}

    def pool(params, parts):
        return parts["h"].mean((1, 2)) @ params["v"] + parts["mean"] @ params["u"]

    def first(key):
        return {"w": jax.random.normal(key, (3, 3, 2, 4))}

    def second(key):
        return {"u": jax.random.normal(key, (2, 3)), "v": jax.random.normal(key, (4, 3))}

    keys = jax.random.split(jax.random.key(0))
    x = np.random.default_rng(1).normal(size=(4, 5, 5, 2))
    streamed = fj.Streamed((fj.Stage("a", first, images, keys[0]), fj.Stage("b", second, pool, keys[1])))
    stored = fj.Function(lambda p, x: pool(p["b"], images(p["a"], x)), {"a": first(keys[0]), "b": second(keys[1])})
    F, G = (fj.fisher(model, x, fj.Poisson()) for model in (stored, streamed))
    assert oracle.relative(G.gram(), F.factor.dense() @ F.factor.dense().T) <= 100 * oracle.eps("float64")


def test_refusals():
    _, streamed = pair("mlp")
    x = X.astype(np.float32)
    with pytest.raises(fj.ArgumentError, match="takes neither where, chunk nor mesh"):
        fj.fisher(streamed, x, fj.Gaussian(), where="layers/0")
    F = fj.fisher(streamed, x, fj.Gaussian())
    for attempt in (
        lambda: F @ np.ones(F.size),
        lambda: F.dense(),
        lambda: fj.eigsh(F, 2, key=jax.random.key(0)),
        lambda: fj.plan(F, 2),
        lambda: F.unravel(np.ones(F.size)),
    ):
        with pytest.raises(fj.ArgumentError, match="a streamed network has no products with vectors"):
            attempt()
    with pytest.raises(fj.ArgumentError, match="vectors=2 of a streamed network"):
        fj.spectrum(F, vectors=2)
    with pytest.raises(fj.ArgumentError, match="streamed network"):
        fj.kfac_spectrum(F)
    with pytest.raises(fj.ArgumentError, match="rejects samples"):
        fj.fisher(streamed, x[:, :4], fj.Gaussian())
