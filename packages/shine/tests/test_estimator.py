"""Tests of gyri.shine.estimator and gyri.shine.objectives."""

import pickle
from copy import deepcopy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted

from gyri.shine import LBFGS, BilevelLogisticRegression, Full, Shine
from gyri.shine.datasets import load_breast_cancer, train_val_test_split

TRAIN, VALID, TEST = train_val_test_split(*load_breast_cancer(), train=0.4, seed=0)


def fit(**options):
    return BilevelLogisticRegression(max_iter=6, **options).fit(*TRAIN, *VALID)


@pytest.fixture(scope="module")
def fitted():
    return fit()


def test_weights_are_scikit_learns_at_the_penalty_found(x64):
    model = BilevelLogisticRegression(max_iter=12, tol_decay=0.4).fit(*TRAIN, *VALID)
    theirs = LogisticRegression(C=1 / model.alpha_, fit_intercept=False, tol=1e-10, max_iter=5000).fit(*TRAIN)
    last = model.history_["lam"][-1]
    assert np.isfinite(last)
    np.testing.assert_allclose(model.decision_function(TEST[0]), theirs.decision_function(TEST[0]), atol=0.2)
    assert (model.predict(TEST[0]) == theirs.predict(TEST[0])).mean() > 0.99
    losses = [np.logaddexp(0, -VALID[1] * (VALID[0] @ LogisticRegression(
        C=np.exp(-lam), fit_intercept=False, tol=1e-8, max_iter=5000).fit(*TRAIN).coef_[0])).sum()
        for lam in np.linspace(-4, 4, 17)]  # fmt: skip
    assert model.history_["outer"].min() <= 1.01 * min(losses)


def test_is_an_estimator(fitted):
    assert BilevelLogisticRegression("full", "nls", 5).get_params()["loss"] == "nls"
    assert fitted.score(*TEST) > 0.93
    assert fitted.coef_.shape == (1, 30) and fitted.n_features_in_ == 30
    assert fitted.alpha_ == pytest.approx(np.exp(fitted.log_alpha_))
    assert clone(fitted).get_params()["max_iter"] == 6
    check_is_fitted(fitted)
    np.testing.assert_array_equal(fitted.predict(TEST[0]), np.sign(fitted.decision_function(TEST[0])))


def test_labels_may_be_anything_of_two_kinds():
    name = lambda y: np.where(y > 0, "good", "bad")
    model = fit().__class__(max_iter=2).fit(TRAIN[0], name(TRAIN[1]), VALID[0], name(VALID[1]))
    assert model.classes_.tolist() == ["bad", "good"]
    assert model.score(TEST[0], name(TEST[1])) > 0.9


@pytest.mark.parametrize("loss", ["logistic", "nls"])
def test_sparse_matrices_give_what_dense_ones_give(loss):
    X, y = TRAIN
    X, X_val = np.where(np.abs(X) > 1, X, 0), np.where(np.abs(VALID[0]) > 1, VALID[0], 0)
    # In double precision: the sums of sparse products go in another order, and where a line search or an outer step
    # is at its limit single precision may decide otherwise.
    with jax.enable_x64(True):
        model = BilevelLogisticRegression(max_iter=3, loss=loss)
        X, X_val = X.astype(float), X_val.astype(float)
        dense = model.fit(X, y, X_val, VALID[1]).decision_function(X_val)
        csr = scipy.sparse.csr_array(X), scipy.sparse.csr_matrix(X_val)
        sparse = model.fit(csr[0], y, csr[1], VALID[1]).decision_function(csr[1])
    np.testing.assert_allclose(sparse, dense, atol=1e-6, rtol=1e-6)
    assert ((dense > 0) == (VALID[1] > 0)).mean() > 0.85


