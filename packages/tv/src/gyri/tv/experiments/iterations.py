"""Figure 2: iterative solvers on a square operator, by the form of the problem that they solve."""

from typing import Any

import jax
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..datasets import simulate
from ..plot import plot_convergence
from ..solvers import solve

SOLVERS = {
    "PGD, synthesis": "synthesis_pgd",
    "APGD, synthesis": "synthesis_apgd",
    "PGD, dual": "dual_pgd",
    "APGD, dual": "dual_apgd",
    "Condat-Vu": "condat_vu",
    "PGD": "pgd",
    "APGD": "apgd",
}
SIZE, SPARSITY, LAM = 40, 0.1, 0.5
CHECKS = 2  # iterations between two points of a curve


def curves(setting: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Mean suboptimality of each solver every `CHECKS` iterations, for (seed, signals, iterations)."""
    seed, n, n_iter = setting
    with jax.enable_x64(True):
        x, _, _, A = simulate(seed, n, k=SIZE, m=SIZE, sparsity=SPARSITY)
        least = solve(x, A, LAM, solver="admm", max_iter=20_000, tol=1e-10, check_every=100).objective.mean()
        run = lambda solver: solve(x, A, LAM, solver=solver, max_iter=n_iter, check_every=CHECKS, tol=0, history=True)
        return {name: np.mean(np.asarray(run(solver).history), 0) - float(least) for name, solver in SOLVERS.items()}


def reach(curve: np.ndarray, target: float) -> float:
    """Iterations until a curve is below the target; those it has if it never is, a lower bound."""
    below = np.flatnonzero(curve <= target)
    return CHECKS * float(below[0] if below.size else curve.size - 1)


@experiment(paper="tv", figure="Figure 2", title="Solvers of the analysis form need fewer iterations")
def iterations(scale: str, key: int, sweep: Any) -> Result:
    """Square Gaussian operators (40 x 40), four jumps, half of the largest penalty, from the least-squares solution.

    Paper scale: about 5 CPU minutes (extrapolated from the quick run: 1.7 times the draws, 10 times
    the signals).
    """
    from matplotlib.figure import Figure

    n, n_iter, n_seeds = {"quick": (100, 1000, 3), "paper": (1000, 1000, 5)}[scale]
    runs = sweep(curves, [(key + seed, n, n_iter) for seed in range(n_seeds)])
    methods = {name: np.stack([run[name] for run in runs]) for name in SOLVERS}
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    depths = CHECKS * np.arange(runs[0]["PGD"].size)
    plot_convergence(methods, depths=depths, xlabel="Iterations", ax=figure.subplots(), markers=False)

    needed = {name: np.array([reach(curve, 1e-3 * curve[0]) for curve in methods[name]]) for name in SOLVERS}
    text = f"iterations to a thousandth of the start (at most {n_iter} counted)"
    claims = [Claim.info(f"{text}: APGD", None, needed["APGD"])]
    for slow, fast in (("PGD, synthesis", "APGD, synthesis"), ("APGD, synthesis", "APGD"), ("PGD", "APGD")):
        claims.append(Claim.at_least(f"{text}: {slow} over {fast}", "above 1", needed[slow] / needed[fast], 1.0))
    ratio = (methods["PGD, synthesis"] / methods["APGD, synthesis"])[:, -1]
    claims.append(
        Claim.at_least(f"suboptimality after {n_iter} iterations, synthesis: PGD over APGD", "above 1", ratio, 1.0)
    )
    captions = {"solvers": f"Suboptimality by iteration, mean of {n_seeds} seeds with {n} signals each."}
    return Result(claims, {"solvers": figure}, Data.simulated("Gaussian operators (40 x 40), 0 dB"), captions)
