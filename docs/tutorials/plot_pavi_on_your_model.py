"""
Fast posteriors for your own NumPyro model
==========================================

A model of reaction times: 500 subjects, each with a mean and a spread of their own, 12 trials in each of two
conditions, some of them missed. What does the second condition cost, in all and for each subject?
"""

# %%
# The model
# ---------
# Standard NumPyro, with one rule: data are indexed by the plates' indices, so that a part of the subjects may be drawn.
# Missing trials are masked.

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

from gyri.pavi import AutoPAVI, elbo, fit, plate_graph, plot_elbo


def model(log_rt, condition, seen):
    n_subjects, n_trials = log_rt.shape
    level = numpyro.sample("level", dist.Normal(-0.5, 0.5))
    cost = numpyro.sample("cost", dist.Normal(0.0, 0.3))
    with numpyro.plate("subjects", n_subjects, dim=-2) as s:
        own_level = numpyro.sample("own_level", dist.Normal(level, 0.3))
        own_cost = numpyro.sample("own_cost", dist.Normal(cost, 0.1))
        noise = numpyro.sample("noise", dist.LogNormal(-1.2, 0.3))
        with numpyro.plate("trials", n_trials, dim=-1) as t, handlers.mask(mask=seen[s[:, None], t]):
            mean = own_level + own_cost * condition[t]
            numpyro.sample("log_rt", dist.Normal(mean, noise), obs=log_rt[s[:, None], t])


# %%
# Data of 500 subjects, simulated; a tenth of the trials is missed.

rng = np.random.default_rng(0)
n_subjects, condition = 500, np.repeat([0.0, 1.0], 12)
true_cost = rng.normal(0.12, 0.1, n_subjects)
log_rt = rng.normal(-0.6, 0.3, (n_subjects, 1)) + true_cost[:, None] * condition
log_rt += rng.lognormal(-1.2, 0.3, (n_subjects, 1)) * rng.standard_normal(log_rt.shape)
seen = rng.random(log_rt.shape) > 0.1
data = tuple(map(jnp.asarray, (log_rt.astype("float32"), condition.astype("float32"), seen)))
for name, site in plate_graph(model, *data).sites.items():
    print(f"{name}: plates {site.plates}, parents {site.parents}")

# %%
# The guide
# ---------
# The encoding of a subject comes from the subject's trials by a network, so that the guide serves new subjects, too.

guide = AutoPAVI(model, encoding="data", subsample_sizes={"subjects": 25})
result = fit(guide, jax.random.key(0), 1500, *data, progress_bar=False)
plot_elbo(result.losses)
print("ELBO on all subjects:", elbo(jax.random.key(1), result.params, guide, *data, num_particles=20, full=True))

# %%
# Posteriors
# ----------
# In all, and of each subject against what was simulated.

draws = guide.sample_posterior(jax.random.key(2), result.params, *data, sample_shape=(500,))
low, high = np.quantile(draws["cost"], [0.05, 0.95])
print(f"cost of the second condition: {low:.3f} to {high:.3f} in log seconds (simulated 0.12)")
own = np.asarray(draws["own_cost"][..., 0])
inside = (np.quantile(own, 0.05, 0) < true_cost) & (true_cost < np.quantile(own, 0.95, 0))
print(f"90 % intervals that hold a subject's own cost: {inside.mean():.2f}")
fig, ax = plt.subplots(figsize=(4.5, 4.0), layout="constrained")
ax.errorbar(true_cost, own.mean(0), own.std(0), fmt=".", color="C0", alpha=0.3)
ax.axline((0, 0), slope=1, color="k", lw=1)
ax.set(xlabel="simulated cost", ylabel="posterior mean and sd")

# %%
# New subjects, after the fit
# ---------------------------
# Other sizes are no obstacle where encodings come from the data.

new = (data[0][:3, ::2], data[1][::2], data[2][:3, ::2])
print(guide.sample_posterior(jax.random.key(3), result.params, *new)["own_cost"].shape)
