"""The front door of dictionary learning on vectors: a scikit-learn estimator. It holds no mathematics."""

import warnings
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from gyri.numerics.io import as_python, load_pytree, save_pytree
from gyri.numerics.validation import as_key, check_array, check_option, check_positive_int, check_scalar

from .coding import (
    ALGORITHMS,
    LIPSCHITZ,
    Measurement,
    check_depth,
    check_lam,
    check_measurement,
    code,
    objective,
    replace_unused,
    sparse_code,
)
from .datasets import unit_rows
from .gradients import ESTIMATORS, surrogate
from .optim import ARMIJO, Outcome, Params, Sampler, Task, descend, join, split_rows, train_stochastically

_KIND = "gyri.unrolled.DictionaryLearning"
MAX_RESEEDS = 5


@lru_cache(64)
def dictionary_task(estimator: str, algorithm: str, lipschitz: str, backprop_depth: int | None) -> Task:
    """Dictionary learning as `gyri.unrolled.optim` takes it, for one static setting."""
    setting: dict[str, Any] = {"algorithm": algorithm, "lipschitz": lipschitz, "backprop_depth": backprop_depth}

    def estimate(params: Params, batch: tuple, constants: tuple) -> tuple[Array, Array]:
        (X, own), (lam, operator) = batch, constants
        measurement = Measurement(operator, *own)
        return surrogate(X, params.prior, lam, params.steps, measurement, estimator=estimator, **setting)

    def loss(params: Params, batch: tuple, constants: tuple) -> Array:
        (X, own), (lam, operator) = batch, constants
        measurement = Measurement(operator, *own)
        codes = code(X, params.prior, lam, params.steps, measurement, **setting)
        return objective(X, codes, params.prior, lam, measurement)

    def move(components: Array, gradient: Array, step: Array) -> Array:
        return unit_rows(components - step * gradient)

    return Task(estimate, loss, move)


def warn_if_interrupted(outcome: Outcome) -> None:
    """Say that Ctrl-C ended the training."""
    if outcome.interrupted:
        warnings.warn(f"interrupted after {outcome.history['loss'].size} steps", stacklevel=3)


