"""Sums over per-sample gradients that are never formed, and Kronecker factors, against explicit ones."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from test_gram import MODELS, explicit, problem

import fisher_jax as fj
from fisher_jax import rows


@pytest.mark.parametrize("name", MODELS)
def test_norms_diagonal_and_touched(name, x64):
    apply, params, x, _ = problem(name, "float64")
    F = fj.fisher(fj.Function(apply, params), x, fj.Gaussian())
    _, J = explicit(apply, params, x)
    tolerance = 100 * oracle.eps("float64")
    squares = J**2 / len(x)
    assert oracle.relative(F.dual.diagonal(), squares.sum(1)) <= tolerance
    assert float(F.trace()) == pytest.approx(squares.sum(), rel=tolerance)
    assert oracle.relative(F.diagonal(), squares.sum(0)) <= tolerance
    np.testing.assert_array_equal(np.asarray(rows.touched(F.factor)) > 0, squares.sum(0) > 0)
    assert oracle.relative(F.gradient_norms(), np.linalg.norm(J, axis=1).reshape(len(x), -1)) <= tolerance


@pytest.mark.parametrize("weights", [None, np.array([1.0, 0.0, 2.0, 3.0, 1.0, 1.0])])
def test_gradient_norms_of_labels_know_no_weights(weights, x64):
    apply, params, x, _ = problem("dense", "float64")
    y = np.array([0, 1, 2, 0, 1, 2])
    F = fj.fisher(fj.Function(apply, params), x, fj.Categorical(), kind=fj.Empirical(y), weights=weights)

    def loss(p, row, label):
        return -jax.nn.log_softmax(apply(p, row[None])[0])[label]

    gradients = [jax.grad(loss)(params, jnp.asarray(row), label) for row, label in zip(x, y, strict=True)]
    truth = [np.sqrt(sum(float(jnp.sum(a**2)) for a in jax.tree.leaves(g))) for g in gradients]
    np.testing.assert_allclose(F.gradient_norms()[:, 0], truth, rtol=1e-12)


def test_gradient_norms_of_tokens(x64):
    def apply(p, x):
        return jnp.tanh(x @ p["w"]) @ p["v"]

    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(3, 4))), "v": jnp.asarray(rng.normal(size=(4, 2)))}
    x, mask = rng.normal(size=(5, 4, 3)), np.r_[[[1.0, 1, 0, 0]], [[0.0, 0, 0, 0]], np.ones((3, 4))]
    F = fj.fisher(fj.Function(apply, params), x, fj.Gaussian(), weights=mask)
    J = explicit(lambda p, x: apply(p, x).reshape(len(x), -1), params, x)[1].reshape(5, 4, 2, -1)
    np.testing.assert_allclose(F.gradient_norms(), (np.linalg.norm(J, axis=-1) * mask[..., None]).reshape(5, 8), rtol=1e-12)


# --- Kronecker factors ------------------------------------------------------------------------------------------------


def by_hand(params, x):
    """(inputs, cotangents of the outputs (N, C, width)) of each layer of a two-layer tanh network, in NumPy."""
    h = np.tanh(x @ params["w"] + params["b"])
    first = (1 - h**2)[:, None, :] * params["v"].T[None]
    return [(np.c_[x, np.ones(len(x))], first), (h, np.broadcast_to(np.eye(params["v"].shape[1]), (len(x), 3, 3)))]


def test_kfac_of_dense_layers_by_hand(x64):
    apply, params, x, _ = problem("dense", "float64")
    F = fj.fisher(fj.Function(apply, params), x, fj.Gaussian())
    layers = by_hand(jax.tree.map(np.asarray, params), x)
    factors = [(a.T @ a / len(x), np.einsum("nro,nrp->op", g, g) / len(x)) for a, g in layers]
    found = fj.kronecker_factors(F)
    assert set(found) == {"w", "v"}
    for name, (A, G) in zip(("w", "v"), factors, strict=True):
        assert oracle.relative(found[name].inputs[0], A) <= 1e-13 and oracle.relative(found[name].outputs[0], G) <= 1e-13
    blocks = [np.kron(A, G) for A, G in factors]
    truth = np.sort(np.concatenate([np.linalg.eigvalsh(block) for block in blocks]))[::-1]
    spectrum = fj.kfac_spectrum(F)
    rank = spectrum.values.size
    np.testing.assert_allclose(spectrum.values, truth[:rank], atol=spectrum.floor)
    assert rank == np.sum(truth > 2 * spectrum.floor) and rank + spectrum.unresolved + spectrum.zeros == F.size == len(truth)
    assert spectrum.trace == pytest.approx(truth.sum()) and spectrum.frobenius == pytest.approx(np.linalg.norm(truth))
    parts = fj.kfac_spectrum(F, by="layer")
    assert sum(part.trace for name, part in parts.items() if name != "all") == pytest.approx(truth.sum())
    # Nothing is lost for one sample in one layer, and bias and weight in different groups share no factors.
    np.testing.assert_allclose(parts["v"].values, np.linalg.eigvalsh(blocks[1])[::-1][: parts["v"].values.size], rtol=1e-9)
    # A bias that may not join its weight keeps its exact block.
    exact = np.linalg.eigvalsh(np.einsum("nro,nrp->op", layers[0][1], layers[0][1]) / len(x))[::-1]
    np.testing.assert_allclose(parts["b"].values, exact[: parts["b"].values.size], atol=parts["b"].floor)


@pytest.mark.parametrize(
    "name", ["dense", "attention", "conv", "experts", "embedding", "tied", "unused", "layer norm", "deep scan"]
)
def test_kfac_of_one_sample(name, x64):
    """Of one sample at one position the factors lose nothing but the blocks between layers."""
    apply, params, x, _ = problem(name, "float64")
    F = fj.fisher(fj.Function(apply, params), x[:1], fj.Gaussian())
    found = fj.kfac_spectrum(F)
    assert found.values.size + found.unresolved + found.zeros == F.size
    factors = fj.kronecker_factors(F)
    for path, pair in factors.items():
        assert pair.inputs.shape[0] == pair.outputs.shape[0]
        if pair.positions > 1 or pair.inputs.ndim == 2 or (path == "w" and "b" in params):
            continue
        block = np.asarray(fj.fisher(fj.Function(apply, params), x[:1], fj.Gaussian(), where=path).dense())
        B = len(pair.inputs)
        values = np.concatenate(
            [np.outer(np.linalg.eigvalsh(pair.inputs[b]), np.linalg.eigvalsh(pair.outputs[b])).ravel() for b in range(B)]
        )
        if B == 1:
            np.testing.assert_allclose(np.sort(values), np.linalg.eigvalsh(block), atol=1e-12 * values.max())
        assert values.sum() == pytest.approx(np.trace(block))


def test_kfac_of_a_convolution_by_hand(x64):
    """KFC: inputs summed over positions, cotangents averaged over them."""
    rng = np.random.default_rng(0)
    w, v, x = rng.normal(size=(2, 2, 3, 4)), rng.normal(size=(4 * 9, 2)), rng.normal(size=(5, 4, 4, 3))

    def apply(p, x):
        h = jax.lax.conv_general_dilated(x, p["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return h.reshape(h.shape[0], -1) @ v

    found = fj.kronecker_factors(fj.fisher(fj.Function(apply, {"w": jnp.asarray(w)}), x, fj.Gaussian()))["w"]
    patches = np.stack([x[:, i : i + 2, j : j + 2] for i in range(3) for j in range(3)], 1).reshape(5 * 9, 4, 3)
    A = np.einsum("tij,tkl->ijkl", *[patches] * 2).reshape(12, 12) / 5
    g = v.reshape(9, 4, 2)
    assert found.positions == 9
    np.testing.assert_allclose(np.linalg.eigvalsh(found.inputs[0]), np.linalg.eigvalsh(A), atol=1e-12 * np.trace(A))
    np.testing.assert_allclose(found.outputs[0], np.einsum("tor,tpr->op", g, g) / 9, rtol=1e-12)


def test_kfac_refusals():
    apply, params, x, _ = problem("dense", "float32")
    model = fj.Function(apply, params)
    centred = fj.gradient_covariance(model, (x, np.zeros(6, np.int32)), fj.Categorical())
    with pytest.raises(fj.ArgumentError, match="centred gradient covariance"):
        fj.kfac_spectrum(centred)
    with pytest.raises(fj.ArgumentError, match="by='rows' is not known"):
        fj.kfac_spectrum(fj.fisher(model, x, fj.Gaussian()), by="rows")
    with pytest.raises(fj.ArgumentError, match="F is a DualOperator"):
        fj.kronecker_factors(centred.dual)
