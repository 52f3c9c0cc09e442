"""Tests of the guide: as NumPyro's, on all kinds of models, and with bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO, init_to_uniform

from gyri.pavi import AutoPAVI, fit, plate_graph
from gyri.pavi.flows import affine
from gyri.pavi.models import gre, simulate_gre

# A start that draws little: what compiles slowly here is the generator of random numbers.
SMALL = {"hidden": (4,), "encoding_size": 3, "init_loc_fn": init_to_uniform(radius=0.1)}


@pytest.fixture(scope="module")
def data():
    """Six groups of four observations in two dimensions."""
    return simulate_gre(jax.random.key(0), 6, 4, 2)[1]


def start(guide, *args, **kwargs):
    """Parameters at the start."""
    return guide.setup(args, kwargs).init_all(jax.random.key(0), args, kwargs)


@pytest.mark.parametrize("options", [{}, {"encoding": "data"}, {"amortize": False}, {"dependence": "prior"}])
def test_svi_update_in_a_scan_and_predictive(data, options):
    guide = AutoPAVI(gre, subsample_sizes={"groups": 2, "observations": 3}, **SMALL, **options)
    svi = SVI(gre, guide, optax.adam(1e-2), Trace_ELBO(num_particles=2))
    state = jax.jit(lambda key: svi.init(key, data))(jax.random.key(0))
    step = lambda state, _: svi.update(state, data)
    state, losses = jax.jit(lambda state: jax.lax.scan(step, state, length=60))(state)
    assert np.isfinite(losses).all() and losses[-10:].mean() < losses[:10].mean()
    params = svi.get_params(state)
    draws = jax.jit(Predictive(gre, guide=guide.full, params=params, num_samples=3))(jax.random.key(1), data)
    assert draws["x"].shape == (3, 6, 4, 2)
    posterior = jax.jit(Predictive(guide.full, params=params, num_samples=3))(jax.random.key(1), data)
    assert posterior["theta"].shape == (3, 6, 1, 2) and posterior["mu"].shape == (3, 2)
    own = guide.sample_posterior(1, params, data, sample_shape=(2, 3))
    assert own["theta"].shape == (2, 3, 6, 1, 2)
    # What SVI trains is what fit trains.
    expected = jax.eval_shape(lambda: guide.setup((data,), {}).init_all_params(jax.random.key(0), [data]))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)


def test_svi_run_from_numpyro_and_vmap_over_keys(data):
    guide = AutoPAVI(gre, subsample_sizes={"groups": 2}, **SMALL)
    result = SVI(gre, guide, optax.adam(1e-2), Trace_ELBO()).run(jax.random.key(0), 5, data, progress_bar=False)
    assert np.isfinite(result.losses).all()
    call = lambda key: handlers.seed(handlers.substitute(guide, result.params), key)(data)["theta"]
    assert jax.jit(jax.vmap(call))(jax.random.split(jax.random.key(1), 3)).shape == (3, 2, 1, 2)


def test_names_and_numbers_of_parameters(data):
    """Free: |phi| + N E a site; data: |phi| + |eta|; not amortized: N |phi|."""
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    flow = lambda cond: size(jax.eval_shape(lambda key: affine((4,)).init(key, 2, cond), jax.random.key(0)))

    def start(guide, x):
        setup = guide.setup((x,), {})
        return jax.eval_shape(lambda: setup.init_all_params(jax.random.key(0), [x]))

    free = start(AutoPAVI(gre, **SMALL), data)
    assert set(free) == {"mu_auto_encoding", "theta_auto_encoding", "mu_auto_flow$params", "theta_auto_flow$params"}
    assert free["theta_auto_encoding"].shape == (6, 1, 3) and free["mu_auto_encoding"].shape == (3,)
    assert size(free) == flow(3) + flow(3 + 2) + 3 + 6 * 3
    alone = start(AutoPAVI(gre, amortize=False, **SMALL), data)
    assert {k: v.shape for k, v in alone.items()} == {"mu_auto_flow": (flow(0),), "theta_auto_flow": (6, 1, flow(2))}
    guide = AutoPAVI(gre, encoding="data", **SMALL)
    small, large = start(guide, data), start(guide, jnp.tile(data, (3, 2, 1)))
    assert size(small) == size(large) and "auto_encoder$params" in small


@pytest.mark.parametrize(
    "options", [{}, {"encoding": "data"}, {"amortize": False}, {"dependence": "none"}, {"flow": "maf"}]
)
def test_start_is_near_the_strategys_value(data, options):
    from numpyro.infer import init_to_value

    loc = {"mu": jnp.array([1.0, -2.0]), "theta": jnp.full((6, 1, 2), 3.0)}
    guide = AutoPAVI(gre, init_scale=0.01, **{**SMALL, "init_loc_fn": init_to_value(values=loc)}, **options)
    draws = guide.sample_posterior(0, start(guide, data), data, sample_shape=(500,))
    np.testing.assert_allclose(draws["mu"].mean(0), loc["mu"], atol=0.01)
    np.testing.assert_allclose(draws["theta"].mean(0), loc["theta"], atol=0.01)
    np.testing.assert_allclose(draws["theta"].std(0), 0.01, rtol=0.15)


@pytest.mark.parametrize("options", [{}, {"amortize": False}, {"flow": "maf"}, {"encoding_size": 1}])
def test_copies_start_apart_where_all_are_visited(options, x64):
    """A mixture whose components all started at one place would never tell them apart."""
    from numpyro.infer import init_to_value

    def mixture(x):
        with numpyro.plate("components", 3, dim=-2):
            numpyro.sample("mean", dist.Normal(0, 1).expand([2]).to_event(1))
        with numpyro.plate("groups", len(x), dim=-1):
            numpyro.sample("shift", dist.Normal(0, 1).expand([2]).to_event(1))

    starts = {"mean": jnp.array([[[0.0, 3.0]], [[5.0, -1.0]], [[-2.0, 1.0]]]), "shift": jnp.array([[1.0, 0], [3, 0]])}
    options = {**SMALL, "init_loc_fn": init_to_value(values=starts), **options}
    guide = AutoPAVI(mixture, init_scale=0.01, subsample_sizes={"groups": 2}, **options)
    x = jnp.zeros(5)
    draws = guide.sample_posterior(0, start(guide, x), x, sample_shape=(50,))
    mean = starts["mean"] if guide.encoding_size > 1 else starts["mean"].mean(0, keepdims=True)
    # Rows of the table differ by a tenth of the spread besides.
    np.testing.assert_allclose(draws["mean"].mean(0), jnp.broadcast_to(mean, (3, 1, 2)), atol=1.0)
    np.testing.assert_allclose(draws["shift"].mean(0), jnp.broadcast_to(jnp.array([2.0, 0.0]), (5, 2)), atol=0.01)


@pytest.mark.parametrize("options", [{}, {"encoding": "data"}, {"amortize": False}])
def test_values_for_all_copies_are_kept_where_a_few_are_visited(options):
    """Also where they bound others; encodings from data start at their mean."""
    from numpyro.infer import init_to_value

    def model(x):
        with numpyro.plate("rows", 6, dim=-2) as i:
            top = numpyro.sample("top", dist.Uniform(4.0, 8.0))
            with numpyro.plate("columns", 2, dim=-1):
                numpyro.sample("u", dist.Uniform(0.0, top))
                numpyro.sample("x", dist.Normal(top, 1), obs=x[i])

    values = {"top": jnp.full((6, 1), 5.0), "u": jnp.array([1.0, 3.0])[:, None] + jnp.array([0.0, 1.0])}
    values["u"] = jnp.tile(values["u"], (3, 1))
    guide = AutoPAVI(
        model, init_scale=0.01, subsample_sizes={"rows": 2}, **{**SMALL, "init_loc_fn": init_to_value(values=values)},
        **options
    )  # fmt: skip
    x = jnp.zeros((6, 2))
    draws = guide.sample_posterior(0, start(guide, x), x, sample_shape=(200,))
    z = jnp.log(values["u"] / (5 - values["u"]))
    expected = 5 / (1 + jnp.exp(-(z.mean() if guide.encoding == "data" else z)))
    # Rows of the table differ by a tenth of the spread besides.
    np.testing.assert_allclose(
        draws["u"].mean(0), jnp.broadcast_to(expected, (6, 2)), atol=0.5 if not options else 0.02
    )
    np.testing.assert_allclose(draws["top"].mean(0), 5.0, atol=0.02)


def test_prior_dependence_starts_at_the_prior(data, x64):
    guide = AutoPAVI(gre, dependence="prior", **SMALL)
    params = start(guide, data)
    draws = guide.sample_posterior(0, params, data, sample_shape=(2000,))
    np.testing.assert_allclose(draws["mu"].std(0), 1.0, rtol=0.1)
    np.testing.assert_allclose((draws["theta"] - draws["mu"][:, None, None]).std(0), 0.2, rtol=0.1)
    one = {name: x[0] for name, x in draws.items()}
    prior = dist.Normal(0, 1).log_prob(one["mu"]).sum() + dist.Normal(one["mu"], 0.2).log_prob(one["theta"]).sum()
    np.testing.assert_allclose(guide.log_density(params, one, data), prior, rtol=1e-6)


def positive(x, mask=None):
    """Latents on the half-line, the simplex, an interval; a matrix; two sites in the plate."""
    a = numpyro.sample("a", dist.Gamma(2.0, 1.0).expand([2, 3]).to_event(2))
    with numpyro.plate("g", len(x)) as g:
        w = numpyro.sample("w", dist.Dirichlet(jnp.ones(4)))
        s = numpyro.sample("s", dist.HalfNormal(a.sum()))
        u = numpyro.sample("u", dist.Uniform(-1.0, s))
        numpyro.sample("x", dist.Normal(u + w[..., 0], 1.0), obs=x[g])


@pytest.mark.parametrize(
    "options", [{}, {"encoding": "data"}, {"dependence": "prior"}, {"amortize": False}, {"flow": "maf"}]
)
def test_constrained_supports(options, x64):
    """Draws stay inside, and the density of the guide integrates the change of variables (against NumPyro's trace)."""
    x = jnp.linspace(-1, 1, 5)
    guide = AutoPAVI(positive, **SMALL, **options)
    params = jax.tree.map(
        lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), start(guide, x)
    )

    @jax.jit
    def run(params):
        trace = handlers.trace(handlers.seed(handlers.substitute(guide.full, params), 0)).get_trace(x)
        sites = {name: site for name, site in trace.items() if site["type"] == "sample"}
        own = sum(site["fn"].log_prob(site["value"], site["intermediates"]).sum() for site in sites.values())
        return {name: site["value"] for name, site in sites.items()}, own

    values, own = run(params)
    assert values["a"].shape == (2, 3) and values["w"].shape == (5, 4)
    assert (values["a"] > 0).all() and np.allclose(values["w"].sum(-1), 1)
    assert (values["u"] > -1).all() and (values["u"] < values["s"]).all()
    np.testing.assert_allclose(guide.log_density(params, values, x), own, rtol=1e-6)
    many = guide.sample_posterior(1, params, x, sample_shape=(3,))
    assert guide.log_density(params, many, x).shape == (3,)


