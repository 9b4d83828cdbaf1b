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
# # The largest stable learning rate, and the generalization gap
#
# Two things that the Fisher spectrum and the architecture are said to decide: how large a step gradient descent can
# take, and how much worse a trained network does on new data. Both are measured here, beside what theory says of them.

# %%
import warnings

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

import fisher_jax as fj

warnings.filterwarnings("ignore", message="theory of")  # that narrow, deep networks differ from wide ones: the point here
key = jax.random.key(0)
x, _ = fj.data.load("gaussian", samples=16, inputs=64, key=key)

# %% [markdown]
# ## A wall at 2/λ_max
#
# Gradient descent on E = (1/2N) Σ |f(x) − y|² starts next to a minimum: labels are within 1 % of the outputs' root mean
# square, so that the Hessian is nearly the Fisher matrix F. The rate is c · 2/λ_max(F). If that is the limit, the loss
# never rises for c < 1, and rises by orders of magnitude for c > 1.

# %%
one = fj.experiments.learning_rate("mlp", x, depth=3, width=256, key=key)
print(one)

# %% [markdown]
# Look at the last column but one: far above the limit the loss rises a thousandfold and more, and then falls to less
# than where it began. The network has moved to where λ_max is smaller. The last loss says nothing about stability; the
# largest one does.

# %%
for c, loss, unstable in zip(one.factors, one.loss, one.unstable, strict=True):
    if float(c) in (0.5, np.float32(0.95), np.float32(1.05), 1.5, 2.0):
        plt.semilogy(loss / loss[0], "--" if unstable else "-", label=f"c = {float(c):g}")
plt.xlabel("step")
plt.ylabel("loss / first loss")
plt.ylim(1e-12, None)
plt.legend()
plt.show()

# %% [markdown]
# The same for all that this package has: without skips, with skips over one and two layers, concatenating, with the
# population's or the batch's statistics, with Fixup, with the mean network of stochastic depth, and with momentum,
# whose limit is 2 (1 + β)/λ_max. Each curve is a network of four blocks; λ_max differs by a factor of some hundred
# between them.

# %%
variants = {
    "no skip": ("mlp", {"depth": 5, "width": 64}, {}),
    "no skip, momentum 0.9": ("mlp", {"depth": 5, "width": 64}, {"momentum": 0.9}),
    "skip over one": ("resmlp", {"depth": 4, "skip": 1}, {}),
    "skip over two": ("resmlp", {"depth": 4}, {}),
    "concatenating": ("densemlp", {"depth": 4, "growth": 16}, {}),
    "population norm": ("resmlp", {"depth": 4, "norm": "population"}, {}),
    "batch norm, frozen": ("resmlp", {"depth": 4, "norm": "batch"}, {"bn": "frozen"}),
    "Fixup": ("resmlp", {"depth": 4, "residual": "fixup"}, {}),
    "stochastic depth": ("resmlp", {"depth": 4, "survival": 0.5}, {"masks": "mean"}),
}
walls = {
    label: fj.experiments.learning_rate(name, x, key=key, **chosen, **options)
    for label, (name, options, chosen) in variants.items()
}
for label, found in walls.items():
    print(f"{label:22}  λ_max {found.lambda_max:8.4g}   largest stable rate {found.largest:8.3g}")
display(fj.plot.learning_rate(walls, "gradient descent next to a minimum"))
assert all(found.lower <= 1.01 and 0.99 <= found.upper <= 1.06 for found in walls.values())

# %% [markdown]
# ## How it falls with depth
#
# Points are measured by descent, means over two networks; lines are 2/λ_max of `fj.theory.predict`. With plain skips
# the rate falls exponentially, with stochastic depth by a smaller base; without skips and with batch norm as a power of
# L; with Fixup and branches divided by √L hardly at all.

