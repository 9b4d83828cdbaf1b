"""`Density`: a spectrum as weighted nodes, and what follows from it, each number with an interval.

What random vectors leave open. For Gaussian z in d dimensions and f with values in [a, b], the pooled ratio of m probes

    R = Σ_p z_pᵀ f(M) z_p / Σ_p z_pᵀ z_p        has mean  (1/d) Σᵢ f(λᵢ)

If f takes the values a and b alone, c of the latter, then (R − a)/(b − a) has the Beta(m c/2, m (d − c)/2) distribution,
exactly, and c has an interval like that of Clopper and Pearson. Among all f in [a, b] with the same mean this one spreads R
most: expectations of convex functions of R are Schur-convex in the values of f, and so are the tails beyond where the
distributions cross. One formula therefore serves counts, traces and smooth functions. Nothing about the spread is estimated
from few probes, where one eigenvalue that dominates makes t-intervals too short.

What finite steps leave open. Gauss and Gauss–Radau rules bound integrals of functions with derivatives of one sign, and the
weights of a rule with a node at τ bound the measure above τ (Chebyshev, Markov, Stieltjes), probe by probe and for certain.

Reference: Diaconis and Perlman, in Topics in Statistical Dependence, 1990 (tails of weighted χ²); Golub and Meurant,
Matrices, Moments and Quadrature, 2010, chapters 2 and 6; Akhiezer, The Classical Moment Problem, 1965, chapter 2. The Beta
interval for functions other than counts: derived, and checked over seeds.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy.linalg
import scipy.special

from fisher_jax import _checks
from fisher_jax._record import record, static
from fisher_jax.estimates import CONFIDENCE, Estimate
from fisher_jax.results import aligned, register

Array = jax.Array
Function = Callable[[np.ndarray], np.ndarray]

# A normal density is zero beyond so many widths.
REACH = 5.0
# Probability left out on each side. Of the 0.05 that the confidence leaves, 0.01 is for the ends of the spectrum, from which
# [a, b] follows; the rest is for what is approximate: tails of functions between a and b cross somewhere.
TAIL = 0.01
# A share of a probe along one eigenvector is below this over the dimension about once in 1000 times.
HIDDEN = 1e-6
# No kernel is narrower than this part of the range.
FINEST = 200


@record
class Density:
    """The spectrum of an operator as seen by random probes: weighted nodes for the bulk, exact atoms, a count of zeros.

    `d(λ)` is the density ρ of the resolved bulk, `d.band(λ)` its interval; both on a linear or logarithmic axis.
    `size = atoms.size + dimension + zeros − hidden`.
    """

    nodes: Array  # (probes, m) each probe's rule; a space that closed early has fewer, the others have weight zero
    weights: Array  # (probes, m) of all probes together they sum to one
    means: Array  # (probes, 2) exact mean and root mean square of λ over each probe's measure
    diagonal: Array | None  # (probes, m) tridiagonal matrix behind a rule; None where nothing bounds what is integrated
    coupling: Array | None  # (probes, m) beside the diagonal; the last is what the rule leaves out, zero if it is exact
    atoms: Array  # (k,) eigenvalues that were known and projected out
    atom_bounds: Array  # (k,) absolute bound on the error of each
    ends: tuple[float, float]  # the bulk lies between these (for SLQ with a probability of 0.99)
    floor: float  # absolute rounding error of an eigenvalue; what lies below cannot be told from zero
    leak: float  # Σ |shift| of the eigenvalues of the bulk by errors of the projected vectors, at most
    dimension: int  # of the space of the probes: what the weights are shares of
    hidden: int  # eigenvalues in it that are zero for certain
    zeros: int  # of the whole, for certain: by shapes, weights of samples, the likelihood's null space
    size: int
    products: int
    psd: bool = static()
    method: str = static()
    info: tuple[tuple[str, str], ...] = static(default=())

    # --- the density ---

    @property
    def unresolved(self) -> float:
        """How many eigenvalues of the bulk lie within rounding of zero and may or may not be zero, estimated."""
        small = np.abs(_host(self.nodes)) <= self._blur(self.nodes)
        return max(0.0, self.dimension * float(_host(self.weights)[small].sum()) - self.hidden)

    @property
    def bulk(self) -> float:
        """How many eigenvalues of the bulk are above rounding, estimated: what ρ is the density of."""
        return self.dimension * float(_host(self.weights)[self._resolved("linear")].sum())

    def grid(self, axis: str = "linear", points: int = 400) -> np.ndarray:
        """Values of λ `(points,)` that cover ρ, evenly spaced on the axis."""
        place, kept, widths = self._places(axis), self._resolved(axis), self._widths(axis)
        if not kept.any():
            raise _checks.fail("density", f"no eigenvalue above rounding {self.floor:.1e}", "nothing can be drawn")
        low, high = (place - REACH * widths)[kept].min(), (place + REACH * widths)[kept].max()
        line = np.linspace(low, high, points)
        return np.exp(line) if axis == "log" else line

    def __call__(self, values: Any, *, axis: str = "linear", width: float | None = None) -> np.ndarray:
        """ρ at `values` `(g,)`: of the resolved bulk, per unit of λ or, on the axis "log", of ln λ; the integral is one.

        Args:
            axis: "linear" or "log".
            width: standard deviation of the Gaussian kernel on that axis. Unless given, each node has its own: as far as its
                residual says that it may be from an eigenvalue, at most half the distance to its neighbours.
        """
        kernel, weights, _ = self._kernel(values, axis, width)
        return kernel @ weights

    def band(self, values: Any, *, axis: str = "linear", width: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(lower, upper) end of the interval for ρ at each of `values`, for the randomness of the probes.

        Of the smoothed density: what the steps leave open below the width of the kernel is not in it. Exact for a given
        width; else as if each node had the mean width of those near.
        """
        kernel, weights, widths = self._kernel(values, axis, width)
        if not weights.size:  # nothing above rounding
            return np.zeros(len(kernel)), np.zeros(len(kernel))
        share = self.bulk / max(self.dimension, 1)
        # A kernel's values lie between zero and its peak; shares are of the whole bulk, ρ is of the resolved part.
        rho = kernel @ weights
        mean = np.where(rho > 0, kernel @ (weights * widths) / np.where(rho > 0, rho, 1), np.median(widths))
        peak = 1 / (np.sqrt(2 * np.pi) * mean)
        part = rho / peak * share
        low, high = _proportion(part, part, self.dimension, self.weights.shape[0])
        return low * peak / share, high * peak / share

    def _kernel(self, values: Any, axis: str, width: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Kernel of each value and each resolved node `(g, nodes)`, weights of these that sum to one, their widths."""
        kept = self._resolved(axis)
        weights = _host(self.weights)[kept]
        values = np.asarray(values, np.float64).reshape(-1)
        if axis == "log" and not (values > 0).all():
            raise _checks.fail("density", "values has entries <= 0 on the axis 'log'", "give values > 0 or axis='linear'")
        if width is None:
            widths = self._widths(axis)[kept]
        else:
            widths = np.full(weights.shape, _checks.positive("density", "width", width))
        line = np.log(values) if axis == "log" else values
        away = (line[:, None] - self._places(axis)[kept][None, :]) / widths
        kernel = np.exp(-0.5 * away**2) / (np.sqrt(2 * np.pi) * widths)
        return kernel, weights / max(weights.sum(), np.finfo(np.float64).tiny), widths

    def _widths(self, axis: str) -> np.ndarray:
        """How wide a kernel each node deserves on the axis `(probes, m)`."""
        place, kept, nodes = self._places(axis), self._resolved(axis), _host(self.nodes)
        reach, largest = (float(np.ptp(place[kept])), float(np.abs(nodes[kept]).max())) if kept.any() else (0.0, 1.0)
        if reach <= FINEST * self.floor / (largest if axis == "log" else 1):  # one eigenvalue, to rounding
            reach = 1.0 if axis == "log" else largest
        finest = reach / FINEST
        widths = np.full(place.shape, finest)
        for p in range(len(place)):
            index = np.flatnonzero(kept[p])
            index = index[np.argsort(place[p, index])]
            gaps = np.diff(place[p, index])
            if gaps.size:
                # Normal densities half their distance wide add up smoothly, to 1.5 %.
                widths[p, index] = (np.append(gaps, gaps[-1]) + np.append(gaps[0], gaps)) / 4
            if self.diagonal is not None and self.coupling is not None:
                rule = closed(_host(self.diagonal)[p], _host(self.coupling)[p])
                values, vectors = scipy.linalg.eigh_tridiagonal(rule[0], rule[1][:-1])
                residuals = np.zeros(place.shape[1])
                residuals[: values.size] = rule[1][-1] * np.abs(vectors[-1])
                if axis == "log":
                    residuals = residuals / np.where(nodes[p] > 0, nodes[p], 1)
                widths[p] = np.minimum(widths[p], residuals)
        return np.maximum(widths, finest)

    def _places(self, axis: str) -> np.ndarray:
        """The nodes on the axis."""
        nodes = _host(self.nodes)
        if axis == "linear":
            return nodes
        if axis == "log":
            return np.log(np.where(nodes > 0, nodes, 1))
        raise _checks.fail("density", f"axis={axis!r} is not known", 'give "linear" or "log"')

    def _resolved(self, axis: str) -> np.ndarray:
        """Which nodes stand for eigenvalues above rounding and have a place on the axis."""
        nodes = _host(self.nodes)
        return (_host(self.weights) > 0) & ((nodes if axis == "log" else np.abs(nodes)) > self._blur(nodes))

    def _blur(self, values: Any) -> np.ndarray:
        """How far rounding and errors of the projected vectors may have moved eigenvalues of the bulk at `values`.

        These have residuals of norm r; with the distance g to the next atom the shift is at most 2 r² / (g + √(g² + 4 r²)).
        Li and Li, Linear Algebra Appl. 395, 2005.
        """
        values, atoms = np.asarray(values, np.float64), _host(self.atoms)
        if not atoms.size or not self.leak:
            return np.full(values.shape, self.floor)
        r = self.leak / (2 * atoms.size**0.5)
        gap = np.abs(values[..., None] - atoms).min(axis=-1)
        return self.floor + 2 * r * r / (gap + np.sqrt(gap**2 + 4 * r * r))

    # --- integrals ---

    def trace(self) -> Estimate:
        """Sum of the eigenvalues; the steps leave nothing open."""
        R = self._pooled(_host(self.means)[:, 0])
        return self._estimate("trace", lambda x: x, R, R, np.ones_like, exact_rule=True)

    def frobenius(self) -> Estimate:
        """‖M‖_F, the root of the sum of the squared eigenvalues; the steps leave nothing open."""
        # In units of the largest, whose square need not be a number.
        u = max(float(np.abs(a).max(initial=0.0)) for a in (_host(self.ends), _host(self.atoms), _host(self.nodes))) or 1.0
        R = self._pooled((_host(self.means)[:, 1] / u) ** 2)
        square = self._estimate("frobenius", lambda x: (x / u) ** 2, R, R, lambda x: 2 * (x / u) / u, exact_rule=True)
        value, lower, upper = (max(0.0, float(v)) ** 0.5 for v in (square.value, square.lower, square.upper))
        error = square.standard_error / (2 * value) if value else 0.0
        return Estimate(u * value, u * lower, u * upper, u * error, square.products, square.confidence, square.method)

    def count_above(self, above: float) -> Estimate:
        """How many eigenvalues exceed `above`: atoms, and of the bulk what the moments of the probes allow.

        The steps leave open the weight of a rule with a node at `above`; rounding moves eigenvalues by `floor`.
        """
        above = _checks.finite_number("density", "above", above)
        blur = float(self._blur(above))
        low = self._weighed([self._above(p, above + blur)[0] for p in self._rules("count_above")])
        high = self._weighed([self._above(p, above - blur)[1] for p in self._rules("count_above")])
        count = self._estimate("count_above", lambda x: (x > above) * 1.0, low, high, None, limits=(0.0, 1.0))
        # The ends of an exact count are integers but for the rounding of the sums.
        lower, upper = (
            round(e) if abs(e - round(e)) <= 1e-9 + 1e-12 * self.dimension else e for e in (count.lower, count.upper)
        )
        return dataclasses.replace(count, lower=float(lower), upper=float(upper))

    def logdet(self, damping: float) -> Estimate:
        """`log det(1 + M/δ) = Σ log(1 + λ/δ)` with the damping δ > 0; zeros of M add nothing.

        For the log-determinant of M + δ add `size · log δ`.
        """
        delta = _checks.positive("density.logdet", "damping", damping)
        return self._bernstein("logdet", lambda x: np.log1p(x / delta), lambda x: 1 / (delta + x))

    def effective_dimension(self, damping: float) -> Estimate:
        """`Σ λ/(λ + δ)` with the damping δ > 0: how many directions the data determines against it."""
        delta = _checks.positive("density.effective_dimension", "damping", damping)
        return self._bernstein("effective_dimension", lambda x: x / (x + delta), lambda x: delta / (x + delta) / (x + delta))

    def integral(self, function: Function) -> Estimate:
        """`Σ f(λ)` over all eigenvalues, zeros too, for any f: with the interval of the probes, no bound for the steps.

        Args:
            function: f of an array of eigenvalues, elementwise. KPM has it smoothed over its resolution.
        """
        nodes, weights = _host(self.nodes), _host(self.weights)
        R = float(np.sum(weights * np.where(weights > 0, np.asarray(function(nodes), np.float64), 0)))
        e = self._estimate("integral", function, R, R, None)
        return dataclasses.replace(e, method=f"{e.method}; what the steps leave open is not in the interval")

    def _bernstein(self, name: str, f: Function, slope: Function) -> Estimate:
        """f whose odd derivatives are positive and even ones negative: Gauss lies above, Radau with a node at 0 below.

        Golub and Meurant, theorems 6.3 and 6.4.
        """
        rules = self._rules(name)
        if not self.psd and float(np.min(_host(self.nodes), initial=0.0)) < -float(self._blur(0.0)):
            raise _checks.fail(f"density.{name}", "the operator has negative eigenvalues", "use density.integral(f)")
        low, high = [], []
        for diagonal, coupling in rules:
            nodes, weights = _rule(diagonal, coupling)
            high.append(weights @ f(np.maximum(nodes, 0)))
            nodes, weights = _radau(diagonal, coupling, 0.0)
            low.append(weights @ f(np.maximum(nodes, 0)))
        return self._estimate(name, lambda x: f(np.maximum(x, 0)), self._weighed(low), self._weighed(high), slope)

    def _above(self, rule: tuple[np.ndarray, np.ndarray], tau: float) -> tuple[float, float]:
        """Bounds of a probe's measure above tau: of the rule with a node there, what is above and what is not below."""
        diagonal, coupling = rule[0], rule[1].copy()
        closed_here = coupling[-1] == 0
        if closed_here:  # to rounding
            coupling[-1] = 2 * self.floor
        nodes, weights = _radau(diagonal, coupling, tau)
        at = int(np.argmin(np.abs(nodes - tau)))
        share, rest = float(weights[nodes > nodes[at]].sum()), float(weights[at])
        if closed_here and (rest * self.dimension <= HIDDEN or not self.floor):  # the rule is the measure itself
            nodes, weights = _rule(*rule)
            share = float(weights[nodes > tau].sum())
            return share, share
        return share, min(1.0, share + rest)

    def _rules(self, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Tridiagonal matrix of each probe up to where its space closed: (diagonal `(l,)`, coupling `(l,)`)."""
        if self.diagonal is None or self.coupling is None:
            raise _checks.fail(f"density.{name}", f"nothing bounds the integrals of {self.method}", "use method=fj.SLQ()")
        return [closed(a, b) for a, b in zip(_host(self.diagonal), _host(self.coupling), strict=True)]

    def _pooled(self, values: np.ndarray) -> float:
        shares = _host(self.weights).sum(axis=1)  # one in all, but for the precision in which they are kept
        return float(shares @ values / shares.sum())

    def _weighed(self, values: list[float]) -> float:
        return self._pooled(np.asarray(values))

    def _estimate(
        self,
        name: str,
        f: Function,
        low: float,
        high: float,
        slope: Function | None,
        exact_rule: bool = False,
        limits: tuple[float, float] | None = None,
    ) -> Estimate:
        """Total over atoms, bulk and zeros from bounds of the pooled ratio.

        Args:
            slope: f' where f is smooth, for what rounding adds. exact_rule: the rule integrates f exactly.
            limits: of the values of f on the bulk, else those at the nodes and ends.
        """
        nodes, weights = _host(self.nodes), _host(self.weights)
        probes, d = weights.shape[0], self.dimension
        used = weights > 0
        count = int(used.sum())
        line = np.concatenate([nodes[used], self.ends, [0.0] if self.ends[0] < 0 < self.ends[1] else []])
        with np.errstate(divide="ignore", invalid="ignore"):
            images = np.asarray(f(line), np.float64)
            zero = float(np.asarray(f(np.zeros(1)), np.float64)[0]) if self.zeros > self.hidden else 0.0
        if not (np.isfinite(images).all() and np.isfinite(zero)):
            raise _checks.fail(
                "density", f"{name}: f is not finite at every node or at zero", "give f finite on the spectrum"
            )
        a, b = limits or (float(images.min()), float(images.max()))
        # What rounding in the products, and errors of the projected vectors, add to the total.
        rounding = 0.0
        if slope is not None:
            steepness = np.asarray(slope(np.abs(line)), np.float64)
            largest = max(float(np.abs(line).max()), float(np.abs(_host(self.atoms)).max(initial=0.0)))
            relative = self.floor / largest if largest else 0.0
            norm = _root_mean_square(weights.sum(axis=1), _host(self.means)[:, 1])
            rounding = d * relative * norm * _root_mean_square(weights[used], steepness[:count])
            if not exact_rule:
                rounding += self.leak * float(np.abs(steepness).max())
        low, high = (min(max(r, a), b) for r in (low, high))
        middle = (low + high) / 2
        lower, upper = low, high
        if a < 0 < b and weights.shape[1] > 1:  # one node has one sign, and does not tell the parts apart
            # Two functions of one sign, each with half the doubt: most eigenvalues lie at zero, far from both ends.
            for sign, most in ((1, b), (-1, -a)):
                R = min(1.0, float(weights[used] @ np.maximum(sign * images[:count], 0)) / most)
                short, over = (most * abs(float(x) - R) for x in _proportion(np.array(R), np.array(R), d, probes, 2))
                lower, upper = lower - (short if sign > 0 else over), upper + (over if sign > 0 else short)
        elif b > a:
            part = _proportion(np.array((low - a) / (b - a)), np.array((high - a) / (b - a)), d, probes)
            lower, upper = (a + (b - a) * float(x) for x in part)
        spread = _root_mean_square(weights[used], images[:count] - weights[used] @ images[:count])
        error = d * (2 / (probes * d + 2)) ** 0.5 * spread if b > a else 0.0
        rest, rest_low, rest_high = self._known(f)
        rest, rest_low, rest_high = (x + zero * (self.zeros - self.hidden) for x in (rest, rest_low, rest_high))
        return Estimate(
            value=d * middle + rest,
            lower=d * lower + rest_low - rounding,
            upper=d * upper + rest_high + rounding,
            standard_error=error,
            products=self.products,
            confidence=CONFIDENCE,
            method=self.method,
        )

    def _known(self, f: Function) -> tuple[float, float, float]:
        """(value, lower, upper) of `Σ f` over the atoms."""
        atoms, bounds = _host(self.atoms), _host(self.atom_bounds)
        images = np.stack([np.asarray(f(x), np.float64) for x in (atoms, atoms - bounds, atoms + bounds)])
        return float(images[0].sum()), float(images.min(axis=0).sum()), float(images.max(axis=0).sum())

    def __repr__(self) -> str:
        rows = [
            ("bulk, eigenvalues above rounding", f"{self.bulk:.5g} between {self.ends[0]:.3g} and {self.ends[1]:.5g}"),
            ("below rounding, zero or not", f"{self.unresolved:.5g} (rounding {float(self._blur(0.0)):.1e})"),
            ("exact zeros", f"{self.zeros} of {self.size}"),
        ]
        if self.atoms.size:
            rows.insert(0, ("outliers, exact", ", ".join(f"{float(v):.6g}" for v in self.atoms)))
        for title, number in (("trace", self.trace()), ("‖·‖_F", self.frobenius())):
            sure = 100 * number.confidence
            rows.append((title, f"{number.value:.6g} in [{number.lower:.6g}, {number.upper:.6g}] ({sure:g} %)"))
        rows += [("products", f"{self.products}"), ("method", self.method)]
        if note := dict(self.info).get("note"):
            rows.append(("note", note))
        return aligned(rows)


register(Density)


def _host(a: Any) -> np.ndarray:
    return np.asarray(a, np.float64)


def _root_mean_square(weights: np.ndarray, values: np.ndarray) -> float:
    """Of values whose squares need not be numbers; the weights sum to one."""
    largest = float(np.abs(values).max(initial=0.0))
    return largest * float(weights @ (values / largest) ** 2) ** 0.5 if largest else 0.0


# --- quadrature rules -------------------------------------------------------------------------------------------------


def closed(diagonal: np.ndarray, coupling: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of a tridiagonal matrix up to the first coupling of zero, where the Krylov space closed."""
    ends = np.flatnonzero(coupling == 0)
    length = int(ends[0]) + 1 if ends.size else len(diagonal)
    return diagonal[:length], coupling[:length]


def _rule(diagonal: np.ndarray, coupling: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss rule (nodes `(l,)` ascending, weights `(l,)` that sum to one) of the tridiagonal matrix.

    Golub and Welsch, Math. Comp. 23, 1969.
    """
    nodes, vectors = scipy.linalg.eigh_tridiagonal(diagonal, coupling[: len(diagonal) - 1])
    return nodes, vectors[0] ** 2


def _radau(diagonal: np.ndarray, coupling: np.ndarray, node: float) -> tuple[np.ndarray, np.ndarray]:
    """Rule with one more node, at `node`; the Gauss rule where that is exact or has the node already.

    Golub and Meurant, section 6.2: the last diagonal entry is `node + β² eᵀ (T − node)⁻¹ e`, here by elimination.
    """
    last = coupling[-1]
    if last == 0:
        return _rule(diagonal, coupling)
    tiny = np.finfo(np.float64).eps * max(np.abs(diagonal).max(), coupling.max(), abs(node))
    pivot = diagonal[0] - node
    for a, b in zip(diagonal[1:], coupling[:-1], strict=True):
        pivot = a - node - b * (b / (pivot if abs(pivot) > tiny else tiny))
    if abs(pivot) <= tiny:
        return _rule(diagonal, coupling)
    return _rule(np.append(diagonal, node + last * (last / pivot)), np.append(coupling, 0.0))


# --- what few probes leave open ---------------------------------------------------------------------------------------


def _proportion(
    low: np.ndarray, high: np.ndarray, dimension: int, probes: int, claims: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Interval for the mean over `dimension` eigenvalues of a function with values in [0, 1].

    Solves `P(Beta(m c/2, m (d − c)/2) <= R) = 1 − TAIL` and `= TAIL` for c by bisection: decreasing in c.

    Args:
        low, high: `(g,)` bounds of the pooled ratio R. claims: how many such intervals hold together.
    """
    probability = 1 - TAIL / claims
    # Of the squares of the probes, what lies along one eigenvector at most.
    one = scipy.special.betaincinv(probes / 2, probes * (dimension - 1) / 2, probability) if dimension > 1 else 1.0

    def least(R: np.ndarray) -> np.ndarray:
        below, above = np.zeros(R.shape), np.ones(R.shape)
        for _ in range(60):
            middle = (below + above) / 2
            half = probes * dimension * middle / 2
            chance = scipy.special.betainc(half, probes * dimension / 2 - half, R)
            below, above = np.where(chance > probability, middle, below), np.where(chance > probability, above, middle)
        lower = (below + above) / 2
        # Less than one eigenvalue's worth: none has the value 1. R spreads most if one has a smaller value, others none.
        return np.minimum(np.where(dimension * lower < 1, R / (dimension * one), lower), R)

    return least(np.clip(low, 0, 1)), 1 - least(1 - np.clip(high, 0, 1))
