"""
The ridge collapses
===================

A recording tells the product of two parameters only: its posterior is a ridge. Other recordings that share one of the
two tell which point of the ridge it is. One network, trained once, takes any number of them.
"""

# %%
# Simulate and train
# ------------------
# ``n_extra=(0, 10)``: between none and ten other recordings, drawn anew for each simulation.

import jax
import matplotlib.pyplot as plt
import numpy as np

from gyri.hnpe import HNPE, ToyModel, pairplot, sbc, simulate

model = ToyModel(noise=0.05)  # x = alpha * beta + noise; beta is shared
posterior = HNPE(model.prior).fit(
    jax.random.key(0), model, n_simulations=3000, n_extra=(0, 10), max_epochs=25, progress=False
)

# %%
# More and more recordings
# ------------------------

alpha = np.random.default_rng(0).uniform(size=(10, 1))
x, x_extra = np.array([0.25]), 0.5 * alpha  # the truth: alpha = beta = 0.5
draws = {f"N = {n}": posterior.sample(jax.random.key(1), (2000,), x, x_extra[:n]) for n in (0, 2, 10)}
pairplot(draws, posterior.prior.names, [(0, 1), (0, 1)], [0.5, 0.5])

# %%
# Against the exact posterior
# ---------------------------
# The toy model knows its own.

beta = np.linspace(0.01, 0.99, 300)
fig, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained", sharey=True)
for ax, n in zip(axes, (0, 2, 10), strict=True):
    ax.plot(beta, np.exp(model.log_prob_shared(beta, x, x_extra[:n])), "0.6", label="exact")
    ax.plot(beta, np.exp(posterior.log_prob_shared(beta[:, None], x, x_extra[:n])), label="learned")
    ax.set(xlabel="beta", title=f"N = {n}")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("density")
axes[0].legend(frameon=False)

# %%
# Is it calibrated?
# -----------------

sbc(jax.random.key(2), posterior, simulate(jax.random.key(3), model.prior, model, 300, (0, 10)), 200).plot()
plt.show()
