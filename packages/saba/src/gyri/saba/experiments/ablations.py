"""What SABA's choices do: size of blocks, first memory, ratio of the steps, number of samples."""

from typing import Any

import jax
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..problems import quadratic
from .setting import draw_curves, make_tuned, quadratic_metrics, seeds, solve

N_RECORDS = 20
STEP = 0.1
SIZES = {"quick": 2, "paper": 10}  # seeds
VARIANTS: dict[str, dict[str, tuple[str, float, dict[str, Any]]]] = {
    "Size of a block": {
        **{f"{size} rows": ("saba", 1.0, {"batch_size": size}) for size in (1, 16, 64)},
        "all rows": ("saba", 1.0, {"batch_size": "full"}),
    },
    "First memory": {kind: ("saba", 1.0, {"batch_size": 16, "init_memory": kind}) for kind in ("zero", "full")},
    "Inner step over outer step": {
        f"{ratio:g}": ("saba", ratio, {"batch_size": 16}) for ratio in (0.5, 1.0, 3.0, 10.0)
    },
    "Reduced variance": {
        "SABA": ("saba", 1.0, {"batch_size": 16}),
        "SOBA, steps fixed": ("soba", 1.0, {"batch_size": 16, "decay": 0.0}),
        "SOBA, steps decreasing": ("soba", 1.0, {"batch_size": 16}),
    },
}
SAMPLES = (256, 1024, 4096)


def run_variant(setting: tuple[str, str, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Calls in passes over the data (n_records,) and gaps (n_seeds, n_records) of one variant."""
    panel, label, key, n_seeds = setting
    name, ratio, options = VARIANTS[panel][label]
    with jax.enable_x64(True):
        problem = quadratic(jax.random.key(key), n=256, m=256, p=10, d=5)
        solver, metrics, gaps = make_tuned(name, problem, STEP, ratio, **options), quadratic_metrics(problem), []
        # Blocks of all sizes get as many passes over the data.
        size = options["batch_size"]
        n_steps = {1: 160_000, 16: 10_000, 64: 2_500, "full": 640}[size]
        for now in seeds(key, n_seeds):
            every = n_steps // N_RECORDS
            history = solve(solver, problem, now, num_steps=n_steps, eval_every=every, metrics=metrics).history
            gaps.append(np.append(history["gap"], np.full(N_RECORDS + 1 - len(history["gap"]), np.nan)))
    passes = np.arange(N_RECORDS + 1) * every * (256 if size == "full" else size) / 256
    return passes, np.array(gaps)


def rate_of(setting: tuple[int, int, int]) -> np.ndarray:
    """Iterations that SABA needs for a factor of ten in the gap, over seeds, for one number of samples."""
    n, key, n_seeds = setting
    with jax.enable_x64(True):
        problem = quadratic(jax.random.key(key), n=n, m=n, p=10, d=5)
        solver, metrics = make_tuned("saba", problem, STEP, 1.0, batch_size=4), quadratic_metrics(problem)
        n_steps, rows = 20_000 + 20 * n, []
        for now in seeds(key, n_seeds):
            every = n_steps // N_RECORDS
            history = solve(solver, problem, now, num_steps=n_steps, eval_every=every, metrics=metrics).history
            good = (history["gap"] > 1e-22) & (history["step"] >= n_steps // 10)
            slope = np.polyfit(history["step"][good], np.log10(history["gap"][good]), 1)[0]
            rows.append(-1 / slope)
    return np.array(rows)


@experiment(paper="saba", figure="In addition", title="What SABA's choices do")
def ablations(scale: str, key: int, sweep: Any) -> Result:
    """Quadratic problem with 256 + 256 samples, equal passes over the data for all.

    Paper scale: about 2 CPU minutes (extrapolated from the quick run: 5 times the seeds; compilation stays).
    """
    n_seeds = SIZES[scale]
    settings = [(panel, label, key, n_seeds) for panel, variants in VARIANTS.items() for label in variants]
    rows = sweep(run_variant, settings)
    panels: dict[str, dict[str, Any]] = {panel: {} for panel in VARIANTS}
    for (panel, label, *_), row in zip(settings, rows, strict=True):
        panels[panel][label] = row
    last = {panel: {label: row[1][:, -1] for label, row in curves.items()} for panel, curves in panels.items()}
    rates = np.array(sweep(rate_of, [(n, key, n_seeds) for n in SAMPLES]))
    blocks, memory, reduced = last["Size of a block"], last["First memory"], last["Reduced variance"]
    shrunk = blocks["16 rows"] / blocks["all rows"]
    plateau = reduced["SOBA, steps fixed"] / reduced["SABA"]
    lasting = np.log10(memory["full"] / memory["zero"])
    slower = rates[-1] / rates[0]
    claims = [
        Claim.at_most("blocks of 16 rows over all rows, last gap", "far below", shrunk, 0.1),
        Claim.at_least("SOBA over SABA, fixed steps, last gap", "a plateau", plateau, 1e4),
        Claim.between("full over zero first memory, last gap, orders", "no lasting difference", lasting, -2.0, 2.0),
        Claim.between("iterations for a factor of ten, 4096 over 256 samples", "1 to 16", slower, 0.5, 20.0),
    ]
    claims += [
        Claim.info(f"iterations for a factor of ten, {n} + {n} samples", None, row)
        for n, row in zip(SAMPLES, rates, strict=True)
    ]
    figures, captions = {}, {}
    for panel, curves in panels.items():
        figures[panel] = draw_curves({panel: curves}, "Passes over the inner samples", "Gap of the value function")
        captions[panel] = f"Median and range over {n_seeds} seeds."
    return Result(claims, figures, Data.simulated("quadratic problems"), captions)
