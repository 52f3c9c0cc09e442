"""What the cross tests lower for CPU, CUDA and TPU: each public function with arguments, or why not."""

import jax

from gyri import saba
from gyri.saba import problems, solvers

PROBLEM = problems.quadratic(0, n=40, m=36, p=3, d=2)
DATA = (PROBLEM.inner_data, PROBLEM.outer_data)
FULL = ("bome", "pzobo", "aid", "itd")


def solver_case(name):
    def case():
        options = {} if name in FULL else {"batch_size": 8}
        solver = solvers.make(name, PROBLEM.inner_fun, PROBLEM.outer_fun, **options)
        state = solver.init(jax.random.key(0), PROBLEM.z0, PROBLEM.x0, *DATA)
        return lambda state, *data: saba.run(solver, state, *data, 3), (state, *DATA)

    return case


def value_case():
    value = lambda x, *data: saba.value_function(PROBLEM.inner_fun, PROBLEM.outer_fun, PROBLEM.z0, x, *data)[0]
    return jax.grad(value), (PROBLEM.x0, *DATA)


def solve_case(method):
    solve = lambda z, x, data: saba.inner_solve(PROBLEM.inner_fun, z, x, data, method=method)
    return lambda: (solve, (PROBLEM.z0, PROBLEM.x0, PROBLEM.inner_data))


def hypergradient_case(method):
    options = {"num_steps": 3, "step_size": 0.1} if method in ("neumann", "unrolled") else {}
    fun = lambda z, x, *data: (
        saba.hypergradient(PROBLEM.inner_fun, PROBLEM.outer_fun, z, x, *data, method=method, **options).grad
    )
    return lambda: (fun, (PROBLEM.z0, PROBLEM.x0, *DATA))


# Name of the public function (more than one case: "name[case]"): a factory of (function, arguments).
LOWERED = {
    **{f"gyri.saba.run[{name}]": solver_case(name) for name in solvers.NAMES},
    "gyri.saba.value_function": value_case,
    **{f"gyri.saba.inner_solve[{method}]": solve_case(method) for method in ("newton", "lbfgs", "gd")},
    **{f"gyri.saba.hypergradient[{m}]": hypergradient_case(m) for m in ("direct", "cg", "neumann", "unrolled")},
}

# Name of the public function: why it never runs inside jit.
HOST_SIDE = {
    "gyri.saba.minimize": "a front door: runs chunks from the host and records",
    "gyri.saba.plot_convergence": "draws a figure",
    "gyri.saba.saba": "makes a solver, whose functions `run` lowers",
    "gyri.saba.soba": "makes a solver, whose functions `run` lowers",
}
