"""Tests of gyri.pavi.baselines: exact identities of the bounds, recovery of known posteriors."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO

from gyri.pavi import models
from gyri.pavi.baselines import AutoCascadingFlow, highway, hmc, init_highway, uivi_fit
from gyri.pavi.plates import plate_graph

SCALES = (1.3, 0.7, 0.9)


@pytest.fixture
def compiled():
    """Compilations from here on."""
    events = []
    listen = lambda event, *_, **__: events.append(event) if "backend_compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def randomised(params, key=0, scale=0.3):
    """Weights away from where they start, so that no term vanishes."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    return jax.tree.unflatten(
        tree,
        [leaf + scale * jax.random.normal(k, leaf.shape, leaf.dtype) for leaf, k in zip(leaves, keys, strict=True)],
    )


# --- gated highway flow -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_gated", [0, 2, 5])
def test_log_determinant_is_that_of_the_jacobian(x64, n_gated):
    params = randomised(init_highway(jax.random.key(0), (), 5, 3))
    for x in jnp.asarray(np.random.default_rng(0).normal(size=(5, 5))):
        matrix = jax.jacobian(lambda x: highway(params, x, n_gated)[0])(x)
        sign, log_det = np.linalg.slogdet(matrix)
        assert sign == 1
        np.testing.assert_allclose(highway(params, x, n_gated)[1], log_det, rtol=1e-10)


def test_flows_of_a_batch_are_those_one_by_one():
    params = randomised(init_highway(jax.random.key(0), (4, 1), 3, 2))
    x = jax.random.normal(jax.random.key(1), (4, 1, 3))
    y, log_det = highway(params, x, 2)
    for i in range(4):
        one = highway(jax.tree.map(lambda leaf, i=i: leaf[i, 0], params), x[i, 0], 2)
        np.testing.assert_allclose(y[i, 0], one[0], rtol=1e-5)
        np.testing.assert_allclose(log_det[i, 0], one[1], rtol=1e-5, atol=1e-6)


def test_highway_by_hand():
    params = {
        "gate": jnp.array([0.4]),
        "upper": jnp.array([[[9.0, 2.0], [9.0, 9.0]]]),
        "lower": jnp.array([[[9.0, 9.0], [3.0, 9.0]]]),
        "log_diagonal": jnp.log(jnp.array([[1.5, 0.5]])),
        "shift": jnp.array([[0.1, 0.2]]),
    }
    r = 1 / (1 + np.exp(-0.4))
    first = r * 1.0 + (1 - r) * (1.5 * 1.0 + 2.0 * -2.0)
    second = 0.5 * -2.0
    expected = [r * first + (1 - r) * (first + 0.1), second + 3.0 * first + 0.2]
    y, log_det = highway(params, jnp.array([1.0, -2.0]), 1)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    np.testing.assert_allclose(log_det, np.log(r + (1 - r) * 1.5) + np.log(0.5), rtol=1e-6)


# --- cascading flows --------------------------------------------------------------------------------------------------


def crossed(x=None):
    """Positive and bounded latents in crossed plates; a parent outside of a plate that its child is in."""
    tau = numpyro.sample("tau", dist.Gamma(3.0, 2.0))
    with numpyro.plate("rows", 2, dim=-2):
        a = numpyro.sample("a", dist.Normal(0.0, tau))
    with numpyro.plate("columns", 3, dim=-1):
        b = numpyro.sample("b", dist.Uniform(-1.0, 1.0))
    with numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 3, dim=-1):
        c = numpyro.sample("c", dist.Normal(a + b, 0.5))
        numpyro.sample("x", dist.Normal(c, 0.8), obs=x)


def particles(model, guide, params, key, n, *args):
    """Single-particle values of the bound."""
    loss = Trace_ELBO().loss
    return -jax.jit(jax.vmap(lambda key: loss(key, params, model, guide, *args)))(jax.random.split(key, n))


def start(model, guide, *args):
    svi = SVI(model, guide, optax.adam(1e-2), Trace_ELBO())
    return jax.jit(lambda key: svi.get_params(svi.init(key, *args)))(jax.random.key(0))


def train(model, guide, n_steps, n_particles, rate, *args):
    """Fitted parameters; the start is compiled as one, which takes a fraction of the time of its operations."""
    svi = SVI(model, guide, optax.adam(optax.cosine_decay_schedule(rate, n_steps)), Trace_ELBO(n_particles))
    state = jax.jit(lambda key: svi.init(key, *args))(jax.random.key(0))
    return svi.run(jax.random.key(0), n_steps, *args, progress_bar=False, init_state=state).params


