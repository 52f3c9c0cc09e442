"""Tests of gyri.hnpe.prior."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gyri.hnpe import HierarchicalPrior
from gyri.hnpe.prior import decode_prior, encode_prior
from gyri.numerics.testing import check_jit, check_vmap

LAWS = {
    "uniform": dist.Uniform(-3.0, 5.0),
    "beta": dist.Beta(2.0, 3.0),
    "normal": dist.Normal(1.0, 2.0),
    "gamma": dist.Gamma(2.0, 1.5),
    "pareto": dist.Pareto(1.5, 3.0),
    "truncated": dist.TruncatedNormal(0.0, 1.0, low=-1.0, high=2.0),
    "below": dist.TruncatedNormal(0.0, 1.0, high=0.5),
}
ALL = HierarchicalPrior(
    {n: LAWS[n] for n in ("uniform", "beta", "normal", "gamma")}, {n: LAWS[n] for n in ("pareto", "truncated", "below")}
)
CONDITIONAL = HierarchicalPrior(
    {
        "alpha": lambda shared: dist.TruncatedNormal(shared["mean"], 1.0, low=0.0, high=4.0),
        "free": dist.Normal(0.0, 1.0),
    },
    {"mean": dist.Uniform(0.0, 2.0)},
)


def test_names_and_sizes():
    assert ALL.names == tuple(LAWS)
    assert (ALL.n_local, ALL.n_shared, ALL.dim) == (4, 3, 7)
    assert "pareto: Pareto" in repr(ALL)


def test_draws_follow_their_laws():
    draws = np.asarray(ALL.sample(0, (4000,)))
    ends = stats.truncnorm(-1, 2), stats.truncnorm(-np.inf, 0.5)
    oracles = (
        stats.uniform(-3, 8),
        stats.beta(2, 3),
        stats.norm(1, 2),
        stats.gamma(2, scale=1 / 1.5),
        stats.pareto(3, scale=1.5),
    )
    for column, oracle in zip(draws.T, (*oracles, *ends), strict=True):
        assert stats.kstest(column, oracle.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(draws.T) - np.eye(7)).max() < 0.08


def test_density_is_that_of_scipy(dtype):
    theta = ALL.sample(1, (50,))
    assert theta.dtype == dtype
    t = np.asarray(theta, float)
    oracles = [
        stats.uniform(-3, 8), stats.beta(2, 3), stats.norm(1, 2), stats.gamma(2, scale=1 / 1.5),
        stats.pareto(3, scale=1.5), stats.truncnorm(-1, 2), stats.truncnorm(-np.inf, 0.5),
    ]  # fmt: skip
    expected = sum(oracle.logpdf(t[:, i]) for i, oracle in enumerate(oracles))
    np.testing.assert_allclose(ALL.log_prob(theta), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("i", "value"), [(0, -3.1), (1, 1.2), (3, -0.1), (4, 1.4), (5, 2.5), (6, 0.6)])
def test_density_outside_is_zero_and_its_gradient_finite(i, value):
    theta = ALL.sample(1).at[i].set(value)
    assert ALL.log_prob(theta) == -jnp.inf
    assert not ALL.support(theta)
    assert jnp.isfinite(jax.grad(lambda t: jnp.where(ALL.support(t), ALL.log_prob(t), 0.0))(theta)).all()


def test_conditional_law():
    draws = np.asarray(CONDITIONAL.sample_local(0, jnp.array([1.5]), (4000,)))
    assert stats.kstest(draws[:, 0], stats.truncnorm(-1.5, 2.5, loc=1.5).cdf).pvalue > 1e-3
    theta = CONDITIONAL.sample(2, (5,))
    t = np.asarray(theta)
    expected = [stats.truncnorm(-m, 4 - m, loc=m).logpdf(a) + stats.norm.logpdf(f) + np.log(0.5) for a, f, m in t]
    np.testing.assert_allclose(CONDITIONAL.log_prob(theta), expected, rtol=1e-4, atol=1e-5)


def test_draws_of_a_conditional_law_follow_the_shared_parameter():
    theta = np.asarray(CONDITIONAL.sample(0, (4000,)))
    assert np.corrcoef(theta[:, 0], theta[:, 2])[0, 1] > 0.3


def test_unconstrain_round_trip_and_determinant(x64):
    theta = ALL.sample(3, (20,))
    z, log_det = ALL.unconstrain(theta)
    np.testing.assert_allclose(ALL.constrain(z), theta, rtol=1e-9)
    jacobians = jax.vmap(jax.jacfwd(lambda t: ALL.unconstrain(t)[0]))(theta)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobians)[1], rtol=1e-8)


def test_unconstrain_is_that_of_numpyro(x64):
    theta = ALL.sample(4, (9,))
    expected = [dist.biject_to(law.support).inv(theta[:, i]) for i, law in enumerate(LAWS.values())]
    np.testing.assert_allclose(ALL.unconstrain(theta)[0], np.stack(expected, -1), rtol=1e-6, atol=1e-6)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, allow_subnormal=False, width=32), min_size=7, max_size=7))
@settings(max_examples=60, deadline=None)
def test_constrain_never_leaves_the_support(z):
    theta = ALL.constrain(jnp.array(z, jnp.float32))
    finite = theta.at[2].set(0.0)  # the normal law has the whole line
    assert ALL.support(finite)


def test_narrow_interval_far_from_zero():
    prior = HierarchicalPrior({"a": dist.Uniform(1000.0, 1000.01)}, {"b": dist.Uniform(-1e-3, 1e3)})
    theta = prior.constrain(jnp.array([[-50.0, -50.0], [50.0, 50.0]]))
    assert prior.support(theta).all()


def test_draws_on_the_bounds_are_nudged_inside():
    z, log_det = ALL.unconstrain(ALL.sample(0).at[0].set(-3.0))
    assert jnp.isfinite(z).all() and jnp.isfinite(log_det)


@pytest.mark.parametrize(
    ("law", "bound"),
    [
        (dist.Gamma(0.05, 1.0), 0.0),
        (dist.Beta(0.05, 0.05), 0.0),
        (dist.Beta(0.05, 0.05), 1.0),
        (LAWS["pareto"], 1.5),
        (LAWS["below"], 0.5),
    ],
)
def test_density_on_a_bound_is_that_just_inside(law, bound):
    prior = HierarchicalPrior({"a": law}, {"b": dist.Normal(0.0, 1.0)})
    on, near = jnp.array([bound, 0.0]), jnp.array([bound + (1 - 2 * (bound in (1.0, 0.5))) * 1e-6, 0.0])
    assert jnp.isfinite(prior.log_prob(on)) and not prior.support(on)
    assert prior.log_prob(on) >= prior.log_prob(near) - 1e-4
    assert jnp.isfinite(jax.grad(prior.log_prob)(on)).all()


def test_every_draw_has_a_density():
    prior = HierarchicalPrior({"a": dist.Gamma(0.05, 1.0)}, {"b": dist.Normal(0.0, 1.0)})
    draws = prior.sample(0, (20_000,))
    assert (draws[:, 0] == 0).any()  # below the smallest number
    assert jnp.isfinite(prior.log_prob(draws)).all()


def test_infinity_is_outside():
    theta = ALL.sample(0, (2, 7))
    for sign, row in zip((1, -1), theta, strict=True):
        far = jnp.where(jnp.eye(7, dtype=bool), sign * jnp.inf, row)
        assert (ALL.log_prob(far) == -jnp.inf).all() and not ALL.support(far).any()
    assert ALL.log_prob([np.inf] * 7) == -jnp.inf


def test_under_jit_and_vmap():
    theta = ALL.sample(0, (4,))
    for function in (ALL.log_prob, ALL.unconstrain, ALL.constrain):
        check_jit(function, theta, rtol=1e-5)
        check_vmap(function, theta, rtol=1e-5)


def test_encoded_prior_comes_back():
    again = decode_prior(encode_prior(ALL))
    theta = ALL.sample(0, (9,))
    np.testing.assert_array_equal(again.log_prob(theta), ALL.log_prob(theta))
    assert encode_prior(CONDITIONAL) is None


@pytest.mark.parametrize(
    ("local", "shared", "message"),
    [
        ({}, {"b": LAWS["normal"]}, "local: expected a mapping"),
        ({"a": LAWS["normal"]}, {}, "shared: expected a mapping"),
        ([LAWS["normal"]], {"b": LAWS["normal"]}, "local: expected a mapping"),
        ({"a": LAWS["normal"]}, {"a": LAWS["normal"]}, "in both"),
        ({"a": 1.0}, {"b": LAWS["normal"]}, r"local\['a'\]: expected a numpyro distribution"),
        ({"a": dist.Poisson(1.0)}, {"b": LAWS["normal"]}, r"local\['a'\]: expected a continuous law"),
        ({"a": dist.Normal(jnp.zeros(2), 1.0)}, {"b": LAWS["normal"]}, "univariate"),
        ({"a": LAWS["normal"]}, {"b": dist.VonMises(0.0, 1.0)}, r"shared\['b'\]: expected a law on an interval"),
        ({"a": lambda s: dist.Uniform(0.0, s["b"])}, {"b": dist.Uniform(0.0, 1.0)}, "does not depend on the shared"),
    ],
)  # fmt: skip
def test_bad_laws_are_refused(local, shared, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalPrior(local, shared)


@pytest.mark.parametrize("theta", [jnp.zeros(6), jnp.zeros((3, 8)), jnp.zeros(())])
def test_bad_shapes_are_refused(theta):
    for function in (ALL.log_prob, ALL.unconstrain, ALL.constrain, ALL.support):
        with pytest.raises(ValueError, match=r"expected shape \(\.\.\., 7\)"):
            function(theta)
    with pytest.raises(ValueError, match="shared: expected shape"):
        ALL.sample_local(0, jnp.zeros(2))