class TrainingOptions:
    """Checks of the options that the estimators of dictionaries share; a mixin."""

    lam: Any
    n_iter: Any
    estimator: Any
    algorithm: Any
    backprop_depth: Any
    learn_steps: Any
    batch_size: Any
    max_steps: Any
    epochs: Any
    iterations_per_epoch: Any
    tol: Any
    optimizer: Any

    _estimators: tuple[str, ...] = ESTIMATORS

    def _check_training(self) -> None:
        check_lam(self.lam)
        for name in ("n_iter", "max_steps", "epochs"):
            check_positive_int(getattr(self, name), name)
        for name in ("batch_size", "iterations_per_epoch"):
            if getattr(self, name) is not None:
                check_positive_int(getattr(self, name), name)
        check_depth(self.backprop_depth)
        check_option(self.estimator, "estimator", self._estimators)
        check_option(self.algorithm, "algorithm", ALGORITHMS)
        check_option(self.learn_steps, "learn_steps", (False, True))
        if self.learn_steps and (self.estimator != "g2" or self.backprop_depth == 0):
            raise ValueError("learn_steps: expected False unless estimator is 'g2': the others say nothing of steps")
        check_scalar(self.tol, "tol", minimum=0)
        if self.optimizer is not None and not hasattr(self.optimizer, "update"):
            raise ValueError(f"optimizer: expected an optax.GradientTransformation or None, got {self.optimizer!r}")

    def _train(
        self, task: Task, prior: Any, data: Any, constants: Any, row_bytes: int, window: int | None = None,
        armijo: Any = None, default_per_epoch: int | None = None,
    ) -> Outcome:  # fmt: skip
        """Train on samples in the way that the options say."""
        n_samples = len(jax.tree.leaves(data)[0])
        params = Params(prior, jnp.ones(self.n_iter, jax.tree.leaves(prior)[0].dtype))
        verbose = bool(getattr(self, "verbose", False))
        if self.batch_size is None and self.optimizer is None:
            return descend(
                task, params, split_rows(data, row_bytes), constants, learn_steps=self.learn_steps,
                max_steps=self.max_steps, tol=self.tol, progress=verbose,
            )  # fmt: skip
        if self.batch_size is None:
            batch, per_epoch, epochs = n_samples, 1, self.max_steps
        else:
            batch = self.batch_size if window is not None else min(self.batch_size, n_samples)
            per_epoch, epochs = default_per_epoch or -(-n_samples // batch), self.epochs
            per_epoch = self.iterations_per_epoch or per_epoch
        return train_stochastically(
            task, params, data, constants, Sampler(n_samples, batch, window), key=self._key(1),
            learn_steps=self.learn_steps, optimizer=self.optimizer, epochs=epochs, per_epoch=per_epoch,
            armijo=ARMIJO / batch if armijo is None else armijo, progress=verbose,
        )  # fmt: skip

    def _key(self, stream: int) -> Array:
        """Key of one use of randomness."""
        return jax.random.fold_in(as_key(getattr(self, "random_state", 0), "random_state"), stream)


class DictionaryLearning(TrainingOptions, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Learn the patterns of which signals are sparse combinations, from all or only some of their values.

    Minimises :math:`\tfrac12 \|M (A D Z_N(D) - X)\|_F^2 + \lambda \|Z_N(D)\|_1` over dictionaries D of unit atoms,
    :math:`Z_N` being N iterations of sparse coding through which gradients flow.

    Parameters
    ----------
    n_components : int, optional
        Number of atoms; that of features by default.
    lam : float
        Penalty, positive.
    n_iter : int
        Iterations of sparse coding N; 20 to 30 do.
    estimator : {"g2", "g1", "g3"}
        Gradient of the dictionary: through the iterations (deep dictionary learning), with the codes held fixed
        (alternating minimisation), or with their Jacobian at an optimum; see `dictionary_gradient`.
    algorithm : {"fista", "ista"}
        Of sparse coding.
    backprop_depth : int, optional
        Gradients flow through the last iterations only, so many.
    learn_steps : bool
        Learn the step sizes of the iterations, too, once the dictionary has come to rest: better codes at small N.
    lipschitz : {"spectral", "frobenius"}
        Bound of the step size, see `sparse_code`.
    batch_size : int, optional
        Samples a minibatch, for a stochastic line search; None: descent with back-tracking on all samples.
    max_steps : int
        Most steps of the descent on all samples, and as many again with `learn_steps`.
    epochs : int
        Passes over the data with minibatches, and as many again with `learn_steps`.
    iterations_per_epoch : int, optional
        Minibatches an epoch; by default as many as it takes to see all samples.
    tol : float
        The descent ends when a step gains at most this, relative to the loss.
    init : {None, "random", "data"} or array-like, shape (n_components, n_features)
        Start: normal noise (the default), samples, or given atoms.
    optimizer : optax.GradientTransformation, optional
        Takes the place of the line searches; atoms are normalised after each update.
    reseed : bool
        Where atoms remain that no sample uses, which no gradient would ever move, replace them by what is left of the
        samples that are reconstructed worst, and train again, five times at most.
    random_state : int or PRNG key
        Of the start and of minibatches.
    verbose : bool
        Show a progress bar.

    Attributes
    ----------
    components_ : np.ndarray, shape (n_components, n_features)
        Atoms of norm 1, features being those of the operator's input.
    steps_ : np.ndarray, shape (n_iter,)
        Step sizes relative to 1 / L; ones unless learned.
    lam_ : float
        The penalty.
    n_steps_ : int
        Number of steps taken.
    history_ : dict of np.ndarray
        ``"loss"`` (of the start and after each step of the descent; of each minibatch before its step), ``"time"`` in
        seconds since the start (with compilation; evenly spaced between two looks), ``"step"`` the step sizes taken.
    n_features_in_ : int
        Number of observed values a sample.

    Notes
    -----
    Behind one operator that is not injective a dictionary cannot be told from others; masks or operators that vary
    across samples make up for it. Malézieux, Moreau, Kowalski (2022), Understanding approximate and unrolled dictionary
    learning for pattern recovery, ICLR.

    Examples
    --------
    >>> from gyri.unrolled import DictionaryLearning, recovery_score, simulate
    >>> X, truth, _ = simulate(0, 500, n_features=10, n_components=10, sparsity=0.2)
    >>> model = DictionaryLearning(10, lam=0.1, init="data", verbose=False).fit(X)
    >>> model.transform(X).shape, bool(recovery_score(model.components_, truth) > 0.9)
    ((500, 10), True)
    """

    def __init__(
        self,
        n_components: Any = None,
        *,
        lam: Any = 0.1,
        n_iter: Any = 20,
        estimator: Any = "g2",
        algorithm: Any = "fista",
        backprop_depth: Any = None,
        learn_steps: Any = False,
        lipschitz: Any = "spectral",
        batch_size: Any = None,
        max_steps: Any = 1000,
        epochs: Any = 10,
        iterations_per_epoch: Any = None,
        tol: Any = 1e-6,
        init: Any = None,
        optimizer: Any = None,
        reseed: Any = False,
        random_state: Any = 0,
        verbose: Any = True,
    ) -> None:
        self.n_components = n_components
        self.lam = lam
        self.n_iter = n_iter
        self.estimator = estimator
        self.algorithm = algorithm
        self.backprop_depth = backprop_depth
        self.learn_steps = learn_steps
        self.lipschitz = lipschitz
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.epochs = epochs
        self.iterations_per_epoch = iterations_per_epoch
        self.tol = tol
        self.init = init
        self.optimizer = optimizer
        self.reseed = reseed
        self.random_state = random_state
        self.verbose = verbose

    # --- fit --------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, *, operator: Any = None, mask: Any = None) -> "DictionaryLearning":
        """Learn the dictionary.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_observed)
            Signals, or what was measured of them.
        y : object
            Not used.
        operator : array-like or LinearOperator, optional
            What they were measured with: one matrix or operator, or one matrix a sample, see `sparse_code`.
        mask : array-like, shape (n_samples, n_observed), optional
            1 where a value was observed; anything, NaN too, may stand elsewhere.

        Returns
        -------
        DictionaryLearning
            Itself. Ctrl-C keeps the last good state, and warns.

        Raises
        ------
        ValueError
            If an argument or a parameter is out of range; the message names it.
        FloatingPointError
            If the loss is not finite.
        """
        self._check_training()
        check_option(self.lipschitz, "lipschitz", LIPSCHITZ)
        check_option(self.reseed, "reseed", (False, True))
        X = self._read(X, mask, reset=True)
        measurement = self._measure(X, operator, mask, None)
        components = self._start(X, measurement)
        task = dictionary_task(self.estimator, self.algorithm, self.lipschitz, self.backprop_depth)
        own = measurement.matrices, measurement.squares, measurement.mask
        constants = jnp.asarray(self.lam, X.dtype), measurement.operator
        row_bytes = 4 * self.n_iter * (len(components) + X.shape[1]) * X.dtype.itemsize
        train = lambda components: self._train(task, components, (X, own), constants, row_bytes)
        outcome = train(components)
        setting = {"algorithm": self.algorithm, "lipschitz": self.lipschitz}
        for _ in range(MAX_RESEEDS if self.reseed else 0):
            components, n_replaced = replace_unused(X, *outcome.params, constants[0], measurement, **setting)
            if outcome.interrupted or n_replaced == 0:
                break
            outcome = join(outcome, train(components))
        warn_if_interrupted(outcome)
        self._keep(outcome)
        return self

    def _read(self, X: Any, mask: Any, *, reset: bool) -> Array:
        """Signals as a floating array of the device, checked as scikit-learn does; zeros where masked."""
        missing = mask is not None and np.shape(mask) == np.shape(X)
        if missing:
            X = np.where(np.asarray(mask) != 0, X, 0)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=reset)
        return jnp.asarray(check_array(X, "X", shape=("n_samples", "n_features")))

    def _measure(self, X: Array, operator: Any, mask: Any, n_features: int | None) -> Measurement:
        measurement = check_measurement(operator, mask, (len(X), X.shape[1]), n_features)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, X.dtype), measurement)

    def _start(self, X: Array, measurement: Measurement) -> Array:
        """First atoms, of norm 1."""
        if measurement.operator is not None:
            n_features = measurement.operator.shape[1]
        else:
            n_features = X.shape[1] if measurement.matrices is None else measurement.matrices.shape[2]
        n = n_features if self.n_components is None else check_positive_int(self.n_components, "n_components")
        if not (self.init is None or isinstance(self.init, str)):
            shape = (None if self.n_components is None else n, n_features)
            return unit_rows(jnp.asarray(check_array(self.init, "init", shape=shape), X.dtype))
        check_option(self.init, "init", (None, "random", "data"))
        noise = jax.random.normal(self._key(0), (n, n_features), X.dtype)
        if self.init != "data":
            return unit_rows(noise)
        if n > len(X):
            raise ValueError(f"init: expected at least {n} samples to start from with 'data', got {len(X)}")
        rows = X[jax.random.permutation(self._key(0), len(X))[:n]]
        if measurement.operator is not None:
            rows = measurement.operator.rmatvec(rows.reshape(n, *measurement.operator.out_shape)).reshape(n, -1)
        elif measurement.matrices is not None:
            raise ValueError("init: expected 'random' or atoms with one operator a sample, got 'data'")
        return unit_rows(jnp.where(jnp.any(rows != 0, 1, keepdims=True), rows, noise))

    def _keep(self, outcome: Outcome) -> None:
        self.components_ = np.asarray(outcome.params.prior)
        self.steps_ = np.asarray(outcome.params.steps)
        self.lam_ = float(self.lam)
        self.history_ = outcome.history
        self.n_steps_ = int((outcome.history["step"] > 0).sum())

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    # --- use --------------------------------------------------------------------------------------------------------

    def transform(
        self, X: Any, *, operator: Any = None, mask: Any = None
    ) -> Float[np.ndarray, "n_samples n_components"]:
        """Sparse codes of signals, with the iterations and step sizes of the fit.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_observed)
            Signals.
        operator, mask
            As for `fit`, those of these signals.

        Returns
        -------
        np.ndarray, shape (n_samples, n_components)
            Codes.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            Shapes that do not fit, NaN, infinity.
        """
        check_is_fitted(self)
        X = self._read(X, mask, reset=False)
        return np.asarray(
            sparse_code(
                X, jnp.asarray(self.components_, X.dtype), self.lam_, n_iter=len(self.steps_),
                algorithm=self.algorithm, steps=self.steps_, operator=operator, mask=mask, lipschitz=self.lipschitz,
            )
        )  # fmt: skip

    def inverse_transform(self, codes: Any) -> Float[np.ndarray, "n_samples n_features"]:
        """Signals of codes, before any operator.

        Parameters
        ----------
        codes : array-like, shape (n_samples, n_components)
            Codes.

        Returns
        -------
        np.ndarray, shape (n_samples, n_features)
            Their combinations of atoms.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            Wrong shape, NaN, infinity.
        """
        check_is_fitted(self)
        codes = np.asarray(check_array(codes, "codes", shape=("n_samples", len(self.components_))))
        return codes @ self.components_

    def score(self, X: Any, y: Any = None, *, operator: Any = None, mask: Any = None) -> float:
        """Minus the mean objective of the codes, larger is better.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_observed)
            Signals.
        y : object
            Not used.
        operator, mask
            As for `fit`.

        Returns
        -------
        float
            In the unit of X squared.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            Shapes that do not fit, NaN, infinity.
        """
        codes = self.transform(X, operator=operator, mask=mask)
        read = self._read(X, mask, reset=False)
        measurement = self._measure(read, operator, mask, self.components_.shape[1])
        atoms = jnp.asarray(self.components_, read.dtype)
        return -float(objective(read, jnp.asarray(codes, read.dtype), atoms, self.lam_, measurement)) / len(read)

    # --- keep -------------------------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write the fitted model to one file (no pickle), exactly at `path`; an optimiser is not in it."""
        check_is_fitted(self)
        save_model(self, path, _KIND, ("components_", "steps_", "history_"), ("lam_", "n_steps_", "n_features_in_"))

    @classmethod
    def load(cls, path: Any, *, optimizer: Any = None) -> "DictionaryLearning":
        """Read what `save` wrote.

        Parameters
        ----------
        path : path-like
            The file.
        optimizer : optax.GradientTransformation, optional
            For a later `fit`.

        Returns
        -------
        DictionaryLearning
            The fitted model.

        Raises
        ------
        ValueError
            If the file is not of this kind, newer, or damaged.
        """
        return load_model(cls, path, _KIND, optimizer=optimizer)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # In JAX's default precision float64 comes back as float32.
        tags.transformer_tags.preserves_dtype = (
            ["float64", "float32"] if jnp.result_type(float) == np.float64 else ["float32"]
        )
        return tags


