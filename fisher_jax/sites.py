"""Where parameters meet data: walk the program of a network and find the places that give per-sample gradients structure.

For `y = a W` the gradient of one output is the outer product of the layer's input a and the output's cotangent g at y. The
walk runs the network's jaxpr equation by equation. A value that depends on one parameter only, through changes of layout and
factors, stays a *view* of it until it meets data:

- in `dot_general` or `conv_general_dilated`: a *site*. Its input a is kept, and a zero perturbation added to y, whose
  cotangent is g. A bias added to y right away shares g: it is one more input, equal to one.
- in an embedding lookup: a site whose input is the token number.
- anywhere else (norm scales, lone biases, squared parameters, unknown primitives): the parameter itself is perturbed; the
  cotangent of that is its gradient through all such places. Always right, and for vectors as cheap.

Calls, loops (`scan`) and branches (`cond`) are entered, but not calls with derivative rules of their own. A site in the body
of a loop is one site over all steps: of more positions where the steps share the weight, of more matrices where each step
has its own.
"""

import collections
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, Literal, jaxpr_as_fun

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class View:
    """How a value derives from a parameter: `p · scale`, laid out anew by `steps`. An isometry times |scale|."""

    index: int
    scale: float = 1.0
    steps: tuple[Callable[[Array], Array], ...] = ()
    own: tuple[bool, ...] = ()  # for each loop around: is this the step's slice of the parameter, not shared by the steps?

    def __call__(self, p: Array) -> Array:
        for step in self.steps:
            p = step(p)
        return p * self.scale if self.scale != 1.0 else p

    def unscaled(self) -> "View":
        return dataclasses.replace(self, scale=1.0)

    def back(self, cotangent: Array, like: Array) -> Array:
        """Gradient of the view -> gradient of the parameter, in the parameter's precision."""
        return jax.linear_transpose(self, like)(cotangent.astype(like.dtype))[0]


@dataclasses.dataclass
class Site:
    """A place where a parameter meets data; shapes are of one sample.

    Canonical layout: input a `(B, T, D)`, cotangent g `(B, T, M)`: B matrices `(D, M)`, each used at T positions. A lookup
    has token numbers `(1, T)` for a, and D rows to look up.
    """

    name: str
    weight: View
    shape: tuple[int, int, int, int]  # B, T, D, M
    place: Callable[[Array], Array]  # y's layout -> (B, T, M)
    unplace_weight: Callable[[Array], Array]  # gradient (B, D, M) -> layout of the weight's view
    output: jax.ShapeDtypeStruct  # y
    channels: tuple[int, ...]  # axes of y along which each entry has its own weights (B and M)
    bias: View | None = None
    lookup: bool = False

    @property
    def kind(self) -> tuple[tuple[int, int, int, int], bool]:
        return self.shape, self.lookup


@dataclasses.dataclass
class Map:
    """What the walk found: sites, and which parameters (also) take part in other ways."""

    sites: list[Site]
    direct: tuple[bool, ...]


class _Weight:
    """A value that is a view of a parameter: without and with the parameter's perturbation."""

    def __init__(self, view: View, clean: Array, full: Array):
        self.view, self.clean, self.full = view, clean, full


class _Output:
    """The output of a site. A bias may still join if that is the only use of it: then both have one cotangent."""

    def __init__(self, value: Array, number: int):
        self.value, self.number = value, number