@pytest.mark.parametrize(
    "backward", [Shine(fallback=1.3, refine_steps=2), Full(max_steps=9, tol=1e-3), "jacobian_free"]
)
def test_files_keep_the_classifier(tmp_path, backward):
    model = fit(backward=backward, solver=LBFGS(memory=7))
    model.save(tmp_path / "model.npz")
    for copy in (BilevelLogisticRegression.load(tmp_path / "model.npz"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(copy.decision_function(TEST[0]), model.decision_function(TEST[0]))
        np.testing.assert_array_equal(copy.predict(TEST[0]), model.predict(TEST[0]))
        assert copy.get_params() == model.get_params()
        np.testing.assert_array_equal(copy.history_["outer"], model.history_["outer"])


def unchecked(made, **fields):
    """With numbers of NumPy, which nothing but the type checks of these tests refuses."""
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


@pytest.mark.parametrize(
    "options",
    [{"max_iter": np.int64(2)}, {"log_alpha_init": np.float32(0.5)}, {"bounds": np.array([-5, 5], np.float32)},
     {"solver": unchecked(LBFGS(), memory=np.int64(7))}, {"backward": unchecked(Shine(), refine_steps=np.int32(1))},
     {"verbose": np.False_}, {"tol_init": np.array(1e-3)}],
    ids=str,
)  # fmt: skip
def test_files_keep_options_that_are_numbers_of_numpy(tmp_path, fitted, options):
    model = deepcopy(fitted).set_params(**options)
    model.save(tmp_path / "model.npz")
    copy = BilevelLogisticRegression.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(copy.predict(TEST[0]), model.predict(TEST[0]))
    for name, value in options.items():
        np.testing.assert_array_equal(getattr(copy, name), value)


@pytest.mark.parametrize(
    "labels",
    [np.array(["a", "long"], object), np.array([3, 7], object), np.array([3, 7], np.int8), np.array([False, True])],
    ids=repr,
)
def test_files_keep_the_kind_of_the_labels(tmp_path, labels):
    pick = lambda y: labels[(y > 0).astype(int)]
    model = BilevelLogisticRegression(max_iter=1).fit(TRAIN[0], pick(TRAIN[1]), VALID[0], pick(VALID[1]))
    model.save(tmp_path / "model.npz")
    copy = BilevelLogisticRegression.load(tmp_path / "model.npz")
    assert copy.classes_.dtype == labels.dtype
    assert copy.predict(TEST[0]).tolist() == model.predict(TEST[0]).tolist()


def test_files_keep_labels_that_are_words_and_refuse_damage(tmp_path):
    words = np.where(TRAIN[1] > 0, "b", "a"), np.where(VALID[1] > 0, "b", "a")
    model = BilevelLogisticRegression(max_iter=1).fit(TRAIN[0], words[0], VALID[0], words[1])
    model.save(tmp_path / "model.npz")
    assert BilevelLogisticRegression.load(tmp_path / "model.npz").predict(TEST[0][:3]).tolist() == (
        model.predict(TEST[0][:3]).tolist()
    )
    content = (tmp_path / "model.npz").read_bytes()
    (tmp_path / "model.npz").write_bytes(content[:-100])
    with pytest.raises(ValueError, match="model.npz"):
        BilevelLogisticRegression.load(tmp_path / "model.npz")
    with pytest.raises(NotFittedError):
        BilevelLogisticRegression().save(tmp_path / "other.npz")


X, Y = TRAIN
XV, YV = VALID
HOLE = np.where(np.arange(X.size).reshape(X.shape) == 5, np.nan, X)
BAD = {
    "nan": ((HOLE, Y, XV, YV), {}, "X: expected finite"),
    "nan, sparse": ((scipy.sparse.csr_array(HOLE), Y, XV, YV), {}, "X: expected finite"),
    "nan in validation": ((X, Y, HOLE, Y), {}, "X_val: expected finite"),
    "length": ((X, Y[:-1], XV, YV), {}, "y: expected one label a sample"),
    "length of validation": ((X, Y, XV, YV[:-1]), {}, "y_val: expected one label a sample"),
    "features": ((X, Y, XV[:, 1:], YV), {}, "X_val: expected 30 features"),
    "one class": ((X, np.ones_like(Y), XV, YV), {}, "y: expected two classes, got 1"),
    "three classes": ((X, np.arange(len(Y)) % 3, XV, YV), {}, "y: expected two classes, got 3"),
    "other class": ((X, Y, XV, YV * 2), {}, "y_val: expected the two classes of y"),
    "empty": ((X, Y, XV[:0], YV[:0]), {}, "X_val: expected at least one entry"),
    "empty, sparse": ((X, Y, scipy.sparse.csr_array((0, 30)), YV[:0]), {}, "X_val: expected at least one sample"),
    "axes": ((X[0], Y, XV, YV), {}, "X: expected 2 axes"),
    "loss": ((X, Y, XV, YV), {"loss": "hinge"}, "loss: expected one of 'logistic', 'nls'"),
    "start": ((X, Y, XV, YV), {"log_alpha_init": np.nan}, "log_alpha_init: expected a finite number"),
    "backward": ((X, Y, XV, YV), {"backward": "exact"}, "backward: expected one of"),
    "max_iter": ((X, Y, XV, YV), {"max_iter": 0}, "max_iter: expected an integer"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    arguments, options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        BilevelLogisticRegression(**options).fit(*arguments)


def test_use_before_fit_and_with_other_features_is_refused(fitted):
    with pytest.raises(NotFittedError):
        BilevelLogisticRegression().predict(X)
    with pytest.raises(ValueError, match="X: expected 30 features, got 29"):
        fitted.predict(X[:, 1:])
    with pytest.raises(ValueError, match="X: expected finite"):
        fitted.predict(HOLE)


def test_names_of_features_are_kept_and_compared(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = lambda X, first=0: pandas.DataFrame(X, columns=[f"f{first + i}" for i in range(30)])
    model = BilevelLogisticRegression(max_iter=1).fit(frame(X), Y, frame(XV), YV)
    model.save(tmp_path / "model.npz")
    for copy in (model, BilevelLogisticRegression.load(tmp_path / "model.npz")):
        assert copy.feature_names_in_.tolist() == list(frame(X).columns)
        copy.predict(frame(X))
        with pytest.raises(ValueError, match="feature names should match"):
            copy.predict(frame(X, first=1))
    with pytest.raises(ValueError, match="feature names should match"):
        model.fit(frame(X), Y, frame(XV, first=1), YV)
    assert not hasattr(model.fit(X, Y, XV, YV), "feature_names_in_")


def test_same_data_same_result(fitted):
    np.testing.assert_array_equal(fit().coef_, fitted.coef_)


def test_the_second_fit_compiles_nothing(fitted):
    from gyri.numerics.testing import check_no_recompilation

    run = lambda y: jnp.asarray(BilevelLogisticRegression(max_iter=2).fit(X, y, XV, YV).coef_)
    check_no_recompilation(run, (Y,), (-Y,), jit=False)
