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
# # Density, traces, certificates
#
# Where the dual matrix is too large to be diagonalized, products with it still tell the outliers one by one, the bulk as a
# density, and sums over all eigenvalues as numbers with intervals. Here everything is small enough to be held against the
# exact spectrum.

# %%
import jax
import numpy as np

import fisher_jax as fj

key = jax.random.key(0)
x, y = fj.data.load("digits", samples=150)
model = fj.models.build("mlp", inputs=64, outputs=10, depth=3, width=64, key=key)
F = fj.fisher(model, x, fj.Categorical())
exact = fj.spectrum(F)
values = np.asarray(exact.values, np.float64)
F, F.dual

# %% [markdown]
# ## The outliers, one by one
#
# Every eigenvalue has a true residual and a bound on its error; `complete_above` says above what none is missing. The k-th
# value really is the k-th eigenvalue, up to its bound:

# %%
top = fj.eigsh(F, 12, method=fj.Lanczos(tol=1e-5), key=key)
errors = np.abs(np.asarray(top.values, np.float64) - values[:12])
print(top)
print("largest error over its bound:", (errors / np.asarray(top.bounds)).max())

# %% [markdown]
# Other methods, the same numbers: wide blocks of random vectors; Nyström, whose products do not wait for one another; K
# built once.

# %%
for method in (fj.Lanczos(tol=1e-3), fj.Randomized(tol=1e-3), fj.Nystrom(tol=1e-2), fj.Gram(tol=1e-3)):
    found = fj.eigsh(F, 5, method=method, key=key)
    print(f"{found.method:<62} {int(found.matvecs):>4} products  λ_max = {float(found.values[0]):.5f}")

# %% [markdown]
# Data that is read once: F is linear in the samples, so a sketch adds up, batch by batch. What it cannot bound it does not
# give.

# %%
sketch = fj.Sketch(F.size, 200, key=key)
for start in range(0, len(x), 64):
    batch = x[start : start + 64]
    sketch = sketch.add(fj.fisher(model, batch, fj.Categorical()), weight=len(batch))
sketch.eigsh(5)

# %% [markdown]
# ## The bulk, as a density
#
# Stochastic Lanczos quadrature, with the outliers projected out of the probes. Zeros that shapes and the softmax force are a
# number, not a bump at zero.

# %%
bulk = fj.density(F, method=fj.SLQ(steps=60, probes=6), top=top, key=key)
bulk

# %%
fj.plot.density(bulk, exact, "a perceptron at initialization, 150 digits")

# %% [markdown]
# ## Sums over the spectrum, with intervals
#
# The probes leave a spread and the finite number of steps leaves bounds; both are in the interval. The exact spectrum lies
# within:

# %%
rows = [
    ("trace", bulk.trace(), exact.trace),
    ("eigenvalues above 1", bulk.count_above(1.0), exact.count_above(1.0)),
    ("eigenvalues above 0.1", bulk.count_above(0.1), exact.count_above(0.1)),
    ("effective dimension, δ = 0.1", bulk.effective_dimension(0.1), exact.effective_dimension(0.1)),
    ("log det(1 + F/δ), δ = 0.1", bulk.logdet(0.1), exact.logdet(0.1)),
]
for name, estimate, truth in rows:
    assert estimate.lower <= truth <= estimate.upper
    print(f"{name:<30} {estimate.value:>9.2f} in [{estimate.lower:.2f}, {estimate.upper:.2f}]   exact {truth:.2f}")

# %% [markdown]
# The kernel polynomial method shares no code with the quadrature, and is the second opinion:

# %%
second = fj.density(F, method=fj.KPM(degree=80, probes=6), top=top, key=jax.random.key(1))
print(second.trace())

# %% [markdown]
# ## Traces and moments
#
# Of a Fisher matrix the trace is exact, from the norms of per-sample gradients; of any other operator it is estimated, down
# to a tolerance if one is given.

# %%
black_box = fj.FunctionOperator(lambda V: F.matmat(V), F.size, F.dtype, psd=True)
print(fj.trace(F))
print(fj.trace(black_box, method=fj.XNysTrace(products=40), key=key))
print(fj.trace(black_box, method=fj.Hutchinson(probes=40), key=key))

# %%
fj.moments(F, key=key)

# %% [markdown]
# ## Products at reduced precision
#
# bfloat16 is for hardware that has it, and loses the small eigenvalues. The error of such a product is measured against a
# full one and enters the bounds; what lies below it is not given. A CPU computes as always, unless inputs and cotangents are
# kept: these are then rounded.

# %%
fj.eigsh(F, 5, method=fj.Lanczos(tol=1e-3, precision="bfloat16"), key=key)
