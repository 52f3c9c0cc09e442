"""Choice of one regularisation strength a feature by the validation loss."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..implicit import value_function
from ..problems import load
from ..types import BilevelProblem
from .setting import LABELS, draw_curves, find_missing, make_tuned, seeds, solve

# Inner step, its ratio to the outer one (the benchmark's, tuned on ijcnn1), and what the authors' code reached on the
# simulated data.
TUNED: dict[str, tuple[float, float, float | None]] = {
    "saba": (0.125, 1.0, 0.2359),
    "srba": (0.25, 1.0, 0.2305),
    "amigo": (0.125, 0.316, 0.2277),
    "stocbio": (0.125, 1.0, 0.3255),
    "f2sa": (0.03, 1.0, 0.3976),
    "soba": (0.03125, 0.01, 0.4240),
    "fsla": (0.03125, 0.01, 0.4235),
    "bsa": (0.5, 0.01, None),
    "ttsa": (0.5, 0.0316, None),
    "mrbo": (0.5, 0.0316, None),
    "sustain": (0.5, 0.1, None),
}
SIZES = {"quick": (2, 20_480, 2), "paper": (10, 20_480, 20)}  # seeds, iterations, records
SMALL = {"quick": (2, 4_096, 4), "paper": (10, 20_480, 20)}  # of the breast cancer data


def value_of(problem: BilevelProblem) -> Any:
    """The value function, as a metric."""

    def metrics(z: Any, v: Any, x: Any) -> dict[str, Any]:
        sides = (problem.inner_data, problem.outer_data)
        value, _ = value_function(problem.inner_fun, problem.outer_fun, jnp.zeros_like(z), x, *sides, tol=1e-6)
        return {"h": value}

    return metrics


@lru_cache(maxsize=2)
def problem_of(source: str, key: int) -> tuple[BilevelProblem, Any]:
    """Data and their value function, which is compiled once for all solvers."""
    problem = load(source, key=key)
    return problem, value_of(problem)


def run_solver(setting: tuple[str, str, int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Calls (n_records,) and values (n_seeds, n_records); NaN after a divergence."""
    source, name, key, n_seeds, n_steps, n_records = setting
    step, ratio, _ = TUNED[name]
    with jax.enable_x64(True):
        problem, metrics = problem_of(source, key)
        solver = make_tuned(name, problem, step, ratio, batch_size=64)
        every, values = n_steps // n_records, []
        for now in seeds(key, n_seeds):
            history = solve(solver, problem, now, num_steps=n_steps, eval_every=every, metrics=metrics).history
            found = np.where(np.isfinite(history["h"]), history["h"], np.nan)
            values.append(np.append(found, np.full(n_records + 1 - len(found), np.nan)))
    calls = (history["calls_inner"] + history["calls_outer"])[-1] / history["step"][-1]
    return calls * every * np.arange(n_records + 1), np.array(values)


def run_source(
    source: str, sizes: tuple[int, int, int], key: int, sweep: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Curves of all solvers on one set of data."""
    rows = sweep(run_solver, [(source, name, key, *sizes) for name in TUNED])
    return {LABELS[name]: row for name, row in zip(TUNED, rows, strict=True)}


def make_claims(curves: dict[str, tuple[np.ndarray, np.ndarray]], reference: bool) -> list[Claim]:
    """Who is lowest; with reference, against what the authors' code reached."""
    last = {name: values[:, -1] for name, (_, values) in curves.items()}
    height = {name: np.where(np.isnan(values), np.inf, values) for name, values in last.items()}  # of diverged ones
    low = np.minimum(height["SABA"], height["SRBA"])
    claims = [
        Claim.at_most(f"SABA or SRBA over {name}, last value", "the lowest gaps", low / height[name], 1.0)
        for name in ("SOBA", "FSLA")
    ]
    for name, (*_, theirs) in TUNED.items():
        label, values = LABELS[name], last[LABELS[name]]
        lost = float(np.isnan(values).mean())
        paper = "all" if reference and theirs is None else None
        if lost:
            claims.append(Claim.info(f"{label}: part of the runs that diverge", paper, lost))
        if lost < 1:
            claims.append(
                Claim.info(f"{label}: last value", theirs if reference else None, values[np.isfinite(values)])
            )
    return claims


@experiment(paper="saba", figure="Figure 2, left", title="One regularisation strength a feature, data like ijcnn1")
def selection(scale: str, key: int, sweep: Any) -> Result:
    """Logistic regression on 49 990 + 91 701 simulated samples with the benchmark's steps, tuned on other data.

    The authors' code was run on the same data, from another start and in another order of the blocks.

    Paper scale: about 20 CPU minutes (extrapolated from the quick run: 5 times the seeds, 35 times the exact solutions
    that records need).
    """
    curves = run_source("simulated_ijcnn1", SIZES[scale], key, sweep)
    saba = curves["SABA"][1][:, -1]
    claims = [
        Claim.at_most("SABA: value after 20 480 iterations, at most 5 % above the authors' code", 0.2359, saba, 0.2477),
        *make_claims(curves, reference=True),
    ]
    figure = draw_curves({"Simulated ijcnn1": curves}, "Oracle calls", "Value function")
    data = Data.stand_in(for_="ijcnn1", used="samples simulated in its shape")
    return Result(claims, {"Selection": figure}, data, {"Selection": f"Median and range over {SIZES[scale][0]} seeds."})


@experiment(paper="saba", figure="Figure 2, left", title="One regularisation strength a feature, breast cancer data")
def breast_cancer(scale: str, key: int, sweep: Any) -> Result:
    """Logistic regression on the 569 samples of scikit-learn's breast cancer data, the same steps.

    Paper scale: about 2 CPU minutes (extrapolated from the quick run: 5 times the seeds, 5 times the iterations;
    compilation stays).
    """
    curves = run_source("breast_cancer", SMALL[scale], key, sweep)
    figure = draw_curves({"Breast cancer": curves}, "Oracle calls", "Value function")
    data = Data.stand_in(for_="ijcnn1", used="breast cancer data of scikit-learn, 455 + 114 samples")
    claims = make_claims(curves, reference=False)
    return Result(claims, {"Selection": figure}, data, {"Selection": f"Median and range over {SMALL[scale][0]} seeds."})


@experiment(paper="saba", figure="Figure 2, left", title="One regularisation strength a feature, ijcnn1")
def ijcnn1(scale: str, key: int, sweep: Any) -> Result:
    """The paper's data, which are downloaded, at the paper's scale only.

    Paper scale: about 20 CPU minutes (guessed from selection, whose data have its sizes); needs ijcnn1, downloaded by
    libsvmdata.
    """
    claim = Claim.not_run("SABA: gap of the value function", "the lowest with SRBA")
    missing = find_missing("ijcnn1", scale)
    if missing is not None:
        return Result([claim], {}, missing)
    curves = run_source("ijcnn1", SIZES[scale], key, sweep)
    figure = draw_curves({"ijcnn1": curves}, "Oracle calls", "Value function")
    return Result(make_claims(curves, reference=False), {"Selection": figure}, Data.real("ijcnn1, LIBSVM"))
