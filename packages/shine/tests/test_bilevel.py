"""Tests of gyri.shine.bilevel."""

import gc
import pickle
import time
import weakref
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gyri.shine.bilevel as bilevel
from gyri.numerics.testing import check_no_recompilation
from gyri.shine import LBFGS, Full, HoagResult, JacobianFree, Shine, grid_search, hoag, random_search
from gyri.shine.bilevel import _cg_limit, _tolerance, safe_step

from .conftest import relative


@lru_cache
def data(seed=0, n=60, d=8):
    """Ridge regression whose best penalty has a closed form to compare with."""
    rng = np.random.default_rng(seed)
    X, w = rng.standard_normal((2 * n, d)), rng.standard_normal(d)
    y = X @ w + 2.0 * rng.standard_normal(2 * n)
    return X[:n], y[:n], X[n:], y[n:]


def problem(dtype=np.float32):
    X, y, X_val, y_val = (jnp.asarray(a, dtype) for a in data())
    inner = lambda w, lam: 0.5 * jnp.sum((X @ w - y) ** 2) + 0.5 * jnp.exp(lam) * jnp.sum(w**2)
    outer = lambda w, lam: 0.5 * jnp.sum((X_val @ w - y_val) ** 2)
    return inner, outer


def solved(lam):
    X, y, X_val, y_val = data()
    w = np.linalg.solve(X.T @ X + np.exp(lam) * np.eye(X.shape[1]), X.T @ y)
    return 0.5 * np.sum((X_val @ w - y_val) ** 2)


LEAST = min(solved(lam) for lam in np.linspace(-12, 12, 2401))


@pytest.mark.parametrize(
    "options",
    [{"backward": "shine"}, {"backward": "full"}, {"backward": "refine"},
     {"backward": Shine(fallback=True, refine_steps=3)},
     {"backward": Full(max_steps=8)}, {"backward": "shine", "solver": LBFGS(memory=60, opa_every=2)},
     {"backward": "full", "tol_schedule": "quadratic"}, {"backward": "full", "step": "paper"}],
    ids=str,
)  # fmt: skip
def test_descent_finds_the_best_penalty(x64, options):
    result = hoag(*problem(np.float64), jnp.zeros(8), jnp.array(0.0), max_iter=30, **options)
    assert result.outer_value <= 1.001 * LEAST
    assert solved(float(result.lam)) <= 1.001 * LEAST
    history = result.history
    assert set(history) == {"lam", "outer", "inner_evals", "hvps", "time", "tol", "hypergrad"}
    assert {len(rows) for rows in history.values()} == {31}
    for name in ("inner_evals", "hvps", "time"):
        assert (np.diff(history[name]) >= 0).all()
    assert history["inner_evals"][0] == 1
    if options["backward"] == "shine" and "solver" not in options:
        assert history["hvps"][-1] == 0
    elif options["backward"] != "shine":
        assert history["hvps"][-1] > 0


def test_exact_hypergradient_is_the_derivative_of_the_solution(x64):
    result = hoag(*problem(np.float64), jnp.zeros(8), jnp.array(1.0), max_iter=1, backward="full", tol_schedule="exact")
    step = 1e-5
    expected = (solved(1 + step) - solved(1 - step)) / (2 * step)
    np.testing.assert_allclose(result.history["hypergrad"][1], expected, rtol=1e-6)
    np.testing.assert_allclose(result.history["outer"][1], solved(1.0), rtol=1e-9)


def test_many_penalties_and_trees(x64):
    X, y, X_val, y_val = (jnp.asarray(a) for a in data())
    inner = lambda w, lam: 0.5 * jnp.sum((X @ w["w"] - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam["a"]) * w["w"] ** 2)
    outer = lambda w, lam: 0.5 * jnp.sum((X_val @ w["w"] - y_val) ** 2)
    result = hoag(inner, outer, {"w": jnp.zeros(8)}, {"a": jnp.zeros(8)}, max_iter=20, backward="full")
    assert result.lam["a"].shape == (8,) and result.x["w"].shape == (8,)
    assert result.history["lam"].shape == (21, 8)
    assert result.outer_value < LEAST  # more freedom than one penalty has


def test_multinomial_fits_with_a_penalty_a_class(x64):
    rng = np.random.default_rng(0)
    X, label = jnp.asarray(rng.standard_normal((90, 4))), jnp.asarray(rng.integers(0, 3, 90))
    entropy = lambda W, rows: -jax.nn.log_softmax(X[rows] @ W)[jnp.arange(45), label[rows]].sum()
    inner = lambda W, lam: entropy(W, slice(0, 45)) + 0.5 * jnp.sum(jnp.exp(lam) * W**2)
    result = hoag(inner, lambda W, lam: entropy(W, slice(45, 90)), jnp.zeros((4, 3)), jnp.zeros(3), max_iter=15)
    assert result.outer_value <= result.history["outer"][1]
    assert result.history["hypergrad"].shape == (16, 3)


