"""Solvers with the benchmark's tuned steps on larger quadratic problems."""

from typing import Any

import jax
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..problems import quadratic
from .setting import LABELS, draw_curves, make_tuned, quadratic_metrics, seeds, solve

# Inner samples, size of x, iterations, seeds.
SIZES = {"quick": ((1024, 10),), "paper": ((1024, 10), (1024, 100), (32_768, 10), (32_768, 100))}
N_STEPS = {"quick": 8_000, "paper": 40_000}
N_SEEDS = {"quick": 2, "paper": 10}
N_RECORDS = 20
# Inner step, and its ratio to the outer one.
TUNED: dict[str, tuple[float, float, dict[str, Any]]] = {
    "saba": (0.1, 1.0, {}),
    "srba": (0.1, 1.0, {}),
    "amigo": (0.01, 0.1, {}),
    "stocbio": (0.1, 1.0, {}),
    "mrbo": (0.1, 0.1, {}),
    "vrbo": (0.1, 1.0, {}),
    "f2sa": (0.1, 1.0, {"penalty_growth": 0.01}),
}
DOUBLE_LOOPS = ("amigo", "stocbio", "vrbo", "f2sa")  # some twenty calls an iteration: a tenth of the iterations


def run_solver(setting: tuple[str, int, int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Calls (n_records,) and gaps relative to the start (n_seeds, n_records)."""
    name, n, d, key, n_seeds, n_steps = setting
    step, ratio, options = TUNED[name]
    n_steps = n_steps // 10 if name in DOUBLE_LOOPS else n_steps
    with jax.enable_x64(True):
        problem = quadratic(jax.random.key(key), n=n, m=1024, p=100, d=d)
        solver, metrics = make_tuned(name, problem, step, ratio, batch_size=64, **options), quadratic_metrics(problem)
        every, gaps = n_steps // N_RECORDS, []
        for now in seeds(key, n_seeds):
            history = solve(solver, problem, now, num_steps=n_steps, eval_every=every, metrics=metrics).history
            missing = N_RECORDS + 1 - len(history["gap"])  # a run that diverged is shorter
            gaps.append(np.append(history["gap"] / history["gap"][0], np.full(missing, np.nan)))
    calls = (history["calls_inner"] + history["calls_outer"])[-1] / history["step"][-1]
    return calls * every * np.arange(N_RECORDS + 1), np.array(gaps)


@experiment(paper="saba", figure="In addition", title="Quadratic problems with the benchmark's tuned steps")
def quadratics(scale: str, key: int, sweep: Any) -> Result:
    """Gaps of the value function; z of 100 numbers, blocks of 64 of 1024 and more samples.

    Paper scale: about 20 CPU minutes (extrapolated from the quick run: 4 problems in place of 1, 5 times the seeds, 5
    times the iterations).
    """
    n_seeds, n_steps = N_SEEDS[scale], N_STEPS[scale]
    claims, panels = [], {}
    for n, d in SIZES[scale]:
        rows = sweep(run_solver, [(name, n, d, key, n_seeds, n_steps) for name in TUNED])
        curves = {LABELS[name]: row for name, row in zip(TUNED, rows, strict=True)}
        panels[f"n = {n}, d = {d}"] = curves
        about = f"n = {n}, d = {d}: "
        reduced = np.minimum(curves["SABA"][1][:, -1], curves["SRBA"][1][:, -1])
        others = np.stack([gaps[:, -1] for name, (_, gaps) in curves.items() if name not in ("SABA", "SRBA")])
        best = np.nanmin(others, 0)
        claims += [
            Claim.at_least(f"{about}best other over best of SABA and SRBA", "lowest gaps", best / reduced, 1.0),
        ]
        claims += [
            Claim.info(f"{about}{name}, last gap over the first", None, row[1][:, -1]) for name, row in curves.items()
        ]
    figure = draw_curves(panels, "Oracle calls", "Gap over the first")
    caption = f"Median and range over {n_seeds} seeds; a run that diverges ends."
    return Result(claims, {"Quadratics": figure}, Data.simulated("quadratic problems"), {"Quadratics": caption})
