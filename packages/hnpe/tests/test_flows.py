"""Tests of gyri.hnpe.flows: inverses, determinants by automatic differentiation, integrals by quadrature."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyri.hnpe.flows import Affine, Spline, flow_log_prob, flow_sample, make_flow


def random_spline(seed, scale=2.0):
    keys = jax.random.split(jax.random.key(seed), 3)
    spline = Spline(10)
    values = [scale * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, jax.tree.leaves(spline), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(spline), values)


@given(st.integers(0, 2**16), st.floats(-6, 6))
@settings(max_examples=50, deadline=None)
def test_spline_inverts_and_knows_its_slope(seed, x):
    with jax.enable_x64(True):
        spline, x = random_spline(seed), jnp.asarray(x)
        y, log_det = spline.transform_and_log_det(x)
        back, log_det_back = spline.inverse_and_log_det(y)
        np.testing.assert_allclose(back, x, atol=1e-8)
        np.testing.assert_allclose(log_det_back, -log_det, atol=1e-6)
        np.testing.assert_allclose(jnp.log(jax.grad(spline.transform)(x)), log_det, atol=1e-8)


def test_spline_is_monotone_and_the_identity_outside():
    spline, x = random_spline(3), jnp.linspace(-6, 6, 1001)
    y = jax.vmap(spline.transform)(x)
    assert (jnp.diff(y) > 0).all()
    outside = jnp.abs(x) >= 4
    np.testing.assert_array_equal(y[outside], x[outside])


def test_layers_start_at_the_identity():
    x = jnp.linspace(-5, 5, 11)
    np.testing.assert_allclose(jax.vmap(Spline(8).transform)(x), x, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(Affine().transform)(x), x / 1.001, atol=1e-5)


def test_scale_has_a_floor():
    affine = jax.tree.map(lambda leaf: leaf - 100.0, Affine())
    assert float(affine.inverse_and_log_det(jnp.array(1.0))[1]) == pytest.approx(np.log(1e-3), rel=1e-4)


@pytest.mark.parametrize("kind", ["nsf", "maf"])
@pytest.mark.parametrize(("dim", "n_layers"), [(1, 1), (1, 2), (3, 1), (3, 4)])
def test_flow_inverts_and_knows_its_determinant(kind, dim, n_layers, x64):
    flow = make_flow(jax.random.key(0), kind, dim, 2, hidden=(16,), n_layers=n_layers, n_bins=8)
    flow = jax.tree.map(lambda leaf: leaf * 3 if eqx.is_inexact_array(leaf) else leaf, flow)
    z, condition = 0.5 * jax.random.normal(jax.random.key(1), (dim,)), jnp.array([0.3, -1.0])
    to_base = lambda z: flow.bijection.inverse(z, condition)
    np.testing.assert_allclose(flow.bijection.transform(to_base(z), condition), z, atol=1e-6)
    _, log_det = np.linalg.slogdet(jax.jacfwd(to_base)(z))
    expected = -0.5 * np.sum(np.asarray(to_base(z)) ** 2) - dim / 2 * np.log(2 * np.pi) + log_det
    np.testing.assert_allclose(flow_log_prob(flow, z, condition), expected, rtol=1e-6)
    np.testing.assert_allclose(flow.log_prob(z, condition), expected, rtol=1e-6)
    if dim > 1:  # every coordinate depends on the others somewhere
        assert n_layers == 1 or (np.abs(jax.jacfwd(to_base)(z)) > 0).all()


@pytest.mark.parametrize("kind", ["nsf", "maf"])
def test_density_integrates_to_one_and_draws_follow_it(kind):
    flow = make_flow(jax.random.key(4), kind, 1, 2, hidden=(16,), n_layers=1, n_bins=8)
    condition, z = jnp.array([2.0, -1.0]), jnp.linspace(-8, 8, 4001)
    p = np.exp(np.asarray(jax.vmap(lambda z: flow_log_prob(flow, z, condition))(z[:, None])))
    assert abs(np.trapezoid(p, z) - 1) < 1e-3
    draws = jax.vmap(lambda k: flow_sample(flow, k, 1, condition))(jax.random.split(jax.random.key(0), 4000))
    assert float(draws.mean()) == pytest.approx(np.trapezoid(p * z, z), abs=0.08)


def test_condition_matters():
    flow = make_flow(jax.random.key(0), "nsf", 1, 2, hidden=(16,), n_layers=1, n_bins=8)
    gradient = jax.grad(lambda c: flow_log_prob(flow, jnp.array([0.3]), c))(jnp.array([1.0, 2.0]))
    assert (jnp.abs(gradient) > 0).all()


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="density_estimator: expected one of"):
        make_flow(jax.random.key(0), "glow", 1, 2, hidden=(16,), n_layers=1, n_bins=8)
