"""Models as pure functions: the engine's one contact with Flax.

A model enters as an `nnx.Module`, a Linen module with its variables, or any `apply(params, x)`. It leaves as a `Network`: a
function of a tuple of selected parameter arrays, checked to be deterministic and to treat every sample by itself.
"""

import dataclasses
import fnmatch
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from fisher_jax import _checks
from fisher_jax._record import record, static

Array = jax.Array


@record
class Function:
    """A model as a plain function: `apply(params, x)` with `x` a batch `(N, ...)`, acting sample by sample.

    Args:
        apply: returns `(N, C)`, `(N, T, C)` or a pytree of those.
        params: pytree of arrays; integer and boolean leaves are kept fixed.
    """

    apply: Any
    params: Any

    def __call__(self, x: Any) -> Any:
        return self.apply(self.params, x)


@dataclasses.dataclass(frozen=True)
class _NnxApply:
    """Rebuild an nnx.Module and call it; compared by graph definition, so equal modules share a compilation."""

    graphdef: Any

    def __call__(self, rest: Any, params: Any, x: Any) -> Any:
        from flax import nnx

        return nnx.merge(self.graphdef, params, rest, copy=True)(x)


@dataclasses.dataclass(frozen=True)
class _LinenApply:
    module: Any

    def __call__(self, rest: Any, params: Any, x: Any) -> Any:
        return self.module.apply({"params": params, **rest}, x)


def from_linen(module: Any, variables: Any) -> Function:
    """A Linen module with its variables as a `Function`.

    Args:
        module: the `flax.linen.Module`, in evaluation mode (dropout off, running statistics in batch norm).
        variables: what `module.init` returned; "params" is differentiated, the other collections stay fixed.
    """
    rest = {name: value for name, value in variables.items() if name != "params"}
    if "params" not in variables:
        raise _checks.fail("from_linen", f"variables has {sorted(variables)}, no 'params'", "pass module.init(...)")
    return Function(Partial(_LinenApply(module), rest), variables["params"])


def as_function(model: Any, where: str) -> Function:
    """`model` as a `Function` whose `apply` is a pytree; an nnx.Module in training mode is refused."""
    if isinstance(model, Function):
        apply = model.apply if isinstance(model.apply, Partial) else Partial(model.apply)
        return Function(apply, model.params)
    # An nnx.Module can only exist if Flax was imported: do not pay for the import otherwise.
    if "flax.nnx" in sys.modules:
        from flax import nnx

        if isinstance(model, nnx.Module):
            _refuse_training_mode(model, where)
            graphdef, params, rest = nnx.split(model, nnx.Param, ...)
            return Function(Partial(_NnxApply(graphdef), rest), nnx.to_pure_dict(params))
    if "flax.linen" in sys.modules:
        from flax import linen

        if isinstance(model, linen.Module):
            raise _checks.fail(
                where, f"model={type(model).__name__} is a Linen module without weights", "pass fj.from_linen(...)"
            )
    raise _checks.fail(
        where, f"model={type(model).__name__} is not a model", "pass an nnx.Module, fj.from_linen(...) or fj.Function(...)"
    )


def _refuse_training_mode(model: Any, where: str) -> None:
    from flax import nnx

    for path, module in nnx.iter_modules(model):
        label = f"{type(module).__name__} '{'/'.join(map(str, path))}'"
        if isinstance(module, nnx.BatchNorm) and not module.use_running_average:
            raise _checks.fail(
                where,
                f"model has {label} in training mode, where samples of a batch depend on each other",
                "call model.eval() to use the running statistics",
            )
        if isinstance(module, nnx.Dropout) and module.rate > 0 and not module.deterministic:
            raise _checks.fail(where, f"model has {label} active with rate={module.rate}", "call model.eval()")


@record
class Network:
    """A model as a function of its selected parameters: `network(params, x)` with `params` a tuple of arrays.

    Vectors of parameter space, `(P,)`, are these arrays raveled and concatenated in the order of the model's pytree.
    """

    apply: Any  # Partial: apply(params tree, x)
    params: tuple[Array, ...]  # selected leaves, differentiated
    fixed: tuple[Array, ...]  # all other leaves
    treedef: Any = static()
    chosen: tuple[bool, ...] = static()

    def __call__(self, params: tuple[Array, ...], x: Any) -> Any:
        return self.apply(self._join(params, self.fixed), x)

    @property
    def size(self) -> int:
        return sum(p.size for p in self.params)

    @property
    def dtype(self) -> Any:
        return jnp.result_type(*self.params)

    def split(self, v: Array) -> tuple[Array, ...]:
        """`(P,)` -> tuple of arrays like `params`."""
        return ravel_pytree(self.params)[1](v)

    def ravel(self, params: tuple[Array, ...]) -> Array:
        """Tuple of arrays like `params` -> `(P,)`."""
        return ravel_pytree(params)[0]

    def unravel(self, v: Array) -> Any:
        """`(P,)` -> the model's parameter pytree; parameters that were not selected are zero."""
        return self._join(self.split(v), tuple(jnp.zeros_like(f) for f in self.fixed))

    def _join(self, params: tuple[Array, ...], fixed: tuple[Array, ...]) -> Any:
        selected, rest = iter(params), iter(fixed)
        return self.treedef.unflatten([next(selected) if c else next(rest) for c in self.chosen])


