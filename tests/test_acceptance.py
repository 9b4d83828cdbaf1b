"""What theory says of each architecture, measured on finite random networks: values and growth with depth.

All He-ReLU at initialization, standard parametrization, no biases, squared error unless said otherwise; traces and largest
eigenvalues over the number of inputs D. `1.231(16)` is a mean and its standard error in the last digits: another program,
fresh data for every network. Ours see the same data, scaled to |x|² = D.

    row                             here                                        elsewhere
    MLP                             test_mlp, test_small_targets                test_models: other widths
    skip over one layer, pre        test_skip_over_one_layer                    test_models: L = 2
    skip over one layer, post       test_skip_over_one_layer_activation_last    test_models: L = 2
    skip over two layers            test_skip_over_two_layers                   test_models: L = 2, 4
    + population norm               test_population_norm                        test_models: L = 8, 16
    + batch norm, frozen            test_batch_norm_frozen                      test_models: L = 2, 4, and "train"
    MLP + batch norm, frozen        test_mlp_with_batch_norm                    test_theory: L = 4
    Fixup                           test_fixup                                  test_models: with scalars
    SkipInit                        test_skipinit
    branches / √L                   test_branches_over_root_of_depth
    concatenating skip              test_concatenating_skip                     test_models: L = 4, 8
    stochastic depth                test_stochastic_depth, ..._average (slow)   test_theory: all masks counted
    dropout, inverted and raw       test_dropout, ..._of_the_mean_network_..    test_models: L = 3
    mean subtraction                test_mean_subtraction                       test_theory: the edge, from kernels
    softmax                         test_softmax                                test_theory: from kernels
    laws at L = 16 to 32            test_deep_networks (slow)                   test_theory: predicted, to L = 1000
    erf, one hidden layer, trace/P                                              test_theory: test_one_hidden_layer_...
    linear orthogonal, one sample   test_one_sample_of_an_orthogonal_network    test_theory: to 1e-4
"""

import re
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import fisher_jax as fj
from fisher_jax.experiments import VARIANTS, ensemble, growth

pytestmark = [pytest.mark.usefixtures("optimized"), pytest.mark.filterwarnings("ignore:theory of")]

KEY = jax.random.key(0)


class Means(NamedTuple):
    """Means over networks and their standard errors, one for each depth."""

    mean: np.ndarray
    error: np.ndarray

    def __truediv__(self, other):
        return Means(self.mean / other, self.error / other)

    def __getitem__(self, at):
        return Means(self.mean[at], self.error[at])


class Cell(NamedTuple):
    trace: np.ndarray  # (seeds,) over D, as the next
    largest: np.ndarray
    law: Any
    width: int


def sphere(samples, width):
    """Data `(N, D)`, |x|² = D; the features of each sample have mean zero, as those of random data nearly have."""
    x = np.random.default_rng(0).normal(size=(samples, width))
    x -= x.mean(axis=1, keepdims=True)
    return x * (width / np.sum(x**2, axis=1, keepdims=True)) ** 0.5


def means(values):
    """Of `(..., seeds)`."""
    values = np.asarray(values)
    return Means(values.mean(-1), values.std(-1, ddof=1) / values.shape[-1] ** 0.5)


def measure(name, depth, *, seeds, width=256, samples=16, **more):
    """Networks of a row of VARIANTS, and what is predicted for them."""
    options, matrix = VARIANTS[name].at(depth, width)
    x, options = sphere(samples, width), options | more
    values = ensemble(VARIANTS[name].model, x, fj.Gaussian(), seeds=seeds, key=KEY, **matrix, **options)
    law = fj.theory.predict(VARIANTS[name].model, x=x, **{k: v for k, v in matrix.items() if k == "bn"}, **options)
    return Cell(values.sum(1) / width, values[:, 0] / width, law, width)


def sweep(name, depths, **more):
    """(traces, largest eigenvalues, mean eigenvalues times D, cells)."""
    cells = [measure(name, int(depth), **more) for depth in depths]
    trace = means([cell.trace for cell in cells])
    P = np.array([cell.law.size for cell in cells], float)
    return trace, means([cell.largest for cell in cells]), trace / (P / cells[0].width ** 2), cells


