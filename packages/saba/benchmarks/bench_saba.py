"""What an iteration costs and how that grows, and exact hypergradients against peers.

    python packages/saba/benchmarks/bench_saba.py [--quick] [--out FILE.json]

float64, one thread of one process bound to one CPU; times of iterations are CPU time. The authors' solvers are not a
package; on another machine, for the same data and one thread, an iteration of theirs took: SABA 23, 129, 2370 us for
5 000, 50 000, 500 000 samples, and at 50 000 SOBA 15, SRBA 38, AmIGO 117 us. Peers of the hypergradient: jaxopt and
optimistix (requirements.txt), whose gradients have to agree to 1e-6 before they are timed.
"""

import os

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.reproduce import bench
from gyri.saba import BilevelProblem, problems, run, solvers, value_function
from gyri.saba.problems import logistic_regularisation

STEP, BATCH = 0.125, 64
SLOW = ("amigo", "stocbio")


def make(n: int) -> BilevelProblem:
    """Data shaped like ijcnn1: 22 features, 1.8 times as many validation samples."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=22)

    def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
        X = rng.normal(size=(size, 22)) * np.linspace(0.2, 1, 22)
        return X, np.where(rng.random(size) < 1 / (1 + np.exp(-2 * X @ w)), 1, -1)

    return logistic_regularisation(*draw(n), *draw(int(1.8 * n)), key=0)


def microseconds(name: str, problem: BilevelProblem, n_steps: int) -> float:
    """CPU time of an iteration, the least of five runs after one that compiles."""
    solver = solvers.make(name, *problem[:2], inner_opt=STEP, outer_opt=STEP, batch_size=BATCH)
    data = (problem.inner_data, problem.outer_data)
    go = jax.jit(lambda state, *data: run(solver, state, *data, n_steps), donate_argnums=0)
    state = jax.tree.map(jnp.copy, solver.init(0, problem.z0, problem.x0, *data))
    times = []
    for _ in range(6):
        start = time.process_time()
        state = jax.block_until_ready(go(state, *data))
        times.append((time.process_time() - start) / n_steps * 1e6)
    return min(times[1:])


def time_iterations(quick: bool) -> None:
    sizes = (5_000, 50_000) if quick else (5_000, 50_000, 500_000)
    cost: dict[tuple[str, int], float] = {}
    for n in sizes:
        problem = make(n)
        for name in ("saba", "soba", "srba", "amigo", "stocbio"):
            n_steps = (2_000 if name in SLOW else 20_000) // (10 if quick else 1)
            cost[name, n] = microseconds(name, problem, n_steps)
            print(f"{name}, {n} samples: {cost[name, n]:.2f} us an iteration", flush=True)
    print(f"saba, {sizes[-1]} over {sizes[0]} samples: {cost['saba', sizes[-1]] / cost['saba', sizes[0]]:.3g}")
    print(f"saba over soba, 50 000 samples: {cost['saba', 50_000] / cost['soba', 50_000]:.3g}", flush=True)


def time_grid(quick: bool) -> None:
    """Sixteen steps and keys in one call against one run."""
    problem, n_steps = make(5_000 if quick else 50_000), 500 if quick else 5_000
    data = (problem.inner_data, problem.outer_data)

    def go(rho: Any, key: Any, *data: Any) -> Any:
        solver = solvers.saba(*problem[:2], inner_opt=rho, outer_opt=rho, batch_size=BATCH)
        return run(solver, solver.init(key, problem.z0, problem.x0, *data), *data, n_steps).x

    keys, rho = jax.random.split(jax.random.key(0), 16), jnp.full(16, STEP)
    one, many = jax.jit(go), jax.jit(jax.vmap(go, (0, 0, None, None)))
    cost = [seconds(lambda: one(rho[0], keys[0], *data)), seconds(lambda: many(rho, keys, *data))]
    print(f"16 runs over one: {cost[1] / cost[0]:.3g} ({cost[1] / n_steps / 16 * 1e6:.2f} us an iteration each)")


def seconds(function: Callable[[], Any]) -> float:
    """CPU time, the least of three calls after one that compiles."""
    times = []
    for _ in range(4):
        start = time.process_time()
        jax.block_until_ready(function())
        times.append(time.process_time() - start)
    return min(times[1:])


def time_to_gap() -> None:
    """CPU time until the value function is within 1e-3 of the lowest value that any run found."""
    problem = make(50_000)
    data = (problem.inner_data, problem.outer_data)
    solver = solvers.saba(*problem[:2], inner_opt=STEP, outer_opt=STEP, batch_size=BATCH)
    value = jax.jit(lambda x: value_function(*problem[:2], problem.z0, x, *data)[0])
    go = jax.jit(lambda state, *data: run(solver, state, *data, 2_000))
    best = float(value(run(solver, solver.init(0, problem.z0, problem.x0, *data), *data, 400_000).x))
    state, spent = solver.init(0, problem.z0, problem.x0, *data), 0.0
    jax.block_until_ready(go(state, *data))
    while float(value(state.x)) - best > 1e-3:
        start = time.process_time()
        state = jax.block_until_ready(go(state, *data))
        spent += time.process_time() - start
    print(f"saba until the gap is 1e-3 (50 000 samples): {spent:.3g} s, {int(state.step)} iterations", flush=True)


# --- exact hypergradients ---------------------------------------------------------------------------------------------


def find_peers(problem: BilevelProblem) -> dict[str, Callable[[Any], Any]]:
    """Gradient of the value function by each peer that is installed."""
    inner, outer, inner_data, outer_data, z0, _ = problem
    peers: dict[str, Callable[[Any], Any]] = {}
    try:
        import jaxopt

        linear = partial(jaxopt.linear_solve.solve_cg, tol=1e-8)
        solver = jaxopt.LBFGS(
            lambda z, x: inner(z, x, inner_data), tol=1e-9, maxiter=500, implicit_diff=True, implicit_diff_solve=linear
        )
        peers["jaxopt"] = jax.jit(jax.grad(lambda x: outer(solver.run(z0, x).params, x, outer_data)))
    except ImportError:
        print("# no jaxopt")
    try:
        import optimistix

        adjoint = optimistix.ImplicitAdjoint()
        bfgs = optimistix.BFGS(rtol=1e-9, atol=1e-9)

        def value(x: Any) -> Any:
            fun = lambda z, x: inner(z, x, inner_data)
            z = optimistix.minimise(fun, bfgs, z0, args=x, max_steps=500, adjoint=adjoint).value
            return outer(z, x, outer_data)

        peers["optimistix"] = jax.jit(jax.grad(value))
    except ImportError:
        print("# no optimistix")
    return peers


def compare_hypergradients(table: bench.Table) -> None:
    problem = problems.load("breast_cancer")
    inner, outer, *data, z0, x0 = problem
    ours = jax.jit(jax.grad(lambda x: value_function(inner, outer, z0, x, *data, tol=1e-7)[0]))
    exact = jax.grad(lambda x: value_function(inner, outer, z0, x, *data, tol=1e-13)[0])(x0)

    def as_good(a: Any, b: Any) -> bool:
        errors = [float(jnp.linalg.norm(g - exact) / jnp.linalg.norm(exact)) for g in (a, b)]
        print(f"# relative errors of the gradient: ours {errors[0]:.1e}, peer {errors[1]:.1e}")
        return max(errors) <= 1e-6

    for name, peer in find_peers(problem).items():
        row = bench.paired(partial(ours, x0), partial(peer, x0), check=as_good, n_rounds=20)
        table.add(f"gradient of the value function, breast cancer, against {name}", row)


def benchmark(table: bench.Table, quick: bool) -> None:
    with jax.enable_x64(True):
        time_iterations(quick)
        time_grid(quick)
        compare_hypergradients(table)
        if not quick:
            time_to_gap()


if __name__ == "__main__":
    raise SystemExit(bench.main(benchmark, title="Bilevel optimisation", peers=["jaxopt", "optimistix"]))
