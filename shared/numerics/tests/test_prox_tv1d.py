"""Tests of prox_tv1d: optimality, derivatives, missing samples, both XLA forms and the host kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.optimize import lsq_linear

from gyri.numerics import host, prox_tv1d
from gyri.numerics.testing import check_jit, check_no_recompilation, check_vmap

METHODS = ("auto", "scan", "parallel")


def by_dual(x, lam, weight=None):
    """The prox by its dual, a box-constrained least-squares problem, with SciPy; edges of lam 0 cut the signal."""
    n = x.size
    lam, weight = np.broadcast_to(lam, n - 1), np.ones(n) if weight is None else weight
    cuts = np.flatnonzero(lam == 0) + 1
    if cuts.size:
        first = cuts[0]
        rest = by_dual(x[first:], lam[first:], weight[first:])
        return np.concatenate([by_dual(x[:first], lam[: first - 1], weight[:first]), rest])
    if n == 1:
        return x
    difference = np.diff(np.eye(n), axis=0)
    matrix = difference.T / np.sqrt(weight)[:, None]
    v = lsq_linear(matrix, np.sqrt(weight) * x, (-lam, lam), method="bvls", tol=1e-15, max_iter=5000).x
    return x - difference.T @ v / weight


def kkt_residual(u, x, lam, weight=None):
    """Largest violation of the optimality conditions: |v| <= lam, and v = -lam sign(jump) at jumps, v = 0 at last."""
    v = np.cumsum((x - u) if weight is None else weight * (x - u), axis=-1)
    jump = np.diff(u, axis=-1)
    inside = np.maximum(np.abs(v[..., :-1]) - lam, 0)
    at_jumps = np.where(jump != 0, np.abs(v[..., :-1] + lam * np.sign(jump)), 0)
    return max(inside.max(), at_jumps.max(), np.abs(v[..., -1]).max())


def signals(kind, rng, shape):
    x = rng.standard_normal(shape)
    n = shape[-1]
    match kind:
        case "noise":
            return x
        case "walk":
            return np.cumsum(x, -1)
        case "steps":
            return 0.3 * x + np.cumsum(2 * rng.standard_normal(shape) * (rng.random(shape) < 0.1), -1)
        case "ramp":
            return np.broadcast_to(np.arange(n) ** 1.5, shape).copy()
        case "heavy":
            return rng.standard_t(1.0, shape)
        case "ties":
            return np.rint(x)
        case "offset":
            return x + 1e6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["noise", "walk", "steps", "ramp", "heavy", "ties"])
def test_prox_equals_the_box_constrained_dual(x64, kind, method):
    rng = np.random.default_rng(len(kind))
    x = signals(kind, rng, (3, 30))
    edges = rng.exponential(1.0, (3, 29)) * (rng.random((3, 29)) < 0.9)
    weight = rng.exponential(1.0, (3, 30)) + 0.1
    for lam, w in ((0.7, None), (edges, None), (0.7, weight), (edges, weight)):
        u = np.asarray(prox_tv1d(x, lam, sample_weight=w, method=method))
        rows = zip(x, np.broadcast_to(lam, (3, 29)), [None] * 3 if w is None else w, strict=True)
        expected = np.stack([by_dual(*row) for row in rows])
        np.testing.assert_allclose(u, expected, atol=1e-10 * max(1, np.abs(x).max()), rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_prox_of_200_samples_equals_the_box_constrained_dual(x64, method):
    x = signals("walk", np.random.default_rng(1), (200,))
    np.testing.assert_allclose(prox_tv1d(x, 3.0, method=method), by_dual(x, 3.0), atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["noise", "walk", "steps", "offset"])
def test_long_signals_meet_the_optimality_conditions(x64, kind, method):
    x = signals(kind, np.random.default_rng(2), (100_000 if method != "parallel" else 5_000,))
    u = np.asarray(prox_tv1d(x, 2.0, method=method))
    assert kkt_residual(u, x, 2.0) <= 1e-9 * (1e3 if kind == "offset" else 1)


# Long signals in logarithmic depth take seconds to compile: they are left to the other two.
@pytest.mark.parametrize(
    ("method", "n"), [*((method, 200) for method in METHODS), ("auto", 100_000), ("scan", 100_000)]
)
def test_single_precision(n, method):
    x = signals("steps", np.random.default_rng(3), (n,)).astype(np.float32)
    u = np.asarray(prox_tv1d(x, 1.0, method=method))
    assert u.dtype == np.float32
    with jax.enable_x64(True):
        exact = np.asarray(prox_tv1d(x.astype(np.float64), 1.0))
    np.testing.assert_allclose(u, exact, atol=1e-5 * np.abs(x).max(), rtol=0)


@given(st.integers(0, 2**32 - 1), st.integers(2, 24), st.sampled_from(METHODS[:2]))
@settings(max_examples=30, deadline=None)
def test_optimality_on_any_signal(seed, n, method):
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        n = 24  # one shape, one compilation: shorter signals are the first samples, cut off by an edge of lam 0
        x = signals(rng.choice(["noise", "walk", "steps", "ramp", "ties"]), rng, (n,)) * 10 ** rng.uniform(-3, 3)
        lam = rng.exponential(1.0, n - 1) * 10 ** rng.uniform(-3, 3) * (rng.random(n - 1) < 0.8)
        weight = rng.exponential(1.0, n) + 0.05
        u = np.asarray(prox_tv1d(x, lam, sample_weight=weight, method=method))
    assert kkt_residual(u, x, lam, weight) <= 1e-11 * (np.abs(x).sum() + lam.max())


@pytest.mark.parametrize("method", METHODS)
def test_limits_of_lam(x64, method):
    x = signals("walk", np.random.default_rng(4), (2, 50))
    np.testing.assert_array_equal(prox_tv1d(x, 0.0, method=method), x)
    lam_max = np.abs(np.cumsum(x - x.mean(1, keepdims=True), 1)).max(1, keepdims=True)
    np.testing.assert_allclose(prox_tv1d(x, lam_max, method=method), x.mean(1, keepdims=True) + 0 * x, atol=1e-12)
    assert np.ptp(prox_tv1d(x, 0.99 * lam_max, method=method), axis=1).min() > 0
    np.testing.assert_array_equal(prox_tv1d(np.array([3.0]), 1.0, method=method), [3.0])
    np.testing.assert_array_equal(prox_tv1d(np.full(5, 0.1), 1.0, method=method), np.full(5, 0.1))


@pytest.mark.parametrize("method", METHODS)
def test_an_edge_without_lam_cuts_the_signal(x64, method):
    x = signals("noise", np.random.default_rng(5), (20,))
    lam = np.ones(19)
    lam[7] = 0
    parts = [prox_tv1d(x[:8], 1.0, method=method), prox_tv1d(x[8:], 1.0, method=method)]
    np.testing.assert_allclose(prox_tv1d(x, lam, method=method), np.concatenate(parts), atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_scale_shift_and_reversal(x64, method):
    x = signals("steps", np.random.default_rng(6), (40,))
    u = np.asarray(prox_tv1d(x, 0.8, method=method))
    np.testing.assert_allclose(prox_tv1d(-3 * x + 5, 2.4, method=method), -3 * u + 5, atol=1e-12)
    np.testing.assert_allclose(prox_tv1d(x[::-1].copy(), 0.8, method=method), u[::-1], atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_missing_samples_are_left_out_and_interpolated(x64, method):
    rng = np.random.default_rng(7)
    x = signals("steps", rng, (3, 40))
    there = rng.random((3, 40)) < 0.6
    there[0, :4] = there[1, -5:] = False
    hidden = np.where(there, x, np.nan)
    u = np.asarray(prox_tv1d(hidden, 0.5, sample_weight=there, method=method))
    for row in range(3):
        kept = np.flatnonzero(there[row])
        expected = np.interp(np.arange(40), kept, by_dual(x[row, kept], 0.5))
        np.testing.assert_allclose(u[row], expected, atol=1e-10)
    np.testing.assert_array_equal(u, prox_tv1d(np.where(there, x, 1e6), 0.5, sample_weight=there, method=method))


@pytest.mark.parametrize("method", METHODS)
def test_a_gap_is_crossed_where_lam_is_smallest(x64, method):
    x = np.array([0.0, 0.0, np.nan, np.nan, 9.0, 9.0])
    lam = np.array([1.0, 3.0, 0.5, 2.0, 1.0])
    u = prox_tv1d(x, lam, sample_weight=np.isfinite(x), method=method)
    np.testing.assert_allclose(u, [0.25, 0.25, 0.25, 8.75, 8.75, 8.75])
    np.testing.assert_array_equal(prox_tv1d(x, lam, sample_weight=np.zeros(6), method=method), np.zeros(6))


def test_derivatives_are_those_of_finite_differences(x64):
    rng = np.random.default_rng(8)
    x, weight, edges = 3 * rng.standard_normal((2, 9)), rng.exponential(1, (2, 9)) + 0.2, rng.exponential(1, (2, 8))
    all_of_it = lambda x, lam, w: prox_tv1d(x, lam, sample_weight=w)
    check_grads(all_of_it, (x, edges, weight), order=2, modes=["fwd", "rev"], eps=1e-6, rtol=1e-6)
    check_grads(prox_tv1d, (x, np.float64(0.7)), order=1, modes=["fwd", "rev"], eps=1e-6, rtol=1e-6)
    there = np.array([0, 1, 1, 0, 0, 1, 0, 1, 0.0])
    missing = lambda x, lam: prox_tv1d(x, lam, sample_weight=there)
    check_grads(missing, (x, edges), order=1, modes=["fwd", "rev"], eps=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS[1:])
def test_derivatives_are_the_same_for_all_methods(x64, method):
    rng = np.random.default_rng(13)
    arguments = (3 * rng.standard_normal((2, 9)), rng.exponential(1, (2, 8)), rng.exponential(1, (2, 9)) + 0.2)
    prox = lambda x, lam, w, method: prox_tv1d(x, lam, sample_weight=w, method=method)
    ours, auto = (jax.jvp(lambda *a, m=m: prox(*a, m), arguments, arguments)[1] for m in (method, "auto"))
    np.testing.assert_allclose(ours, auto, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_jacobian_is_the_projector_onto_the_pieces(x64, method):
    x = signals("steps", np.random.default_rng(9), (25,))
    jacobian = np.asarray(jax.jacrev(lambda x: prox_tv1d(x, 0.9, method=method))(x))
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-12)
    np.testing.assert_allclose(jacobian @ jacobian, jacobian, atol=1e-12)
    # The paper's formula: L_S (L_S^T L_S)^-1 L_S^T, and in lam -L_S (L_S^T L_S)^-1 sign(z)_S.
    u = np.asarray(prox_tv1d(x, 0.9, method=method))
    jumps = np.flatnonzero(np.diff(u)) + 1
    basis = np.tril(np.ones((25, 25)))[:, np.r_[0, jumps]]
    inverse = np.linalg.inv(basis.T @ basis)
    np.testing.assert_allclose(jacobian, basis @ inverse @ basis.T, atol=1e-12)
    slope = jax.jacfwd(lambda lam: prox_tv1d(x, lam, method=method))(0.9)
    sign = np.r_[0, np.sign(np.diff(u)[jumps - 1])]
    np.testing.assert_allclose(slope, -basis @ inverse @ sign, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_do_not_cross_a_free_edge(x64, method):
    equal = jnp.array([1.0, 1.0, 2.0])
    np.testing.assert_array_equal(jax.jacobian(lambda x: prox_tv1d(x, 0.0, method=method))(equal), np.eye(3))
    edges = jnp.array([0.0, 1.0])  # the last two meet at the level of the first, to which nothing ties them
    jacobian = jax.jacobian(lambda x: prox_tv1d(x, edges, method=method))(jnp.array([2.0, 1.0, 3.0]))
    np.testing.assert_allclose(jacobian, [[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]])


@pytest.mark.parametrize("method", METHODS)
def test_jit_vmap_and_scan(x64, method):
    rng = np.random.default_rng(10)
    x = jnp.asarray(signals("steps", rng, (3, 2, 20)))
    lam = jnp.asarray(rng.exponential(1, (3, 2, 1)))
    prox = lambda x, lam: prox_tv1d(x, lam, method=method)
    check_jit(prox, x, lam, atol=1e-12)
    check_vmap(prox, x, lam, atol=1e-12)
    grid = jnp.array([0.1, 0.5])
    both = jax.vmap(jax.vmap(prox, (0, None)), (None, 0))(x[0], grid)
    np.testing.assert_allclose(both, jnp.stack([prox(x[0], value) for value in grid]), atol=1e-12)
    weighted = jax.vmap(lambda x, w: prox_tv1d(x, 0.3, sample_weight=w, method=method))
    w = rng.exponential(1, (3, 1, 20))
    np.testing.assert_allclose(weighted(x, w), prox_tv1d(x, 0.3, sample_weight=w, method=method), atol=1e-12)
    step = lambda u, _: (prox(u, 0.1), None)
    scanned = jax.lax.scan(step, x, None, length=3)[0]
    np.testing.assert_allclose(scanned, prox(prox(prox(x, 0.1), 0.1), 0.1), atol=1e-12)
    gradient = jax.vmap(jax.grad(lambda x, lam: jnp.sum(prox(x, lam) ** 2)), (0, 0))(x[0], lam[0, :, 0])
    one = jax.grad(lambda x: jnp.sum(prox(x, lam[0]) ** 2))(x[0])
    np.testing.assert_allclose(gradient, one, atol=1e-12)


def test_the_axis_of_time(x64):
    rng = np.random.default_rng(11)
    x, lam, weight = rng.standard_normal((2, 15, 3)), rng.exponential(1, (14, 1)), rng.exponential(1, (2, 15, 3)) + 0.1
    u = prox_tv1d(x, lam, sample_weight=weight, axis=1)
    swap = lambda a: np.swapaxes(a, -1, -2)
    np.testing.assert_allclose(u, swap(prox_tv1d(swap(x), swap(lam), sample_weight=swap(weight))), atol=1e-13)


def test_new_values_compile_nothing():
    x = np.random.default_rng(12).standard_normal((4, 16)).astype(np.float32)
    check_no_recompilation(prox_tv1d, (jnp.asarray(x), jnp.float32(0.5)), (jnp.asarray(2 * x), jnp.float32(0.7)))


def test_half_precision_and_integers():
    x = np.array([0, 1, 5, 6])
    np.testing.assert_array_equal(prox_tv1d(x, 1), [1, 1, 5, 5])
    assert prox_tv1d(x, 1).dtype == np.float32
    assert prox_tv1d(jnp.asarray(x, jnp.bfloat16), 1).dtype == jnp.bfloat16


BAD = [
    ({"x": np.zeros((3, 0)), "lam": 1.0}, "x: expected at least one entry"),
    ({"x": np.float32(1), "lam": 1.0}, "axis: expected an axis of x"),
    ({"x": np.array([1.0, np.nan]), "lam": 1.0}, "x: expected finite"),
    ({"x": np.ones(4), "lam": -1.0}, "lam: expected values >= 0, got -1"),
    ({"x": np.ones(4), "lam": np.inf}, "lam: expected finite"),
    ({"x": np.ones(4), "lam": np.ones(4)}, r"lam: expected a number or .* \(1\), one a signal, or \(3\), one an edge"),
    ({"x": np.ones((5, 4)), "lam": np.ones(5)}, r"lam: .* \(5, 1\), one a signal, or \(5, 3\), one an edge, got"),
    ({"x": np.ones(4), "lam": 1.0, "sample_weight": np.ones(3)}, "sample_weight: expected a shape that broadcasts to"),
    ({"x": np.ones(4), "lam": 1.0, "sample_weight": -np.ones(4)}, "sample_weight: expected values >= 0"),
    ({"x": np.array([np.nan, 1.0]), "lam": 1.0, "sample_weight": np.ones(2)}, "x: expected finite"),
    ({"x": np.ones(4), "lam": 1.0, "axis": 1}, "axis: expected an axis of x, got 1"),
    ({"x": np.ones(4), "lam": 1.0, "method": "taut"}, "method: expected one of 'auto', 'scan', 'parallel', got 'taut'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        prox_tv1d(**arguments)


@pytest.mark.skipif(not host.available(), reason="numba functions cannot run inside XLA here")
def test_cost_is_linear_in_time_even_on_a_ramp(x64):
    from gyri.numerics.prox.kernel import _by_levels

    # The quick pass gives up on a long ramp: its answer then comes from the solver of linear cost.
    x = np.arange(20_000.0)[None] ** 1.5
    out = np.empty_like(x)
    assert not _by_levels(x[0], 1e6, None, out[0])
    u = np.asarray(prox_tv1d(x, 1e6))
    assert kkt_residual(u, x, 1e6) <= 1e-9 * 1e6