class _Walk:
    """One run through the program: with perturbations (dict: ("site", number) or ("direct", index) -> array), or none."""

    def __init__(self, perturbations: dict[Any, Array] | None):
        self.perturbations = perturbations
        self.sites: list[Site] = []
        self.inputs: list[Array] = []
        self.direct: set[int] = set()

    # -- values --

    def plain(self, value: Any) -> Any:
        """The array behind a value that meets something without structure."""
        if isinstance(value, _Weight):
            self.direct.add(value.view.index)
            return value.full
        return value.value if isinstance(value, _Output) else value

    def run(self, jaxpr: Jaxpr, consts: Any, values: list[Any]) -> list[Any]:
        environment: dict[Any, Any] = {}
        atoms = [*(atom for equation in jaxpr.eqns for atom in equation.invars), *jaxpr.outvars]
        uses = collections.Counter(atom for atom in atoms if not isinstance(atom, Literal))

        def read(atom: Any) -> Any:
            if isinstance(atom, Literal):
                return atom.val
            value = environment[atom]
            return value.value if isinstance(value, _Output) and uses[atom] > 1 else value

        environment.update(zip(jaxpr.constvars, consts, strict=True))
        environment.update(zip(jaxpr.invars, values, strict=True))
        for equation in jaxpr.eqns:
            arguments = [read(atom) for atom in equation.invars]
            results = self.equation(equation, arguments)
            environment.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, arguments: list[Any]) -> list[Any]:
        name = equation.primitive.name
        weights = [isinstance(a, _Weight) for a in arguments]
        if any(weights) or any(isinstance(a, _Output) for a in arguments):
            inner = _call(equation)
            if inner is not None:
                return self.run(inner.jaxpr, inner.consts, arguments)
            if any(weights):
                handler = _HANDLERS.get(name)
                results = handler(self, equation, arguments) if handler is not None else None
                if results is not None:
                    return results
        return _bind(equation, [self.plain(a) for a in arguments])

    # -- sites --

    def site(self, site: Site, a: Array, y: Array) -> _Output:
        number = len(self.sites)
        self.sites.append(site)
        self.inputs.append(a)
        if self.perturbations is not None:
            y = y + self.perturbations["site", number]
        return _Output(y, number)


def _call(equation: Any) -> ClosedJaxpr | None:
    """The program of a call that can be entered; of those with derivative rules of their own the rules would be lost."""
    if equation.primitive.name in ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"):
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
    return None


def _bind(equation: Any, arguments: list[Any]) -> list[Any]:
    """Run one equation as it stands: a program of its own, so that derivative rules of calls stay in force."""
    given = dict((v, a) for v, a in zip(equation.invars, arguments, strict=True) if not isinstance(v, Literal))
    names = DebugInfo("site", "fisher_jax", None, None)
    program = Jaxpr((), list(given), list(equation.outvars), [equation], equation.effects, names)
    return jaxpr_as_fun(ClosedJaxpr(program, ()))(*given.values())


# --- views ------------------------------------------------------------------------------------------------------------


def _layout(walk: _Walk, equation: Any, arguments: list[Any]) -> list[Any] | None:
    """Changes of layout and precision of one operand; gradients are not rounded to the lower precision."""
    weight = arguments[0]
    if len(arguments) != 1 or equation.outvars[0].aval.size != weight.clean.size:
        return None
    if not jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating):
        return None

    def step(p: Array) -> Array:
        return _bind(equation, [p])[0]

    steps = () if equation.primitive.name == "convert_element_type" else (step,)
    view = dataclasses.replace(weight.view, steps=(*weight.view.steps, *steps))
    return [_Weight(view, step(weight.clean), step(weight.full))]


def _part(walk: _Walk, equation: Any, arguments: list[Any]) -> list[Any] | None:
    """A slice with constant limits."""
    weight = arguments[0]

    def step(p: Array) -> Array:
        return _bind(equation, [p])[0]

    view = dataclasses.replace(weight.view, steps=(*weight.view.steps, step))
    return [_Weight(view, step(weight.clean), step(weight.full))]


def _factor(walk: _Walk, equation: Any, arguments: list[Any]) -> list[Any] | None:
    """A product with, or quotient by, a number; the negative."""
    if equation.primitive.name == "neg":
        weight, number = arguments[0], -1.0
    else:
        weight, other = arguments
        if isinstance(other, _Weight) and equation.primitive.name == "mul":
            weight, other = other, weight
        atoms = equation.invars
        literal = next((a for a in atoms if isinstance(a, Literal)), None)
        if not isinstance(weight, _Weight) or literal is None or np.ndim(literal.val) or literal.val is not other:
            return None
        number = float(literal.val) if equation.primitive.name == "mul" else 1 / float(literal.val)

    def scaled(value: Array) -> Array:
        return _bind(equation, [value if isinstance(a, _Weight) else a for a in arguments])[0]

    view = dataclasses.replace(weight.view, scale=weight.view.scale * number)
    return [_Weight(view, scaled(weight.clean), scaled(weight.full))]


