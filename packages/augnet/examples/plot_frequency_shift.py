"""
An invariance that two neurons cannot hold
==========================================

Sinusoids near 2, 4, 6 and 8 Hz, each within half a hertz of its class. Two neurons cannot be band-pass filters. A layer
that learns how far a frequency may move, and an average over shifted copies, make them one.
"""

# %%
# Windows of ten seconds
# ----------------------

import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from gyri.augnet import AugNetClassifier, Transform, eeg_transforms
from gyri.numerics import eeg

rng = np.random.default_rng(0)
t, y = np.arange(1000) / 100, np.arange(600) % 4
center = 2.0 + 2 * y
frequency, phase = center + rng.uniform(-0.5, 0.5, 600), rng.uniform(0, 4 * np.pi / center)
X = np.sin(2 * np.pi * frequency[:, None] * t + phase[:, None]) + 0.5 * rng.standard_normal((600, 1000))
X = X[:, None].astype("float32")
train, test = slice(0, 400), slice(400, None)

# %%
# With and without
# ----------------


def two_neurons(rngs):
    """A network of two hidden neurons."""
    return nnx.Sequential(lambda x: x[:, 0], nnx.Linear(1000, 2, rngs=rngs), nnx.relu, nnx.Linear(2, 4, rngs=rngs))


def half_a_hertz(key, x):
    """Shift the frequency of each window by up to half a hertz."""
    return eeg.frequency_shift(x, 0.5 * jax.random.uniform(key, x.shape[:1], minval=-1), 100.0)


(shift,) = eeg_transforms(100.0, include=("frequency_shift",))
choices = {
    "no augmentation": ([Transform("nothing", lambda key, x, arg: x)], {"reg": 0.0}),
    "learned shift": ([Transform("shift", shift.fn, (0.0, 2.0), "Hz")], {"reg": 0.8, "aug_learning_rate": 3e-3}),
}
figure, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
for name, (layer, options) in choices.items():
    model = AugNetClassifier(
        two_neurons, layer, init_magnitude=0.1, learning_rate=0.01, weight_decay=1e-4, batch_size=32, n_epochs=50,
        copies=10, verbose=False, **options,
    ).fit(X[train], y[train])  # fmt: skip
    moved = np.median(model.invariance(X[test], half_a_hertz))
    row = model.model_.describe()[0]
    print(f"{name}: accuracy {model.score(X[test], y[test]):.2f}, invariance {moved:.2f}, learned {row['argument']}")
    axes[0].plot(model.history_["ce"], label=name)
axes[1].plot(2 * model.history_["magnitudes"][:, 0], color="C1")
axes[0].set(xlabel="epoch", ylabel="cross-entropy in training")
axes[1].set(xlabel="epoch", ylabel="largest shift (Hz)")
axes[0].legend(frameon=False)
