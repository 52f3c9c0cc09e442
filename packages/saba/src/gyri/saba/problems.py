"""Problems: quadratic ones with closed forms, choice of regularisation, cleaning of labels; and their data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from gyri.numerics.validation import as_key, check_array, check_option, check_positive_int, check_scalar, import_extra

from .types import BilevelProblem

PER = ("feature", "class", "single")
START = -2.0  # logarithm of the first regularisation strength, or log-odds of the first weights
MAX_DRAWS = 1000
NAMES = ("breast_cancer", "digits", "digits_cleaning", "simulated_ijcnn1", "ijcnn1", "covtype", "mnist_cleaning")


# --- quadratic problems -----------------------------------------------------------------------------------------------


def quadratic_loss(z: Array, x: Array, batch: dict[str, Array]) -> Array:
    """Mean of quadratics of rank one: squares along a row in z and one in x, a product of two, linear terms."""
    along_z, along_x = batch["hess_z"] @ z, batch["hess_x"] @ x
    crossed = (batch["cross_x"] @ x) * (batch["cross_z"] @ z)
    linear = batch["lin_z"] @ z + batch["lin_x"] @ x
    return jnp.mean(0.5 * along_z**2 + 0.5 * along_x**2 + crossed + linear)


class QuadraticProblem(BilevelProblem):
    """A quadratic problem with its solutions; see :func:`quadratic`."""

    __slots__ = ()

    def _means(self, data: dict[str, Array]) -> tuple[Array, ...]:
        n, product = data["hess_z"].shape[0], lambda a, b: jnp.matmul(a.T, b, precision="highest")
        pairs = (("hess_z", "hess_z"), ("hess_x", "hess_x"), ("cross_x", "cross_z"))
        matrices = [product(data[a], data[b]) / n for a, b in pairs]
        return (*matrices, data["lin_z"].mean(0), data["lin_x"].mean(0))

    def inner_solution(self, x: Float[Array, " d"]) -> Float[Array, " p"]:
        """Minimiser of the inner objective, shape (p,)."""
        A, _, C, a, _ = self._means(self.inner_data)
        return -jnp.linalg.solve(A, C.T @ x + a)

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """The function to be minimised, F(z*(x), x)."""
        A, B, C, a, b = self._means(self.outer_data)
        z = self.inner_solution(x)
        return 0.5 * z @ A @ z + 0.5 * x @ B @ x + x @ C @ z + a @ z + b @ x

    def gradient(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Its gradient, shape (d,)."""
        A, _, C, *_ = self._means(self.inner_data)
        A_outer, B_outer, C_outer, a_outer, b_outer = self._means(self.outer_data)
        z = self.inner_solution(x)
        v = -jnp.linalg.solve(A, A_outer @ z + C_outer.T @ x + a_outer)
        return B_outer @ x + C_outer @ z + b_outer + C @ v

    def hessian(self) -> Float[Array, "d d"]:
        """Its Hessian, shape (d, d), the same everywhere."""
        A, _, C, *_ = self._means(self.inner_data)
        A_outer, B_outer, C_outer, *_ = self._means(self.outer_data)
        J = -jnp.linalg.solve(A, C.T)
        crossed = C_outer @ J
        return B_outer + J.T @ A_outer @ J + crossed + crossed.T

    def minimizer(self) -> Float[Array, " d"]:
        """Its minimiser, shape (d,)."""
        return -jnp.linalg.solve(self.hessian(), self.gradient(jnp.zeros_like(self.x0)))


