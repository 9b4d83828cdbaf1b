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
# # The model zoo
#
# What do skips, batch normalization, Fixup, dropout and stochastic depth do to the Fisher spectrum? Each of them is one
# option of a model here, so that everything else stays the same.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import fisher_jax as fj

key = jax.random.key(0)
x, y = fj.data.load("digits", samples=60)

# %% [markdown]
# ## One option at a time
#
# Residual perceptrons of eight blocks on real digits. The learning rate of gradient descent may not exceed 2/λ_max: a plain
# residual network needs one thousands of times smaller than one with Fixup.

# %%
variants = {
    "no skip (mlp)": ("mlp", {"depth": 9, "width": 64}, {}),
    "skip over one": ("resmlp", {"depth": 8, "skip": 1}, {}),
    "skip over two": ("resmlp", {"depth": 8}, {}),
    "+ batch norm": ("resmlp", {"depth": 8, "norm": "batch"}, {"bn": "frozen"}),
    "+ Fixup": ("resmlp", {"depth": 8, "residual": "fixup"}, {}),
    "+ SkipInit": ("resmlp", {"depth": 8, "residual": "skipinit"}, {}),
    "branches / √L": ("resmlp", {"depth": 8, "scale": "depth"}, {}),
    "concatenating": ("densemlp", {"depth": 8, "growth": 16}, {}),
}
spectra = {}
for name, (kind, options, mode) in variants.items():
    model = fj.models.build(kind, inputs=64, outputs=10, key=key, **options)
    spectra[name] = fj.spectrum(fj.fisher(model, x, fj.Gaussian(), **mode))
    found = spectra[name]
    print(
        f"{name:14}  trace {found.trace:10.4g}   λ_max {found.lambda_max:10.4g}   largest rate {2 / found.lambda_max:8.2g}"
    )
assert spectra["+ Fixup"].lambda_max < spectra["+ batch norm"].lambda_max < spectra["skip over two"].lambda_max

# %%
for name, found in spectra.items():
    plt.loglog(np.arange(1, found.values.size + 1), found.values, label=name)
plt.xlabel("rank")
plt.ylabel("eigenvalue")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Dropout and stochastic depth: which matrix?
#
# The network without masks has one Fisher matrix; each draw of the masks has another. The largest eigenvalue of the average,
# the average of the largest eigenvalues, and that of the mean network are three numbers.

# %%
deep = fj.models.build("resmlp", inputs=64, outputs=1, depth=6, survival=0.5, key=key)
summary = fj.over_masks(deep, x[:20], fj.Gaussian(), draws=24, key=jax.random.key(1))
print(summary)
assert summary.largest_of_mean_network < summary.largest_of_average <= summary.average_of_largest

# %% [markdown]
# ## Batch normalization: which matrix?
#
# With running statistics ("eval") samples are independent; fresh ones, of mean 0 and variance 1, normalize nothing. The
# statistics of the batch are either constants ("frozen"), or the derivative goes through them ("train") and the batch is
# one joint map.

# %%
normed = fj.models.build("resmlp", inputs=64, outputs=10, depth=4, norm="batch", key=key)
for bn in ("eval", "frozen", "train"):
    print(f"{bn:7}", f"λ_max = {fj.spectrum(fj.fisher(normed, x[:30], fj.Gaussian(), bn=bn)).lambda_max:.4g}")

# %% [markdown]
# ## Networks of the literature
#
# Convolutional and attention networks come by the names of their papers. `fisher-jax models` lists them with their sizes.

# %%
for name in ("resnet20", "wrn28-10", "densenet-bc-100-12", "vit-s16", "gpt2"):
    print(f"{name:20} {fj.models.count(name):>12,} parameters")

# %%
images = x.reshape(-1, 8, 8, 1)[:12]
small = fj.models.build("resnet20", inputs=(8, 8, 1), outputs=10, width=4, key=key)
F = fj.fisher(small, images, fj.Categorical())
print(fj.spectrum(F))

# %% [markdown]
# ## Many seeds in one program


# %%
@jax.jit
@jax.vmap
def largest(key):
    network = fj.models.build("resmlp", inputs=64, outputs=1, depth=4, key=key)
    return jax.numpy.linalg.eigvalsh(fj.fisher(network, x[:20], fj.Gaussian()).gram())[-1]


values = largest(jax.random.split(key, 30))
print(f"λ_max = {values.mean():.4g} ± {values.std() / 30**0.5:.2g} over 30 networks")