def agree(found, expected, *, excess=0.0, at_most=np.inf):
    """Within four standard errors, and above by no more than `excess`; the errors are shares `at_most`, or prove nothing."""
    expected = np.asarray(expected)
    assert (found.error < at_most * expected).all(), found
    low, high = expected - 4 * found.error, expected * (1 + np.asarray(excess)) + 4 * found.error
    assert (low <= found.mean).all() and (found.mean <= high).all(), (found, expected)


def as_predicted(trace, largest, depths, cells, *, at_most=0.05):
    """The trace without bias, λ_max with one of 12/D to depth 2 and 6/D beyond."""
    width = cells[0].width
    agree(trace, [cell.law.trace / width for cell in cells], at_most=at_most)
    excess = np.where(np.asarray(depths) <= 2, 12, 6) / width
    agree(largest, [cell.law.lambda_max / width for cell in cells], excess=excess, at_most=1.2 * at_most)


def tabled(text):
    """`3.537(32) 64(2)` -> Means."""
    found = re.findall(r"(\d*\.?(\d*))\((\d+)\)", text)
    return Means(np.array([float(v) for v, _, _ in found]), np.array([int(e) / 10 ** len(d) for _, d, e in found]))


def as_measured(found, text):
    """Within four standard errors of the difference."""
    table = tabled(text)
    assert table.mean.shape == found.mean.shape
    assert (np.abs(found.mean - table.mean) <= 4 * np.hypot(found.error, table.error)).all(), (found, table)


def exponent(found, depths):
    """(local exponent d log y / d log L of the last two depths, its standard error)."""
    return _slope(found, np.log(depths))


def per_block(found, depths):
    """(factor per block between the last two depths, its standard error)."""
    slope, error = _slope(found, depths)
    return np.exp(slope), np.exp(slope) * error


def _slope(found, at):
    step = at[-1] - at[-2]
    return np.log(found.mean[-1] / found.mean[-2]) / step, np.hypot(*(found.error / found.mean)[-2:]) / step


def close(measured, expected, at_most):
    """(value, standard error) within four of them, which are small."""
    value, error = measured
    assert error < at_most and abs(value - expected) < 4 * error, (measured, expected)


# --- the rows ---------------------------------------------------------------------------------------------------------


def test_mlp():
    """Trace L, m flat, λ_max linear."""
    depths = np.array([2, 4, 8])
    trace, largest, m, cells = sweep("mlp", depths, seeds=24, width=512)
    as_predicted(trace, largest, depths, cells, at_most=0.06)
    agree(trace, depths)
    as_measured(trace, "2.025(15) 3.932(46) 8.04(12)")
    as_measured(largest[:2], ".4308(23) 1.231(16)")
    assert growth(depths, *trace, prefer="linear").kind == "linear"
    close(exponent(trace, depths), 1, 0.1)
    agree(m, depths / (depths - 1))
    assert growth(depths, *m).kind == "flat in the limit"
    close(exponent(largest, depths), np.log2(cells[2].law.lambda_max / cells[1].law.lambda_max), 0.12)


def test_skip_over_one_layer():
    """Trace 2^L (L/4 + 2), base 2 for each matrix; m exponential."""
    depths = np.array([1, 4, 8])
    trace, largest, m, cells = sweep("skip1", depths, seeds=40)
    as_predicted(trace, largest, depths, cells)
    agree(trace, 2.0**depths * (depths / 4 + 2))
    as_measured(trace, "4.52(6) 48.1(10) 976(37)")
    as_measured(largest, ".765(11) 15.07(42) 367(19)")
    base = growth(depths, *trace / (depths / 4 + 2))
    assert base.kind == "exponential" and abs(base.rate - 2) < 4 * base.error < 0.12
    assert growth(depths, *m).kind == "exponential"


@pytest.mark.slow
def test_skip_over_one_layer_activation_last():
    """2.904^L: the branch has a mean, which adds up until one eigenvalue takes all of the trace."""
    depths = np.array([1, 4, 8])
    trace, largest, m, cells = sweep("skip1-post", depths, seeds=40)
    as_predicted(trace, largest, depths, cells)
    agree(trace, [2.5, 56.6128, 4000.98])
    as_measured(trace, "2.529(17) 56.7(10) 3879(120)")
    as_measured(largest, ".478(5) 33.96(65) 3231(110)")
    close(per_block(trace, depths), 2.904, 0.03)  # between L = 4 and 8: 2.8995
    law = growth(depths, *m)
    assert law.kind == "exponential" and law.rate > 2
    share = largest.mean / trace.mean
    assert (np.diff(share) > 0).all() and share[-1] > 0.8 > 4 * share[0]


