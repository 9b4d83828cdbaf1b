"""The rows of `solvers.py`: the problems, and every eigensolver and density of ours and of others on them.

A row is prepared from a problem, untimed (imports, the network ported to PyTorch), and gives a function of a seed and of its
settings that is timed. Others multiply by `F @ v`, or by a product of their own that is equal to it (`twins.py`); residuals
are those of the matrix that was multiplied by, errors of values those against one reference.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import scipy.stats
from flax import nnx
from resnet import ResNet
from run import digits_mlp, digits_resnet

import fisher_jax as fj

# Goals: largest true residual over λ_max; Wasserstein distance of the spectra over the mean eigenvalue.
RESIDUAL, DISTANCE = 1e-5, 0.1
# Largest K that is diagonalized for the reference.
DIRECT = 8000


@dataclasses.dataclass(frozen=True)
class Problem:
    """Categorical Fisher matrix of a network on digits; k of its eigenvalues are wanted, or all (`k=0`) as a density."""

    model: Any
    x: np.ndarray
    y: np.ndarray
    k: int
    norm: float = 0.0  # λ_max, for tolerances that are absolute

    @cached_property
    def F(self) -> Any:
        return fj.fisher(self.model, self.x, fj.Categorical())

    def multiply(self, V: Any) -> Any:
        """F V; on a CPU, convolutions vector by vector, which is 35 times faster there than a block."""
        if V.ndim == 2 and self.x.ndim == 4 and jax.default_backend() == "cpu":
            return np.stack([np.asarray(self.F @ v) for v in V.T], axis=1)
        return self.F @ V

    @property
    def seeds(self) -> tuple[int, ...]:
        """A density is as good as its random vectors: several draws."""
        return (0,) if self.k else (0, 1, 2, 3, 4)


def problem(part: str, small: bool) -> Problem:
    if small:
        x, y = fj.data.load("digits", samples=40)
        assert y is not None
        if part == "resnet10":
            model: Any = ResNet(channels=1, width=6, depth=1, outputs=10, rngs=nnx.Rngs(0))
            model.eval()
            return Problem(model, x.reshape(-1, 8, 8, 1), y, 3)
        model = fj.models.build("mlp", inputs=64, outputs=10, width=16, key=jax.random.key(0))
        return Problem(model, x, y, 5 if part == "mlp100" else 0)
    if part == "resnet10":
        return Problem(*digits_resnet(), 10)
    model, x, y = digits_mlp()
    return Problem(model, x, y, 100) if part == "mlp100" else Problem(model, x[:600], y[:600], 0)


def reference(problem: Problem) -> np.ndarray:
    """The wanted eigenvalues, descending, of K in float64: SciPy's LAPACK, or its ARPACK where that takes too long."""
    graphdef, params, rest = nnx.split(problem.model, nnx.Param, ...)
    params, rest = (jax.tree.map(lambda a: a.astype(jnp.float64), nnx.to_pure_dict(part)) for part in (params, rest))

    def apply(p: Any, x: Any) -> Any:
        return nnx.merge(graphdef, nnx.State(p), nnx.State(rest), copy=True)(x)

    K = np.asarray(fj.fisher(fj.Function(apply, params), problem.x.astype(np.float64), fj.Categorical()).gram())
    n, k = len(K), problem.k or len(K)
    if n <= DIRECT:
        values = scipy.linalg.eigh(K, eigvals_only=True, subset_by_index=[n - k, n - 1])
    else:
        values = scipy.sparse.linalg.eigsh(K, k, tol=1e-12, return_eigenvectors=False)  # type: ignore[arg-type]
    return np.maximum(np.sort(values)[::-1], 0)


# --- eigensolvers: problem -> (seed, setting) -> what was found -------------------------------------------------------


class Found(NamedTuple):
    values: Any  # (k,) descending
    vectors: Any  # (P, k), in the coordinates of `multiply`
    products: int
    multiply: Callable[[Any], Any]  # with the matrix that was given


