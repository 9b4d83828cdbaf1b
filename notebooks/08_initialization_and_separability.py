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
# # Initialization and separability
#
# What the first weights decide: whether signals keep apart on their way through a deep network, how large the Fisher
# eigenvalues are, and what a little training does to them. Theory beside finite networks throughout.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import fisher_jax as fj

key = jax.random.key(0)

# %% [markdown]
# ## Order, chaos, and the edge between them
#
# The variances σ_w² and σ_b² of weights and biases decide whether two inputs approach each other on their way through a deep
# perceptron (order, χ < 1) or part (chaos, χ > 1). On the edge, χ = 1, gradients neither vanish nor explode. The same line
# runs through the Fisher spectrum: in the ordered phase all gradients agree and one eigenvalue carries the trace; in the
# chaotic one the trace explodes with depth, and λ_max barely stands out of the bulk.

# %%
variances = np.linspace(0.5, 2.5, 11) ** 2, np.linspace(0, 1, 6) ** 2
phases = fj.experiments.phase_diagram("tanh", *variances, depth=8, width=128, samples=16, cosine=0.5, seeds=4, key=key)
print(phases)
fj.plot.phase_diagram(phases, "tanh perceptrons, theory above, networks below")

# %% [markdown]
# The point of the literature, σ_b² = 0.05 and σ_w² = 1.76, lies on the line; without biases it begins at σ_w = 1/φ'(0). For
# ReLU χ = σ_w²/2 whatever the biases: the edge is the line σ_w² = 2, on which the variance diverges if there are any.
#
# Theory is a limit of wide networks. Where it has no outlier, deep in the chaotic phase, λ_max of a finite network is set by
# the width of the bulk, above the prediction.

# %%
print(fj.theory.edge_of_chaos.edge(fj.theory.edge_of_chaos.of("tanh"), [0.0, 0.05]))
chaotic = np.asarray(phases.chi) > 1.3
excess = np.asarray(phases.measured_lambda_max).mean(axis=-1) / np.asarray(phases.lambda_max)
print(f"λ_max over theory: {excess[~chaotic].mean():.2f} where χ < 1.3, {excess[chaotic].mean():.2f} above")
assert excess[chaotic].mean() > excess[~chaotic].mean()

# %% [markdown]
# ## Orthogonal weights
#
# Orthogonal layers have the same kernel as Gaussian ones at large width, and the same mean spectrum. But a Gaussian layer
# changes lengths at random, and the changes of all layers multiply. Two networks of orthogonal layers hardly differ; if they
# are linear, they do not differ at all.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for axis, activation in zip(axes, ("linear", "tanh"), strict=True):
    found = fj.experiments.orthogonal_against_gaussian(
        depth=10, width=128, activation=activation, weight_variance=1.0, seeds=200, key=key
    )
    print(activation, found, sep="\n")
    bins = np.linspace(0, 2 * found.predicted_trace, 60)
    for values, name, color in zip(np.asarray(found.trace), ("Gaussian", "orthogonal"), ("#8a8f98", "#c8553d"), strict=True):
        axis.hist(values, bins, histtype="stepfilled", alpha=0.7, color=color, label=name)
    axis.axvline(found.predicted_trace, color="#1f3a5f", ls="--", lw=1, label="infinite width")
    axis.set_xlabel("trace of the Fisher matrix")
    axis.set_title(f"{activation}, 10 layers of 128 units", fontsize=10)
    axis.set_yscale("log")
    sd = np.asarray(found.trace).std(axis=1)
    assert sd[1] < 0.3 * sd[0]
axes[0].set_ylabel("networks")
axes[1].legend(frameon=False)
plt.show()

# %% [markdown]
# ## A few epochs later
#
# The same networks at random initialization and after five epochs on digits, their whole spectra on 100 held-out samples, in
# evaluation mode; batch norm with the statistics of the training data at both times. Softmax outputs carry diag(p) − p pᵀ,
# which goes to zero where a network becomes certain. So a spectrum that began high comes down with the loss; the plain
# perceptron, whose gradients begin small, gains first, and shows the C − 1 = 9 outliers only once it knows the classes.

# %%
trained = fj.experiments.pretraining(key=key)
for name, found in trained.items():
    print(name, found, "", sep="\n")
fj.plot.pretraining(trained, "before and after five epochs on digits")

# %%
assert trained["skip two"].after.lambda_max < trained["skip two"].before.lambda_max
assert trained["mlp"].after.trace > trained["mlp"].before.trace

# %% [markdown]
# ## What becomes of an angle
#
# Two inputs one radian apart, on their way through random ReLU networks: a perceptron turns them into one direction like
# 3π/L; skips slow this down, the batch norm of Furusho and Ikeda to 3π/ln L. Lines are recursions, points networks.

# %%
kinds = ("mlp", "skip one", "skip two", "population", "concatenating", "depth")
angles = {kind: fj.experiments.separability(kind, depth=10, width=200, seeds=10, key=key) for kind in kinds}
fj.plot.separability(angles, "two inputs at an angle of 1")

# %% [markdown]
# And classes? The digits 3 and 8: along the difference of their means, the first two moments bound the error of the best
# threshold. The bound holds in every network at every depth, and is loose by a factor of three to five. Infinitely wide
# networks lose next to nothing: there the 3s and 8s stay as separable as they were. What loses is the finite width, through
# the accidents of each layer's weights, and it loses most where nothing of the input is kept.

# %%
x, y = fj.data.load("digits")
kinds = ("mlp", "skip two", "population", "concatenating")
errors = {
    kind: fj.experiments.class_errors(kind, x[y == 3], x[y == 8], depth=10, width=200, seeds=5, key=key) for kind in kinds
}
print(errors["mlp"])
fj.plot.class_errors(errors, "3 against 8")

# %%
assert all(np.all(np.asarray(e.error) <= np.asarray(e.bound)) for e in errors.values())