def test_skip_over_two_layers():
    """Trace 2^L (1 + 3 L/4): base 2 for two matrices; m exponential."""
    depths = np.array([2, 8, 10])
    trace, largest, m, cells = sweep("skip2", depths, seeds=40)
    as_predicted(trace, largest, depths, cells)
    agree(trace, 2.0**depths * (1 + 0.75 * depths))
    as_measured(trace, "10.04(15) 1828(46) 9123(260)")
    as_measured(largest, "3.068(56) 721(22) 3607(130)")
    base = growth(depths, *trace / (1 + 0.75 * depths))
    assert base.kind == "exponential" and abs(base.rate - 2) < 4 * base.error < 0.12
    assert growth(depths, *m).kind == "exponential"
    close(per_block(trace, depths), 2.204, 0.06)
    close(per_block(largest, depths), 2.214, 0.07)


def harmonic(depths):
    return np.array([np.sum(1 / np.arange(1, L + 1)) for L in depths])


def test_population_norm():
    """Trace (L + 2)/2 + (3/4)(L + 2)(H_{L+2} − 3/2) ~ L log L; m ~ log L."""
    depths = np.array([1, 4, 8])
    trace, largest, m, cells = sweep("bn", depths, seeds=40)
    as_predicted(trace, largest, depths, cells)
    agree(trace, (depths + 2) / 2 + 0.75 * (depths + 2) * (harmonic(depths + 2) - 1.5))
    as_measured(trace, "2.270(17) 7.246(71) 15.82(24)")
    as_measured(largest, ".4638(55) 2.178(29) 5.28(10)")
    assert trace.mean[2] == pytest.approx(15.72, rel=0.07)
    # m is not yet on its way up: 0.909 at L = 4, 0.982 at 8.
    close(exponent(m, depths), np.log2(0.982 / 0.909), 0.05)
    close(exponent(largest, depths), np.log2(5.060 / 2.110), 0.05)


@pytest.mark.slow
def test_batch_norm_frozen():
    """Local exponents rise towards 1.467 of the trace and 0.467 of m, their values for batches without end."""
    depths = np.array([1, 4, 8])
    trace, largest, m, cells = sweep("bn-batch", depths, seeds=16, samples=64)
    as_predicted(trace, largest, depths, cells)
    as_measured(trace, "2.264(22) 8.14(10) 19.6(6)")
    as_measured(largest, ".3427(65) 1.60(3) 3.62(10)")
    assert largest.mean[2] == pytest.approx(3.53, rel=0.14)
    first, last = exponent(trace[:2], depths[:2]), exponent(trace, depths)
    close(first, np.log(7.774 / 2.255) / np.log(4), 0.03)
    close(last, np.log2(18.40 / 7.774), 0.06)
    # m: rising, and sublinear.
    value, error = exponent(m, depths)
    assert 0 < value - 4 * error and value + 4 * error < 0.6


def test_mlp_with_batch_norm():
    """1.467 for each layer if batches had no end: (1 + Σ_{l=2}^{L−1} 1.467^{L−l} + 1.467^{L−2})/2; more in one of 64."""
    depths = np.array([2, 4, 8])
    trace, largest, m, cells = sweep("mlp-bn", depths, seeds=16, samples=64)
    as_predicted(trace, largest, depths, cells)
    as_measured(trace[:2], "1.04(2) 3.60(8)")
    g = np.pi / (np.pi - 1)
    endless = np.array([(1 + sum(g**k for k in range(1, L - 1)) + g ** (L - 2)) / 2 for L in depths])
    # A quarter more at L = 8.
    above = trace[2] / endless[2]
    assert above.mean > 1 + 3 * above.error and abs(above.mean - 1.25) < 4 * above.error
    law = growth(depths, *trace)
    assert law.kind == "exponential" and law.rate - 4 * law.error > g
    # m is the trace over P ~ L − 1.
    factor, error = per_block(m, depths)
    assert growth(depths, *m).kind == "exponential" and factor - 4 * error > 1.2