def quadratic(
    key: Any,
    n: int = 256,
    m: int = 256,
    p: int = 10,
    d: int = 5,
    *,
    mu: ScalarLike = 0.1,
    L: ScalarLike = 1.0,
    L_cross: ScalarLike = 0.1,
    dtype: Any = None,
) -> QuadraticProblem:
    r"""Random quadratic problem whose value function is strongly convex, with closed forms.

    Sample i of the inner objective is :math:`\tfrac12 (\xi_i^\top z)^2 + \tfrac12 (\eta_i^\top x)^2` plus a product
    :math:`(c_i^\top x)(e_i^\top z)` plus terms linear in z and x. Rows are Gaussian, with covariances whose spectra go
    from `mu` to `L` (in x from 0) and up to `L_cross`; the outer objective likewise. Rows are stored, never matrices:
    n (3 p + 3 d) numbers.

    Parameters
    ----------
    key : PRNG key or int
        Drawn anew until the value function is strongly convex.
    n, m : int
        Samples of the inner and the outer objective.
    p, d : int
        Sizes of z and x; ``n >= p`` makes the inner objective strongly convex.
    mu, L, L_cross : float
        Range of the spectra; largest cross derivative.
    dtype : dtype, optional
        float32 or float64; JAX's default otherwise.

    Returns
    -------
    QuadraticProblem
        A :class:`BilevelProblem` with the methods `inner_solution(x)`, `value(x)`, `gradient(x)`, `hessian()` and
        `minimizer()`.

    Raises
    ------
    ValueError
        Sizes below one, fewer samples than variables, or no strongly convex problem in a thousand draws.

    Examples
    --------
    >>> from gyri.saba import problems
    >>> problem = problems.quadratic(0, n=64, m=64, p=3, d=2)
    >>> bool(abs(problem.gradient(problem.minimizer())).max() < 1e-5)
    True
    """
    n, m, p, d = (check_positive_int(value, name) for value, name in ((n, "n"), (m, "m"), (p, "p"), (d, "d")))
    low, high = (float(check_scalar(a, name, minimum=0, strict=True)) for a, name in ((mu, "mu"), (L, "L")))
    crossed = float(check_scalar(L_cross, "L_cross", minimum=0))
    if n < p:
        raise ValueError(f"n: expected at least p = {p} samples for a strongly convex inner objective, got {n}")
    if low > high:
        raise ValueError(f"L: expected a number >= mu = {low}, got {high}")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(as_key(key))).tolist())
    target = jnp.dtype(dtype) if dtype is not None else jnp.result_type(float)
    for _ in range(MAX_DRAWS):
        inner, outer = (_draw_rows(rng, size, p, d, low, high, crossed) for size in (n, m))
        z0, x0 = np.zeros(p), np.zeros(d)
        if _smallest_curvature(inner, outer) >= 0.1 * low:
            to_device = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, target), tree)
            parts = (to_device(part) for part in (inner, outer, z0, x0))
            return QuadraticProblem(quadratic_loss, quadratic_loss, *parts)
    raise ValueError(f"key: no strongly convex problem in {MAX_DRAWS} draws: use a smaller L_cross or more samples")


def _draw_rows(
    rng: np.random.Generator, n: int, p: int, d: int, mu: float, L: float, L_cross: float
) -> dict[str, np.ndarray]:
    basis = lambda size: np.linalg.qr(rng.normal(size=(size, size)))[0]
    spectrum_z, spectrum_x = np.geomspace(mu, L, p), np.geomspace(mu, L, d)
    spectrum_x[0] = 0.0

    def rows(spectrum: np.ndarray) -> np.ndarray:
        U = basis(spectrum.size)
        return rng.normal(size=(n, spectrum.size)) @ (U * np.sqrt(spectrum)) @ U.T

    rank = min(p, d)
    U, V, shared = basis(d)[:, :rank], basis(p)[:, :rank], rng.normal(size=(n, rank))
    return {
        "hess_z": rows(spectrum_z),
        "hess_x": rows(spectrum_x),
        "cross_x": (shared * np.linspace(0, L_cross, rank + 1)[1:]) @ U.T,
        "cross_z": shared @ V.T,
        "lin_z": rng.normal(size=(n, p)),
        "lin_x": rng.normal(size=(n, d)),
    }


def _smallest_curvature(inner: dict[str, np.ndarray], outer: dict[str, np.ndarray]) -> float:
    """Smallest eigenvalue of the value function's Hessian."""
    mean = lambda data, a, b: data[a].T @ data[b] / len(data[a])
    J = -np.linalg.solve(mean(inner, "hess_z", "hess_z"), mean(inner, "cross_x", "cross_z").T)
    crossed = mean(outer, "cross_x", "cross_z") @ J
    hessian = mean(outer, "hess_x", "hess_x") + J.T @ mean(outer, "hess_z", "hess_z") @ J + crossed + crossed.T
    return float(np.linalg.eigvalsh(hessian)[0])


