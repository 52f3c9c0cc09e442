"""
Learning any hyper-parameter through a step of training
=======================================================

`hypergradient` knows nothing of signals: here it learns how much each of two training sets should count.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

from gyri.cadda import hypergradient

# %%
# Two training sets, one of them with wrong labels. The weights of their losses are the hyper-parameters.
rng = np.random.default_rng(0)
truth = rng.standard_normal(10)
X = rng.standard_normal((3, 100, 10))
y = X @ truth + 0.1 * rng.standard_normal((3, 100))
y[1] = rng.standard_normal(100)  # nothing to learn from
X, y = jnp.asarray(X), jnp.asarray(y)


def train_loss(theta, alpha):
    errors = jnp.mean((X[:2] @ theta - y[:2]) ** 2, 1)
    return jnp.sum(jax.nn.softmax(alpha) * errors)


def valid_loss(theta):
    return jnp.mean((X[2] @ theta - y[2]) ** 2)


# %%
# One step of each, in turn.


@jax.jit
def step(theta, alpha):
    gradient, aux = hypergradient(train_loss, valid_loss, theta, alpha, 0.1)
    return aux["theta_unrolled"], alpha - 2.0 * gradient, aux["valid_loss"]


theta, alpha, losses, weights = jnp.zeros(10), jnp.zeros(2), [], []
for _ in range(100):
    theta, alpha, loss = step(theta, alpha)
    losses.append(float(loss))
    weights.append(np.asarray(jax.nn.softmax(alpha)))

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.semilogy(losses)
left.set(xlabel="step", ylabel="validation loss")
right.plot(weights, label=["right labels", "wrong labels"])
right.set(xlabel="step", ylabel="weight")
right.legend(frameon=False)
plt.show()