@pytest.mark.slow
def test_fixup():
    """Trace 2 and λ_max at every depth; m ~ 1/L."""
    depths = np.array([1, 4, 16])
    trace, largest, m, cells = sweep("fixup", depths, seeds=30)
    as_predicted(trace, largest, depths, cells, at_most=0.03)
    agree(trace, np.full(3, 2.0))
    as_measured(trace, "2.010(21) 1.989(19) 2.015(21)")
    as_measured(largest, ".435(7) .424(6) .432(7)")
    for found in (trace, largest):
        assert growth(depths, *found, prefer="flat").kind == "flat"
    assert largest.mean[-1] / largest.mean[0] == pytest.approx(1, abs=0.1)
    law = growth(depths, *m)
    assert law.kind == "power" and law.rate == pytest.approx(-1, abs=0.03)


@pytest.mark.parametrize("depths, table", [
    ([1, 4, 8], None),
    pytest.param([4, 32, 128], "132.1(10) 161.6(17) 253.5(64)", marks=pytest.mark.slow),
])  # fmt: skip
def test_skipinit(depths, table):
    """Trace D + L: each block adds the gradient of its one number, whatever the width; m ~ 1/L."""
    depths = np.array(depths)
    trace, _, m, _ = sweep("skipinit", depths, seeds=60, width=128)
    agree(trace, 1 + depths / 128, at_most=0.02)
    slope, error = np.array([trace.mean[-1] - trace.mean[0], np.hypot(*trace.error[[0, -1]])]) * 128 / np.ptp(depths)
    assert abs(slope - 1) < 4 * error < 0.9
    law = growth(depths, *m)
    assert law.kind == "power" and -1.02 < law.rate < -0.75
    if table:
        as_measured(Means(*(128 * np.array(trace))), table)


@pytest.mark.parametrize("depths, table", [
    ([1, 4, 8], "3.538(37) 5.339(58) 6.071(73)"),
    pytest.param([4, 16, 64], "5.339(58) 6.461(92)", marks=pytest.mark.slow),
])  # fmt: skip
def test_branches_over_root_of_depth(depths, table):
    """Trace (1 + 1/L)^L + (3/2)(1 + 1/L)^(L−1) = 5e/2 − O(1/L): it saturates, and m ~ 1/L."""
    depths = np.array(depths)
    trace, largest, m, cells = sweep("scaled", depths, seeds=80, width=128)
    as_predicted(trace, largest, depths, cells)
    expected = (1 + 1 / depths) ** depths + 1.5 * (1 + 1 / depths) ** (depths - 1)
    agree(trace, expected)
    as_measured(trace[: table.count("(")], table)
    law = growth(depths, *trace, prefer="flat in the limit")
    assert law.kind == "flat in the limit"
    # From L = 4 to 64 the limit is 6.796; that of the first blocks is not reached yet.
    limit = growth(depths, expected).amplitude if depths[-1] == 8 else 2.5 * np.e
    assert law.amplitude == pytest.approx(limit, rel=0.05)
    assert m.mean[2] / m.mean[1] == pytest.approx(expected[2] / expected[1] * depths[1] / depths[2], rel=0.1)


@pytest.mark.slow
def test_concatenating_skip():
    """Trace linear, m ~ 1/L; k = D/4."""
    depths = np.array([1, 4, 8])
    trace, largest, m, cells = sweep("concat", depths, seeds=30)
    as_predicted(trace, largest, depths, cells, at_most=0.03)
    units = 1 + np.arange(9) / 4
    agree(trace, [units[L] + np.sum(units[:L] / units[1 : L + 1]) / 8 for L in depths])
    as_measured(trace, "1.368(8) 2.439(14) 3.873(36)")
    as_measured(largest, ".172(2) .522(6) 1.058(15)")
    assert trace.mean[2] == pytest.approx(3.873, rel=0.04)
    assert growth(depths, *trace, prefer="linear").kind == "linear"
    # P grows as L²: by 3 from L = 4 to 8, the trace by 1.6.
    P = np.array([64 * (256 * L + 64 * L * (L - 1) / 2) + 256 + 64 * L for L in depths])
    agree(m, np.array([1.35, 2.42068, 3.87252]) * 256**2 / P)
    close(exponent(largest, depths), np.log2(0.862142 / 0.378436) - 0.12, 0.1)


