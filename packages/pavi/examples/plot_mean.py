"""
How far a mean is shrunk
========================

The more samples there are, the less the penalty counts.
"""

import jax.numpy as jnp
from matplotlib import pyplot as plt

from gyri.pavi import shrunk_mean

# %%
# Ones, averaged with a penalty worth five samples.
sizes = [1, 2, 5, 10, 20, 50]
means = [float(shrunk_mean(jnp.ones(n), 5.0)) for n in sizes]

fig, ax = plt.subplots(layout="constrained")
ax.semilogx(sizes, means, "o-")
ax.set(xlabel="number of samples", ylabel="shrunk mean of ones", ylim=(0, 1))
plt.show()
