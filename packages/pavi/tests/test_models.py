"""Tests of gyri.pavi.models: closed forms against dense linear algebra and minimisation, models on parts of plates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density

from gyri.pavi import models
from gyri.pavi.plates import FixPlates, plate_graph

SCALES = (1.3, 0.7, 0.9)
UNEVEN = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1]], bool)


def uneven(seed=0, dim=2, scales=SCALES):
    """Groups of 4, 1, 2, 0 and 3 observations; what the mask leaves out is not a number."""
    _, x = models.simulate_gre(seed, *UNEVEN.shape, dim, scales=scales)
    return np.where(UNEVEN[..., None], np.asarray(x), np.nan)


def dense_joint(counts, scales):
    """Covariance of (mu, theta, x) in one dimension: the latents by a lower-triangular map of independent normals."""
    s_m, s_g, s_x = scales
    n_groups, total = len(counts), sum(counts)
    latent = np.zeros((1 + n_groups, 1 + n_groups + total))
    latent[:, 0] = s_m
    latent[1:, 1 : 1 + n_groups] = s_g * np.eye(n_groups)
    member = np.repeat(np.arange(n_groups), counts)
    observed = latent[1 + member].copy()
    observed[:, 1 + n_groups :] = s_x * np.eye(total)
    root = np.concatenate([latent, observed])
    return root @ root.T


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_evidence_and_posterior_are_those_of_a_dense_normal(x64):
    x = uneven()
    counts = UNEVEN.sum(1)
    cov = dense_joint(counts, SCALES)
    k = 1 + len(counts)
    evidence, found = 0.0, models.gre_posterior(x, UNEVEN, scales=SCALES)
    for d in range(2):
        values = x[..., d][UNEVEN]
        evidence += scipy.stats.multivariate_normal(cov=cov[k:, k:]).logpdf(values)
        gain = cov[:k, k:] @ np.linalg.inv(cov[k:, k:])
        mean, sd = gain @ values, np.sqrt(np.diag(cov[:k, :k] - gain @ cov[k:, :k]))
        np.testing.assert_allclose(np.append(found.mu_mean[d], found.theta_mean[:, d]), mean, rtol=1e-10)
        np.testing.assert_allclose(np.append(found.mu_sd[d], found.theta_sd[:, d]), sd, rtol=1e-10)
    np.testing.assert_allclose(models.gre_log_evidence(x, UNEVEN, scales=SCALES), evidence, rtol=1e-12)


def test_evidence_is_what_the_specification_measured():
    found = []
    for n_groups in (3, 30, 300):
        values = [float(models.gre_log_evidence(models.simulate_gre(seed, n_groups, 50, 2)[1])) for seed in range(5)]
        found.append(np.median(values))
    np.testing.assert_allclose(found, [450, 4516, 45274], rtol=0.03)


def test_without_a_mask_all_observations_count():
    _, x = models.simulate_gre(0, 4, 3, 2, scales=SCALES)
    full = np.ones((4, 3), bool)
    for function in (models.gre_posterior, models.gre_log_evidence):
        jax.tree.map(np.testing.assert_array_equal, function(x, scales=SCALES), function(x, full, scales=SCALES))


def gaussian_kl(mean_q, cov_q, precision_p, mean_p):
    k = len(mean_q)
    gap = mean_q - mean_p
    return 0.5 * (
        np.trace(precision_p @ cov_q) - k + gap @ precision_p @ gap - np.linalg.slogdet(precision_p @ cov_q)[1]
    )


def best_gap(counts, scales, dependence):
    """Smallest KL of the family to the exact posterior in one dimension, by a quasi-Newton method over all its sds."""
    s_m, s_g, s_x = scales
    n_groups = len(counts)
    precision = np.zeros((1 + n_groups,) * 2)
    precision[0, 0] = s_m**-2 + n_groups / s_g**2
    precision[0, 1:] = precision[1:, 0] = -1 / s_g**2
    precision[1:, 1:] = np.diag(1 / s_g**2 + np.array(counts) / s_x**2)

    def kl(raw):
        sd_mu, slopes, sds = np.exp(raw[0]), raw[1 : 1 + n_groups], np.exp(raw[1 + n_groups :])
        if dependence == "none":
            slopes = 0 * slopes
        if dependence == "prior":
            slopes, sds = sds / s_g, sds  # u = mu + s_g e goes through beta u + const
        root = np.diag(np.append(sd_mu, sds))
        root[1:, 0] = slopes * sd_mu
        return gaussian_kl(np.zeros(1 + n_groups), root @ root.T, precision, np.zeros(1 + n_groups))

    log_sd = -0.5 * np.log(np.diag(precision))  # of each variable given the others
    start = np.concatenate([log_sd[:1], np.zeros(n_groups), log_sd[1:]])
    return scipy.optimize.minimize(kl, start, method="BFGS", options={"gtol": 1e-9}).fun


@pytest.mark.parametrize(
    ("dependence", "scales"),
    [
        ("parents", SCALES),
        ("none", (0.5, 1.0, 3.0)),
        ("prior", SCALES),
        ("prior", (1.0, 0.2, 0.05)),
        ("prior", (0.5, 1.0, 3.0)),
    ],
)
def test_optimal_gap_is_that_of_direct_minimisation(x64, dependence, scales):
    found = models.gre_optimal_gap(uneven(dim=3), UNEVEN, scales=scales, dependence=dependence)
    expected = 3 * best_gap(UNEVEN.sum(1), scales, dependence)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_optimal_gaps_are_ordered(dtype):
    x = jnp.zeros((14, 3, 2), dtype)
    gaps = [models.gre_optimal_gap(x, scales=SCALES, dependence=kind) for kind in ("parents", "prior", "none")]
    assert [gap.dtype for gap in gaps] == [jnp.dtype(dtype)] * 3
    np.testing.assert_allclose(gaps, [0, 0.211, 0.428], atol=1e-3)


def test_closed_forms_compile_and_differentiate(x64):
    x = uneven()

    def value(x):
        return models.gre_log_evidence(x, UNEVEN, scales=SCALES)

    np.testing.assert_allclose(jax.jit(value)(x), value(x), rtol=1e-12)
    slope, step = jax.grad(value)(jnp.asarray(x)), np.zeros_like(x)
    step[0, 1, 0] = 1e-5
    np.testing.assert_allclose(slope[0, 1, 0], (value(x + step) - value(x - step)) / 2e-5, rtol=1e-6)
    assert not np.asarray(slope)[~UNEVEN].any()
    gaps = jax.jit(lambda x: models.gre_optimal_gap(x, UNEVEN, scales=SCALES, dependence="prior"))(x)
    np.testing.assert_allclose(gaps, models.gre_optimal_gap(x, UNEVEN, scales=SCALES, dependence="prior"), rtol=1e-10)


def test_evidence_is_the_joint_over_the_posterior(x64):
    """log p(x) = log p(theta, x) - log p(theta | x) at any theta, with the model's own density."""
    x = uneven()
    exact = models.gre_posterior(x, UNEVEN, scales=SCALES)
    s_g = SCALES[1]
    mu = exact.mu_mean + 0.3
    n = UNEVEN.sum(1)[:, None]
    variance = 1 / (1 / s_g**2 + n / SCALES[2] ** 2)
    mean = variance * (mu / s_g**2 + np.nansum(x, 1) / SCALES[2] ** 2)
    theta = mean - 0.2
    log_q = scipy.stats.norm(exact.mu_mean, exact.mu_sd).logpdf(mu).sum()
    log_q += scipy.stats.norm(mean, np.sqrt(variance)).logpdf(theta).sum()
    joint, _ = log_density(
        models.gre, (x, UNEVEN), {"scales": SCALES}, {"mu": jnp.asarray(mu), "theta": jnp.asarray(theta)[:, None]}
    )
    np.testing.assert_allclose(joint - log_q, models.gre_log_evidence(x, UNEVEN, scales=SCALES), rtol=1e-10)