def test_density_of_the_guide_integrates_to_one(x64):
    """One site on the half-line, by quadrature."""

    def model():
        numpyro.sample("s", dist.LogNormal(0.0, 1.0))

    guide = AutoPAVI(model, flow="maf", init_scale=0.5, **SMALL)
    params = jax.tree.map(lambda p: p + 0.3 * jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), start(guide))
    s = jnp.exp(jnp.linspace(-12, 12, 20_001))
    density = jnp.exp(guide.log_density(params, {"s": s}))
    np.testing.assert_allclose(jnp.trapezoid(density, s), 1, atol=1e-4)


def crossed(x):
    """Subjects times vertices, with a latent in each and one in both."""
    s = numpyro.plate("s", x.shape[0], dim=-2)
    v = numpyro.plate("v", x.shape[1], dim=-1)
    m = numpyro.sample("m", dist.Normal(0, 1))
    with s as i:
        b = numpyro.sample("b", dist.Normal(m, 1))
    with v as j:
        c = numpyro.sample("c", dist.Normal(0, 1))
    with s, v:
        t = numpyro.sample("t", dist.Normal(b + c, 1))
        numpyro.sample("x", dist.Normal(t, 1), obs=x[i[:, None], j])


@pytest.mark.parametrize("encoding", ["free", "data"])
def test_crossed_plates(encoding):
    x = jax.random.normal(jax.random.key(0), (5, 4))
    guide = AutoPAVI(crossed, encoding=encoding, subsample_sizes={"s": 2, "v": 3}, **SMALL)
    params = fit(guide, 0, 30, x, num_particles=2, progress_bar=False).params
    draws = guide.sample_posterior(0, params, x)
    assert {k: v.shape for k, v in draws.items()} == {"m": (), "b": (5, 1), "c": (4,), "t": (5, 4)}
    chunks = guide.sample_posterior(0, params, x, chunk_size=2)
    for name in draws:
        np.testing.assert_allclose(draws[name], chunks[name], atol=1e-5)
    codes = guide.encodings(params, x)
    assert codes["t"].shape == (5, 4, 3) and codes["c"].shape == (4, 3) and codes["b"].shape == (5, 1, 3)


