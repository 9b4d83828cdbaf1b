# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Theory beside measurement
#
# Mean-field theory says what the Fisher spectrum of a wide random network is, from its architecture alone. Is it true, at
# which width, and for which of the several matrices that go by the same name?

# %%
import warnings

import jax
import matplotlib.pyplot as plt
import numpy as np

import fisher_jax as fj

key = jax.random.key(0)
warnings.filterwarnings("ignore", message="theory of")  # said in the text: some widths here are small on purpose

# %% [markdown]
# ## One network
#
# The prediction is a record with the names of a measurement. It takes the kernel of the data at hand, knows every
# eigenvalue in the limit of large width, and says by how much single networks of this width may differ.

# %%
x = jax.random.normal(key, (40, 256))
law = fj.theory.predict("resmlp", x=x, depth=4)
model = fj.models.build("resmlp", inputs=256, outputs=1, depth=4, key=jax.random.key(1))
exact = fj.spectrum(fj.fisher(model, x, fj.Gaussian()))
print(law)
print(f"\nmeasured: λ_max {exact.lambda_max:.5g}, trace {exact.trace:.5g}, m {exact.mean_eigenvalue:.5g}")
assert abs(exact.trace / law.trace - 1) < 2 * law.deviation

# %%
rank = np.arange(1, 41)
plt.semilogy(rank, exact.values, "o", ms=4, label="measured, one network of width 256")
plt.semilogy(rank, np.repeat(law.values, law.counts.astype(int)), "-", label="predicted, width → ∞")
plt.xlabel("rank")
plt.ylabel("eigenvalue of the Fisher matrix")
plt.legend()
plt.show()

# %% [markdown]
# One outlier (there is one output), a bulk, and 524544 − 40 zeros. The bulk broadens at finite width, as the eigenvalues
# of sample covariances do; its mean, the trace and the outlier do not move.
#
# ## The three statements
#
# *The mean eigenvalue does not depend on depth in a perceptron, grows exponentially in a residual network, and below
# linearly with batch normalization in its branches.* From many networks, with standard errors, in one figure; from the
# shell: `fisher-jax compare --variants mlp,skip2,bn`.

# %%
found = fj.experiments.compare(["mlp", "skip2", "bn"], (1, 2, 4, 8, 16, 32), width=128, seeds=10, key=key)
caption, figure = fj.experiments.figures(found)["statements"]
print(found.laws())
print(found.summary())
for name, kinds in {"mlp": ("flat", "flat in the limit"), "skip2": ("exponential",), "bn": ("power", "L log L")}.items():
    measured, predicted = found.growth(name, "mean_eigenvalue")
    assert measured.kind in kinds and predicted.kind in kinds
assert found.growth("bn", "mean_eigenvalue")[0].rate < 1
figure

# %% [markdown]
# It is the *mean* eigenvalue that is flat. The largest one grows linearly with the depth of a perceptron, and faster than
# linearly with batch normalization:

# %%
caption, figure = fj.experiments.figures(found)["depth"]
figure

# %% [markdown]
# ## To depth 1000
#
# Predictions carry a scale beside the kernel: 2^1000 is a number, and its logarithm is given.

# %%
depths = [1, 3, 10, 30, 100, 300, 1000]
families = {
    "MLP": ("mlp", {"width": 2**14}),
    "skip over two": ("resmlp", {}),
    "+ batch norm (population)": ("resmlp", {"norm": "population"}),
    "+ Fixup": ("resmlp", {"residual": "fixup"}),
    "branches / √L": ("resmlp", {"scale": "depth"}),
}
for label, (name, options) in families.items():
    laws = [fj.theory.predict(name, inputs=2**14, samples=100, depth=depth, **options) for depth in depths]
    plt.plot(depths, [law.log_lambda_max / np.log(10) for law in laws], "-o", ms=3, label=label)
plt.xscale("log")
plt.yscale("symlog", linthresh=10)
plt.xlabel("depth L")
plt.ylabel("log₁₀ λ_max")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Which batch normalization?
#
# The variance of the literature is that over inputs *and* weights, 1 + l/2 in block l. The one over a real batch is
# smaller, 1 + 0.34 l, and the trace grows as L^1.47 instead of L log L. Both can be measured; they are two networks.

