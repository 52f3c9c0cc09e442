"""
What does the nystagmus look like under the saccades?
=====================================================

A recording of an eye with nystagmus shows three things at once: a periodic movement, saccades and slow movements of
the gaze, and noise. The waveform of the periodic part is what a clinician wants to see. Here a recording is simulated,
so that the answer is known, and taken apart: trend, waveform, and the times at which it occurs. There are two blinks.
"""

# %%
# A recording with blinks
# -----------------------
# Ten seconds at 500 Hz: a jerk nystagmus of 4 Hz under saccades of several degrees. Blinks are masked: what the eye
# tracker reports there has no influence.

import matplotlib.pyplot as plt
import numpy as np

from gyri.nystagmus import NystagmusCDL, pattern_correlation, plot_decomposition, simulate_nystagmus

sfreq = 500.0
data = simulate_nystagmus(
    1, n_times=5000, sfreq=sfreq, kind="jerk_sf_up", frequency=4.0, nystagmus_std=2.5, saccade_std=8.0
)
gaze = data.recording[0, 0].copy()
mask = np.ones(gaze.size, bool)
for start in (1400, 3700):
    mask[start : start + 100] = False
gaze[~mask] = np.nan

# %%
# Trend and pattern, learned together
# -----------------------------------
# One atom, one and a half periods long. How much the trend is smoothed follows from an estimate of the frequency and
# the amplitude of the nystagmus.

model = NystagmusCDL(n_atoms=1, atom_duration=0.375, sfreq=sfreq, reg=0.2, n_restarts=3).fit(gaze, mask)
print(f"weight of the total variation: {model.trend_reg_:.1f} degree samples")
plot_decomposition(model)
plt.xlim(2, 6)
plt.show()

# %%
# The waveform and its measures
# -----------------------------
# The atom tapers off at its ends, as neighbouring repetitions overlap: their sum is the movement.

fig, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
model.plot_atoms(ax=axes[:1])
middle = slice(1500, 2250)
t = np.arange(gaze.size)[middle] / sfreq
truth = data.nystagmus[0, middle]
axes[1].plot(t, truth - truth.mean(), color="0.6", label="true nystagmus")
found = model.pattern_signal_[0, 0, middle]
axes[1].plot(t, found - found.mean(), color="C0", label="found")
axes[1].set(xlabel="Time (s)", title="The movement", ylim=(-4.5, 7.5))
axes[1].set_xlim(t[0], t[-1])
axes[1].spines[["top", "right"]].set_visible(False)
axes[1].legend(frameon=False, fontsize="small")
plt.show()

(measured,) = model.waveforms()
for name, value in measured.items():
    print(f"{name}: {value:.2f}")
print("correlation with the true pattern:", pattern_correlation(data.pattern[0], model.atoms_[:, 0]).round(2))
