"""The estimator of dictionaries: learning, scikit-learn's contract, files, bad input, Ctrl-C; and what optimises it."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import estimator_checks_generator

from gyri.numerics import linalg
from gyri.numerics.testing import check_no_recompilation
from gyri.unrolled import DictionaryLearning, lasso_objective, optim, recovery_score, simulate, sparse_code
from gyri.unrolled.datasets import perturb, unit_rows

QUIET = {"verbose": False, "max_steps": 15}


@pytest.fixture(scope="module")
def data():
    X, truth, _ = simulate(0, 300, 10, 12, sparsity=0.2)
    return np.asarray(X), np.asarray(truth), np.asarray(unit_rows(perturb(1, truth)))


@pytest.fixture(scope="module")
def fitted(data):
    return DictionaryLearning(12, init=data[2], **QUIET).fit(data[0])


def plain_descent(X, D, lam, n_iter, n_steps):
    """C1 as it is written, with the gradient at fixed codes."""
    value = lambda D: float(lasso_objective(X, sparse_code(X, D, lam, n_iter=n_iter), D, lam))
    t, losses = 1.0, [value(D)]
    for _ in range(n_steps):
        codes = np.asarray(sparse_code(X, D, lam, n_iter=n_iter))
        g = codes.T @ (codes @ D - X)
        while True:
            new = D - t / 2 * g
            new = new / np.linalg.norm(new, axis=1, keepdims=True)
            if value(new) < losses[-1]:
                break
            t /= 2
        D, t = new, min(10 * t, 1e4)
        losses.append(value(D))
    return D, np.array(losses)


def test_the_descent_is_the_papers(data, x64):
    X, _, D0 = (np.asarray(a, float) for a in data)
    D0 /= np.linalg.norm(D0, axis=1, keepdims=True)
    model = DictionaryLearning(12, estimator="g1", init=D0, verbose=False, max_steps=5, tol=0).fit(X)
    D, losses = plain_descent(X, D0, 0.1, 20, 5)
    np.testing.assert_allclose(model.components_, D, atol=1e-9)
    np.testing.assert_allclose(model.history_["loss"], losses, rtol=1e-10)


@pytest.mark.parametrize("estimator", ["g1", "g2", "g3"])
def test_losses_fall_and_atoms_are_unit(data, estimator):
    X, truth, D0 = data
    model = DictionaryLearning(12, estimator=estimator, n_iter=30, init=D0, **QUIET).fit(X)
    assert np.all(np.diff(model.history_["loss"]) < 0)
    np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1, atol=1e-6)
    if estimator != "g3":  # which says nothing before the support is found
        assert recovery_score(model.components_, truth) > recovery_score(D0, truth) + 0.02
    assert set(model.history_) == {"loss", "time", "step"} and model.n_steps_ + 1 == model.history_["loss"].size
    assert np.all(np.diff(model.history_["time"]) >= 0)


def test_what_a_fit_gives(data, fitted):
    X, _, _ = data
    codes = fitted.transform(X)
    assert codes.shape == (300, 12) and codes.dtype == np.float32 and np.mean(codes == 0) > 0.2
    np.testing.assert_allclose(codes, sparse_code(X, fitted.components_, 0.1), atol=1e-6)
    np.testing.assert_allclose(fitted.inverse_transform(codes), codes @ fitted.components_)
    assert fitted.score(X) == pytest.approx(-fitted.history_["loss"][-1] / 300, rel=1e-4)
    np.testing.assert_array_equal(fitted.steps_, 1)
    assert fitted.lam_ == 0.1 and fitted.n_features_in_ == 10
    assert list(fitted.get_feature_names_out())[:2] == ["dictionarylearning0", "dictionarylearning1"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_recovery_on_the_papers_data(seed):
    X, truth, _ = simulate(seed)
    D0 = unit_rows(perturb(100 + seed, truth))
    model = DictionaryLearning(50, init=D0, verbose=False).fit(X)
    assert recovery_score(D0, truth) < 0.92
    assert recovery_score(model.components_, truth) >= 0.97


def test_learned_steps_beat_fixed_ones(data):
    X, _, D0 = data
    options = {"n_iter": 5, "init": D0, "verbose": False, "max_steps": 150}
    fixed, learned = (DictionaryLearning(12, learn_steps=s, **options).fit(X) for s in (False, True))
    assert learned.history_["loss"][-1] < 0.97 * fixed.history_["loss"][-1]
    assert np.all(np.diff(learned.history_["loss"]) < 0)
    assert np.all(learned.steps_ >= 1e-3) and np.abs(learned.steps_ - 1).max() > 0.1
    assert learned.score(X) == pytest.approx(-learned.history_["loss"][-1] / 300, rel=1e-4)
    short = DictionaryLearning(12, learn_steps=True, **(options | {"max_steps": 2})).fit(X)
    assert short.n_steps_ == 4 and short.history_["loss"].size == 5 and np.abs(short.steps_ - 1).max() > 1e-3
    assert np.all(np.diff(short.history_["loss"]) < 0) and np.all(np.diff(short.history_["time"]) >= 0)


def test_chunks_change_nothing_but_rounding(data, x64, monkeypatch):
    X, _, D0 = (np.asarray(a, float) for a in data)
    make = lambda: DictionaryLearning(12, init=D0, verbose=False, max_steps=3).fit(X)
    whole = make()
    monkeypatch.setattr(optim, "CACHE_BYTES", 100_000)
    chunks = jax.tree.leaves(optim.split_rows((jnp.asarray(X), None), 2000))
    assert chunks[0].shape == (6, 50, 10)
    ragged = optim.split_rows(jnp.asarray(X[:299]), 2000)
    assert ragged.shape == (6, 50, 10) and not np.asarray(ragged[-1, -1]).any()
    np.testing.assert_allclose(make().components_, whole.components_, atol=1e-10)


def test_rows_that_fill_a_chunk_up_have_no_influence(data, x64, monkeypatch):
    X, _, D0 = (np.asarray(a, float) for a in data)
    each = np.random.default_rng(0).standard_normal((299, 7, 10)) / 3
    Y = np.einsum("tij,tj->ti", each, X[:299])
    make = lambda: DictionaryLearning(12, init=D0, verbose=False, max_steps=3).fit(Y, operator=each)
    whole = make()
    monkeypatch.setattr(optim, "CACHE_BYTES", 100_000)  # 8 samples a chunk: 38 chunks, 5 rows too many
    np.testing.assert_allclose(make().components_, whole.components_, atol=1e-10)


# --- measurements ---------------------------------------------------------------------------------------------------


def test_masked_values_are_learned_around(data):
    X, truth, D0 = data
    mask = np.random.default_rng(0).random(X.shape) < 0.7
    options = {"init": D0, "lam": 0.05} | QUIET
    model = DictionaryLearning(12, **options).fit(np.where(mask, X, np.nan), mask=mask)
    same = DictionaryLearning(12, **options).fit(np.where(mask, X, 1e3), mask=mask)
    np.testing.assert_array_equal(model.components_, same.components_)
    assert recovery_score(model.components_, truth) > recovery_score(D0, truth)
    codes = model.transform(X, mask=mask)
    filled = model.inverse_transform(codes)
    missing = np.mean((filled - X)[~mask] ** 2)
    assert missing < 0.7 * np.mean(X[~mask] ** 2)
    assert model.score(X, mask=mask) == pytest.approx(-model.history_["loss"][-1] / 300, rel=1e-3)


def test_operators_shared_and_one_a_sample(data):
    X, truth, D0 = data
    rng = np.random.default_rng(0)
    A = rng.standard_normal((8, 10)).astype("f4") / 3
    model = DictionaryLearning(12, init=D0, **QUIET).fit(X @ A.T, operator=A)
    assert model.components_.shape == (12, 10) and model.n_features_in_ == 8
    assert model.transform(X @ A.T, operator=A).shape == (300, 12)
    assert np.all(np.diff(model.history_["loss"]) < 0)
    each = rng.standard_normal((300, 7, 10)).astype("f4") / 3
    Y = np.einsum("tij,tj->ti", each, X)
    varied = DictionaryLearning(12, init=D0, lam=0.05, **QUIET).fit(Y, operator=each)
    assert recovery_score(varied.components_, truth) > recovery_score(D0, truth)
    assert varied.score(Y, operator=each) == pytest.approx(-varied.history_["loss"][-1] / 300, rel=1e-3)
    blur = linalg.convolution(np.array([0.25, 0.5, 0.25], "f4"), 10, "same")
    blurred = DictionaryLearning(12, init="data", **QUIET).fit(np.asarray(blur.matvec(jnp.asarray(X))), operator=blur)
    assert blurred.components_.shape == (12, 10)
    stochastic = DictionaryLearning(12, init=D0, batch_size=50, epochs=1, verbose=False).fit(Y, operator=each)
    assert stochastic.history_["loss"].size == 6


# --- minibatches ----------------------------------------------------------------------------------------------------


def test_stochastic_line_search_recovers(data):
    X, truth, D0 = data
    model = DictionaryLearning(12, init=D0, batch_size=50, epochs=6, verbose=False).fit(X)
    assert recovery_score(model.components_, truth) > recovery_score(D0, truth) + 0.03
    assert model.history_["loss"].size == 36
    np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1, atol=1e-6)
    steps = DictionaryLearning(12, init=D0, batch_size=50, epochs=2, learn_steps=True, n_iter=5, verbose=False).fit(X)
    assert steps.history_["loss"].size == 24 and np.abs(steps.steps_ - 1).max() > 1e-3


def test_line_search_is_armijos(data, x64):
    X, _, D0 = (np.asarray(a, float) for a in data)
    D0 /= np.linalg.norm(D0, axis=1, keepdims=True)
    model = DictionaryLearning(12, init=D0, batch_size=300, epochs=1, verbose=False, estimator="g1").fit(X)
    codes = np.asarray(sparse_code(X, D0, 0.1))
    g = codes.T @ (codes @ D0 - X)
    value = lambda D: float(lasso_objective(X, sparse_code(X, D, 0.1), D, 0.1))
    eta = 1.0
    while True:
        new = D0 - 0.5 * eta * g
        new = new / np.linalg.norm(new, axis=1, keepdims=True)
        if value(new) < value(D0) - 10 / 300 * eta * np.sum(g**2):
            break
        eta /= 2
    np.testing.assert_allclose(model.components_, new, atol=1e-10)
    assert model.history_["step"][0] == pytest.approx(eta / 2)


def test_an_epoch_sees_every_sample_once():
    sampler = optim.Sampler(12, 4, None)
    order = sampler.order(jax.random.key(0))
    drawn = [np.asarray(sampler.draw(jax.random.key(1), order, j, jnp.arange(12))) for j in range(3)]
    assert sorted(np.concatenate(drawn)) == list(range(12))
    assert np.any(np.concatenate(drawn) != np.arange(12))


def test_an_epoch_leaves_no_sample_out(data):
    sampler = optim.Sampler(9, 5, None)
    order = sampler.order(jax.random.key(0))
    drawn = [np.asarray(sampler.draw(jax.random.key(1), order, j, jnp.arange(9))) for j in range(2)]
    assert set(np.concatenate(drawn)) == set(range(9))
    model = DictionaryLearning(12, batch_size=200, epochs=3, n_iter=2, verbose=False).fit(data[0])
    assert model.history_["loss"].size == 6


def test_windows_are_cut_uniformly():
    sampler = optim.Sampler(2, 4000, 5)
    recording = jnp.stack([jnp.arange(20.0), 100 + jnp.arange(20.0)])[:, None]
    windows = np.asarray(sampler.draw(jax.random.key(0), None, jnp.int32(0), recording))
    assert windows.shape == (4000, 1, 5)
    assert np.all(np.diff(windows, axis=-1) == 1)
    starts, counts = np.unique(windows[:, 0, 0], return_counts=True)
    assert starts.size == 32 and counts.min() > 80


@pytest.mark.parametrize("batch_size", [None, 100])
def test_optax_takes_the_place_of_the_search(data, batch_size):
    X, truth, D0 = data
    options = {"optimizer": optax.adam(1e-2), "batch_size": batch_size, "max_steps": 40, "epochs": 15}
    model = DictionaryLearning(12, init=D0, verbose=False, **options).fit(X)
    assert recovery_score(model.components_, truth) > recovery_score(D0, truth)
    np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1, atol=1e-6)


def test_memory_of_minibatches_does_not_grow_with_the_data():
    from gyri.unrolled.dictionary import dictionary_task

    task = dictionary_task("g2", "fista", "spectral", None)

    def temporaries(n):
        step = optim.stochastic_step(task, False, optim.Sampler(n, 50, None), None)
        X = jax.ShapeDtypeStruct((n, 10), np.float32)
        params = optim.Params(jax.ShapeDtypeStruct((12, 10), np.float32), jax.ShapeDtypeStruct((5,), np.float32))
        scalar = jax.ShapeDtypeStruct((), np.float32)
        state = optim.Stochastic(params, jax.ShapeDtypeStruct((n,), np.int32), ())
        options = optim.Options(jax.random.key(0), scalar, jax.ShapeDtypeStruct((), np.int32), scalar)
        lowered = jax.jit(step).lower(state, 0, (X, (None, None, None)), (scalar, None), options)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # The order of an epoch is an array of indices, sorted: some 16 bytes a sample. The data are not copied.
    few, many = temporaries(1000), temporaries(100_000)
    assert (many - few) / 99_000 < 30


# --- reproducibility, compilation, interruption ---------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"batch_size": 50, "epochs": 1}, {"init": "data"}, {"init": "random"}])
def test_same_key_same_result(data, options):
    make = lambda seed: DictionaryLearning(12, random_state=seed, **(QUIET | {"max_steps": 2} | options)).fit(data[0])
    np.testing.assert_array_equal(make(0).components_, make(0).components_)
    assert np.any(make(0).components_ != make(1).components_)
    np.testing.assert_array_equal(make(jax.random.key(1)).components_, make(1).components_)


@pytest.mark.parametrize("options", [{}, {"batch_size": 50, "epochs": 1}, {"learn_steps": True, "n_iter": 3}])
def test_a_second_fit_compiles_nothing(data, options):
    X, _, D0 = data

    def fit(X, lam):
        DictionaryLearning(12, lam=lam, init=D0, **(QUIET | options)).fit(X)

    check_no_recompilation(fit, (X, 0.1), (2 * X, 0.2), jit=False)


def test_interrupt_keeps_the_last_good_state(data, monkeypatch):
    X, _, D0 = data
    plain = optim.Clock.__call__

    def interrupting(self, n_done, carry, outputs):
        plain(self, n_done, carry, outputs)
        if n_done >= 20:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(optim.Clock, "__call__", interrupting)
    with pytest.warns(UserWarning, match="interrupted after"):
        model = DictionaryLearning(12, init=D0, verbose=False, tol=0).fit(X)
    assert np.isfinite(model.score(X)) and model.n_steps_ < 40
    with pytest.warns(UserWarning, match="interrupted after"):
        model = DictionaryLearning(12, init=D0, verbose=False, batch_size=10, epochs=3).fit(X)
    assert np.isfinite(model.components_).all()


def test_progress_is_shown_on_demand(data, capsys):
    DictionaryLearning(12, verbose=False, max_steps=2).fit(data[0])
    assert capsys.readouterr() == ("", "")
    DictionaryLearning(12, max_steps=2).fit(data[0])
    assert "fit" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_an_error(data):
    huge = np.full((20, 10), 1e30, np.float32)
    with pytest.raises(FloatingPointError, match="the loss is"):
        DictionaryLearning(12, batch_size=10, epochs=1, verbose=False).fit(huge)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"learn_steps": True, "random_state": 3}, {"batch_size": 100, "optimizer": optax.sgd(1e-3)}]
)
def test_save_and_load(tmp_path, data, options):
    X, _, D0 = data
    model = DictionaryLearning(12, init=D0, **(QUIET | {"epochs": 1} | options)).fit(X)
    path = tmp_path / "model.npz"
    model.save(path)
    again = DictionaryLearning.load(path)
    np.testing.assert_array_equal(again.transform(X), model.transform(X))
    assert again.score(X) == model.score(X) and again.n_steps_ == model.n_steps_ and again.lam_ == model.lam_
    np.testing.assert_array_equal(again.init, D0)
    kept = {k: v for k, v in model.get_params().items() if k not in ("init", "optimizer")}
    assert {k: again.get_params()[k] for k in kept} == kept
    for name in ("loss", "time", "step"):
        np.testing.assert_array_equal(again.history_[name], model.history_[name])
    np.testing.assert_array_equal(again.fit(X).components_.shape, (12, 10))


def test_damaged_and_foreign_files(tmp_path, fitted):
    path = tmp_path / "model.npz"
    fitted.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.npz"):
        DictionaryLearning.load(path)
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(ValueError, match="other.npz"):
        DictionaryLearning.load(tmp_path / "other.npz")


# --- scikit-learn ---------------------------------------------------------------------------------------------------


# Float64 comes back as float64 only in double precision, in which all checks run.
@pytest.mark.parametrize(
    ("estimator", "check"),
    list(estimator_checks_generator(DictionaryLearning(3, n_iter=5, max_steps=3, verbose=False))),
    ids=lambda value: getattr(getattr(value, "func", value), "__name__", "model"),
)
def test_scikit_learns_checks(estimator, check, x64):
    check(estimator)


def test_it_is_an_estimator(fitted):
    assert not hasattr(clone(fitted), "components_")
    assert "n_components=12" in repr(fitted)
    DictionaryLearning("anything", lam=None)  # nothing is checked before fit


def test_nothing_before_fit(tmp_path, data):
    model = DictionaryLearning()
    for call in (lambda: model.transform(data[0]), lambda: model.score(data[0]), lambda: model.save(tmp_path),
                 lambda: model.inverse_transform(np.ones((1, 3)))):  # fmt: skip
        with pytest.raises(NotFittedError):
            call()


def test_the_import_is_light():
    heavy = ("sklearn", "matplotlib", "optax", "mne", "pywt", "scipy.stats")
    code = f"import sys, gyri.unrolled; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 0}, "n_components: expected an integer >= 1"),
        ({"lam": 0}, "lam: expected a number > 0"),
        ({"lam": None}, "lam: expected a number > 0"),
        ({"n_iter": 0}, "n_iter: expected an integer >= 1"),
        ({"estimator": "g4"}, "estimator: expected one of 'g1', 'g2', 'g3'"),
        ({"algorithm": "amp"}, "algorithm: expected one of"),
        ({"backprop_depth": -1}, "backprop_depth: expected an integer >= 0"),
        ({"learn_steps": "yes"}, "learn_steps: expected one of"),
        ({"learn_steps": True, "estimator": "g1"}, "learn_steps: expected False unless"),
        ({"lipschitz": "legacy"}, "lipschitz: expected one of"),
        ({"batch_size": 0}, "batch_size: expected an integer >= 1"),
        ({"max_steps": 0}, "max_steps: expected an integer >= 1"),
        ({"epochs": 0}, "epochs: expected an integer >= 1"),
        ({"iterations_per_epoch": 0}, "iterations_per_epoch: expected an integer >= 1"),
        ({"tol": -1.0}, "tol: expected a number >= 0"),
        ({"init": "zeros"}, "init: expected one of"),
        ({"init": np.ones((12, 9))}, r"init: expected shape \(12, 10\)"),
        ({"init": "data", "n_components": 400}, "init: expected at least 400 samples"),
        ({"optimizer": "adam"}, "optimizer: expected an optax.GradientTransformation"),
        ({"random_state": -1}, "^random_state: expected an integer seed"),
        ({"random_state": None}, "^random_state: expected an integer seed"),
        ({"random_state": np.random.RandomState(0)}, "^random_state: expected an integer seed"),
    ],
)
def test_bad_options(data, options, message):
    with pytest.raises(ValueError, match=message):
        DictionaryLearning(**({"n_components": 12, "verbose": False} | options)).fit(data[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X": np.full((20, 10), np.nan)}, "X contains NaN"),
        ({"X": np.full((20, 10), np.inf)}, "X contains infinity"),
        ({"X": np.zeros((0, 10))}, "minimum of 1 is required"),
        ({"X": np.zeros(10)}, "Expected 2D array"),
        ({"mask": np.ones((20, 9))}, r"mask: expected shape \(20, 10\)"),
        ({"mask": np.full((20, 10), 2.0)}, "mask: expected 1"),
        ({"operator": np.ones((9, 10))}, r"operator: expected shape \(10, "),
        ({"operator": np.ones((3, 10, 10))}, r"operator: expected shape \(20, 10, "),
    ],
)
def test_bad_data(fitted, arguments, message):
    arguments = {"X": np.ones((20, 10), "f4")} | arguments
    X = arguments.pop("X")
    for model in (DictionaryLearning(12, verbose=False, max_steps=1), fitted):
        call = model.fit if model is not fitted else model.transform
        with pytest.raises(ValueError, match=message):
            call(X, **arguments)


def test_bad_codes(fitted):
    with pytest.raises(ValueError, match=r"codes: expected shape \(n_samples, 12\)"):
        fitted.inverse_transform(np.ones((3, 4)))


@pytest.mark.parametrize("batch_size", [None, 50])
def test_atoms_that_nothing_uses_are_seeded_anew(batch_size):
    X, truth, _ = simulate(0, 300, n_features=12, n_components=8, sparsity=0.2, noise=0.02)
    X = np.concatenate([X, np.zeros((300, 1))], 1)
    # Two atoms along a feature that is always 0: no code, hence no gradient.
    init = np.concatenate([np.asarray(truth)[:6], np.zeros((6, 1))], 1)
    init = np.concatenate([init, np.eye(13)[[-1, -1]]])
    options = {"lam": 0.1, "init": init, "batch_size": batch_size, "n_iter": 10, "verbose": False}
    stuck = DictionaryLearning(8, **options).fit(X)
    np.testing.assert_allclose(np.abs(stuck.components_[6:, -1]), 1)
    freed = DictionaryLearning(8, reseed=True, **options).fit(X)
    assert freed.transform(X).any(0).all()
    assert freed.score(X) > stuck.score(X)
    scores = [recovery_score(model.components_[:, :-1], truth) for model in (stuck, freed)]
    assert scores[1] > scores[0] + (0.15 if batch_size is None else 0.03)
    assert (np.diff(freed.history_["time"]) >= 0).all()


def test_no_atom_helps_where_all_codes_are_zero():
    X = np.random.default_rng(0).normal(size=(20, 5))
    model = DictionaryLearning(3, lam=100.0, reseed=True, verbose=False).fit(X)
    assert not model.transform(X).any()
