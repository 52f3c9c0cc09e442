import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gyri.numerics.testing import check_jit, check_no_recompilation, check_vmap
from gyri.saba import memory_means, memory_tables, power_schedule, problems, run, saba, soba, solvers
from gyri.saba.directions import Side

FULL = ("bome", "pzobo", "aid", "itd")
STEPS = {"f2sa": {"inner_opt": 0.05, "outer_opt": 0.05}}  # the noise of its difference grows with the penalty


def data_of(problem):
    return problem.inner_data, problem.outer_data


def far_problem():
    """A well-conditioned problem, of a condition number near 3 in z, with a start far from its solution."""
    problem = problems.quadratic(jax.random.key(23), n=100, m=100, p=6, d=4, mu=0.34)
    return problem._replace(x0=problem.x0 + 2.0)


def start(solver, problem, key=0):
    return solver.init(key, problem.z0, problem.x0, *data_of(problem))


def gap_of(problem, x):
    error = x - problem.minimizer()
    return float(0.5 * error @ problem.hessian() @ error)


@pytest.mark.parametrize("name", solvers.NAMES)
def test_every_solver_divides_the_gap(name, x64):
    problem = far_problem()
    options = {"inner_opt": 0.3, "outer_opt": 0.3} | STEPS.get(name, {}) | ({} if name in FULL else {"batch_size": 16})
    solver = solvers.make(name, problem.inner_fun, problem.outer_fun, **options)
    state = run(solver, start(solver, problem), *data_of(problem), 1500)
    ratio = gap_of(problem, state.x) / gap_of(problem, problem.x0)
    assert ratio <= (0.5 if name == "f2sa" else 0.1)
    if name in ("saba", "srba", "bio_svrg", "aid"):
        assert ratio < 1e-12
    assert solver.name == name


def test_saba_converges_linearly_where_soba_stalls(dtype):
    problem = far_problem()
    first = gap_of(problem, problem.x0)
    gaps = {}
    for make, options in ((saba, {}), (soba, {"decay": 0.0})):
        solver = make(problem.inner_fun, problem.outer_fun, inner_opt=0.3, outer_opt=0.3, batch_size=16, **options)
        state, gaps[make] = start(solver, problem), []
        for _ in range(8):
            state = run(solver, state, *data_of(problem), 250)
            gaps[make].append(gap_of(problem, state.x) / first)
    assert gaps[saba][-1] <= (1e-20 if dtype == "float64" else 1e-9)
    assert min(gaps[soba]) >= 1e4 * gaps[saba][-1]
    if dtype == "float64":
        slopes = np.diff(np.log10(gaps[saba][:5]))
        assert slopes.max() < -0.5 * abs(slopes.mean())  # each stretch gains its part


def test_saba_needs_far_fewer_calls_than_those_without_reduced_variance(x64):
    problem = far_problem()

    def calls_until(name, level, limit):
        solver = solvers.make(name, problem.inner_fun, problem.outer_fun, inner_opt=0.3, outer_opt=0.3, batch_size=16)
        state = start(solver, problem)
        while int(state.calls.sum()) < limit:
            state = run(solver, state, *data_of(problem), 50)
            if gap_of(problem, state.x) <= level:
                break
        return int(state.calls.sum())

    ours = calls_until("saba", 1e-10, 100_000)
    assert ours < 20_000
    for name in ("soba", "fsla", "amigo", "stocbio", "mrbo"):
        assert calls_until(name, 1e-10, 5 * ours) >= 5 * ours


