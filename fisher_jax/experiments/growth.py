"""Which law a quantity follows as the depth grows."""

from typing import Any

import numpy as np

from fisher_jax import _checks
from fisher_jax._record import record, static

# Two curves that differ by this share everywhere are the same law.
RESOLUTION = 0.02


@record
class Growth:
    """A law `y(L)` fitted to measurements: `kind` with amplitude a and `rate` r.

    flat a; flat in the limit: a + r/L; linear a + r L; L log L: a + r L log L; power a L^r; exponential a r^L.
    """

    kind: str = static()
    amplitude: float
    rate: float  # NaN for flat
    error: float  # standard error of the rate, NaN for flat
    misfit: float  # root mean square of the residuals of log y, over their uncertainty

    def __call__(self, depth: Any) -> np.ndarray:
        L = np.asarray(depth, float)
        a, r = self.amplitude, self.rate
        return {
            "flat": lambda: np.full(L.shape, a),
            "flat in the limit": lambda: a + r / L,
            "linear": lambda: a + r * L,
            "L log L": lambda: a + r * L * np.log(L),
            "power": lambda: a * L**r,
            "exponential": lambda: a * np.exp(L * np.log(r)),
        }[self.kind]()

    def __repr__(self) -> str:
        error = f" ± {self.error:.1g}" if self.error >= 5e-4 else ""
        if self.kind in ("flat", "flat in the limit"):
            return f"{self.kind}, {self.amplitude:.3g}"
        if self.kind == "power":
            return f"power L^{self.rate:.2f}{error}"
        if self.kind == "exponential":
            return f"exponential {self.rate:.3f}^L{error}"
        return f"{self.kind}, × {self.rate:.3g}"


# log y of each law, for a curve relative to its geometric mean; power and exponential with the logarithm of their amplitude.
_TINY = 1e-300
_LAWS: dict[str, Any] = {
    "flat": lambda L, a: np.log(np.maximum(a, _TINY)) + 0 * L,
    "flat in the limit": lambda L, a, r: np.log(np.maximum(a + r / L, _TINY)),
    "linear": lambda L, a, r: np.log(np.maximum(a + r * L, _TINY)),
    "L log L": lambda L, a, r: np.log(np.maximum(a + r * L * np.log(L), _TINY)),
    "power": lambda L, a, r: a + r * np.log(L),
    "exponential": lambda L, a, r: a + r * L,
}
_TERMS = {"flat in the limit": lambda L: 1 / L, "linear": lambda L: L, "L log L": lambda L: L * np.log(L)}


def growth(depths: Any, values: Any, errors: Any = 0.0, prefer: str | None = None) -> Growth:
    """The law among flat, linear, L log L, power and exponential that describes a curve best.

    Least squares of log y, weighted by the uncertainties; of the laws, the one of least χ² + 2 · parameters (Akaike). A line
    or an exponential must change by more than a factor 2 over the range, a limit be within a factor 2 of the last value.
    Over few depths a slow power and a logarithm look alike: compare with the law fitted to the predicted curve.

    Args:
        depths: L `(n,)`, at least three different. values: positive `(n,)`. errors: standard errors of the values; those
            below 2 % count as 2 %.
        prefer: the law to name if the values cannot tell it from the best one, that is, its criterion is within 2.

    Returns:
        Growth.

    Raises:
        ArgumentError: fewer than three depths, values that are not positive.
    """
    from scipy.optimize import least_squares

    L, y = np.asarray(depths, float), np.asarray(values, float)
    if L.ndim != 1 or L.shape != y.shape or np.unique(L).size < 3 or (L <= 0).any():
        raise _checks.fail(
            "growth", f"depths={L.tolist()}", "give at least three different positive depths, one for each value"
        )
    if not (np.isfinite(y) & (y > 0)).all():
        raise _checks.fail("growth", f"values={y.tolist()} are not all positive", "give positive finite values")
    sigma = np.maximum(np.broadcast_to(np.asarray(errors, float), y.shape) / y, RESOLUTION)
    center = np.log(y).mean()
    log = np.log(y) - center
    found = []
    for kind, law in _LAWS.items():
        start = _start(kind, L, log)
        if start is None:
            continue
        fit = least_squares(lambda p, law=law: (law(L, *p) - log) / sigma, start)
        best, covariance = fit.x, np.linalg.pinv(fit.jac.T @ fit.jac)
        if not _admissible(kind, best, L, log):
            continue
        chi = 2 * float(fit.cost)
        a, r, error = best[0], np.nan, np.nan
        if best.size == 2:
            r, error = best[1], covariance[1, 1] ** 0.5
        if kind == "exponential":
            r, error = np.exp(r), np.exp(r) * error
        a = np.exp(a + center) if kind in ("power", "exponential") else a * np.exp(center)
        if kind in _TERMS:
            r, error = r * np.exp(center), error * np.exp(center)
        numbers = (float(a), float(r), float(error), float((chi / y.size) ** 0.5))
        found.append((chi + 2 * best.size, Growth(kind, *numbers)))
    best = min(found, key=lambda item: item[0])
    return next((law for score, law in found if law.kind == prefer and score <= best[0] + 2), best[1])


def _start(kind: str, L: np.ndarray, log: np.ndarray) -> Any:
    if kind == "flat":
        return [1.0]
    if kind in ("power", "exponential"):
        return np.polyfit(np.log(L) if kind == "power" else L, log, 1)[::-1]
    # Least squares in y, weighted as in log y to first order.
    r, a = np.polyfit(_TERMS[kind](L), np.exp(log), 1, w=np.exp(-log))
    return [a, r] if (a + r * _TERMS[kind](L) > 0).all() else None


def _admissible(kind: str, best: np.ndarray, L: np.ndarray, log: np.ndarray) -> bool:
    if kind in ("linear", "L log L"):
        return bool(best[1] * np.ptp(_TERMS[kind](L)) > np.exp(log).min())
    if kind == "exponential":
        return bool(np.log(2) < abs(best[1]) * np.ptp(L))
    last = np.exp(log[np.argmax(L)])
    return kind != "flat in the limit" or last / 2 < best[0] < 2 * last
