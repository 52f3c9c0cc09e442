"""One regularisation strength a class: softmax regression on digits, and on covtype."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..problems import load, load_test
from .cleaning import error_of
from .setting import LABELS, draw_curves, find_missing, make_tuned, seeds, solve

# Inner step, ratio to the outer one.
TUNED = {
    "saba": (0.25, 0.5),
    "srba": (0.25, 0.5),
    "soba": (0.25, 0.1),
    "amigo": (0.125, 0.5),
    "stocbio": (0.125, 0.5),
}
SIZES = {"quick": (5, 4000, 8), "paper": (10, 40_000, 20)}  # seeds, iterations, records


def run_solver(setting: tuple[str, str, int, int, int, int]) -> np.ndarray:
    """Validation and test error over seeds, shape (n_seeds, 2, n_records)."""
    source, name, key, n_seeds, n_steps, n_records = setting
    problem = load(source, key=key)
    X, y = load_test(source, key=key)
    val = problem.outer_data

    def metrics(z: Any, v: Any, x: Any) -> dict[str, Any]:
        return {"val": error_of(z, val["X"], val["y"]), "test": error_of(z, X, y), "largest": jnp.abs(x).max()}

    solver, rows = make_tuned(name, problem, *TUNED[name], batch_size=64), []
    for now in seeds(key, n_seeds):
        every = n_steps // n_records
        history = solve(solver, problem, now, num_steps=n_steps, eval_every=every, metrics=metrics).history
        missing = np.full(n_records + 1 - len(history["val"]), np.nan)
        rows.append([np.append(history[side], missing) for side in ("val", "test")])
    return np.array(rows)


def run_source(source: str, scale: str, key: int, sweep: Any) -> tuple[list[Claim], Any]:
    """Claims and figure of one set of data."""
    _, n_steps, n_records = SIZES[scale]
    rows = dict(zip(TUNED, sweep(run_solver, [(source, name, key, *SIZES[scale]) for name in TUNED]), strict=True))
    last = {name: 100 * row[:, :, -1] for name, row in rows.items()}
    others = np.nanmin([np.nanmedian(last[name][:, 0]) for name in TUNED if name not in ("saba", "srba")])
    above = np.nanmedian(last["saba"][:, 0]) - others
    claims = [
        Claim.at_most("SABA: validation error above the best of SOBA, AmIGO, stocBiO", "none", above, 0.5, unit="%"),
        *(Claim.info(f"{LABELS[name]}: validation error", None, last[name][:, 0], unit="%") for name in TUNED),
        *(Claim.info(f"{LABELS[name]}: test error", None, last[name][:, 1], unit="%") for name in TUNED),
    ]
    iterations = np.arange(n_records + 1) * (n_steps // n_records)
    panels = {
        title: {LABELS[name]: (iterations, row[:, i]) for name, row in rows.items()}
        for i, title in enumerate(("Validation", "Test"))
    }
    return claims, draw_curves(panels, "Iterations", "Error")


@experiment(paper="saba", figure="Appendix, covtype", title="One regularisation strength a class, digits")
def multiclass(scale: str, key: int, sweep: Any) -> Result:
    """Softmax regression on the 1797 digits of scikit-learn, z of 64 x 10 and x of 10 numbers.

    Paper scale: about 10 CPU minutes (extrapolated from the quick run: twice the seeds, 10 times the iterations).
    """
    claims, figure = run_source("digits", scale, key, sweep)
    data = Data.stand_in(for_="covtype", used="digits of scikit-learn, 1150 + 288 + 359 images of 8 x 8")
    return Result(claims, {"Errors": figure}, data, {"Errors": f"Median and range over {SIZES[scale][0]} seeds."})


@experiment(paper="saba", figure="Appendix, covtype", title="One regularisation strength a class, covtype")
def covtype(scale: str, key: int, sweep: Any) -> Result:
    """The 581 012 samples of covtype, downloaded, at the paper's scale only.

    Paper scale: about 15 CPU minutes (guessed from multiclass: the same seeds and iterations on more samples); needs
    covtype, downloaded by scikit-learn.
    """
    missing = find_missing("covtype", scale)
    if missing is not None:
        return Result([Claim.not_run("SABA: test error", "among the lowest")], {}, missing)
    claims, figure = run_source("covtype", scale, key, sweep)
    return Result(claims, {"Errors": figure}, Data.real("covtype"))