def test_copies_chosen_by_indices_are_those_of_the_whole(data):
    for options in ({}, {"encoding": "data"}):
        guide = AutoPAVI(gre, **SMALL, **options)
        params = start(guide, data)
        whole = guide.sample_posterior(0, params, data)
        part = guide.sample_posterior(0, params, data, indices={"groups": [4, 1]})
        np.testing.assert_allclose(part["theta"], whole["theta"][jnp.array([4, 1])], atol=1e-6)
        codes, some = guide.encodings(params, data), guide.encodings(params, data, indices={"groups": [4, 1]})
        np.testing.assert_allclose(some["theta"], codes["theta"][jnp.array([4, 1])], atol=1e-6)
        np.testing.assert_allclose(some["mu"], codes["mu"], atol=1e-6)
        density = guide.log_density(params, part, data, indices={"groups": [4, 1]})
        assert density.shape == () and jnp.isfinite(density)


def test_substituted_indices_fix_the_copies(data):
    guide = AutoPAVI(gre, subsample_sizes={"groups": 2}, **SMALL)
    params = start(guide, data)
    fixed = handlers.substitute(guide, {**params, "groups": jnp.array([5, 0])})
    trace = handlers.trace(handlers.seed(fixed, 0)).get_trace(data)
    assert trace["groups"]["value"].tolist() == [5, 0]
    condition = trace["theta"]["fn"].transforms[0].condition
    np.testing.assert_array_equal(condition[..., :3], params["theta_auto_encoding"][jnp.array([5, 0])])


