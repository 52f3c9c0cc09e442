"""Tests of gyri.hnpe.posterior."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyri.hnpe import HNPE, HierarchicalPrior, HNPEPosterior, ToyModel, simulate
from gyri.hnpe import posterior as module
from gyri.numerics.io import load_pytree, save_pytree
from gyri.numerics.testing import check_no_recompilation

X, X_EXTRA = np.array([0.25], np.float32), np.array([[0.1], [0.4], [0.3]], np.float32)
THETA = np.array([[0.5, 0.5], [0.3, 0.8], [0.9, 0.28]], np.float32)


@pytest.mark.parametrize("n_extra", range(5))
def test_density_integrates_to_one(posterior, n_extra):
    x_extra = 0.1 * np.arange(1, n_extra + 1, dtype=np.float32)[:, None]
    grid = (np.arange(400, dtype=np.float32) + 0.5) / 400
    theta = np.stack(np.meshgrid(grid, grid), -1)
    log_p = posterior.log_prob(theta, X, x_extra)
    assert log_p.shape == (400, 400)
    assert abs(float(jnp.exp(log_p).mean()) - 1) < 0.02
    assert abs(float(jnp.exp(posterior.log_prob_shared(grid[:, None], X, x_extra)).mean()) - 1) < 0.02


def test_draws_follow_the_density(posterior):
    here = posterior.condition(X, X_EXTRA)
    grid = (np.arange(300, dtype=np.float32) + 0.5) / 300
    theta = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    p = np.exp(np.asarray(here.log_prob(theta)))
    p /= p.sum()
    draws = np.asarray(here.sample(0, (20_000,)))
    np.testing.assert_allclose(draws.mean(0), (p[..., None] * theta).sum((0, 1)), atol=0.01)


def test_order_of_the_others_does_not_matter(posterior):
    one = posterior.log_prob(THETA, X, X_EXTRA)
    np.testing.assert_allclose(posterior.log_prob(THETA, X, X_EXTRA[::-1]), one, atol=1e-5)
    assert (posterior.log_prob(THETA, X, X_EXTRA + 0.1) != one).any()


@pytest.mark.parametrize("filler", [0.0, 7.0, np.nan, np.inf])
def test_what_is_masked_changes_nothing_at_all(posterior, filler):
    padded = np.concatenate([X_EXTRA, np.full((1, 1), filler, np.float32)])
    mask = np.array([True] * 3 + [False])
    np.testing.assert_array_equal(posterior.log_prob(THETA, X, padded, mask), posterior.log_prob(THETA, X, X_EXTRA))
    under_jit = jax.jit(lambda e: posterior.log_prob(THETA, X, e, mask))(padded)
    np.testing.assert_allclose(under_jit, posterior.log_prob(THETA, X, X_EXTRA), rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda e: posterior.log_prob(THETA, X, e, mask).sum())(jnp.asarray(padded))
    assert jnp.isfinite(gradient[:3]).all() and gradient[3, 0] == 0


@given(st.integers(0, 2**31 - 1), st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False))
@settings(max_examples=25, deadline=None)
def test_no_draw_outside_the_support_whatever_is_observed(posterior, seed, value):
    draws = posterior.sample(seed, (500,), np.array([value], np.float32))
    assert posterior.prior.support(draws).all()


def test_density_outside_is_zero_and_gradients_are_finite(posterior):
    theta = np.array([[0.5, 0.5], [-0.1, 0.5], [0.5, 1.0], [2.0, 2.0]], np.float32)
    log_p = posterior.log_prob(theta, X, X_EXTRA)
    np.testing.assert_array_equal(np.isfinite(log_p), [True, False, False, False])
    assert (np.asarray(log_p[1:]) == -np.inf).all()
    gradient = jax.grad(lambda t: posterior.log_prob(t, X, X_EXTRA)[0])(jnp.asarray(theta))
    assert jnp.isfinite(gradient).all()
    for far in (np.inf, -np.inf):
        assert posterior.log_prob([far, 0.5], X) == posterior.log_prob_shared([far], X) == -np.inf
        assert posterior.log_prob_local([far], [0.5], X) == posterior.log_prob_local([0.5], [far], X) == -np.inf
    one = lambda t: posterior.log_prob(t, X, X_EXTRA)
    assert jnp.isfinite(jax.vmap(jax.grad(one))(jnp.asarray(theta))).all()


def test_parts_multiply(posterior):
    total = posterior.log_prob_shared(THETA[:, 1:], X, X_EXTRA)
    total += posterior.log_prob_local(THETA[:, :1], THETA[:, 1:], X, X_EXTRA)
    np.testing.assert_allclose(posterior.log_prob(THETA, X, X_EXTRA), total, rtol=1e-5, atol=1e-5)
    grid = np.linspace(0.001, 0.999, 999, dtype=np.float32)[:, None]
    p = np.exp(posterior.log_prob_local(grid, np.array([0.6], np.float32), X))
    assert abs(np.trapezoid(p, grid[:, 0]) - 1) < 0.02


def test_under_jit_and_vmap_over_observations(posterior, toy):
    sims = simulate(5, toy.prior, toy, 6, (0, 4))
    batched = jax.vmap(posterior.log_prob)(sims.theta, sims.x, sims.x_extra, sims.mask)
    loop = [posterior.log_prob(*row) for row in zip(*sims, strict=True)]
    np.testing.assert_allclose(batched, loop, rtol=1e-4, atol=1e-5)
    keys = jax.random.split(jax.random.key(0), 6)
    draw = lambda k, x, e, m: posterior.sample(k, (3,), x, e, m)
    batched = jax.jit(jax.vmap(draw))(keys, *sims[1:])
    np.testing.assert_allclose(batched[2], draw(keys[2], *(leaf[2] for leaf in sims[1:])), rtol=1e-4)


def test_is_a_pytree(posterior):
    here = posterior.condition(X, X_EXTRA)
    there = jax.jit(lambda p, t: p.log_prob(t))(here, THETA)
    np.testing.assert_allclose(there, here.log_prob(THETA), rtol=1e-5)
    leaves, structure = jax.tree.flatten(here)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    np.testing.assert_array_equal(jax.tree.unflatten(structure, leaves).log_prob(THETA), here.log_prob(THETA))


def test_number_of_others_compiles_nothing_anew(posterior):
    run = lambda n: (
        posterior.sample(0, (10,), X, np.full((n, 1), 0.2)),
        posterior.log_prob(THETA, X, np.full((n, 1), 0.2)),
        posterior.condition(X, np.full((n, 1), 0.2)).log_prob_shared(THETA[:, 1:]),
    )
    for n in (0, 1, 2, 4):
        check_no_recompilation(run, (3,), (n,), jit=False)


def test_condition(posterior):
    here = posterior.condition(X, X_EXTRA)
    np.testing.assert_array_equal(here.log_prob(THETA), posterior.log_prob(THETA, X, X_EXTRA))
    np.testing.assert_array_equal(here.sample(0, (2, 3)), posterior.sample(0, (2, 3), X, X_EXTRA))
    np.testing.assert_array_equal(here.log_prob(THETA, X), posterior.log_prob(THETA, X))  # given: in place of stored
    with pytest.raises(ValueError, match="x: expected a recording, or a posterior that condition"):
        posterior.sample(0)


def test_mode_is_that_of_a_grid(posterior):
    here = posterior.condition(X, X_EXTRA)
    grid = (np.arange(500, dtype=np.float32) + 0.5) / 500
    theta = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    best = here.map(0)
    assert posterior.prior.support(best)
    assert float(here.log_prob(best)) >= float(here.log_prob(theta).max()) - 1e-2


@pytest.mark.parametrize("options", [{}, {"factorized": False, "n_layers": 2}])
def test_single_precision_stays_single_where_double_is_allowed(x64, options):
    model = ToyModel(noise=0.05)
    sims = simulate(0, model.prior, model, 60, 1)
    estimator = HNPE(model.prior, dtype="float32", hidden=(8,), **options).append_simulations(*sims)
    here = estimator.train(0, batch_size=20, max_epochs=1, progress=False).build_posterior().condition(X)
    assert {leaf.dtype.name for leaf in (here.sample(0), here.log_prob(THETA), here.map(0))} == {"float32"}


def test_arviz_and_dict(posterior):
    draws = posterior.sample(0, (2, 50), X)
    assert set(posterior.to_dict(draws)) == {"alpha", "beta"}
    pytest.importorskip("arviz")
    for samples, shape in ((draws, (2, 50)), (draws[0], (1, 50))):
        data = posterior.to_arviz(samples)
        assert data.posterior["beta"].shape == shape
        np.testing.assert_allclose(data.posterior["beta"].values.ravel(), np.asarray(samples)[..., 1].ravel())
    with pytest.raises(ValueError, match="samples: expected shape"):
        posterior.to_arviz(np.zeros((5, 3)))


# --- disk -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioned", [False, True])
def test_save_and_load(posterior, tmp_path, conditioned):
    here = posterior.condition(X, X_EXTRA) if conditioned else posterior
    here.save(tmp_path / "posterior.npz")
    again = HNPEPosterior.load(tmp_path / "posterior.npz")
    arguments = () if conditioned else (X, X_EXTRA)
    np.testing.assert_array_equal(again.log_prob(THETA, *arguments), here.log_prob(THETA, *arguments))
    np.testing.assert_array_equal(again.sample(3, (5,), *arguments), here.sample(3, (5,), *arguments))
    again.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "posterior.npz").read_bytes()


def test_what_a_file_cannot_hold_is_asked_for(tmp_path):
    prior = HierarchicalPrior({"alpha": lambda shared: dist.Uniform(0.0, 1.0)}, {"beta": dist.Uniform(0.0, 1.0)})
    model = ToyModel(noise=0.05)
    sims = simulate(0, prior, model, 400, 2)
    embedding = eqx.nn.MLP(1, 3, 8, 1, key=jax.random.key(0))
    aggregate = lambda features, mask: jnp.max(jnp.where(mask[:, None], features, -10.0), 0)
    fit = HNPE(prior, embedding=embedding, aggregate=aggregate, hidden=(8,)).append_simulations(*sims)
    posterior = fit.train(0, max_epochs=2, progress=False).build_posterior()
    path = tmp_path / "posterior.npz"
    posterior.save(path)
    given = {"prior": prior, "embedding": embedding, "aggregate": aggregate}
    again = HNPEPosterior.load(path, **given)
    np.testing.assert_array_equal(again.log_prob(THETA, X, X_EXTRA[:2]), posterior.log_prob(THETA, X, X_EXTRA[:2]))
    for name in given:
        with pytest.raises(ValueError, match=f"{name}: expected the .* of training"):
            HNPEPosterior.load(path, **{**given, name: None})
    with pytest.raises(ValueError, match="embedding: expected modules whose weights fit"):
        HNPEPosterior.load(path, **{**given, "embedding": eqx.nn.MLP(1, 3, 9, 1, key=jax.random.key(0))})


def test_files_that_do_not_fit_are_refused(posterior, tmp_path):
    path = tmp_path / "posterior.npz"
    posterior.save(path)
    with pytest.raises(ValueError, match="embedding: expected None"):
        HNPEPosterior.load(path, embedding=lambda x: x)
    other = HierarchicalPrior({"a": dist.Uniform(0.0, 1.0)}, {"b": dist.Uniform(0.0, 1.0)})
    with pytest.raises(ValueError, match="prior: expected parameters"):
        HNPEPosterior.load(path, prior=other)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged|not a gyri file"):
        HNPEPosterior.load(path)


def test_older_files_with_another_sign_are_refused(posterior, tmp_path):
    path = tmp_path / "posterior.npz"
    posterior.save(path)
    tree, meta = load_pytree(path, kind=module.KIND)
    del meta["space"]
    save_pytree(path, tree, kind=module.KIND, meta=meta)
    np.testing.assert_array_equal(HNPEPosterior.load(path).log_prob(THETA, X), posterior.log_prob(THETA, X))
    below = HierarchicalPrior({"alpha": dist.Uniform(0.0, 1.0)}, {"beta": dist.TruncatedNormal(high=2.0)})
    with pytest.raises(ValueError, match="train it again"):
        HNPEPosterior.load(path, prior=below)


# --- input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.2, 0.3],), r"x: expected shape \(1,\)"),
        (([np.nan],), "x: expected finite"),
        ((X, np.zeros((5, 1))), "x_extra: expected at most 4 others"),
        ((X, np.zeros((2, 3))), r"x_extra: expected shape \(any, 1\)"),
        ((X, np.zeros(2)), r"x_extra: expected shape \(any, 1\)"),
        ((X, np.array([[np.inf]])), "x_extra: expected finite"),
        ((X, X_EXTRA, np.ones(2, bool)), r"mask: expected bool of shape \(3,\)"),
        ((X, X_EXTRA, np.ones(3)), "mask: expected bool"),
        ((None, X_EXTRA), "x: expected a recording beside x_extra"),
    ],
)
def test_bad_observations_are_refused(posterior, arguments, message):
    for call in (lambda *a: posterior.sample(0, (), *a), lambda *a: posterior.log_prob(THETA, *a)):
        with pytest.raises(ValueError, match=message):
            call(*arguments)


def test_bad_parameters_are_refused(posterior):
    with pytest.raises(ValueError, match=r"theta: expected shape \(\.\.\., 2\), got \(3,\)"):
        posterior.log_prob(np.zeros(3), X)
    with pytest.raises(ValueError, match=r"shared: expected shape \(\.\.\., 1\)"):
        posterior.log_prob_shared(np.zeros((4, 2)), X)
    with pytest.raises(ValueError, match=r"local: expected shape \(\.\.\., 1\)"):
        posterior.log_prob_local(np.zeros(()), np.zeros((4, 1)), X)


def test_variants_say_what_they_cannot_do(toy):
    sims = simulate(0, toy.prior, toy, 400, 2)
    model = HNPE(toy.prior, aggregate="stack", factorized=False, hidden=(8,), n_layers=1).append_simulations(*sims)
    posterior = model.train(0, max_epochs=2, progress=False).build_posterior()
    with pytest.raises(ValueError, match="factorized: expected"):
        posterior.log_prob_shared(np.zeros((4, 1)), X, X_EXTRA[:2])
    for arguments in ((X,), (X, X_EXTRA[:1]), (X, X_EXTRA[:2], np.array([True, False]))):
        with pytest.raises(ValueError, match='x_extra: expected 2 others, all counting, for aggregate="stack"'):
            posterior.sample(0, (), *arguments)


def test_missing_arviz_is_said(posterior, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r'pip install "gyri-hnpe\[arviz\]"'):
        posterior.to_arviz(np.zeros((5, 2)))
    assert module.KIND
