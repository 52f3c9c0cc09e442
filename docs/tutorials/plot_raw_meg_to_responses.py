"""
From a raw recording to which stimulus triggers what
====================================================

A recording goes in; out come its recurring waveforms, the sensors that see them, and for each waveform which stimulus
triggers it, how often and after what delay. Nothing is cut into epochs and nothing is averaged.

The recording is simulated here, so that the page runs anywhere and the truth is known. What to change for the MNE
sample recording, which has to be downloaded, stands at the end. Noise, threshold and regularisation are those, of five
settings tried, that come nearest to what was simulated.
"""

# %%
# A recording
# -----------
# Two minutes of twelve magnetometers. An auditory source answers most tones after 90 ms, with a waveform of 0.2 s; a
# rhythm of 10 Hz comes and goes as it likes. Stimuli are in a trigger channel, as in a recording of yours.

import matplotlib.pyplot as plt
import mne
import numpy as np

from gyri.dripp import DriPP, drivers_from_mne, events_from_raw

rng = np.random.default_rng(0)
sfreq, n_channels, duration = 100.0, 12, 120.0
n_times = int(sfreq * duration)
t = np.arange(0, 0.2, 1 / sfreq)
window = np.hanning(t.size)
waves = np.stack([window * np.cos(2 * np.pi * 5 * (t - 0.1)), window * np.sin(2 * np.pi * 10 * t)])
topographies = rng.standard_normal((2, n_channels))

tones = np.arange(2.0, duration - 2.0, 1.3)
images = tones + 0.65
answered = tones[rng.random(tones.size) < 0.8]
peaks = [answered + 0.09 + 0.01 * rng.standard_normal(answered.size), rng.uniform(1, duration - 1, 60)]

x = 0.3 * rng.standard_normal((n_channels, n_times))
for topography, wave, times in zip(topographies, waves, peaks):
    z = np.zeros(n_times)
    np.add.at(z, np.rint(times * sfreq).astype(int) - np.abs(wave).argmax(), 3.0)
    x += topography[:, None] * np.convolve(z, wave)[:n_times]

trigger = np.zeros((1, n_times))
for code, times in enumerate([tones, images], start=1):
    trigger[0, np.rint(times * sfreq).astype(int)] = code
names = [*(f"MEG {i:02d}" for i in range(n_channels)), "STI"]
info = mne.create_info(names, sfreq, ["mag"] * n_channels + ["stim"])
raw = mne.io.RawArray(np.vstack([1e-13 * x, trigger]), info, verbose="error")

# %%
# Waveforms and their times
# -------------------------
# ``events_from_raw`` learns a dictionary: each atom is a topography times a waveform. It lists when each occurs. A
# recording of yours is filtered and resampled before, by MNE; a noisier one needs a ``threshold``.

found = events_from_raw(raw, n_atoms=2, atom_duration=0.3, reg=0.05, max_iter=20, progress=False)
print([times.size for times in found.events], "events of each atom")

figure, axes = plt.subplots(1, 2, figsize=(6, 2.2), sharey=True, layout="constrained")
for k, axis in enumerate(axes):
    axis.plot(np.arange(found.temporal.shape[1]) / sfreq, found.temporal[k])
    axis.set(title=f"atom {k}", xlabel="time (s)")

# %%
# Stimuli against events
# ----------------------
# ``drivers_from_mne`` reads stimuli in seconds from the trigger channel, from an array of events or from annotations.
# All atoms are fitted at once.

drivers = drivers_from_mne(mne.find_events(raw, verbose="error"), {"tone": 1, "image": 2}, sfreq=sfreq)
model = DriPP(lower=0.03, upper=0.5, sfreq=found.sfreq).fit(found.events, drivers, t_stop=found.t_stop)
print(model.summary())

best = np.unravel_index(model.ratio_.argmax(), model.ratio_.shape)
print(
    f"atom {best[0]} answers {model.driver_names_[best[1]]}s after {1000 * model.m_[best]:.0f} ms: "
    f"{model.alpha_[best]:.2f} events a stimulus (truth: tones, 90 ms, 0.80)"
)
interval = model.confidence_intervals()["m"][best]
print(f"95 % interval of the latency: {1000 * interval[0]:.0f} to {1000 * interval[1]:.0f} ms")

# %%
# ``model.test()`` adds a p-value for each pair of an atom and a stimulus. The rate of the atom after each stimulus:

model.plot_intensity(atom=int(best[0]))

# %%
# A real recording
# ----------------
# The MNE sample recording is 1.5 GB, which is why this is not run here::
#
#     folder = mne.datasets.sample.data_path() / "MEG" / "sample"
#     raw = mne.io.read_raw_fif(folder / "sample_audvis_raw.fif", preload=True)
#     stimuli = mne.find_events(raw, "STI 014")
#     raw = raw.pick("grad").notch_filter([60, 120, 180]).filter(2.0, None)
#     raw, stimuli = raw.resample(150.0, events=stimuli)
#     codes = {"auditory": [1, 2], "visual": [3, 4]}
#     drivers = drivers_from_mne(stimuli, codes, sfreq=150.0, first_samp=raw.first_samp)
#     found = events_from_raw(raw, n_atoms=20, atom_duration=0.5, threshold=50, percent=True)
#
# Give DriPP ``sfreq=150.0`` then. ``gyri-reproduce run dripp`` does the same in its experiment ``mne_sample``.
