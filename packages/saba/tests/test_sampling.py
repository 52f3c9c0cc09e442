import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gyri.saba.sampling import count_blocks, draw, start_sampler


def draws(key, n_blocks, sampling, n):
    def body(sampler, _):
        index, sampler = draw(sampler, n_blocks, sampling)
        return sampler, index

    return np.asarray(jax.lax.scan(body, start_sampler(key, n_blocks, sampling), None, n)[1])


def test_a_shuffle_shows_each_block_once_an_epoch():
    epochs = draws(jax.random.key(0), 7, "shuffle", 7 * 40).reshape(40, 7)
    assert (np.sort(epochs, 1) == np.arange(7)).all()
    assert len({tuple(epoch) for epoch in epochs}) > 35  # the first epoch and all others: 5040 orders
    assert not (epochs[0] == np.arange(7)).all()


def test_all_orders_are_equally_likely():
    keys = jax.random.split(jax.random.key(1), 6000)
    # The second epoch: its order depends on the first one's.
    epochs = np.asarray(jax.vmap(lambda key: jnp.stack(_epochs(key)))(keys))[:, 1]
    counts = np.unique(epochs, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def _epochs(key):
    sampler, blocks = start_sampler(key, 3, "shuffle"), []
    for _ in range(6):
        index, sampler = draw(sampler, 3, "shuffle")
        blocks.append(index)
    return jnp.stack(blocks[:3]), jnp.stack(blocks[3:])


def test_iid_is_uniform_and_cyclic_counts():
    counts = np.bincount(draws(jax.random.key(2), 5, "iid", 5000), minlength=5)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert draws(jax.random.key(2), 3, "cyclic", 7).tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("sampling", ["shuffle", "iid", "cyclic"])
def test_the_state_knows_the_next_block(sampling):
    sampler = start_sampler(jax.random.key(3), 6, sampling)
    for _ in range(20):
        known = int(sampler.block)
        index, sampler = draw(sampler, 6, sampling)
        assert int(index) == known


def test_one_block_and_the_number_of_blocks():
    assert draws(jax.random.key(0), 1, "shuffle", 3).tolist() == [0, 0, 0]
    assert [count_blocks(n, 16) for n in (1, 16, 17, 96)] == [1, 1, 2, 6]
