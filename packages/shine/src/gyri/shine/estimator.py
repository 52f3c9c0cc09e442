"""The front door of bi-level problems: a scikit-learn classifier that tunes its penalty. It holds no mathematics."""

import os
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from gyri.numerics.io import load_pytree, save_pytree
from gyri.numerics.validation import check_array, check_option, check_scalar

from .backward import Full, JacobianFree, Shine
from .bilevel import Problem, run_hoag
from .inverse import Layout
from .lbfgs import LBFGS
from .objectives import LOSSES, SparseRows, held_out, penalized

_KIND = "gyri.shine.BilevelLogisticRegression"
_MODES = {"Shine": Shine, "JacobianFree": JacobianFree, "Full": Full, "LBFGS": LBFGS}


@lru_cache
def problem_of(loss: str, n_features: int, dtype: str) -> Problem:
    """The bi-level problem of a loss; one object each, so that fits of equal shapes share a program.

    Examples
    --------
    >>> problem_of("nls", 3, "float32").x.size
    3
    """
    like = lambda shape: Layout.of(jnp.zeros(shape, dtype))
    return Problem(partial(penalized, loss), partial(held_out, loss), like(n_features), like(()))


class BilevelLogisticRegression(ClassifierMixin, BaseEstimator):
    r"""Binary linear classifier whose ridge penalty minimises the loss of a validation set.

    The weights minimise :math:`\sum_i \ell(x_i^\top w, y_i) + \tfrac{1}{2} e^{\lambda} \|w\|^2` over the training set,
    and :math:`\lambda` the same sum over the validation set, without penalty. No intercept: scale the features, or add
    a constant one.

    Parameters
    ----------
    backward : str, Shine, JacobianFree or Full
        How the gradient in the penalty is made, see `hoag`.
    loss : {"logistic", "nls"}
        Logistic loss, or half the squared error of the sigmoid, which is not convex.
    max_iter : int
        Iterations, each with one fit of the weights.
    solver : LBFGS, optional
        Inner solver, ``LBFGS(memory=60)`` when None.
    log_alpha_init : float
        First :math:`\lambda`.
    bounds : tuple of float
        Smallest and largest :math:`\lambda`.
    tol_schedule, tol_decay, tol_init, step
        As in `hoag`.
    verbose : bool
        Show a progress bar.

    Attributes
    ----------
    coef_ : np.ndarray, shape (1, n_features)
        Weights at the best penalty.
    log_alpha_, alpha_ : float
        :math:`\lambda`, and the penalty :math:`e^\lambda`.
    classes_ : np.ndarray, shape (2,)
        Labels; positive scores are for the second.
    history_ : dict of np.ndarray
        As that of `HoagResult`.
    n_features_in_ : int
        Features.
    feature_names_in_ : np.ndarray, shape (n_features,)
        Their names, where X is a data frame.

    Notes
    -----
    Ramzi et al. (2022), SHINE, section 3.1; Pedregosa (2016), Hyperparameter optimization with approximate gradient.

    Examples
    --------
    >>> from gyri.shine import BilevelLogisticRegression
    >>> from gyri.shine.datasets import load_breast_cancer, train_val_test_split
    >>> train, valid, test = train_val_test_split(*load_breast_cancer(), train=0.5, seed=0)
    >>> model = BilevelLogisticRegression(max_iter=5).fit(*train, *valid)
    >>> model.score(*test) > 0.9
    True
    """

    def __init__(
        self,
        backward: Any = "shine",
        loss: Any = "logistic",
        max_iter: Any = 30,
        *,
        solver: Any = None,
        log_alpha_init: Any = 0.0,
        bounds: Any = (-12.0, 12.0),
        tol_schedule: Any = "exponential",
        tol_decay: Any = None,
        tol_init: Any = 1e-3,
        step: Any = "safe",
        verbose: Any = False,
    ) -> None:
        self.backward = backward
        self.loss = loss
        self.max_iter = max_iter
        self.solver = solver
        self.log_alpha_init = log_alpha_init
        self.bounds = bounds
        self.tol_schedule = tol_schedule
        self.tol_decay = tol_decay
        self.tol_init = tol_init
        self.step = step
        self.verbose = verbose

    # --- fit ----------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, X_val: Any, y_val: Any) -> "BilevelLogisticRegression":
        """Fit weights and penalty.

        Parameters
        ----------
        X, X_val : array-like or sparse matrix, shape (n, n_features)
            Training and validation samples. float32 while JAX works in that, else their own dtype.
        y, y_val : array-like, shape (n,)
            Labels, the same two in both.

        Returns
        -------
        BilevelLogisticRegression
            Itself.

        Raises
        ------
        ValueError
            NaN or infinity, no samples, lengths that differ, labels that are not two classes, an option out of range.
        FloatingPointError
            If the first iteration leads to values that are not finite.
        """
        check_option(self.loss, "loss", tuple(LOSSES))
        lam0 = check_scalar(self.log_alpha_init, "log_alpha_init")
        given = X, X_val
        X, X_val = _check_samples(X, "X"), _check_samples(X_val, "X_val")
        if X_val.shape[1] != X.shape[1]:
            raise ValueError(f"X_val: expected {X.shape[1]} features as in X, got {X_val.shape[1]}")
        classes = np.unique(np.asarray(y))
        if classes.size != 2:
            raise ValueError(f"y: expected two classes, got {classes.size}")
        dtype = jnp.result_type(X.values if isinstance(X, SparseRows) else X)
        negative = -1.0 if self.loss == "logistic" else 0.0
        targets = [
            _check_labels(labels, samples, classes, negative, name, dtype)
            for labels, samples, name in ((y, X, "y"), (y_val, X_val, "y_val"))
        ]
        validate_data(self, given[0], skip_check_array=True)  # names of features
        if hasattr(given[1], "columns"):
            validate_data(self, given[1], skip_check_array=True, reset=False)
        result = run_hoag(
            problem_of(self.loss, X.shape[1], dtype.name), jnp.zeros(X.shape[1], dtype), jnp.full(1, lam0, dtype),
            ((X, targets[0]), (X_val, targets[1])), backward=self.backward, solver=self.solver, max_iter=self.max_iter,
            bounds=self.bounds, tol_schedule=self.tol_schedule, tol_decay=self.tol_decay, tol_init=self.tol_init,
            step=self.step, progress=self.verbose,
        )  # fmt: skip
        self.coef_ = np.asarray(result.x)[None]
        self.log_alpha_, self.classes_, self.history_ = float(result.lam), classes, result.history
        self.alpha_ = float(np.exp(self.log_alpha_))
        return self

    # --- use ----------------------------------------------------------------------------------------------------------

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores, shape (n,): positive for the second class.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            Samples with other features, NaN or infinity.
        """
        check_is_fitted(self)
        given, X = X, _check_samples(X, "X")
        if X.shape[1] != self.n_features_in_:
            raise ValueError(f"X: expected {self.n_features_in_} features, got {X.shape[1]}")
        validate_data(self, given, skip_check_array=True, reset=False)  # names of features
        return np.asarray(X @ jnp.asarray(self.coef_[0]))

    def predict(self, X: Any) -> np.ndarray:
        """Labels, shape (n,); raises as `decision_function`."""
        positive = self.decision_function(X) > 0
        return self.classes_[positive.astype(int)]

    # --- keep ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> None:
        """Write the fitted classifier to one file (no pickle), exactly at `path`."""
        check_is_fitted(self)
        options = self.get_params(deep=False)
        for name in ("backward", "solver"):
            value = options[name]
            if type(value).__name__ in _MODES:
                options[name] = {"kind": type(value).__name__, **vars(value)}
        options["bounds"] = list(options["bounds"])
        labels = {"classes": self.classes_}
        if self.classes_.dtype.kind not in "biuf":
            labels = {}
            options["classes"] = self.classes_.tolist()
            options["classes_kind"] = self.classes_.dtype.kind  # of text, or of objects
        if hasattr(self, "feature_names_in_"):
            options["feature_names_in"] = self.feature_names_in_.tolist()
        tree = {"coef": self.coef_, "log_alpha": self.log_alpha_, "history": self.history_, **labels}
        save_pytree(path, tree, kind=_KIND, meta=options)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "BilevelLogisticRegression":
        """Read what `save` wrote; ValueError for a file of another kind, a newer or a damaged one."""
        tree, options = load_pytree(path, kind=_KIND)
        kind, names = options.pop("classes_kind", None), options.pop("feature_names_in", None)
        classes = tree["classes"] if "classes" in tree else np.asarray(options.pop("classes"), kind)
        for name in ("backward", "solver"):
            if isinstance(options[name], dict):
                options[name] = _MODES[options[name].pop("kind")](**options[name])
        model = cls(**options | {"bounds": tuple(options["bounds"])})
        model.coef_, model.log_alpha_, model.history_, model.classes_ = (
            tree["coef"], tree["log_alpha"], tree["history"], classes
        )  # fmt: skip
        model.alpha_, model.n_features_in_ = float(np.exp(model.log_alpha_)), model.coef_.shape[1]
        if names is not None:
            model.feature_names_in_ = np.asarray(names, object)
        return model


def _check_samples(X: Any, name: str) -> Any:
    """Samples as a JAX array, or as `SparseRows`."""
    if hasattr(X, "tocsr"):
        if X.shape[0] == 0 or X.shape[1] == 0:
            raise ValueError(f"{name}: expected at least one sample and feature, got shape {X.shape}")
        values = X.tocsr().data
        dtype = jax.dtypes.canonicalize_dtype(values.dtype if values.dtype.kind == "f" else float)
        if values.size and not np.isfinite(values.astype(dtype)).all():
            raise ValueError(f"{name}: expected finite {dtype} values")
        return SparseRows.of(X, dtype)
    return jnp.asarray(check_array(X, name, ndim=2, allow_half=False))


def _check_labels(y: Any, X: Any, classes: np.ndarray, negative: float, name: str, dtype: Any) -> Any:
    """Labels as `negative` and 1."""
    y = np.asarray(y)
    if y.shape != X.shape[:1]:
        raise ValueError(f"{name}: expected one label a sample, {X.shape[0]}, got shape {y.shape}")
    if not np.isin(y, classes).all():
        raise ValueError(f"{name}: expected the two classes of y, {classes.tolist()}, got others")
    return jnp.asarray(np.where(y == classes[1], 1.0, negative), dtype)