# %%
norms = fj.experiments.compare(["bn", "bn-batch"], (4, 8, 16), width=128, samples=32, seeds=8, key=key)
for name in norms.variants:
    depth, measured, error, predicted = norms.curve(name, "trace")
    for row in zip(depth, measured, error, predicted, strict=True):
        print("{:9} L = {:2.0f}   trace {:8.1f} ± {:5.1f}   predicted {:8.1f}".format(name, *row))
assert norms.curve("bn-batch", "trace")[1][-1] > norms.curve("bn", "trace")[1][-1]

# %% [markdown]
# ## Which matrix under stochastic depth?
#
# Four numbers are called the largest eigenvalue, and they grow at different rates: 1 + p per block for the average over
# subnetworks, 1 + p² for the mean network, 2^p for a typical subnetwork.

# %%
arguments = {"inputs": 256, "samples": 12, "survival": 0.5}
rows = [fj.theory.over_masks("resmlp", depth=depth, key=key, **arguments) for depth in (2, 4, 8, 16)]
for field in (
    "trace",
    "average_of_largest",
    "largest_of_average",
    "largest_of_typical",
    "largest_of_mean_network",
):
    values = [getattr(row, field) for row in rows]
    print(
        f"{field:24}",
        "  ".join(f"{v:10.4g}" for v in values),
        f"   last factor per block {(values[3] / values[2]) ** 0.125:.3f}",
    )
deep = fj.models.build("resmlp", inputs=256, outputs=1, depth=4, survival=0.5, key=jax.random.key(2))
print("\nmeasured at depth 4, one network:")
print(fj.over_masks(deep, x[:12], fj.Gaussian(), draws=32, key=key))
assert rows[1].largest_of_mean_network < rows[1].largest_of_average < rows[1].average_of_largest

# %% [markdown]
# ## Outliers: C, C − 1, or none
#
# With C outputs there are C outliers under squared loss. Under softmax there are C − 1: adding the same number to all
# outputs changes nothing. Subtracting the batch mean from the outputs removes them all. Means over eight networks:

# %%
outputs, x = 4, jax.random.normal(key, (60, 256))
cases = {
    "squared loss": ({}, fj.Gaussian(), {}, outputs),
    "softmax": ({}, fj.Categorical(), {}, outputs - 1),
    "squared loss, outputs minus their batch mean": ({"output_norm": "mean"}, fj.Gaussian(), {"bn": "train"}, 0),
}
for i, (label, (options, likelihood, mode, outliers)) in enumerate(cases.items()):
    networks = {"outputs": outputs, "width": 512, "seeds": 8, "key": key}
    spectrum = fj.experiments.ensemble("mlp", x, likelihood, **networks, **mode, **options).mean(axis=0)
    law = fj.theory.predict("mlp", x=x, outputs=outputs, width=512, likelihood=likelihood, key=key, **mode, **options)
    assert law.outliers == outliers
    plt.semilogy(np.arange(1, 13), spectrum[:12], "o", color=f"C{i}", label=label)
    plt.semilogy(np.arange(1, 13), np.repeat(law.values, law.counts.astype(int))[:12], "-", color=f"C{i}", lw=1)
plt.xlabel("rank")
plt.ylabel("eigenvalue (points: measured, lines: predicted)")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## A whole density
#
# With one hidden layer and infinitely many samples the density is known in closed form. A linear network has half of its
# eigenvalues at zero; a nonlinear one has none.

# %%
n, erf = 32, fj.theory.duals.dual("erf")
model = fj.models.build(
    "mlp",
    inputs=n,
    outputs=n,
    depth=2,
    width=n,
    activation="erf",
    weight_variance=1.0,
    readout_variance=1.0,
    key=jax.random.key(5),
)
many = jax.random.normal(jax.random.key(6), (6000, n))
values = np.linalg.eigvalsh(np.asarray(fj.fisher(model, many, fj.Gaussian()).dense(), np.float64))
grid = np.linspace(0.01, 3.5, 200)
plt.hist(values, bins=60, range=(0, 3.5), density=True, alpha=0.5, label=f"measured, {n} units, {len(many)} samples")
plt.plot(grid, fj.theory.one_hidden_layer.density(erf, grid), label="theory")
plt.xlabel("eigenvalue")
plt.ylabel("density")
plt.legend()
plt.show()
