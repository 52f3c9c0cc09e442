"""
Recurring waveforms of a multichannel recording
===============================================

A recording of 20 channels holds three kinds of short events, each with a topography and a waveform of its own, at
random times in noise. Their atoms are learned from windows that are cut out of the recording on the device: it is never
copied into all of its windows, however long it is. An `mne.io.Raw` may stand in the place of the array.
"""

# %%
# The recording
# -------------

import numpy as np
from matplotlib import pyplot as plt

from gyri.unrolled import ConvDictionaryLearning, plot_atoms
from gyri.unrolled.experiments.recordings import plant

X, spatial, temporal = plant(0)
plt.figure(figsize=(9, 2.5), layout="constrained")
plt.plot(1e12 * X[:4, :1500].T + 4 * np.arange(4), linewidth=0.7)
plt.xlabel("sample")
plt.ylabel("four of the channels (pT/m)")
plt.show()

# %%
# Atoms of rank one
# -----------------
# More atoms than events are learned: with few, the search stops in local minima.

model = ConvDictionaryLearning(
    8, 60, lam=0.1, lam_is_ratio=True, rank1=True, n_iter=30, window_length=500, batch_size=10,
    iterations_per_epoch=12, verbose=False,
).fit(X)  # fmt: skip
plot_atoms(model)
plt.show()

# %%
# When they occur
# ---------------
# Codes are in the unit of the data.

codes = model.transform(X)[0]
used = np.argsort(-np.abs(codes).sum(1))[:3]
figure, axes = plt.subplots(3, 1, figsize=(9, 4), sharex=True, layout="constrained")
for ax, k in zip(axes, used):
    ax.plot(1e12 * codes[k, :3000], linewidth=0.8)
    ax.set_ylabel(f"atom {k}")
axes[-1].set_xlabel("sample")
plt.show()
