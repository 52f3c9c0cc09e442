"""Tests of the plate graph and of distinct indices."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from gyri.pavi import plate_graph, sample_indices
from gyri.pavi.models import gre, ms_hbm, simulate_ms_hbm


@pytest.mark.parametrize(("size", "num"), [(1, 1), (7, 7), (10, 3), (10**6, 50), (10**6, 700), (2**31 - 1, 5)])
def test_indices_are_distinct_and_in_range(size, num):
    indices = np.asarray(sample_indices(jax.random.key(0), size, num))
    assert len(set(indices.tolist())) == num and indices.min() >= 0 and indices.max() < size
    assert indices.dtype == np.int32


@pytest.mark.parametrize(("size", "num"), [(5, 3), (13, 3)])
def test_all_pairs_are_equally_likely(size, num):
    n = 20_000
    draws = np.asarray(jax.vmap(lambda key: sample_indices(key, size, num))(jax.random.split(jax.random.key(1), n)))
    for i in range(num):  # any place, and any pair of places
        counts = np.bincount(draws[:, i], minlength=size)
        assert np.abs(counts - n / size).max() < 5 * np.sqrt(n / size)
    pairs = np.zeros((size, size))
    np.add.at(pairs, (draws[:, 0], draws[:, 1]), 1)
    expected = n / (size * (size - 1))
    assert np.abs(pairs[~np.eye(size, dtype=bool)] - expected).max() < 5 * np.sqrt(expected)


def test_indices_do_not_depend_on_the_plate_in_cost():
    text = lambda size: jax.jit(lambda key: sample_indices(key, size, 20)).lower(jax.random.key(0)).as_text()
    assert "1000000" not in text(10**6).replace("1000000>", "")  # only the bound, no array of that length
    assert "tensor<1000000" not in text(10**6)


def test_an_integer_is_a_key():
    np.testing.assert_array_equal(sample_indices(3, 10, 5), sample_indices(jax.random.key(3), 10, 5))


@pytest.mark.parametrize("num", [-1, 4])
def test_too_many_indices(num):
    with pytest.raises(ValueError, match="num"):
        sample_indices(jax.random.key(0), 3, num)


def test_graph_of_nested_plates():
    graph = plate_graph(gre, jnp.zeros((3, 4, 2)))
    assert list(graph.plates) == ["groups", "observations"]
    assert graph.plates["groups"] == (3, -2)
    assert graph.sites["theta"] == (("groups",), ("mu",), (2,), 2, False)
    assert graph.sites["x"].plates == ("groups", "observations") and graph.sites["x"].observed
    assert graph.batch_shape(("groups",)) == (3, 1)


def test_graph_of_crossed_plates():
    _, x, _ = simulate_ms_hbm(jax.random.key(0), 3, 2, 5, dim=2, n_networks=2)
    graph = plate_graph(ms_hbm, x, n_networks=2)
    sites = graph.sites
    assert {"subjects", "sessions", "vertices"} <= set(graph.plates)
    observed = [site for site in sites.values() if site.observed]
    assert set(observed[0].plates) >= {"subjects", "sessions", "vertices"}


def test_sizes_cost_nothing():
    def model(n):
        with numpyro.plate("groups", n):
            numpyro.sample("z", dist.Dirichlet(jnp.ones(3)))

    graph = plate_graph(model, 10**9)
    assert graph.plates["groups"].size == 10**9 and graph.sites["z"].unconstrained_size == 2


def test_discrete_latent_is_refused():
    def model():
        numpyro.sample("k", dist.Categorical(jnp.ones(3) / 3))

    with pytest.raises(ValueError, match="'k' is discrete"):
        plate_graph(model)


def test_plates_come_outermost_first_whatever_the_order_of_sites():
    def model(x, y):
        s, v = numpyro.plate("s", 3, dim=-2), numpyro.plate("v", 4, dim=-1)
        with s:
            numpyro.sample("b", dist.Normal(0, 1))
        with v:
            numpyro.sample("y", dist.Normal(0, 1), obs=y)
        with s, v:
            numpyro.sample("x", dist.Normal(0, 1), obs=x)

    assert list(plate_graph(model, jnp.zeros((3, 4)), jnp.zeros(4)).plates) == ["s", "v"]


def test_plates_entered_in_both_orders():
    def model(x):
        s, v = numpyro.plate("s", 3, dim=-2), numpyro.plate("v", 4, dim=-1)
        with s, v:
            numpyro.sample("b", dist.Normal(0, 1))
        with v, s:
            numpyro.sample("x", dist.Normal(0, 1), obs=x)

    assert list(plate_graph(model, jnp.zeros((3, 4))).plates) == ["s", "v"]