# --- every model ------------------------------------------------------------------------------------------------------

NARROW = {"n_networks": 3, "log_ranges": models.NARROW}


@functools.cache
def cases():
    """Name: model, its data, its options, plate sizes of a part."""
    _, x = models.simulate_gre(0, 6, 4, 2)
    mask = np.arange(4) < np.array([4, 3, 4, 1, 2, 4])[:, None]
    _, mixture = models.simulate_gaussian_mixture(1, 5, 6, 2)
    _, laplace = models.simulate_non_conjugate(2)
    _, profiles, _ = models.simulate_ms_hbm(3, 4, 3, 5, 2, n_networks=3)
    covariates = jax.random.normal(jax.random.key(4), (6, 4, 2))
    schools = models.EIGHT_SCHOOLS
    return {
        "gre": (models.gre, (x, mask), {}, {"groups": 2, "observations": 3}),
        "mixture": (models.gaussian_mixture, (mixture,), {}, {"groups": 2, "observations": 4}),
        "laplace": (models.non_conjugate, (laplace,), {}, {"observations": 4}),
        "global labels": (models.ms_hbm, (profiles,), NARROW, {"subjects": 2, "sessions": 2, "vertices": 3}),
        "free labels": (
            models.ms_hbm,
            (profiles,),
            {**NARROW, "labels": "free"},
            {"networks": 3, "subjects": 2, "sessions": 2, "vertices": 3},
        ),
        "schools": (models.eight_schools, (schools.y, schools.sigma), {}, {"schools": 3}),
        "regression": (models.random_effects_regression, (covariates, x[..., 0], mask), {}, {"groups": 2}),
    }


