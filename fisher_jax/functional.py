"""Models as pure functions: the engine's one contact with Flax.

A model enters as an `nnx.Module`, a Linen module with its variables, or any `apply(params, x)`. It leaves as a `Network`: a
function of a tuple of selected parameter arrays, checked to be deterministic and to treat every sample by itself.
"""

import dataclasses
import fnmatch
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from fisher_jax import _checks, linalg
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


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A part of a streamed network: `h ← apply(init(state), h)`.

    Args:
        name: the path of its parameters starts with it.
        init: `init(state)` makes the parameters, the same every time.
        apply: `apply(params, h)` on a batch, sample by sample. Both hashable; stages with equal ones share a compilation.
        state: what the parameters are made from, arrays such as a random key.
    """

    name: str
    init: Callable[[Any], Any]
    apply: Callable[[Any, Any], Any]
    state: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Streamed:
    """A network as a chain of stages whose weights are made anew whenever they are needed: it may be larger than memory.

    `fj.spectrum` and `F.gram()` take it; products with vectors of parameter space do not exist.

    Args:
        stages: the first maps the inputs, the last gives the outputs `(N, C)`.
    """

    stages: tuple[Stage, ...]


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
            refuse_training_mode(model, where)
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


def refuse_training_mode(model: Any, where: str) -> None:
    """By the attributes that `model.eval()` sets, so that modules of one's own count too."""
    from flax import nnx

    for path, module in nnx.iter_modules(model):
        label = f"{type(module).__name__} '{'/'.join(map(str, path))}'"
        if getattr(module, "use_running_average", True) is False:
            raise _checks.fail(
                where,
                f"model has {label} in training mode, where samples of a batch depend on each other",
                'call model.eval() to use the running statistics, or choose with bn="eval", "frozen" or "train"',
            )
        idle = getattr(module, "rate", 1) == 0 or getattr(module, "rngs", 0) is None
        if getattr(module, "deterministic", True) is False and not idle:
            rate = getattr(module, "rate", None)
            raise _checks.fail(
                where,
                f"model has {label} active" + ("" if rate is None else f" with rate={rate}"),
                'call model.eval(), or choose with masks="mean", fj.Fixed(key) or fj.Average(draws, key)',
            )


@record
class Network:
    """A model as a function of its selected parameters: `network(params, x)` with `params` a tuple of arrays.

    Vectors of parameter space, `(P,)`, are these arrays raveled and concatenated in the order of the model's pytree.
    """

    apply: Any  # Partial: apply(params tree, x)
    params: tuple[Array, ...]  # selected leaves, differentiated, all of one dtype of at least 32 bits
    fixed: tuple[Array, ...]  # all other leaves
    treedef: Any = static()
    chosen: tuple[bool, ...] = static()
    stored: tuple[str, ...] = static()  # dtypes of the selected leaves in the model

    def __call__(self, params: tuple[Array, ...], x: Any) -> Any:
        # A model in half precision computes in it; sums over samples, squares and vectors are never in half precision.
        own = tuple(p.astype(d) for p, d in zip(params, self.stored, strict=True))
        outputs = self.apply(self._join(own, self.fixed), x)
        return jax.tree.map(lambda a: a.astype(self.dtype) if a.dtype.itemsize < 4 else a, outputs)

    @property
    def size(self) -> int:
        return sum(p.size for p in self.params)

    @property
    def dtype(self) -> Any:
        return self.params[0].dtype

    @property
    def paths(self) -> list[str]:
        """Path of each selected parameter, such as "blocks/0/kernel"."""
        numbered = self.treedef.unflatten(range(len(self.chosen)))
        paths = [
            jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree_util.tree_leaves_with_path(numbered)
        ]
        return [path for path, chosen in zip(paths, self.chosen, strict=True) if chosen]

    def only(self, keep: set[int]) -> "Network":
        """The same model as a function of some of its selected parameters, given by their numbers."""
        params, fixed, kept, rest = [], [], iter(range(len(self.params))), iter(self.fixed)
        chosen = []
        for was in self.chosen:
            number = next(kept) if was else -1
            chosen.append(number in keep)
            if chosen[-1]:
                params.append(number)
            else:
                fixed.append(self.params[number].astype(self.stored[number]) if was else next(rest))
        return dataclasses.replace(
            self,
            params=tuple(self.params[i] for i in params),
            fixed=tuple(fixed),
            chosen=tuple(chosen),
            stored=tuple(self.stored[i] for i in params),
        )

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


Selection = str | Sequence[str] | Callable[[str], bool] | None