# --- sites ------------------------------------------------------------------------------------------------------------


def _dot(walk: _Walk, equation: Any, arguments: list[Any]) -> list[Any] | None:
    if sum(isinstance(a, _Weight) for a in arguments) != 1:
        return None
    side = 0 if isinstance(arguments[0], _Weight) else 1
    weight, a = arguments[side], walk.plain(arguments[1 - side])
    contract, batch = equation.params["dimension_numbers"]
    wc, ac, wb, ab = contract[side], contract[1 - side], batch[side], batch[1 - side]
    wf = tuple(i for i in range(weight.clean.ndim) if i not in (*wc, *wb))
    af = tuple(i for i in range(a.ndim) if i not in (*ac, *ab))
    size = weight.clean.shape
    B, D, M = (math.prod(size[i] for i in axes) for axes in (wb, wc, wf))
    T = math.prod(a.shape[i] for i in af)
    y = _bind(equation, [weight.clean if i == side else a for i in (0, 1)])[0]
    nb, na, nw = len(wb), len(af), len(wf)
    # y is laid out as batch axes, then the free axes of the left operand, then of the right one.
    afirst = side == 1
    free_a = range(nb, nb + na) if afirst else range(nb + nw, nb + nw + na)
    free_w = range(nb + na, nb + na + nw) if afirst else range(nb, nb + nw)
    order, order_w = (*range(nb), *free_a, *free_w), (*wb, *wc, *wf)
    inverse_w = tuple(np.argsort(order_w))
    inner = tuple(size[i] for i in order_w)
    site = Site(
        name="dot_general",
        weight=weight.view,
        shape=(B, T, D, M),
        place=lambda g: g.transpose(order).reshape(B, T, M),
        unplace_weight=lambda G: G.reshape(inner).transpose(inverse_w),
        output=jax.ShapeDtypeStruct(y.shape, y.dtype),
        channels=(*range(nb), *free_w),
    )
    return [walk.site(site, a.transpose((*ab, *af, *ac)).reshape(B, T, D), y)]


def _conv(walk: _Walk, equation: Any, arguments: list[Any]) -> list[Any] | None:
    if isinstance(arguments[0], _Weight) or equation.params["batch_group_count"] != 1:
        return None
    lhs, weight = walk.plain(arguments[0]), arguments[1]
    p = equation.params
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    y = _bind(equation, [lhs, weight.clean])[0]
    kernel = tuple(weight.clean.shape[i] for i in numbers.rhs_spec)  # (out, in / groups, *window)
    M, D = kernel[0] // groups, math.prod(kernel[1:])
    out = numbers.out_spec  # (batch, feature, *space)
    T = y.size // kernel[0]
    space = (out[0], *out[2:])
    patches = _patches(lhs.transpose((numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])), kernel[2:], y, p)
    # (batch, *space, *window, features) -> (groups, T, window · features / groups)
    patches = jnp.moveaxis(patches.reshape(T, math.prod(kernel[2:]), groups, kernel[1]), 2, 0).reshape(groups, T, D)
    inverse_w = tuple(np.argsort(numbers.rhs_spec))

    def place(values: Array) -> Array:
        return jnp.moveaxis(values.transpose((*space, out[1])).reshape(T, groups, M), 1, 0)

    site = Site(
        name="conv_general_dilated",
        weight=weight.view,
        shape=(groups, T, D, M),
        place=place,
        unplace_weight=lambda G: jnp.moveaxis(
            jnp.swapaxes(G, 1, 2).reshape(kernel[0], *kernel[2:], kernel[1]), -1, 1
        ).transpose(inverse_w),
        output=jax.ShapeDtypeStruct(y.shape, y.dtype),
        channels=(out[1],),
    )
    return [walk.site(site, patches, y)]