class Counted:
    """A product with blocks as a SciPy operator of float32 that counts its columns."""

    def __init__(self, multiply: Callable[[Any], Any], size: int):
        self.multiply, self.products = multiply, 0
        self.operator: Any = scipy.sparse.linalg.LinearOperator(
            (size, size),
            matvec=self,  # type: ignore[call-arg]
            matmat=self,  # type: ignore[call-arg]
            dtype=np.dtype("float32"),  # type: ignore[call-arg]
        )

    def __call__(self, V: np.ndarray) -> np.ndarray:
        self.products += 1 if V.ndim == 1 else V.shape[1]
        return np.asarray(self.multiply(np.asarray(V, np.float32)))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ours(method: Any) -> Callable[[Problem], Any]:
    def prepare(problem: Problem) -> Any:
        F = problem.F

        def solve(seed: int) -> Found:
            top = fj.eigsh(F, problem.k, method=method, key=jax.random.key(seed))
            return Found(top.values, top.vectors, int(top.matvecs), problem.multiply)

        return solve

    return prepare


def sketch(problem: Problem) -> Any:
    F = problem.F

    def solve(seed: int) -> Found:
        empty = fj.Sketch(F.size, 2 * problem.k + 50, key=jax.random.key(seed))
        # Values are wanted however large their bounds are.
        top = empty.add(F, weight=len(problem.x)).eigsh(problem.k, tol=1e3)
        return Found(top.values, top.vectors, int(top.matvecs), problem.multiply)

    return solve


def arpack(problem: Problem) -> Any:
    F = problem.F

    def solve(seed: int, tol: float) -> Found:
        A = Counted(problem.multiply, F.size)
        values, vectors = scipy.sparse.linalg.eigsh(A.operator, problem.k, tol=tol, v0=normal(seed, F.size))  # type: ignore[arg-type]
        return Found(values[::-1], vectors[:, ::-1], A.products, problem.multiply)

    return solve