# %%
lines = {
    "Fixup": ("resmlp", lambda L: {"residual": "fixup"}, {}),
    "branches / √L": ("resmlp", lambda L: {"scale": "depth"}, {}),
    "no skip": ("mlp", lambda L: {"width": 64}, {}),
    "batch norm": ("resmlp", lambda L: {"norm": "batch"}, {"bn": "frozen"}),
    "stochastic depth": ("resmlp", lambda L: {"survival": 0.5}, {"masks": "mean"}),
    "skip over two": ("resmlp", lambda L: {}, {}),
}
depths, factors = (2, 4, 8), (0.9, 1.1)
rates = {}
for i, (label, (name, options, chosen)) in enumerate(lines.items()):
    found = [
        [
            fj.experiments.learning_rate(name, x, key=k, factors=factors, steps=100, depth=L, **chosen, **options(L))
            for k in jax.random.split(key, 2)
        ]
        for L in depths
    ]
    rates[label] = np.array([np.exp(np.mean([np.log(f.largest) for f in group])) for group in found])
    theory = [2 / group[0].predicted for group in found]
    plt.loglog(depths, theory, "-", lw=1, color=f"C{i}")
    plt.loglog(depths, rates[label], "o", color=f"C{i}", label=label)
    print(f"{label:17}", "  ".join(f"{r:.3g} ({t:.3g})" for r, t in zip(rates[label], theory, strict=True)))
plt.xlabel("blocks or layers L")
plt.ylabel("largest stable learning rate")
plt.xticks(depths, depths)
plt.minorticks_off()
plt.legend(fontsize=8)
plt.show()

# %%
deep = [found[-1] for found in rates.values()]
assert min(deep[:2]) > deep[2] > deep[3] > deep[4] > 10 * deep[5]

# %% [markdown]
# ## The gap of deep linear networks
#
# Eight square matrices, six samples of eight features: many networks fit the data, and the architecture decides which
# of them gradient descent finds. The bound comes from algorithmic stability: if leaving a sample out changes its loss
# by no more than ε/2, the expected gap is no more than ε. For linear networks it is explicit in the singular values of
# the layers.

# %%
few = fj.experiments.linear_generalization(key=key)
print(few)
display(fj.plot.generalization(few, "linear networks, 6 samples, 8 features"))
gap = np.asarray(few.gap)
for a, b in ((0, 1), (1, 2)):
    difference = gap[a] - gap[b]
    mean, error = difference.mean(), difference.std(ddof=1) / difference.size**0.5
    print(f"gap {few.names[a]} − {few.names[b]}: {mean:.2f} ± {error:.2f}; {np.sum(difference > 0)} of 24 positive")
assert np.all(gap <= np.asarray(few.bound))

# %% [markdown]
# The order is that of the bound: no skip, skips over one, skips over two. The bound itself holds in every run and is
# far from tight. The networks without skips are not trained to the end: their gap is a lower bound. Data sets of six
# samples differ much, so that means over them have large errors; the same data sets, network by network, do not.
#
# With more samples than features there is one best linear map, and all who find it have the same gap.

# %%
many = fj.experiments.linear_generalization(samples=16, steps=4000, seeds=12, key=key)
print(many)
expected = 8 * 0.3**2 / 2 * (8 / 16 + 8 / (16 - 8 - 1))
print(f"least squares, in expectation: {expected:.3f}")
assert np.allclose(many.gap[1], many.gap[2], rtol=1e-2)

# %% [markdown]
# ## And of networks that are not linear?
#
# ReLU networks with eight matrices in hidden layers or branches, on 270 digits, stopped at equal training loss. As usually
# initialized (He), the order is the other way around: skips over one do worst and the network without skips does best.
# (Those with skips over one do not get down to the loss asked for: their gap is a lower bound, and the largest all the
# same.) Started near the identity, with branches of small weights as in the linear case, they are in the order of the
# linear theory. What decides is not the skip alone but where the network starts.

# %%
train, test = fj.data.split(*fj.data.load("digits"), 0.85, key)
small = {"variances": (0.1, 0.1)}
networks = {
    "no skip": ("mlp", {"depth": 9, "width": 64}),
    "one, He": ("resmlp", {"depth": 8, "skip": 1}),
    "two, He": ("resmlp", {"depth": 4}),
    "one, small": ("resmlp", {"depth": 8, "skip": 1, **small}),
    "two, small": ("resmlp", {"depth": 4, **small}),
}
digits = fj.experiments.generalization(networks, train, test, loss=0.02, seeds=6, key=key)
print(digits)
display(fj.plot.generalization(digits, "ReLU networks on 270 digits, (1/2) |f − y|²"))

# %%
gaps = dict(zip(digits.names, np.asarray(digits.gap).mean(axis=1), strict=True))
assert gaps["two, small"] < gaps["one, small"] < gaps["no skip"] < gaps["two, He"] < gaps["one, He"]
