"""What several experiments share: runs with records, and their figures."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from gyri.reproduce import Data

from ..drivers import minimize
from ..problems import QuadraticProblem, load
from ..solvers import make
from ..types import BilevelProblem, BilevelSolver, Result

LABELS = {
    "soba": "SOBA",
    "saba": "SABA",
    "fsla": "FSLA",
    "amigo": "AmIGO",
    "stocbio": "stocBiO",
    "bsa": "BSA",
    "ttsa": "TTSA",
    "mrbo": "MRBO",
    "sustain": "SUSTAIN",
    "srba": "SRBA",
    "vrbo": "VRBO",
    "f2sa": "F2SA",
}


def make_tuned(name: str, problem: BilevelProblem, step: float, ratio: float, **options: Any) -> BilevelSolver:
    """Solver whose inner step is `step` and whose outer step is that over `ratio`, as the paper's grids have it."""
    return make(name, problem.inner_fun, problem.outer_fun, inner_opt=step, outer_opt=step / ratio, **options)


def solve(
    solver: BilevelSolver, problem: BilevelProblem, key: int | PRNGKeyArray, x0: PyTree = None, **options: Any
) -> Result:
    """Run a solver; a run that diverges ends early, and its history says so."""
    start = problem.x0 if x0 is None else x0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* diverged before step")
        return minimize(solver, problem.z0, start, problem.inner_data, problem.outer_data, key=key, **options)


def quadratic_metrics(problem: QuadraticProblem) -> Callable:
    """Gap of the value function, and squared norm of its gradient, of a quadratic problem."""
    best, hessian = problem.minimizer(), problem.hessian()

    def metrics(z: Any, v: Any, x: Any) -> dict[str, Any]:
        error = x - best
        gradient = hessian @ error
        # Not a difference of values, whose digits would end at 1e-16.
        return {"gap": 0.5 * error @ gradient, "square": gradient @ gradient}

    return metrics


def draw_curves(panels: Mapping[str, Mapping[str, tuple[Any, Any]]], xlabel: str, ylabel: str) -> Any:
    """One panel a setting, one curve a solver: median and range over seeds of values (n_seeds, n_records)."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    n_curves = max(len(curves) for curves in panels.values())
    colors = colormaps["tab10" if n_curves <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    figure = Figure(figsize=(4.6 * len(panels) + 1.4, 3.6), layout="constrained")
    for ax, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for color, (x, values) in zip(colors, curves.values(), strict=False):
            values = np.where(np.isfinite(values) & (np.asarray(values) > 0), values, np.nan)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a record at which all seeds have diverged
                low, middle, high = (f(values, 0) for f in (np.nanmin, np.nanmedian, np.nanmax))
            ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            ax.plot(x, middle, color=color)
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title, yscale="log")
        ax.ticklabel_format(axis="x", style="sci", scilimits=(0, 4))
        ax.spines[["top", "right"]].set_visible(False)
    lines: Any = ax.get_lines()
    figure.legend(lines, list(curves), loc="outside right upper", frameon=False)
    return figure


def seeds(key: int, n: int) -> list[Any]:
    """Keys of n runs."""
    return list(jax.random.split(jax.random.key(key), n))


def find_missing(source: str, scale: str) -> Data | None:
    """Why data that have to be downloaded cannot be had, or None where they can: quick runs download nothing."""
    if scale == "quick":
        return Data.missing(needs=f"{source}, which --scale paper downloads")
    try:
        load(source)
    except (ImportError, OSError) as error:
        return Data.missing(needs=f"{source}: {str(error).splitlines()[0]}")
    return None