# --- choice of the regularisation -------------------------------------------------------------------------------------


def binary_loss(z: Array, batch: dict[str, Array]) -> Array:
    """Mean logistic loss; labels are -1 and 1."""
    return jnp.mean(jax.nn.softplus(-batch["y"] * (batch["X"] @ z)))


def softmax_losses(z: Array, batch: dict[str, Array]) -> Array:
    """Cross-entropy of each row; labels are class indices."""
    scores = batch["X"] @ z
    chosen = jnp.take_along_axis(scores, batch["y"][:, None], 1)[:, 0]
    return jax.nn.logsumexp(scores, axis=1) - chosen


def softmax_loss(z: Array, batch: dict[str, Array]) -> Array:
    """Mean cross-entropy."""
    return jnp.mean(softmax_losses(z, batch))


def penalised(loss: Callable, per: str) -> Callable:
    """Inner objective: a loss plus half the squares of z, each times the exponential of its strength."""

    def inner(z: Array, x: Array, batch: Any) -> Array:
        weights = jnp.exp(x)[:, None] if per == "feature" and z.ndim == 2 else jnp.exp(x)
        return loss(z, batch) + 0.5 * jnp.sum(weights * jnp.square(z))

    return inner


def unpenalised(loss: Callable) -> Callable:
    """Outer objective: the loss alone."""
    return lambda z, x, batch: loss(z, batch)


_LOSSES = {True: binary_loss, False: softmax_loss}
# One function each, whatever the problem: solvers made of them compile once for equal shapes.
_INNER = {(binary, per): penalised(loss, per) for binary, loss in _LOSSES.items() for per in PER}
_OUTER = {binary: unpenalised(loss) for binary, loss in _LOSSES.items()}


