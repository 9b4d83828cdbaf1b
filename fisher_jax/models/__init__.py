"""Architectures in Flax NNX, one readable file each. A new one is one file and one line in `MODELS`."""

import inspect
from typing import Any

import jax
from flax import nnx

from fisher_jax import _checks, linalg
from fisher_jax.models.checkpoint import load_weights as load_weights
from fisher_jax.models.checkpoint import save_weights as save_weights
from fisher_jax.models.densemlp import DenseMLP as DenseMLP
from fisher_jax.models.mlp import MLP as MLP
from fisher_jax.models.resmlp import ResMLP as ResMLP
from fisher_jax.models.streaming import stream

MODELS: dict[str, Any] = {"mlp": MLP, "resmlp": ResMLP, "densemlp": DenseMLP}


def options(name: str) -> dict[str, Any]:
    """The options of a model with their defaults."""
    if name not in MODELS:
        raise _checks.fail("models.build", f"model={name!r} is unknown", f"choose among {', '.join(sorted(MODELS))}")
    parameters = inspect.signature(MODELS[name].__init__).parameters
    return {n: p.default for n, p in parameters.items() if p.default is not inspect.Parameter.empty}


def build(name: str, *, inputs: int, outputs: int, key: jax.Array, streamed: bool = False, **chosen: Any) -> Any:
    """A network at initialization.

    Args:
        name: one of `MODELS`: "mlp", "resmlp".
        inputs: features of a sample. outputs: of the network.
        key: JAX random key for the weights.
        streamed: do not store the weights but make them from the key whenever they are needed, layer by layer: for
            `fj.spectrum` of networks larger than memory.
        chosen: options of the model, see its class.

    Returns:
        nnx.Module in evaluation mode, mapping `(N, inputs)` to `(N, outputs)`; or the `fj.Streamed` of equal weights.

    Raises:
        ArgumentError: unknown model or option, or a value that does not fit.
    """
    known = options(name)
    _checks.integer("models.build", "inputs", inputs, 1)
    _checks.integer("models.build", "outputs", outputs, 1)
    for option, value in chosen.items():
        if option not in known:
            raise _checks.fail(f"model {name}", f"option {option}={value!r} is unknown", f"it has {', '.join(known)}")
    for counted in ("depth", "width", "growth"):
        if chosen.get(counted) is not None:
            _checks.integer(f"model {name}", counted, chosen[counted], 1)
    if streamed:
        return stream(MODELS[name].pieces(inputs=inputs, outputs=outputs, **(known | chosen)), key)
    _require_room(name, inputs, outputs, known | chosen)
    rngs = nnx.Rngs(params=key, dropout=jax.random.fold_in(key, 1))
    model = MODELS[name](inputs=inputs, outputs=outputs, rngs=rngs, **chosen)
    model.eval()
    return model


def _require_room(name: str, inputs: int, outputs: int, chosen: dict[str, Any]) -> None:
    """Refuse weights larger than memory, before the system ends the process for them."""
    widest = max(inputs, outputs, chosen.get("width") or 0)
    if chosen["depth"] * widest**2 < 2**26:  # too few to matter, whatever the architecture
        return
    model = nnx.eval_shape(lambda: MODELS[name](inputs=inputs, outputs=outputs, rngs=nnx.Rngs(0), **chosen))
    taken = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(nnx.state(model, nnx.Param)))
    if taken > (free := linalg.free_memory()):
        raise _checks.fail(
            f"model {name}",
            f"weights take {taken / 2**30:.3g} GiB of {free / 2**30:.3g} GiB free",
            "give streamed=True (--streamed), which does not keep them, or a smaller width or depth",
        )