@pytest.mark.parametrize("name", ["soba", "amigo", "srba", "saba"])
def test_first_directions_are_unbiased(name, x64):
    """The mean of one step over many keys is that of the full directions, with blocks of unequal sizes as well."""
    problem = problems.quadratic(0, n=90, m=70, p=5, d=3)
    # SABA's first step from a full memory and SRBA's are the full ones.
    options = {"init_memory": "full"} if name == "saba" else {"n_inner_steps": 1} if name == "amigo" else {}
    solver = solvers.make(
        name, problem.inner_fun, problem.outer_fun, batch_size=16, sampling="iid", decay=0.0, **options
    )
    z0, x0, n = problem.z0 + 0.5, problem.x0 - 0.5, 4000
    inner, outer = (Side(problem.inner_fun, data, "full") for data in data_of(problem))

    def first(key):
        state = solver.init(key, z0, x0, *data_of(problem))
        state = solver.update(state._replace(v=z0) if name == "soba" else state, *data_of(problem))
        return state.z, state.v, state.x

    after = jax.jit(jax.vmap(first))(jax.random.split(jax.random.key(0), n))
    v0 = z0 if name == "soba" else 0 * z0
    gradient, product, cross = inner.products(None, z0, v0, x0)
    r, s = outer.grads(None, z0, x0)
    expected = (z0 - 0.1 * gradient, v0 - 0.1 * (product + r), x0 - 0.1 * (cross + s))
    for ours, full in zip(after[: 1 if name == "amigo" else 3], expected, strict=False):
        error = np.asarray(ours).std(0) / np.sqrt(n)
        assert (np.abs(np.asarray(ours).mean(0) - np.asarray(full)) <= 5 * error + 1e-12).all()
        assert (error > 1e-12).all() == (name in ("soba", "amigo"))


def test_memory_holds_what_each_block_gave(x64):
    problem = problems.quadratic(0, n=90, m=70, p=5, d=3)
    frozen = {"inner_opt": 1e-300, "outer_opt": 1e-300}
    for init_memory in ("zero", "full"):
        solver = saba(problem.inner_fun, problem.outer_fun, batch_size=16, init_memory=init_memory, **frozen)
        state = start(solver, problem)._replace(v=problem.z0 + 1.0)
        state = run(solver, state, *data_of(problem), 6)  # six inner blocks, five outer ones
        inner, outer = (
            Side(fun, data, 16)
            for fun, data in ((problem.inner_fun, problem.inner_data), (problem.outer_fun, problem.outer_data))
        )
        means, tables = memory_means(state), memory_tables(state)
        expected = (*inner.products(None, state.z, state.v, state.x), *outer.grads(None, state.z, state.x))
        for name, full in zip(means, expected, strict=True):
            np.testing.assert_allclose(means[name], full, atol=1e-12)
            np.testing.assert_allclose(tables[name].mean(0), means[name], atol=1e-14)
        np.testing.assert_allclose(tables["hvp"][2], inner.hvp(jnp.array(2), state.z, state.v, state.x), atol=1e-14)


def test_means_do_not_drift_in_single_precision():
    problem = problems.quadratic(0, n=64, m=64, p=5, d=3)
    solver = saba(problem.inner_fun, problem.outer_fun, batch_size=4, inner_opt=0.05, outer_opt=0.05)
    state = run(solver, start(solver, problem), *data_of(problem), 100_000)
    tables, means = memory_tables(state), memory_means(state)
    for name, mean in means.items():
        size = np.abs(tables[name]).max()
        np.testing.assert_allclose(mean, np.asarray(tables[name], float).mean(0), atol=4e-7 * size)


@pytest.mark.parametrize("mapped", [False, True])
def test_no_table_is_copied_in_the_loop(mapped):
    problem = problems.quadratic(0, n=1600, m=800, p=6, d=4)

    def go(rho, key, inner_data, outer_data):
        solver = saba(problem.inner_fun, problem.outer_fun, inner_opt=rho, batch_size=16)
        state = solver.init(key, problem.z0, problem.x0, inner_data, outer_data)
        return run(solver, state, inner_data, outer_data, 100)

    keys, args = jax.random.split(jax.random.key(0), 3), data_of(problem)
    if mapped:
        go, args = jax.vmap(go, (0, 0, None, None)), (jnp.full(3, 0.1), keys, *args)
    else:
        args = (0.1, keys[0], *args)
    text = jax.jit(go).lower(*args).compile().as_text()
    # Tables are (100, 16) and (50, 10), the shuffles' orders (100) and (50); one copy before the loop is no matter.
    inside = [line for line in text.split("ENTRY")[0].splitlines() if " copy(" in line]
    shapes = [shape for line in inside for shape in re.findall(r"= [a-z0-9]+\[([0-9,]*)\]", line)]
    assert shapes  # the text is what it is taken for
    for shape in shapes:
        assert not re.search(r"(^|,)(100,16|50,10|100|50)$", shape), shape