def _features(X: Any, y: Any, name: str, n_features: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    features = np.asarray(check_array(X, f"X_{name}", shape=("n_samples", n_features or "n_features")))
    labels = np.asarray(y)
    if labels.shape != features.shape[:1]:
        raise ValueError(f"y_{name}: expected shape ({features.shape[0]},) as X_{name} has rows, got {labels.shape}")
    try:
        numbers = labels.astype(float)
    except (TypeError, ValueError):
        raise ValueError(f"y_{name}: expected -1 and 1, or class indices, got dtype {labels.dtype}") from None
    if not np.isin(labels, np.round(numbers)).all():
        raise ValueError(f"y_{name}: expected -1 and 1, or class indices, got other numbers")
    return features, labels


def _batches(X_train: Any, y_train: Any, X_val: Any, y_val: Any) -> tuple[dict, dict, bool]:
    X_train, y_train = _features(X_train, y_train, "train")
    X_val, y_val = _features(X_val, y_val, "val", X_train.shape[1])
    both = np.concatenate([y_train, y_val])
    binary = bool(np.isin(both, (-1, 1)).all())
    if not binary and (both < 0).any():
        raise ValueError("y_train: expected -1 and 1, or class indices from 0 on, got negative ones")
    kind = X_train.dtype if binary else np.int32
    train, val = (
        {"X": jnp.asarray(X), "y": jnp.asarray(y.astype(kind))} for X, y in ((X_train, y_train), (X_val, y_val))
    )
    return train, val, binary


def logistic_regularisation(
    X_train: Float[Any, "n_train n_features"],
    y_train: Any,
    X_val: Float[Any, "n_val _"],
    y_val: Any,
    *,
    per: str = "feature",
    key: Any = None,
) -> BilevelProblem:
    r"""Choose the strengths of an l2 penalty by the validation loss.

    :math:`G = \text{mean loss} + \tfrac12 \sum_k e^{x_k} z_k^2` on the training samples, F the mean loss on the
    validation samples.

    Parameters
    ----------
    X_train, X_val : array-like, shapes (n_train, n_features), (n_val, n_features)
        Features.
    y_train, y_val : array-like of shape (n_train,), (n_val,)
        -1 and 1: logistic loss, z of shape (n_features,); class indices from 0 on: softmax, z (n_features, n_classes).
    per : {"feature", "class", "single"}
        One strength a feature, a class (classes only), or one for all.
    key : PRNG key or int, optional
        Start at Gaussian z and x the logarithm of a uniform number; by default z = 0, x = -2.

    Returns
    -------
    BilevelProblem
        With data ``{"X", "y"}``.

    Raises
    ------
    ValueError
        Shapes that do not fit, non-finite features, labels of neither kind.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.saba import problems
    >>> X = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
    >>> y = np.sign(X[:, 0])
    >>> problem = problems.logistic_regularisation(X[:20], y[:20], X[20:], y[20:])
    >>> problem.z0.shape, problem.x0.shape
    ((3,), (3,))

    References
    ----------
    Dagréou, Ablin, Vaiter, Moreau (2022), section 4.1.
    """
    check_option(per, "per", PER)
    train, val, binary = _batches(X_train, y_train, X_val, y_val)
    if binary and per == "class":
        raise ValueError("per: expected 'feature' or 'single' for labels -1 and 1, got 'class'")
    n_features, dtype = train["X"].shape[1], train["X"].dtype
    n_classes = 1 if binary else int(max(train["y"].max(), val["y"].max())) + 1
    shape = (n_features,) if binary else (n_features, n_classes)
    size = {"feature": n_features, "class": n_classes, "single": 1}[per]
    z0, x0 = jnp.zeros(shape, dtype), jnp.full(size, START, dtype)
    if key is not None:
        z_key, x_key = jax.random.split(as_key(key))
        z0 = jax.random.normal(z_key, shape, dtype)
        x0 = jnp.log(jax.random.uniform(x_key, (size,), dtype, jnp.finfo(dtype).tiny))
    return BilevelProblem(_INNER[binary, per], _OUTER[binary], train, val, z0, x0)


# --- cleaning of labels -----------------------------------------------------------------------------------------------


def weighted_loss(z: Array, x: Array, batch: dict[str, Array]) -> Array:
    """Inner objective of the cleaning: each sample's loss times its weight, plus a penalty."""
    weights = jax.nn.sigmoid(x[batch["index"]])
    return jnp.mean(weights * softmax_losses(z, batch) + batch["reg"] * jnp.sum(jnp.square(z)))


def hyper_cleaning(
    X_train: Float[Any, "n_train n_features"],
    y_train: Any,
    X_val: Float[Any, "n_val _"],
    y_val: Any,
    *,
    n_classes: int,
    reg: ScalarLike = 0.2,
) -> BilevelProblem:
    r"""Learn one weight a training sample, such that a model fitted to the weighted samples suits clean ones.

    :math:`G = \text{mean}_i\, \sigma(x_i)\, \ell(z; a_i, y_i) + \text{reg}\, \|z\|^2` on samples some of whose labels
    are wrong, F the mean loss on clean samples; a linear softmax model.

    Parameters
    ----------
    X_train, X_val : array-like, shapes (n_train, n_features), (n_val, n_features)
        Features, standardised.
    y_train, y_val : array-like of int, shapes (n_train,), (n_val,)
        Class indices below `n_classes`.
    n_classes : int
        Number of classes.
    reg : float
        Penalty on z.

    Returns
    -------
    BilevelProblem
        z (n_features, n_classes) starts at 0, x (n_train,) at -2. SABA remembers n_blocks x n_train numbers of cross
        derivatives.

    Raises
    ------
    ValueError
        Shapes that do not fit, non-finite features, labels out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.saba import problems
    >>> X = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
    >>> y = (X[:, 0] > 0).astype(int)
    >>> problem = problems.hyper_cleaning(X[:30], y[:30], X[30:], y[30:], n_classes=2)
    >>> problem.z0.shape, problem.x0.shape
    ((3, 2), (30,))

    References
    ----------
    Dagréou, Ablin, Vaiter, Moreau (2022), section 4.2; Franceschi et al. (2017).
    """
    n_classes = check_positive_int(n_classes, "n_classes", minimum=2)
    reg = check_scalar(reg, "reg", minimum=0)
    X_train, y_train = _features(X_train, y_train, "train")
    X_val, y_val = _features(X_val, y_val, "val", X_train.shape[1])
    for y, name in ((y_train, "y_train"), (y_val, "y_val")):
        if (y < 0).any() or (y >= n_classes).any():
            raise ValueError(f"{name}: expected class indices from 0 to {n_classes - 1}, got {y.min()} to {y.max()}")
    n, dtype = len(y_train), X_train.dtype
    labels = lambda y: jnp.asarray(y.astype(np.int32))
    train = {
        "X": jnp.asarray(X_train),
        "y": labels(y_train),
        "index": jnp.arange(n, dtype=jnp.int32),
        "reg": jnp.full(n, reg, dtype),  # a column, so that it is data: a new value compiles nothing
    }
    val = {"X": jnp.asarray(X_val), "y": labels(y_val)}
    z0, x0 = jnp.zeros((X_train.shape[1], n_classes), dtype), jnp.full(n, START, dtype)
    return BilevelProblem(weighted_loss, _OUTER[False], train, val, z0, x0)


# --- data -------------------------------------------------------------------------------------------------------------


def load(name: str, *, key: Any = None, corruption: ScalarLike = 0.5) -> BilevelProblem:
    """Problem on data that others know.

    Parameters
    ----------
    name : str
        Without internet: ``"breast_cancer"`` (569 x 30), ``"digits"`` (1797 x 64, 10 classes, one strength a class),
        ``"digits_cleaning"``, ``"simulated_ijcnn1"`` (of the size of ijcnn1). To be downloaded once: ``"ijcnn1"``,
        ``"covtype"``, ``"mnist_cleaning"``.
    key : PRNG key or int, optional
        Of the split, of the wrong labels and, for binary problems, of the start; 0 by default.
    corruption : float
        Part of the training labels of ``"..._cleaning"`` that are replaced by random ones.

    Returns
    -------
    BilevelProblem
        For JAX's default float. Cleaning problems carry ``inner_data["clean"]``, whether a label is right, for scores.

    Raises
    ------
    ValueError
        An unknown name. ImportError: scikit-learn or libsvmdata is missing. OSError: a download failed.

    Examples
    --------
    >>> from gyri.saba import problems
    >>> problem = problems.load("simulated_ijcnn1")
    >>> problem.inner_data["X"].shape, problem.outer_data["X"].shape
    ((49990, 22), (91701, 22))
    """
    check_option(name, "name", NAMES)
    corruption = check_scalar(corruption, "corruption", minimum=0, maximum=1)
    key = as_key(0 if key is None else key)
    seed = np.asarray(jax.random.key_data(key)).tolist()
    dtype = np.dtype(jnp.result_type(float))
    if name == "simulated_ijcnn1":
        return logistic_regularisation(*(a.astype(dtype) for a in _simulate_ijcnn1()), key=key)
    rng = np.random.default_rng(seed)
    if name == "ijcnn1":
        return logistic_regularisation(*(a.astype(dtype) for a in _fetch_ijcnn1()), key=key)
    if name == "breast_cancer":
        X, y = _bundled("breast_cancer")
        train, val = _split(rng, len(y), (0.8, 0.2))
        X = _standardise(X, train)
        y = np.where(y > 0, 1, -1)
        return logistic_regularisation(X[train].astype(dtype), y[train], X[val].astype(dtype), y[val], key=key)
    if name in ("digits", "covtype"):
        X, y = _bundled("digits") if name == "digits" else _fetch("covtype")
        train, val, _ = _split(rng, len(y), (0.64, 0.16, 0.2))
        X = _standardise(X, train).astype(dtype)
        return logistic_regularisation(X[train], y[train], X[val], y[val], per="class")
    X, y = _bundled("digits") if name == "digits_cleaning" else _fetch("mnist_784")
    sizes = (1024, 256) if name == "digits_cleaning" else (20_000, 5_000)
    order = rng.permutation(len(y))
    train, val = order[: sizes[0]], order[sizes[0] : sum(sizes)]
    X = _standardise(X, train).astype(dtype)
    labels = np.where(rng.random(sizes[0]) < corruption, rng.integers(0, 10, sizes[0]), y[train])
    problem = hyper_cleaning(X[train], labels, X[val], y[val], n_classes=10)
    return problem._replace(inner_data={**problem.inner_data, "clean": jnp.asarray(labels == y[train])})


def load_test(name: str, *, key: Any = None) -> tuple[Float[Array, "n n_features"], Any]:
    """Samples that :func:`load` leaves to test on, of ``"digits"``, ``"covtype"`` and the cleaning problems.

    Parameters
    ----------
    name : str
        As of :func:`load`.
    key : PRNG key or int, optional
        The same as of :func:`load`.

    Returns
    -------
    X : Array, shape (n_test, n_features)
        Features, standardised by the training samples.
    y : Array of int32, shape (n_test,)
        Class indices.

    Raises
    ------
    ValueError
        A problem without test samples.

    Examples
    --------
    >>> from gyri.saba import problems
    >>> X, y = problems.load_test("digits_cleaning")
    >>> X.shape
    (517, 64)
    """
    check_option(name, "name", ("digits", "covtype", "digits_cleaning", "mnist_cleaning"))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(as_key(0 if key is None else key))).tolist())
    sources = {"digits": _bundled, "digits_cleaning": _bundled, "covtype": _fetch, "mnist_cleaning": _fetch}
    names = {"digits_cleaning": "digits", "mnist_cleaning": "mnist_784"}
    X, y = sources[name](names.get(name, name))
    if name in ("digits", "covtype"):
        train, _, test = _split(rng, len(y), (0.64, 0.16, 0.2))
    else:
        sizes = (1024, 256) if name == "digits_cleaning" else (20_000, 5_000)
        order = rng.permutation(len(y))
        train, test = order[: sizes[0]], order[sum(sizes) :]
        test = test[:10_000]
    return jnp.asarray(_standardise(X, train)[test], jnp.result_type(float)), jnp.asarray(y[test].astype(np.int32))


