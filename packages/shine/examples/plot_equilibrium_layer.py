"""
A layer that is an equation
===========================

The output of a deep equilibrium layer solves :math:`z = f(z, x)`. Its gradient needs one large linear solve a backward
pass, unless the estimate of the inverse Jacobian that the forward solver has built is shared. How good is it?
"""

# %%
# One layer, four backward passes
# -------------------------------
# The exact gradient comes from ``backward="full"``. The others are compared with it, element by element.

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from gyri.shine import (
    AdjointBroyden,
    Broyden,
    Full,
    JacobianFree,
    Shine,
    fixed_point,
    inverse_quality,
    plot_inverse_quality,
)

rng = np.random.default_rng(0)
W = rng.standard_normal((40, 40))
W = jnp.asarray(1.2 * W / np.linalg.norm(W, 2), jnp.float32)
shift = jnp.asarray(rng.standard_normal((60, 40)), jnp.float32)
target = jnp.asarray(rng.standard_normal((60, 40)), jnp.float32)


def layer(z, shift):
    return jnp.tanh(z @ W.T + shift)


def gradient(backward, solver):
    """Gradient of half the squared distance from the target, in the shift."""

    def loss(shift):
        solution = fixed_point(
            layer,
            jnp.zeros_like(shift),
            shift,
            solver=solver,
            backward=backward,
            batch_ndim=1,
            outer_grad=lambda z, shift: z - target,
        )
        return 0.5 * jnp.sum((solution.value - target) ** 2)

    return jax.jit(jax.grad(loss))(shift)


forward = Broyden(max_steps=18, tol=1e-4)
exact = gradient(Full(), forward)
qualities = {
    "Jacobian-free": inverse_quality(gradient(JacobianFree(), forward), exact),
    "SHINE, Broyden": inverse_quality(gradient(Shine(), forward), exact),
    "SHINE, adjoint Broyden": inverse_quality(gradient(Shine(), AdjointBroyden(18, 1e-4)), exact),
    "SHINE, OPA": inverse_quality(gradient(Shine(), AdjointBroyden(18, 1e-4, opa_every=5)), exact),
}

fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
plot_inverse_quality(qualities, ax=ax)

# %%
# Broyden's estimate gives a direction. That of the adjoint method is better, and outer-problem awareness (OPA) teaches
# it, during the forward solve, the one direction that the backward pass will ask for.

# %%
# A few steps of the exact solve
# ------------------------------
# ``refine_steps`` go on from there, with the estimate, transposed, as their memory: faster than from scratch.

steps = [1, 2, 3, 5, 8]
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, mode in {"from SHINE": Shine, "from Jacobian-free": JacobianFree}.items():
    errors = [inverse_quality(gradient(mode(refine_steps=n), forward), exact)[0] for n in steps]
    ax.semilogy(steps, [float(np.median(e)) for e in errors], "o-", label=name)
ax.set(xlabel="refinement steps", ylabel="relative error of the gradient")
ax.legend()
plt.show()
