"""Tests of the encoders of observations."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from gyri.pavi import plate_graph
from gyri.pavi.encoders import attention, deepset
from gyri.pavi.models import gre

ENCODERS = {
    "deepset": deepset,
    "isab": attention,
    "sab": lambda: attention(n_inducing=None),
}
COUNTS = {"groups": 1.0, "observations": 1.0}


def make(kind, x):
    encoder = ENCODERS[kind]()
    graph = plate_graph(gre, x)
    return encoder, encoder.init(jax.random.key(0), graph, 4)


@pytest.mark.parametrize("kind", ENCODERS)
def test_groups_are_equivariant_and_what_is_outside_invariant(kind):
    x = jax.random.normal(jax.random.key(1), (6, 5, 2))
    mask = jax.random.bernoulli(jax.random.key(2), 0.7, (6, 5))
    encoder, params = make(kind, x)
    apply = jax.jit(lambda x, mask: encoder.apply(params, {"x": x}, {"x": mask}, COUNTS))
    out = apply(x, mask)
    order, inner = np.array([3, 1, 0, 5, 4, 2]), np.array([4, 0, 2, 1, 3])
    moved = apply(x[order][:, inner], mask[order][:, inner])
    np.testing.assert_allclose(moved["groups",], out["groups",][order], atol=1e-5)
    np.testing.assert_allclose(moved[()], out[()], atol=1e-5)
    assert np.ptp(np.asarray(out["groups",]), axis=0).max() > 1e-3


@pytest.mark.parametrize("kind", ENCODERS)
def test_masked_observations_say_nothing_even_as_nan(kind):
    x = jax.random.normal(jax.random.key(1), (3, 5, 2))
    mask = jnp.ones((3, 5), bool).at[0, 3:].set(False)
    encoder, params = make(kind, x)
    with_nan = x.at[0, 3:].set(jnp.nan)

    def loss(params, x):
        return sum(jnp.sum(v**2) for v in encoder.apply(params, {"x": x}, {"x": mask}, COUNTS).values())

    values = [jax.value_and_grad(loss)(params, y) for y in (x, with_nan)]
    np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-6)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(values[1][1]))
    short = encoder.apply(params, {"x": x[:1, :3]}, {"x": mask[:1, :3]}, COUNTS)["groups",]
    long = encoder.apply(params, {"x": x}, {"x": mask}, COUNTS)["groups",][:1]
    np.testing.assert_allclose(short, long, atol=1e-5)


@pytest.mark.parametrize("kind", ["deepset", "isab"])
def test_count_of_a_plate_is_seen_and_that_of_a_part_is_the_whole(kind):
    """Twice the same data are more data; half of a plate at count 2 is the whole."""
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (1, 4, 2)), (6, 4, 2))
    encoder, params = make(kind, x)
    whole = encoder.apply(params, {"x": x}, {"x": jnp.ones((6, 4), bool)}, COUNTS)[()]
    part = encoder.apply(params, {"x": x[:3]}, {"x": jnp.ones((3, 4), bool)}, {"groups": 2.0, "observations": 1.0})[()]
    fewer = encoder.apply(params, {"x": x[:3]}, {"x": jnp.ones((3, 4), bool)}, COUNTS)[()]
    np.testing.assert_allclose(part, whole, atol=1e-5)
    assert np.abs(fewer - whole).max() > 1e-4


def crossed(x, y):
    numpyro.sample("a", dist.Normal(0, 1))
    s, v = numpyro.plate("s", x.shape[0], dim=-2), numpyro.plate("v", x.shape[1], dim=-1)
    with s:
        b = numpyro.sample("b", dist.Normal(0, 1))
    with v:
        c = numpyro.sample("c", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(c, 1), obs=y)
    with s, v:
        numpyro.sample("x", dist.Normal(b + c, 1), obs=x)


def test_crossed_plates_and_two_sites_joined():
    x, y = jax.random.normal(jax.random.key(0), (3, 4)), jnp.arange(4.0)
    encoder = deepset()
    params = encoder.init(jax.random.key(1), plate_graph(crossed, x, y), 5)
    obs = {"x": x[..., None], "y": y[None, :, None]}
    masks = {"x": jnp.ones((3, 4), bool), "y": jnp.ones((1, 4), bool)}
    counts = {"s": 1.0, "v": 1.0}
    out = encoder.apply(params, obs, masks, counts)
    assert {k: v.shape for k, v in out.items()} == {(): (1, 1, 5), ("s",): (3, 1, 5), ("v",): (1, 4, 5)}
    moved = encoder.apply(params, {**obs, "x": x[::-1][..., None]}, masks, counts)
    np.testing.assert_allclose(moved["v",], out["v",], atol=1e-6)
    np.testing.assert_allclose(moved["s",], out["s",][::-1], atol=1e-6)


@pytest.mark.parametrize("kind", ["deepset", "isab"])
def test_rows_and_then_the_rest_are_the_whole(kind):
    x = jax.random.normal(jax.random.key(1), (6, 5, 2))
    mask = jnp.ones((6, 5), bool)
    encoder, params = make(kind, x)
    whole = encoder.apply(params, {"x": x}, {"x": mask}, COUNTS)[()]
    rows = [encoder.rows(params, {"x": x[i : i + 1]}, {"x": mask[:1]}, COUNTS, "groups") for i in range(6)]
    tokens = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    np.testing.assert_allclose(encoder.apply(params, {}, {}, COUNTS, tokens=tokens)[()], whole, atol=1e-6)
