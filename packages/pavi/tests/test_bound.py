"""Tests of the ELBO: unbiased on parts of the plates, the same in chunks, never above the evidence."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import Trace_ELBO

from gyri.pavi import AutoPAVI, elbo
from gyri.pavi.encoders import SetEncoder, deepset
from gyri.pavi.models import gre, simulate_gre

SCALES = (1.0, 0.7, 0.5)


def moved(guide, *args, seed=0):
    """Parameters away from their start, so that nothing is zero by chance."""
    params = guide.setup(args, {}).init_all(jax.random.key(seed), args, {})
    keys = iter(jax.random.split(jax.random.key(seed + 1), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape, x.dtype), params)


def model(x):
    """GRE with scales of order one."""
    gre(x, scales=SCALES)


def bracket(setup, params, values, x, indices):
    """The bracket of the reduced ELBO at given values, on given copies."""
    rows, encodings = setup.given(params, setup.full_encodings(params, [x], indices))
    sites = setup.graph.sites
    at = {k: v[setup.row_index(k, indices)] if sites[k].plates else v for k, v in values.items()}
    family = setup.run(params, rows, encodings, (x,), {}, indices, values=at)
    return sum(jnp.sum(t.scale_p * t.log_p) - jnp.sum(t.scale_q * t.log_q) for t in family.terms.values())


@pytest.mark.parametrize("dependence", ["parents", "prior", "none"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_average_over_all_subsets_is_the_whole(dependence, precision):
    """Values and gradients, with two nested plates reduced; the estimate of eq. (3) is unbiased."""
    with jax.enable_x64(precision == "float64"):
        _, x = simulate_gre(jax.random.key(0), 4, 3, 2, scales=SCALES)
        guide = AutoPAVI(
            model, dependence=dependence, hidden=(4,), encoding_size=3, subsample_sizes={"groups": 2, "observations": 2}
        )
        params = moved(guide, x)
        values = guide.sample_posterior(1, params, x)
        setup = guide.setup((x,), {})

        @jax.jit
        def at(params, groups, observations):
            indices = {"groups": groups, "observations": observations}
            return jax.value_and_grad(lambda p: bracket(setup, p, values, x, indices))(params)

        subsets = lambda n, b: [jnp.array(s) for s in itertools.combinations(range(n), b)]
        parts = [at(params, g, o) for g in subsets(4, 2) for o in subsets(3, 2)]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *parts)
        whole = at(params, jnp.arange(4), jnp.arange(3))
        tol = 1e-5 if precision == "float32" else 1e-10
        np.testing.assert_allclose(mean[0], whole[0], rtol=tol)
        flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        assert np.linalg.norm(flat(mean[1]) - flat(whole[1])) <= tol * np.linalg.norm(flat(whole[1]))


@pytest.mark.parametrize("encoding", ["free", "data"])
def test_mean_of_reduced_estimates(encoding):
    """4,000 reduced ELBOs against the whole; with encodings from data only the observations of a group are whole."""
    _, x = simulate_gre(jax.random.key(0), 6, 3, 2, scales=SCALES)
    guide = AutoPAVI(model, encoding=encoding, hidden=(4,), subsample_sizes={"groups": 6 if encoding == "data" else 2})
    params = moved(guide, x)
    keys = jax.random.split(jax.random.key(2), 4000)
    draws = np.asarray(jax.vmap(lambda key: elbo(key, params, guide, x))(keys))
    full = float(elbo(3, params, guide, x, full=True, num_particles=40_000, chunk_size=2))
    assert abs(draws.mean() - full) < 4.5 * draws.std() * np.sqrt(1 / 4000 + 1 / 40_000)


def test_reduced_elbo_is_that_of_numpyro():
    """The same draws and copies in NumPyro's own estimator give the same number."""
    _, x = simulate_gre(jax.random.key(0), 6, 3, 2, scales=SCALES)
    guide = AutoPAVI(model, hidden=(4,), subsample_sizes={"groups": 2})
    params = moved(guide, x)
    key = jax.random.key(5)
    seeded = handlers.seed(guide, key)
    trace = handlers.trace(handlers.substitute(seeded, params)).get_trace(x)
    values = {name: trace[name]["value"] for name in ("mu", "theta")}
    assert trace["groups"]["value"].shape == (2,) and trace["theta"]["scale"] == 3.0
    log_q = sum(
        np.sum((s["scale"] or 1) * s["fn"].log_prob(s["value"])) for s in trace.values() if s["type"] == "sample"
    )
    fixed = handlers.substitute(model, {**values, "groups": trace["groups"]["value"]})
    inner = handlers.trace(handlers.seed(fixed, 0)).get_trace(x)
    log_p = sum(
        np.sum((s["scale"] or 1) * s["fn"].log_prob(s["value"])) for s in inner.values() if s["type"] == "sample"
    )
    setup = guide.setup((x,), {})
    indices = {"groups": trace["groups"]["value"], "observations": jnp.arange(3)}
    family = setup.run(params, setup.take_rows(params, indices), None, (x,), {}, indices, values=values)
    ours = sum(float(np.sum(t.scale_p * t.log_p) - np.sum(t.scale_q * t.log_q)) for t in family.terms.values())
    np.testing.assert_allclose(ours, log_p - log_q, rtol=1e-4)