CASES = ("gre", "mixture", "laplace", "global labels", "free labels", "schools", "regression")


def run_on(model, indices, args, options, latents=None, key=0):
    """Trace of the model on given indices of its plates."""
    graph = plate_graph(model, *args, **options)
    return trace_on(model, graph, indices, args, options, latents, key)


def trace_on(model, graph, indices, args, options, latents=None, key=0):
    """The same, for a function that is compiled."""
    sizes = {name: plate.size for name, plate in graph.plates.items()}
    every = {name: jnp.asarray(indices.get(name, np.arange(size))) for name, size in sizes.items()}
    fixed = FixPlates(model, indices=every)
    fixed = handlers.seed(handlers.substitute(fixed, data=latents or {}), key)
    return handlers.trace(fixed).get_trace(*args, **options)


def draws_and_densities(name, indices, latents=None):
    """Of one run: what was drawn, the log density and the event dimension of each site, and its scale."""
    model, args, options, _ = cases()[name]
    graph = plate_graph(model, *args, **options)
    static = {}

    @jax.jit
    def run(indices, latents):
        found = trace_on(model, graph, indices, args, options, latents)
        sites = {k: site for k, site in found.items() if site["type"] == "sample"}
        static.update({k: (site["fn"].event_dim, site["is_observed"], site["scale"]) for k, site in sites.items()})
        values = {k: site["value"] for k, site in sites.items()}
        return values, {k: site["fn"].log_prob(site["value"]) for k, site in sites.items()}

    values, densities = run(indices, latents or {})
    return graph, values, densities, static


def restrict(graph, name, value, indices, event_dim):
    """The part of a full draw that the plates' indices keep."""
    for plate in graph.sites[name].plates:
        if plate in indices:
            value = np.take(np.asarray(value), indices[plate], axis=graph.plates[plate].dim - event_dim)
    return value


@pytest.mark.parametrize("name", CASES)
def test_parts_of_a_model_are_parts_of_the_whole(name):
    """On drawn indices, each site's log density is that of the full model at the same copies, weighed by N / b."""
    sizes = cases()[name][3]
    graph, values, whole, static = draws_and_densities(name, {})
    rng = np.random.default_rng(0)
    indices = {plate: rng.permutation(graph.plates[plate].size)[:b] for plate, b in sizes.items()}
    latents = {k: restrict(graph, k, value, indices, static[k][0]) for k, value in values.items() if not static[k][1]}
    _, _, part, part_static = draws_and_densities(name, indices, latents)
    for site in whole:
        np.testing.assert_allclose(part[site], restrict(graph, site, whole[site], indices, 0), rtol=2e-5, atol=2e-5)
        weight = np.prod([graph.plates[p].size / sizes[p] for p in graph.sites[site].plates if p in sizes])
        assert (part_static[site][2] or 1.0) == pytest.approx(weight)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_and_masks_hide_nan(name):
    model, args, options, _ = cases()[name]
    if name in ("gre", "regression"):
        position = {"gre": 0, "regression": 1}[name]
        args, mask = list(args), args[-1]
        args[position] = np.where(
            mask.reshape(mask.shape + (1,) * (np.ndim(args[position]) - 2)), args[position], np.nan
        )
    _, values, _, static = draws_and_densities(name, {})
    latents = {k: value for k, value in values.items() if not static[k][1]}
    slopes = jax.jit(jax.grad(lambda latents: log_density(model, args, options, latents)[0]))(latents)
    assert all(np.isfinite(slope).all() for slope in slopes.values())