def test_options_of_steps(problem):
    data = data_of(problem)
    schedule = power_schedule(0.1, 0.5)
    ours = [
        soba(problem.inner_fun, problem.outer_fun, inner_opt=opt, outer_opt=opt, batch_size=16)
        for opt in (0.1, schedule, optax.sgd(schedule))
    ]
    states = [run(solver, start(solver, problem), *data, 50) for solver in ours]
    for state in states[1:]:
        np.testing.assert_allclose(state.x, states[0].x, rtol=1e-5)
    constant = soba(problem.inner_fun, problem.outer_fun, batch_size=16, decay=(0, 0.0, 0))
    same = soba(problem.inner_fun, problem.outer_fun, batch_size=16, inner_opt=lambda t: 0.1, outer_opt=lambda t: 0.1)
    a, b = (run(solver, start(solver, problem), *data, 50) for solver in (constant, same))
    np.testing.assert_allclose(a.x, b.x, rtol=1e-6)
    adam = saba(problem.inner_fun, problem.outer_fun, batch_size=16, outer_opt=optax.adam(0.01))
    state = run(adam, start(adam, problem), *data, 2000)
    assert problem.value(state.x) < problem.value(problem.x0)


def test_v_stays_in_its_ball(problem):
    for name in ("soba", "saba", "srba", "amigo", "fsla"):
        solver = solvers.make(name, problem.inner_fun, problem.outer_fun, batch_size=16, v_radius=0.05)
        state = run(solver, start(solver, problem), *data_of(problem), 100)
        assert 0.04 < float(jnp.linalg.norm(state.v)) <= 0.05 * (1 + 1e-6)


def test_full_batch_is_deterministic(problem):
    solver = soba(problem.inner_fun, problem.outer_fun, batch_size="full")
    a, b = (run(solver, start(solver, problem, key), *data_of(problem), 20) for key in (0, 1))
    assert (a.x == b.x).all()


def test_same_key_same_result_and_other_keys_others(problem):
    solver = saba(problem.inner_fun, problem.outer_fun, batch_size=16)
    a, b, c = (run(solver, start(solver, problem, key), *data_of(problem), 20).x for key in (3, 3, 4))
    assert (a == b).all()
    assert not (a == c).all()


def test_a_grid_of_steps_and_keys_in_one_call(problem):
    def go(rho, key):
        solver = saba(problem.inner_fun, problem.outer_fun, inner_opt=rho, batch_size=16)
        state = solver.init(key, problem.z0, problem.x0, *data_of(problem))
        return run(solver, state, *data_of(problem), 30).x

    rho, keys = jnp.array([0.05, 0.1, 0.2]), jax.random.split(jax.random.key(0), 3)
    check_vmap(go, rho, keys, rtol=1e-4)
    check_jit(go, rho[0], keys[0], rtol=1e-5)
    one = saba(problem.inner_fun, problem.outer_fun, inner_opt=0.1, batch_size=16)
    state = one.init(keys[1], problem.z0, problem.x0, *data_of(problem))
    np.testing.assert_allclose(go(rho[1], keys[1]), run(one, state, *data_of(problem), 30).x, rtol=1e-5)
    check_no_recompilation(jax.jit(go), (rho[0], keys[0]), (rho[1], keys[2]))


