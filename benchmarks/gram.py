"""Benchmarks of the whole spectrum: building K against Jacobian-then-product, how its cost grows, and the largest problems.

    python benchmarks/gram.py [--only mlp|resnet20|transformer|growth|scale|digits|digits64|streamed]

Every method gives the same matrix (checked) from the same network and data, in this process, one after the other, after a
run on few samples that compiles. Rows of PyTorch, NNGeometry and ViViT need the `bench` extra and, for ViViT, `pip install
--no-deps vivit-for-pytorch`. The last four parts run each problem in a process of its own, for its peak memory.
Writes benchmarks/results/gram_<platform>.json.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from resnet import ResNet20
from run import digits_mlp, table
from transformer import Transformer

import fisher_jax as fj
from fisher_jax.results import provenance

CHUNK = 32


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - began, result


def matmul_rate() -> float:
    """The best of several products, right beside what it is compared with: other tenants slow the machine at times."""
    a = jnp.ones((4096, 4096), jnp.float32)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    jax.block_until_ready(multiply(a))
    return 2 * 4096**3 / min(seconds(lambda: multiply(a))[0] for _ in range(5))


# --- others -----------------------------------------------------------------------------------------------------------


def by_jax(model: nnx.Module, x: np.ndarray, blas: bool) -> np.ndarray:
    """`jax.jacrev` of one sample, vmapped over chunks; the product in JAX, or in NumPy, which knows A Aᵀ is symmetric."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    pure = nnx.to_pure_dict(params)

    @jax.jit
    def rows(p: Any, rest: Any, x: jax.Array) -> jax.Array:
        def one(row: jax.Array) -> jax.Array:
            J = jax.jacrev(lambda p: nnx.merge(graphdef, p, rest, copy=True)(row[None])[0])(p)
            return jnp.concatenate([a.reshape(a.shape[0], -1) for a in jax.tree.leaves(J)], axis=1)

        return jax.vmap(one)(x).reshape(x.shape[0] * 10, -1)

    size = sum(a.size for a in jax.tree.leaves(pure))
    A = np.empty((10 * len(x), size), np.float32)
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        A[10 * start : 10 * (start + len(part))] = rows(pure, rest, jnp.asarray(part))
    if blas:
        return A @ A.T / len(x)
    return np.asarray(jax.jit(lambda A: jnp.matmul(A, A.T, precision="highest") / len(x))(A))


def rivals() -> dict[str, Callable[[Any, np.ndarray], np.ndarray]]:
    found: dict[str, Callable[[Any, np.ndarray], np.ndarray]] = {
        "jax.jacrev, product in BLAS": lambda model, x: by_jax(model, x, True),
        "jax.jacrev, product in JAX": lambda model, x: by_jax(model, x, False),
    }
    try:
        import twins
    except ImportError:
        print("PyTorch is not installed: its rows are left out")
        return found
    return found | {
        "torch.func.jacrev, product in BLAS": lambda model, x: twins.jacobian_product(model, x, CHUNK),
        "NNGeometry": lambda model, x: twins.nngeometry_gram(model, x, len(x)),
        "ViViT": twins.vivit_gram,
    }


def compare(name: str, model: Any, x: np.ndarray, without: str = "") -> list[dict[str, Any]]:
    F = fj.fisher(model, x, fj.Gaussian())
    counted = dict(fj.plan(F).operations)["matrix"]
    jax.block_until_ready(F.gram())
    rate = matmul_rate()
    runs = [seconds(F.gram) for _ in range(3)]
    ours, K = statistics.median(s for s, _ in runs), np.asarray(runs[0][1])
    rate = max(rate, matmul_rate())
    row = {"problem": name, "method": "fisher_jax F.gram()", "s": ours, "ratio": 1.0, "difference": 0.0}
    rows = [row | {"share of matmul rate": counted / ours / rate}]
    for method, function in rivals().items():
        if method == without:
            continue
        try:
            function(model, x[:CHUNK])
        except Exception as error:  # what the others do not know how to do
            print(f"{name}: {method} does not run: {type(error).__name__}: {str(error)[:80]}", flush=True)
            continue
        taken, other = seconds(lambda function=function: function(model, x))
        # Of the whole: where a ReLU's input is zero to rounding, single entries may differ by more.
        difference = float(np.linalg.norm(K - other) / np.linalg.norm(other))
        assert difference < 1e-4, (method, difference)
        row = {"problem": name, "method": method, "s": taken, "ratio": taken / ours, "difference": difference}
        rows.append(row | {"share of matmul rate": float("nan")})
        print(f"{name}: {method}: {taken:.2f} s, {taken / ours:.1f} x", flush=True)
        del other
    return rows


def mlp() -> list[dict[str, Any]]:
    """Without the product in JAX, which does the work of A Aᵀ twice: five minutes."""
    model, x, _ = digits_mlp()
    return compare("digits MLP 64-256-256-10, N=1797", model, x, without="jax.jacrev, product in JAX")


def resnet20() -> list[dict[str, Any]]:
    model = ResNet20(outputs=10, rngs=nnx.Rngs(0))
    model.eval()
    x = np.random.default_rng(0).normal(size=(256, 32, 32, 3)).astype(np.float32)
    return compare("ResNet-20, N=256", model, x, without="NNGeometry")