def network(model: Any, where: str, select: str | Callable[[str], bool] | None) -> Network:
    """Select parameters by path: a glob such as `"blocks/0"` or `"*/kernel"`, or a predicate; all when None."""
    function = as_function(model, where)
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(function.params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in with_paths]
    leaves = [jnp.asarray(leaf) for _, leaf in with_paths]
    differentiable = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    for path, leaf in zip(paths, leaves, strict=True):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise _checks.fail(where, f"parameter {path} is {leaf.dtype}", "give real parameters (real and imaginary part)")
    chosen = tuple(d and _matches(select, p) for p, d in zip(paths, differentiable, strict=True))
    if not any(chosen):
        listed = ", ".join(paths[:8]) + (", ..." if len(paths) > 8 else "")
        raise _checks.fail(
            where, f"where={select!r} selects no parameter", f"choose among {listed or 'none: the model has none'}"
        )
    net = Network(
        function.apply,
        tuple(leaf for leaf, c in zip(leaves, chosen, strict=True) if c),
        tuple(leaf for leaf, c in zip(leaves, chosen, strict=True) if not c),
        treedef,
        chosen,
    )
    _checks.finite(where, "params", dict(zip(paths, leaves, strict=True)), "load weights without NaN")
    return net


def _matches(select: str | Callable[[str], bool] | None, path: str) -> bool:
    if select is None:
        return True
    if callable(select):
        return bool(select(path))
    return fnmatch.fnmatchcase(path, select) or fnmatch.fnmatchcase(path, select.rstrip("/") + "/*")


def output_structure(net: Network, x: Any, where: str) -> Any:
    """Shapes of the outputs of one sample (leading axis removed); the batch axis is checked to be kept."""
    three = jax.tree.map(lambda a: jax.ShapeDtypeStruct((3, *a.shape[1:]), a.dtype), x)
    try:
        outputs = jax.eval_shape(net, net.params, three)
    except (TypeError, ValueError) as error:
        shapes = [tuple(a.shape[1:]) for a in jax.tree.leaves(x)]
        reason = str(error).strip().splitlines()[0]
        raise _checks.fail(where, f"model rejects samples of shape {shapes} ({reason})", "match x to the model") from error
    for leaf in jax.tree.leaves(outputs):
        if leaf.ndim < 2 or leaf.shape[0] != 3:
            raise _checks.fail(
                where, f"model maps 3 samples to an output of shape {leaf.shape}", "return (N, C), (N, T, C) or a pytree"
            )
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), outputs)


def check_rules(net: Network, x: Any, where: str) -> None:
    """Refuse a model that is random, or whose output for a sample depends on the rest of the batch or on its place.

    Costs one compilation and three evaluations of two samples, and a second trace. A per-sample gradient exists for none
    of the refused models, and chunked sums over samples would be wrong without a sign.
    """
    first = jax.tree.map(lambda a: jnp.asarray(a[:1]), x)
    last = jax.tree.map(lambda a: jnp.asarray(a[-1:]), x)

    def altered(a: Any) -> Any:
        # Another neighbour: features rolled by one (token numbers stay valid), real ones also of other mean and size.
        a = jnp.roll(a.reshape(-1), 1).reshape(a.shape)
        return 2 * a + 1 if jnp.issubdtype(a.dtype, jnp.floating) else a

    rolled = jax.tree.map(altered, last)

    def pair(a: Any, b: Any) -> Any:
        return jax.tree.map(lambda u, v: jnp.concatenate([u, v]), a, b)

    def evaluate(net: Network, x: Any) -> Any:
        return net(net.params, x)

    run = jax.jit(evaluate)
    base = run(net, pair(first, last))
    rules = [
        ("is not deterministic: two evaluations differ", jax.jit(lambda n, x: evaluate(n, x))(net, pair(first, last)), 0),
        ("couples samples: an output changes with the rest of the batch", run(net, pair(first, rolled)), 0),
        ("depends on a sample's place in the batch", run(net, pair(last, first)), 1),
    ]
    for problem, other, place in rules:
        for a, b in zip(jax.tree.leaves(base), jax.tree.leaves(other), strict=True):
            a, b = np.asarray(a[0], np.float64), np.asarray(b[place], np.float64)
            if not np.isfinite(a).all():
                raise _checks.fail(where, "model returns NaN or infinity for the first sample", "check weights and data")
            eps = float(jnp.finfo(jax.tree.leaves(base)[0].dtype).eps)
            if np.abs(a - b).max(initial=0.0) > 1000 * eps * max(np.abs(a).max(initial=0.0), 1e-30):
                raise _checks.fail(
                    where, f"model {problem}", "use evaluation mode (no dropout, running statistics in batch norm)"
                )
