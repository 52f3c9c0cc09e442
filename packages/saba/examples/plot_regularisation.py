"""
Choose one regularisation strength a feature
============================================

A logistic regression on thirty features, each with its own strength of an l2 penalty. The strengths are chosen by the
validation loss: a bilevel problem, for which a grid search would need thousands of dimensions' worth of fits.
"""

# %%
# The problem
# -----------
# Breast cancer data of scikit-learn, standardised; 455 samples to train, 114 to validate.

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from gyri.saba import minimize, plot_convergence, problems, saba, soba, value_function

problem = problems.load("breast_cancer")
data = (problem.inner_data, problem.outer_data)
value = jax.jit(lambda x: value_function(problem.inner_fun, problem.outer_fun, problem.z0, x, *data)[0])
print("validation loss at the start:", value(problem.x0))

# %%
# SABA and SOBA
# -------------
# The metric is the value function itself, the inner problem being solved exactly for each record.

metrics = lambda z, v, x: {"validation loss": value(x)}
results = {}
for name, make in {"SABA": saba, "SOBA": soba}.items():
    solver = make(problem.inner_fun, problem.outer_fun, inner_opt=0.125, outer_opt=0.5, batch_size=32)
    results[name] = minimize(solver, problem.z0, problem.x0, *data, num_steps=10_000, eval_every=500, metrics=metrics)

fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
plot_convergence(results, key="validation loss", ax=ax)

# %%
# What was chosen
# ---------------
# Strengths of useless features grow, which shrinks their weights away; strengths of useful ones vanish.

z = value_function(problem.inner_fun, problem.outer_fun, problem.z0, results["SABA"].x, *data)[1]
fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
ax.loglog(jnp.exp(results["SABA"].x), jnp.abs(z), "o")
ax.set(xlabel="strength of the penalty", ylabel="absolute weight")
ax.spines[["top", "right"]].set_visible(False)

plt.show()
