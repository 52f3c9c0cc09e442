"""Tests of gyri.shine.datasets."""

import numpy as np
import pytest
import scipy.sparse
import sklearn.datasets

from gyri.shine import datasets


@pytest.mark.parametrize("load", [datasets.load_breast_cancer, datasets.load_digits_binary, datasets.load_topics])
def test_labels_are_minus_one_and_one(load):
    X, y = load()
    assert X.shape[0] == y.shape[0] and np.isfinite(X).all()
    assert sorted(set(y.tolist())) == [-1.0, 1.0]
    assert 0.3 < (y > 0).mean() < 0.7


def test_breast_cancer_is_scaled_and_not_centred():
    X, _ = datasets.load_breast_cancer()
    np.testing.assert_allclose(X.std(0), 1)
    assert (X.mean(0) > 0.3).all()


def test_topics_are_documents_that_can_be_told_apart():
    X, y = datasets.load_topics(400, 120, key=1)
    again, _ = datasets.load_topics(400, 120, key=1)
    other, _ = datasets.load_topics(400, 120, key=2)
    np.testing.assert_array_equal(X, again)
    assert not np.array_equal(X, other)
    np.testing.assert_allclose(np.linalg.norm(X, axis=1), 1, rtol=1e-5)
    assert (X >= 0).all() and (X == 0).mean() > 0.5
    w = np.linalg.lstsq(X[:300], y[:300], rcond=None)[0]
    assert (np.sign(X[300:] @ w) == y[300:]).mean() > 0.6


@pytest.mark.parametrize("make", [np.asarray, scipy.sparse.csr_array])
def test_split_is_a_partition(make):
    X, y = make(np.arange(1, 41.0).reshape(20, 2)), np.arange(20)
    parts = datasets.train_val_test_split(X, y, train=0.5, seed=3)
    assert [len(labels) for _, labels in parts] == [10, 5, 5]
    assert sorted(np.concatenate([labels for _, labels in parts])) == list(range(20))
    for rows, labels in parts:
        dense = rows.toarray() if hasattr(rows, "toarray") else rows
        np.testing.assert_array_equal(dense[:, 0], 2 * labels + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"train": 1.0}, "train: expected a number"), ({"train": 0.99}, "train: expected three parts"),
     ({"seed": -1}, "seed: expected an integer >= 0")],
)  # fmt: skip
def test_bad_splits_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        datasets.train_val_test_split(np.zeros((40, 2)), np.zeros(40), **options)
    with pytest.raises(ValueError, match="y: expected one label a sample"):
        datasets.train_val_test_split(np.zeros((9, 2)), np.zeros(8))


def test_downloads_are_made_binary(monkeypatch):
    bunch = sklearn.utils.Bunch(data=scipy.sparse.eye(4).tocsr(), target=np.array([0, 9, 10, 19]))
    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups_vectorized", lambda subset: bunch)
    assert datasets.load_20news()[1].tolist() == [-1, -1, 1, 1]
    bunch = sklearn.utils.Bunch(data=scipy.sparse.eye(2).tocsr(), target=np.array(["-1", "1"]))
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda *args, **kwargs: bunch)
    assert datasets.load_real_sim()[1].tolist() == [-1, 1]


def test_small_simulations_are_refused():
    with pytest.raises(ValueError, match="n: expected an integer >= 20"):
        datasets.load_topics(3)
