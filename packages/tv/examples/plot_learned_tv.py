r"""
A network that solves in five layers
====================================

Signals that jump and stay are observed through an operator and noise. The problem

.. math:: \min_u \tfrac12 \|x - A u\|^2 + \lambda \|D u\|_1

recovers them, and proximal gradient descent solves it, in hundreds of iterations. If many signals share one operator, a
network whose layers are such iterations with learned matrices gets close in a few. It is trained without labels: the
objective itself is the loss.
"""

# %%
# Signals
# -------
# Eight samples with one jump, five noisy measurements of them, as in the paper: the noise is as large as the signal.

import matplotlib.pyplot as plt
import numpy as np

from gyri.tv import LearnedTV, objective, plot_convergence, plot_signals, prox_tv1d, simulate, solve

x, u, z, A = simulate(42, 200)
x_train, x_test = x[:100], x[100:]
lam = 0.1  # of the smallest penalty that leaves no jump, which is 1 for these signals

# %%
# Solve
# -----
# The duality gap certifies each solution: no signal is further than that from the minimum.

optimum = solve(x_test, A, lam, max_iter=20_000, tol=1e-5, restart=True)
print(f"largest gap {optimum.gap.max():.1e}, iterations {optimum.n_iter.min()} to {optimum.n_iter.max()}")

# %%
# Learn to solve
# --------------
# One network for each depth, against the solvers after as many iterations. Depth 0 is the least-squares solution,
# where all of them start.

depths = [0, 1, 2, 3, 5, 8]
curves = {}
for name, solver in {"PGD, steps": "synthesis_pgd", "PGD": "pgd", "APGD": "apgd"}.items():
    history = solve(x_test, A, lam, solver=solver, max_iter=8, check_every=1, tol=0, history=True).history
    curves[name] = np.asarray(history)[:, depths]
for name, network in {"LISTA, learned": "lista", "LPGD-Taut, learned": "lpgd_taut"}.items():
    values = [objective(LearnedTV(1, verbose=False, max_iter=1).fit(x_train, A).transform(x_test, 0), x_test, A, lam)]
    for depth in depths[1:]:
        model = LearnedTV(depth, network=network, lam=lam, max_iter=40 * depth, verbose=False).fit(x_train, A)
        values.append(objective(model.transform(x_test), x_test, A, lam))
    curves[name] = np.stack(values, 1)

fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
plot_convergence(curves, depths=depths, optimum=optimum.objective, ax=ax)

# %%
# One layer of LPGD-Taut is worth many iterations. LISTA learns in the steps of the signal, a form of the problem
# that is far worse conditioned, as the paper proves: it needs several layers to catch up.

# %%
# Denoise
# -------
# Without an operator the solution is exact at once, by the proximal operator that is also inside every layer.

rng = np.random.default_rng(0)
truth = np.repeat([0.0, 1.0, 0.4, -0.6, 0.2], [60, 40, 80, 50, 70])
noisy = truth + 0.25 * rng.standard_normal(truth.size)

fig, ax = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
plot_signals({"observed": noisy, "truth": truth, "prox_tv1d": np.asarray(prox_tv1d(noisy, 2.0))}, ax=ax)
