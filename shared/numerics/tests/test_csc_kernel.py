"""The compiled form of coordinate descent against the form that XLA runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.numerics import csc, host
from gyri.numerics.csc.coordinates import one_by_one, red_black
from gyri.numerics.csc.operators import correlate, gram
from gyri.numerics.testing import check_vmap

pytestmark = pytest.mark.skipif(not host.available(), reason="needs numba")
N, P, K, L, T = 3, 2, 3, 12, 301


def problem(dtype, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(L) / L
    waves = np.stack([np.sin(2 * np.pi * (k + 1) * t + k) * np.hanning(L) for k in range(K)])
    atoms = rng.normal(size=(K, P, 1)) * waves[:, None]
    atoms /= np.sqrt((atoms**2).sum((1, 2), keepdims=True))
    signal = rng.normal(size=(N, P, T))
    atoms, signal = jnp.asarray(atoms, dtype), jnp.asarray(signal, dtype)
    beta = correlate(atoms, signal)
    lam = 0.2 * jnp.max(jnp.abs(beta), (0, 2))
    G = gram(atoms)
    return signal, atoms, (jnp.zeros_like(beta), beta, G, lam, 1 / jnp.diagonal(G[..., L - 1]))


def moves(atoms, signal, args, codes, positive):
    """How far every coordinate would still move, from the definition."""
    _, _, _, lam, inverse = args
    beta = correlate(atoms, signal - csc.conv_synthesis(atoms, codes))
    x = codes + beta * inverse[:, None]
    high = (lam * inverse)[:, None]
    new = jnp.maximum(x - high, 0) if positive else jnp.sign(x) * jnp.maximum(jnp.abs(x) - high, 0)
    return np.asarray(jnp.abs(new - codes))


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("restricted", [True, False])
def test_it_ends_where_nothing_moves(dtype, positive, restricted):
    signal, atoms, args = problem(dtype)
    allowed = jnp.asarray(np.random.default_rng(1).random(args[0].shape) < 0.5)
    limit = jnp.asarray(1e-4 if dtype == np.float64 else 1e-3, dtype)
    extra = [allowed] if restricted else []
    codes, sweeps = one_by_one(*args, limit, jnp.int32(100_000), *extra, positive=positive)
    other, _ = red_black(*args, limit, jnp.int32(100_000), *extra, positive=positive)
    assert codes.dtype == dtype
    assert 1 < sweeps < 100_000
    left = moves(atoms, signal, args, codes, positive)
    assert (
        left[np.asarray(allowed)] if restricted else left
    ).max() <= 4 * limit  # the last pass makes moves up to the limit
    assert not restricted or not np.asarray(codes)[~np.asarray(allowed)].any()
    assert (np.asarray(codes) >= 0).all() == positive
    values = [float(csc.csc_objective(signal, atoms, z, args[3])) for z in (codes, other)]
    np.testing.assert_allclose(*values, rtol=1e-4)


def test_no_move_raises_the_objective(dtype):
    signal, atoms, args = problem(dtype)
    codes, values = args[0], [float(csc.csc_objective(signal, atoms, args[0], args[3]))]
    for _ in range(12):
        beta = correlate(atoms, signal - csc.conv_synthesis(atoms, codes))
        codes, sweeps = one_by_one(codes, beta, *args[2:], jnp.zeros((), dtype), jnp.int32(1), positive=True)
        assert sweeps == 1
        values.append(float(csc.csc_objective(signal, atoms, codes, args[3])))
    assert (np.diff(values) <= (1e-12 if dtype == np.float64 else 1e-6) * values[0]).all()
    assert values[-1] < 0.95 * values[0]


def test_the_first_pass_moves_the_best_coordinate_of_the_first_segment(x64):
    _, _, args = problem(np.float64)
    codes, _ = one_by_one(*args, jnp.zeros(()), jnp.int32(1), positive=False)
    z, beta, _, lam, inverse = (np.asarray(x) for x in args)
    x = beta * inverse[:, None]
    move = np.sign(x) * np.maximum(np.abs(x) - (lam * inverse)[:, None], 0)
    for n in range(N):
        k, t = np.unravel_index(np.abs(move[n, :, :L]).argmax(), (K, L))
        expected = np.zeros((K, L))
        expected[k, t] = move[n, k, t]
        np.testing.assert_allclose(codes[n, :, :L], expected, atol=1e-14)


def test_shapes_at_the_edge_and_vmap(dtype):
    signal, atoms, args = problem(dtype)
    short = (args[0][..., :1], args[1][..., :1], *args[2:])  # one position, shorter than a segment
    for data in (short, args):
        one, _ = one_by_one(*data, jnp.asarray(1e-3, dtype), jnp.int32(5000), positive=True)
        other, _ = red_black(*data, jnp.asarray(1e-3, dtype), jnp.int32(5000), positive=True)
        ends = signal[..., : data[0].shape[2] + L - 1]
        values = [float(csc.csc_objective(ends, atoms, z, data[3])) for z in (one, other)]
        np.testing.assert_allclose(*values, rtol=1e-4)
    run = lambda z, beta, lam: one_by_one(z, beta, args[2], lam, args[4], lam[0] * 0, jnp.int32(9), positive=True)[0]
    stack = lambda x: jnp.stack([x, 0.5 * x])
    check_vmap(run, stack(args[0]), stack(args[1]), stack(args[3]))


def test_the_solver_takes_it_and_its_gradient_goes_around(x64, monkeypatch):
    signal, atoms, args = problem(np.float64)
    lam = 0.2 * csc.csc_lambda_max(atoms, signal)
    loss = lambda x: jnp.sum(csc.csc_solve(x, atoms, lam, tol=1e-9).codes ** 2)
    assert "coordinate_descent" in jax.jit(loss).lower(signal).as_text()
    one = jax.grad(loss)(signal)
    monkeypatch.setattr("gyri.numerics.csc.coordinates.host.available", lambda: False)
    jax.clear_caches()
    other = jax.grad(loss)(signal)
    np.testing.assert_allclose(one, other, atol=1e-6)