def test_a_second_run_traces_nothing(problem):
    traced = []

    def inner(z, x, batch):
        traced.append(1)
        return problem.inner_fun(z, x, batch)

    solver = saba(inner, problem.outer_fun, batch_size=16)
    state = run(solver, start(solver, problem), *data_of(problem), 10)
    n = len(traced)
    run(solver, state, *data_of(problem), 10)
    assert len(traced) == n


def test_trees_and_problems_without_data(x64):
    target = jnp.array([1.0, -2.0])

    def inner(z, x, batch):
        return 0.5 * jnp.sum((z["a"] - x["w"]) ** 2) + 0.5 * (z["b"] - x["c"]) ** 2

    def outer(z, x, batch):
        return 0.5 * jnp.sum((z["a"] - target) ** 2) + 0.5 * (z["b"] + 1) ** 2

    z0 = {"a": jnp.zeros(2), "b": jnp.array(0.0)}
    x0 = {"w": jnp.zeros(2), "c": jnp.array(0.0)}
    for name in solvers.NAMES:
        options = {} if name == "f2sa" else {"decay": 0.0}  # its penalty grows as its steps decrease
        solver = solvers.make(name, inner, outer, inner_opt=0.2, outer_opt=0.2, **options)
        state = run(solver, solver.init(0, z0, x0, None, None), None, None, 300)
        atol = 0.3 if name in ("bsa", "ttsa", "sustain", "f2sa", "pzobo", "bome") else 1e-3
        np.testing.assert_allclose(state.x["w"], target, atol=atol, err_msg=name)
        np.testing.assert_allclose(state.x["c"], -1, atol=atol, err_msg=name)