def exact_crossed(x):
    """log p(x) of the model above by quadrature over tau and the three b; the rest is Gaussian."""
    tau = (np.arange(400) + 0.5) / 400 * 8
    b = (np.arange(40) + 0.5) / 20 - 1
    grid = np.stack(np.meshgrid(b, b, b, indexing="ij"), -1).reshape(-1, 3)
    total = np.zeros((len(tau), len(grid)))
    noise = 0.5**2 + 0.8**2
    for row in x:
        gap = row - grid
        quadratic = (gap**2).sum(-1) / noise - (gap.sum(-1) / noise) ** 2 / (3 / noise + 1 / tau[:, None] ** 2)
        log_det = 3 * np.log(noise) + np.log1p(3 * tau[:, None] ** 2 / noise)
        total += -0.5 * (3 * np.log(2 * np.pi) + log_det + quadratic)
    prior = np.log(4 * tau**2 * np.exp(-2 * tau))  # Gamma(3, 2)
    return np.log((np.exp(total + prior[:, None]) * (tau[1] - tau[0])).sum() / len(grid))


@pytest.mark.parametrize("reverse", ["gaussian", "prior"])
def test_mean_of_the_exponential_of_the_bound_is_the_evidence(reverse):
    """E exp(log p + log r - log q) = p(X) whatever the weights: a wrong sign or a missing Jacobian breaks it."""
    x = np.array([[0.3, -0.4, 0.9], [1.2, 0.1, 0.5]], np.float32)
    guide = AutoCascadingFlow(crossed, auxiliary_size=2, n_layers=2, reverse=reverse)
    params = train(crossed, guide, 1000, 8, 2e-2, x)
    values = np.asarray(particles(crossed, guide, params, jax.random.key(1), 200_000, x), float)
    weights = np.exp(values - values.max())
    error = weights.std() / weights.mean() / np.sqrt(len(weights))
    assert error < 0.12
    assert np.log(weights.mean()) + values.max() == pytest.approx(exact_crossed(x), abs=4.5 * error + 2e-3)


def test_reaches_the_evidence_of_random_effects_and_never_beats_it():
    _, x = models.simulate_gre(0, 4, 3, 1, scales=SCALES)
    model = lambda x: models.gre(x, scales=SCALES)
    guide = AutoCascadingFlow(model, auxiliary_size=4)
    params = train(model, guide, 1500, 16, 2e-2, x)
    values = particles(model, guide, params, jax.random.key(1), 5000, x)
    gap = float(models.gre_log_evidence(x, scales=SCALES) - values.mean())
    error = float(values.std()) / 5000**0.5
    assert -4 * error < gap < 0.35
    exact = models.gre_posterior(x, scales=SCALES)
    draws = guide.sample_posterior(2, params, x, sample_shape=(4000,))["theta"][:, :, 0]
    np.testing.assert_allclose((draws.mean(0) - exact.theta_mean) / exact.theta_sd, 0, atol=0.25)
    np.testing.assert_allclose(draws.std(0) / exact.theta_sd, 1, atol=0.2)


def test_weights_of_auxiliaries_start_uniform():
    """With flows that do nothing, the root's auxiliary has variance (sum over children of 1 + 1) / (G + 1)^2."""
    _, x = models.simulate_gre(0, 5, 3, 1)
    guide = AutoCascadingFlow(models.gre, auxiliary_size=3)
    params = start(models.gre, guide, x)

    def draw(key):
        with handlers.block(), handlers.seed(rng_seed=key), handlers.substitute(data=params):
            graph = plate_graph(models.gre, x)
            sites = {name: guide._params(graph, name) for name in ("mu", "theta")}
            return guide._draw_auxiliaries(graph, sites)

    seen = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(seen["theta"].std(0), 1, atol=0.03)
    np.testing.assert_allclose(seen["mu"].var(0), 6 / 36, rtol=0.05)
    root, leaves = seen["mu"][:, 0], seen["theta"][:, :, 0, 0]
    np.testing.assert_allclose([np.mean(root * leaves[:, g]) for g in range(5)], 1 / 6, atol=0.02)


def test_number_of_weights_grows_with_the_copies():
    counts = []
    for n_groups in (4, 8):
        _, x = models.simulate_gre(0, n_groups, 3, 2)
        shapes = jax.eval_shape(lambda x=x: start(models.gre, AutoCascadingFlow(models.gre), x))
        counts.append(sum(leaf.size for leaf in jax.tree.leaves(shapes)))
    flow, reverse = 3 * (1 + 2 * 100 + 2 * 10), 2 * 8
    assert counts[0] == 5 * (flow + reverse) + 4 + 1 and counts[1] == 9 * (flow + reverse) + 8 + 1


def test_shapes_of_draws():
    x = np.zeros((2, 3), np.float32)
    guide = AutoCascadingFlow(crossed, auxiliary_size=2)
    draws = guide.sample_posterior(0, start(crossed, guide, x), x, sample_shape=(2, 5))
    assert {name: value.shape for name, value in draws.items()} == {
        "tau": (2, 5), "a": (2, 5, 2, 1), "b": (2, 5, 3), "c": (2, 5, 2, 3)
    }  # fmt: skip
    assert (draws["tau"] > 0).all() and (abs(draws["b"]) < 1).all()


def test_draws_compile_once_for_data_of_one_shape(compiled):
    x = np.zeros((2, 3), np.float32)
    guide = AutoCascadingFlow(crossed, auxiliary_size=2, n_layers=1)
    params = start(crossed, guide, x)
    moved = randomised(params)
    first = guide.sample_posterior(0, params, x)
    compiled.clear()
    again = guide.sample_posterior(0, params, x + 1)  # the guide does not look at the data
    other = guide.sample_posterior(0, moved, x)
    assert not compiled
    np.testing.assert_array_equal(first["c"], again["c"])
    assert not np.array_equal(first["c"], other["c"])
    assert not copy.copy(guide)._programs  # they are of the guide itself


