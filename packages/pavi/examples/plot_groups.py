"""
A thousand groups in a second
=============================

A hierarchical Gaussian model of 1,000 groups, whose posterior is known in closed form: how near the guide comes, and
what shrinkage looks like.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

from gyri.pavi import AutoPAVI, elbo, fit, models, plot_elbo, plot_posterior

scales = (1.0, 0.5, 1.0)  # of the mean of all, of the groups around it, of the observations around their group
latents, x = models.simulate_gre(jax.random.key(0), 1000, 5, 1, scales=scales)


def model(x):
    models.gre(x, scales=scales)


# %%
# Each step draws 20 groups. The encodings come from the data, by a deep set.

guide = AutoPAVI(model, encoding="data", subsample_sizes={"groups": 20})
result = fit(guide, jax.random.key(1), 1000, x, progress_bar=False)
plot_elbo(result.losses)

# %%
# The evidence lower bound on all groups, against the logarithm of the evidence.

evidence = models.gre_log_evidence(x, scales=scales)
bound = elbo(jax.random.key(2), result.params, guide, x, num_particles=100, full=True)
print(f"log p(X) {evidence:.2f}, ELBO {bound:.2f}: {(evidence - bound) / 1000:.4f} nat a group")

# %%
# Posterior means shrink from the groups' own means towards the mean of all.

draws = guide.sample_posterior(jax.random.key(3), result.params, x, sample_shape=(500,))
exact = models.gre_posterior(x, scales=scales)
own = np.asarray(x.mean((1, 2)))
fig, ax = plt.subplots(figsize=(5.0, 4.0), layout="constrained")
ax.plot(own, draws["theta"].mean(0)[:, 0, 0], ".", label="gyri-pavi")
ax.plot(np.sort(own), np.asarray(exact.theta_mean)[np.argsort(own), 0], color="k", lw=1, label="exact")
ax.axline((0, 0), slope=1, color="0.6", ls=":", label="no shrinkage")
ax.set(xlabel="mean of the group's observations", ylabel="posterior mean")
ax.legend()

# %%
# Marginals of the groups, in order of their medians.

plot_posterior({"theta": draws["theta"][:, :50]}, "theta")
