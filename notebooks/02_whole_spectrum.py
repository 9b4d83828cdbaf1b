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
# # The whole spectrum, exactly
#
# `F = Aᵀ A` has one row of `A` for every sample and output. The *dual* matrix `K = A Aᵀ`, of size N·C however large the
# network, has the same nonzero eigenvalues: build it, diagonalize it, and every eigenvalue is there, without iteration.
#
# For a dense layer with inputs `a` and output cotangents `g`, an entry of K is `(a·a' + 1)(g·g')`: no per-sample gradient is
# ever formed. The engine finds such places in the program of any JAX function by itself.

# %%
import time

import jax
import numpy as np

import fisher_jax as fj

key = jax.random.key(0)
x, y = fj.data.load("digits", samples=120)
model = fj.models.build("mlp", inputs=64, outputs=10, depth=4, width=128, bias_variance=0.1, key=key)
F = fj.fisher(model, x, fj.Categorical())
fj.plan(F)  # what it would cost, and which kernel every parameter gets; nothing is computed

# %%
exact = fj.spectrum(F, by="layer")
exact["all"]

# %% [markdown]
# Zeros that shapes force are counted, never listed as noise around 1e-9; what lies below rounding is counted apart, since
# it may be zero or not. One pass gives the diagonal block of every layer too.

# %%
fj.plot.full(exact, "a perceptron at initialization, 120 digits")

# %%
for name, part in exact.items():
    print(
        f"{name:10} λ_max = {part.lambda_max:8.3f}   trace = {part.trace:8.2f}   effective rank = {part.effective_rank:6.2f}"
    )

# %% [markdown]
# ## Check it yourself
#
# F itself, from explicit per-sample gradients, where it is small enough to be formed: the same eigenvalues.

# %%
tiny = fj.models.build("mlp", inputs=64, outputs=10, depth=2, width=16, key=key)
G = fj.fisher(tiny, x[:40], fj.Categorical())
truth = np.linalg.eigvalsh(np.asarray(G.dense(), np.float64))[::-1]
found = fj.spectrum(G)
print("largest difference", np.abs(found.values - truth[: found.values.size]).max(), "floor", found.floor)
assert np.abs(found.values - truth[: found.values.size]).max() < 4 * found.floor

# %% [markdown]
# ## Many parameters cost little
#
# For one dense layer the cost is O(N²C²(d_in + d_out)) where explicit gradients take O(N²C² d_in d_out).

# %%
for width in (500, 1000, 2000):
    wide = fj.models.build("mlp", inputs=64, outputs=10, depth=4, width=width, key=key)
    H = fj.fisher(wide, x[:60], fj.Gaussian())
    fj.spectrum(H)  # compiles
    began = time.perf_counter()
    whole = fj.spectrum(H)
    print(f"P = {H.size:>8}: {time.perf_counter() - began:.2f} s, λ_max/width = {whole.lambda_max / width:.3f}")

# %% [markdown]
# A network need not even be kept: with `streamed=True` the weights of each layer are made from the key whenever they are
# needed, forward and backward. Networks larger than memory have exact spectra this way.

# %%
streamed = fj.models.build("mlp", inputs=64, outputs=10, depth=4, width=500, key=key, streamed=True)
stored = fj.models.build("mlp", inputs=64, outputs=10, depth=4, width=500, key=key)
a, b = (fj.spectrum(fj.fisher(m, x[:60], fj.Gaussian())) for m in (streamed, stored))
print(f"λ_max: {a.lambda_max:.6g} streamed, {b.lambda_max:.6g} stored")
assert abs(a.lambda_max - b.lambda_max) < a.floor + b.floor

# %% [markdown]
# ## What K-FAC makes of it
#
# The Kronecker-factored approximation takes the means over inputs and over cotangents apart: neither the trace nor the
# spectrum is that of F.

# %%
kfac = fj.kfac_spectrum(F)
print(f"trace  {exact['all'].trace:8.2f} exact, {kfac.trace:8.2f} K-FAC")
print(f"λ_max  {exact['all'].lambda_max:8.2f} exact, {kfac.lambda_max:8.2f} K-FAC")
fj.plot.full({"all": exact["all"], "K-FAC": kfac}, "exact, and its Kronecker-factored approximation")
