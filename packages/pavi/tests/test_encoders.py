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
    return encoder, jax.jit(lambda key: encoder.init(key, graph, 4))(jax.random.key(0))


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

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    values = [value_and_grad(params, y) for y in (x, with_nan)]
    np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-6)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(values[1][1]))
    encode = jax.jit(lambda x, mask: encoder.apply(params, {"x": x}, {"x": mask}, COUNTS)["groups",])
    np.testing.assert_allclose(encode(x[:1, :3], mask[:1, :3]), encode(x, mask)[:1], atol=1e-5)


@pytest.mark.parametrize("kind", ["deepset", "isab"])
def test_count_of_a_plate_is_seen_and_that_of_a_part_is_the_whole(kind):
    """Twice the same data are more data; half of a plate at count 2 is the whole."""
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (1, 4, 2)), (6, 4, 2))
    encoder, params = make(kind, x)

    @jax.jit
    def encode(x, count):
        counts = {"groups": count, "observations": 1.0}
        return encoder.apply(params, {"x": x}, {"x": jnp.ones(x.shape[:2], bool)}, counts)[()]

    whole, part, fewer = encode(x, 1.0), encode(x[:3], 2.0), encode(x[:3], 1.0)
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
    apply = jax.jit(lambda obs: encoder.apply(params, obs, masks, counts))
    out = apply(obs)
    assert {k: v.shape for k, v in out.items()} == {(): (1, 1, 5), ("s",): (3, 1, 5), ("v",): (1, 4, 5)}
    moved = apply({**obs, "x": x[::-1][..., None]})
    np.testing.assert_allclose(moved["v",], out["v",], atol=1e-6)
    np.testing.assert_allclose(moved["s",], out["s",][::-1], atol=1e-6)


@pytest.mark.parametrize("kind", ["deepset", "isab"])
def test_rows_and_then_the_rest_are_the_whole(kind):
    x = jax.random.normal(jax.random.key(1), (6, 5, 2))
    mask = jnp.ones((6, 5), bool)
    encoder, params = make(kind, x)
    whole = jax.jit(lambda x: encoder.apply(params, {"x": x}, {"x": mask}, COUNTS))(x)[()]
    row = jax.jit(lambda x: encoder.rows(params, {"x": x}, {"x": mask[:1]}, COUNTS, "groups"))
    rows = [row(x[i : i + 1]) for i in range(6)]
    tokens = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    rest = jax.jit(lambda tokens: {str(k): v for k, v in encoder.apply(params, {}, {}, COUNTS, tokens=tokens).items()})
    np.testing.assert_allclose(rest(tokens)["()"], whole, rtol=1e-5, atol=1e-6)