def test_sizes_from_create_plates_and_from_the_model(data):
    def model(x):
        with numpyro.plate("g", 6, subsample_size=3) as g:
            z = numpyro.sample("z", dist.Normal(0, 1))
            numpyro.sample("x", dist.Normal(z, 1), obs=x[g])

    x = jnp.arange(6.0)
    call = lambda guide: jax.eval_shape(lambda: handlers.seed(guide, 0)(x))["z"].shape
    assert call(AutoPAVI(model, **SMALL)) == (3,)
    plates = lambda x: numpyro.plate("g", 6, subsample_size=2)
    assert call(AutoPAVI(model, create_plates=plates, **SMALL)) == (2,)
    assert call(AutoPAVI(model, create_plates=plates, subsample_sizes={"g": 4}, **SMALL)) == (4,)
    assert call(AutoPAVI(model, **SMALL).full) == (6,)


def test_encodings_of_a_plate_without_observations_have_its_copies():
    def model(x):
        with numpyro.plate("k", 3, dim=-2):
            numpyro.sample("a", dist.Normal(0, 1))
        with numpyro.plate("g", len(x), dim=-1) as g:
            z = numpyro.sample("z", dist.Normal(0, 1))
            numpyro.sample("x", dist.Normal(z, 1), obs=x[g])

    guide, x = AutoPAVI(model, encoding="data", **SMALL), jnp.arange(6.0)
    params = start(guide, x)
    assert {k: v.shape for k, v in guide.encodings(params, x).items()} == {"a": (3, 1, 3), "z": (6, 3)}
    assert guide.encodings(params, x, indices={"k": [1]})["a"].shape == (1, 1, 3)


def test_encodings_from_data_serve_new_groups(data):
    guide = AutoPAVI(gre, encoding="data", subsample_sizes={"groups": 3}, **SMALL)
    params = fit(guide, 0, 5, data, progress_bar=False).params
    new = simulate_gre(jax.random.key(7), 11, 2, 2)[1]
    assert guide.sample_posterior(0, params, new)["theta"].shape == (11, 1, 2)
    codes = guide.encodings(params, data)
    order = jnp.array([3, 1, 0, 5, 4, 2])
    moved = guide.encodings(params, data[order])
    np.testing.assert_allclose(moved["theta"], codes["theta"][order], atol=1e-5)
    np.testing.assert_allclose(moved["mu"], codes["mu"], atol=1e-5)


