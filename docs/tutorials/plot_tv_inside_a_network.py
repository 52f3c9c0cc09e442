"""
A total-variation layer in your own flax network
================================================

Where the answer is known to jump and stay, say so in the architecture: let the last layer be an exact total-variation
proximal operator. It is differentiable in its input and in its penalty, so that the penalty is learned with the rest.
"""

# %%
# Steps behind a blur
# -------------------

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from gyri.tv import prox_tv1d

rng = np.random.default_rng(0)
n, n_times = 128, 100
jumps = rng.standard_normal((n, n_times)) * (rng.random((n, n_times)) < 0.05)
truth = np.cumsum(jumps, 1)
blur = np.exp(-np.arange(8) / 3.0)
x = np.stack([np.convolve(u, blur / blur.sum())[:n_times] for u in truth]) + 0.15 * rng.standard_normal((n, n_times))
truth, x = jnp.asarray(truth), jnp.asarray(x)
train, test = slice(0, 96), slice(96, None)

# %%
# The network
# -----------
# A convolution undoes the blur; the proximal operator flattens what lies between jumps. The layer is three lines: a
# parameter, a softplus that keeps it positive, and the call.


class TotalVariation(nnx.Module):
    """Proximal operator of total variation with a learned penalty."""

    def __init__(self):
        self.raw = nnx.Param(jnp.zeros(()))

    def __call__(self, x):
        return prox_tv1d(x, nnx.softplus(self.raw[...]))


class Deblur(nnx.Module):
    """A linear filter, then total variation where asked for."""

    def __init__(self, tv, rngs):
        self.filter = nnx.Conv(1, 1, (31,), padding="SAME", rngs=rngs)
        self.tv = TotalVariation() if tv else None

    def __call__(self, x):
        u = x + self.filter(x[..., None])[..., 0]
        return u if self.tv is None else self.tv(u)


@nnx.jit
def step(model, optimizer):
    """One step on the mean absolute error."""
    loss = lambda model: jnp.abs(model(x[train]) - truth[train]).mean()
    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    return value


errors, models = {}, {}
for tv in (False, True):
    models[tv] = Deblur(tv, nnx.Rngs(0))
    optimizer = nnx.Optimizer(models[tv], optax.adam(1e-2), wrt=nnx.Param)
    for _ in range(200):
        step(models[tv], optimizer)
    errors[tv] = float(jnp.abs(models[tv](x[test]) - truth[test]).mean())
print(f"mean error on new signals: {errors[False]:.3f} without, {errors[True]:.3f} with the layer")
print(f"learned penalty: {float(nnx.softplus(models[True].tv.raw[...])):.2f}")

# %%
# A new signal
# ------------

figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.plot(x[-1], color="0.7", label="observed")
axis.plot(truth[-1], "k", label="truth")
axis.plot(models[False](x[-1:])[0], label="filter alone")
axis.plot(models[True](x[-1:])[0], label="filter and total variation")
axis.set(xlabel="time (samples)")
axis.legend(frameon=False)

# %%
# ``jax.vmap``, ``jax.jit`` and both modes of differentiation work through the layer. The penalty may also be
# one a signal or one an edge, for instance the output of another network.
assert jax.grad(lambda lam: prox_tv1d(x[0], lam).var())(0.5) < 0  # more penalty, less variance
