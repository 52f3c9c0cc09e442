"""Convolutional sparse coding against SciPy, its optimality conditions and finite differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.signal import correlate, fftconvolve

from gyri.numerics import csc
from gyri.numerics.testing import check_jit, check_lowers, check_no_recompilation, check_vmap

N, P, K, L, T = 2, 3, 4, 7, 60


def random_case(seed=0, n=N, p=P, k=K, kernel=(L,), times=(T,)):
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(k, p, *kernel))
    atoms /= np.sqrt((atoms**2).sum(tuple(range(1, atoms.ndim)), keepdims=True))
    positions = [t - m + 1 for t, m in zip(times, kernel)]
    return atoms, rng.normal(size=(n, k, *positions)), rng.normal(size=(n, p, *times))


def sparse_signal(seed=0, n=1, p=1, k=3, m=16, times=500, density=0.01, noise=0.1):
    """Smooth atoms at sparse times in noise: neighbouring shifts are nearly collinear, as in real recordings."""
    rng = np.random.default_rng(seed)
    t = np.arange(m) / m
    waves = [np.sin(2 * np.pi * (j + 1) * t + 0.3 * j) * np.hanning(m) ** (0.5 + 0.5 * (j % 2)) for j in range(k)]
    atoms = np.stack(waves)[:, None] * rng.normal(size=(k, p, 1))
    atoms /= np.sqrt((atoms**2).sum((1, 2), keepdims=True))
    codes = (rng.random((n, k, times - m + 1)) < density) * rng.uniform(1, 3, (n, k, times - m + 1))
    return full_convolution(atoms, codes) + noise * rng.normal(size=(n, p, times)), atoms, codes


def full_convolution(atoms, codes):
    return np.stack(
        [
            np.stack([sum(fftconvolve(z[k], atoms[k, p]) for k in range(len(atoms))) for p in range(atoms.shape[1])])
            for z in codes
        ]
    )


def valid_correlation(atoms, signal):
    return np.stack(
        [np.stack([sum(correlate(x[p], d[p], "valid") for p in range(len(x))) for d in atoms]) for x in signal]
    )


def violation(atoms, signal, codes, lam, positive=True, mask=None):
    """Optimality conditions by NumPy, relative to the level."""
    residual = signal - full_convolution(atoms, codes)
    beta = valid_correlation(atoms, residual if mask is None else np.where(mask, residual, 0))
    lam = np.broadcast_to(np.asarray(lam, float).reshape(1, -1, *[1] * (codes.ndim - 2)), codes.shape)
    outside = np.maximum((beta if positive else np.abs(beta)) - lam, 0)
    return (np.where(codes != 0, np.abs(beta - lam * np.sign(codes)), outside) / lam).max()


def value(atoms, signal, codes, lam, mask=True):
    return 0.5 * (np.where(mask, signal - full_convolution(atoms, codes), 0) ** 2).sum() + lam * np.abs(codes).sum()


# --- operators --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kernel", "times"),
    [
        ("direct", (L,), (T,)),
        ("fft", (L,), (T,)),
        ("auto", (L,), (T,)),
        ("fft", (L,), (1000,)),  # in blocks
        ("fft", (100,), (3001,)),
        ("direct", (3, 5), (11, 14)),
        ("fft", (3, 5), (11, 14)),
        ("fft", (T,), (T,)),
        ("direct", (1,), (5,)),
    ],
)
def test_operators_are_those_of_scipy(dtype, method, kernel, times):
    atoms, codes, signal = random_case(kernel=kernel, times=times)
    tol = 1e-12 if dtype == np.float64 else 5e-6
    A, Z, X = (jnp.asarray(x, dtype) for x in (atoms, codes, signal))
    synthesised = csc.conv_synthesis(A, Z, method=method)
    correlated = csc.conv_correlate(A, X, method=method)
    assert synthesised.dtype == correlated.dtype == dtype
    for found, expected in (
        (synthesised, full_convolution(atoms, codes)),
        (correlated, valid_correlation(atoms, signal)),
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=tol * max(1, np.abs(expected).max()))


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 7), st.integers(0, 99)
)
def test_the_operators_are_adjoint(n, p, k, m, longer, seed):
    with jax.enable_x64(True):
        atoms, codes, signal = random_case(seed, n, p, k, (m,), (m + longer,))
        for method in ("direct", "fft"):
            one = jnp.sum(csc.conv_synthesis(atoms, codes, method=method) * signal)
            other = jnp.sum(csc.conv_correlate(atoms, signal, method=method) * codes)
            assert abs(one - other) <= 1e-12 * np.linalg.norm(codes) * np.linalg.norm(signal)


@pytest.mark.parametrize("method", ["direct", "fft"])
def test_the_derivatives_of_the_operators_are_their_adjoints(x64, method):
    atoms, codes, signal = random_case(times=(20,))
    pulled = jax.grad(lambda z: jnp.sum(csc.conv_synthesis(atoms, z, method=method) * signal))(jnp.asarray(codes))
    np.testing.assert_allclose(pulled, valid_correlation(atoms, signal), atol=1e-12)
    pulled = jax.grad(lambda x: jnp.sum(csc.conv_correlate(atoms, x, method=method) * codes))(jnp.asarray(signal))
    np.testing.assert_allclose(pulled, full_convolution(atoms, codes), atol=1e-12)
    move = np.random.default_rng(5).normal(size=atoms.shape)  # linear in the atoms
    pulled = jax.grad(lambda d: jnp.sum(csc.conv_synthesis(d, codes, method=method) * signal))(jnp.asarray(atoms))
    np.testing.assert_allclose(jnp.sum(pulled * move), (full_convolution(move, codes) * signal).sum(), rtol=1e-10)


@pytest.mark.parametrize("times", [25, 1000])
def test_gram_and_statistics_follow_their_definitions(x64, times):
    atoms, codes, signal = random_case(times=(times,))
    G = np.zeros((K, K, 2 * L - 1))
    C = np.zeros((K, K, 2 * L - 1))
    E = np.zeros((K, P, L))
    for k, l, tau in itertools.product(range(K), range(K), range(1 - L, L)):
        shifted = {t: t + tau for t in range(L) if 0 <= t + tau < L}
        G[k, l, tau + L - 1] = sum(atoms[k, :, s] @ atoms[l, :, t] for t, s in shifted.items())
        n_positions = codes.shape[-1]
        shifted = {t: t + tau for t in range(n_positions) if 0 <= t + tau < n_positions}
        C[k, l, tau + L - 1] = (codes[:, k, list(shifted)] * codes[:, l, list(shifted.values())]).sum()
    for tau in range(L):
        E[..., tau] = np.einsum("nkt,npt->kp", codes, signal[..., tau : tau + codes.shape[-1]])
    np.testing.assert_allclose(csc.atom_gram(atoms), G, atol=1e-12)
    found = csc.code_statistics(codes, signal, L)
    np.testing.assert_allclose(found[0], C, rtol=0, atol=1e-12 * np.abs(C).max())
    np.testing.assert_allclose(found[1], E, rtol=0, atol=1e-12 * np.abs(E).max())


@pytest.mark.parametrize("positive", [True, False])
def test_lambda_max_is_where_codes_vanish(x64, positive):
    signal, atoms, _ = sparse_signal(n=2, p=2)
    each = valid_correlation(atoms, signal)
    each = np.moveaxis(each if positive else np.abs(each), 1, 0).reshape(3, -1)
    found = csc.csc_lambda_max(atoms, signal, positive=positive, per_atom=True)
    np.testing.assert_allclose(found, each.max(1), rtol=1e-12)
    np.testing.assert_allclose(
        csc.csc_lambda_max(atoms, signal, positive=positive, quantile=0.9).item(),
        np.quantile(each, 0.9, axis=1).max(),
        rtol=1e-12,
    )
    largest = csc.csc_lambda_max(atoms, signal, positive=positive)
    assert not csc.csc_solve(signal, atoms, largest, positive=positive).codes.any()
    assert csc.csc_solve(signal, atoms, 0.99 * largest, positive=positive, tol=1e-6).codes.any()
    assert csc.csc_lambda_max(atoms, np.zeros_like(signal)) == 0


def test_the_objective_is_a_sum_and_leaves_masked_samples_out(x64):
    signal, atoms, codes = sparse_signal(n=2, p=2)
    mask = np.random.default_rng(0).random((1, 1, signal.shape[-1])) > 0.1
    got = csc.csc_objective(signal, atoms, codes, 0.3)
    np.testing.assert_allclose(got, value(atoms, signal, codes, 0.3), rtol=1e-12)
    lam = np.array([0.1, 0.2, 0.3])
    damaged = np.where(mask, signal, np.nan)
    got = csc.csc_objective(damaged, atoms, codes, lam, mask=mask)
    expected = value(atoms, signal, codes, 0, mask) + (lam[:, None] * codes).sum()
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    gradient = jax.grad(csc.csc_objective, (0, 1, 2))(jnp.asarray(damaged), jnp.asarray(atoms), codes, lam, mask=mask)
    assert all(jnp.isfinite(g).all() for g in gradient)
    residual = np.where(mask, signal - full_convolution(atoms, codes), 0)
    np.testing.assert_allclose(gradient[0], residual, atol=1e-12)


# --- sparse codes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["lgcd", "fista"])
def test_the_optimum_is_that_of_a_general_minimiser(x64, solver):
    signal, atoms, codes = sparse_signal(n=2, p=2, times=70, m=8)
    lam = 0.1 * float(csc.csc_lambda_max(atoms, signal))

    def fun(z):
        residual = full_convolution(atoms, z.reshape(codes.shape)) - signal
        return 0.5 * (residual**2).sum() + lam * z.sum(), valid_correlation(atoms, residual).ravel() + lam

    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 50}
    oracle = minimize(fun, np.zeros(codes.size), jac=True, bounds=[(0, None)] * codes.size, options=options)
    result = csc.csc_solve(signal, atoms, lam, tol=1e-6, solver=solver)
    assert result.converged
    np.testing.assert_allclose(result.objective, oracle.fun, rtol=1e-8)
    np.testing.assert_allclose(result.objective, value(atoms, signal, np.asarray(result.codes), lam), rtol=1e-12)


@pytest.mark.parametrize(
    ("positive", "options"),
    [(True, {}), (False, {}), (False, {"polish": False}), (True, {"solver": "fista"})],
)
def test_the_optimality_conditions_hold_to_the_tolerance(x64, positive, options):
    signal, atoms, _ = sparse_signal(n=2, p=3)
    lam = 0.1 * float(csc.csc_lambda_max(atoms, signal, positive=positive)) * np.array([1.0, 0.8, 1.3])
    result = csc.csc_solve(signal, atoms, lam, tol=1e-6, positive=positive, max_iter=50_000, **options)
    codes = np.asarray(result.codes)
    assert result.converged
    assert violation(atoms, signal, codes, lam, positive) <= 1.01e-6
    assert (codes >= 0).all() == positive
    # The duality gap bounds the distance to the optimum, whatever the way there.
    residual = signal - full_convolution(atoms, codes)
    beta = valid_correlation(atoms, residual)
    scale = min(1, (lam[:, None] / (beta if positive else np.abs(beta)).max((0, 2))[:, None]).min())
    dual = scale * residual
    primal = 0.5 * (residual**2).sum() + (lam[:, None] * np.abs(codes)).sum()
    assert primal - ((dual * signal).sum() - 0.5 * (dual**2).sum()) <= 1e-5 * primal


def test_float32_gets_as_far_as_its_precision_allows():
    signal, atoms, _ = sparse_signal(times=2000)
    lam = 0.1 * float(csc.csc_lambda_max(atoms.astype(np.float32), signal.astype(np.float32)))
    result = csc.csc_solve(signal.astype(np.float32), atoms.astype(np.float32), lam, tol=1e-4)
    assert result.codes.dtype == np.float32
    with jax.enable_x64(True):
        exact = csc.csc_solve(signal, atoms, lam, tol=1e-8)
    np.testing.assert_allclose(result.objective, exact.objective, rtol=1e-4)
    assert violation(atoms, signal, np.asarray(result.codes, float), lam) <= 1e-3


def test_a_support_too_crowded_for_the_exact_solution_is_left_to_the_sweeps(x64):
    signal, atoms, _ = sparse_signal(k=6, m=60, times=400, density=0.3)  # far more codes than a chunk within one atom
    lam = 0.01 * float(csc.csc_lambda_max(atoms, signal))
    run = {"tol": 1e-6, "max_iter": 200}
    result = csc.csc_solve(signal, atoms, lam, **run)
    assert not result.converged
    np.testing.assert_allclose(result.kkt, violation(atoms, signal, np.asarray(result.codes), lam), rtol=1e-6)
    np.testing.assert_allclose(
        result.objective, csc.csc_solve(signal, atoms, lam, polish=False, **run).objective, rtol=0.02
    )
    best = csc.csc_solve(signal, atoms, lam, solver="fista", tol=1e-3)
    assert best.objective <= result.objective <= 1.1 * best.objective


def test_sweeps_never_raise_the_objective(dtype):
    signal, atoms, _ = sparse_signal(p=2)
    signal, atoms = jnp.asarray(signal, dtype), jnp.asarray(atoms, dtype)
    lam = 0.05 * csc.csc_lambda_max(atoms, signal)
    codes, values = None, []
    for _ in range(25):
        result = csc.csc_solve(signal, atoms, lam, codes=codes, tol=0.0, max_iter=1, polish=False)
        codes = result.codes
        values.append(float(result.objective))
    slack = 1e-9 if dtype == np.float64 else 1e-6
    assert (np.diff(values) <= slack * np.abs(values[1:])).all()
    assert values[-1] < 0.99 * values[0]


def test_two_dimensional_codes(x64):
    atoms, codes, _ = random_case(n=1, p=2, k=3, kernel=(3, 4), times=(14, 15))
    codes = np.where(np.random.default_rng(1).random(codes.shape) < 0.05, codes, 0)
    signal = full_convolution(atoms, codes)
    result = csc.csc_solve(signal, atoms, 0.05, solver="fista", positive=False, tol=1e-7)
    assert result.converged
    assert violation(atoms, signal, np.asarray(result.codes), 0.05 * np.ones(3), False) <= 1e-6
    np.testing.assert_allclose(result.codes, codes, atol=0.1)


def test_masked_samples_change_nothing(x64):
    dtype = np.float64
    signal, atoms, _ = sparse_signal(p=2)
    signal, atoms = signal.astype(dtype), atoms.astype(dtype)
    mask = np.random.default_rng(0).random(signal.shape) > 0.1
    lam = 0.1 * csc.csc_lambda_max(atoms, signal)
    results = [
        csc.csc_solve(np.where(mask, signal, filling).astype(dtype), atoms, lam, mask=mask, tol=1e-4)
        for filling in (0.0, 1e6, np.nan)
    ]
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert violation(atoms, signal, np.asarray(results[0].codes), float(lam), mask=mask) <= 1.5e-4


def test_amplitudes_on_a_support_are_those_of_least_squares(x64):
    signal, atoms, codes = sparse_signal(density=0.004, times=300)
    support = codes > 0
    result = csc.csc_solve(signal, atoms, 0.0, support=support, tol=1e-10)
    columns = [
        full_convolution(atoms, np.eye(codes.size)[i].reshape(codes.shape)).ravel() for i in np.flatnonzero(support)
    ]
    expected = np.linalg.lstsq(np.stack(columns, 1), signal.ravel(), rcond=None)[0]
    assert (expected > 0).all()
    np.testing.assert_allclose(np.asarray(result.codes)[support], expected, rtol=1e-8)
    assert not np.asarray(result.codes)[~support].any()
    np.testing.assert_array_equal(csc.csc_solve(signal, atoms, 0.1, support=support, solver="fista").codes[~support], 0)


def test_scaling_the_data_scales_the_codes(x64):
    signal, atoms, _ = sparse_signal()
    lam = 0.1 * csc.csc_lambda_max(atoms, signal)
    one = csc.csc_solve(signal, atoms, lam, tol=1e-8).codes
    other = csc.csc_solve(1e-3 * signal, atoms, 1e-3 * lam, tol=1e-8).codes
    np.testing.assert_allclose(1e3 * other, one, atol=1e-6 * one.max())


@pytest.mark.parametrize("positive", [True, False])
def test_the_derivative_is_that_of_the_minimiser(x64, positive):
    signal, atoms, _ = sparse_signal(times=120, m=8, p=2)
    mask = np.random.default_rng(0).random(signal.shape) > 0.1
    lam = 0.1 * np.asarray(csc.csc_lambda_max(atoms, signal, per_atom=True))
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(1, 3, 113))
    options = {"mask": mask, "max_iter": 100_000} if positive else {}

    def loss(signal, atoms, lam):
        result = csc.csc_solve(signal, atoms, lam, tol=1e-11, positive=positive, **options)
        return jnp.sum(result.codes * weight) + 0.1 * result.objective

    point = tuple(jnp.asarray(x) for x in (signal, atoms, lam))
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(*point)
    loss = jax.jit(loss)
    for i, gradient in enumerate(gradients):
        move = rng.normal(size=gradient.shape)
        ends = [loss(*(x + e * move if i == j else x for j, x in enumerate(point))) for e in (1e-6, -1e-6)]
        np.testing.assert_allclose(jnp.sum(gradient * move), (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-6)


def test_a_warm_start_at_the_solution_stays_there(x64):
    signal, atoms, _ = sparse_signal()
    lam = 0.1 * csc.csc_lambda_max(atoms, signal)
    result = csc.csc_solve(signal, atoms, lam, tol=1e-6)
    again = csc.csc_solve(signal, atoms, lam, codes=result.codes, tol=1e-6)
    assert again.n_iter == 0
    np.testing.assert_array_equal(again.codes, result.codes)


def test_nothing_gives_nothing(dtype):
    atoms = jnp.asarray(sparse_signal()[1], dtype)
    for signal in (jnp.zeros((1, 1, 500), dtype), jnp.full((1, 1, 500), 3.0, dtype)):
        for solver in ("lgcd", "fista") if dtype == np.float32 else ("lgcd",):
            result = csc.csc_solve(signal, atoms, 100.0, solver=solver)
            assert not result.codes.any()
            assert result.converged
            assert all(jnp.isfinite(jnp.asarray(x)).all() for x in result)
    dead = csc.csc_solve(jnp.ones((1, 1, 500), dtype), atoms.at[0].set(0), 0.1)
    assert not dead.codes[:, 0].any()
    assert jnp.isfinite(dead.objective)


def test_the_solver_transforms():
    signal, atoms, _ = sparse_signal(times=200)
    signals = jnp.asarray(np.stack([signal, 0.5 * signal[..., ::-1]]), jnp.float32)
    both = jnp.stack([jnp.asarray(atoms, jnp.float32)] * 2)
    levels = jnp.array([0.3, 0.2])
    solve = lambda x, d, lam: csc.csc_solve(x, d, lam).codes
    check_jit(solve, signals[0], both[0], levels[0], atol=1e-4)
    check_vmap(solve, signals, both, levels, atol=1e-2)  # lanes stop apart, each within the tolerance
    check_lowers(solve, signals[0], both[0], levels[0])
    check_no_recompilation(csc.csc_solve, (signals[0], both[0], levels[0]), (signals[1], both[1], levels[1]), jit=False)


GOOD = {"signal": np.ones((1, 2, 20)), "atoms": np.ones((3, 2, 5)), "lam": 0.1}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"signal": np.ones((2, 20))}, "signal: expected shape"),
        ({"signal": np.ones((1, 3, 20))}, "signal: expected shape"),
        ({"signal": np.ones((1, 2, 4))}, "signal: expected at least"),
        ({"signal": np.full((1, 2, 20), np.nan)}, "signal: expected finite"),
        ({"signal": np.full((1, 2, 20), np.nan), "mask": np.arange(20) > 3}, "signal: expected finite"),
        ({"signal": np.ones((0, 2, 20))}, "signal: expected at least one entry"),
        ({"atoms": np.ones((3, 5))}, "atoms: expected shape"),
        ({"atoms": np.full((3, 2, 5), np.inf)}, "atoms: expected finite"),
        ({"lam": -1.0}, "lam: expected a number >= 0"),
        ({"lam": np.ones(2)}, "lam: expected shape"),
        ({"lam": np.array([0.1, -0.1, 0.1])}, "lam: expected numbers >= 0"),
        ({"codes": np.ones((1, 3, 20))}, "codes: expected shape"),
        ({"support": np.ones((1, 3, 2), bool)}, "support: expected shape"),
        ({"mask": np.ones(19, bool)}, "mask: expected a shape"),
        ({"mask": np.zeros(20, bool)}, "mask: expected at least one"),
        ({"mask": np.ones(20)}, "mask: expected booleans"),
        ({"solver": "newton"}, "solver: expected one of"),
        ({"signal": np.ones((1, 2, 20, 20)), "atoms": np.ones((3, 2, 5, 5))}, "solver: expected 'fista'"),
        ({"tol": -1.0}, "tol: expected a number"),
        ({"max_iter": 0}, "max_iter: expected an integer"),
    ],
)
def test_bad_input_of_the_solver_is_named(changed, message):
    with pytest.raises(ValueError, match=message):
        csc.csc_solve(**(GOOD | changed))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: csc.conv_synthesis(np.ones((3, 2, 5)), np.ones((1, 2, 9))), "codes: expected shape"),
        (lambda: csc.conv_synthesis(np.ones((3, 2, 5)), np.ones((1, 3, 9)), method="slow"), "method: expected one of"),
        (lambda: csc.conv_correlate(np.ones((3, 2, 5)), np.ones((1, 1, 9))), "signal: expected shape"),
        (lambda: csc.atom_gram(np.ones(4)), "atoms: expected shape"),
        (lambda: csc.code_statistics(np.ones((1, 1, 5)), np.ones((1, 1, 9)), 4), "codes: expected shape"),
        (lambda: csc.code_statistics(np.ones((1, 1, 5)), np.ones((1, 1, 9)), 10), "n_times_atom: expected at most"),
        (lambda: csc.csc_lambda_max(np.ones((1, 1, 5)), np.ones((1, 1, 9)), quantile=1.5), "quantile: expected"),
    ],
)
def test_bad_input_of_the_operators_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