# --- random masks -----------------------------------------------------------------------------------------------------


def masked(model, depth, masks, *, seeds, width, samples, draws=1, **options):
    """Traces and largest eigenvalues over D."""
    x = sphere(samples, width)
    values = ensemble(model, x, fj.Gaussian(), seeds=seeds, key=KEY, masks=masks, draws=draws, depth=depth, **options)
    return means(values.sum(1) / width), means(values[:, 0] / width), values / width


SURVIVING = {"width": 64, "samples": 6, "survival": 0.5, "scanned": True}


def surviving(masks):
    """λ_max/D as predicted at L = 4 and 8."""
    laws = [fj.theory.predict("resmlp", x=sphere(6, 64), depth=L, survival=0.5, masks=masks) for L in (4, 8)]
    return np.array([law.lambda_max for law in laws]) / 64


@pytest.mark.slow
def test_stochastic_depth():
    """p = 1/2, one subnetwork: trace 1.5^L (1 + L/2); the mean over masks of λ_max grows faster than its median."""
    depths, found = np.array([4, 8]), {"trace": [], "largest": [], "typical": []}
    for depth in (4, 8):
        trace, largest, values = masked("resmlp", depth, "one", seeds=400, **SURVIVING)
        # The standard error of a median of 400: between the ranks one standard deviation below and above.
        low, typical, high = np.sort(values[:, 0])[[190, 200, 210]]
        for name, value in zip(found, (trace, largest, (typical, (high - low) / 2)), strict=True):
            found[name].append(value)
    trace, largest, typical = (Means(*np.array(values).T) for values in found.values())
    agree(trace, 1.5**depths * (1 + depths / 2), at_most=0.12)
    agree(largest, surviving("one"), excess=6 / 64, at_most=0.12)
    agree(typical, surviving("typical"), excess=6 / 64, at_most=0.1)
    as_measured(trace, "16.7(11) 138(10)")
    as_measured(largest, "6.84(50) 60.8(50)")
    assert (largest.mean - typical.mean > 4 * np.hypot(largest.error, typical.error)).all()
    # Without the factor that is linear in L.
    close(per_block(trace / (1 + depths / 2), depths), 1.5, 0.06)


@pytest.mark.slow
def test_stochastic_depth_of_the_mean_network():
    """Trace 1.25^L (1 + 3 L/10), λ_max likewise: far below the 1.5^L of the average over masks."""
    depths = np.array([4, 8])
    found = [masked("resmlp", L, "mean", seeds=150, **SURVIVING)[:2] for L in (4, 8)]
    trace, largest = (Means(*np.array(values).T) for values in zip(*found, strict=True))
    agree(trace, 1.25**depths * (1 + 0.3 * depths), at_most=0.03)
    agree(largest, surviving("mean"), excess=6 / 64, at_most=0.03)
    as_measured(trace, "5.54(14) 21.1(8)")
    close(per_block(trace / (1 + 0.3 * depths), depths), 1.25, 0.015)
    rate = (surviving("mean")[1] / surviving("mean")[0]) ** 0.25
    close(per_block(largest, depths), rate, 0.02)
    # Of the average over masks, and of the average of λ_max: 1.61 and 1.73 between L = 4 and 8.
    assert per_block(largest, depths)[0] + 4 * per_block(largest, depths)[1] < 1.6


@pytest.mark.slow
def test_stochastic_depth_average():
    """λ_max of the average over 32 masks grows more slowly than the average of λ_max."""
    depths, options = np.array([4, 8]), SURVIVING | {"width": 128}
    average, one = (
        Means(*np.array([masked("resmlp", L, masks, draws=draws, seeds=seeds, **options)[1] for L in (4, 8)]).T)
        for masks, draws, seeds in (("average", 32, 40), ("one", 1, 400))
    )
    keys = jax.random.split(KEY, 24)
    laws = [[fj.theory.predict("resmlp", x=sphere(6, 128), depth=L, survival=0.5, masks=fj.Average(32, key)).lambda_max
             for key in keys] for L in (4, 8)]  # fmt: skip
    law = means(laws) / 128
    agree(Means(average.mean, np.hypot(average.error, law.error)), law.mean, excess=6 / 128, at_most=0.08)
    as_measured(average, "4.45(40) 28.7(26)")
    (a, error), (b, other) = per_block(one, depths), per_block(average, depths)
    assert (one.mean > average.mean + 4 * np.hypot(one.error, average.error)).all()
    assert a - b > 2 * np.hypot(error, other)


