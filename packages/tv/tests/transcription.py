"""The solvers' iterations for one signal, written down once more in NumPy, with SciPy's proximal operator."""

import numpy as np

from .conftest import prox


def soft(z, threshold):
    return np.sign(z) * np.maximum(np.abs(z) - threshold, 0)


def forms(x, A, lam):
    """Start, proximal gradient step and signal of the three forms of the problem."""
    k = A.shape[1]
    L, D, free = np.tril(np.ones((k, k))), np.diff(np.eye(k), axis=0), np.arange(k) > 0
    start, B = np.linalg.pinv(A) @ x, A @ L
    rho, rho_s = np.linalg.norm(A, 2) ** 2, np.linalg.norm(B, 2) ** 2
    analysis = (start, lambda u: prox(u - A.T @ (A @ u - x) / rho, lam / rho), lambda u: u)
    threshold = lam / rho_s * free
    synthesis = (
        np.linalg.solve(L, start), lambda z: soft(z - B.T @ (B @ z - x) / rho_s, threshold), lambda z: L @ z,
    )  # fmt: skip
    if np.linalg.matrix_rank(A) < k:
        return analysis, synthesis, None
    inverse = np.linalg.inv(A.T @ A)
    step = 1 / np.linalg.norm(D @ inverse @ A.T, 2) ** 2
    point = lambda v: inverse @ (A.T @ x - D.T @ v)
    return analysis, synthesis, (np.zeros(k - 1), lambda v: np.clip(v + step * D @ point(v), -lam, lam), point)


def accelerate(start, step, point, n, restart=False):
    """FISTA; also how often its momentum was dropped."""
    x = y = start
    t, dropped = 1.0, 0
    for _ in range(n):
        new = step(y)
        if restart and (y - new) @ (new - x) > 0:
            x, y, t, dropped = new, new, 1.0, dropped + 1
            continue
        t_next = (1 + np.sqrt(1 + 4 * t**2)) / 2
        x, y, t = new, new + (t - 1) / t_next * (new - x), t_next
    return point(x), dropped


def condat_vu(x, A, lam, n):
    D = np.diff(np.eye(A.shape[1]), axis=0)
    tau = 1 / (np.linalg.norm(A, 2) ** 2 / 2 + np.linalg.norm(D, 2) ** 2 / 2)
    u, v = np.linalg.pinv(A) @ x, np.zeros(len(D))
    for _ in range(n):
        new = u - tau * (A.T @ (A @ u - x) + D.T @ v)
        u, v = new, np.clip(v + 0.5 * D @ (2 * new - u), -lam, lam)
    return u


def chambolle_pock(x, A, lam, n):
    D = np.diff(np.eye(A.shape[1]), axis=0)
    norm_a, norm_d = np.linalg.norm(A, 2), np.linalg.norm(D, 2)
    u = bar = np.linalg.pinv(A) @ x
    v, w = np.zeros(len(D)), np.zeros(len(A))
    for _ in range(n):
        v = np.clip(v + D @ bar / norm_d, -lam, lam)
        w = (w + (A @ bar - x) / norm_a) / (1 + 1 / norm_a)
        new = u - (D.T @ v + A.T @ w) / (norm_a + norm_d)
        u, bar = new, 2 * new - u
    return u


def admm(x, A, lam, n):
    """With the penalty balanced between the residuals, from 1."""
    D = np.diff(np.eye(A.shape[1]), axis=0)
    u, gamma = np.linalg.pinv(A) @ x, 1.0
    y, q = D @ u, np.zeros(len(D))
    for _ in range(n):
        u = np.linalg.solve(A.T @ A + gamma * D.T @ D, A.T @ x + D.T @ (gamma * y - q))
        old, y = y, soft(D @ u + q / gamma, lam / gamma)
        q = q + gamma * (D @ u - y)
        primal, dual = np.linalg.norm(D @ u - y), gamma * np.linalg.norm(D.T @ (y - old))
        gamma *= 2 if primal > 10 * dual else 0.5 if dual > 10 * primal else 1
    return u


def subgradient(x, A, lam, n):
    D, u = np.diff(np.eye(A.shape[1]), axis=0), np.linalg.pinv(A) @ x
    for t in range(1, n + 1):
        u = u - (A.T @ (A @ u - x) + lam * D.T @ np.sign(D @ u)) / (np.linalg.norm(A, 2) ** 2 * t)
    return u


def iterate(solver, x, A, lam, n):
    """The signal after n iterations."""
    others = {"condat_vu": condat_vu, "chambolle_pock": chambolle_pock, "admm": admm, "subgradient": subgradient}
    if solver in others:
        return others[solver](x, A, lam, n)
    form = forms(x, A, lam)[("synthesis" in solver) + 2 * ("dual" in solver)]
    if solver.endswith("apgd"):
        return accelerate(*form, n)[0]
    start, step, point = form
    for _ in range(n):
        start = step(start)
    return point(start)
