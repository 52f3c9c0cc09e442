"""Tests of gyri.tv.training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gyri.numerics.testing import check_no_recompilation
from gyri.tv import apply_network, init_network, objective, simulate, solve, training
from gyri.tv.networks import NETWORKS, constants_of
from gyri.tv.training import Data, Stage, mean_objective, stages, train

LAM = 0.1


@pytest.fixture(scope="module")
def signals():
    """100 signals to train on, 100 to test on, in double precision."""
    with jax.enable_x64(True):
        x, _, _, A = simulate(42, 200)
        return x[:100], x[100:], A


def data_of(x, A, lam=LAM):
    return Data(x, jnp.full((len(x), 1), lam, x.dtype), constants_of(A))


def test_stages_of_the_schedules():
    assert stages("recursive", 3, 30) == [Stage(1, 1, 10), Stage(2, 2, 10), Stage(3, 3, 10)]
    assert stages("greedy", 3, 31) == [Stage(3, 1, 10), Stage(3, 2, 10), Stage(3, 3, 10)]
    assert stages("one_shot", 3, 30) == [Stage(3, 3, 30)]
    assert stages("recursive", 3, 2) == [Stage(layer, layer, 1) for layer in (1, 2, 3)]
    assert stages("recursive", 5, 40, first=4) == [Stage(4, 4, 20), Stage(5, 5, 20)]


def test_loss_is_the_mean_objective(x64, signals):
    x, _, A = signals
    params = init_network(A, 4)
    for depth in (0, 2, 4):
        loss = mean_objective(params, data_of(x, A), jnp.int32(depth), jnp.int32(4), network="lpgd_taut", n_inner=1)
        expected = objective(apply_network(params, x, A, LAM, n_layers=depth), x, A, LAM).mean()
        assert float(loss) == pytest.approx(float(expected), rel=1e-12)


def test_layers_that_are_not_trained_have_no_gradient(x64, signals):
    x, _, A = signals
    gradient = jax.grad(mean_objective)(
        init_network(A, 4), data_of(x, A), jnp.int32(4), jnp.int32(2), network="lpgd_taut", n_inner=1
    )
    for leaf in gradient["layers"].values():
        assert (leaf[2:] == 0).all()
        assert (jnp.abs(leaf[:2]).max((1, 2)) > 0).all()


def test_a_deep_network_beats_the_solvers_at_its_depth(x64, signals):
    x, x_test, A = signals
    trained = train(init_network(A, 5), data_of(x, A), stages("recursive", 5, 200), network="lpgd_taut", n_inner=1)
    best = solve(x_test, A, LAM, max_iter=20_000, tol=1e-11, restart=True).objective
    suboptimality = float((objective(apply_network(trained.params, x_test, A, LAM), x_test, A, LAM) - best).mean())
    pgd, apgd = (
        float((solve(x_test, A, LAM, solver=solver, max_iter=5, tol=0).objective - best).mean())
        for solver in ("pgd", "apgd")
    )
    assert 0 < suboptimality <= 0.3 * pgd
    assert suboptimality <= 0.4 * apgd


@pytest.mark.parametrize("network", NETWORKS)
def test_training_descends(x64, signals, network):
    x, _, A = signals
    if network.startswith("chambolle"):
        x, _, _, A = simulate(0, 100, k=6, m=8)
    params = init_network(A, 2, network, n_inner=5, inner="global", learn_threshold=True)
    trained = train(params, data_of(x, A), stages("recursive", 2, 8), network=network, n_inner=5)
    for depth in (1, 2):
        loss = trained.loss[trained.n_layers == depth]
        assert (np.diff(loss) < 0).all()
    u = apply_network(trained.params, x, A, LAM, network=network)
    assert float(objective(u, x, A, LAM).mean()) == pytest.approx(trained.loss[-1], rel=1e-10)
    assert trained.loss[-1] < trained.loss[0]
    assert not trained.interrupted


def test_thresholds_stay_positive(x64, signals):
    x, _, A = signals
    trained = train(
        init_network(A, 3, learn_threshold=True), data_of(x, A, 0.8), stages("recursive", 3, 60), network="lpgd_taut",
        n_inner=1,
    )  # fmt: skip
    mu = trained.params["layers"]["mu"]
    assert (mu >= 0).all()
    assert np.ptp(mu) > 0


@pytest.mark.parametrize("schedule", ["recursive", "one_shot", "greedy"])
def test_minibatches_descend(x64, signals, schedule):
    x, _, A = signals
    trained = train(
        init_network(A, 2), data_of(x, A), stages(schedule, 2, 20), network="lpgd_taut", n_inner=1,
        optimizer=optax.adam(3e-3), batch_size=20, key=jax.random.key(0),
    )  # fmt: skip
    start, end = (
        float(objective(apply_network(p, x, A, LAM), x, A, LAM).mean()) for p in (init_network(A, 2), trained.params)
    )
    assert end < start - 0.3 * (start - 0.22)
    assert trained.loss.size == 20


def test_one_compilation_serves_all_depths(x64, signals):
    x, _, A = signals
    data, params = data_of(x, A), init_network(A, 6)
    call = lambda depth: train(params, data, [Stage(depth, depth, 5)], network="lpgd_taut", n_inner=1).loss
    check_no_recompilation(call, (2,), (5,), jit=False)


def test_long_stages_are_cut_for_the_host(x64, signals, monkeypatch):
    x, _, A = signals
    monkeypatch.setattr(training, "_STEPS_AT_ONCE", 4)
    trained = train(init_network(A, 1), data_of(x, A), [Stage(1, 1, 10)], network="lpgd_taut", n_inner=1)
    assert trained.loss.size == 11
    assert (np.diff(trained.loss) < 0).all()


def test_interrupt_keeps_the_last_good_parameters(x64, signals, monkeypatch):
    x, _, A = signals
    plan = stages("recursive", 3, 12)
    whole = train(init_network(A, 3), data_of(x, A), plan[:2], network="lpgd_taut", n_inner=1)
    descend, calls = training._descend, []

    def interrupted(*args, **kwargs):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return descend(*args, **kwargs)

    monkeypatch.setattr(training, "_descend", interrupted)
    part = train(init_network(A, 3), data_of(x, A), plan, network="lpgd_taut", n_inner=1)
    assert part.interrupted
    np.testing.assert_array_equal(part.loss, whole.loss)
    jax.tree.map(np.testing.assert_array_equal, part.params, whole.params)