@pytest.mark.parametrize("encoding", ["free", "data"])
def test_data_of_numpy_that_the_model_indexes_are_those_of_jax(encoding):
    def slopes(t, y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("groups", len(y), dim=-2) as g:
            b = numpyro.sample("b", dist.Normal(mu, 1))
            with numpyro.plate("rows", y.shape[1], dim=-1) as n:
                numpyro.sample("y", dist.Normal(b * t[g[:, None], n], 1), obs=y[g[:, None], n])

    rng = np.random.default_rng(0)
    t, y = rng.standard_normal((2, 6, 4)).astype(np.float32)
    found = []
    for arrays in ((t, y), (jnp.asarray(t), jnp.asarray(y))):
        guide = AutoPAVI(slopes, encoding=encoding, subsample_sizes={"groups": 3}, **SMALL)
        params = fit(guide, 0, 5, *arrays, progress_bar=False).params
        found.append(guide.sample_posterior(0, params, *arrays)["b"])
    np.testing.assert_array_equal(*found)
    assert plate_graph(slopes, t, y) == plate_graph(slopes, jnp.asarray(t), jnp.asarray(y))


def test_free_encodings_are_tied_to_their_groups(data):
    guide = AutoPAVI(gre, **SMALL)
    params = start(guide, data)
    with pytest.raises(ValueError, match="plate 'groups' has 4 copies here and 6"):
        guide.sample_posterior(0, params, data[:4])


def test_medians_and_quantiles_of_a_known_law():
    def model():
        with numpyro.plate("g", 3):
            numpyro.sample("s", dist.LogNormal(0.0, 1.0))

    start_at = numpyro.infer.init_to_value(values={"s": jnp.full(3, 2.0)})
    guide = AutoPAVI(model, init_scale=0.5, **{**SMALL, "init_loc_fn": start_at})
    params = start(guide)
    median = guide.median(params, num_samples=4000)
    np.testing.assert_allclose(median["s"], 2.0, rtol=0.05)
    levels = guide.quantiles(params, [0.1, 0.9], num_samples=4000)["s"]
    expected = dist.LogNormal(np.log(2.0), 0.5).icdf(jnp.array([0.1, 0.9]))
    np.testing.assert_allclose(levels, np.tile(expected[:, None], (1, 3)), rtol=0.08)
    with pytest.raises(ValueError, match="quantiles"):
        guide.quantiles(params, 1.5)


def test_masked_latents_add_nothing():
    """A ragged plate: the masked copies' laws are masked in the guide, too."""

    def model(x, there):
        with numpyro.plate("g", len(x)) as g, handlers.mask(mask=there[g]):
            z = numpyro.sample("z", dist.Normal(0, 1))
            numpyro.sample("x", dist.Normal(z, 1), obs=x[g])

    from gyri.pavi import elbo

    x, there = jnp.array([1.0, 2.0, jnp.nan]), jnp.array([True, True, False])
    x = jnp.where(there, x, 0)
    guide = AutoPAVI(model, **SMALL)
    params = start(guide, x, there)
    masked = elbo(0, params, guide, x, there, full=True, num_particles=4)
    only = AutoPAVI(model, **SMALL)
    shorter = {k: v[:2] if k.endswith("encoding") else v for k, v in params.items()}
    np.testing.assert_allclose(masked, elbo(0, shorter, only, x[:2], there[:2], full=True, num_particles=4), rtol=1e-5)


def test_custom_flow_and_encoder(data):
    from gyri.pavi.encoders import deepset

    guide = AutoPAVI(gre, encoding="data", flow=affine((4,), triangular=False), encoder=deepset((4,)), **SMALL)
    assert np.isfinite(fit(guide, 0, 3, data, progress_bar=False).losses).all()


BAD_OPTIONS = [
    ({"encoding": "both"}, "encoding"),
    ({"encoding_size": 0}, "encoding_size"),
    ({"dependence": "children"}, "dependence"),
    ({"flow": "glow"}, "flow"),
    ({"encoder": "lstm"}, "encoder"),
    ({"init_scale": 0.0}, "init_scale"),
    ({"hidden": (0,)}, "hidden"),
]


@pytest.mark.parametrize(("options", "match"), BAD_OPTIONS)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        AutoPAVI(gre, **options)


def bad_plate(x):
    """A latent with a batch dimension that is no plate."""
    z = numpyro.sample("z", dist.Normal(jnp.zeros(3), 1))
    numpyro.sample("x", dist.Normal(z.sum(), 1), obs=x.sum())


def unindexed(x):
    """Data that do not follow the plate."""
    with numpyro.plate("g", len(x)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(z, 1), obs=x)


def counted(x):
    """A law that cannot be reparameterised."""
    numpyro.sample("z", dist.LeftTruncatedDistribution(dist.Normal(0, 1)) if False else dist.Kumaraswamy(1.0, 1.0))
    numpyro.sample("k", dist.Categorical(jnp.ones(2) / 2))


def looks_out(x):
    """A child outside of its parent's plate."""
    x = x[:, 0, 0]
    with numpyro.plate("g", len(x)) as g:
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(z, 1), obs=x[g])
    numpyro.sample("y", dist.Normal(z.sum(), 1))


