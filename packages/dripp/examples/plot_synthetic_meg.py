"""
Which atoms answer to which stimuli?
====================================

A convolutional dictionary turns a recording into a few recurring waveforms, the atoms, and the times at which each
of them occurs. Some are evoked by a stimulus, others (heartbeats, blinks) are not. DriPP tells which, how often,
and after what delay, from the times alone: neither epochs nor averages.

Here we make the activations of three atoms ourselves, as a dictionary would give them for a recording of five
minutes, with tones and images. Nothing is downloaded.
"""

# %%
# Stimuli and activations
# -----------------------
# Tones and images come in turn. Atom 0 is a heartbeat; atom 1 answers 79 % of the tones after about 86 ms; atom 2
# answers 61 % of the images after about 188 ms. Both occur spontaneously, too. Activations have a size, and there
# is noise: many small ones.

import matplotlib.pyplot as plt
import numpy as np

from gyri.dripp import DriPP, events_from_activations

rng = np.random.default_rng(0)
sfreq, duration = 150.0, 300.0
onsets = np.round((3 + np.cumsum(rng.uniform(0.68, 0.82, 390))) * sfreq) / sfreq
stimuli = {"tone": onsets[::2], "image": onsets[1::2]}


def evoked(driver, probability, latency, jitter):
    answered = driver[rng.random(driver.size) < probability]
    return answered + rng.normal(latency, jitter, answered.size)


def spontaneous(rate):
    return rng.uniform(0, duration, rng.poisson(rate * duration))


times = [
    spontaneous(1.25),
    np.concatenate([spontaneous(0.1), evoked(stimuli["tone"], 0.79, 0.086, 0.008)]),
    np.concatenate([spontaneous(0.14), evoked(stimuli["image"], 0.61, 0.188, 0.014)]),
]
z = np.abs(0.3 * rng.standard_normal((3, int(duration * sfreq))))
for activation, atom_times in zip(z, times):
    samples = np.rint(atom_times * sfreq).astype(int)
    activation[samples] = rng.lognormal(1.0, 0.3, samples.size)

fig, axes = plt.subplots(3, 1, figsize=(8, 4.2), sharex=True, layout="constrained")
seconds = np.arange(z.shape[1]) / sfreq
for k, ax in enumerate(axes):
    ax.plot(seconds, z[k], color="0.3", linewidth=0.7)
    for p, (name, driver) in enumerate(stimuli.items()):
        ax.vlines(driver, 0, 6, color=f"C{p}", linewidth=1.2, alpha=0.6, label=name)
    ax.set(ylabel=f"atom {k}", xlim=(100, 110), ylim=(0, 6))
axes[-1].set_xlabel("Time (s)")
axes[0].legend(loc="upper right", frameon=True)
fig.suptitle("Activations, and the times of the stimuli")

# %%
# From activations to events
# --------------------------
# Of activations that are close to one another the largest is kept, and only those above a threshold.

events = events_from_activations(z, sfreq, threshold=1.3)
print([times.size for times in events])

# %%
# Fit
# ---
# All atoms are fitted at once. The window says which delays are possible: 30 to 500 ms, as in the paper. On a
# sampling grid (`sfreq`) the cost of a fit does not depend on the number of events.

model = DriPP(lower=0.03, upper=0.5, sfreq=sfreq).fit(events, stimuli, t_stop=duration)
print(model.summary())

# %%
# The ratio of alpha to the baseline ranks atoms: near zero for the heartbeat, whose few chance events the kernels pick
# up, and large for those that are evoked. The rate after a stimulus:

fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
for k, ax in enumerate(axes):
    model.plot_intensity(atom=k, ax=ax)
    ax.set_ylim(top=1.5 * ax.get_ylim()[1])  # room for the legend

# %%
# Error bars and fit
# ------------------
# Standard errors are in the summary; intervals hold the latencies that we put in, 86 and 188 ms.

intervals = 1e3 * model.confidence_intervals()["m"]
print("latency of atom 1 after tones: {:.1f} to {:.1f} ms".format(*intervals[1, 0]))
print("latency of atom 2 after images: {:.1f} to {:.1f} ms".format(*intervals[2, 1]))

# %%
# Does the model describe the events at all? Under a good model the rescaled intervals between events are uniform. Here
# they are too regular: a tone evokes one response at most, while the model's number of responses varies, as a Poisson
# number does. What it says of rate, latency and jitter is right all the same.

fig, ax = plt.subplots(figsize=(4.2, 4), layout="constrained")
model.plot_qq(atom=1, ax=ax)

# %%
# Whether a driver has any effect, `model.test()` answers with a p-value: it shifts the stimuli in time, which breaks
# their link to the events, and fits again, some 200 times.
