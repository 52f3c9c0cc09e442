"""Data sets of two classes, labels -1 and 1, and their split in three."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from gyri.numerics.validation import as_key, check_positive_int, check_scalar


def load_breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    """Breast cancer, Wisconsin: 569 samples of 30 features of unit variance, not centred.

    Returns
    -------
    X : np.ndarray, shape (569, 30)
        Samples, float64.
    y : np.ndarray, shape (569,)
        -1 (malignant) or 1.

    Examples
    --------
    >>> from gyri.shine.datasets import load_breast_cancer
    >>> load_breast_cancer()[0].shape
    (569, 30)
    """
    from sklearn.datasets import load_breast_cancer as load

    X, y = load(return_X_y=True)
    return X / X.std(0), 2.0 * y - 1.0


def load_digits_binary() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits, 0 to 4 (label -1) against 5 to 9: 1797 samples of 64 features in [0, 1].

    Returns
    -------
    X : np.ndarray, shape (1797, 64)
        Samples, float64.
    y : np.ndarray, shape (1797,)
        -1 or 1.

    Examples
    --------
    >>> from gyri.shine.datasets import load_digits_binary
    >>> load_digits_binary()[0].shape
    (1797, 64)
    """
    from sklearn.datasets import load_digits

    X, digit = load_digits(return_X_y=True)
    return X / 16, np.where(digit >= 5, 1.0, -1.0)


def load_20news() -> tuple[Any, np.ndarray]:
    """20 newsgroups, the first ten (label -1) against the others: the paper's data. Downloaded by scikit-learn.

    Returns
    -------
    X : scipy.sparse matrix, shape (18846, 130107)
        Term frequencies, float64.
    y : np.ndarray, shape (18846,)
        -1 or 1.

    Raises
    ------
    OSError
        If the data are not there and cannot be downloaded.

    Examples
    --------
    >>> from gyri.shine.datasets import load_20news
    >>> X, y = load_20news()  # doctest: +SKIP
    """
    from sklearn.datasets import fetch_20newsgroups_vectorized

    bunch = fetch_20newsgroups_vectorized(subset="all")
    return bunch.data, np.where(bunch.target >= 10, 1.0, -1.0)


def load_real_sim() -> tuple[Any, np.ndarray]:
    """real-sim, documents about real and simulated things: the paper's data. Downloaded from OpenML.

    Returns
    -------
    X : scipy.sparse matrix, shape (72309, 20958)
        Features, float64.
    y : np.ndarray, shape (72309,)
        -1 or 1.

    Raises
    ------
    OSError
        If the data are not there and cannot be downloaded.

    Examples
    --------
    >>> from gyri.shine.datasets import load_real_sim
    >>> X, y = load_real_sim()  # doctest: +SKIP
    """
    from sklearn.datasets import fetch_openml

    bunch = fetch_openml("real-sim", version=1, as_frame=False)
    return bunch.data, np.where(bunch.target.astype(float) > 0, 1.0, -1.0)


def load_topics(n: int = 3000, p: int = 2000, key: Key[Array, ""] | Array | int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Simulated documents: word frequencies, as of 20 topics with common and rare words, the first ten of label -1.

    Stands for `load_20news` where there is no network. A document has 20 to 200 words, most of its own topic's
    distribution, the rest of that of all; rows have unit length.

    Parameters
    ----------
    n, p : int
        Documents and words.
    key : PRNG key or int
        Draws them.

    Returns
    -------
    X : np.ndarray, shape (n, p)
        Frequencies, float32, most of them 0.
    y : np.ndarray, shape (n,)
        -1 or 1.

    Raises
    ------
    ValueError
        If a size is too small.

    Examples
    --------
    >>> from gyri.shine.datasets import load_topics
    >>> X, y = load_topics(100, 50)
    >>> X.shape, sorted(set(y.tolist()))
    ((100, 50), [-1.0, 1.0])
    """
    check_positive_int(n, "n", minimum=20)
    check_positive_int(p, "p", minimum=20)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(as_key(key))))
    common = 1 / np.arange(1, p + 1)  # Zipf's law
    topics = common * rng.gamma(0.3, size=(20, p))
    topics /= topics.sum(1, keepdims=True)
    common /= common.sum()
    topic = rng.permutation(np.arange(n) % 20)
    lengths = rng.integers(20, 201, n)
    X = np.stack([rng.multinomial(length, 0.5 * topics[t] + 0.5 * common) for t, length in zip(topic, lengths)])
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    return X.astype(np.float32), np.where(topic >= 10, 1.0, -1.0)


def train_val_test_split(
    X: Any, y: Any, train: float | int = 0.9, seed: int = 0
) -> tuple[tuple[Any, Any], tuple[Any, Any], tuple[Any, Any]]:
    """Shuffle, and split in three: what is not for training is halved into validation and test.

    Parameters
    ----------
    X : array or sparse matrix, shape (n, p)
        Samples.
    y : array, shape (n,)
        Labels.
    train : float
        Share for training, in (0, 1).
    seed : int
        Shuffles.

    Returns
    -------
    train, validation, test : tuple of (X, y)
        At least one sample each.

    Raises
    ------
    ValueError
        Lengths that differ, a share out of range, or a part without samples.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.shine.datasets import train_val_test_split
    >>> [len(y) for X, y in train_val_test_split(np.zeros((10, 2)), np.zeros(10), train=0.5)]
    [5, 2, 3]
    """
    n, y = X.shape[0], np.asarray(y)
    share = check_scalar(train, "train", minimum=0, maximum=1, strict=True)
    if y.shape != (n,):
        raise ValueError(f"y: expected one label a sample, {n}, got shape {y.shape}")
    first = round(share * n)
    second = first + (n - first) // 2
    if not 0 < first < second < n:
        raise ValueError(f"train: expected three parts with samples of {n}, got {train}")
    order = np.random.default_rng(check_positive_int(seed, "seed", minimum=0)).permutation(n)
    parts = order[:first], order[first:second], order[second:]
    a, b, c = ((X[part], y[part]) for part in parts)
    return a, b, c
