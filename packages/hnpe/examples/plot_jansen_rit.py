"""
A neural mass model seen through one amplifier
==============================================

The potential of a simulated cortical column, multiplied by an unknown gain: strong activity with a small gain looks
like weak activity with a large one. Recordings through the same amplifier share the gain.
"""

# %%
# Recordings
# ----------

import jax
import matplotlib.pyplot as plt
import numpy as np

from gyri.hnpe import HNPE, JansenRit, log_psd, pairplot

model = JansenRit(duration=2.0, burn_in=1.0)
theta = np.array([[135, 220, 2000, 5], [68, 220, 2000, 5], [200, 220, 4000, 5]], np.float32)  # C, mu, sigma, gain (dB)
x = model(jax.random.key(0), theta)

fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
axes[0].plot(np.arange(model.n_times) / model.sfreq, x.T)
axes[0].set(xlabel="time (s)", ylabel="potential (mV)")
axes[1].plot(model.sfreq / 65 * np.arange(33), log_psd(x).T)
axes[1].set(xlabel="frequency (Hz)", ylabel="log10 power")

# %%
# Train on spectra
# ----------------

posterior = HNPE(model.prior, density_estimator="maf").fit(
    1, model, n_simulations=1000, n_extra=(0, 4), summary=log_psd, batch_size=100, max_epochs=30, progress=False
)

# %%
# The first recording alone, and with the two others
# --------------------------------------------------

spectra = log_psd(x)
draws = {
    "alone": posterior.sample(2, (2000,), spectra[0]),
    "with two others": posterior.sample(2, (2000,), spectra[0], spectra[1:]),
}
pairplot(draws, model.prior.names, list(zip(*model.prior.bounds, strict=True)), theta[0])
print({name: f"gain {d[:, 3].mean():.1f} +- {d[:, 3].std():.1f} dB" for name, d in draws.items()})
plt.show()
