"""
How far may a digit turn?
=========================

A seven and a four, upright or upside down: four classes. The digits are turned by up to 45 degrees, which the network
is not told. It learns which of five affine transforms leave the labels unchanged, and how far, from the training images
alone.
"""

# %%
# Turned digits
# -------------

import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from scipy import ndimage
from sklearn.datasets import load_digits

from gyri.augnet import AugNetClassifier, image_transforms, plot_augmentations

digits = load_digits()
seven, four = (digits.images[np.flatnonzero(digits.target == digit)[0]] / 16 for digit in (7, 4))
large = [np.clip(ndimage.zoom(image, 2, order=1), 0, 1) for image in (seven, four)]
rng = np.random.default_rng(2)
y = rng.integers(0, 4, 1536)
degrees = rng.uniform(-45, 45, len(y)) + 180 * (y % 2)
X = np.array([ndimage.rotate(large[k // 2], angle, reshape=False, order=1) for k, angle in zip(y, degrees)])
X = np.clip(X, 0, 1)[..., None].astype("float32")  # (n, n_rows, n_columns, n_channels)

# %%
# A small network
# ---------------


class Network(nnx.Module):
    """Three blocks of a convolution, a normalisation and a pooling, and the largest value over space."""

    def __init__(self, rngs):
        sizes = [(1, 8), (8, 16), (16, 32)]
        self.convolutions = nnx.List([nnx.Conv(i, o, (3, 3), rngs=rngs) for i, o in sizes])
        self.norms = nnx.List([nnx.BatchNorm(o, rngs=rngs) for _, o in sizes])
        self.dense = nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, x):
        for convolution, norm in zip(self.convolutions, self.norms):
            x = nnx.max_pool(nnx.relu(norm(convolution(x))), (2, 2), (2, 2))
        return self.dense(x.max((1, 2)))


# %%
# What it learns
# --------------
# Rotations may reach 180 degrees, at which up is down. The decay of all parameters, added to the gradient before Adam,
# pulls magnitudes to zero unless the reward for wide augmentation holds them up.

model = AugNetClassifier(
    Network,
    image_transforms("affine", rotate_degrees=180.0),
    init_magnitude=1 / 8,
    reg=0.5,
    learning_rate=5e-4,
    weight_decay=1.0,
    batch_size=64,
    n_epochs=60,
    random_state=2,
    verbose=False,
).fit(X, y)
for row in model.model_.describe():
    print(f"{row['operation']:12s} weight {row['weight']:.3f}, up to {row['argument']:.3g} {row['unit']}")
plot_augmentations(model)

# %%
# The learned angle
# -----------------
# In grey the angles that the data have, in colour those that the layer draws.

learned = next(row["argument"] for row in model.model_.describe() if row["operation"] == "rotate")
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained", width_ratios=(1, 1.3))
left.set_aspect("equal")
for largest, colour, radius in ((45.0, "0.8", 1.0), (learned, "C0", 0.9)):
    angle = np.deg2rad(90 + np.linspace(-largest, largest, 100))
    left.fill(np.r_[0, radius * np.cos(angle)], np.r_[0, radius * np.sin(angle)], color=colour, alpha=0.8)
left.set(xlim=(-1, 1), ylim=(-0.1, 1.1), title=f"learned: {learned:.1f} degrees")
left.axis("off")
right.plot(model.history_["magnitudes"][:, 2] * 180)
right.axhline(45, color="0.7")
right.set(xlabel="epoch", ylabel="largest angle (degrees)")
