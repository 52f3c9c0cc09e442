"""
Learn which labels are wrong
============================

Half of the training labels are replaced by random ones. Each training sample gets a weight, learned such that a model
that is fitted to the weighted samples does well on a few clean ones: a bilevel problem with as many outer variables as
training samples.
"""

# %%
# The problem
# -----------
# Digits of scikit-learn; 1024 images to train, 256 clean ones to validate.

import matplotlib.pyplot as plt
import numpy as np

from gyri.saba import minimize, problems, saba, value_function

problem = problems.load("digits_cleaning", corruption=0.5)
clean = np.asarray(problem.inner_data["clean"])
X_test, y_test = problems.load_test("digits_cleaning")
print(f"right labels: {clean.mean():.0%}")

# %%
# SABA
# ----
# Each block of 64 samples touches the weights of its own samples only: the outer step is large.

data = (problem.inner_data, problem.outer_data)
solver = saba(problem.inner_fun, problem.outer_fun, inner_opt=0.1, outer_opt=100.0)
result = minimize(solver, problem.z0, problem.x0, *data, num_steps=4000)


def error(x):
    z = value_function(problem.inner_fun, problem.outer_fun, problem.z0, x, *data, tol=1e-5)[1]
    return float(np.mean(np.argmax(X_test @ z, 1) != np.asarray(y_test)))


print(f"test error: {error(0 * problem.x0):.1%} with equal weights, {error(result.x):.1%} with learned ones")

# %%
# The weights
# -----------

weights = 1 / (1 + np.exp(-np.asarray(result.x)))
fig, ax = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
bins = np.linspace(0, 1, 41)
ax.hist(weights[clean], bins, alpha=0.7, label="right labels")
ax.hist(weights[~clean], bins, alpha=0.7, label="wrong labels")
ax.set(xlabel="weight", ylabel="training samples", yscale="log")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)

plt.show()