def test_dropout():
    """p = 1/2, N = 8, 12 draws, inverted: trace L p^{1−L}, λ_max between that and the mean network's."""
    p, depths, width = 0.5, np.array([2, 3, 6]), 256
    options = {"draws": 12, "seeds": 24, "width": width, "samples": 8, "dropout": p}
    found = [masked("mlp", depth, "average", **options)[:2] for depth in (2, 3, 6)]
    trace, largest = (Means(*np.array(means).T) for means in zip(*found, strict=True))
    chosen = {"x": sphere(8, width), "width": width, "dropout": p, "masks": fj.Average(12, KEY)}
    laws = [fj.theory.predict("mlp", depth=depth, **chosen).lambda_max / width for depth in (2, 3, 6)]
    agree(largest, laws, excess=np.array([12, 6, 6]) / width, at_most=0.08)
    agree(trace, depths * p ** (1.0 - depths), at_most=0.06)
    as_measured(trace, "3.99(8) 12.3(2) 181(5)")
    as_measured(largest, ".561(10) 1.310(24) 11.57(38)")
    assert trace.mean[1] == pytest.approx(12, rel=0.08)
    law = growth(depths, *trace / depths)
    assert law.kind == "exponential" and abs(law.rate - 1 / p) < 4 * law.error < 0.2


def test_dropout_of_the_mean_network_and_raw():
    """The mean network has no dropout; raw masks give p^{2(L−1)} of inverted ones: trace L p^{L−1}. Network by network."""
    p, depth = 0.5, 4
    options = {"seeds": 4, "width": 64, "samples": 8}
    inverted, raw = (
        [masked("mlp", depth, masks, draws=3, dropout=p, dropout_form=form, **options)[2] for masks in ("average", "mean")]
        for form in ("inverted", "raw")
    )
    without = masked("mlp", depth, None, **options)[2]
    assert inverted[1] == pytest.approx(without, rel=1e-4, abs=1e-5 * without.max())
    for scaled, of in zip(raw, inverted, strict=True):
        assert scaled == pytest.approx(p ** (2 * (depth - 1)) * of, rel=1e-4, abs=1e-5 * scaled.max())


# --- outliers ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mean_subtraction():
    """M = 512, N = 256: λ_max falls from 358(6) to 12.1(2), above the edge of the bulk for N ≪ M, 8.3."""
    x, options = sphere(256, 512), {"seeds": 6, "key": KEY, "depth": 3, "width": 512}
    raw = ensemble("mlp", x, fj.Gaussian(), **options)
    left = ensemble("mlp", x, fj.Gaussian(), bn="train", output_norm="mean", **options)
    as_measured(means([raw[:, 0], left[:, 0]]), "358(6) 12.1(2)")
    assert (left[:, 0] > 8.3).all()
    # The trace loses θ₂/θ₁ = 0.2651 and one of N.
    agree(means(left.sum(1)), 3 * 512 * (1 - 0.2651) * (1 - 1 / 256), at_most=0.06)


def test_mean_subtraction_takes_as_many_outliers_as_outputs():
    """C = 3: three above the gap, none after; nor does any eigenvalue move past the third below it (Cauchy)."""
    C, x, options = 3, sphere(50, 256), {"seeds": 8, "key": KEY, "outputs": 3, "depth": 3, "width": 256}
    raw = ensemble("mlp", x, fj.Gaussian(), **options)
    left = ensemble("mlp", x, fj.Gaussian(), bn="train", output_norm="mean", **options)
    assert (raw[:, C - 1] > 4 * raw[:, C]).all() and (left[:, 0] < 1.02 * raw[:, 0] / 4).all()
    small = 1e-5 * raw[:, :1]
    assert (left <= raw + small).all() and (left[:, :-C] >= raw[:, C:] - small).all()
    assert (left[:, 0] < 2 * left[:, C]).all()


