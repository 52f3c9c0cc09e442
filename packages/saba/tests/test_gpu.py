"""On an accelerator: the same numbers as on the host."""

import jax
import numpy as np
import pytest

from gyri.saba import problems, run, solvers, value_function


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["saba", "soba", "amigo", "srba", "mrbo"])
def test_trajectories_are_those_of_the_host(name):
    results = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(device), jax.enable_x64(True):
            problem = problems.quadratic(0, n=90, m=70, p=5, d=3)
            data = (problem.inner_data, problem.outer_data)
            solver = solvers.make(name, problem.inner_fun, problem.outer_fun, batch_size=16, sampling="cyclic")
            state = run(solver, solver.init(0, problem.z0, problem.x0, *data), *data, 100)
            value = value_function(problem.inner_fun, problem.outer_fun, problem.z0, state.x, *data)[0]
            results.append((np.asarray(state.x), float(value)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-8)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-8)
