"""Tests of gyri.hnpe.jansen_rit: order of the scheme, exact laws, an independent integrator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad_vec, solve_ivp
from scipy.linalg import expm

from gyri.hnpe import JansenRit, log_psd
from gyri.numerics.testing import check_jit, check_no_recompilation, check_vmap

NOMINAL = np.array([135.0, 220.0, 2000.0, 0.0])


def drift(C, mu):
    """Right-hand side of the model without noise, from its equations."""
    A, B, a, b = 3.25, 22.0, 100.0, 50.0
    s = lambda v: 5 / (1 + np.exp(0.56 * (6 - v)))
    return lambda t, y: [
        *y[3:],
        A * a * s(y[1] - y[2]) - 2 * a * y[3] - a**2 * y[0],
        A * a * (mu + 0.8 * C * s(C * y[0])) - 2 * a * y[4] - a**2 * y[1],
        B * b * 0.25 * C * s(0.25 * C * y[0]) - 2 * b * y[5] - b**2 * y[2],
    ]


@pytest.mark.parametrize(("C", "mu"), [(135.0, 220.0), (200.0, 350.0)])
@pytest.mark.parametrize("x64", [False, True])
def test_without_noise_it_is_the_ode_to_second_order(C, mu, x64):
    errors = []
    for h in (1 / 1024, 1 / 2048):
        model = JansenRit(dt=h, sigma4=0.0, sigma6=0.0)
        with jax.enable_x64(x64):
            path = model.trajectory(0, np.array([C, mu, 0.0, 0.0]), np.zeros(6), n_steps=round(0.5 / h))
        times = np.arange(len(path)) * h
        exact = solve_ivp(drift(C, mu), (0, 0.5), np.zeros(6), t_eval=times, rtol=1e-10, atol=1e-12).y
        expected, path = exact[1] - exact[2], np.asarray(path)
        errors.append(np.abs(path[:, 1] - path[:, 2] - expected).max() / np.ptp(expected))
        if x64:  # all six states, derivatives included, are of the scheme's order
            scale = np.ptp(exact, axis=1)
            assert (np.abs(path - exact.T).max(0) / scale < 3e-2).all()
    assert errors[0] < 2.5e-2
    if x64:
        assert 3.8 < errors[0] / errors[1] < 4.2


def test_linear_part_is_exact_in_law():
    """Against a matrix exponential and the integral of the covariance, by quadrature."""
    model = JansenRit(dt=1 / 256, a=80.0, b=3.0)
    transition, factor = model._linear()
    for i, k in enumerate((80.0, 80.0, 3.0)):
        generator = np.array([[0.0, 1.0], [-(k**2), -2 * k]])
        np.testing.assert_allclose(transition[i], expm(generator / 256), rtol=1e-10, atol=1e-14)
        integrand = lambda t, g=generator: np.outer(expm(g * t)[:, 1], expm(g * t)[:, 1])
        covariance = quad_vec(integrand, 0, 1 / 256, epsabs=1e-18)[0]
        np.testing.assert_allclose(factor[i] @ factor[i].T, covariance, rtol=1e-6)


def test_stationary_law_without_coupling(dtype):
    model = JansenRit(duration=40.0, center=False, sigma6=50.0)
    theta = np.array([0.0, 220.0, 2000.0, 0.0], dtype)
    x = np.asarray(model(0, np.tile(theta, (150, 1))), float)
    assert x.dtype == float and model(0, theta).dtype == dtype
    # The output is the difference of two independent Gaussian processes.
    sizes, rates = np.array([2000.0, 50.0]), np.array([100.0, 50.0])
    variances = sizes**2 / (4 * rates**3)
    assert x.mean() == pytest.approx(3.25 * 220 / 100, rel=0.01)
    assert x.var() == pytest.approx(variances.sum(), rel=0.03)
    for lag in (1, 2, 4):
        t = lag / 128
        expected = (variances * np.exp(-rates * t) * (1 + rates * t)).sum()
        found = ((x[:, lag:] - x.mean()) * (x[:, :-lag] - x.mean())).mean()
        assert found == pytest.approx(expected, abs=0.03 * variances.sum())


def numpy_recordings(theta, n, n_times, n_burn, rng, h=1 / 1024):
    """The same splitting, written anew: matrix exponentials, six sigmoids a step, half kicks apart."""
    C, mu, sigma, gain = theta
    A, B, rates = 3.25, 22.0, np.array([100.0, 100.0, 50.0])
    s = lambda v: 5 / (1 + np.exp(0.56 * (6 - v)))
    moves, roots = [], []
    for k, size in zip(rates, (0.01, sigma, 1.0), strict=True):
        big = expm(np.array([[0, 1, 0, 0], [-(k**2), -2 * k, 0, size**2], [0, 0, 0, k**2], [0, 0, -1, 2 * k]]) * h)
        move = big[:2, :2]
        moves.append(move)
        roots.append(np.linalg.cholesky(big[:2, 2:] @ move.T))  # Van Loan's method
    y = rng.normal(size=(n, 6))
    out = np.empty((n, n_times))

    def kick(y):
        y[:, 3] += h / 2 * A * 100 * s(y[:, 1] - y[:, 2])
        y[:, 4] += h / 2 * A * 100 * (mu + 0.8 * C * s(C * y[:, 0]))
        y[:, 5] += h / 2 * B * 50 * 0.25 * C * s(0.25 * C * y[:, 0])

    for i in range(8 * (n_burn + n_times)):
        if i % 8 == 0 and i >= 8 * n_burn:
            out[:, i // 8 - n_burn] = y[:, 1] - y[:, 2]
        kick(y)
        for j in range(3):
            y[:, [j, 3 + j]] = y[:, [j, 3 + j]] @ moves[j].T + rng.normal(size=(n, 2)) @ roots[j].T
        kick(y)
    out *= 10 ** (gain / 10)
    return out - out.mean(1, keepdims=True)


def test_spectrum_is_that_of_an_independent_integrator():
    rng = np.random.default_rng(0)
    model = JansenRit(duration=4.0, burn_in=1.0)
    theta = np.array([135.0, 220.0, 2000.0, 3.0])
    expected = np.asarray(log_psd(numpy_recordings(theta, 250, 512, 128, rng).astype(np.float32))).mean(0)
    x = model(0, np.tile(theta.astype(np.float32), (250, 1)))
    assert np.abs(np.asarray(log_psd(x)).mean(0) - expected).max() < 0.03
    assert 9 < 128 / 65 * np.argmax(expected) < 11
    assert float(x.std() / 10**0.3) == pytest.approx(2.16, rel=0.05)


def test_path_and_recording_are_the_same_simulation():
    model = JansenRit(duration=0.5, burn_in=0.25, center=False)
    theta = np.array([135.0, 220.0, 2000.0, 6.0], np.float32)
    path = model.trajectory(3, theta)
    assert path.shape == (769, 6)
    expected = 10**0.6 * (path[:, 1] - path[:, 2])[256::8][: model.n_times]
    np.testing.assert_allclose(model(3, theta), expected, rtol=1e-4, atol=1e-4)
    assert model.trajectory(3, theta, n_steps=0).shape == (1, 6)
    np.testing.assert_allclose(model.trajectory(3, theta, n_steps=13), path[:14], rtol=1e-5, atol=1e-5)


def test_noise_is_standard_normal_and_never_repeated():
    model = JansenRit()
    words = jnp.array([3, 7], jnp.uint32)
    blocks = [model._noise(words, jnp.array(i), (500,), jnp.float32) for i in range(20)]
    z = np.asarray(jnp.stack(blocks), float)
    n = z.size
    assert abs(z.mean()) < 5 / np.sqrt(n) and abs(z.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / n)
    assert len(np.unique(z)) > 0.9 * n
    assert abs(np.corrcoef(z[:, 0].reshape(-1, 500)) - np.eye(120)).max() < 0.25
    assert np.isfinite(z).all()


def test_gain_center_and_batches():
    model = JansenRit(duration=1.0, burn_in=0.5)
    theta = np.tile(NOMINAL.astype(np.float32), (2, 3, 1))
    x = model(0, theta)
    assert x.shape == (2, 3, 128) and model.n_times == 128
    assert float(jnp.abs(x.mean(-1)).max()) < 1e-4
    theta[..., 3] = 10
    np.testing.assert_allclose(model(0, theta), 10 * x, rtol=1e-3, atol=1e-3)
    state = np.ones((2, 3, 6), np.float32)
    assert JansenRit(duration=1.0, burn_in=0.0, center=False)(0, theta, state)[0, 0, 0] == 0  # q2 = q3 at the start


def test_no_noise_at_all_is_finite():
    model = JansenRit(duration=0.5, burn_in=0.0, sigma4=0.0, sigma6=0.0)
    x = model(0, np.array([135.0, 220.0, 0.0, 0.0], np.float32), np.zeros(6, np.float32))
    assert jnp.isfinite(x).all()
    np.testing.assert_array_equal(x, model(1, np.array([135.0, 220.0, 0.0, 0.0], np.float32), np.zeros(6, np.float32)))


def test_gradient_is_that_of_finite_differences(x64):
    model = JansenRit(duration=0.25, burn_in=0.0)
    loss = lambda theta: jnp.sum(model(0, theta) ** 2)
    theta = jnp.asarray(NOMINAL)
    gradient = jax.jit(jax.grad(loss))(theta)
    for i, step in enumerate([1e-3, 1e-2, 1e-1, 1e-4]):
        shift = jnp.zeros(4).at[i].set(step)
        expected = (loss(theta + shift) - loss(theta - shift)) / (2 * step)
        assert float(gradient[i]) == pytest.approx(float(expected), rel=1e-4)


def test_under_jit_and_vmap():
    model = JansenRit(duration=0.25, burn_in=0.0)
    theta = jnp.asarray(np.tile(NOMINAL, (3, 1)), jnp.float32)
    check_jit(lambda t: model(0, t), theta, rtol=1e-3, atol=1e-3)
    check_vmap(lambda k, t: model(k, t), jax.random.split(jax.random.key(0), 3), theta, rtol=1e-3, atol=1e-3)
    check_no_recompilation(jax.jit(model), (jax.random.key(0), theta), (jax.random.key(1), theta + 1))
    assert model.prior is JansenRit().prior and hash(model) == hash(JansenRit(duration=0.25, burn_in=0.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: JansenRit(dt=1 / 1000), "dt: expected to divide"),
        (lambda: JansenRit(duration=0.0), "duration: expected"),
        (lambda: JansenRit(duration=0.001), "duration: expected at least a sample"),
        (lambda: JansenRit(sigma4=-1.0), "sigma4: expected"),
        (lambda: JansenRit(a=0.0), "a: expected"),
        (lambda: JansenRit(v0=np.nan), "v0: expected"),
        (lambda: JansenRit()(0, np.zeros(3)), r"theta: expected shape \(\.\.\., 4\)"),
        (lambda: JansenRit()(0, np.full(4, np.nan)), "theta: expected finite"),
        (lambda: JansenRit()(0, NOMINAL, np.zeros(5)), r"initial_state: expected shape \(6,\)"),
        (lambda: JansenRit().trajectory(0, np.zeros((2, 4))), r"theta: expected shape \(4,\)"),
        (lambda: JansenRit().trajectory(0, NOMINAL, n_steps=-1), "n_steps: expected"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