def test_softmax():
    """C = 3, M = 512, N = 50: two outliers, 110.6 and 65.2 predicted; the third is in the bulk, 13.9."""
    x, options = sphere(50, 512), {"depth": 3, "width": 512, "outputs": 3}
    values = ensemble("mlp", x, fj.Categorical(), seeds=48, key=KEY, **options)
    found = means(values[:, :3].T)
    law = fj.theory.predict("mlp", x=x, likelihood="categorical", key=KEY, draws=32, **options)
    assert law.outliers == 2
    # Which probabilities a network gives moves both numbers: 32 draws for theory.
    agree(found[:2], law.values[:2], excess=6 / 512, at_most=0.07)
    agree(means(values.sum(1)), law.trace, at_most=0.04)
    error = np.hypot(*(found.error / found.mean)[1:])
    assert found.mean[2] / found.mean[1] * (1 + 4 * error) < 0.35
    as_measured(found, "112(6) 67(4) 13.9(10)")


def test_ten_outputs():
    """M = 500, N = 50: the mean of the ten outliers, 366; the largest lies above them."""
    x = sphere(50, 500)
    values = ensemble("mlp", x, fj.Gaussian(), seeds=10, key=KEY, outputs=10, depth=3, width=500)
    top = means(values[:, :10].mean(1))
    assert top.mean == pytest.approx(366, rel=0.09) and top.error < 0.03 * 366
    as_measured(means([values[:, :10].mean(1), values[:, 0]]), "363(7) 397.5(83)")
    assert (values[:, 9] > 3 * values[:, 10]).all()


# --- single numbers ---------------------------------------------------------------------------------------------------


def test_small_targets():
    """Traces of an MLP to 7 %, λ_max/trace over two layers from -1 to 6 %."""
    trace = means(measure("mlp", 3, seeds=20, width=512).trace)
    assert trace.mean == pytest.approx(3, rel=0.07) and trace.error < 0.0175 * 3
    largest = means(measure("mlp", 4, seeds=40, width=512).largest)
    assert largest.mean == pytest.approx(1.244, rel=0.07) and largest.error < 0.0175 * 1.244
    cell = measure("skip2", 4, seeds=60)
    share = means(cell.largest / cell.trace)
    assert 0.99 * 0.349 < share.mean < 1.06 * 0.349 and share.error < 0.015 * 0.349
    as_measured(means([cell.largest / cell.trace]), ".3570(30)")


def test_one_sample_of_an_orthogonal_network():
    """All eigenvalues of one sample are L |x|² = 6 · 64, to rounding."""
    options = {"activation": "linear", "weight_variance": 1.0, "weights": "orthogonal", "depth": 6, "width": 64}
    values = ensemble("mlp", sphere(1, 64), fj.Gaussian(), seeds=1, key=KEY, outputs=64, **options)
    assert values / 64 == pytest.approx(np.full((1, 64), 6.0), rel=1e-5)


# --- deep networks ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name, depths, more, law, expected", [
    ("mlp", (16, 32), {"width": 512, "seeds": 40}, exponent, np.log2(1.92)),
    ("bn", (16, 32), {"seeds": 40}, exponent, 1.27),
    ("concat", (16, 32), {"seeds": 40}, exponent, 1.15),
    ("skip1", (20, 28), {"seeds": 60}, per_block, 2.06),
    ("skip2", (20, 28), {"seeds": 60}, per_block, 2.08),
    ("bn-batch", (8, 16), {"seeds": 12, "samples": 64}, exponent, np.log2(8.097 / 3.532)),
])  # fmt: skip
def test_deep_networks(name, depths, more, law, expected):
    """The local law of λ_max where networks are deep, and of the mean eigenvalue."""
    depths = np.array(depths)
    trace, largest, m, cells = sweep(name, depths, **more)
    as_predicted(trace, largest, depths, cells, at_most=0.1)
    close(law(largest, depths), expected, 0.2 if law is exponent else 0.03)
    a, b = (cell.law.mean_eigenvalue for cell in cells)
    scale = np.log(depths[1] / depths[0]) if law is exponent else depths[1] - depths[0]
    rate = np.log(b / a) / scale
    close(law(m, depths), rate if law is exponent else np.exp(rate), 0.2 if law is exponent else 0.03)