def save_model(model: Any, path: Any, kind: str, arrays: tuple[str, ...], scalars: tuple[str, ...]) -> None:
    """Write an estimator: options and numbers as text, arrays (of options too) as arrays."""
    options = as_python(model.get_params(deep=False))
    options.pop("optimizer", None)
    # Arrays, PRNG keys and numbers keep their types among the arrays; texts and None go into the header.
    words = {name: value for name, value in options.items() if value is None or isinstance(value, str | bool | tuple)}
    tree = {
        "options": {name: value for name, value in options.items() if name not in words},
        "fitted": {name: getattr(model, name) for name in arrays if getattr(model, name, None) is not None},
    }
    plain = lambda value: list(value) if isinstance(value, tuple) else value
    fitted = {name: plain(getattr(model, name)) for name in scalars if hasattr(model, name)}
    meta = {"options": {name: plain(value) for name, value in words.items()}, "fitted": fitted}
    save_pytree(path, tree, kind=kind, meta=meta)


def load_model(cls: type, path: Any, kind: str, **options: Any) -> Any:
    """Read what `save_model` wrote."""
    tree, meta = load_pytree(path, kind=kind)
    words = {name: tuple(value) if isinstance(value, list) else value for name, value in meta["options"].items()}
    model = cls(**words | tree["options"] | {k: v for k, v in options.items() if v is not None})
    for name, value in (meta["fitted"] | tree["fitted"]).items():
        setattr(model, name, value)
    return model