def test_searches_visit_their_values_and_keep_the_best(x64):
    grid = grid_search(*problem(np.float64), jnp.zeros(8), n=13, bounds=(-6, 6))
    np.testing.assert_allclose(grid.history["lam"][1:], np.linspace(-6, 6, 13))
    np.testing.assert_allclose(grid.history["outer"][1:], [solved(lam) for lam in np.linspace(-6, 6, 13)], rtol=1e-3)
    assert grid.outer_value == grid.history["outer"][1:].min()
    random = random_search(*problem(np.float64), jnp.zeros(8), n=5, key=3, bounds=(-1, 2))
    again = random_search(*problem(np.float64), jnp.zeros(8), n=5, key=3, bounds=(-1, 2))
    np.testing.assert_array_equal(random.history["lam"], again.history["lam"])
    assert ((random.history["lam"][1:] >= -1) & (random.history["lam"][1:] <= 2)).all()
    assert len(set(random.history["lam"].tolist())) == 6


def test_penalties_stay_in_the_box():
    result = hoag(*problem(), jnp.zeros(8), jnp.array(0.0), max_iter=6, bounds=(-0.1, 0.1), backward="full")
    assert (np.abs(result.history["lam"]) <= np.float32(0.1)).all()


def test_a_start_outside_the_box_is_brought_into_it():
    result = hoag(*problem(), jnp.zeros(8), jnp.array(5.0), max_iter=1, bounds=(-1.0, 1.0))
    assert result.lam == 1.0 and (result.history["lam"] == 1.0).all()


def test_tolerances_are_absolute_where_the_start_is_stationary():
    centre = jnp.arange(1.0, 9.0)
    inner = lambda w, lam: jnp.sum(jnp.cosh(w * centre)) + 0.5 * jnp.exp(lam) * jnp.sum((w - lam) ** 2)
    outer = lambda w, lam: jnp.sum((w - 1.0) ** 2)
    stationary = hoag(inner, outer, jnp.zeros(8), jnp.array(0.0), max_iter=5)
    near = hoag(inner, outer, jnp.full(8, 1e-2), jnp.array(0.0), max_iter=5)
    assert stationary.history["inner_evals"][-1] <= near.history["inner_evals"][-1]


def test_a_step_that_makes_it_worse_is_taken_back():
    pairs = bilevel.empty_pairs(2, jnp.zeros(1))
    old = bilevel.Point(np.zeros(1), jnp.zeros(1), pairs, 10.0, 1.0)
    worse = old._replace(lam=np.ones(1), outer=12.5)
    gradient, box = np.ones(1), (-12.0, 12.0)
    back, kept, lip, rejected = safe_step(worse, old, gradient, 1.0, 1e-3, box, True)
    assert rejected and lip == 2.0 and back.lam == 0.0 and kept is old
    assert safe_step(worse._replace(outer=np.nan), old, gradient, 1.0, 1e-3, box, False)[3]
    for outer, factor in ((8.0, 0.8), (11.0, 1.5), (9.9, 1.0)):
        point, _, lip, rejected = safe_step(worse._replace(outer=outer), old, gradient, 1.0, 1e-3, box, True)
        assert (lip, rejected) == (factor, False)
        np.testing.assert_allclose(point.lam, 1 - 1 / factor)


def test_schedules():
    assert [_tolerance("quadratic", 0.9, 1e-3, k, 0) for k in (0, 1, 2)] == [1e-3, 1e-3, 2.5e-4]
    assert _tolerance("cubic", 0.9, 8e-3, 2, 0) == 1e-3
    assert _tolerance("exponential", 0.5, 1e-3, 3, 4e-4) == 2e-4
    assert _tolerance("exact", 0.5, 1e-3, 3, 4e-4) == _tolerance("exponential", 0.5, 1e-3, 3, 1e-13) == 1e-12
    assert _cg_limit("refine", Shine(), 0.5, 1e-3) == 1 and _cg_limit("refine", Shine(), 0.5, 1e-6) == 10
    assert _cg_limit(Full(7), Full(7), 0.5, 1e-3) == 7
    assert _cg_limit(JacobianFree(refine_steps=4), JacobianFree(refine_steps=4), 0.5, 1.0) == 4
    assert _cg_limit("full", Full(), 0.5, 1e-3) > 10**6


def test_float32_agrees_with_float64():
    single = hoag(*problem(), jnp.zeros(8), jnp.array(0.0), max_iter=8)
    with jax.enable_x64(True):
        double = hoag(*problem(np.float64), jnp.zeros(8), jnp.array(0.0), max_iter=8)
    assert single.x.dtype == np.float32 and double.x.dtype == np.float64
    np.testing.assert_allclose(single.outer_value, double.outer_value, rtol=1e-3)
    assert relative(single.history["lam"][:4], double.history["lam"][:4]) <= 1e-2


def test_one_program_serves_all_penalties():
    inner, outer = problem()
    flat = bilevel._problem_of(inner, outer, jnp.zeros(8), jnp.array(0.0))
    run = lambda lam, n: bilevel.run_hoag(flat[0], flat[1], lam, flat[3], max_iter=n).x
    check_no_recompilation(run, (jnp.zeros(1), 2), (jnp.ones(1), 4), jit=False)


