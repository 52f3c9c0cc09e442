"""Convergence on a small quadratic problem: the paper's first figure."""

from typing import Any

import jax
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..problems import quadratic
from .setting import draw_curves, make_tuned, quadratic_metrics, seeds, solve

SIZES = {"quick": (5, 20_000), "paper": (10, 100_000)}  # seeds, iterations
N_RECORDS, STEP = 40, 0.1
METHODS = {
    "SOBA, steps decreasing": ("soba", {}),
    "SOBA, steps fixed": ("soba", {"decay": 0.0}),
    "SABA": ("saba", {}),
}


def run_method(setting: tuple[str, int, int, int]) -> np.ndarray:
    """Gap and squared gradient of one method over seeds, shape (n_seeds, 2, n_records)."""
    label, key, n_seeds, n_steps = setting
    name, options = METHODS[label]
    with jax.enable_x64(True):
        problem = quadratic(jax.random.key(key), n=256, m=256, p=10, d=5)
        solver = make_tuned(name, problem, STEP, 1.0, batch_size=16, **options)
        metrics, rows = quadratic_metrics(problem), []
        for now in seeds(key, n_seeds):
            every = n_steps // N_RECORDS
            history = solve(solver, problem, now, num_steps=n_steps, eval_every=every, metrics=metrics).history
            rows.append([history["gap"], history["square"]])
    return np.array(rows)


@experiment(paper="saba", figure="Figure 1", title="SABA converges linearly, SOBA stalls or is slow")
def toy(scale: str, key: int, sweep: Any) -> Result:
    """Quadratic problem with 256 + 256 samples, z of 10, x of 5 numbers; blocks of 16.

    Paper scale: about 1 CPU minute (extrapolated from the quick run: twice the seeds, 5 times the iterations).
    """
    n_seeds, n_steps = SIZES[scale]
    found = dict(zip(METHODS, sweep(run_method, [(m, key, n_seeds, n_steps) for m in METHODS]), strict=True))
    last = {name: rows[:, 0, -1] / rows[:, 0, 0] for name, rows in found.items()}
    logs = np.log10(found["SABA"][:, 0])
    middle = logs[:, [0, N_RECORDS // 4, N_RECORDS // 2]]
    evenness = (middle[:, 1] - middle[:, 2]) / (middle[:, 0] - middle[:, 1])
    decreasing = found["SOBA, steps decreasing"][:, 0]
    slow = decreasing[:, -1] / decreasing[:, N_RECORDS // 2]
    claims = [
        Claim.at_most("SABA: last gap over the first", "linear decrease", last["SABA"], 1e-10),
        Claim.between("SABA: orders gained in the second quarter over the first", "linear", evenness, 0.5, 2.0),
        Claim.at_least(
            "SOBA with fixed steps: last gap over SABA's", "a plateau", last["SOBA, steps fixed"] / last["SABA"], 1e4
        ),
        Claim.between("SOBA with decreasing steps: last gap over that at half the time", "sublinear", slow, 0.2, 0.95),
    ]
    iterations = np.arange(N_RECORDS + 1) * (n_steps // N_RECORDS)
    panels = {
        title: {name: (iterations, rows[:, i]) for name, rows in found.items()}
        for i, title in enumerate(("Gap of the value function", "Squared gradient"))
    }
    figure = draw_curves(panels, "Iterations", "")
    caption = f"Median and range over {n_seeds} seeds."
    return Result(claims, {"Toy": figure}, Data.simulated("quadratic problem"), {"Toy": caption})
