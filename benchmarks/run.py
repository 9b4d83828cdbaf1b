"""Benchmark: products with the Fisher matrix against their floor, loss and gradient on the same samples.

    python benchmarks/run.py [--repeat 15]

Prints a table and writes benchmarks/results/<platform>.json. Everything that is compared runs in this process, in turn,
after a warm-up; times are medians.
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
from flax import nnx
from resnet import ResNet

import fisher_jax as fj
from fisher_jax.results import provenance
from fisher_jax.structured import structured


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=15, help="timed runs of each (default: 15)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {"provenance": dict(provenance())}
    results["products"] = products(options.repeat)
    table("One product, against loss and gradient on the same samples (floor 1.33)", results["products"])
    path = pathlib.Path(__file__).parent / "results" / f"{jax.default_backend()}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
