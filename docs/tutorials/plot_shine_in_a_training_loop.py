"""
An equilibrium layer in a training loop that you have
=====================================================

A deep equilibrium layer outputs the fixed point of a cell. Its forward pass is a solver; its backward pass is another,
unless the first shares what it learned. This page takes an ordinary training loop of flax and optax, replaces one
layer, and compares backward passes.
"""

# %%
# The loop
# --------
# Two spirals, and a loop that knows nothing of equilibria.

import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from gyri.shine import DEQ, Broyden
from gyri.shine.models import DenseCell

rng = np.random.default_rng(0)
y = np.arange(200) % 2
angle = np.sqrt(rng.random(200)) * 2.5 * np.pi
points = np.stack([np.cos(angle), np.sin(angle)], 1) * angle[:, None] * np.where(y, -1, 1)[:, None] / 5
x, y = jnp.asarray(points + 0.03 * rng.standard_normal(points.shape)), jnp.asarray(y)


class Classifier(nnx.Module):
    """A layer, then two outputs."""

    def __init__(self, layer, rngs):
        self.layer = layer
        self.linear = nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, x):
        return self.linear(self.layer(x))


@nnx.jit
def step(model, optimizer):
    """One step of the loop."""
    loss = lambda model: optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    return value


def train(layer, n_steps=150):
    """Losses and seconds of the steps; the first one, which compiles, is not counted in the time."""
    model = Classifier(layer, nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    losses = [step(model, optimizer)]
    jax.block_until_ready(losses)
    start = time.perf_counter()
    losses += [step(model, optimizer) for _ in range(n_steps)]
    jax.block_until_ready(losses)
    accuracy = float((model(x).argmax(1) == y).mean())
    return np.array(losses), time.perf_counter() - start, accuracy


# %%
# One line changes
# ----------------
# ``nnx.Linear(2, 32)`` followed by a nonlinearity becomes a ``DEQ``. ``backward`` says how it is differentiated: by
# solving the adjoint system (``"full"``), by sharing the inverse of the forward pass (``"shine"``), or by taking the
# identity for that inverse (``"jacobian_free"``).


def equilibrium(backward):
    """A layer of 32 units at their fixed point."""
    return DEQ(DenseCell(2, 32, rngs=nnx.Rngs(0)), solver=Broyden(max_steps=30, tol=1e-5), backward=backward)


rngs = nnx.Rngs(0)
layers = {"one layer": nnx.Sequential(nnx.Linear(2, 32, rngs=rngs), nnx.relu)}
layers |= {backward: equilibrium(backward) for backward in ("full", "shine", "jacobian_free")}
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for name, layer in layers.items():
    losses, seconds, accuracy = train(layer)
    print(f"{name:14s} loss {losses[-1]:.3f}, accuracy {accuracy:.2f}, {1000 * seconds / 150:.1f} ms a step")
    axis.plot(losses, label=name)
axis.set(xlabel="step", ylabel="cross-entropy", yscale="log")
axis.legend(frameon=False)

# %%
# Such a small problem is no measure of speed: what the backward pass saves grows with the cost of the cell, and the
# package's page gives figures. What the solver did can be asked for:

model = equilibrium("shine")
_, stats = model(x, return_info=True)
print(f"steps: {int(stats.n_steps.max())}, residual at most {float(stats.residual.max()):.1e}")