def test_another_call_with_the_same_functions_compiles_nothing():
    inner, outer = problem()
    run = lambda x0, lam0: hoag(inner, outer, x0, lam0, max_iter=2).x
    check_no_recompilation(run, (jnp.zeros(8), jnp.array(0.0)), (jnp.ones(8), jnp.array(1.0)), jit=False)


def test_data_are_freed_after_the_call():
    def run():
        X = jnp.asarray(data()[0], np.float32)
        inner = lambda w, lam: jnp.sum((X @ w - 1.0) ** 2) + jnp.exp(lam) * jnp.sum(w**2)
        hoag(inner, lambda w, lam: jnp.sum(w**2), jnp.zeros(8), jnp.array(0.0), max_iter=1)
        return weakref.ref(X)

    alive = run()
    gc.collect()
    assert alive() is None


def test_callback_stops_and_interruption_returns_what_there_is(monkeypatch):
    seen = []
    result = hoag(*problem(), jnp.zeros(8), jnp.array(0.0), callback=lambda k, lam, value: seen.append(k) or k == 2)
    assert seen == [0, 1, 2] and len(result.history["lam"]) == 4
    result = hoag(*problem(), jnp.zeros(8), jnp.array(0.0), callback=lambda k, lam, value: np.all(lam < np.inf))
    assert len(result.history["lam"]) == 2

    def interrupt(k, lam, value):
        if k == 1:
            raise KeyboardInterrupt

    result = hoag(*problem(), jnp.zeros(8), jnp.array(0.0), callback=interrupt)
    assert len(result.history["lam"]) == 3 and np.isfinite(result.outer_value)


def test_time_is_that_of_the_descent_without_compilation():
    start = time.perf_counter()
    result = hoag(*problem(), jnp.zeros(8), jnp.array(0.0), max_iter=3)
    assert 0 < result.history["time"][-1] < (time.perf_counter() - start)


def test_progress_is_silent_when_off(capsys):
    hoag(*problem(), jnp.zeros(8), jnp.array(0.0), max_iter=1)
    assert capsys.readouterr() == ("", "")
    hoag(*problem(), jnp.zeros(8), jnp.array(0.0), max_iter=1, progress=True)
    assert "hoag" in capsys.readouterr().err


def test_results_go_to_files_and_back(tmp_path):
    result = hoag(*problem(), {"w": jnp.zeros(8)}["w"], jnp.array(0.0), max_iter=2)
    result.save(tmp_path / "result.npz")
    for copy in (HoagResult.load(tmp_path / "result.npz"), pickle.loads(pickle.dumps(result))):
        np.testing.assert_array_equal(copy.x, result.x)
        assert copy.lam == result.lam and copy.outer_value == result.outer_value
        assert all((copy.history[name] == result.history[name]).all() or name == "hypergrad" for name in result.history)
    content = (tmp_path / "result.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="short.npz"):
        HoagResult.load(tmp_path / "short.npz")


BAD = {
    "max_iter": ({"max_iter": 0}, "max_iter: expected an integer >= 1"),
    "bounds": ({"bounds": (1.0, 1.0)}, "bounds: expected the first to be the smaller"),
    "schedule": ({"tol_schedule": "linear"}, "tol_schedule: expected one of 'exponential'"),
    "step": ({"step": "bold"}, "step: expected one of 'safe', 'paper'"),
    "init": ({"tol_init": 0.0}, "tol_init: expected a number > 0"),
    "decay": ({"tol_decay": 2.0}, "tol_decay: expected a number"),
    "backward": ({"backward": "exact"}, "backward: expected one of 'shine'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        hoag(*problem(), jnp.zeros(8), jnp.array(0.0), **options)


def test_bad_problems_are_refused():
    inner, outer = problem()
    for arguments, message in (
        ((inner, outer, jnp.full(8, np.nan), jnp.array(0.0)), "x0: expected finite"),
        ((inner, outer, jnp.zeros(8), jnp.array(0)), "lam0: expected float32 or float64"),
        ((lambda w, lam: w, outer, jnp.zeros(8), jnp.array(0.0)), "inner: expected a function that returns one real"),
        ((inner, lambda w, lam: w, jnp.zeros(8), jnp.array(0.0)), "outer: expected a function that returns one real"),
    ):
        with pytest.raises(ValueError, match=message):
            hoag(*arguments)
    with pytest.raises(FloatingPointError, match="check the scale of the data and lam0"):
        hoag(inner, lambda w, lam: jnp.sum(w) * jnp.nan, jnp.zeros(8), jnp.array(0.0))
    with pytest.raises(ValueError, match="n: expected an integer >= 1"):
        grid_search(inner, outer, jnp.zeros(8), n=0)
    with pytest.raises(ValueError, match="key: expected an integer seed"):
        random_search(inner, outer, jnp.zeros(8), key=-1)
