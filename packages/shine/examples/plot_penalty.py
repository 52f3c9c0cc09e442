"""
A penalty by gradient descent
=============================

How strong should a ridge penalty be? Its gradient through the fitted weights needs the inverse of the Hessian, which
L-BFGS has estimated while it fitted them.
"""

# %%
# Descend, or search
# ------------------
# Breast-cancer data, logistic regression. The inner problem is solved loosely first and more exactly as it goes.

from functools import partial

import jax.numpy as jnp
import matplotlib.pyplot as plt

from gyri.shine import LBFGS, BilevelLogisticRegression, grid_search, hoag, plot_hoag
from gyri.shine.datasets import load_breast_cancer, train_val_test_split

train, valid, test = train_val_test_split(*load_breast_cancer(), train=0.5, seed=1)
(X, y), (X_val, y_val) = ([jnp.asarray(a, jnp.float32) for a in part] for part in (train, valid))


def loss(X, y, w):
    return jnp.logaddexp(0, -y * (X @ w)).sum()


def inner(w, lam):
    return loss(X, y, w) + 0.5 * jnp.exp(lam) * jnp.sum(w**2)


def outer(w, lam):
    return loss(X_val, y_val, w)


descend = partial(hoag, inner, outer, jnp.zeros(30), jnp.array(4.0), max_iter=20)
results = {
    "full (conjugate gradients)": descend(backward="full"),
    "SHINE": descend(backward="shine"),
    "SHINE, OPA": descend(backward="shine", solver=LBFGS(memory=60, opa_every=5)),
    "Jacobian-free": descend(backward="jacobian_free"),
    "grid": grid_search(inner, outer, jnp.zeros(30), n=10),
}

fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
plot_hoag(results, ax=axes[0], x="inner_evals")
plot_hoag({name: result for name, result in results.items() if name != "grid"}, ax=axes[1], x="inner_evals", y="lam")
for name, result in results.items():
    products = result.history["hvps"][-1]
    print(f"{name}: loss {result.outer_value:.3f} at {float(result.lam):.2f}, {products} products with the Hessian")

# %%
# As an estimator
# ---------------

model = BilevelLogisticRegression().fit(*train, *valid)
print(f"penalty {model.alpha_:.2f}, test accuracy {model.score(*test):.3f}")
plt.show()
