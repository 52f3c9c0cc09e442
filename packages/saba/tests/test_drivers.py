import gc
import os
import subprocess
import sys
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.saba import (
    load_state,
    minimize,
    plot_convergence,
    run,
    run_sharded,
    saba,
    save_state,
    soba,
    solvers,
)
from gyri.saba.drivers import split_rows


def data_of(problem):
    return problem.inner_data, problem.outer_data


def solve(problem, solver=None, **options):
    solver = saba(problem.inner_fun, problem.outer_fun, batch_size=16) if solver is None else solver
    return minimize(solver, problem.z0, problem.x0, *data_of(problem), **{"num_steps": 60, **options})


def test_minimize_is_run_with_records(problem):
    result = solve(problem, eval_every=25, metrics=lambda z, v, x: {"h": problem.value(x), "size": jnp.sum(z**2)})
    assert result.history["step"].tolist() == [0, 25, 50, 60]
    assert result.history["calls_inner"].tolist() == [0, 75, 150, 180]
    assert result.history["calls_outer"].tolist() == [0, 50, 100, 120]
    assert (np.diff(result.history["time_s"]) > 0).all()
    np.testing.assert_allclose(result.history["h"][[0, -1]], [problem.value(problem.x0), problem.value(result.x)], 1e-6)
    solver = saba(problem.inner_fun, problem.outer_fun, batch_size=16)
    state = run(solver, solver.init(0, problem.z0, problem.x0, *data_of(problem)), *data_of(problem), 60)
    for ours, theirs in zip(result[:3], (state.z, state.v, state.x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    assert problem.z0 is not None and float(problem.z0.sum()) == 0  # what the user gave is still there


def test_only_start_and_end_are_recorded_by_default(problem, capsys):
    assert solve(problem).history["step"].tolist() == [0, 60]
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    solve(problem, progress=True)
    assert "saba" in capsys.readouterr().err


def test_a_callback_sees_metrics_and_stops(problem):
    seen = []

    def callback(step, values):
        seen.append((step, float(values["h"])))
        return values["h"] < np.inf if step >= 20 else None  # NumPy's True

    result = solve(problem, eval_every=10, metrics=lambda z, v, x: {"h": problem.value(x)}, callback=callback)
    assert [step for step, _ in seen] == [10, 20]
    assert int(result.state.step) == 20
    assert seen[-1][1] == pytest.approx(float(result.history["h"][-1]))


def test_traced_steps_leave_nothing_behind(problem):
    make = partial(soba, problem.inner_fun, problem.outer_fun, batch_size=16)
    state = make().init(0, problem.z0, problem.x0, *data_of(problem))  # traced nowhere
    go = lambda rho: run(make(inner_opt=rho), state, *data_of(problem), 5).x
    rates = jnp.array([0.1, 0.2])
    with jax.checking_leaks():
        together = jax.vmap(go)(rates)
    np.testing.assert_allclose(together, [go(0.1), go(0.2)], rtol=1e-6)


def test_solvers_and_their_data_are_let_go(problem):
    loss = lambda z, x, batch: problem.inner_fun(z, x, problem.inner_data)
    solver = soba(loss, problem.outer_fun, batch_size=16)
    solve(problem, solver, num_steps=2)
    run(solver, solver.init(0, problem.z0, problem.x0, *data_of(problem)), *data_of(problem), 2)
    refs = [weakref.ref(loss), weakref.ref(solver.update)]
    del loss, solver
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_ctrl_c_returns_what_there_is(problem):
    def interrupt(step, values):
        if step == 20:
            raise KeyboardInterrupt

    result = solve(problem, eval_every=10, callback=interrupt)
    assert int(result.state.step) == 20
    assert np.isfinite(np.asarray(result.x)).all()


def test_divergence_ends_with_a_warning(problem):
    solver = saba(problem.inner_fun, problem.outer_fun, batch_size=16, inner_opt=100.0, outer_opt=100.0)
    with pytest.warns(RuntimeWarning, match=r"saba diverged before step \d+: use smaller steps"):
        result = solve(problem, solver, num_steps=2000, eval_every=50, metrics=lambda z, v, x: {"h": problem.value(x)})
    assert int(result.state.step) < 2000
    assert not np.isfinite(result.history["h"][-1])


@pytest.mark.parametrize("name", ["saba", "mrbo", "sustain", "srba", "f2sa"])
def test_a_saved_run_goes_on_bit_by_bit(name, problem, tmp_path):
    solver = solvers.make(name, problem.inner_fun, problem.outer_fun, batch_size=16)
    first = solver.init(jax.random.key(7), problem.z0, problem.x0, *data_of(problem))
    half = run(solver, first, *data_of(problem), 40)
    save_state(tmp_path / "state", half)
    again = load_state(tmp_path / "state", first)
    a, b = (run(solver, state, *data_of(problem), 40) for state in (half, again))
    for ours, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        assert (np.asarray(ours) == np.asarray(theirs)).all()


def test_states_that_do_not_fit(problem, tmp_path):
    solver = saba(problem.inner_fun, problem.outer_fun, batch_size=16)
    state = solver.init(0, problem.z0, problem.x0, *data_of(problem))
    save_state(tmp_path / "state", state)
    other = soba(problem.inner_fun, problem.outer_fun, batch_size=16)
    with pytest.raises(ValueError):
        load_state(tmp_path / "state", other.init(0, problem.z0, problem.x0, *data_of(problem)))
    content = (tmp_path / "state").read_bytes()
    for size in range(0, len(content), max(1, len(content) // 15)):
        (tmp_path / "cut").write_bytes(content[:size])
        with pytest.raises(ValueError):
            load_state(tmp_path / "cut", state)


def test_rows_are_shared_block_by_block():
    rows = jnp.arange(20)
    parts = np.asarray(split_rows(rows, 2, 8)).reshape(2, 10)
    assert parts.tolist() == [[0, 1, 2, 3, 8, 9, 10, 11, 16, 17], [4, 5, 6, 7, 12, 13, 14, 15, 18, 19]]
    with pytest.raises(ValueError, match=r"inner_data: expected rows \(9\) and batch_size \(4\) to be multiples of 2"):
        split_rows(jnp.arange(9), 2, 4, "inner_data")


def test_mesh_of_one_device_is_run(problem):
    mesh = jax.make_mesh((1,), ("rows",))
    make = partial(saba, problem.inner_fun, problem.outer_fun)
    state = run_sharded(make, 0, problem.z0, problem.x0, *data_of(problem), batch_size=16, num_steps=30, mesh=mesh)
    np.testing.assert_allclose(state.x, solve(problem, num_steps=30).x, rtol=1e-5, atol=1e-7)
    two = jax.make_mesh((1, 1), ("a", "b"))
    with pytest.raises(ValueError, match="mesh: expected one axis"):
        run_sharded(make, 0, problem.z0, problem.x0, *data_of(problem), batch_size=16, num_steps=30, mesh=two)


TWO_DEVICES = """
import jax, numpy as np
from functools import partial
jax.config.update("jax_enable_x64", True)
from gyri.saba import problems, run, run_sharded, solvers
assert jax.device_count() == 2
problem = problems.quadratic(0, n=88, m=72, p=5, d=3)
data = (problem.inner_data, problem.outer_data)
for name in ("saba", "soba", "amigo", "mrbo", "srba", "sustain"):
    make = partial(solvers.make, name, problem.inner_fun, problem.outer_fun)
    args = (jax.random.key(3), problem.z0, problem.x0, *data)
    both = run_sharded(make, *args, batch_size=16, num_steps=100, mesh=jax.make_mesh((2,), ("rows",)))
    solver = make(batch_size=16)
    one = run(solver, solver.init(*args), *data, 100)
    for a, b in zip((both.z, both.v, both.x), (one.z, one.v, one.x)):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12, err_msg=name)
    assert both.calls.tolist() == one.calls.tolist()
print("equal")
"""


def test_two_devices_are_one():
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert out.stdout.strip() == "equal", out.stderr


def test_plot_of_convergence(problem):
    results = {
        name: solve(
            problem,
            make(problem.inner_fun, problem.outer_fun, batch_size=16),
            eval_every=20,
            metrics=lambda z, v, x: {"gap": problem.value(x) + 1.0},
        )
        for name, make in (("SABA", saba), ("SOBA", soba))
    }
    for x, label in (("calls", "Oracle calls, inner and outer"), ("time_s", "Time (s)"), ("step", "Iterations")):
        ax = plot_convergence(results, key="gap", x=x)
        assert ax.get_xlabel() == label
        assert ax.get_yscale() == "log"
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["SABA", "SOBA"]
    lines = plot_convergence(results, key="gap").get_lines()
    assert lines[0].get_xdata().tolist() == [0, 100, 200, 300]
    np.testing.assert_allclose(lines[1].get_ydata(), results["SOBA"].history["gap"])
    with pytest.raises(ValueError, match="key: expected one of step.*got 'h'"):
        plot_convergence(results, key="h")
    with pytest.raises(ValueError, match="x: expected one of 'calls'"):
        plot_convergence(results, key="gap", x="epochs")
    with pytest.raises(ValueError, match="results: expected at least one"):
        plot_convergence({}, key="gap")