def _patches(a: Array, window: tuple[int, ...], y: Array, p: Any) -> Array:
    """What the window sees from every position of y: `(batch, *space, features) -> (batch, *space, *window, features)`.

    By slices, axis by axis: `jax.lax.conv_general_dilated_patches` is a convolution with an identity, and slower on a CPU.
    """
    edges = [(low, high, dilation - 1) for (low, high), dilation in zip(p["padding"], p["lhs_dilation"], strict=True)]
    a = jax.lax.pad(a, jnp.zeros((), a.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    for axis, (width, stride, dilation) in enumerate(zip(window, p["window_strides"], p["rhs_dilation"], strict=True), 1):
        reach = (y.shape[p["dimension_numbers"].out_spec[1 + axis]] - 1) * stride + 1
        offsets = [k * dilation for k in range(width)]
        a = jnp.stack([jax.lax.slice_in_dim(a, k, k + reach, stride, axis) for k in offsets], axis=-2)
    return a


def _gather(walk: _Walk, equation: Any, arguments: list[Any]) -> list[Any] | None:
    """Whole rows of a table, by their number."""
    weight, indices = arguments
    d = equation.params["dimension_numbers"]
    if isinstance(indices, _Weight) or not isinstance(weight, _Weight) or weight.clean.ndim < 1:
        return None
    rows, width = weight.clean.shape[0], math.prod(weight.clean.shape[1:])
    batch = indices.ndim - 1
    whole = (
        tuple(d.collapsed_slice_dims) == (0,)
        and tuple(d.start_index_map) == (0,)
        and tuple(d.offset_dims) == tuple(range(batch, batch + weight.clean.ndim - 1))
        and tuple(equation.params["slice_sizes"]) == (1, *weight.clean.shape[1:])
        and not d.operand_batching_dims
    )
    if not whole:
        return None
    indices, table = walk.plain(indices), weight.clean.shape
    y = _bind(equation, [weight.clean, indices])[0]
    T = y.size // width
    site = Site(
        name="gather",
        weight=weight.view,
        shape=(1, T, rows, width),
        place=lambda g: g.reshape(1, T, width),
        unplace_weight=lambda G: G.reshape(table),
        output=jax.ShapeDtypeStruct(y.shape, y.dtype),
        channels=tuple(range(batch, y.ndim)),
        lookup=True,
    )
    # A token number outside the table is clipped, or looks up nothing: one past the last row then, which is none.
    numbers = indices.reshape(1, T).astype(jnp.int32)
    if "CLIP" in str(equation.params["mode"]):
        numbers = jnp.clip(numbers, 0, rows - 1)
    return [walk.site(site, jnp.where((numbers >= 0) & (numbers < rows), numbers, rows), y)]


def same_row(a: Array, b: Array, rows: int) -> Array:
    """Do two token numbers look up the same row? One past the last row is none."""
    return (a == b) & (a < rows)


def _add(walk: _Walk, equation: Any, arguments: list[Any]) -> list[Any] | None:
    """A bias that joins a site: every entry of it is added to one channel of the output."""
    output = next((a for a in arguments if isinstance(a, _Output)), None)
    weight = next((a for a in arguments if isinstance(a, _Weight)), None)
    if output is None or weight is None:
        return None
    site = walk.sites[output.number]
    shape = weight.clean.shape
    sizes = site.output.shape
    if len(shape) != len(sizes) or site.bias is not None or site.lookup:
        return None
    # Axes of length one of the bias run along all positions; all others must be channels in full.
    fits = all(n == (sizes[i] if i in site.channels else 1) for i, n in enumerate(shape))
    if not fits or weight.view.own != site.weight.own or equation.outvars[0].aval.shape != sizes:
        return None
    walk.sites[output.number] = dataclasses.replace(site, bias=weight.view)
    values = [a.value if isinstance(a, _Output) else weight.clean for a in arguments]
    return [_bind(equation, values)[0]]


# --- loops and branches -----------------------------------------------------------------------------------------------


def _constants_and_carry(equation: Any, body: Any) -> tuple[int, int]:
    """How many inputs of a scan are constants, and how many are carried on; JAX versions name these parameters differently.

    What a step sees of the other inputs, and gives to the other results, has one axis less.
    """
    pairs = ((equation.invars, body.jaxpr.invars), (equation.outvars, body.jaxpr.outvars))
    whole, carry = (sum(a.aval.ndim == b.aval.ndim for a, b in zip(*pair, strict=True)) for pair in pairs)
    return whole - carry, carry


def _scan(walk: _Walk, equation: Any, arguments: list[Any]) -> list[Any] | None:
    """A loop: its body is walked with this step's slices of weights and perturbations; inputs of sites are stacked."""
    p = equation.params
    body, length = p["jaxpr"], p["length"]
    consts, carry = _constants_and_carry(equation, body)
    weights = {i: a for i, a in enumerate(arguments) if isinstance(a, _Weight) and not consts <= i < consts + carry}
    if not weights or not length:
        return None
    values = [(a.clean, a.full) if i in weights else walk.plain(a) for i, a in enumerate(arguments)]
    own = [i >= consts + carry for i in range(len(values))]
    bodies: list[_Walk] = []

    def step(state: list[Any], item: tuple[list[Any], dict[Any, Array] | None]) -> Any:
        slices, perturbations = item
        inner = _Walk(perturbations)
        bodies.append(inner)
        given = [*values[:consts], *state, *slices]
        given = [
            _Weight(View(i, own=(*weights[i].view.own, own[i])), *v) if i in weights else v for i, v in enumerate(given)
        ]
        results = [inner.plain(v) for v in inner.run(body.jaxpr, body.consts, given)]
        return results[:carry], (results[carry:], inner.inputs)

    start, slices = values[consts : consts + carry], values[consts + carry :]
    jax.eval_shape(step, start, (jax.tree.map(lambda a: a[0], slices), None))
    count, first = len(bodies[0].sites), len(walk.sites)
    perturbations = walk.perturbations
    if perturbations is not None:
        perturbations = {("site", n): perturbations["site", first + n] for n in range(count)}
    xs = (slices, perturbations)
    end, (results, inputs) = jax.lax.scan(step, start, xs, length, reverse=p["reverse"], unroll=p["unroll"])
    walk.direct.update(weights[i].view.index for i in bodies[0].direct)
    for site, a in zip(bodies[0].sites, inputs, strict=True):
        walk.sites.append(_over_steps(site, length, weights))
        walk.inputs.append(_join_steps(a, own[site.weight.index]))
    return [*end, *results]


def _join_steps(values: Array, own: bool) -> Array:
    """`(steps, B, T, ...)` -> `(steps · B, T, ...)` if every step has weights of its own, else `(B, steps · T, ...)`."""
    steps, B, T, *rest = values.shape
    return values.reshape(steps * B, T, *rest) if own else jnp.moveaxis(values, 0, 1).reshape(B, steps * T, *rest)


def _over_steps(site: Site, length: int, weights: dict[int, _Weight]) -> Site:
    """A site of the body of a loop as one of the program around it; its output is stacked."""
    B, T, D, M = site.shape
    own = site.weight.own[-1]

    def outside(inner: View) -> View:
        view = weights[inner.index].view
        steps = tuple(jax.vmap(s) for s in inner.steps) if own else inner.steps
        return dataclasses.replace(view, scale=view.scale * inner.scale, steps=(*view.steps, *steps))

    def unplace_weight(G: Array) -> Array:
        return jax.vmap(site.unplace_weight)(G.reshape(length, B, D, M)) if own else site.unplace_weight(G)

    bias = None if site.bias is None else outside(site.bias)
    if bias is not None and not own:
        bias = dataclasses.replace(bias, steps=(*bias.steps, lambda b: b[None]))
    return dataclasses.replace(
        site,
        weight=outside(site.weight),
        shape=(length * B, T, D, M) if own else (B, length * T, D, M),
        place=lambda g: _join_steps(jax.vmap(site.place)(g), own),
        unplace_weight=unplace_weight,
        output=jax.ShapeDtypeStruct((length, *site.output.shape), site.output.dtype),
        channels=((0,) if own else ()) + tuple(i + 1 for i in site.channels),
        bias=bias,
    )


def _cond(walk: _Walk, equation: Any, arguments: list[Any]) -> list[Any] | None:
    """Branches: the sites of all of them. Those of a branch that is not taken have zero inputs, and get zero cotangents."""
    choice, *operands = arguments
    if isinstance(choice, _Weight):
        return None
    choice = walk.plain(choice)
    weights = {i: a.view for i, a in enumerate(operands) if isinstance(a, _Weight)}
    values = [(a.clean, a.full) if i in weights else walk.plain(a) for i, a in enumerate(operands)]

    def run(branch: ClosedJaxpr, perturbations: dict[Any, Array] | None, values: list[Any]) -> tuple[list[Any], _Walk]:
        inner = _Walk(perturbations)
        given = [_Weight(View(i, own=weights[i].own), *v) if i in weights else v for i, v in enumerate(values)]
        return [inner.plain(v) for v in inner.run(branch.jaxpr, branch.consts, given)], inner

    branches = equation.params["branches"]
    found: list[_Walk] = []

    def look(branch: ClosedJaxpr, values: list[Any]) -> list[Array]:
        found.append(run(branch, None, values)[1])
        return found[-1].inputs

    inputs = [jax.eval_shape(lambda v, b=branch: look(b, v), values) for branch in branches]
    starts = np.cumsum([len(walk.sites), *map(len, inputs)])

    def taken(number: int) -> Callable[[list[Any]], Any]:
        def body(values: list[Any]) -> Any:
            perturbations = walk.perturbations
            if perturbations is not None:
                first, count = int(starts[number]), len(inputs[number])
                perturbations = {("site", n): perturbations["site", first + n] for n in range(count)}
            results, inner = run(branches[number], perturbations, values)
            captured = [jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), a) for a in inputs]
            captured[number] = inner.inputs
            return results, captured

        return body

    results, captured = jax.lax.switch(choice, [taken(n) for n in range(len(branches))], values)
    for inner, a in zip(found, captured, strict=True):
        walk.direct.update(weights[i].index for i in inner.direct)

        def outside(view: View) -> View:
            around = weights[view.index]
            return dataclasses.replace(around, scale=around.scale * view.scale, steps=(*around.steps, *view.steps))

        for site in inner.sites:
            bias = None if site.bias is None else outside(site.bias)
            walk.sites.append(dataclasses.replace(site, weight=outside(site.weight), bias=bias))
        walk.inputs.extend(a)
    return results


