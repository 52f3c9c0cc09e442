"""States on disk."""

import os
from typing import Any

from gyri.numerics.io import load_pytree, save_pytree

from ._version import __version__
from .types import BilevelState

KIND = "saba-state"


def save_state(path: str | os.PathLike, state: BilevelState) -> None:
    """Write a state to one file, with which a run goes on bit by bit as if it had not been interrupted.

    Parameters
    ----------
    path : path-like
        Where, exactly; an existing file is replaced.
    state : BilevelState
        Of any solver.

    Examples
    --------
    >>> import tempfile
    >>> from gyri.saba import load_state, problems, run, saba, save_state
    >>> problem = problems.quadratic(0, n=64, m=64, p=3, d=2)
    >>> data = (problem.inner_data, problem.outer_data)
    >>> solver = saba(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> start = solver.init(0, problem.z0, problem.x0, *data)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_state(f"{folder}/state.npz", run(solver, start, *data, num_steps=50))
    ...     state = load_state(f"{folder}/state.npz", start)
    >>> int(run(solver, state, *data, num_steps=50).step)
    100
    """
    save_pytree(path, state, kind=KIND, meta={"version": __version__})


def load_state(path: str | os.PathLike, like: Any) -> BilevelState:
    """Read what :func:`save_state` wrote.

    Parameters
    ----------
    path : path-like
        The file.
    like : BilevelState
        A state of the same solver and shapes, such as `solver.init` gives.

    Returns
    -------
    BilevelState
        The saved one.

    Raises
    ------
    ValueError
        A file of something else, of a solver with other memory, of other shapes, of a newer version, or a damaged one.
        Solvers whose states look the same, such as SOBA and AmIGO, are not told apart.

    Examples
    --------
    See :func:`save_state`.
    """
    state: BilevelState = load_pytree(path, kind=KIND, like=like)[0]
    return state
