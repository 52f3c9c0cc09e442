"""The front door of analysis priors: a scikit-learn style estimator. It holds no mathematics."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from gyri.numerics import LinearOperator
from gyri.numerics.validation import as_key, check_array, check_option, check_positive_int, check_scalar

from .coding import Measurement, check_lam, check_mask, check_measurement
from .dictionary import load_model, save_model, warn_if_interrupted
from .optim import Params, Task, descend, first_value, split_rows
from .priors import (
    BANK,
    CONSTRAINTS,
    DENSE,
    FILTERS,
    FIXED,
    Analysis,
    differences,
    first_frame,
    move,
    operator_square,
    project,
    restoration_objective,
    restore,
    wavelet_matrices,
    wavelets,
)

_KIND = "gyri.unrolled.AnalysisPrior"


@lru_cache(64)
def analysis_task(analysis: Analysis, constraint: str, shape: tuple[int, ...]) -> Task:
    """Learning of a prior as `gyri.unrolled.optim` takes it, for one static setting."""

    def loss(params: Params, batch: tuple, constants: tuple) -> Array:
        (X, own), (lam, operator, lip) = batch, constants
        measurement = Measurement(operator, *own)
        lip = lip if own[1] is None else own[1]
        x = restore(X, params.prior, lam, params.steps, measurement, lip, analysis, shape)
        return restoration_objective(X, x, params.prior, lam, measurement, analysis)

    def estimate(params: Params, batch: tuple, constants: tuple) -> tuple[Array, Array]:
        value = loss(params, batch, constants)
        return value, value

    return Task(estimate, loss, lambda prior, gradient, step: move(prior, gradient, step, constraint))


_restore = jax.jit(restore, static_argnames=("analysis", "shape"))
_square = jax.jit(operator_square, static_argnames="dtype")


def _check_labels(y: Any, shape: tuple[int, ...]) -> None:
    """Check that what stands in the place of labels is no operator or mask, which would be ignored without a word."""
    got = np.shape(y)
    labels = len(got) == 1 or (len(got) == 2 and got != shape and shape[0] == got[0] != shape[1])
    if isinstance(y, LinearOperator) or not (y is None or labels):
        raise ValueError(
            f"y: expected None or labels, one a sample (they are not used), got shape {got}; "
            "name an operator or a mask: operator=..., mask=..."
        )


class AnalysisPrior(BaseEstimator):
    r"""Learn filters of which clean signals have few large responses, from noisy or incomplete signals alone.

    Restores by :math:`\min_x \tfrac12 \|A x - y\|^2 + \lambda \|\Gamma x\|_1`, with N unrolled primal-dual iterations
    through which the gradient of :math:`\Gamma` flows; the loss is this objective at their end. Without a constraint it
    would be least at :math:`\Gamma = 0`.

    Parameters
    ----------
    n_components : int, optional
        Number of rows or filters; that of features, or 2, by default.
    constraint : {"unit", "untf", "conv", "conv_corners", "separable", "tv", "haar", "db4"}
        Rows of norm 1; uniform normalised tight frame; filters that have norm 1 together, with zeros in the
        corners, or one along each of two axes. The last three are fixed, not learned: first differences (total
        variation) and the details of wavelets.
    kernel_shape : int or tuple of int, optional
        Shape of the filters; without it rows are as long as the signals.
    lam : float
        Penalty, positive, in the unit of the signals.
    n_iter : int
        Iterations N.
    learn_steps : bool
        Learn the steps of the dual variable as well, once the prior has come to rest. The loss falls further, but it
        knows no clean signal: without, learned filters restored the experiments' images better, by 0.6 and 1.2 dB.
    max_steps : int
        Most steps of the descent, and as many again with `learn_steps`.
    tol : float
        It ends when a step gains at most this, relative to the loss.
    init : array-like, of the prior's shape, optional
        Start; normal noise by default.
    random_state : int or PRNG key
        Of the start.
    verbose : bool
        Show a progress bar.

    Attributes
    ----------
    prior_ : np.ndarray, shape (n_components, n_features) or (n_components, ...)
        Rows or filters; filters are correlated with the signals.
    steps_ : np.ndarray, shape (n_iter,)
        Steps of the dual variable.
    lam_ : float
        The penalty.
    n_steps_, history_
        As for `DictionaryLearning`.

    Notes
    -----
    Malézieux, Moreau, Kowalski (2021), Dictionary and prior learning with unrolled algorithms for unsupervised inverse
    problems, arXiv 2106.06338, version 1.

    Examples
    --------
    >>> steps = np.repeat(np.random.default_rng(0).standard_normal((20, 8)), 8, axis=1)
    >>> noisy = steps + 0.2 * np.random.default_rng(1).standard_normal(steps.shape)
    >>> model = AnalysisPrior(constraint="tv", lam=0.2, n_iter=50, verbose=False).fit(noisy)
    >>> bool(np.mean((model.transform(noisy) - steps) ** 2) < 0.5 * np.mean((noisy - steps) ** 2))
    True
    """

    def __init__(
        self,
        n_components: Any = None,
        *,
        constraint: Any = "unit",
        kernel_shape: Any = None,
        lam: Any = 0.1,
        n_iter: Any = 20,
        learn_steps: Any = True,
        max_steps: Any = 1000,
        tol: Any = 1e-6,
        init: Any = None,
        random_state: Any = 0,
        verbose: Any = True,
    ) -> None:
        self.n_components = n_components
        self.constraint = constraint
        self.kernel_shape = kernel_shape
        self.lam = lam
        self.n_iter = n_iter
        self.learn_steps = learn_steps
        self.max_steps = max_steps
        self.tol = tol
        self.init = init
        self.random_state = random_state
        self.verbose = verbose

    # --- fit --------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, *, operator: Any = None, mask: Any = None) -> "AnalysisPrior":
        """Learn the prior.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_observed), or (n_samples, n_channels, ...) with filters
            What was observed; each channel goes through the same filters.
        y : array-like, shape (n_samples,) or (n_samples, n_outputs), optional
            Labels, as a pipeline may pass them; not used.
        operator : array-like or LinearOperator, optional
            What the signals were measured with, see `sparse_code`; with filters a LinearOperator on the axes of space.
        mask : array-like, of the shape of `X`, optional
            1 where a value was observed; anything, NaN too, may stand elsewhere.

        Returns
        -------
        AnalysisPrior
            Itself. Ctrl-C keeps the last good state, and warns.

        Raises
        ------
        ValueError
            If an argument or a parameter is out of range; the message names it.
        """
        kernel = self._check_options()
        X, measurement, shape = self._read(X, operator, mask, kernel)
        _check_labels(y, X.shape)
        analysis = self._analysis(shape)
        prior = self._start(shape, kernel, X.dtype)
        lip = _square(measurement._replace(squares=None), dtype=X.dtype)
        constants = jnp.asarray(self.lam, X.dtype), measurement.operator, lip
        own = measurement.matrices, measurement.squares, measurement.mask
        row_bytes = 8 * self.n_iter * int(np.prod(shape)) * X.dtype.itemsize
        data = split_rows((X, own), row_bytes)
        task = analysis_task(analysis, self.constraint, shape)
        if self.constraint in FIXED:
            steps = jnp.ones(self.n_iter, X.dtype)
            loss = float(first_value(task)(Params(prior, steps), data, constants))
            self.history_ = {"loss": np.array([loss]), "time": np.zeros(1), "step": np.zeros(1)}
            self.prior_, self.n_steps_ = self._fixed(shape), 0
        else:
            outcome = descend(
                task, Params(prior, jnp.ones(self.n_iter, X.dtype)), data, constants, learn_steps=self.learn_steps,
                max_steps=self.max_steps, tol=self.tol, progress=bool(self.verbose),
            )  # fmt: skip
            warn_if_interrupted(outcome)
            self.prior_, steps, self.history_ = np.asarray(outcome.params.prior), outcome.params.steps, outcome.history
            self.n_steps_ = int((outcome.history["step"] > 0).sum())
        self.steps_, self.lam_, self.shape_ = np.asarray(steps), float(self.lam), shape
        return self

    def _check_options(self) -> tuple[int, ...] | None:
        check_option(self.constraint, "constraint", CONSTRAINTS)
        check_lam(self.lam)
        check_positive_int(self.n_iter, "n_iter")
        check_positive_int(self.max_steps, "max_steps")
        check_scalar(self.tol, "tol", minimum=0)
        check_option(self.learn_steps, "learn_steps", (False, True))
        if self.n_components is not None:
            check_positive_int(self.n_components, "n_components")
        if self.kernel_shape is None:
            if self.constraint in FILTERS:
                raise ValueError(f"kernel_shape: expected the shape of filters with {self.constraint!r}, got None")
            return None
        sizes = self.kernel_shape if isinstance(self.kernel_shape, tuple | list) else (self.kernel_shape,)
        kernel = tuple(check_positive_int(n, "kernel_shape") for n in sizes)
        if self.constraint == "untf":
            raise ValueError("kernel_shape: expected None with 'untf', whose rows are as long as the signals")
        if self.constraint == "separable" and (len(kernel) != 2 or self.n_components not in (None, 2)):
            raise ValueError("kernel_shape: expected two axes and two components with 'separable'")
        return kernel

    def _read(
        self, X: Any, operator: Any, mask: Any, kernel: tuple[int, ...] | None
    ) -> tuple[Array, Measurement, tuple[int, ...]]:
        """Checked observations, how they were made, and the shape of a signal."""
        checked = None if mask is None else check_mask(mask, np.shape(X))
        if checked is not None:
            X = check_array(X, "X", allow_nan=True, allow_half=False)
            X = np.where(np.asarray(checked) != 0, X, np.zeros((), X.dtype))
        X = jnp.asarray(check_array(X, "X", allow_half=False))
        n_axes = None if kernel is None else len(kernel)
        images = X.ndim > 2 and (self.constraint in FIXED or X.ndim - 2 == n_axes)
        if not images and (X.ndim != 2 or n_axes is not None):
            wanted = "(n_samples, n_features)" if n_axes is None else f"(n_samples, n_channels, {n_axes} of space)"
            raise ValueError(f"X: expected shape {wanted}, got {X.shape}")
        cast = lambda leaf: jnp.asarray(leaf, X.dtype)
        if not images:
            measurement = jax.tree.map(cast, check_measurement(operator, mask, X.shape))
            n = X.shape[1]
            if measurement.operator is not None:
                n = measurement.operator.shape[1]
            elif measurement.matrices is not None:
                n = measurement.matrices.shape[2]
            return X, measurement, (int(n),)
        shape = X.shape[1:]
        if operator is not None:
            space = X.shape[2:]
            if not isinstance(operator, LinearOperator) or operator.out_shape != space:
                raise ValueError(f"operator: expected None or a LinearOperator whose outputs have shape {space}")
            shape = (X.shape[1], *operator.in_shape)
        if kernel is not None and any(n > t for n, t in zip(kernel, shape[1:], strict=True)):
            raise ValueError(f"kernel_shape: expected at most the signal's {shape[1:]}, got {kernel}")
        mask = None if checked is None else cast(checked)
        return X, Measurement(None if operator is None else jax.tree.map(cast, operator), None, None, mask), shape

    def _analysis(self, shape: tuple[int, ...]) -> Analysis:
        space = shape[1:] or shape
        if self.constraint == "tv":
            return differences(len(space))
        if self.constraint in FIXED:
            return wavelets(space, self.constraint)
        return DENSE if self.kernel_shape is None else BANK

    def _start(self, shape: tuple[int, ...], kernel: tuple[int, ...] | None, dtype: Any) -> Any:
        """First prior of the constraint."""
        if self.constraint in FIXED:
            return ()
        default = shape[0] if kernel is None else 2
        n = default if self.n_components is None else int(self.n_components)
        full = (n, *(shape if kernel is None else kernel))
        noise = jax.random.normal(as_key(self.random_state, "random_state"), full, dtype)
        prior = noise if self.init is None else jnp.asarray(check_array(self.init, "init", shape=full), dtype)
        if self.constraint != "untf":
            return project(prior, self.constraint)
        if n < shape[0]:
            raise ValueError(f"n_components: expected at least the {shape[0]} features with 'untf', got {n}")
        return first_frame(prior, noise)

    def _fixed(self, shape: tuple[int, ...]) -> np.ndarray:
        """What a fixed prior shows as `prior_`: a matrix of vectors' transform, or the filters of images."""
        if len(shape) == 1:
            rows = jax.tree.leaves(self._analysis(shape).apply((), jnp.eye(shape[0])))[0]
            return np.asarray(rows).T
        if self.constraint == "tv":
            eye = np.eye(len(shape) - 1, dtype=int)
            filters = np.zeros((len(eye), *[2] * len(eye)), np.float32)
            for row, axis in zip(filters, eye, strict=True):
                row[(0,) * len(eye)], row[tuple(axis)] = -1, 1
            return filters
        return np.asarray(wavelet_matrices(shape[-1], self.constraint)[0], np.float32)

    # --- use --------------------------------------------------------------------------------------------------------

    def transform(
        self, X: Any, *, operator: Any = None, mask: Any = None, n_iter: Any = None
    ) -> Float[np.ndarray, "n_samples *shape"]:
        """Restored signals.

        Parameters
        ----------
        X, operator, mask
            As for `fit`.
        n_iter : int, optional
            Iterations with all steps 1, for a solution rather than the N iterations of the fit.

        Returns
        -------
        np.ndarray, shape (n_samples, n_features) or (n_samples, n_channels, ...)
            The signals, in the unit of `X` over that of the operator.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            Shapes that do not fit, NaN, infinity.
        """
        check_is_fitted(self)
        X, measurement, shape = self._read(X, operator, mask, self._check_options())
        if self.kernel_shape is None and self.constraint not in FIXED and shape != self.shape_:
            raise ValueError(f"X: expected signals of shape {self.shape_} as in fit, got {shape}")
        steps = jnp.asarray(self.steps_, X.dtype)
        if n_iter is not None:
            steps = jnp.ones(check_positive_int(n_iter, "n_iter"), X.dtype)
        prior = () if self.constraint in FIXED else jnp.asarray(self.prior_, X.dtype)
        lip = _square(measurement, dtype=X.dtype)
        restored = _restore(X, prior, self.lam_, steps, measurement, lip, analysis=self._analysis(shape), shape=shape)
        return np.asarray(restored)

    # --- keep -------------------------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write the fitted model to one file (no pickle), exactly at `path`."""
        check_is_fitted(self)
        save_model(self, path, _KIND, ("prior_", "steps_", "history_"), ("lam_", "n_steps_", "shape_"))

    @classmethod
    def load(cls, path: Any) -> "AnalysisPrior":
        """Read what `save` wrote.

        Parameters
        ----------
        path : path-like
            The file.

        Returns
        -------
        AnalysisPrior
            The fitted model.

        Raises
        ------
        ValueError
            If the file is not of this kind, newer, or damaged.
        """
        model = load_model(cls, path, _KIND)
        model.shape_ = tuple(model.shape_)
        return model