@pytest.mark.parametrize("encoding", ["free", "data"])
@pytest.mark.parametrize("dependence", ["parents", "prior"])
def test_chunks_change_nothing(encoding, dependence):
    _, x = simulate_gre(jax.random.key(0), 7, 3, 2, scales=SCALES)
    guide = AutoPAVI(model, encoding=encoding, dependence=dependence, hidden=(4,), subsample_sizes={"groups": 2})
    params = moved(guide, x)
    values = [float(elbo(1, params, guide, x, full=True, num_particles=3, chunk_size=c)) for c in (None, 3)]
    np.testing.assert_allclose(values, values[0], rtol=1e-5)
    draws = [guide.sample_posterior(1, params, x, sample_shape=(2,), chunk_size=c) for c in (None, 3)]
    for name in draws[0]:
        np.testing.assert_allclose(draws[0][name], draws[1][name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [{}, {"groups": 2}])
def test_the_bound_on_all_copies_is_that_of_the_full_guide(sizes):
    """Whatever was asked before: both have one setup."""
    _, x = simulate_gre(jax.random.key(0), 6, 3, 2, scales=SCALES)
    guides = [AutoPAVI(model, hidden=(4,), subsample_sizes=sizes) for _ in range(2)]
    params = moved(guides[0], x)
    ways = [lambda guide: elbo(1, params, guide.full, x), lambda guide: elbo(1, params, guide, x, full=True)]
    first = [float(way(guides[0])) for way in ways]
    second = [float(way(guides[1])) for way in reversed(ways)]
    assert first[0] == first[1] == second[0] == second[1]
    chunked = elbo(1, params, guides[0].full, x, chunk_size=2)
    np.testing.assert_allclose(chunked, elbo(1, params, guides[0], x, full=True, chunk_size=2), rtol=1e-6)


def test_elbo_under_jit_vmap_and_grad(x64):
    _, x = simulate_gre(jax.random.key(0), 6, 3, 2, scales=SCALES)
    guide = AutoPAVI(model, hidden=(4,), subsample_sizes={"groups": 2})
    params = moved(guide, x)
    one = elbo(jax.random.key(3), params, guide, x, num_particles=2)
    np.testing.assert_allclose(
        jax.jit(lambda k, p, x: elbo(k, p, guide, x, num_particles=2))(jax.random.key(3), params, x), one
    )
    many = jax.vmap(lambda key: elbo(key, params, guide, x, num_particles=2))(jax.random.split(jax.random.key(4), 3))
    assert many.shape == (3,) and np.ptp(many) > 0
    loss = lambda p: elbo(jax.random.key(3), p, guide, x, num_particles=2)
    gradient = jax.grad(loss)(params)
    direction = jax.tree.map(lambda g: jax.random.normal(jax.random.key(5), g.shape), gradient)
    slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    step = lambda h: loss(jax.tree.map(lambda p, d: p + h * d, params, direction))
    np.testing.assert_allclose((step(1e-5) - step(-1e-5)) / 2e-5, slope, rtol=1e-5)


def test_entropy_weight_zero_is_the_log_density_of_the_model():
    _, x = simulate_gre(jax.random.key(0), 4, 3, 2, scales=SCALES)
    guide = AutoPAVI(model, hidden=(4,))
    params = moved(guide, x)
    draw = guide.sample_posterior(2, params, x, sample_shape=(1,))
    whole = elbo(2, params, guide, x, full=True)
    mode = elbo(2, params, guide, x, full=True, entropy_weight=0.0)
    assert float(whole) != float(mode)
    # The same key, one particle: the entropy term is minus log q at the draw.
    key = jax.random.split(jax.random.key(2), 1)
    assert key.shape == (1,)
    np.testing.assert_allclose(mode - whole, guide.log_density(params, draw, x)[0], rtol=1e-4)


def test_an_encoder_without_rows_may_mix_the_copies():
    """What one draws and bounds is what the density says: each copy less the mean of all."""
    _, x = simulate_gre(jax.random.key(0), 4, 3, 2, scales=SCALES)
    plain = deepset((4,))

    def apply(*args):
        found = plain.apply(*args)
        return {plates: e - e.mean(0, keepdims=True) if "groups" in plates else e for plates, e in found.items()}

    guide = AutoPAVI(model, encoding="data", encoder=SetEncoder(plain.init, apply), hidden=(4,))
    params = moved(guide, x)
    draw = guide.sample_posterior(2, params, x)
    entropy = elbo(2, params, guide, x, full=True) - elbo(2, params, guide, x, full=True, entropy_weight=0.0)
    single = guide.sample_posterior(2, params, x, sample_shape=(1,))
    np.testing.assert_allclose(entropy, -guide.log_density(params, single, x)[0], rtol=1e-4)
    order = jnp.array([2, 0])
    some = guide.sample_posterior(2, params, x, indices={"groups": order}, chunk_size=1)
    np.testing.assert_allclose(some["theta"], draw["theta"][order], atol=1e-6)


def test_factors_and_scales_of_the_model_count_as_in_numpyro():
    def model(x):
        with handlers.scale(scale=0.3):
            mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.factor("extra", -(mu**2))
        with numpyro.plate("g", 3) as g:
            numpyro.sample("x", dist.Normal(mu, 1), obs=x[g])

    x = jnp.arange(3.0)
    guide = AutoPAVI(model, hidden=(4,))
    params = moved(guide, x)
    ours = elbo(0, params, guide, x, full=True, num_particles=100_000)
    loss = Trace_ELBO(num_particles=100_000).loss(jax.random.key(1), params, model, guide, x)
    np.testing.assert_allclose(ours, -loss, atol=0.03)


def test_what_sees_all_copies_is_not_chunked():
    def model(x):
        with numpyro.plate("g", len(x)) as g:
            z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(z.sum(), 1), obs=1.0)
        with numpyro.plate("g", len(x)):
            numpyro.sample("x", dist.Normal(z, 1), obs=x[g])

    x = jnp.arange(3.0)
    guide = AutoPAVI(model, hidden=(4,))
    params = moved(guide, x)
    assert jnp.isfinite(elbo(0, params, guide, x, full=True))
    with pytest.raises(ValueError, match="chunk_size"):
        elbo(0, params, guide, x, full=True, chunk_size=2)


@pytest.mark.parametrize("bad", [{"num_particles": 0}, {"chunk_size": 0, "full": True}, {"chunk_size": 2}])
def test_bad_numbers(bad):
    _, x = simulate_gre(jax.random.key(0), 4, 3, 2)
    guide = AutoPAVI(gre, hidden=(4,))
    with pytest.raises(ValueError, match=next(iter(bad))):
        elbo(0, {}, guide, x, **bad)