@pytest.mark.parametrize(
    ("options", "message"),
    [({"auxiliary_size": 0}, "auxiliary_size"), ({"n_layers": 0}, "n_layers"), ({"reverse": "none"}, "reverse")],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        AutoCascadingFlow(models.gre, **options)


# --- implicit ---------------------------------------------------------------------------------------------------------


def test_sampler_has_the_right_law():
    cov = np.array([[1.0, 0.8], [0.8, 2.0]])
    precision = np.linalg.inv(cov)
    log_prob = lambda x: -0.5 * x @ precision @ x
    states, acceptance = hmc(jax.random.key(0), log_prob, jnp.ones(2), jnp.array(0.4), 100, 20_000, 5)
    np.testing.assert_allclose(np.cov(states.T), cov, atol=0.1)
    np.testing.assert_allclose(states.mean(0), 0, atol=0.06)
    assert 0.8 < acceptance <= 1


def test_sampler_with_a_step_too_long_stays_where_it_was():
    states, acceptance = hmc(jax.random.key(0), lambda x: -0.5e8 * (x**2).sum(), jnp.zeros(1), jnp.array(9.0), 0, 20, 5)
    assert acceptance < 0.1 and np.isfinite(states).all()


def normal_target():
    cov = jnp.array([[1.0, 0.9], [0.9, 1.0]])
    numpyro.sample("z", dist.MultivariateNormal(jnp.array([1.0, -2.0]), cov))


def test_a_correlated_normal_is_found():
    result = uivi_fit(normal_target, 0, 1500, init_scale=0.5)
    draws = np.asarray(result.sample(1, 10_000)["z"])
    np.testing.assert_allclose(draws.mean(0), [1, -2], atol=0.1)
    np.testing.assert_allclose(np.cov(draws.T), [[1, 0.9], [0.9, 1]], atol=0.15)
    bound = float(result.elbo(2, 500))
    mean_field = 0.5 * np.log(1 - 0.9**2)  # the target is normalised, so that the evidence is 0
    assert mean_field + 0.4 < bound < 0.02


def banana():
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("b", dist.Normal(a**2, 0.2))


def test_a_banana_is_found_where_mean_field_fails():
    result = uivi_fit(banana, 0, 2000)
    draws = result.sample(1, 10_000)
    implicit = float(result.elbo(2, 500))
    guide = numpyro.infer.autoguide.AutoNormal(banana)
    params = train(banana, guide, 2000, 16, 2e-2)
    mean_field = -float(Trace_ELBO(2000).loss(jax.random.key(1), params, banana, guide))
    assert mean_field < -0.8 and mean_field + 0.5 < implicit < 0.05
    assert np.std(draws["a"]) > 0.7
    assert np.std(draws["b"] - draws["a"] ** 2) < 0.5
    assert result.log_joints.shape == (2000,)


def test_constrained_sites_and_same_key_same_result():
    model = lambda: numpyro.sample("s", dist.Gamma(3.0, 1.0))
    one, two = uivi_fit(model, 0, 20), uivi_fit(model, 0, 20)
    np.testing.assert_array_equal(one.sample(1, 5)["s"], two.sample(1, 5)["s"])
    assert (one.sample(1, 50)["s"] > 0).all()


def test_results_compile_once_and_data_are_no_constants(compiled):
    traced = []

    def model(x, scale):
        traced.append(isinstance(x, jax.core.Tracer))
        z = numpyro.sample("z", dist.Normal(0.0, scale))
        with numpyro.plate("n", len(x)):
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    result = uivi_fit(model, 0, 5, np.ones(3, np.float32), scale=2.0)
    assert traced[-1]
    first = result.elbo(1, 10, 20), result.sample(1, 4)
    assert traced[-1]
    compiled.clear()
    second = result.elbo(1, 10, 20), result.sample(1, 4)
    assert not compiled
    jax.tree.map(np.testing.assert_array_equal, first, second)
    z = jnp.array([0.3])
    expected = dist.Normal(0.0, 2.0).log_prob(0.3) + 3 * dist.Normal(0.3, 1.0).log_prob(1.0)
    np.testing.assert_allclose(result.log_joint(z), expected, rtol=1e-5)
    assert result.elbo(1, 10, 5) != first[0]


def test_bad_sizes_and_bad_densities():
    for options in ({"num_kept": 0}, {"num_leapfrog": 0}, {"num_particles": 0}, {"noise_dim": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            uivi_fit(banana, 0, 5, **options)
    with pytest.raises(ValueError, match="optax"):
        uivi_fit(banana, 0, 5, optimizer=numpyro.optim.Adam(1e-2))

    def broken():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("nan", jnp.log(z - 100.0))

    with pytest.raises((FloatingPointError, RuntimeError)):
        uivi_fit(broken, 0, 5)
