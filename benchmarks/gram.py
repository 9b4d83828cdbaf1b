"""Benchmarks of the whole spectrum: building K against Jacobian-then-product, and how its cost grows.

    python benchmarks/gram.py [--only mlp|resnet20|growth|full]

Every method gives the same matrix (checked) from the same network and data, in this process, one after the other, after a
run on few samples that compiles. PyTorch rows need the `bench` extra. Writes benchmarks/results/gram_<platform>.json.
"""

import argparse
import json
import pathlib
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from resnet import ResNet20
from run import digits_mlp, table

import fisher_jax as fj
from fisher_jax.results import provenance

CHUNK = 32


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - began, result


def matmul_rate() -> float:
    a = jnp.ones((4096, 4096), jnp.float32)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    jax.block_until_ready(multiply(a))
    return 2 * 4096**3 / min(seconds(lambda: multiply(a))[0] for _ in range(3))


def by_jax(model: nnx.Module, x: np.ndarray) -> np.ndarray:
    """`jax.jacrev` of one sample, vmapped over chunks; the product in BLAS, which knows that A Aᵀ is symmetric."""
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
    return A @ A.T / len(x)


def by_torch(model: Any, x: np.ndarray) -> np.ndarray | None:
    """The same with `torch.func`, for the MLP."""
    try:
        import torch  # type: ignore
    except ImportError:
        return None
    layers: list[Any] = []
    for i, layer in enumerate(model.layers):
        linear = torch.nn.Linear(*layer.kernel[...].shape, bias=layer.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.array(layer.kernel[...]).T.copy()))
            if layer.bias is not None:
                linear.bias.copy_(torch.from_numpy(np.array(layer.bias[...])))
        layers += [linear] if i == len(model.layers) - 1 else [linear, torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers)
    params = {k: v.detach() for k, v in network.named_parameters()}

    def one(p: Any, row: Any) -> Any:
        return torch.func.functional_call(network, p, (row[None],))[0]

    jacobian = torch.func.vmap(torch.func.jacrev(one), (None, 0))
    A = torch.empty((10 * len(x), sum(p.numel() for p in params.values())))
    for start in range(0, len(x), CHUNK):
        part = torch.from_numpy(np.array(x[start : start + CHUNK]))
        J = jacobian(params, part)
        A[10 * start : 10 * (start + len(part))] = torch.cat([v.reshape(10 * len(part), -1) for v in J.values()], dim=1)
    return (A @ A.T / len(x)).numpy()


def compare(name: str, model: Any, x: np.ndarray, torch: bool) -> list[dict[str, Any]]:
    def operator(x: np.ndarray) -> Any:
        return fj.fisher(model, x, fj.Gaussian())

    F = operator(x)
    plan = fj.plan(F)
    rate = matmul_rate()
    jax.block_until_ready(F.gram())
    ours, K = min((seconds(F.gram) for _ in range(3)), key=lambda run: run[0])
    counted = dict(plan.operations)["matrix"]
    rows = [
        {
            "problem": name,
            "method": "fisher_jax F.gram()",
            "s": ours,
            "ratio": 1.0,
            "share of matmul rate": counted / ours / rate,
            "difference": 0.0,
        }
    ]
    rivals: list[tuple[str, Callable[..., Any]]] = [("jax.jacrev + BLAS", by_jax)]
    if torch:
        rivals.append(("torch.func + BLAS", by_torch))
    for method, function in rivals:
        if function(model, x[:CHUNK]) is None:
            continue
        taken, other = seconds(lambda function=function: function(model, x))
        difference = float(np.abs(np.asarray(K) - other).max() / np.abs(other).max())
        assert difference < 1e-4, difference
        rows.append(
            {
                "problem": name,
                "method": method,
                "s": taken,
                "ratio": taken / ours,
                "share of matmul rate": float("nan"),
                "difference": difference,
            }
        )
        del other
    return rows


def resnet20(samples: int) -> tuple[Any, np.ndarray]:
    model = ResNet20(outputs=10, rngs=nnx.Rngs(0))
    model.eval()
    return model, np.random.default_rng(0).normal(size=(samples, 32, 32, 3)).astype(np.float32)


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
        ("N", [(n, 10, 512) for n in (200, 400, 800)]),
        ("C", [(200, c, 512) for c in (10, 20, 40)]),
        ("P", [(200, 10, w) for w in (1024, 2048, 4096)]),
    ):
        runs = [timed(*s) for s in settings]
        sizes = [s["NC".index(name)] if name != "P" else run[1] for s, run in zip(settings, runs, strict=True)]
        slope = np.polyfit(np.log(sizes), np.log([r[0] for r in runs]), 1)[0]
        expected = {"N": 2, "C": 2, "P": 1}[name]
        rows.append({"in": name, "sizes": str(sizes), "s": str([round(r[0], 3) for r in runs]), "exponent": float(slope)})
        rows[-1]["at most, by the plan"] = expected
    return rows


def full() -> list[dict[str, Any]]:
    """All 17970 eigenvalues of the digits MLP."""
    model, x, _ = digits_mlp()
    taken, found = seconds(lambda: fj.spectrum(fj.fisher(model, x, fj.Categorical())))
    print(found)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [{"problem": "digits MLP, every eigenvalue", "s": taken, "resolved": int(found.values.size), "peak GiB": peak}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["mlp", "resnet20", "growth", "full"], help="one part")
    options = parser.parse_args()
    path = pathlib.Path(__file__).parent / "results" / f"gram_{jax.default_backend()}.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results["provenance"] = dict(provenance())

    def digits() -> list[dict[str, Any]]:
        model, x, _ = digits_mlp()
        return compare("digits MLP 64-256-256-10, N=1797", model, x, torch=True)

    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "mlp": digits,
        "resnet20": lambda: compare("ResNet-20, N=256", *resnet20(256), torch=False),
        "growth": growth,
        "full": full,
    }
    for name, part in parts.items():
        if options.only in (None, name):
            results[name] = part()
            table(name, results[name])
            path.write_text(json.dumps(results, indent=1).replace("NaN", "null") + "\n")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
