"""
Which augmentations keep the label of which stage of sleep?
===========================================================

A policy for each stage of simulated sleep, learned by gradient descent on the validation loss, and a network trained
with it. The simulator knows the answer: shifted frequencies are other subjects, reversed time is no REM sleep.
"""

# %%
# Windows
# -------
# One subject to train on, two to validate, two to test. Frequencies differ between subjects.

import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib import pyplot as plt

from gyri.cadda import PolicySearch, SleepStager, plot_policy, plot_search, simulate_sleep, train_classifier

sfreq = 40.0
X, y, subject = simulate_sleep(0, 5, 50, sfreq=sfreq, window_s=15)
train, valid, test = subject == 0, (subject == 1) | (subject == 2), subject >= 3

figure, axes = plt.subplots(5, 1, figsize=(7, 5), sharex=True, layout="constrained")
for ax, stage, name in zip(axes, range(5), ("W", "N1", "N2", "N3", "R")):
    window = X[y == stage][0, 0, :400]
    ax.plot(np.arange(len(window)) / sfreq, window, linewidth=0.8)
    ax.set_ylabel(name, rotation=0)
axes[-1].set_xlabel("Time (s)")
plt.show()

# %%
# Search
# ------
# Weights, probabilities and magnitudes of each class, through one step of training.

search = PolicySearch(
    transforms=["sign_flip", "time_reverse", "frequency_shift", "channels_dropout"], sfreq=sfreq, n_epochs=20,
    verbose=False,
).fit(X[train], y[train], X[valid], y[valid])  # fmt: skip
plot_policy(search)
plt.show()
plot_search(search)
plt.show()

# %%
# A network with it, and one without
# ----------------------------------


def accuracy(augmenter):
    network = SleepStager(2, 5, X.shape[2], sfreq, rngs=nnx.Rngs(0))
    network, _ = train_classifier(
        0, network, X[train], y[train], X[valid], y[valid], augmenter=augmenter, n_epochs=40, verbose=False
    )
    return float(np.mean(np.asarray(network(jnp.asarray(X[test])).argmax(-1)) == y[test]))


print(f"accuracy on new subjects: {accuracy(None):.2f} without, {accuracy(search.augmenter()):.2f} with augmentation")