def network(model: Any, where: str, select: Selection) -> Network:
    """Select parameters by path: a glob such as `"blocks/0"` or `"*/kernel"`, several, or a predicate; all when None."""
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
    selected = [leaf for leaf, c in zip(leaves, chosen, strict=True) if c]
    wide = jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in selected) else jnp.float32
    net = Network(
        function.apply,
        tuple(leaf.astype(wide) for leaf in selected),
        tuple(leaf for leaf, c in zip(leaves, chosen, strict=True) if not c),
        treedef,
        chosen,
        tuple(leaf.dtype.name for leaf in selected),
    )
    _checks.finite(where, "params", dict(zip(paths, leaves, strict=True)), "load weights without NaN")
    return net


def _matches(select: Selection, path: str) -> bool:
    if select is None:
        return True
    if callable(select):
        return bool(select(path))
    if not isinstance(select, str):
        return any(_matches(one, path) for one in select)
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

    The first sample is evaluated alone and in batches of two sizes with real and with altered neighbours, and the derivative
    of its output along its neighbours must be exactly zero. A per-sample gradient exists for none of the refused models, and
    chunked sums over samples would be wrong without a sign.
    """
    samples = jax.tree.leaves(x)[0].shape[0]
    first = jax.tree.map(lambda a: jnp.asarray(a[:1]), x)
    others = jax.tree.map(lambda a: jnp.asarray(a[-min(3, samples) :][::-1]), x)

    def altered(a: Array) -> Array:
        # Another neighbour: features rolled by one (token numbers stay valid), real ones also of other mean and size.
        a = jnp.roll(a.reshape(-1), 1).reshape(a.shape)
        return 2 * a + 1 if jnp.issubdtype(a.dtype, jnp.floating) else a

    def batch(*parts: Any) -> Any:
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    run, run_with_tangent = _programs()
    together, strange = batch(first, others), jax.tree.map(altered, others)
    base = run(net, together)

    def differs(other: Any, index: int) -> bool:
        for a, b in zip(jax.tree.leaves(base), jax.tree.leaves(other), strict=True):
            unit = float(jnp.finfo(a.dtype).eps)
            a, b = np.asarray(a[0], np.float64), np.asarray(b[index], np.float64)
            if not np.isfinite(a).all():
                raise _checks.fail(where, "model returns NaN or infinity for the first sample", "check weights and data")
            # Half-precision models round at their own unit.
            unit = max(unit, *(float(jnp.finfo(d).eps) for d in net.stored))
            if not np.abs(a - b).max(initial=0.0) <= 1000 * unit * max(np.abs(a).max(initial=0.0), 1e-30):
                return True
        return False

    def refusal(problem: str) -> Exception:
        # Each batch size is traced anew, and what Python draws at random differs between traces: one more of the same tells.
        again = jax.jit(lambda n, x: _evaluate(n, x))(net, together)
        return _checks.fail(where, f"model {_RANDOM if differs(again, 0) else problem}", _EVALUATION)

    last = jax.tree.leaves(others)[0].shape[0]
    for problem, other, index in (
        (_RANDOM, together, 0),
        (_COUPLED, batch(first, strange), 0),
        (_COUPLED, first, 0),
        ("depends on a sample's place in the batch", batch(others, first), last),
    ):
        if differs(run(net, other), index):
            raise refusal(problem)
    more, change = run_with_tangent(net, *_with_direction(batch(first, others, strange)))
    # Exactly zero or not. NaN is 0·∞ of a derivative at an edge, not a dependence.
    leaks = any(np.nansum(np.abs(np.asarray(c[0], np.float64))) > 0 for c in jax.tree.leaves(change))
    if leaks or differs(more, 0):
        raise refusal(_COUPLED)


_RANDOM = "is not deterministic: two evaluations differ"
_COUPLED = "couples samples: an output changes with the rest of the batch"
_EVALUATION = "use evaluation mode (no dropout, running statistics in batch norm)"


def _evaluate(net: Network, x: Any) -> Any:
    return net(net.params, x)


def _evaluate_with_tangent(net: Network, x: Any, direction: Any) -> Any:
    """(outputs, their derivative along a direction of the inputs)."""
    return jax.jvp(lambda x: net(net.params, x), (x,), (direction,))


@functools.cache
def _programs() -> tuple[Any, Any]:
    """Both of the above, compiled in half the time on a CPU: they run a few times on a few samples."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return tuple(linalg.precise_jit(f, compiler_options=options) for f in (_evaluate, _evaluate_with_tangent))


def _with_direction(x: Any) -> tuple[Any, Any]:
    """A batch, and a direction that changes all real numbers in it but those of the first sample."""
    rng = np.random.default_rng(0)

    def random(a: Array) -> Any:
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return np.zeros(a.shape, jax.dtypes.float0)
        d = rng.normal(size=a.shape)
        d[0] = 0
        return jnp.asarray(d, a.dtype)

    return x, jax.tree.map(random, x)
