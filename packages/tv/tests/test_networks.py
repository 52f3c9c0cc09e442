"""Tests of gyri.tv.networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gyri.numerics import linalg
from gyri.numerics.testing import check_jit, check_no_recompilation, check_vmap
from gyri.tv import apply_network, init_network, objective, prox_tv1d, simulate, solve
from gyri.tv.networks import NETWORKS, constants_of, inner_prox, untrained_inner

SOLVER = {
    "lpgd_taut": "pgd",
    "lista": "synthesis_pgd",
    "lista_full": "synthesis_pgd",
    "lista_step": "synthesis_pgd",
    "condat_vu": "condat_vu",
    "condat_vu_step": "condat_vu",
    "chambolle": "dual_pgd",
    "chambolle_full": "dual_pgd",
    "chambolle_step": "dual_pgd",
}


@pytest.mark.parametrize(("network", "learn_threshold"), [("lpgd_taut", True), *((name, False) for name in SOLVER)])
def test_untrained_layers_are_iterations(x64, network, learn_threshold):
    x, _, _, A = simulate(0, 10, k=8, m=11)
    params = init_network(A, 6, network, learn_threshold=learn_threshold)
    for depth in (0, 1, 4, 6) if network == "lpgd_taut" else (0, 1, 5):
        u = apply_network(params, x, A, 0.2, network=network, n_layers=depth)
        iterations = {"max_iter": max(depth, 1), "tol": 0, "solver": SOLVER[network]}
        expected = solve(x, A, 0.2, **iterations).u if depth else x @ np.linalg.pinv(A).T
        np.testing.assert_allclose(u, expected, rtol=1e-12, atol=1e-12)


def test_untrained_layers_with_fewer_observations(x64):
    x, _, _, A = simulate(1, 10)
    u = apply_network(init_network(A, 20), x, A, 0.1)
    np.testing.assert_allclose(u, solve(x, A, 0.1, solver="pgd", max_iter=20, tol=0).u, rtol=1e-12, atol=1e-12)


def test_untrained_subgradient_network_stays(x64):
    x, _, _, A = simulate(0, 4)
    u = apply_network(init_network(A, 3, "subgradient"), x, A, 0.1, network="subgradient")
    np.testing.assert_allclose(u, x @ np.linalg.pinv(A).T, atol=1e-8)


def test_inner_network_converges_to_the_prox(x64):
    y = np.random.default_rng(0).standard_normal((5, 8))
    exact = prox_tv1d(jnp.asarray(y), 0.4)
    c, y = constants_of(jnp.eye(8)), jnp.asarray(y)
    errors = [np.abs(inner_prox(untrained_inner(c, n), y, jnp.array(0.4)) - exact).max() for n in (10, 200, 4000)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-9


@pytest.mark.parametrize("inner", ["none", "global", "per_layer"])
def test_inner_weights_start_as_the_fixed_ones(x64, inner):
    x, _, _, A = simulate(0, 5)
    params = init_network(A, 3, "lpgd_lista", n_inner=30, inner=inner, learn_threshold=True)
    fixed = init_network(A, 3, "lpgd_lista")
    u, v = (apply_network(p, x, A, 0.1, network="lpgd_lista", n_inner=30) for p in (params, fixed))
    np.testing.assert_allclose(u, v, rtol=1e-12, atol=1e-13)
    shapes = jax.tree.map(jnp.shape, params)
    assert ("inner" in params) == (inner == "global")
    assert shapes.get("inner", {}).get("V1", (30, 8, 8)) == (30, 8, 8)
    assert shapes["layers"].get("V1", (3, 30, 8, 8)) == (3, 30, 8, 8)


def test_thresholds_are_parameters_on_demand(x64):
    A = np.eye(4)
    assert set(init_network(A, 2)["layers"]) == {"Wu", "Wx"}
    learned = init_network(A, 2, learn_threshold=True)["layers"]
    assert set(learned) == {"Wu", "Wx", "mu"}
    x = np.array([0.0, 1.0, 0.0, 5.0])
    learned["mu"] = jnp.array([-3.0, -3.0])  # negative ones count as 0: the prox is the identity
    np.testing.assert_allclose(apply_network({"layers": learned}, x, A, 0.5), x, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_match_finite_differences(x64, network):
    x, _, _, A = simulate(3, 4, k=5, m=6)
    params = init_network(A, 2, network, n_inner=4, inner="per_layer", learn_threshold=True)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda w: w * (1 + 0.05 * rng.standard_normal(w.shape)), params)
    if network == "condat_vu_step":
        params["layers"]["sigma"] = jnp.array([0.8, 1.2])  # inside its bounds
    loss = lambda params: objective(apply_network(params, x, A, 0.1, network=network), x, A, 0.1).mean()
    check_grads(loss, (params,), order=1, modes=["rev"], eps=1e-7, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("network", ["lpgd_taut", "lpgd_lista", "lista", "condat_vu"])
def test_same_under_jit_and_vmap(dtype, network):
    x, _, _, A = simulate(0, 4)
    params = init_network(A, 3, network, n_inner=5, inner="global")
    function = lambda x: apply_network(params, x, A, 0.1, network=network)
    assert function(x).dtype == dtype
    assert function(x[0]).shape == (8,)
    check_jit(function, x, atol=1e-5)
    check_vmap(function, x, atol=1e-5)


def test_a_penalty_for_each_signal(x64):
    x, _, _, A = simulate(0, 3)
    params, lam = init_network(A, 4), np.array([0.1, 0.3, 0.6])
    each = [apply_network(params, row, A, one) for row, one in zip(x, lam)]
    np.testing.assert_allclose(apply_network(params, x, A, lam), each, rtol=1e-12, atol=1e-13)


def test_operators(x64):
    kernel = linalg.convolution(np.array([1.0, 0.5]), 7)
    matrix = kernel.rmatvec(jnp.eye(8))
    x = np.random.default_rng(0).standard_normal((3, 8))
    u = apply_network(init_network(kernel, 3), x, kernel, 0.3)
    np.testing.assert_allclose(u, apply_network(init_network(matrix, 3), x, matrix, 0.3), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(apply_network(init_network(np.eye(8), 1), x, None, 0.3), prox_tv1d(x, 0.3), atol=1e-12)


def test_no_recompilation_for_other_values(x64):
    x, _, _, A = simulate(0, 4)
    params = init_network(A, 6)
    call = lambda x, lam, depth: apply_network(params, x, A, lam, n_layers=depth)
    check_no_recompilation(call, (x, 0.1, 2), (2 * x, 0.3, 4), jit=False)


def good():
    A = np.random.default_rng(0).standard_normal((5, 8))
    return A, init_network(A, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"A": None}, "A: expected an array"),
        ({"A": np.ones(4)}, "A: expected 2 axes"),
        ({"A": np.full((3, 4), np.nan)}, "A: expected finite"),
        ({"n_layers": 0}, "n_layers: expected an integer >= 1"),
        ({"network": "lista_coupled"}, "network: expected one of 'lpgd_taut'"),
        ({"n_inner": 0}, "n_inner: expected an integer >= 1"),
        ({"inner": "shared"}, "inner: expected one of 'none', 'global', 'per_layer'"),
        ({"network": "chambolle"}, "A: expected rank 8 for network 'chambolle', got 5"),
    ],
)
def test_bad_input_of_init_network(arguments, message):
    with pytest.raises(ValueError, match=message):
        init_network(**({"A": good()[0], "n_layers": 3} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.zeros((2, 4))}, r"A: expected shape \(4, k\)"),
        ({"x": np.full(5, np.inf)}, "x: expected finite"),
        ({"x": np.zeros((2, 2, 5))}, "x: expected 1 or 2 axes"),
        ({"lam": -0.1}, "lam: expected values >= 0"),
        ({"n_layers": 4}, "n_layers: expected at most the 3 layers"),
        ({"n_layers": -1}, "n_layers: expected an integer >= 0"),
        ({"n_inner": 0}, "n_inner: expected an integer >= 1"),
        ({"network": "LISTA"}, "network: expected one of"),
        ({"network": "lista"}, "params: expected layers of 'lista'"),
        ({"params": {}}, "params: expected layers of 'lpgd_taut'"),
        (
            {"params": {"layers": {"Wu": np.zeros((3, 8, 7)), "Wx": np.zeros((3, 5, 8))}}},
            "params: expected Wu of shape",
        ),
    ],
)
def test_bad_input_of_apply_network(arguments, message):
    A, params = good()
    with pytest.raises(ValueError, match=message):
        apply_network(**({"params": params, "x": np.ones((2, 5)), "A": A, "lam": 0.1} | arguments))
