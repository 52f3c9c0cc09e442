"""Tests of gyri.hnpe.simulation."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gyri.hnpe import ToyModel, simulate
from gyri.hnpe.summaries import PartiallyExchangeable
from gyri.numerics.testing import check_no_recompilation


@dataclasses.dataclass
class Product:  # compares by value and has therefore no hash
    noise: float = 0.1

    def __call__(self, key, theta):
        return theta.prod() + self.noise * jax.random.normal(key, (20,))


def test_recordings_of_a_set_share_what_they_should():
    model = ToyModel()
    sims = simulate(0, model.prior, model, 500, 4)
    assert sims.theta.shape == (500, 2) and sims.x.shape == (500, 1)
    assert sims.x_extra.shape == (500, 4, 1) and sims.mask.all()
    np.testing.assert_allclose(sims.x[:, 0], sims.theta.prod(1), rtol=1e-6)
    alpha = np.asarray(sims.x_extra[..., 0] / sims.theta[:, 1:])
    assert stats.kstest(alpha.ravel(), stats.uniform.cdf).pvalue > 1e-3  # uniform, whatever beta
    alpha = np.concatenate([np.asarray(sims.theta[:, :1]), alpha], 1)
    assert abs(np.corrcoef(alpha.T) - np.eye(5)).max() < 0.2
    assert len(np.unique(alpha)) == alpha.size


def test_number_of_others_is_uniform():
    model = ToyModel()
    sims = simulate(0, model.prior, model, 3000, (1, 4))
    counts = np.bincount(np.asarray(sims.mask.sum(1)), minlength=5)
    assert counts[0] == 0 and stats.chisquare(counts[1:]).pvalue > 1e-3
    assert (np.asarray(sims.mask) == (np.arange(4) < np.asarray(sims.mask.sum(1))[:, None])).all()
    assert (np.asarray(sims.x_extra)[~np.asarray(sims.mask)] == 0).all()
    assert simulate(0, model.prior, model, 5, 0).x_extra.shape == (5, 0, 1)


@pytest.mark.parametrize("batch_size", [1, 7, 100, 10_000])
def test_batches_change_nothing(batch_size, toy):
    one, other = (simulate(3, toy.prior, toy, 23, (0, 4), batch_size=size) for size in (1024, batch_size))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_summary_is_applied_to_each_recording(toy):
    plain = simulate(0, toy.prior, toy, 10, 2)
    squared = simulate(0, toy.prior, toy, 10, 2, summary=lambda x: jnp.concatenate([x, x**2]))
    np.testing.assert_allclose(squared.x_extra, jnp.concatenate([plain.x_extra, plain.x_extra**2], -1), rtol=1e-5)


def test_proposal_gives_theta_and_the_prior_the_others(toy, posterior):
    proposal = posterior.condition(np.array([0.3]), np.array([[0.4]]))
    sims = simulate(0, toy.prior, toy, 2000, 3, proposal=proposal)
    direct = np.asarray(proposal.sample(1, (2000,)))
    for i in range(2):
        assert stats.ks_2samp(np.asarray(sims.theta[:, i]), direct[:, i]).pvalue > 1e-3
    alpha = np.asarray((sims.x_extra[..., 0] - 0.0) / sims.theta[:, 1:])
    assert abs(alpha.mean() - 0.5) < 0.03  # not that of the proposal


@pytest.mark.parametrize("numbers", [(50, 50), (300, 700)])  # less than a batch, and several
def test_second_call_compiles_nothing(numbers):
    prior = ToyModel(noise=0.1).prior
    run = lambda key, n: simulate(key, prior, ToyModel(noise=0.1), n, (0, 3))
    check_no_recompilation(run, (0, numbers[0]), (1, numbers[1]), jit=False)


def test_functions_need_no_hash_and_compile_once(toy):
    simulator, summary = Product(), PartiallyExchangeable(jax.random.key(0), 1, 3)
    run = lambda key: simulate(key, toy.prior, simulator, 50, 1, summary=summary)
    check_no_recompilation(run, (0,), (1,), jit=False)
    plain = simulate(0, toy.prior, simulator, 50, 1)
    np.testing.assert_allclose(run(0).x, jax.vmap(summary)(plain.x), rtol=1e-4, atol=1e-6)
    assert simulate(0, toy.prior, Product(0.0), 5, 0).x.std(1).max() < 1e-6  # another one


def test_closures_and_their_data_are_let_go(toy):
    data = jnp.ones(3)
    simulator = lambda key, theta: theta[:1] * data
    simulate(0, toy.prior, simulator, 5, 1)
    ref = weakref.ref(simulator)
    del simulator
    gc.collect()
    assert ref() is None


def test_interruption_keeps_what_is_done(toy, monkeypatch):
    from gyri.hnpe import simulation

    real = simulation.scan_chunks

    def interrupted(step, carry, n_steps, **kwargs):
        return real(step, carry, 2, **kwargs)

    monkeypatch.setattr(simulation, "scan_chunks", interrupted)
    with pytest.warns(UserWarning, match="interrupted: 20 of 100"):
        sims = simulate(0, toy.prior, toy, 100, 0, batch_size=10)
    assert sims.theta.shape == (20, 2)


def test_precision(toy, dtype):
    sims = simulate(0, toy.prior, toy, 5, 1)
    assert {leaf.dtype.name for leaf in sims[:3]} == {dtype}


@pytest.mark.parametrize(
    ("n", "n_extra", "message"),
    [
        (0, 0, "n_simulations: expected"),
        (5, -1, "n_extra: expected an integer >= 0"),
        (5, (3, 1), "n_extra: expected low <= high"),
        (5, (1, 2, 3), "n_extra: expected an integer or a pair"),
        (5, 1.5, "n_extra: expected"),
    ],
)
def test_bad_numbers_are_refused(n, n_extra, message, toy):
    with pytest.raises(ValueError, match=message):
        simulate(jax.random.key(0), toy.prior, toy, n, n_extra)