_HANDLERS: dict[str, Any] = {
    "scan": _scan,
    "cond": _cond,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "gather": _gather,
    "add": _add,
    "mul": _factor,
    "div": _factor,
    "neg": _factor,
    "slice": _part,
    **dict.fromkeys(("reshape", "transpose", "squeeze", "broadcast_in_dim", "convert_element_type", "copy", "rev"), _layout),
}


# --- the walk as a function -------------------------------------------------------------------------------------------


def trace(network: Any, x: Any) -> tuple[ClosedJaxpr, Any]:
    """The program `(params, network, x) -> outputs` for one sample x, and the structure of the outputs."""

    def one(params: Any, network: Any, x: Any) -> Any:
        return network(params, jax.tree.map(lambda a: a[None], x))

    return jax.make_jaxpr(one, return_shape=True)(network.params, network, x)


def walk(network: Any, x: Any, perturbations: dict[Any, Array] | None) -> tuple[Any, list[Array], Map]:
    """Run one sample: (outputs, inputs of the sites, map). Differentiate in the perturbations, which are zeros."""
    program, outputs = trace(network, x)
    state = _Walk(perturbations)
    weights: list[Any] = []
    for index, p in enumerate(network.params):
        shift = None if perturbations is None else perturbations.get(("direct", index))
        weights.append(_Weight(View(index), p, p if shift is None else p + shift))
    values = [*weights, *jax.tree.leaves((network, x))]
    results = [state.plain(v) for v in state.run(program.jaxpr, program.consts, values)]
    found = Map(state.sites, tuple(i in state.direct for i in range(len(network.params))))
    return jax.tree.unflatten(jax.tree.structure(outputs), results), state.inputs, found


def find(network: Any, x: Any) -> Map:
    """The map alone, from shapes; x is one sample (arrays or shapes)."""
    found = []

    def run(network: Any, x: Any) -> Any:
        outputs, inputs, sites = walk(network, x, None)
        found.append(sites)
        return outputs, inputs

    jax.eval_shape(run, network, x)
    return found[0]
