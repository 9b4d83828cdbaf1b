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
# # Quickstart: the top of a Fisher spectrum, with error bounds
#
# The Fisher information matrix of a network, averaged over data, is `F = Aᵀ A` with one rectangular factor `A`: per-sample
# Jacobians times a factor of the likelihood. Its largest eigenvalue caps the learning rate of gradient descent at `2/λ_max`.

# %%
import jax
import numpy as np

import fisher_jax as fj

key = jax.random.key(0)
x, y = fj.data.load("digits", samples=600)  # real handwritten digits
model = fj.models.build("resmlp", inputs=64, outputs=10, depth=2, key=key)
F = fj.fisher(model, x, fj.Categorical())
print(f"P = {F.size} parameters; the dual has size {F.dual.size}")

# %% [markdown]
# Nothing of size P² exists. `F @ v` is a product; `eigsh` takes the smaller of parameter space and its dual, and returns
# every value with its residual and an error bound.

# %%
top = fj.eigsh(F, 20, key=key)
top

# %%
summary = fj.summarize(F, top)
summary

# %%
fj.plot.spectrum(top, summary, "a residual network at initialization")

# %% [markdown]
# ## Check it yourself
#
# The bound of each eigenvalue against the exact spectrum, here small enough to be formed: the dual matrix `K = A Aᵀ` has the
# same nonzero eigenvalues.

# %%
small = fj.fisher(model, x[:60], fj.Categorical())
exact = np.linalg.eigvalsh(np.asarray(small.dual.dense(), np.float64))[::-1]
few = fj.eigsh(small, 10, method=fj.Lanczos(tol=1e-5), key=key)
errors = np.abs(np.asarray(few.values) - exact[:10])
print("largest error", errors.max(), "of bounds", np.asarray(few.bounds).max())
assert (errors <= np.asarray(few.bounds) + 1e-6 * exact[0]).all()

# %% [markdown]
# ## Which layers carry it?
#
# `where=` restricts the matrix to parameters by path: the diagonal blocks of F.

# %%
for part in ("blocks/0", "blocks/1", "readout"):
    block = fj.fisher(model, x, fj.Categorical(), where=part)
    print(f"{part:9}  trace {float(block.trace()):8.3f}  λ_max {float(fj.eigsh(block, 1, key=key).values[0]):8.3f}")

# %% [markdown]
# ## Other Fisher matrices
#
# The empirical Fisher uses the given labels, Monte-Carlo draws them from the model; both are the same factor with another B.
# The centred covariance of the gradients is the noise of stochastic gradient descent.

# %%
kinds = {
    "exact": F,
    "Monte-Carlo": fj.fisher(model, x, fj.Categorical(), kind=fj.MonteCarlo(draws=4, key=key)),
    "empirical": fj.fisher(model, x, fj.Categorical(), kind=fj.Empirical(y)),
    "gradient covariance": fj.gradient_covariance(model, (x, y), fj.Categorical()),
}
for name, operator in kinds.items():
    print(f"{name:20} trace {float(operator.trace()):8.2f}")

# %% [markdown]
# ## Keep it
#
# Results are saved without pickle, with versions, device, precision and seed.

# %%
fj.save(top, "spectrum.npz")
again = fj.load("spectrum.npz")
dict(again.info)
