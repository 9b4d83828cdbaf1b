"""Benchmarks: products against their floor, the eigensolver against others on equal work.

    python benchmarks/run.py [--repeat 15] [--only product|eigsh]

Prints tables and writes benchmarks/results/<platform>.json. Everything that is compared runs in this process, alternating,
after a warm-up; times are medians. Rows with curvlinops need the `bench` extra (PyTorch) and are left out without it.
"""

import argparse
import json
import pathlib
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from flax import nnx
from jax.experimental.sparse.linalg import lobpcg_standard
from resnet import ResNet

import fisher_jax as fj
from fisher_jax.results import provenance
from fisher_jax.structured import structured

K, RESIDUAL = 10, 1e-5


def timed(functions: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Median seconds of each function, run in turn so that a change of machine speed hits all alike.

    Each timed run follows an untimed one of the same function: BLAS threads of the one before spin on, and its data
    fills the caches.
    """
    for function in functions.values():
        jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeat):
        for name, function in functions.items():
            jax.block_until_ready(function())
            began = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    columns = list(rows[0])
    texts = [[f"{row[c]:.3g}" if isinstance(row[c], float) else str(row[c]) for c in columns] for row in rows]
    widths = [max(len(c), *(len(t[i]) for t in texts)) for i, c in enumerate(columns)]
    for line in (columns, *texts):
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))


# --- one product ------------------------------------------------------------------------------------------------------


def digits_mlp() -> tuple[Any, np.ndarray, np.ndarray]:
    x, y = fj.data.load("digits")
    assert y is not None
    return fj.models.build("mlp", inputs=64, outputs=10, bias_variance=0.0, key=jax.random.key(0)), x, y


def digits_resnet() -> tuple[Any, np.ndarray, np.ndarray]:
    x, y = fj.data.load("digits", samples=512)
    assert y is not None
    model = ResNet(channels=1, width=32, depth=3, outputs=10, rngs=nnx.Rngs(0))
    model.eval()
    return model, x.reshape(-1, 8, 8, 1), y


def products(repeat: int) -> list[dict[str, Any]]:
    """F v against `jax.value_and_grad` of the mean loss on the same samples: the floor is 4/3 (4 passes against 3)."""
    rows = []
    for name, (model, x, y) in (("MLP 64-256-256-10, N=1797", digits_mlp()), ("ResNet 3x2 conv, N=512", digits_resnet())):
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        pure = nnx.to_pure_dict(params)
        inputs, labels = jnp.asarray(x), jnp.asarray(y)

        def loss(
            p: Any, graphdef: Any = graphdef, rest: Any = rest, inputs: Any = inputs, labels: Any = labels
        ) -> jax.Array:
            return jnp.mean(fj.Categorical().nll(nnx.merge(graphdef, p, rest, copy=True)(inputs), labels))

        gradient = jax.jit(jax.value_and_grad(loss))
        stored, chunked = (fj.fisher(model, x, fj.Categorical(), chunk=c) for c in ("auto", -(-len(x) // 4)))
        kept = structured(stored.factor, True)
        assert kept is not None, "no memory"
        v = jax.random.normal(jax.random.key(1), (stored.size,))
        V = jax.random.normal(jax.random.key(1), (stored.size, 8))
        seconds = timed(
            {
                "value_and_grad": lambda gradient=gradient, pure=pure: gradient(pure),
                "F v, stored": lambda F=stored, v=v: F @ v,
                "K u, stored": lambda F=stored, u=stored.factor.matmat(v): F.dual @ u,
                "F v, 4 chunks": lambda F=chunked, v=v: F @ v,
                "F V / 8, stored": lambda F=stored, V=V: F @ V,
                "F v, kept features": lambda F=kept, v=v: F @ v,
                "F V / 8, kept features": lambda F=kept, V=V: F @ V,
            },
            repeat,
        )
        for name_of_block in (what for what in seconds if " / 8" in what):
            seconds[name_of_block] /= 8
        for what, value in seconds.items():
            rows.append({"network": name, "what": what, "ms": 1e3 * value, "ratio": value / seconds["value_and_grad"]})
    return rows


# --- the ten largest eigenvalues --------------------------------------------------------------------------------------


def true_residual(F: Any, values: Any, vectors: Any) -> float:
    V = jnp.asarray(vectors, jnp.float32)
    R = np.asarray(F @ V, np.float64) - np.asarray(V, np.float64) * np.asarray(values, np.float64)
    return float(np.linalg.norm(R, axis=0).max() / np.max(values))


def ours(F: Any, seed: int) -> tuple[Any, Any, int]:
    top = fj.eigsh(F, K, method=fj.Lanczos(tol=RESIDUAL), key=jax.random.key(seed))
    return top.values, top.vectors, int(top.matvecs)


def arpack(F: Any, seed: int, tol: float) -> tuple[Any, Any, int]:
    count = 0

    def product(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return np.asarray(F @ jnp.asarray(v.reshape(-1), jnp.float32))

    operator = scipy.sparse.linalg.LinearOperator(F.shape, matvec=product, dtype=np.dtype("float32"))  # type: ignore[call-arg]
    start = np.random.default_rng(seed).normal(size=F.size).astype(np.float32)
    values, vectors = scipy.sparse.linalg.eigsh(operator, K, tol=tol, v0=start)  # type: ignore[arg-type]
    return values[::-1], vectors[:, ::-1], count


def lobpcg(F: Any, seed: int, iterations: int) -> tuple[Any, Any, int]:
    start = jax.random.normal(jax.random.key(seed), (F.size, K))
    values, vectors, done = lobpcg_standard(lambda V: F.matmat(V), start, m=iterations, tol=0.0)
    return values, vectors, K * (int(done) + 1)


def curvlinops(model: Any, x: np.ndarray, y: np.ndarray) -> tuple[Any, Callable[[float], tuple[Any, Any, int]]] | None:
    """The same network, data and weights as a curvlinops Gauss–Newton operator, through SciPy."""
    try:
        import torch  # type: ignore
        from curvlinops import GGNLinearOperator  # type: ignore
    except ImportError:
        return None
    layers: list[Any] = []
    for i, layer in enumerate(model.layers):
        linear = torch.nn.Linear(*layer.kernel[...].shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.array(layer.kernel[...]).T.copy()))
            linear.bias.copy_(torch.from_numpy(np.array(layer.bias[...])))
        layers += [linear] if i == len(model.layers) - 1 else [linear, torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers)
    data = [(torch.from_numpy(np.array(x)), torch.from_numpy(np.array(y)).long())]
    operator: Any = GGNLinearOperator(network, torch.nn.CrossEntropyLoss(), list(network.parameters()), data)
    inner = operator.to_scipy()
    size = inner.shape[0]

    def solve(tol: float) -> tuple[Any, Any, int]:
        count = 0

        def product(v: np.ndarray) -> np.ndarray:
            nonlocal count
            count += 1
            return inner.matvec(v.astype(np.float32).reshape(-1))

        wrapped = scipy.sparse.linalg.LinearOperator((size, size), matvec=product, dtype=np.dtype("float32"))  # type: ignore[call-arg]
        start = np.random.default_rng(0).normal(size=size).astype(np.float32)
        values, vectors = scipy.sparse.linalg.eigsh(wrapped, K, tol=tol, v0=start)  # type: ignore[arg-type]
        return values[::-1], vectors[:, ::-1], count

    return inner, solve


def loosest(solve: Callable[[Any], tuple[Any, Any, int]], options: list[Any], residual: Callable[..., float]) -> Any:
    """The first setting, from loose to tight, whose true residual is small enough: rivals are not made to work harder."""
    for option in options:
        values, vectors, _ = solve(option)
        if residual(values, vectors) <= RESIDUAL:
            return option
    return options[-1]


def eigensolvers(repeat: int) -> list[dict[str, Any]]:
    """Top 10 of the digits MLP to a true residual of 1e-5 λ_max, over the same compiled product."""
    model, x, y = digits_mlp()
    F = fj.fisher(model, x, fj.Categorical())

    def residual(values: Any, vectors: Any) -> float:
        return true_residual(F, values, vectors)

    tolerances = [3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6]
    tol = loosest(lambda t: arpack(F, 0, t), tolerances, residual)
    iterations = loosest(lambda m: lobpcg(F, 0, m), [5, 8, 10, 12, 15, 20, 25, 30, 40, 60], residual)
    solvers: dict[str, Callable[[], tuple[Any, Any, int]]] = {
        "fisher_jax Lanczos": lambda: ours(F, 0),
        f"SciPy ARPACK, tol={tol:g}": lambda: arpack(F, 0, tol),
        f"JAX lobpcg_standard, m={iterations}": lambda: lobpcg(F, 0, iterations),
    }
    rival = curvlinops(model, x, y)
    if rival is not None:
        inner, solve = rival

        def rival_residual(values: Any, vectors: Any) -> float:
            R = inner.matmat(np.ascontiguousarray(vectors, np.float32)) - vectors * values
            return float(np.linalg.norm(R, axis=0).max() / values.max())

        rival_tol = loosest(solve, tolerances, rival_residual)
        solvers[f"curvlinops + ARPACK, tol={rival_tol:g}"] = lambda: solve(rival_tol)
    seconds = timed(solvers, repeat)
    rows = []
    for name, solver in solvers.items():
        values, vectors, count = solver()
        measured = rival_residual(values, vectors) if name.startswith("curv") else residual(values, vectors)
        rows.append(
            {
                "solver": name,
                "s": seconds[name],
                "ratio": seconds[name] / seconds["fisher_jax Lanczos"],
                "products": count,
                "true residual": measured,
                "lambda_1": float(values[0]),
                "lambda_10": float(values[-1]),
            }
        )
    # Products over several starts, ours split into what reaches the residual and what certifies it.
    counts = {"ours, all": [], "ours, to the residual": [], "ARPACK": []}
    for seed in range(5):
        top = fj.eigsh(F, K, method=fj.Lanczos(tol=RESIDUAL), key=jax.random.key(seed))
        counts["ours, all"].append(int(top.matvecs))
        counts["ours, to the residual"].append(int(dict(top.info)["products_to_convergence"]))
        own = loosest(lambda t, s=seed: arpack(F, s, t), tolerances, residual)
        counts["ARPACK"].append(arpack(F, seed, own)[2])
    for name, numbers in counts.items():
        rows.append(
            {
                "solver": f"products over 5 starts: {name}",
                "s": float("nan"),
                "ratio": float("nan"),
                "products": f"{statistics.median(numbers):g} {numbers}",
                "true residual": float("nan"),
                "lambda_1": float("nan"),
                "lambda_10": float("nan"),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=15, help="timed runs of each (default: 15)")
    parser.add_argument("--only", choices=["product", "eigsh"], help="one part")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {"provenance": dict(provenance())}
    if options.only != "eigsh":
        results["products"] = products(options.repeat)
        table("One product, against loss and gradient on the same samples (floor 1.33)", results["products"])
    if options.only != "product":
        results["eigensolvers"] = eigensolvers(max(3, options.repeat // 3))
        table(f"Top {K} of the exact Fisher matrix, digits MLP, true residual {RESIDUAL:g}", results["eigensolvers"])
    if options.only is None:
        path = pathlib.Path(__file__).parent / "results" / f"{jax.default_backend()}.json"
        path.write_text(json.dumps(results, indent=1).replace("NaN", "null") + "\n")
        print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