def _simulate_ijcnn1(n_train: int = 49_990, n_val: int = 91_701) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    w = rng.normal(size=22)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        X = rng.normal(size=(n, 22)) * np.linspace(0.2, 1, 22)
        return X, np.where(rng.random(n) < 1 / (1 + np.exp(-2 * X @ w)), 1.0, -1.0)

    return (*draw(n_train), *draw(n_val))


def _split(rng: np.random.Generator, n: int, parts: tuple[float, ...]) -> list[np.ndarray]:
    ends = np.round(np.cumsum(parts)[:-1] * n).astype(int)
    return np.split(rng.permutation(n), ends)


def _standardise(X: np.ndarray, train: np.ndarray) -> np.ndarray:
    mean, std = X[train].mean(0), X[train].std(0)
    return (X - mean) / np.where(std > 0, std, 1)


def _datasets() -> Any:
    return import_extra("sklearn.datasets", "gyri-saba[data]", "to load these data")


def _bundled(name: str) -> tuple[np.ndarray, np.ndarray]:
    data: tuple[np.ndarray, np.ndarray] = getattr(_datasets(), f"load_{name}")(return_X_y=True)
    return data


def _fetch(name: str) -> tuple[np.ndarray, np.ndarray]:
    datasets = _datasets()
    try:
        if name == "covtype":
            X, y = datasets.fetch_covtype(return_X_y=True)
            return X, y - 1
        X, y = datasets.fetch_openml(name, version=1, return_X_y=True, as_frame=False)
    except OSError as error:
        raise OSError(f"{name}: scikit-learn could not download it: {error}") from error
    return X, y.astype(int)


def _fetch_ijcnn1() -> tuple[np.ndarray, ...]:
    fetch_libsvm = import_extra("libsvmdata", "gyri-saba[libsvm]", "to load these data").fetch_libsvm
    try:
        parts = (fetch_libsvm(name) for name in ("ijcnn1", "ijcnn1_test"))
        (X_train, y_train), (X_val, y_val) = parts
    except OSError as error:
        raise OSError(f"ijcnn1: libsvmdata could not download it: {error}") from error
    dense = lambda X: X.toarray() if hasattr(X, "toarray") else np.asarray(X)
    return dense(X_train), y_train, dense(X_val), y_val
