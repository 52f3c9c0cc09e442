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
#
# In the guide, as in the model, a site depends on its parents. So the level in the second condition is written as a
# child of that in the first: what is known of the two is correlated. Written as a level and a cost that are
# independent a priori, they would be independent in the guide, and its intervals too short.

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

from gyri.pavi import AutoPAVI, elbo, fit, plate_graph, plot_elbo


def model(easy, hard, seen_easy, seen_hard):
    n_subjects, n_trials = easy.shape
    level = numpyro.sample("level", dist.Normal(-0.5, 0.5))
    cost = numpyro.sample("cost", dist.Normal(0.0, 0.3))
    with numpyro.plate("subjects", n_subjects, dim=-2) as s:
        own_easy = numpyro.sample("own_easy", dist.Normal(level, 0.3))
        own_hard = numpyro.sample("own_hard", dist.Normal(own_easy + cost, 0.1))
        noise = numpyro.sample("noise", dist.LogNormal(-1.2, 0.3))
        with numpyro.plate("trials", n_trials, dim=-1) as t:
            part = (s[:, None], t)
            with handlers.mask(mask=seen_easy[part]):
                numpyro.sample("easy", dist.Normal(own_easy, noise), obs=easy[part])
            with handlers.mask(mask=seen_hard[part]):
                numpyro.sample("hard", dist.Normal(own_hard, noise), obs=hard[part])


# %%
# Data of 500 subjects, simulated; a tenth of the trials is missed.

rng = np.random.default_rng(0)
n_subjects, n_trials = 500, 12
true_cost = rng.normal(0.12, 0.1, (n_subjects, 1))
true_level = rng.normal(-0.6, 0.3, (n_subjects, 1))
noise = rng.lognormal(-1.2, 0.3, (n_subjects, 1))
easy, hard = (
    mean + noise * rng.standard_normal((n_subjects, n_trials)) for mean in (true_level, true_level + true_cost)
)
seen = rng.random((2, n_subjects, n_trials)) > 0.1
data = (jnp.asarray(easy, "float32"), jnp.asarray(hard, "float32"), jnp.asarray(seen[0]), jnp.asarray(seen[1]))
for name, site in plate_graph(model, *data).sites.items():
    print(f"{name}: plates {site.plates}, parents {site.parents}")

# %%
# The guide
# ---------
# The encoding of a subject comes from the subject's trials by a network, so that the guide serves new subjects, too.
# The network does not see in which order trials came, nor any covariate: this is why each condition is a site of its
# own. With ``condition[t]`` in one site, it could not tell the two apart.

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
own = np.asarray(draws["own_hard"] - draws["own_easy"])[..., 0]
inside = (np.quantile(own, 0.05, 0) < true_cost[:, 0]) & (true_cost[:, 0] < np.quantile(own, 0.95, 0))
print(f"90 % intervals that hold a subject's own cost: {inside.mean():.2f}")

# %%
# If the noise were known, the posterior mean would be a weighted mean of the subject's own difference and the cost in
# all, with the weight of the difference 1 / (1 + 2 noise^2 / (0.1^2 n)).

difference = np.ma.array(hard, mask=~seen[1]).mean(1) - np.ma.array(easy, mask=~seen[0]).mean(1)
variance = noise[:, 0] ** 2 * (1 / seen[0].sum(1) + 1 / seen[1].sum(1))
weight = 0.1**2 / (0.1**2 + variance)
shrunk = weight * np.asarray(difference) + (1 - weight) * float(draws["cost"].mean())
fig, axes = plt.subplots(1, 2, figsize=(8.0, 3.6), layout="constrained")
axes[0].plot(shrunk, own.mean(0), ".", alpha=0.5)
axes[0].axline((0.1, 0.1), slope=1, color="k", lw=1)
axes[0].set(xlabel="posterior mean if the noise were known", ylabel="posterior mean")
axes[1].errorbar(true_cost[::5, 0], own.mean(0)[::5], own.std(0)[::5], fmt=".", color="C0", alpha=0.5)
axes[1].axline((0.1, 0.1), slope=1, color="k", lw=1)
axes[1].set(xlabel="simulated cost", ylabel="posterior mean and sd")

# %%
# New subjects, after the fit
# ---------------------------
# Other sizes are no obstacle where encodings come from the data.

new = [part[:3, ::2] for part in data]
print(guide.sample_posterior(jax.random.key(3), result.params, *new)["own_hard"].shape)
