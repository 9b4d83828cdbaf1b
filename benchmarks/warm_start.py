"""Benchmark: products with all data that a start from known eigenvectors saves.

    python benchmarks/warm_start.py [--seeds 3] [--small]

The k largest eigenpairs of the digits MLP, from a random start, from the eigenvectors of part of the samples, from those of
an earlier step of training (Adam, batches of 64, the matrix is that after 100 steps), and from its own, which no other start
can beat. Products until the wanted pairs have converged, and in all, with the search for missed ones and the lifting;
medians over keys. Writes benchmarks/results/warm_start_<platform>.json; `--small` tries it out and writes nothing.
"""

import argparse
import json
import pathlib
import statistics
import warnings
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from run import digits_mlp, table

import fisher_jax as fj
from fisher_jax.results import provenance

STEPS = 100
EARLIER = (99, 90, 50, 0)


def training(model: Any, x: np.ndarray, y: np.ndarray) -> dict[int, Any]:
    """The model after 0, 50, 90, 99 and 100 steps."""
    optimizer, found = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param), {}

    @nnx.jit
    def step(model: Any, optimizer: Any, x: Any, y: Any) -> None:
        def loss(model: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    rng = np.random.default_rng(0)
    for number in range(STEPS + 1):
        if number in (*EARLIER, STEPS):
            found[number] = nnx.clone(model)
        batch = rng.integers(len(x), size=64)
        step(model, optimizer, x[batch], y[batch])
    return found


def solve(F: Any, k: int, method: Any, seed: int, v0: Any = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fj.eigsh(F, k, method=method, v0=v0, key=jax.random.key(seed))


def measure(k: int, tol: float, seeds: int, samples: int, parts: tuple[int, ...]) -> list[dict[str, Any]]:
    model, x, y = digits_mlp()
    x, y = x[:samples], y[:samples]
    steps = training(model, x, y)

    def matrix(step: int, count: int = samples) -> Any:
        return fj.fisher(steps[step], x[:count], fj.Categorical())

    starts = {"random": None}
    starts |= {f"of {count} of the samples": solve(matrix(STEPS, count), k, fj.Auto(tol), 9).vectors for count in parts}
    starts |= {f"after {s} of {STEPS} steps": solve(matrix(s), k, fj.Auto(tol), 9).vectors for s in EARLIER}
    starts["its own"] = solve(matrix(STEPS), k, fj.Auto(tol), 9).vectors
    F, rows = matrix(STEPS), []
    for method in (fj.Lanczos(tol), fj.Lanczos(tol, block=4), fj.Randomized(tol)):
        for name, v0 in starts.items():
            results = [solve(F, k, method, seed, v0) for seed in range(seeds)]
            row: dict[str, Any] = {"k": k, "tol": tol, "method": repr(method).split("(")[0], "start": name}
            if isinstance(method, fj.Lanczos):
                row["method"] += f", block {method.block}"
            row["to convergence"] = statistics.median(int(dict(r.info)["products_to_convergence"]) for r in results)
            row["in all"] = statistics.median(int(r.matvecs) for r in results)
            row["converged"] = min(int(r.converged.sum()) for r in results)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="few samples; nothing is written")
    options = parser.parse_args()
    samples, parts, counts = (100, (20,), (5,)) if options.small else (1797, (224, 600), (10, 100))
    rows = []
    path = pathlib.Path(__file__).parent / "results" / f"warm_start_{jax.default_backend()}.json"
    for k in counts:
        for tol in (1e-3, 1e-6):
            some = measure(k, tol, options.seeds, samples, parts)
            table(f"k = {k}, tol = {tol:g}", [{c: r[c] for c in r if c not in ("k", "tol")} for r in some])
            rows += some
            if not options.small:
                record = {"provenance": dict(provenance(None, np.float32)), "seeds": options.seeds, "rows": rows}
                path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