def transformer() -> list[dict[str, Any]]:
    """2.4 million parameters, sequences of 16 tokens (as digits in patches of 2 x 2) and of 32."""
    rows = []
    for length in (16, 32):
        options = {"vocabulary": 64, "length": length, "width": 256, "depth": 3, "heads": 8, "outputs": 10}
        x = np.random.default_rng(0).integers(0, 64, (64, length)).astype(np.int32)
        rows += compare(f"transformer, T={length}, N=64", Transformer(**options, rngs=nnx.Rngs(0)), x)
    return rows


# --- growth -----------------------------------------------------------------------------------------------------------


def growth() -> list[dict[str, Any]]:
    """Exponents of the time of K in samples, outputs and parameters: log-log slopes between doublings."""

    def timed(samples: int, outputs: int, width: int) -> tuple[float, int]:
        model = fj.models.build("mlp", inputs=64, outputs=outputs, depth=4, width=width, key=jax.random.key(0))
        x = np.random.default_rng(0).normal(size=(samples, 64)).astype(np.float32)
        F = fj.fisher(model, x, fj.Gaussian())
        jax.block_until_ready(F.gram())
        return min(seconds(F.gram)[0] for _ in range(3)), F.size

    rows = []
    for name, settings in (
        ("N", [(n, 10, 512) for n in (400, 800, 1600)]),
        ("C", [(400, c, 512) for c in (10, 20, 40)]),
        ("P", [(200, 10, w) for w in (1024, 2048, 4096)]),
    ):
        runs = [timed(*s) for s in settings]
        sizes = [s["NC".index(name)] if name != "P" else run[1] for s, run in zip(settings, runs, strict=True)]
        slope = np.polyfit(np.log(sizes), np.log([r[0] for r in runs]), 1)[0]
        row = {"in": name, "sizes": str(sizes), "s": str([round(r[0], 3) for r in runs]), "exponent": float(slope)}
        rows.append(row | {"at most, by the plan": {"N": 2, "C": 2, "P": 1}[name]})
    return rows


# --- the largest problems, each in its own process --------------------------------------------------------------------


def _random(name: str, inputs: int, **options: Any) -> Any:
    model = fj.models.build(name, inputs=inputs, outputs=10, key=jax.random.key(0), **options)
    return fj.fisher(model, np.random.default_rng(0).normal(size=(256, inputs)).astype(np.float32), fj.Gaussian())


def _digits() -> Any:
    model, x, _ = digits_mlp()
    return fj.fisher(model, x, fj.Categorical())


def _digits_double() -> Any:
    jax.config.update("jax_enable_x64", True)
    model, x, _ = digits_mlp()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    pure = jax.tree.map(lambda a: a.astype(jnp.float64), nnx.to_pure_dict(params))
    function = fj.Function(lambda p, x: nnx.merge(graphdef, p, rest, copy=True)(x), pure)
    return fj.fisher(function, x.astype(np.float64), fj.Categorical())


PROBLEMS: dict[str, dict[str, Callable[[], Any]]] = {
    "scale": {
        "MLP 1000-4x22400-10, N=256": lambda: _random("mlp", 1000, depth=5, width=22400),
        "residual, skip over two, 4 blocks of width 13700, N=256": lambda: _random("resmlp", 13700, depth=4),
    },
    "digits": {"digits MLP, N=1797, float32": _digits},
    "digits64": {"digits MLP, N=1797, float64": _digits_double},
    "streamed": {
        "MLP 1000-11x32000-10 streamed, N=256": lambda: _random("mlp", 1000, depth=12, width=32000, streamed=True),
    },
}


def problem(part: str, name: str) -> dict[str, Any]:
    """Every eigenvalue, from the weights' key on: seconds in all, and the peak memory of this process."""
    began = time.perf_counter()
    F = PROBLEMS[part][name]()
    plan = fj.plan(F)
    built = time.perf_counter() - began
    found = fj.spectrum(F)
    print(found, file=sys.stderr)
    return {
        "problem": name,
        "P": F.size,
        "N·C": F.factor.shape[0],
        "s": time.perf_counter() - began,
        "of these for weights and plan": built,
        "planned s": plan.seconds,
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "planned GiB for K and features": plan.peak_bytes / 2**30,
        "resolved": int(found.values.size),
        "below rounding": found.unresolved,
    }


def largest(part: str) -> list[dict[str, Any]]:
    rows = []
    for name in PROBLEMS[part]:
        command = [sys.executable, __file__, "--problem", part, name]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    return rows


def main() -> None:
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "mlp": mlp,
        "resnet20": resnet20,
        "transformer": transformer,
        "growth": growth,
    } | {part: lambda part=part: largest(part) for part in PROBLEMS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(parts), help="one part")
    parser.add_argument("--problem", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.problem:
        print(json.dumps(problem(*options.problem)))
        return
    path = pathlib.Path(__file__).parent / "results" / f"gram_{jax.default_backend()}.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name, part in parts.items():
        if options.only in (None, name):
            results[name] = part()
            results["provenance"] = dict(provenance())
            table(name, results[name])
            path.write_text(json.dumps(results, indent=1, ensure_ascii=False).replace("NaN", "null") + "\n")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
