"""Results of experiments: records that print themselves, and are saved and loaded as those of `results` are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax._record import record, static
from fisher_jax.results import Spectrum, Training, aligned, register

Array = jax.Array


@record
class PhaseDiagram:
    """The spectrum of perceptrons over a grid of weight and bias variances: theory's, and that of finite networks.

    Rows: weight variances, columns: bias variances; measured numbers have one more axis, of the networks at each point.
    """

    weight_variances: Array  # (A,) σ_w²
    bias_variances: Array  # (B,) σ_b²
    chi: Array  # (A, B) χ at the fixed point of the variance: below 1 order, above 1 chaos
    edge: Array  # (B,) the σ_w² at which χ = 1
    trace: Array  # (A, B) predicted
    lambda_max: Array  # (A, B) predicted
    bulk: Array  # (A, B) predicted mean of the eigenvalues below λ_max
    measured_trace: Array  # (A, B, S)
    measured_lambda_max: Array  # (A, B, S)
    measured_bulk: Array  # (A, B, S)
    activation: str = static()
    info: tuple[tuple[str, str], ...] = static(default=())

    @property
    def outlier_ratio(self) -> Array:
        """λ_max over the mean of the bulk, `(A, B)`; 1 where there is no outlier."""
        return self.lambda_max / self.bulk

    @property
    def measured_outlier_ratio(self) -> Array:
        """`(A, B, S)`."""
        return self.measured_lambda_max / self.measured_bulk

    def __repr__(self) -> str:
        rows = [
            ("activation", self.activation),
            ("weight variances σ_w²", _range(self.weight_variances)),
            ("bias variances σ_b²", _range(self.bias_variances)),
            ("χ", _range(self.chi)),
            ("edge of chaos, σ_w² where χ = 1", _range(self.edge)),
        ]
        networks = self.measured_trace.shape[-1]
        for name in ("trace", "lambda_max", "outlier_ratio"):
            predicted = np.asarray(getattr(self, name), np.float64)
            rows.append((f"{name.replace('_', ' ')}, predicted", _range(predicted)))
            if networks:
                measured = np.asarray(getattr(self, f"measured_{name}"), np.float64).mean(axis=-1)
                off = np.quantile(np.abs(measured / predicted - 1), (0.5, 0.9))
                rows.append(
                    (
                        f"  mean of {networks} networks against it",
                        f"within {off[0]:.1%} at half, {off[1]:.1%} at 90 % of the points",
                    )
                )
        return aligned(rows)


def _range(values: Any) -> str:
    values = np.asarray(values)
    return f"{values.size} from {float(values.min()):.4g} to {float(values.max()):.4g}"


@record
class WeightEnsembles:
    """Trace and λ_max of many networks at initialization, with Gaussian and with orthogonal weights."""

    trace: Array  # (2, S): Gaussian, orthogonal
    lambda_max: Array  # (2, S)
    predicted_trace: float  # of both, at infinite width
    predicted_lambda_max: float
    method: str = static()
    info: tuple[tuple[str, str], ...] = static(default=())

    def __repr__(self) -> str:
        lines = [f"{'':<22}  {'predicted':>10}  {'mean':>10}  {'std. error':>10}  {'sd of one network':>17}"]
        for name in ("trace", "lambda_max"):
            predicted = getattr(self, f"predicted_{name}")
            for weights, values in zip(("Gaussian", "orthogonal"), np.asarray(getattr(self, name), np.float64), strict=True):
                mean, sd = values.mean(), values.std(ddof=1)
                label = f"{name.replace('_', ' ')}, {weights}"
                lines.append(f"{label:<22}  {predicted:>10.5g}  {mean:>10.5g}  {sd / values.size**0.5:>10.2g}  {sd:>17.3g}")
        return "\n".join([*lines, f"{self.trace.shape[1]} networks each; {self.method}"])


@record
class Pretraining:
    """The spectrum of a network before and after a short training, on samples that it did not see."""

    before: Spectrum
    after: Spectrum
    history: Training
    outputs: int = static()

    def outliers(self) -> tuple[tuple[int, float], tuple[int, float]]:
        """(eigenvalues above the widest gap, ratio across it) before and after; see `widest_gap`."""
        return widest_gap(self.before.values, 2 * self.outputs), widest_gap(self.after.values, 2 * self.outputs)

    def __repr__(self) -> str:
        (count, gap), (count_after, gap_after) = self.outliers()
        rows = [
            ("λ_max", self.before.lambda_max, self.after.lambda_max),
            ("trace", self.before.trace, self.after.trace),
            ("effective rank, trace/λ_max", self.before.effective_rank, self.after.effective_rank),
            (f"eigenvalues above the widest gap (of the first {2 * self.outputs})", count, count_after),
            ("ratio across it", gap, gap_after),
        ]
        lines = [f"{'':<48}  {'before':>10}  {'after':>10}"]
        lines += [f"{name:<48}  {first:>10.5g}  {second:>10.5g}" for name, first, second in rows]
        epochs, accuracy = self.history.epochs.size, float(self.history.test_accuracy[-1])
        return "\n".join([*lines, f"after {epochs} epochs: test accuracy {100 * accuracy:.1f} %"])


def widest_gap(values: Any, most: int) -> tuple[int, float]:
    """(k, λ_k/λ_{k+1}) of the largest ratio among the first `most` eigenvalues: what stands out of the bulk."""
    top = np.asarray(values, np.float64)[: most + 1]
    ratios = top[:-1] / top[1:]
    k = int(np.argmax(ratios))
    return k + 1, float(ratios[k])


@record
class Separability:
    """Two inputs on their way through random networks: what the recursions say, and what many finite networks do.

    After 0, 1, ..., L layers or blocks; squared norms and distances in units of the inputs' squared norm.
    """

    predicted_angle: Array  # (L + 1,)
    predicted_norm: Array  # (L + 1,) squared
    predicted_distance: Array  # (L + 1,) squared
    predicted_coactivation: Array  # (L,) probability that a unit of a layer or block is active for both
    angle: Array  # (S, L + 1) of each network
    norm: Array  # (S, L + 1), mean of the two inputs
    distance: Array  # (S, L + 1)
    coactivation: Array  # (S, L) share of units
    kind: str = static()
    info: tuple[tuple[str, str], ...] = static(default=())

    def __repr__(self) -> str:
        names = ("angle", "norm", "distance", "coactivation")
        seeds = self.angle.shape[0]
        lines = [f"{self.kind}, {seeds} networks: predicted, and mean ± standard error"]
        lines.append("depth" + "".join(f"  {name:>30}" for name in ("angle", "|h|²", "|h − h'|²", "co-activation")))
        for depth in range(self.angle.shape[1]):
            cells = []
            for name in names:
                values = np.asarray(getattr(self, name), np.float64)
                if depth < values.shape[1]:
                    predicted = float(getattr(self, f"predicted_{name}")[depth])
                    error = values[:, depth].std(ddof=1) / seeds**0.5
                    cells.append(f"{predicted:.4g}, {values[:, depth].mean():.4g} ± {error:.2g}")
            lines.append(f"{depth:>5}" + "".join(f"  {cell:>30}" for cell in cells))
        return "\n".join(lines)


@record
class ClassErrors:
    """Two classes on their way through random networks: the bound on their error, and the error of the best threshold.

    After 0, 1, ..., L layers or blocks, along the difference of the class means; the larger of the two classes' errors.
    """

    bound: Array  # (S, L + 1) from the first two moments, 1/(1 + r²)
    error: Array  # (S, L + 1) share of samples, never above the bound
    predicted_bound: Array  # (L + 1,) of infinitely wide networks on the same samples
    predicted_error: Array  # (L + 1,)
    kind: str = static()
    info: tuple[tuple[str, str], ...] = static(default=())

    def __repr__(self) -> str:
        lines = [f"{self.kind}, {self.bound.shape[0]} networks"]
        lines.append(f"depth  {'bound':>10}  {'error':>10}  {'bound, infinite width':>21}  {'error, infinite width':>21}")
        for depth in range(self.bound.shape[1]):
            bound, error = (float(np.asarray(a, np.float64)[:, depth].mean()) for a in (self.bound, self.error))
            wide = f"{float(self.predicted_bound[depth]):>21.4g}  {float(self.predicted_error[depth]):>21.4g}"
            lines.append(f"{depth:>5}  {bound:>10.4g}  {error:>10.4g}  {wide}")
        return "\n".join(lines)


@record
class LearningRates:
    """Gradient descent at several rates, as multiples c of the largest stable one: where it stops being stable."""

    factors: Array  # (R,) c, ascending
    loss: Array  # (R, steps + 1) before each step and after the last
    transient: Array  # (R,) largest loss over the first, infinite if it overflowed
    stable: Array  # (R,) bool: the loss never rose, or with momentum no more than that of a stable mode may
    unstable: Array  # (R,) bool: it rose ten times as much; between the two the run was too short to tell
    lower: float  # the largest stable c below all unstable ones, 0 if there is none
    upper: float  # the smallest unstable c, infinite if there is none
    limit: float  # the rate c = 1: 2 (1 + momentum)/λ_max
    lambda_max: float  # measured
    predicted: float  # λ_max by theory, NaN where it says nothing
    momentum: float
    info: tuple[tuple[str, str], ...] = static(default=())

    @property
    def largest(self) -> float:
        """The largest stable rate: the middle of the bracket."""
        return self.limit * (self.lower + self.upper) / 2

    def __repr__(self) -> str:
        rows = [
            ("λ_max at the start", f"{self.lambda_max:.6g}"),
            ("λ_max by theory", f"{self.predicted:.6g}" if np.isfinite(self.predicted) else "not covered"),
            (f"limit {'2 (1 + β)/λ_max' if self.momentum else '2/λ_max'}", f"{self.limit:.6g}"),
            ("largest stable rate, measured", f"{self.lower * self.limit:.6g} ... {self.upper * self.limit:.6g}"),
            ("over the limit", f"{self.lower:.4g} ... {self.upper:.4g}"),
        ]
        table = [f"{'rate / limit':>12}  {'max / first loss':>16}  {'last / first loss':>17}  stable"]
        runs = zip(self.factors, self.transient, self.loss, self.stable, self.unstable, strict=True)
        for c, transient, loss, stable, unstable in runs:
            numbers = f"{float(c):>12.4g}  {float(transient):>16.4g}  {float(loss[-1]) / float(loss[0]):>17.4g}"
            table.append(f"{numbers}  {'yes' if stable else 'NO' if unstable else 'open'}")
        return "\n".join([aligned(rows), *table])


@record
class Generalization:
    """How much better networks do on what they were trained on: one row for each kind, one column for each seed.

    The loss is that of a sample, ½ |f(x) − y|², averaged.
    """

    names: tuple[str, ...] = static()
    train: Array  # (A, S) loss on the training samples at the end
    test: Array  # (A, S) expected loss on new samples, or that on a test set
    # (A, S, N) by how much a training sample's loss grows if it is left out of the training
    left_out: Array | None = None
    bound: Array | None = None  # (A, S) of the gap, and twice that of `left_out`
    info: tuple[tuple[str, str], ...] = static(default=())

    @property
    def gap(self) -> Array:
        """Test minus training loss, `(A, S)`. Of a network that is not trained to the end it is a lower bound."""
        return self.test - self.train

    @property
    def stability(self) -> Array | None:
        """`|loss of a sample without it in the training − with it|`, averaged over the samples, `(A, S)`."""
        return None if self.left_out is None else jnp.mean(jnp.abs(self.left_out), axis=2)

    def __repr__(self) -> str:
        titles = ["gap, mean ± s.e.", "median", "training loss, median", "largest", "test loss, mean"]
        gap, train, test = (np.asarray(a, np.float64) for a in (self.gap, self.train, self.test))
        columns = [
            [f"{g.mean():.4g} ± {g.std(ddof=1) / g.size**0.5:.2g}" if g.size > 1 else f"{g[0]:.4g}" for g in gap],
            *([f"{a:.4g}" for a in b] for b in (np.median(gap, 1), np.median(train, 1), train.max(1), test.mean(1))),
        ]
        for title, values in (("stability, median", self.stability), ("bound of the gap, median", self.bound)):
            if values is not None:
                titles.append(title)
                columns.append([f"{a:.4g}" for a in np.median(np.asarray(values, np.float64), 1)])
        table = [["", *titles], *([name, *row] for name, row in zip(self.names, zip(*columns, strict=True), strict=True))]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in table]
        return "\n".join([*lines, f"{gap.shape[1]} seeds"])


register(ClassErrors, Generalization, LearningRates, PhaseDiagram, Separability, WeightEnsembles)