def arpack_dual(problem: Problem) -> Any:
    """What one who knows of K and of kept features can make of ARPACK."""
    F, k = problem.F, problem.k
    lift = jax.jit(lambda kept, u: kept.from_dual(u))

    def solve(seed: int, tol: float) -> Found:
        kept = F.prepared(1, 2 * k + 20)
        K = Counted(kept.dual.__matmul__, kept.dual.size)
        values, U = scipy.sparse.linalg.eigsh(K.operator, k, tol=tol, v0=normal(seed, kept.dual.size))  # type: ignore[arg-type]
        vectors = np.concatenate([np.asarray(lift(kept, u[:, None])) for u in U.T[::-1]], axis=1)
        vectors /= np.linalg.norm(vectors, axis=0)
        return Found(values[::-1], vectors, K.products + -(-k // 2), problem.multiply)

    return solve


def lobpcg(problem: Problem) -> Any:
    F = problem.F

    def solve(seed: int, tol: float) -> Found:
        A, X = Counted(problem.multiply, F.size), normal(seed, F.size, problem.k)
        values, vectors = scipy.sparse.linalg.lobpcg(A.operator, X, tol=tol * problem.norm, maxiter=1000)[:2]
        return Found(values, vectors, A.products, problem.multiply)

    return solve


def lobpcg_standard(problem: Problem) -> Any:
    from jax.experimental.sparse.linalg import lobpcg_standard

    F, k = problem.F, problem.k

    def multiply(V: Any) -> Any:  # one function, so that it compiles once
        return F.matmat(V)

    def solve(seed: int, iterations: int) -> Found:
        values, vectors, done = lobpcg_standard(multiply, jnp.asarray(normal(seed, F.size, k)), m=iterations, tol=0.0)
        return Found(values, vectors, k + 4 * k * int(done), problem.multiply)

    return solve


def primme(problem: Problem) -> Any:
    import primme  # type: ignore

    F = problem.F

    def solve(seed: int, tol: float) -> Found:
        A = Counted(problem.multiply, F.size)
        values, vectors = primme.eigsh(A.operator, problem.k, which="LA", tol=tol, v0=normal(seed, F.size, 1))
        return Found(values, vectors, A.products, problem.multiply)

    return solve


def curvlinops(problem: Problem) -> Any:
    import twins

    inner = twins.gauss_newton(problem.model, problem.x, problem.y).to_scipy()

    def solve(seed: int, tol: float) -> Found:
        A = Counted(inner.dot, inner.shape[0])
        values, vectors = scipy.sparse.linalg.eigsh(A.operator, problem.k, tol=tol, v0=normal(seed, A.operator.shape[0]))  # type: ignore[arg-type]
        return Found(values[::-1], vectors[:, ::-1], A.products, lambda V: inner.dot(np.ascontiguousarray(V)))

    return solve


def power_iteration(problem: Problem) -> Any:
    import torch  # type: ignore
    import twins

    G = twins.gauss_newton(problem.model, problem.x, problem.y)
    peer = twins.pyhessian(problem.model, G)

    def multiply(V: Any) -> Any:
        return (G @ torch.from_numpy(np.ascontiguousarray(V, np.float32))).numpy()

    def solve(seed: int, tol: float, iterations: int) -> Found:
        torch.manual_seed(seed)
        before = G.products
        values, vectors = peer.eigenvalues(maxIter=iterations, tol=tol, top_n=problem.k)
        V = torch.stack([torch.cat([p.flatten() for p in v]) for v in vectors], dim=1).numpy()
        return Found(np.asarray(values), V, G.products - before, multiply)

    return solve


def judge_eigenpairs(problem: Problem, reference: np.ndarray, found: Found) -> dict[str, Any]:
    """True residuals from float32 products, ten columns at a time, in float64."""
    values, V = np.asarray(found.values, np.float64), np.asarray(found.vectors, np.float32)
    worst = []
    for start in range(0, len(values), 10):
        part = slice(start, start + 10)
        R = np.asarray(found.multiply(V[:, part]), np.float64) - V[:, part].astype(np.float64) * values[part]
        worst.append(np.linalg.norm(R, axis=0) / np.linalg.norm(V[:, part].astype(np.float64), axis=0))
    residual = float(np.concatenate(worst).max() / reference[0])
    error = float(np.max(np.abs(np.sort(values)[::-1] - reference) / reference))
    accuracy = {"true residual": residual, "error of a value": error, "of goal": residual / RESIDUAL}
    return {"products": found.products, **accuracy}


# --- densities: problem -> (seed, setting) -> the spectrum as places and counts ---------------------------------------


class Measure(NamedTuple):
    places: np.ndarray  # (g,)
    counts: np.ndarray  # (g,) eigenvalues at each; with those at zero, P in all
    products: int


def counted(size: int, places: Any, shares: Any, dimension: int, products: int) -> Measure:
    """Of `dimension` eigenvalues the given shares, the others zero."""
    shares = np.asarray(shares, np.float64).ravel()
    counts = np.append(dimension * shares / shares.sum(), size - dimension)
    return Measure(np.append(np.asarray(places, np.float64), 0), counts, products)


def our_density(method: Any, outliers: int = 0) -> Callable[[Problem], Any]:
    def prepare(problem: Problem) -> Any:
        F = problem.F

        def solve(seed: int, **setting: int) -> Measure:
            key, top = jax.random.key(seed), None
            if outliers:
                top = fj.eigsh(F, outliers, method=fj.Lanczos(tol=1e-3), key=key)
            d = fj.density(F, method=method(**setting), top=top, key=key)
            products = d.products + (0 if top is None else int(top.matvecs))
            bulk = counted(F.size - d.atoms.size, d.nodes, d.weights, d.dimension, products)
            return Measure(np.append(bulk.places, d.atoms), np.append(bulk.counts, np.ones(d.atoms.size)), products)

        return solve

    return prepare


def matfree(dual: bool) -> Callable[[Problem], Any]:
    def prepare(problem: Problem) -> Any:
        from matfree import decomp  # type: ignore

        F = problem.F
        side = F.dual if dual else F

        def multiply(v: Any, side: Any) -> Any:
            return side.matmat(v[:, None])[:, 0]

        @partial(jax.jit, static_argnums=(2, 3))
        def rules(side: Any, key: Any, steps: int, probes: int) -> Any:
            def rule(z: Any) -> Any:
                nodes, vectors = jnp.linalg.eigh(decomp.tridiag_sym(steps)(multiply, z, side).J_small)
                return nodes, vectors[0] ** 2

            return jax.vmap(rule)(jax.random.normal(key, (probes, side.size)))

        def solve(seed: int, steps: int, probes: int) -> Measure:
            nodes, weights = rules(side, jax.random.key(seed), steps, probes)
            return counted(F.size, nodes, weights, side.size, steps * probes)

        return solve

    return prepare


def papyan(nodes: bool) -> Callable[[Problem], Any]:
    """curvlinops: its smoothed density on a grid, or the nodes of its Lanczos runs, which are not smoothed."""

    def prepare(problem: Problem) -> Any:
        import torch  # type: ignore
        import twins
        from curvlinops import lanczos_approximate_spectrum  # type: ignore
        from curvlinops.papyan2020traces.spectrum import fast_lanczos  # type: ignore

        G = twins.gauss_newton(problem.model, problem.x, problem.y)

        def solve(seed: int, steps: int, probes: int) -> Measure:
            torch.manual_seed(seed)
            np.random.seed(seed)  # of ARPACK's start
            size, before = G.shape[0], G.products
            if nodes:
                runs = [fast_lanczos(G, steps) for _ in range(probes)]
                places, shares = (np.concatenate(a) for a in zip(*[(v, U[0] ** 2) for v, U in runs], strict=True))
            else:
                # It is told the lower end: from products alone it takes ARPACK longer than all else.
                places, shares = lanczos_approximate_spectrum(
                    G, steps, num_points=2**14, num_repeats=probes, boundaries=(0.0, None)
                )
            return counted(size, places, shares, size, G.products - before)

        return solve

    return prepare


def pyhessian_density(problem: Problem) -> Any:
    import torch  # type: ignore
    import twins

    G = twins.gauss_newton(problem.model, problem.x, problem.y)
    peer = twins.pyhessian(problem.model, G)
    torch.eig = twins.eig  # type: ignore

    def solve(seed: int, steps: int, probes: int) -> Measure:
        torch.manual_seed(seed)
        before = G.products
        places, shares = peer.density(iter=steps, n_v=probes)
        return counted(G.shape[0], np.ravel(places), shares, G.shape[0], G.products - before)

    return solve


def judge_density(problem: Problem, reference: np.ndarray, found: Measure) -> dict[str, Any]:
    """Wasserstein distance to the spectrum over the mean eigenvalue: what is moved over the trace, whatever is zero."""
    size = found.counts.sum()
    truth, counts = np.append(reference, 0), np.append(np.ones(len(reference)), size - len(reference))
    moved = size * scipy.stats.wasserstein_distance(found.places, truth, found.counts, counts)
    distance = float(moved / reference.sum())
    return {"products": found.products, "distance": distance, "of goal": distance / DISTANCE}


# --- rows -------------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    prepare: Callable[..., Any]
    settings: Sequence[dict[str, Any]] = ({},)  # from loose to tight; the first that reaches the goal is taken
    ours: bool = False
    note: str = ""


TOLERANCES = [{"tol": t} for t in (3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)]
ITERATIONS = [{"iterations": m} for m in (5, 8, 10, 12, 15, 20, 25, 30, 40, 60, 100)]
POWER = [{"tol": t, "iterations": 10**5} for t in (1e-4, 1e-5, 1e-6, 1e-7)]
STEPS = [
    {"steps": m, "probes": p}
    for m, p in ((10, 4), (20, 4), (30, 4), (40, 4), (40, 8), (40, 16), (80, 16), (80, 32), (80, 64), (80, 128))
]
DEGREES = [{"degree": d, "probes": p} for d, p in ((80, 8), (160, 16), (320, 16), (640, 16), (1280, 32), (2560, 64))]
GAUSS_NEWTON = "with the product of curvlinops: its own is of the Hessian"


def eigensolvers(part: str) -> dict[str, Row]:
    methods: dict[str, Any] = {
        "Auto": fj.Auto(tol=RESIDUAL),
        "Lanczos": fj.Lanczos(tol=RESIDUAL),
        "Lanczos, block 4": fj.Lanczos(tol=RESIDUAL, block=4),
        "Randomized": fj.Randomized(tol=RESIDUAL),
        "Gram": fj.Gram(tol=RESIDUAL),
        "Nystrom, tol 0.01": fj.Nystrom(tol=1e-2),
    }
    if part == "resnet10":  # K of all digits is too large for it
        methods["Dense"] = fj.Dense()
    rows = {f"fisher_jax {name}": Row(ours(method), ours=True) for name, method in methods.items()}
    rows |= {
        "fisher_jax Sketch, one pass": Row(sketch, ours=True),
        "SciPy ARPACK, F v": Row(arpack, TOLERANCES),
        "SciPy ARPACK, our K u": Row(arpack_dual, TOLERANCES, note="on the dual, with its kept features, vectors lifted"),
        "SciPy LOBPCG, F V": Row(lobpcg, TOLERANCES, note="told λ_max, for its absolute tolerance"),
        "JAX lobpcg_standard, F V": Row(lobpcg_standard, ITERATIONS),
        "PRIMME, F v": Row(primme, TOLERANCES),
        "curvlinops + ARPACK": Row(curvlinops, TOLERANCES),
    }
    if part == "resnet10":
        rows["PyHessian power iteration, its defaults"] = Row(
            power_iteration, [{"tol": 1e-3, "iterations": 100}], note=GAUSS_NEWTON
        )
        rows["PyHessian power iteration"] = Row(power_iteration, POWER, note=GAUSS_NEWTON)
    return rows


def densities() -> dict[str, Row]:
    return {
        "fisher_jax SLQ, defaults": Row(our_density(fj.SLQ), ours=True),
        "fisher_jax SLQ": Row(our_density(fj.SLQ), STEPS, ours=True),
        "fisher_jax SLQ, ten outliers exact": Row(our_density(fj.SLQ, 10), STEPS, ours=True),
        "fisher_jax KPM, defaults": Row(our_density(fj.KPM), ours=True),
        "fisher_jax KPM": Row(our_density(fj.KPM), DEGREES, ours=True),
        "matfree, F v": Row(matfree(False), STEPS),
        "matfree, our K u": Row(matfree(True), STEPS, note="on the dual"),
        "curvlinops density": Row(papyan(False), STEPS, note="smoothed; told the lower end"),
        "curvlinops Lanczos nodes": Row(papyan(True), STEPS, note="not smoothed"),
        "PyHessian density": Row(pyhessian_density, STEPS, note=f"{GAUSS_NEWTON}; with eigh for torch.eig, which is gone"),
    }


PARTS = {
    "mlp100": "100 largest eigenvalues, digits MLP 64-256-256-10, N = 1797",
    "resnet10": "10 largest eigenvalues, residual network of 7 convolutions, N = 512 digits",
    "density": "Density of the spectrum, digits MLP 64-256-256-10, N = 600",
}


def judge_of(part: str) -> Callable[[Problem, np.ndarray, Any], dict[str, Any]]:
    return judge_density if part == "density" else judge_eigenpairs


def rows_of(part: str) -> dict[str, Row]:
    return densities() if part == "density" else eigensolvers(part)
