"""
Half of the pixels are gone: what can be learned from the rest?
===============================================================

A photograph of which every second pixel is missing. No clean picture is used: atoms are learned on the damaged one
alone, and then fill in what is missing. Total variation, which is not learned, stands beside them.
"""

# %%
# The damaged photograph
# ----------------------

import numpy as np
from matplotlib import pyplot as plt
from sklearn.datasets import load_sample_image

from gyri.unrolled import plot_atoms, plot_history, restore_image

photo = load_sample_image("flower.jpg").mean(-1) / 255
photo = photo[21:405, 128:512].reshape(96, 4, 96, 4).mean((1, 3)).astype("float32")
mask = np.random.default_rng(0).random(photo.shape) < 0.5
damaged = np.where(mask, photo, np.nan)

# %%
# Learned and fixed priors
# ------------------------
# A dictionary of patches, convolutional atoms, and total variation at a good penalty.

restored, models = {}, {}
for name, options in {
    "total variation": {"method": "analysis", "constraint": "tv", "lam": 0.01},
    "patches": {"method": "patch", "patch_size": 8, "n_components": 64, "lam": 0.03, "epochs": 2},
    "convolutional atoms": {"method": "conv", "patch_size": 8, "lam": 0.01, "max_steps": 25},
}.items():
    restored[name], models[name] = restore_image(damaged, mask=mask, **options)

figure, axes = plt.subplots(1, 5, figsize=(12, 2.8), layout="constrained")
pictures = {"truth": photo, "damaged": np.where(mask, photo, 0), **restored}
for ax, (name, picture) in zip(axes, pictures.items()):
    psnr = -10 * np.log10(np.mean((picture - photo) ** 2)) if name != "truth" else np.inf
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
    ax.set_title(name if name == "truth" else f"{name}, {psnr:.1f} dB", fontsize="small")
    ax.set_axis_off()
plt.show()

# %%
# What was learned
# ----------------
# The convolutional atoms, and how the loss fell.

plot_atoms(models["convolutional atoms"])
plt.show()
plot_history(models["convolutional atoms"])
plt.show()