@pytest.mark.parametrize("name", CASES)
def test_graphs_of_the_models(name):
    model, args, options, _ = cases()[name]
    sites = plate_graph(model, *args, **options).sites
    found = {k: (site.plates, set(site.parents)) for k, site in sites.items()}
    networks, subjects = ("networks",), ("networks", "subjects")
    profile = {
        "log_kappa": ((), set()),
        "mu": (networks, set()),
        "log_epsilon": (networks, set()),
        "log_sigma": (networks, set()),
        "mu_subject": (subjects, {"mu", "log_epsilon"}),
        "mu_session": ((*subjects, "sessions"), {"mu_subject", "log_sigma"}),
        "x": (("subjects", "sessions", "vertices"), {"log_kappa", "mu_session", "pi"}),
    }
    rows = ("groups", "observations")
    expected = {
        "gre": {"mu": ((), set()), "theta": (("groups",), {"mu"}), "x": (rows, {"theta"})},
        "mixture": {
            "mu": ((), set()),
            "mu_group": (("groups",), {"mu"}),
            "pi": (("groups",), set()),
            "x": (rows, {"mu_group", "pi"}),
        },
        "laplace": {"a": ((), set()), "x": (("observations",), {"a"})},
        "global labels": {**profile, "pi": ((), set())},
        "free labels": {**profile, "pi": (("subjects", "vertices"), set())},
        "schools": {
            "mu": ((), set()),
            "tau": ((), set()),
            "theta": (("schools",), {"mu", "tau"}),
            "y": (("schools",), {"theta"}),
        },
        "regression": {
            "beta": ((), set()),
            "tau": ((), set()),
            "sigma": ((), set()),
            "beta_group": (("groups",), {"beta", "tau"}),
            "y": (rows, {"beta_group", "sigma"}),
        },
    }[name]
    assert found == expected


@pytest.mark.parametrize("name", CASES)
def test_models_draw_their_data(name):
    model, args, options, _ = cases()[name]
    if name == "schools":
        new, observed = (None, args[1]), "y"
    elif name == "regression":
        new, observed = (args[0], None, args[2]), "y"
    else:
        new, observed, options = (None,), "x", {**options, "shape": args[0].shape}
    draws = jax.jit(lambda key: Predictive(model, num_samples=3)(key, *new, **options))(jax.random.key(0))
    expected = args[1 if name == "regression" else 0].shape
    assert draws[observed].shape == (3, *expected)
    assert all(np.isfinite(value).all() for value in draws.values())


def test_models_run_in_both_precisions(dtype):
    _, x = models.simulate_gre(0, 3, 4, 2)
    trace = run_on(models.gre, {}, (x,), {})
    assert {site["value"].dtype for site in trace.values() if site["type"] == "sample"} == {jnp.dtype(dtype)}


def test_same_key_same_data():
    for simulate in (lambda key: models.simulate_gre(key, 3, 4, 2), models.simulate_gaussian_mixture):
        jax.tree.map(np.testing.assert_array_equal, simulate(7), simulate(jax.random.key(7)))
        assert (np.asarray(simulate(7)[1]) != np.asarray(simulate(8)[1])).all()


def test_simulated_effects_have_their_scales():
    latents, x = models.simulate_gre(0, 2000, 50, 2, scales=(3.0, 0.5, 0.1))
    assert latents["theta"].shape == (2000, 1, 2)
    np.testing.assert_allclose(np.std(x - latents["theta"]), 0.1, rtol=0.02)
    np.testing.assert_allclose(np.std(latents["theta"] - latents["mu"]), 0.5, rtol=0.05)


def test_gamma_prior_has_rate_one_half():
    draws = Predictive(models.non_conjugate, num_samples=4000)(jax.random.key(0), shape=(1, 2))
    np.testing.assert_allclose(draws["a"].mean(), 2.0, rtol=0.06)
    np.testing.assert_allclose(np.abs(draws["x"][:, 0] - draws["a"]).mean(), 0.3, rtol=0.06)


def test_mixture_density_is_the_sum_over_labels(x64):
    latents, x = models.simulate_gaussian_mixture(0, 2, 4, 2)
    found = run_on(models.gaussian_mixture, {}, (x,), {}, latents)["x"]
    expected = np.zeros((2, 4))
    for g in range(2):
        for n in range(4):
            parts = [
                np.asarray(latents["pi"])[g, 0, k]
                * scipy.stats.norm(np.asarray(latents["mu_group"])[g, 0, k], 0.05).pdf(np.asarray(x)[g, n]).prod()
                for k in range(3)
            ]
            expected[g, n] = np.log(sum(parts))
    np.testing.assert_allclose(found["fn"].log_prob(found["value"]), expected, rtol=1e-9)


