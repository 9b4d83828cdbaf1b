"""Benchmark: what `fj.Auto` takes beside the other methods, over a grid of problems.

    python benchmarks/auto.py [--only NAME] [--repeat 3]

Each method solves each problem to the same tolerance in this process, in turn; times are medians of compiled solves, the
first one, which compiles, is given beside them. Methods expected to take more than a minute, and those that missed the
tolerance for fewer pairs, are left out; so is `fj.Nystrom`, which is for few products, not for this tolerance. Writes
benchmarks/results/auto_<platform>.json.
"""

import argparse
import json
import math
import pathlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import scipy.sparse
from run import digits_mlp, digits_resnet, table

import fisher_jax as fj
from fisher_jax.results import provenance

TOL, LONGEST = 1e-6, 60.0


def wishart(n: int) -> np.ndarray:
    """Eigenvalues in a bulk without outliers: slow decay."""
    a = np.random.default_rng(0).normal(size=(2 * n, n)).astype(np.float32)
    return a.T @ a / (2 * n)


def decaying(n: int) -> np.ndarray:
    """Eigenvalues 1, 1/2, 1/3, ..."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0]
    matrix = (q / np.arange(1, n + 1)) @ q.T
    return ((matrix + matrix.T) / 2).astype(np.float32)


def laplacian(n: int) -> Any:
    """Of a square grid with random weights."""
    rng, side = np.random.default_rng(0), math.isqrt(n)
    grid = scipy.sparse.eye_array(side, k=1) + scipy.sparse.eye_array(side, k=-1)
    a = scipy.sparse.kronsum(grid, grid).tocoo()
    a.data *= rng.uniform(size=a.nnz)
    a = a + a.T
    return scipy.sparse.csr_array(scipy.sparse.diags_array(a.sum(axis=1)) - a, dtype=np.float32)


def mlp(samples: int, *, width: int = 256, depth: int = 2) -> Any:
    _, x, _ = digits_mlp()
    model = fj.models.build(
        "mlp", inputs=64, outputs=10, width=width, depth=depth + 1, bias_variance=0.0, key=jax.random.key(0)
    )
    return fj.fisher(model, x[:samples], fj.Categorical())


def resnet(samples: int) -> Any:
    model, x, _ = digits_resnet()
    return fj.fisher(model, x[:samples], fj.Categorical())


PROBLEMS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "explicit, 300 rows, bulk": (lambda: wishart(300), (1, 10, 100)),
    "explicit, 1000 rows, bulk": (lambda: wishart(1000), (1, 10, 100)),
    "explicit, 3000 rows, 1/i": (lambda: decaying(3000), (1, 10, 100)),
    "explicit, 3000 rows, bulk": (lambda: wishart(3000), (10,)),
    "explicit, 6000 rows, 1/i": (lambda: decaying(6000), (10, 100)),
    "sparse, 40000 rows": (lambda: laplacian(40_000), (10,)),
    "digits MLP, N = 50": (lambda: mlp(50), (1, 10, 100)),
    "digits MLP, N = 200": (lambda: mlp(200), (10, 100)),
    "digits MLP, N = 600": (lambda: mlp(600), (10, 100)),
    "digits MLP, N = 1797": (lambda: mlp(1797), (1, 10, 100)),
    "MLP of width 8, N = 1797, P = 682": (lambda: mlp(1797, width=8), (10, 100)),
    "MLP of width 2000, N = 200": (lambda: mlp(200, width=2000), (10,)),
    "ResNet, N = 64": (lambda: resnet(64), (10,)),
    "ResNet, N = 512": (lambda: resnet(512), (10,)),
}


def methods(plan: Any, tol: float) -> Iterator[tuple[str, Any]]:
    """Every method that applies and is not expected to take too long; `Auto` first, so that it compiles for all."""
    expected = {type(r.method).__name__: r.seconds for r in plan.routes}
    yield "Auto", fj.Auto(tol)
    if expected.get("Dense", math.inf) < LONGEST:
        yield "Dense", fj.Dense()
    if expected.get("Gram", math.inf) < LONGEST:
        yield "Gram", fj.Gram(tol)
        yield "Gram, block 4", fj.Gram(tol, block=4)
    for block in (1, 4, 8):
        yield f"Lanczos, block {block}", fj.Lanczos(tol, block=block)
    yield "Randomized", fj.Randomized(tol)


def solve(operator: Any, k: int, method: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fj.eigsh(operator, k, method=method, key=jax.random.key(0))
    jax.block_until_ready(result)
    return result, time.perf_counter() - began


def measure(name: str, operator: Any, k: int, repeat: int, missed: set[str]) -> list[dict[str, Any]]:
    plan, rows = fj.plan(operator, k, method=fj.Auto(TOL)), []
    print(f"\n{name}, k = {k}\n{plan}", flush=True)
    for label, method in methods(plan, TOL):
        if label in missed:
            continue
        try:
            result, first = solve(operator, k, method)
        except fj.ArgumentError:
            continue  # does not apply: no factor, or not positive semidefinite
        # A method ten times slower than the best so far is not repeated.
        hopeless = rows and first > LONGEST / 4
        times = [first] if hopeless else [solve(operator, k, method)[1] for _ in range(repeat)]
        done = int(np.asarray(result.converged).sum())
        if done < k:
            missed.add(label)
        rows.append(
            {
                "problem": name,
                "k": k,
                "method": label,
                "seconds": statistics.median(times),
                "first": first,
                "products": int(result.matvecs),
                "residual": float(np.max(np.asarray(result.residuals)) / float(result.values[0])),
                "converged": f"{done} of {k}",
                "taken": result.method if label == "Auto" else "",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", help="part of a problem's name")
    options = parser.parse_args()
    rows, summary = [], []
    for name, (make, counts) in PROBLEMS.items():
        if options.only and options.only not in name:
            continue
        operator, missed = make(), set()
        for k in counts:
            some = measure(name, operator, k, options.repeat, missed)
            table(f"{name}, k = {k}", [{c: r[c] for c in r if c not in ("problem", "k")} for r in some])
            whole = [r for r in some if r["converged"] == f"{k} of {k}"]
            auto, best = whole[0], min(whole[1:], key=lambda r: r["seconds"])
            summary.append(
                {
                    "problem": name,
                    "k": k,
                    "Auto takes": auto["taken"].split(" on ")[0],
                    "seconds": auto["seconds"],
                    "best": best["method"],
                    "its seconds": best["seconds"],
                    "ratio": auto["seconds"] / best["seconds"],
                }
            )
            rows += some
        jax.clear_caches()
    table("Auto beside the best of all", summary)
    print(f"worst ratio {max(r['ratio'] for r in summary):.2f}")
    if not options.only:
        platform = jax.default_backend()
        record = {"provenance": dict(provenance(None, np.float32)), "tol": TOL, "rows": rows, "summary": summary}
        path = pathlib.Path(__file__).parent / "results" / f"auto_{platform}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
