"""F, K and their kin against explicit float64 Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import LIKELIHOODS, MODELS, C, N, data, function, labels

import fisher_jax as fj


def operator(kind, model, x, name, **options):
    likelihood = LIKELIHOODS[name]
    if kind == "exact":
        return fj.fisher(model, x, likelihood, **options)
    if kind == "empirical":
        return fj.fisher(model, x, likelihood, kind=fj.Empirical(labels(name)), **options)
    return fj.fisher(model, x, likelihood, kind=fj.MonteCarlo(3, key=jax.random.key(5)), **options)


def reference(kind, F, apply, params, x, name):
    outputs, J = oracle.jacobians(apply, params, x)
    if kind == "exact":
        return oracle.exact(name, outputs, J)
    y = labels(name)[:, None]
    if kind == "mc":
        drawn = F.factor.jacobian.data
        y = np.asarray(drawn.labels).reshape(-1, *drawn.labels.shape[2:])[:N]
        assert y.shape[1] == 3
    return oracle.labelled(name, outputs, J, y)


@pytest.mark.parametrize("model_kind", MODELS)
@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("kind", ["exact", "mc", "empirical"])
def test_against_explicit_jacobian(kind, name, model_kind, dtype):
    model, apply, params = MODELS[model_kind](dtype)
    x = data(dtype)
    # 7 samples: one stored linearization, and chunks of 3, the last of which holds a single sample.
    F = operator(kind, model, x, name)
    truth = reference(kind, F, apply, params, x, name)
    scale = np.linalg.norm(truth, 2)
    tolerance = 100 * oracle.eps(dtype)
    V = np.random.default_rng(3).normal(size=(F.size, 3))
    V /= np.linalg.norm(V, axis=0)
    for chunk in ("auto", 3):
        F = operator(kind, model, x, name, chunk=chunk)
        assert (F.factor.jacobian.stored is not None) == (chunk == "auto")
        assert F.dtype == dtype and F.size == truth.shape[0]
        assert np.linalg.norm(np.asarray(F @ V) - truth @ V, axis=0).max() <= tolerance * scale
        assert np.linalg.norm(np.asarray(F @ V[:, 0]) - truth @ V[:, 0]) <= tolerance * scale
    assert oracle.relative(F.dense(), truth) <= tolerance
    assert abs(float(F.trace()) - np.trace(truth)) <= tolerance * np.trace(truth)
    assert oracle.relative(F.diagonal(), np.diag(truth)) <= tolerance


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("kind", ["exact", "mc", "empirical"])
def test_primal_and_dual_agree(kind, name, dtype):
    model, _, _ = function(dtype)
    chunk = "auto" if name in ("gaussian", "categorical") else 3
    F = operator(kind, model, data(dtype), name, chunk=chunk)
    K, A = F.dual, np.asarray(F.factor.dense(), np.float64)
    tolerance = 100 * oracle.eps(dtype)
    assert K.size == N * {"exact": C, "mc": 3, "empirical": 1}[kind] == A.shape[0]
    assert K.dual.size == F.size
    assert oracle.relative(F.dense(), A.T @ A) <= tolerance
    assert oracle.relative(K.dense(), A @ A.T) <= tolerance
    u = np.random.default_rng(4).normal(size=(K.size, 2))
    assert oracle.relative(K @ u, A @ (A.T @ u)) <= tolerance
    assert oracle.relative(F.factor.rmatmat(u), A.T @ u) <= tolerance
    v = np.random.default_rng(5).normal(size=F.size)
    assert oracle.relative(F.factor.matmat(v), A @ v) <= tolerance
    a, b = (np.linalg.eigvalsh(np.asarray(M.dense(), np.float64))[::-1] for M in (F, K))
    k = min(a.size, b.size)
    np.testing.assert_allclose(a[:k], b[:k], atol=tolerance * a[0])
    assert abs(float(K.trace()) - float(F.trace())) <= tolerance * float(F.trace())


@pytest.mark.parametrize("chunk", [1, 2, 4, 6, 7, 100])
def test_no_chunk_size_changes_the_average(chunk, x64):
    model, apply, params = function("float64")
    x = data("float64")
    truth = oracle.exact("categorical", *oracle.jacobians(apply, params, x))
    F = fj.fisher(model, x, fj.Categorical(), chunk=chunk)
    assert (F.factor.jacobian.stored is None) == (chunk < N)
    assert oracle.relative(F @ np.eye(F.size), truth) <= 100 * oracle.eps("float64")
    assert oracle.relative(F.dual @ np.eye(F.dual.size), F.dual.dense()) <= 100 * oracle.eps("float64")


def test_closed_form_linear_regression(dtype):
    x = data(dtype)
    W = jnp.zeros((x.shape[1], C), dtype)
    F = fj.fisher(fj.Function(lambda p, x: x @ p, W), x, fj.Gaussian(2.0))
    expected = np.kron(x.astype(np.float64).T @ x / N, np.eye(C)) / 4
    assert oracle.relative(F.dense(), expected) <= 100 * oracle.eps(dtype)


def test_closed_form_softmax_and_logistic_regression(dtype):
    x = data(dtype)
    W = jnp.asarray(np.random.default_rng(0).normal(size=(x.shape[1], C)), dtype)
    linear = fj.Function(lambda p, x: x @ p, W)
    x64, W64 = x.astype(np.float64), np.asarray(W, np.float64)
    p = oracle.softmax(x64 @ W64)
    expected = np.mean([np.kron(np.outer(a, a), np.diag(q) - np.outer(q, q)) for a, q in zip(x64, p, strict=True)], axis=0)
    assert oracle.relative(fj.fisher(linear, x, fj.Categorical()).dense(), expected) <= 100 * oracle.eps(dtype)
    s = 1 / (1 + np.exp(-x64 @ W64))
    expected = np.mean([np.kron(np.outer(a, a), np.diag(q * (1 - q))) for a, q in zip(x64, s, strict=True)], axis=0)
    assert oracle.relative(fj.fisher(linear, x, fj.Bernoulli()).dense(), expected) <= 100 * oracle.eps(dtype)


def test_monte_carlo_tends_to_exact(x64):
    model, _, _ = function("float64")
    x = data("float64")
    exact = np.asarray(fj.fisher(model, x, fj.Categorical()).dense())

    def error(draws):
        errors = []
        for seed in range(8):
            F = fj.fisher(model, x, fj.Categorical(), kind=fj.MonteCarlo(draws, key=jax.random.key(seed)))
            errors.append(oracle.relative(F.dense(), exact))
        return np.mean(errors)

    coarse, fine = error(8), error(512)
    # The error falls as draws^(-1/2): by 8 here; between 5 and 12 over these seeds.
    assert fine < 0.1 and 5 < coarse / fine < 12


def test_monte_carlo_labels_do_not_depend_on_chunks():
    model, _, _ = function("float32")
    kind = fj.MonteCarlo(2, key=jax.random.key(3))
    F, G = (fj.fisher(model, data("float32"), fj.Categorical(), kind=kind, chunk=c) for c in ("auto", 2))
    assert oracle.relative(F.dense(), G.dense()) <= 100 * oracle.eps("float32")


def token_model(dtype, tokens=4):
    """(N, T, D) -> (N, T, C): each token sees the mean of its predecessors."""
    params = {"a": jnp.asarray(np.random.default_rng(0).normal(size=(5, C)), dtype)}

    def apply(p, x):
        history = jnp.cumsum(x, axis=1) / jnp.arange(1, x.shape[1] + 1, dtype=x.dtype)[None, :, None]
        return jnp.tanh(x + history) @ p["a"]

    x = np.random.default_rng(1).normal(size=(6, tokens, 5)).astype(dtype)
    return fj.Function(apply, params), apply, params, x


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_tokens(name, dtype):
    model, apply, params, x = token_model(dtype)
    outputs, J = oracle.jacobians(apply, params, x)
    mask = np.random.default_rng(2).integers(0, 2, x.shape[:2])
    mask[0], mask[1] = 0, 1
    for weights, expected_weights, samples in ((None, np.ones(x.shape[:2]), 6), (mask, mask, int(mask.any(axis=1).sum()))):
        truth = 0
        for n in range(6):
            for t in range(4):
                H = oracle.output_fisher(name, outputs[n, t])
                truth = truth + expected_weights[n, t] * J[n, t].T @ H @ J[n, t] / samples
        for chunk in ("auto", 4):
            F = fj.fisher(model, x, LIKELIHOODS[name], weights=weights, chunk=chunk)
            assert oracle.relative(F.dense(), truth) <= 100 * oracle.eps(dtype)
            v = np.random.default_rng(0).normal(size=F.size)
            assert oracle.relative(F @ v, truth @ v) <= 1000 * oracle.eps(dtype)
            assert abs(float(F.trace()) / np.trace(truth) - 1) <= 100 * oracle.eps(dtype)


def test_empirical_tokens_are_one_gradient_per_sequence(x64):
    model, apply, params, x = token_model("float64")
    outputs, J = oracle.jacobians(apply, params, x)
    y = np.random.default_rng(3).integers(0, C, x.shape[:2])
    truth = 0
    for n in range(6):
        g = sum(J[n, t].T @ oracle.score("categorical", outputs[n, t], y[n, t]) for t in range(4))
        truth = truth + np.outer(g, g) / 6
    F = fj.fisher(model, x, fj.Categorical(), kind=fj.Empirical(y))
    assert F.dual.size == 6
    assert oracle.relative(F.dense(), truth) <= 100 * oracle.eps("float64")


def test_weights_leave_out_and_repeat_samples(x64):
    model, _, _ = function("float64")
    x = data("float64")
    weights = np.array([1, 0, 2, 1, 0, 1, 3])
    repeated = np.repeat(x, weights, axis=0)
    F, G = fj.fisher(model, x, fj.Categorical(), weights=weights), fj.fisher(model, repeated, fj.Categorical())
    assert oracle.relative(F.dense(), G.dense()) <= 100 * oracle.eps("float64")
    y = labels("categorical")
    C1 = fj.gradient_covariance(model, (x, y), fj.Categorical(), weights=weights)
    C2 = fj.gradient_covariance(model, (repeated, np.repeat(y, weights)), fj.Categorical())
    assert oracle.relative(C1.dense(), C2.dense()) <= 100 * oracle.eps("float64")


def test_pytree_of_outputs(x64):
    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.normal(size=(5, 3))), "b": jnp.asarray(rng.normal(size=(5, 2)))}

    def apply(p, x):
        return {"one": jnp.tanh(x @ p["a"]), "two": jnp.sin(x @ p["b"])}

    x = data("float64")
    F = fj.fisher(fj.Function(apply, params), x, fj.Categorical())
    parts = [oracle.jacobians(lambda p, x, name=name: apply(p, x)[name], params, x) for name in ("one", "two")]
    truth = sum(oracle.exact("categorical", outputs, J) for outputs, J in parts)
    assert oracle.relative(F.dense(), truth) <= 100 * oracle.eps("float64")
    assert F.dual.size == N * 5
    y = {"one": rng.integers(0, 3, N), "two": rng.integers(0, 2, N)}
    E = fj.fisher(fj.Function(apply, params), x, fj.Categorical(), kind=fj.Empirical(y))
    g = 0
    for (outputs, J), name in zip(parts, ("one", "two"), strict=True):
        g = g + np.stack([j.T @ oracle.score("categorical", f, c) for f, j, c in zip(outputs, J, y[name], strict=True)])
    assert oracle.relative(E.dense(), g.T @ g / N) <= 100 * oracle.eps("float64")


def test_pytree_of_inputs(x64):
    x = {"left": data("float64"), "right": data("float64")[::-1].copy()}
    W = jnp.asarray(np.random.default_rng(0).normal(size=(5, C)))
    F = fj.fisher(fj.Function(lambda p, x: (x["left"] * x["right"]) @ p, W), x, fj.Gaussian(), chunk=3)
    z = x["left"] * x["right"]
    assert oracle.relative(F.dense(), np.kron(z.T @ z / N, np.eye(C))) <= 100 * oracle.eps("float64")


def test_where_selects_a_diagonal_block(x64):
    model, apply, params = function("float64")
    x = data("float64")
    truth = oracle.exact("categorical", *oracle.jacobians(apply, params, x))
    sizes = {"a": 30, "b": 6, "c": 18}
    starts = {"a": 0, "b": 30, "c": 36}
    for where, names in (("a", "a"), ("[ac]", "ac"), (lambda path: path != "a", "bc")):
        index = np.concatenate([np.arange(starts[n], starts[n] + sizes[n]) for n in names])
        F = fj.fisher(model, x, fj.Categorical(), where=where)
        assert F.size == index.size
        assert oracle.relative(F.dense(), truth[np.ix_(index, index)]) <= 100 * oracle.eps("float64")
        v = F.unravel(np.arange(1.0, F.size + 1))
        assert set(v) == {"a", "b", "c"}
        for n in "abc":
            assert bool(np.any(np.asarray(v[n]))) == (n in names) and v[n].shape == params[n].shape


def test_where_takes_a_whole_block_of_a_module():
    model = fj.models.build("resmlp", inputs=4, outputs=2, depth=2, key=jax.random.key(0))
    F = fj.fisher(model, np.ones((3, 4), np.float32), fj.Gaussian(), where="blocks/1")
    assert F.size == 2 * 16
    with pytest.raises(fj.ArgumentError, match=r"where='nothing' selects no parameter; choose among blocks/0/first/kernel"):
        fj.fisher(model, np.ones((3, 4), np.float32), fj.Gaussian(), where="nothing")


def huber(f, y):
    """A smooth convex loss that is no likelihood of ours, with a Hessian that couples outputs."""
    r = f - y
    return jnp.sqrt(1 + jnp.sum(r**2))


@pytest.mark.parametrize("model_kind", MODELS)
@pytest.mark.parametrize("chunk", ["auto", 3])
def test_gauss_newton_and_hessian(model_kind, chunk, dtype):
    model, apply, params = MODELS[model_kind](dtype)
    x, y = data(dtype), labels("gaussian").astype(dtype)
    outputs, J = oracle.jacobians(apply, params, x)
    truth = 0
    for f, j, t in zip(outputs, J, y.astype(np.float64), strict=True):
        r = f - t
        s = np.sqrt(1 + r @ r)
        truth = truth + j.T @ (np.eye(C) / s - np.outer(r, r) / s**3) @ j / N
    G = fj.ggn(model, (x, y), huber, chunk=chunk)
    tolerance = 100 * oracle.eps(dtype)
    assert oracle.relative(G.dense(), truth) <= tolerance
    assert abs(float(G.trace()) / np.trace(truth) - 1) <= tolerance

    with jax.enable_x64(True):
        from jax.flatten_util import ravel_pytree

        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), params)
        flat, unravel = ravel_pytree(wide)
        x64, y64 = jnp.asarray(x, jnp.float64), jnp.asarray(y, jnp.float64)

        def loss(flat):
            return jnp.mean(jax.vmap(huber)(apply(unravel(flat), x64), y64))

        truth = np.asarray(jax.hessian(loss)(flat))
    H = fj.hessian(model, (x, y), huber, chunk=chunk)
    assert oracle.relative(H.dense(), truth) <= tolerance
    assert np.linalg.eigvalsh(truth)[0] < 0, "the case should be indefinite"
    assert float(H.trace()) == pytest.approx(np.trace(truth), abs=tolerance * np.abs(np.diag(truth)).sum())


def test_gauss_newton_of_a_likelihood_is_its_fisher(x64):
    model, _, _ = function("float64")
    x, y = data("float64"), labels("categorical")

    def cross_entropy(f, y):
        return jax.nn.logsumexp(f) - f[y]

    F, G, L = (
        fj.fisher(model, x, fj.Categorical()),
        fj.ggn(model, (x, y), cross_entropy),
        fj.ggn(model, (x, y), fj.Categorical()),
    )
    assert oracle.relative(G.dense(), F.dense()) <= 100 * oracle.eps("float64")
    assert oracle.relative(L.dense(), F.dense()) <= 100 * oracle.eps("float64")
    E = fj.fisher(model, x, fj.Categorical(), kind=fj.Empirical(y))
    assert oracle.relative(E.dense(), F.dense()) > 0.1, "the empirical Fisher is another matrix"
    H1, H2 = fj.hessian(model, (x, y), fj.Categorical()), fj.hessian(model, (x, y), cross_entropy)
    assert oracle.relative(H1.dense(), H2.dense()) <= 100 * oracle.eps("float64")


@pytest.mark.parametrize("chunk", ["auto", 3])
def test_centred_gradient_covariance(chunk, dtype):
    model, apply, params = function(dtype)
    x, y = data(dtype), labels("categorical")
    outputs, J = oracle.jacobians(apply, params, x)
    g = np.stack([j.T @ oracle.score("categorical", f, c) for f, j, c in zip(outputs, J, y, strict=True)])
    truth = np.cov(g.T, bias=True)
    S = fj.gradient_covariance(model, (x, y), fj.Categorical(), chunk=chunk)
    tolerance = 100 * oracle.eps(dtype)
    assert oracle.relative(S.dense(), truth) <= tolerance
    v = np.random.default_rng(0).normal(size=S.size)
    assert np.linalg.norm(np.asarray(S @ v) - truth @ v) <= tolerance * np.linalg.norm(truth, 2) * np.linalg.norm(v)
    assert abs(float(S.trace()) / np.trace(truth) - 1) <= tolerance
    K = np.asarray(S.dual.dense(), np.float64)
    np.testing.assert_allclose(
        np.linalg.eigvalsh(K)[1:], np.linalg.eigvalsh(truth)[-N + 1 :], atol=tolerance * np.trace(truth)
    )
    assert S.factor.rank_bound() == N - 1


def test_inside_jit_and_as_scipy(x64):
    from scipy.sparse.linalg import eigsh

    model, apply, params = function("float64")
    x = data("float64")
    F = fj.fisher(model, x, fj.Categorical())

    @jax.jit
    def trace_of(params, v):
        G = fj.fisher(fj.Function(apply, params), jnp.asarray(x), fj.Categorical())
        return G.trace(), G @ v

    v = jnp.ones(F.size)
    trace, product = trace_of(params, v)
    np.testing.assert_allclose(trace, F.trace(), rtol=1e-12)
    np.testing.assert_allclose(product, F @ v, atol=1e-12)
    values = eigsh(F.as_scipy(), 3, return_eigenvectors=False, v0=np.ones(F.size))
    np.testing.assert_allclose(values[::-1], np.linalg.eigvalsh(F.dense())[::-1][:3], rtol=1e-8)


def test_rank_bound_is_reached(x64):
    model, _, _ = function("float64")
    x = data("float64")
    for F, bound in (
        (fj.fisher(model, x, fj.Categorical()), N * (C - 1)),
        (fj.fisher(model, x, fj.Gaussian()), N * C),
        (fj.fisher(model, x, fj.Categorical(), weights=np.array([1, 1, 0, 0, 0, 1, 0])), 3 * (C - 1)),
        (fj.fisher(model, x, fj.Categorical(), kind=fj.Empirical(labels("categorical"))), N),
    ):
        assert F.factor.rank_bound() == bound
        assert np.linalg.matrix_rank(np.asarray(F.factor.dense()), tol=1e-10) == min(bound, F.size)