# --- parcellation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["global", "free"])
def test_parcellation_density_and_labels_by_hand(x64, labels):
    latents, x, _ = models.simulate_ms_hbm(3, 4, 3, 5, 2, n_networks=3, labels=labels)
    kappa = float(np.exp(latents["log_kappa"]))
    mu, pi, joint = np.asarray(latents["mu_session"]), np.asarray(latents["pi"]), np.zeros((4, 3, 5, 3))
    for s, t, n, k in np.ndindex(joint.shape):
        weight = pi[k] if labels == "global" else pi[s, 0, n, k]
        joint[s, t, n, k] = weight * scipy.stats.norm(mu[k, s, t, 0], kappa).pdf(np.asarray(x)[s, t, n]).prod()
    site = run_on(models.ms_hbm, {}, (x,), {**NARROW, "labels": labels}, latents)["x"]
    np.testing.assert_allclose(site["fn"].log_prob(x), np.log(joint.sum(-1)), rtol=1e-8)
    two = {name: np.stack([value, value]) for name, value in latents.items()}
    found = models.ms_hbm_labels(two, x)
    np.testing.assert_allclose(found, joint / joint.sum(-1, keepdims=True), rtol=1e-7, atol=1e-12)


def test_labels_are_averaged_over_draws():
    latents, x, _ = models.simulate_ms_hbm(3, 4, 3, 5, 2, n_networks=3)
    swapped = {**latents, "mu_session": latents["mu_session"][::-1], "pi": latents["pi"][::-1]}
    one, other = (models.ms_hbm_labels(jax.tree.map(lambda v: v[None], draw), x) for draw in (latents, swapped))
    both = models.ms_hbm_labels(jax.tree.map(lambda *v: jnp.stack(v), latents, swapped), x)
    np.testing.assert_allclose(both, (one + other) / 2, atol=1e-6)
    np.testing.assert_allclose(other, one[..., ::-1], atol=1e-6)


def test_simulated_labels_come_from_their_networks():
    latents, x, labels = models.simulate_ms_hbm(1, 4, 3, 200, 2, n_networks=3, labels="free")
    means = np.moveaxis(np.asarray(latents["mu_session"])[:, :, :, 0], 0, 2)  # (s, t, networks, dim)
    own = np.take_along_axis(means, np.asarray(labels)[..., None], 2)
    np.testing.assert_allclose(np.std(x - own), np.exp(latents["log_kappa"]), rtol=0.05)


# --- data on the host -------------------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(tmp_path):
    latents, x, _ = models.simulate_ms_hbm(3, 4, 3, 5, 2, n_networks=3)
    np.save(tmp_path / "x.npy", np.asarray(x))
    return latents, x, models.HostData(np.load(tmp_path / "x.npy", mmap_mode="r"))


def test_data_on_disk_are_those_in_memory(on_disk):
    latents, x, data = on_disk
    indices = {"subjects": [2, 0], "sessions": [1], "vertices": [4, 0, 3]}

    @jax.jit
    def log_prob(data, mu, indices):
        part = {**latents, "mu_subject": latents["mu_subject"][:, jnp.array([2, 0])], "mu_session": mu}
        site = run_on(models.ms_hbm, indices, (data,), NARROW, part)["x"]
        return site["fn"].log_prob(site["value"]).sum()

    mu = latents["mu_session"][:, jnp.array([2, 0])][:, :, jnp.array([1])]
    indices = jax.tree.map(jnp.array, indices, is_leaf=lambda v: isinstance(v, list))
    for function in (log_prob, jax.grad(log_prob, argnums=1)):
        np.testing.assert_allclose(function(data, mu, indices), function(x, mu, indices), rtol=1e-5)
    function = jax.tree_util.Partial(lambda s, t, n: x[jnp.ix_(s, t, n)])
    site = run_on(models.ms_hbm, indices, (function,), {**NARROW, "shape": x.shape}, {})["x"]
    np.testing.assert_array_equal(
        site["value"], x[jnp.ix_(*(indices[name] for name in ("subjects", "sessions", "vertices")))]
    )


def test_data_on_disk_under_vmap_and_scan(on_disk):
    _, x, data = on_disk
    s, t, n = jnp.array([[0, 1], [3, 2]]), jnp.array([1]), jnp.array([4, 0])
    expected = np.stack([np.asarray(x)[np.ix_(row, t, n)] for row in np.asarray(s)])
    np.testing.assert_array_equal(jax.vmap(lambda s: data(s, t, n))(s), expected)
    np.testing.assert_array_equal(jax.lax.map(lambda s: data(s, t, n), s), expected)