BAD = [
    ("saba", {"batch_size": 0}, "batch_size: expected an integer >= 1"),
    ("saba", {"batch_size": 91}, "batch_size: expected at most the 90 rows of inner_data, got 91; batch_size='full'"),
    ("saba", {"batch_size": 80}, "batch_size: expected at most the 70 rows of outer_data"),
    ("saba", {"sampling": "random"}, "sampling: expected one of 'shuffle'"),
    ("saba", {"init_memory": "ones"}, "init_memory: expected one of 'zero', 'full'"),
    ("soba", {"inner_opt": 0.0}, "inner_opt: expected a number > 0"),
    ("soba", {"outer_opt": -1.0}, "outer_opt: expected a number > 0"),
    ("soba", {"v_opt": float("nan")}, "v_opt: expected a finite number"),
    ("soba", {"v_radius": 0}, "v_radius: expected a number > 0"),
    ("soba", {"decay": (1, 2)}, "decay: expected a number or three, got 2"),
    ("soba", {"decay": -1.0}, "decay: expected a number >= 0"),
    ("amigo", {"n_inner_steps": 0}, "n_inner_steps: expected an integer >= 1"),
    ("stocbio", {"n_linear_steps": 0}, "n_linear_steps: expected an integer >= 1"),
    ("stocbio", {"v_opt": optax.sgd(0.1)}, "v_opt: expected a number or a schedule"),
    ("mrbo", {"inner_opt": optax.sgd(0.1)}, "v_opt: expected a number or a schedule"),
    ("fsla", {"inner_opt": lambda t: 0.1}, "eta: expected a number, since inner_opt is none"),
    ("mrbo", {"eta": 0}, "eta: expected a number > 0"),
    ("srba", {"period_frac": 0.0}, "period_frac: expected a number > 0"),
    ("f2sa", {"penalty": 0.0}, "penalty: expected a number > 0"),
    ("bome", {"batch_size": 16}, "batch_size: expected 'full'"),
    ("bome", {"inner_opt": optax.sgd(0.1)}, "v_opt: expected a number or a schedule"),
    ("bome", {"control": "x"}, "control: expected one of 'norm', 'gap'"),
    ("aid", {"inner_solver": "adam"}, "inner_solver: expected one of 'gd'"),
    ("aid", {"tol": -1.0}, "tol: expected a number >= 0"),
    ("aid", {"inner_opt": optax.sgd(0.1)}, "inner_opt: expected a number or a schedule"),
    ("pzobo", {"smoothing": 0}, "smoothing: expected a number > 0"),
    ("pzobo", {"n_directions": 0}, "n_directions: expected an integer >= 1"),
    ("itd", {"inner_opt": optax.sgd(0.1)}, "inner_opt: expected a number or a schedule"),
    ("nobody", {}, "name: expected one of 'soba', 'saba'"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_options(name, options, message, problem):
    with pytest.raises(ValueError, match=re.escape(message)):
        start(solvers.make(name, problem.inner_fun, problem.outer_fun, **options), problem)


def test_bad_input_of_init(problem):
    solver = saba(problem.inner_fun, problem.outer_fun, batch_size=16)
    inner, outer = data_of(problem)

    def refuse(match, *, z0=problem.z0, x0=problem.x0, inner=inner, outer=outer, solver=solver, error=ValueError):
        with pytest.raises(error, match=match):
            solver.init(0, z0, x0, inner, outer)

    refuse("inner_data.*: expected at least one axis and one row", inner=jax.tree.map(lambda a: a[:0], inner))
    refuse("outer_data.*: expected 70 rows", outer={**outer, "lin_x": outer["lin_x"][:5]})
    refuse("z0: expected finite", z0=problem.z0.at[0].set(jnp.nan))
    refuse("x0: expected finite", x0=problem.x0.at[0].set(jnp.inf))
    refuse("inner_data.*: expected finite", inner={**inner, "lin_z": inner["lin_z"].at[3, 0].set(jnp.nan)})
    refuse("z0: expected floating numbers, got int32", z0=jnp.zeros(5, int), error=TypeError)
    refuse("x0: expected an array, got list|x0.*: expected an array", x0=[1, 2], error=TypeError)
    vector = saba(lambda z, x, batch: z, problem.outer_fun, batch_size=16)
    refuse("inner_fun: expected a function that returns a scalar, got shape", solver=vector)
    with pytest.raises(ValueError, match="state: expected the state of a SABA solver"):
        memory_tables(start(soba(problem.inner_fun, problem.outer_fun, batch_size=16), problem))
    with pytest.raises(ValueError, match="num_steps: expected an integer >= 1"):
        run(solver, start(solver, problem), inner, outer, 0)
    with pytest.raises(TypeError, match="unexpected keyword"):
        solvers.amigo(problem.inner_fun, problem.outer_fun, init_memory="full")


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float32", "float64"), ("float64", "float32")])
def test_types_follow_the_variables(dtypes, x64):
    problem = problems.quadratic(0, n=64, m=64, p=4, d=3, dtype="float32")
    problem = problem._replace(z0=problem.z0.astype(dtypes[0]), x0=problem.x0.astype(dtypes[1]))
    for name in solvers.NAMES:
        options = {} if name in FULL else {"batch_size": 16}
        solver = solvers.make(name, problem.inner_fun, problem.outer_fun, **options)
        go = partial(run, solver, inner_data=problem.inner_data, outer_data=problem.outer_data, num_steps=3)
        state = jax.eval_shape(go, start(solver, problem))
        assert (state.z.dtype, state.v.dtype, state.x.dtype) == (dtypes[0], dtypes[0], dtypes[1]), name


def test_a_chunk_holds_the_tables_once():
    problem = problems.quadratic(0, n=16_000, m=16_000, p=20, d=20)
    solver = saba(problem.inner_fun, problem.outer_fun, batch_size=4)
    state = start(solver, problem)
    tables = sum(leaf.nbytes for leaf in jax.tree.leaves(state.extra))
    go = jax.jit(lambda state, *data: run(solver, state, *data, 100), donate_argnums=0)
    memory = go.lower(state, *data_of(problem)).compile().memory_analysis()
    if memory is None:
        pytest.skip("this backend does not tell")
    assert memory.alias_size_in_bytes >= tables  # what comes out is where it was
    assert memory.temp_size_in_bytes < 0.2 * tables
