"""Benchmarks of compilation: deep networks, from the call of `fj.fisher` to the first and to the second product.

    python benchmarks/compile.py [--only NAME]

Each network runs in a process of its own, without the compilation cache on disk; weights are made before the clock starts.
Writes benchmarks/results/compile_<platform>.json.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from run import table

import fisher_jax as fj
from fisher_jax.results import provenance

SAMPLES = 64


def _resmlp(**options: Any) -> tuple[Any, Any]:
    model = fj.models.build("resmlp", inputs=64, outputs=10, scale="depth", key=jax.random.key(0), **options)
    return model, _normal(64)


def _resnet(name: str, **options: Any) -> tuple[Any, Any]:
    return fj.models.build(name, key=jax.random.key(0), **options), _normal(32, 32, 3)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(SAMPLES, *shape)).astype(np.float32)


PROBLEMS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "residual perceptron, width 64, depth 100": lambda: _resmlp(depth=100),
    "the same, scanned": lambda: _resmlp(depth=100, scanned=True),
    "depth 1000, scanned": lambda: _resmlp(depth=1000, scanned=True),
    "ResNet-20": lambda: _resnet("resnet20"),
    "ResNet-110 of width 4": lambda: _resnet("resnet110", width=4),
}


def problem(name: str) -> dict[str, Any]:
    """Seconds of each step, and of both up to the first product, on the clock and of all cores together."""
    model, x = PROBLEMS[name]()
    jax.block_until_ready(jax.random.normal(jax.random.key(1), (2,)))  # the backend is up
    began, busy = time.perf_counter(), time.process_time()
    F = jax.block_until_ready(fj.fisher(model, x, fj.Categorical()))
    v = np.random.default_rng(1).normal(size=F.size).astype(np.float32)
    ends, work = [time.perf_counter()], []
    for _ in range(2):
        jax.block_until_ready(F @ v)
        ends.append(time.perf_counter())
        work.append(time.process_time() - busy)
    built, first, second = (b - a for a, b in zip([began, *ends], ends, strict=False))
    return {
        "network": name,
        "P": F.size,
        "fj.fisher s": built,
        "first F @ v s": first,
        "both s": built + first,
        "both, CPU s": work[0],
        "second F @ v s": second,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PROBLEMS), help="one network")
    parser.add_argument("--problem", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.problem:
        print(json.dumps(problem(options.problem)))
        return
    environment = {n: v for n, v in os.environ.items() if n != "JAX_COMPILATION_CACHE_DIR"}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "0"
    rows = []
    for name in PROBLEMS if options.only is None else [options.only]:
        command = [sys.executable, __file__, "--problem", name]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        rows.append(json.loads(found))
    table("From the network to the first product, with nothing compiled before", rows)
    if options.only is None:
        path = pathlib.Path(__file__).parent / "results" / f"compile_{jax.default_backend()}.json"
        path.write_text(json.dumps({"provenance": dict(provenance()), "compile": rows}, indent=1) + "\n")
        print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
