"""Tests of gyri.tv.estimator."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from gyri.numerics import linalg
from gyri.tv import LearnedTV, lambda_max, objective, simulate, solve, training


@pytest.fixture(scope="module")
def signals():
    x, _, _, A = simulate(0, 60)
    return np.asarray(x) * np.linspace(0.1, 10, 60)[:, None].astype(np.float32), np.asarray(A)


@pytest.fixture(scope="module")
def fitted(signals):
    return LearnedTV(4, max_iter=40, verbose=False).fit(*signals)


def test_it_solves_in_the_users_units(signals, fitted):
    x, A = signals
    lam = 0.1 * np.asarray(lambda_max(x, A))
    u = fitted.transform(x)
    assert u.shape == (60, 8)
    assert u.dtype == np.float32
    values = [np.asarray(objective(v, x, A, lam)) for v in (u, solve(x, A, lam, max_iter=4, tol=0, restart=True).u)]
    assert values[0].sum() < values[1].sum()
    np.testing.assert_allclose(fitted.transform(5 * x), 5 * u, rtol=1e-3, atol=1e-4)


def test_score_is_the_training_loss(signals, fitted):
    assert fitted.score(signals[0]) == pytest.approx(-fitted.history_["loss"][-1], rel=1e-4)
    assert fitted.score(signals[0]) > LearnedTV(4, max_iter=1, verbose=False).fit(*signals).score(signals[0])
    assert set(fitted.history_["n_layers"]) == {1, 2, 3, 4}


def test_transform_at_depths(signals, fitted):
    x, A = signals
    np.testing.assert_allclose(fitted.transform(x, n_layers=0), x @ np.linalg.pinv(A).T, rtol=1e-3, atol=1e-3)
    assert (fitted.transform(x, n_layers=4) == fitted.transform(x)).all()
    assert (fitted.transform(x, n_layers=2) != fitted.transform(x)).any()


def test_absolute_penalty(signals):
    x, A = signals
    x = x / np.asarray(lambda_max(x, A))[:, None]
    ratio, absolute = (LearnedTV(2, lam_is_ratio=r, max_iter=10, verbose=False).fit(x, A) for r in (True, False))
    np.testing.assert_allclose(ratio.transform(x), absolute.transform(x), atol=1e-3)
    LearnedTV(2, lam=3.0, lam_is_ratio=False, max_iter=4, verbose=False).fit(x, A)


def test_signals_that_a_constant_fits(signals):
    x, A = signals
    flat = np.concatenate([x, np.zeros((1, 5), np.float32)])
    model = LearnedTV(2, max_iter=4, verbose=False).fit(flat, A)
    assert np.isfinite(model.transform(flat)).all()
    np.testing.assert_allclose(model.transform(flat)[-1], 0, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"network": "lpgd_lista", "inner": "per_layer", "n_inner": 4, "learn_threshold": True},
        {"network": "lpgd_lista", "inner": "global", "n_inner": 4, "schedule": "greedy"},
        {"network": "condat_vu", "schedule": "one_shot", "seed": 3, "lam": 1, "lam_is_ratio": False},
    ],
)
def test_save_and_load(tmp_path, signals, options):
    x, A = signals
    model = LearnedTV(2, max_iter=4, verbose=False, **options).fit(x, A)
    path = tmp_path / "model.npz"
    model.save(path)
    again = LearnedTV.load(path)
    assert again.get_params() == model.get_params()
    np.testing.assert_array_equal(again.transform(x), model.transform(x))
    assert again.score(x) == model.score(x)
    for name in ("loss", "n_layers"):
        np.testing.assert_array_equal(again.history_[name], model.history_[name])
    if model.network == "condat_vu":
        assert LearnedTV.load(path, optimizer=optax.adam(1e-3)).fit(x, A).history_["loss"].size == 4


def test_scalars_of_numpy_are_saved(tmp_path, signals):
    x, A = signals
    model = LearnedTV(np.int64(2), max_iter=np.int64(4), lam=np.float32(0.5), lam_is_ratio=np.True_, verbose=np.False_)
    model.fit(x, A).save(tmp_path / "model.npz")
    np.testing.assert_array_equal(LearnedTV.load(tmp_path / "model.npz").transform(x), model.transform(x))


def test_damaged_and_foreign_files(tmp_path, fitted):
    path = tmp_path / "model.npz"
    fitted.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.npz"):
        LearnedTV.load(path)
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(ValueError, match="other.npz"):
        LearnedTV.load(tmp_path / "other.npz")


def test_double_precision_and_operators(x64):
    kernel = linalg.convolution(np.array([1.0, 0.6, 0.2]), 12, "same")
    x = np.random.default_rng(0).standard_normal((20, 12))
    model = LearnedTV(1, max_iter=2, verbose=False).fit(x, kernel)
    assert model.transform(x).dtype == np.float64
    np.testing.assert_allclose(x @ model.A_.T, kernel.matvec(jnp.asarray(x)), atol=1e-12)
    identity = LearnedTV(1, max_iter=2, verbose=False).fit(x, None)
    lam = 0.1 * lambda_max(x, None)
    reached = objective(identity.transform(x), x, None, lam)
    np.testing.assert_allclose(reached, solve(x, None, lam).objective, rtol=1e-6)


def test_minibatches_are_seeded(signals):
    x, A = signals
    make = lambda seed: LearnedTV(
        2, optimizer=optax.adam(1e-3), batch_size=16, max_iter=6, seed=seed, verbose=False
    ).fit(x, A)
    first, again, other = make(0), make(0), make(1)
    np.testing.assert_array_equal(first.transform(x), again.transform(x))
    assert (first.transform(x) != other.transform(x)).any()
    assert make(jax.random.key(0)).history_["loss"][0] == first.history_["loss"][0]


def test_interrupt_returns_the_last_good_state(signals, monkeypatch):
    descend, calls = training._descend, []

    def interrupted(*args, **kwargs):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return descend(*args, **kwargs)

    monkeypatch.setattr(training, "_descend", interrupted)
    with pytest.warns(UserWarning, match="interrupted: trained for 22 steps only"):
        model = LearnedTV(4, max_iter=40, verbose=False).fit(*signals)
    assert np.isfinite(model.score(signals[0]))
    assert set(model.history_["n_layers"]) == {1, 2}


def test_progress_is_shown_on_demand(signals, capsys):
    LearnedTV(1, max_iter=2, verbose=False).fit(*signals)
    assert capsys.readouterr() == ("", "")
    LearnedTV(1, max_iter=2).fit(*signals)
    assert "train" in capsys.readouterr().err


def test_it_is_an_estimator(fitted):
    assert clone(fitted).get_params() == fitted.get_params()
    assert not hasattr(clone(fitted), "params_")
    assert "n_layers=4" in repr(fitted)
    LearnedTV("anything", lam=None)  # nothing is checked before fit


def test_nothing_before_fit(tmp_path, signals):
    model = LearnedTV()
    for call in (lambda: model.transform(signals[0]), lambda: model.score(signals[0]), lambda: model.save(tmp_path)):
        with pytest.raises(NotFittedError):
            call()


def test_the_import_does_not_load_scikit_learn():
    heavy = ("sklearn", "matplotlib", "optax", "scipy.stats")
    code = f"import sys, gyri.tv; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_layers": 0}, "n_layers: expected an integer >= 1"),
        ({"network": "taut"}, "network: expected one of 'lpgd_taut'"),
        ({"lam": 1.0}, "lam: expected a number > 0 and < 1"),
        ({"lam": 0}, "lam: expected a number > 0 and < 1"),
        ({"lam": -1, "lam_is_ratio": False}, "lam: expected a number > 0"),
        ({"lam_is_ratio": "yes"}, "lam_is_ratio: expected one of False, True"),
        ({"learn_threshold": None}, "learn_threshold: expected one of"),
        ({"n_inner": 1.5}, "n_inner: expected an integer"),
        ({"inner": "all"}, "inner: expected one of"),
        ({"schedule": "layerwise"}, "schedule: expected one of 'recursive', 'one_shot', 'greedy'"),
        ({"max_iter": 0}, "max_iter: expected an integer >= 1"),
        ({"optimizer": "adam"}, "optimizer: expected an optax.GradientTransformation"),
        ({"batch_size": 10}, "batch_size: expected None without an optimizer"),
        ({"batch_size": 0, "optimizer": optax.adam(1.0)}, "batch_size: expected an integer >= 1"),
        ({"seed": -1}, "seed: expected an integer seed"),
        ({"network": "chambolle"}, "A: expected rank 8"),
    ],
)
def test_bad_options(signals, options, message):
    with pytest.raises(ValueError, match=message):
        LearnedTV(**({"n_layers": 2, "verbose": False} | options)).fit(*signals)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(5), "X: expected 2 axes"),
        (np.zeros((2, 6)), r"A: expected shape \(6, k\)"),
        (np.full((2, 5), np.nan), "X: expected finite"),
        (np.zeros((0, 5)), "X: expected at least one entry"),
    ],
)
def test_bad_signals(signals, fitted, x, message):
    for call in (lambda: LearnedTV(2, verbose=False).fit(x, signals[1]), lambda: fitted.transform(x)):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="n_layers: expected at most the 4 layers"):
        fitted.transform(jnp.ones((1, 5)), n_layers=5)
