"""Our solvers inside a benchopt benchmark, so that others can race them. Needs benchopt."""

from typing import Any

import jax

from gyri.numerics.validation import check_option, check_positive_int, import_extra

from .drivers import run
from .solvers import NAMES, make


def benchopt_solver(name: str, *, num_steps: int = 256, **options: Any) -> type:
    """Class of a benchopt solver, for a benchmark whose objective hands out a bilevel problem.

    In a file ``solvers/saba.py`` of the benchmark: ``Solver = benchopt_solver("saba", inner_opt=[0.1, 0.3])``. The
    objective's `get_objective` has to return the fields of a :class:`BilevelProblem`: `inner_fun`, `outer_fun`,
    `inner_data`, `outer_data`, `z0`, `x0`; its `evaluate_result` gets `z`, `v` and `x`.

    Parameters
    ----------
    name : str
        Of the solver, one of ``solvers.NAMES``.
    num_steps : int
        Iterations between two evaluations.
    **options
        Of the solver: values, or lists of values for a grid; `seed` is one of them (0 by default).

    Returns
    -------
    type
        A subclass of `benchopt.BaseSolver`.

    Raises
    ------
    ValueError
        An unknown name. ImportError: benchopt is missing.

    Examples
    --------
    >>> from gyri.saba.racing import benchopt_solver
    >>> benchopt_solver("saba", inner_opt=[0.1, 0.3]).parameters  # doctest: +SKIP
    {'seed': [0], 'inner_opt': [0.1, 0.3]}
    """
    check_option(name, "name", NAMES)
    num_steps = check_positive_int(num_steps, "num_steps")
    BaseSolver = import_extra("benchopt", "gyri-saba[benchopt]", "to race solvers").BaseSolver
    grid = {"seed": [0]} | {key: value if isinstance(value, list) else [value] for key, value in options.items()}

    def set_objective(self: Any, **problem: Any) -> None:
        self.problem = problem
        chosen = {key: getattr(self, key) for key in grid if key != "seed"}
        self.solver = make(name, problem["inner_fun"], problem["outer_fun"], **chosen)

    def start(self: Any) -> Any:
        fields = ("z0", "x0", "inner_data", "outer_data")
        return self.solver.init(self.seed, *(self.problem[field] for field in fields))

    def advance(self: Any, state: Any) -> Any:
        state = run(self.solver, state, self.problem["inner_data"], self.problem["outer_data"], num_steps)
        return jax.block_until_ready(state)

    def warm_up(self: Any) -> None:
        advance(self, start(self))  # compiled outside the race

    def race(self: Any, callback: Any) -> None:
        self.state = start(self)
        while callback():
            self.state = advance(self, self.state)

    def get_result(self: Any) -> dict[str, Any]:
        return {"z": self.state.z, "v": self.state.v, "x": self.state.x}

    methods = {"set_objective": set_objective, "warm_up": warm_up, "run": race, "get_result": get_result}
    about = {"name": f"gyri-{name}", "sampling_strategy": "callback", "parameters": grid}
    solver: type = type("Solver", (BaseSolver,), {**about, **methods, "__module__": __name__})
    return solver
