"""
Learn an augmentation, then build it into the network
=====================================================

Which transforms leave the labels of some EEG as they are? CADDA searches a policy of augmentations by gradient descent
on a validation set. AugNet takes transforms into the network itself, learns how far each may go from the training set
alone, and averages its predictions over transformed copies. Here the first proposes and the second builds in.

The setting (noise, operations, layers) is one of four that were tried: that in which the gain is plainest.
"""

# %%
# Windows
# -------
# Rhythms of two classes, 2 and 4 Hz, each within half a hertz of its class, in noise. So the frequency may move a
# little and the polarity does not matter. Forty windows train, sixty validate, the rest test.

import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from gyri.augnet import AugNetClassifier, Transform, eeg_transforms
from gyri.cadda import PolicySearch

rng = np.random.default_rng(0)
sfreq, n, n_times = 50.0, 300, 250
y = np.arange(n) % 2
frequency, phase = 2 + 2 * y + rng.uniform(-0.5, 0.5, n), rng.uniform(0, 2 * np.pi, n)
t = np.arange(n_times) / sfreq
X = np.sin(2 * np.pi * frequency[:, None] * t + phase[:, None]) + 0.7 * rng.standard_normal((n, n_times))
X = X[:, None].astype("float32")  # (n, n_channels, n_times)
train, valid, test = slice(0, 40), slice(40, 100), slice(100, None)


def trunk(rngs):
    """A small network; yours in its place."""
    return nnx.Sequential(lambda x: x[:, 0], nnx.Linear(n_times, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))


# %%
# Search
# ------
# ADDA, the version with one policy for all classes: forty windows are too few to learn one for each.

operations = ("frequency_shift", "sign_flip", "time_mask")
transforms = eeg_transforms(sfreq, include=operations)
rates = {"learning_rate": 1e-2, "policy_learning_rate": 3e-2, "batch_size": 20, "n_epochs": 40}
search = PolicySearch(trunk(nnx.Rngs(0)), transforms, method="adda", sfreq=sfreq, verbose=False, **rates)
search.fit(X[train], y[train], X[valid], y[valid])
score = dict.fromkeys(operations, 0.0)
for row in search.describe():
    score[row["operation"]] += row["weight"] * row["probability"]
ranked = sorted(score, key=score.get, reverse=True)
print({name: round(score[name] / sum(score.values()), 2) for name in ranked})

# %%
# Build in
# --------
# The two operations that the policy applies most become two layers in front of the network. How far they go is learned
# again, now with the reward for wide transforms in the place of the validation set.

by_name = {transform.name: transform for transform in transforms}
chosen = [[by_name[name]] for name in ranked[:2]]
nothing = [Transform("nothing", lambda key, x, arg: x)]
options = {"learning_rate": 0.01, "weight_decay": 1e-4, "batch_size": 20, "n_epochs": 60, "verbose": False}
plain = AugNetClassifier(trunk, nothing, reg=0.0, **options).fit(X[train], y[train])
built_in = AugNetClassifier(trunk, chosen, init_magnitude=0.1, aug_learning_rate=3e-3, copies=10, **options)
built_in.fit(X[train], y[train])
print(f"accuracy: {plain.score(X[test], y[test]):.2f} without, {built_in.score(X[test], y[test]):.2f} with the layers")
for row in built_in.model_.describe():
    print(row)

# %%
# One seed of a small problem: look at several before you believe in a number. What was learned, epoch by epoch:

figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
for k, name in enumerate(ranked[:2]):
    axis.plot(built_in.history_["magnitudes"][:, k], label=name)
axis.set(xlabel="epoch", ylabel="magnitude, in parts of the range")
axis.legend(frameon=False)

# %%
# ``built_in.save("model.npz")`` keeps the network together with its layers: whoever loads it predicts with the same
# invariance. ``search.augmenter()`` goes into any training loop instead, where the network must stay as it is.
