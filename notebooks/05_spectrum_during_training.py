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
# # The spectrum during training
#
# How do the largest eigenvalues of the Fisher matrix move while a network learns, and where are they against 2/η, above
# which gradient descent on the quadratic model is unstable? A recorder from `fj.track` measures them every so many steps.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import fisher_jax as fj

key = jax.random.key(0)
x, y = fj.data.load("digits")
train, test = fj.data.split(x, y, 0.2, key)

# %% [markdown]
# ## A few lines
#
# A residual perceptron with batch norm, trained for a dozen epochs by gradient descent with momentum. The Fisher matrix is
# that of the network in evaluation mode on 60 training samples. So few samples make 600 rows, and the dual matrix is
# diagonalized whole: trace and eigenvalues come from one small program.

# %%
model = fj.models.build("resmlp", inputs=64, outputs=10, depth=4, norm="batch", key=key)
tracker = fj.track(train[0][:60], fj.Categorical(), every=22, k=12, key=key)
history = fj.train.fit(
    model,
    train,
    fj.Categorical(),
    optimizer=fj.train.Optimizer("momentum", rate=0.05),
    epochs=12,
    test=test,
    key=key,
    track=tracker,
)
print(history)
assert float(history.test_accuracy[-1]) > 0.95
fj.plot.track(tracker.history, history, "residual perceptron with batch norm on digits")

# %% [markdown]
# ## What training does to the spectrum
#
# As samples are fitted, the probabilities p go to zero and one, and with them the Fisher matrix of the likelihood,
# diag(p) − p pᵀ: it takes the whole spectrum along, and λ_max ends far below where it began.

# %%
first, last = tracker.history.values[0], tracker.history.values[-1]
rank = np.arange(1, 13)
plt.semilogy(rank, first, "o-", label="at initialization")
plt.semilogy(rank, last, "o-", label="after training")
plt.xlabel("rank")
plt.ylabel("eigenvalue")
plt.legend()
plt.show()
assert float(last[0]) < 0.1 * float(first[0])

# %% [markdown]
# ## The same for the squared loss, by hand
#
# Any loop will do: a recorder is called with the step and the model. Here full-batch gradient descent on the squared loss
# (1/2N) Σ |f − y|², whose Gauss–Newton matrix is the Fisher matrix of the Gaussian likelihood at all times. On all 200
# samples it has 2000 rows: beyond a thousand the recorder iterates, each time from the eigenvectors it found before.
#
# At initialization λ_max is 24: below 2/η for the smaller of two rates, above it for the larger. That one does not diverge:
# in a few steps it moves to where λ_max is below 2/η, and from there it descends.

# %%
import optax
from flax import nnx

target = np.eye(10, dtype=np.float32)[train[1][:200]]
inputs = jax.numpy.asarray(train[0][:200])


def descend(rate, steps=120):
    model = fj.models.build("mlp", inputs=64, outputs=10, depth=3, width=100, activation="tanh", key=key)
    optimizer = nnx.Optimizer(model, optax.sgd(rate), wrt=nnx.Param)
    tracker = fj.track(inputs, fj.Gaussian(), every=10, k=3, key=key)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return 0.5 * ((model(inputs) - target) ** 2).sum(axis=1).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    value = None
    for i in range(steps + 1):
        tracker(i, model, loss=value, rate=rate)
        value = step(model, optimizer)
    return tracker.history


slow, fast = descend(0.02), descend(0.1)
print(fast)

# %%
for found, color in ((slow, "C0"), (fast, "C1")):
    rate = float(found.rate[0])
    plt.plot(found.steps, found.values[:, 0], color=color, label=f"λ_max at rate {rate:g}")
    plt.axhline(2 / rate, color=color, ls="--", lw=0.8, label=f"2/{rate:g}")
plt.yscale("log")
plt.xlabel("step")
plt.ylabel("λ_max")
plt.legend()
plt.show()
assert float(fast.values[0, 0]) > 2 / 0.1 > float(fast.values[2, 0]) and float(slow.values.max()) < 2 / 0.02
assert float(fast.loss[-1]) < float(slow.loss[-1]) < float(slow.loss[1])

# %% [markdown]
# ## From the shell
#
# `fisher-jax train --model resnet20 -o width=8 --data digits --track 50` trains and measures, writes weights, tables and the
# picture, keeps checkpoints, and goes on where it was when it is started again.
