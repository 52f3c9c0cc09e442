import pytest

from gyri.saba import problems
from gyri.saba.racing import benchopt_solver

pytest.importorskip("benchopt")


def test_a_solver_runs_between_evaluations():
    problem = problems.quadratic(0, n=64, m=64, p=3, d=2)
    Solver = benchopt_solver("saba", num_steps=50, batch_size=16, inner_opt=[0.1, 0.3])
    assert Solver.name == "gyri-saba"
    assert Solver.parameters == {"seed": [0], "batch_size": [16], "inner_opt": [0.1, 0.3]}
    solver = Solver.get_instance(seed=0, batch_size=16, inner_opt=0.3)
    solver.set_objective(**problem._asdict())
    solver.warm_up()
    values = []

    def callback():
        values.append(float(problem.value(solver.state.x)))
        return len(values) < 8

    solver.run(callback)
    assert values[-1] < values[0]
    assert int(solver.state.step) == 350
    assert set(solver.get_result()) == {"z", "v", "x"}


def test_names_are_checked():
    with pytest.raises(ValueError, match="name: expected one of 'soba'"):
        benchopt_solver("sgd")
