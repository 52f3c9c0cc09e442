"""Tests of the conditional flows."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from gyri.pavi.flows import FlowTransform, affine, chain, maf, spline

FLOWS = {
    "tril": lambda scale: affine((8,), scale=scale),
    "diagonal": lambda scale: affine((8,), scale=scale, triangular=False),
    "maf": lambda scale: maf((8,), scale=scale),
    "spline": lambda scale: spline((8,), scale=scale),
    "chain": lambda scale: chain([affine((8,), scale=scale), affine(())]),
}


@pytest.mark.parametrize(("dim", "cond_dim"), [(1, 0), (2, 3), (6, 2)])
@pytest.mark.parametrize("kind", FLOWS)
def test_flow_starts_as_a_scale_and_inverts(kind, dim, cond_dim, x64):
    flow = FLOWS[kind](0.3)
    u = jax.random.normal(jax.random.key(1), (4, 5, dim))
    c = jax.random.normal(jax.random.key(2), (4, 5, cond_dim))

    @jax.jit
    def run(key):
        params = flow.init(key, dim, cond_dim)
        moved = jax.tree.map(lambda x: x + 0.2 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)
        z, log_det = flow.forward(moved, u, c)
        jacobian = jax.jacobian(lambda u: flow.forward(moved, u, c[0, 0])[0])(u[0, 0])
        other = flow.forward(moved, u, c + 1)[0]
        return (
            flow.forward(params, u, c),
            (z, log_det),
            flow.inverse(moved, z, c),
            jnp.linalg.slogdet(jacobian)[1],
            other,
        )

    start, (z, log_det), (back, inverse_log_det), expected, other = run(jax.random.key(0))
    np.testing.assert_allclose(start[0], 0.3 * u, atol=1e-6)
    np.testing.assert_allclose(start[1], dim * np.log(0.3), atol=1e-6)
    np.testing.assert_allclose(back, u, atol=1e-7)
    np.testing.assert_allclose(inverse_log_det, -log_det, atol=1e-7)
    np.testing.assert_allclose(expected, log_det[0, 0], atol=1e-9)
    assert cond_dim == 0 or not np.allclose(z, other)


@pytest.mark.parametrize("kind", ["tril", "maf"])
def test_flow_in_single_precision_under_jit_and_vmap(kind):
    flow = FLOWS[kind](0.5)
    params = flow.init(jax.random.key(0), 3, 2)
    u, c = jax.random.normal(jax.random.key(1), (6, 3)), jax.random.normal(jax.random.key(2), (6, 2))
    z, log_det = jax.jit(flow.forward)(params, u, c)
    assert z.dtype == log_det.dtype == jnp.float32
    one_by_one = jax.vmap(flow.forward, (None, 0, 0))(params, u, c)
    np.testing.assert_allclose(z, one_by_one[0], atol=1e-6)
    np.testing.assert_allclose(log_det, one_by_one[1], atol=1e-6)


def test_affine_holds_a_linear_gaussian_law(x64):
    """With the linear path alone: z = A c + L u, for any A and L."""
    flow = affine((8,))
    params = flow.init(jax.random.key(0), 2, 3)
    a = np.arange(6.0).reshape(3, 2)
    params["skip"] = jnp.asarray(a)
    params["network"][-1]["bias"] = jnp.array([0.0, 0.0, np.log(2.0) + 0.02, 0.0, 1.5])
    c = jnp.array([1.0, -1.0, 2.0])
    z, _ = flow.forward(params, jnp.array([1.0, 1.0]), c)
    scale = np.exp(8 * np.tanh((np.log(2.0) + 0.02) / 8))
    np.testing.assert_allclose(z, c @ a + np.array([scale, 1 + 1.5]))


def test_transform_scores_its_own_draws_without_inverting():
    flow = affine((8,), scale=2.0)
    broken = flow._replace(inverse=lambda *_: (_ for _ in ()).throw(AssertionError("inverted")))
    transform = FlowTransform(broken, flow.init(jax.random.key(0), 2, 1), jnp.zeros((3, 1)))
    base = dist.Normal(0, 1).expand((3, 2)).to_event(1)
    law = dist.TransformedDistribution(base, transform)
    value, intermediates = law.sample_with_intermediates(jax.random.key(1))
    expected = dist.Normal(0, 2).log_prob(value).sum(-1)
    np.testing.assert_allclose(law.log_prob(value, intermediates), expected, rtol=1e-5)


def test_bad_flows_are_refused():
    with pytest.raises(ValueError, match="flows"):
        chain([])
    with pytest.raises(ValueError, match="hidden"):
        maf((8, 16))
    with pytest.raises(ValueError, match="scale"):
        affine(scale=0.0)


def test_missing_flowjax_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "flowjax", None)
    monkeypatch.setitem(sys.modules, "flowjax.bijections", None)
    with pytest.raises(ImportError, match=r'pip install "gyri-pavi\[flows\]"'):
        spline()