def unseen(x):
    """No observation."""
    numpyro.sample("z", dist.Normal(0, 1))


def not_reparameterised(x):
    """No gradient of the draws."""
    numpyro.sample("z", dist.VonMises(0.0, 1.0))


BAD_CALLS = [
    (gre, {"subsample_sizes": {"cities": 2}}, "expected plates among"),
    (gre, {"subsample_sizes": {"groups": 7}}, "expected 1 to 6"),
    (gre, {"subsample_sizes": {"groups": 0}}, "expected 1 to 6"),
    (bad_plate, {}, "to_event"),
    (unindexed, {"subsample_sizes": {"g": 2}}, "index the data by the plate's indices"),
    (counted, {}, "'k' is discrete"),
    (looks_out, {}, "'y' depends on 'z'"),
    (unseen, {"encoding": "data"}, "observed site"),
    (not_reparameterised, {"dependence": "prior"}, "cannot be sampled with gradients"),
]


@pytest.mark.parametrize(("model", "options", "match"), BAD_CALLS)
def test_bad_models(data, model, options, match):
    with pytest.raises(ValueError, match=match):
        handlers.seed(AutoPAVI(model, **SMALL, **options), 0)(data)


def test_bad_data(data):
    guide = AutoPAVI(gre, **SMALL)
    with pytest.raises(ValueError, match="NaN or infinity outside its mask"):
        handlers.seed(guide, 0)(data.at[0, 0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="NaN or infinity outside its mask"):
        fit(AutoPAVI(gre, **SMALL), 0, 2, data.at[0, 0, 0].set(jnp.nan), progress_bar=False)
    with pytest.raises(ValueError, match="NaN or infinity outside its mask"):
        fit(AutoPAVI(gre, **SMALL), 0, 2, data.at[0, 0, 0].set(jnp.inf), progress_bar=False)
    fine = AutoPAVI(gre, **SMALL)
    fit(fine, 0, 0, data, progress_bar=False)
    with pytest.raises(ValueError, match="NaN or infinity outside its mask"):  # other data of the same shape
        fit(fine, 0, 0, data.at[0, 0, 0].set(jnp.nan), progress_bar=False)
    with pytest.raises(ValueError, match="x: expected data, got an empty array"):
        fit(AutoPAVI(looks_out, **SMALL), 0, 2, data[:0], progress_bar=False)
    mask = jnp.ones((6, 4), bool).at[0, 0].set(False)
    assert np.isfinite(fit(guide, 0, 2, data.at[0, 0, 0].set(jnp.nan), mask, progress_bar=False).losses).all()


def test_bad_samples_and_indices(data):
    guide = AutoPAVI(gre, **SMALL)
    params = start(guide, data)
    draws = guide.sample_posterior(0, params, data)
    with pytest.raises(ValueError, match="samples"):
        guide.log_density(params, {"mu": draws["mu"]}, data)
    with pytest.raises(ValueError, match="samples"):
        guide.log_density(params, {**draws, "theta": draws["theta"][:3]}, data)
    with pytest.raises(ValueError, match="indices"):
        guide.sample_posterior(0, params, data, indices={"groups": [9]})
    with pytest.raises(ValueError, match="indices"):
        guide.sample_posterior(0, params, data, indices={"cities": [0]})
    with pytest.raises(ValueError, match="amortize"):
        AutoPAVI(gre, amortize=False, **SMALL).encodings({}, data)


def test_the_whole_is_set_up_once():
    """Each call on all copies would compile anew."""
    guide, x = AutoPAVI(gre, **SMALL), jnp.zeros((6, 3, 2))
    assert guide.full.setup((x,), {}) is guide.full.setup((x,), {}) is not guide.setup((x,), {})