def test_same_data_on_disk_do_not_compile_again(on_disk):
    _, _, data = on_disk
    count = 0

    @jax.jit
    def read(data, s):
        nonlocal count
        count += 1
        return data(s, jnp.array([0]), jnp.array([0])).sum()

    read(data, jnp.array([0, 1])), read(data, jnp.array([2, 1]))
    assert count == 1


def test_data_on_the_host_are_read_in_the_default_precision():
    data = models.HostData(np.ones((3, 2)))
    assert data(jnp.array([0])).dtype == jnp.float32
    with jax.enable_x64(True):
        assert data(jnp.array([0])).dtype == jnp.float64


# --- textbook data ----------------------------------------------------------------------------------------------------


def test_eight_schools_shrink_as_in_the_textbook():
    mcmc = MCMC(NUTS(models.eight_schools), num_warmup=500, num_samples=1000, progress_bar=False)
    mcmc.run(jax.random.key(0), models.EIGHT_SCHOOLS.y)
    draws = mcmc.get_samples()
    assert draws["mu"].mean() == pytest.approx(4.4, abs=1.0)
    assert draws["theta"].mean(0).argmax() == 0 and 5 < draws["theta"].mean(0)[0] < 9


def test_grunfeld_is_standardised():
    data = models.load_grunfeld()
    assert data.covariates.shape == (11, 20, 2) and data.y.shape == (11, 20) and len(data.firms) == 11
    for values in (data.covariates[..., 0], data.covariates[..., 1], data.y):
        np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=1e-12)
    assert np.corrcoef(data.covariates[..., 0].ravel(), data.y.ravel())[0, 1] > 0.8


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.gre(), "shape: expected"),
        (lambda: models.gre(np.zeros((3, 4))), r"x: expected shape \(n_groups, n_observations, dim\), got \(3, 4\)"),
        (lambda: models.gre(np.zeros((3, 0, 2))), "x: n_observations"),
        (lambda: models.gre(np.zeros((3, 4, 2)), shape=(3, 4, 1)), "shape: expected that of x"),
        (lambda: models.gre(np.zeros((3, 4, 2)), np.ones((3, 3), bool)), "mask: expected shape"),
        (lambda: models.gre(np.zeros((3, 4, 2)), scales=(1.0, 0.0, 1.0)), "scales"),
        (lambda: models.gre(np.zeros((3, 4, 2)), scales=(1.0, 1.0)), "scales: expected"),
        (lambda: models.gre_posterior(np.zeros((3, 4))), "x: expected shape"),
        (lambda: models.gre_log_evidence(np.zeros((3, 4, 2)), np.ones((4, 3), bool)), "mask: expected shape"),
        (lambda: models.gre_optimal_gap(np.zeros((3, 4, 2)), dependence="children"), "dependence"),
        (lambda: models.gaussian_mixture(np.zeros((3, 4, 2)), n_components=0), "n_components"),
        (lambda: models.non_conjugate(np.zeros((3, 2)), scale=-1.0), "scale"),
        (lambda: models.ms_hbm(np.zeros((3, 4, 2, 1)), n_networks=2, labels="local"), "labels"),
        (lambda: models.ms_hbm(np.zeros((3, 4, 2)), n_networks=2), "x: expected shape"),
        (lambda: models.ms_hbm(lambda s, t, n: s, n_networks=2), "shape: expected that of all data"),
        (lambda: models.ms_hbm(shape=(1, 1, 1, 1), n_networks=2, log_ranges=((0, 1),)), "log_ranges"),
        (lambda: models.ms_hbm(shape=(1, 1, 1, 1), n_networks=2, log_ranges=((0, 1), (1, 0), (0, 1))), "log_ranges"),
        (lambda: models.ms_hbm_labels({}, np.zeros((1, 1, 1, 1))), "samples"),
        (lambda: models.eight_schools(np.zeros(3)), r"y: expected shape \(8,\)"),
        (lambda: models.random_effects_regression(np.zeros((3, 4, 2)), np.zeros((3, 5))), "y: expected shape"),
        (lambda: models.HostData(np.zeros(3)), "array: expected more than"),
        (lambda: models.HostData(np.zeros((3, 2)))(jnp.array([0]), jnp.array([0])), "indices: expected 1"),
        (lambda: models.simulate_gre(0, 0, 2, 2), "shape: n_groups"),
    ],
)
def test_bad_input(call, message):
    with numpyro.handlers.seed(rng_seed=0), pytest.raises(ValueError, match=message):
        call()
