"""The front door of convolutional dictionary learning: a scikit-learn style estimator. It holds no mathematics."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from gyri.numerics.csc import init_atoms, rank1_from_full
from gyri.numerics.validation import check_array, check_option, check_positive_int

from .convolution import (
    LIPSCHITZ,
    Rank1,
    conv_code,
    conv_correlations,
    conv_objective,
    conv_synthesize,
    full_atoms,
    memory_of,
    tukey_window,
    windowed,
)
from .datasets import unit_rows
from .dictionary import TrainingOptions, load_model, save_model, warn_if_interrupted
from .optim import Outcome, Params, Task
from .recordings import Signals, read_signals

_KIND = "gyri.unrolled.ConvDictionaryLearning"
_ARMIJO = 1e-3  # the paper's c for recordings
_BATCH, _PER_EPOCH = 20, 10  # the paper's, for windows of a recording
_SETTING = ("algorithm", "lipschitz", "backprop_depth")


@lru_cache(64)
def conv_task(estimator: str, algorithm: str, lipschitz: str, backprop_depth: int | None) -> Task:
    """Convolutional dictionary learning as `gyri.unrolled.optim` takes it, for one static setting."""
    setting: dict[str, Any] = {"algorithm": algorithm, "lipschitz": lipschitz}
    depth = 0 if estimator == "g1" else backprop_depth

    def loss(params: Params, batch: tuple, constants: tuple) -> Array:
        (X, mask), (lam, window) = batch, constants
        atoms = windowed(params.prior, window)
        codes = conv_code(X, atoms, lam, params.steps, mask, backprop_depth=depth, **setting)
        return conv_objective(X, codes, atoms, lam, mask)

    def estimate(params: Params, batch: tuple, constants: tuple) -> tuple[Array, Array]:
        value = loss(params, batch, constants)
        return value, value

    def move(prior: Any, gradient: Any, step: Array) -> Any:
        return jax.tree.map(lambda atoms, g: unit_rows(atoms - step * g), prior, gradient)

    return Task(estimate, loss, move)


_code = jax.jit(conv_code, static_argnames=_SETTING)
_synthesize = jax.jit(conv_synthesize)
_objective = jax.jit(conv_objective)
_peak = jax.jit(lambda atoms, X: jnp.max(jnp.abs(conv_correlations(atoms, X))))


class ConvDictionaryLearning(TrainingOptions, BaseEstimator):
    r"""Learn short patterns that recur in long signals, recordings or images.

    Minimises :math:`\tfrac12 \|M (\sum_k D_k * Z_k - X)\|^2 + \lambda \|Z\|_1` over atoms D of norm 1, the codes Z
    being those after N iterations of convolutional sparse coding, through which gradients flow.

    Parameters
    ----------
    n_components : int
        Number of atoms K. Learn more than you expect: with few the descent stops in local minima.
    kernel_shape : int or tuple of int
        Shape of an atom, without channels: samples, or height and width.
    lam : float
        Penalty, in the data's unit, or relative with `lam_is_ratio`.
    lam_is_ratio : bool
        `lam` multiplies the largest absolute correlation of the first atoms with the data (with `window_length`: with
        as many windows as a minibatch has, spread evenly over all samples).
    rank1 : bool
        Atoms are a topography times a waveform, each of norm 1 (one axis of time).
    window : {None, "tukey"}
        Multiply atoms by a Tukey window in time, so that they begin and end at zero.
    n_iter, algorithm, backprop_depth, learn_steps, max_steps, epochs, tol, optimizer
        As for `DictionaryLearning`.
    estimator : {"g2", "g1"}
        Gradient of the atoms: through the iterations, or with the codes held fixed.
    lipschitz : {"spectral", "legacy"}
        Bound of the step size: over the frequencies of the whole signal, or the authors', which may fail to be one.
    batch_size : int, optional
        Signals, or windows, a minibatch; None: all signals at once, 20 windows.
    iterations_per_epoch : int, optional
        Minibatches an epoch: by default as many as it takes to see all signals, 10 of windows.
    init : {None, "data", "random"} or array-like, shape (n_components, n_channels, ...)
        Start: pieces of the data (the default), normal noise, or given.
    window_length : int, optional
        Learn from windows of so many samples at random times, for long recordings; they are cut out on the device, a
        minibatch at a time.
    random_state : int or PRNG key
        Of the start and of minibatches.
    verbose : bool
        Show a progress bar.

    Attributes
    ----------
    components_ : np.ndarray, shape (n_components, n_channels, ...)
        Atoms, windowed.
    spatial_, temporal_ : np.ndarray, shape (n_components, n_channels) and (n_components, n_times)
        Their factors, with `rank1`.
    steps_ : np.ndarray, shape (n_iter,)
        Step sizes relative to 1 / L.
    lam_ : float
        The penalty, in the data's unit.
    scale_ : float
        Standard deviation of the data, by which they are divided inside.
    n_steps_, history_
        As for `DictionaryLearning`; losses are those of the data divided by their standard deviation.
    info_ : mne.Info or None
        That of the channels, for recordings of MNE.

    Notes
    -----
    Malézieux, Moreau, Kowalski (2022), Understanding approximate and unrolled dictionary learning for pattern recovery,
    ICLR; rank one: Dupré la Tour, Moreau, Jas, Gramfort (2018), Multivariate convolutional sparse coding for
    electromagnetic brain signals, NeurIPS.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> codes = np.zeros(600); codes[::70] = 1 + rng.random(9)
    >>> x = np.convolve(codes, np.hanning(30)) + 0.01 * rng.standard_normal(629)
    >>> model = ConvDictionaryLearning(2, 30, lam=0.1, lam_is_ratio=True, max_steps=20, verbose=False).fit(x[None])
    >>> model.components_.shape, model.transform(x[None]).shape
    ((2, 1, 30), (1, 2, 600))
    """

    _estimators: tuple[str, ...] = ("g1", "g2")

    def __init__(
        self,
        n_components: Any,
        kernel_shape: Any,
        *,
        lam: Any = 0.1,
        lam_is_ratio: Any = False,
        rank1: Any = False,
        window: Any = None,
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
        window_length: Any = None,
        random_state: Any = 0,
        verbose: Any = True,
    ) -> None:
        self.n_components = n_components
        self.kernel_shape = kernel_shape
        self.lam = lam
        self.lam_is_ratio = lam_is_ratio
        self.rank1 = rank1
        self.window = window
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
        self.window_length = window_length
        self.random_state = random_state
        self.verbose = verbose

    # --- fit --------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, *, mask: Any = None) -> "ConvDictionaryLearning":
        """Learn the atoms.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_channels, ...) or (n_channels, ...), mne.io.BaseRaw, mne.BaseEpochs
            Signals; a recording without an axis of samples is one. Of MNE objects the data channels are taken, which
            have to be of one kind; what annotations call bad is masked.
        y : object
            Not used.
        mask : array-like, of the same shape, optional
            1 where a value was observed; anything, NaN too, may stand elsewhere.

        Returns
        -------
        ConvDictionaryLearning
            Itself. Ctrl-C keeps the last good state, and warns.

        Raises
        ------
        ValueError
            If an argument or a parameter is out of range; the message names it.
        FloatingPointError
            If the loss is not finite.
        """
        kernel = self._check_options()
        signals, data, scale = self._load(X, mask, kernel)
        window = None if self.window is None else tukey_window(kernel[0], data[0].dtype)
        prior = self._start(data, kernel, window)
        atoms = windowed(prior, window)
        lam = self._level(atoms, data, scale)
        batch = _BATCH if self.batch_size is None and self.window_length is not None else self.batch_size
        task = conv_task(self.estimator, self.algorithm, self.lipschitz, self.backprop_depth)
        constants = jnp.asarray(lam, data[0].dtype), window
        row_bytes = memory_of(data[0].shape, int(self.n_components), int(self.n_iter), data[0].dtype.itemsize)
        # scikit-learn asks that parameters stay as they were given: the default for windows is set on a copy.
        trainer = self if batch == self.batch_size else self._copy(batch)
        outcome = trainer._train(
            task, prior, data, constants, row_bytes, self.window_length, _ARMIJO,
            _PER_EPOCH if self.window_length is not None else None,
        )  # fmt: skip
        warn_if_interrupted(outcome)
        self.scale_, self.lam_, self.info_ = float(scale), float(lam * scale), signals.info
        self._keep(outcome, window)
        return self

    def _copy(self, batch_size: Any) -> "ConvDictionaryLearning":
        return ConvDictionaryLearning(**(self.get_params(deep=False) | {"batch_size": batch_size}))

    def _check_options(self) -> tuple[int, ...]:
        self._check_training()
        check_positive_int(self.n_components, "n_components")
        check_option(self.lipschitz, "lipschitz", LIPSCHITZ)
        for name in ("lam_is_ratio", "rank1"):
            check_option(getattr(self, name), name, (False, True))
        check_option(self.window, "window", (None, "tukey"))
        shape = self.kernel_shape if isinstance(self.kernel_shape, tuple | list) else (self.kernel_shape,)
        kernel = tuple(check_positive_int(n, "kernel_shape") for n in shape)
        if len(kernel) > 1 and (self.rank1 or self.window or self.window_length):
            raise ValueError(f"kernel_shape: expected one axis with rank1, window or window_length, got {kernel}")
        if self.window_length is not None:
            check_positive_int(self.window_length, "window_length", minimum=kernel[0])
        return kernel

    def _load(self, X: Any, mask: Any, kernel: tuple[int, ...]) -> tuple[Signals, tuple[Array, Any], float]:
        """Signals divided by their standard deviation, on the device."""
        signals = read_signals(X, mask, len(kernel))
        times = signals.X.shape[2:]
        if any(n > t for n, t in zip(kernel, times, strict=True)):
            raise ValueError(f"kernel_shape: expected at most the signal's {times}, got {kernel}")
        if self.window_length is not None and self.window_length > times[0]:
            raise ValueError(
                f"window_length: expected at most the signal's {times[0]} samples, got {self.window_length}"
            )
        scale = float(np.std(np.asarray(signals.X, np.float64))) or 1.0
        return signals, self._to_device(signals, scale), scale

    @staticmethod
    def _to_device(signals: Signals, scale: float) -> tuple[Array, Any]:
        # Divided on the host: squares of field strengths in SI units would leave float32.
        X = jnp.asarray(np.asarray(signals.X) / np.asarray(scale, signals.X.dtype))
        return X, None if signals.mask is None else jnp.asarray(signals.mask, X.dtype)

    def _start(self, data: tuple[Array, Any], kernel: tuple[int, ...], window: Array | None) -> Any:
        """First atoms, of norm 1."""
        X, mask = data
        shape = (int(self.n_components), X.shape[1], *kernel)
        if self.init is None or isinstance(self.init, str):
            check_option(self.init, "init", (None, "data", "random"))
            method = "random" if self.init == "random" else "chunk"
            size = kernel[0] if len(kernel) == 1 else kernel
            where = None if mask is None else mask > 0
            atoms = init_atoms(self._key(0), X, shape[0], size, method=method, mask=where)
        else:
            atoms = jnp.asarray(check_array(self.init, "init", shape=shape), X.dtype)
        if not self.rank1:
            return unit_rows(atoms)
        return Rank1(*(unit_rows(factor) for factor in rank1_from_full(atoms)))

    def _level(self, atoms: Any, data: tuple[Array, Any], scale: float) -> float:
        """The penalty for data divided by their standard deviation."""
        lam = float(self.lam)
        if not self.lam_is_ratio:
            return lam / scale
        X = data[0]
        if self.window_length is not None:
            # As many windows as a minibatch has, evenly spaced over all samples: no key is spent, and no draw can miss
            # all events.
            n, n_starts = self.batch_size or _BATCH, X.shape[-1] - self.window_length + 1
            places = np.linspace(0, len(X) * n_starts - 1, n).astype(int)
            windows = [X[i, :, start : start + self.window_length] for i, start in zip(*divmod(places, n_starts))]
            X = jnp.stack(windows)
        peak = float(_peak(atoms, X))
        return lam * (peak if peak > 0 else 1.0)

    def _keep(self, outcome: Outcome, window: Array | None) -> None:
        atoms = windowed(outcome.params.prior, window)
        self.components_ = np.asarray(full_atoms(atoms))
        for name in ("spatial_", "temporal_"):  # of a fit before
            self.__dict__.pop(name, None)
        if self.rank1:
            self.spatial_, self.temporal_ = np.asarray(atoms.spatial), np.asarray(atoms.temporal)
        self.steps_ = np.asarray(outcome.params.steps)
        self.history_ = outcome.history
        self.n_steps_ = int((outcome.history["step"] > 0).sum())

    # --- use --------------------------------------------------------------------------------------------------------

    def _atoms(self, dtype: Any) -> Any:
        if self.rank1:
            return Rank1(jnp.asarray(self.spatial_, dtype), jnp.asarray(self.temporal_, dtype))
        return jnp.asarray(self.components_, dtype)

    def _signals(self, X: Any, mask: Any) -> tuple[Array, Any]:
        kernel = self.components_.shape[2:]
        signals = read_signals(X, mask, len(kernel))
        if signals.X.shape[1] != self.components_.shape[1]:
            raise ValueError(f"X: expected {self.components_.shape[1]} channels as in fit, got {signals.X.shape[1]}")
        if any(n > t for n, t in zip(kernel, signals.X.shape[2:], strict=True)):
            raise ValueError(f"X: expected at least the atoms' {kernel} samples, got shape {signals.X.shape}")
        return self._to_device(signals, self.scale_)

    def transform(self, X: Any, *, mask: Any = None) -> Float[np.ndarray, "n_samples n_components *positions"]:
        """Codes of signals, with the iterations and step sizes of the fit.

        Parameters
        ----------
        X, mask
            As for `fit`.

        Returns
        -------
        np.ndarray, shape (n_samples, n_components, *(space - kernel + 1))
            Codes in the data's unit; one at a position places an atom from there on.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            Shapes that do not fit, NaN, infinity.
        """
        check_is_fitted(self)
        X, mask = self._signals(X, mask)
        codes = _code(
            X, self._atoms(X.dtype), self.lam_ / self.scale_, jnp.asarray(self.steps_, X.dtype), mask,
            algorithm=self.algorithm, lipschitz=self.lipschitz, backprop_depth=None,
        )  # fmt: skip
        return np.asarray(codes) * np.asarray(self.scale_, codes.dtype)

    def fit_transform(
        self, X: Any, y: Any = None, *, mask: Any = None
    ) -> Float[np.ndarray, "n_samples n_components *positions"]:
        """Learn from signals and give their codes."""
        return self.fit(X, mask=mask).transform(X, mask=mask)

    def inverse_transform(self, codes: Any) -> Float[np.ndarray, "n_samples n_channels *space"]:
        """Signals of codes.

        Parameters
        ----------
        codes : array-like, shape (n_samples, n_components, ...)
            Codes.

        Returns
        -------
        np.ndarray, shape (n_samples, n_channels, *(positions + kernel - 1))
            Sums of the atoms at their positions.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            Wrong shape, NaN, infinity.
        """
        check_is_fitted(self)
        n_axes = self.components_.ndim - 2
        shape = ("n_samples", len(self.components_), *[None] * n_axes)
        codes = np.asarray(check_array(codes, "codes", shape=shape))
        scaled = jnp.asarray(codes / np.asarray(self.scale_, codes.dtype))
        return np.asarray(_synthesize(self._atoms(scaled.dtype), scaled)) * np.asarray(self.scale_, scaled.dtype)

    def score(self, X: Any, y: Any = None, *, mask: Any = None) -> float:
        """Minus the mean objective of the codes, larger is better.

        Parameters
        ----------
        X, mask
            As for `fit`.
        y : object
            Not used.

        Returns
        -------
        float
            A sample, in the unit of X squared.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            Shapes that do not fit, NaN, infinity.
        """
        codes = self.transform(X, mask=mask) / self.scale_
        X, mask = self._signals(X, mask)
        value = _objective(X, jnp.asarray(codes, X.dtype), self._atoms(X.dtype), self.lam_ / self.scale_, mask)
        return -float(value) * self.scale_**2 / len(X)

    # --- keep -------------------------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write the fitted model to one file (no pickle), exactly at `path`; no optimiser and no `info_` are in it."""
        check_is_fitted(self)
        arrays = ("components_", "spatial_", "temporal_", "steps_", "history_")
        save_model(self, path, _KIND, arrays, ("lam_", "scale_", "n_steps_"))

    @classmethod
    def load(cls, path: Any, *, optimizer: Any = None, info: Any = None) -> "ConvDictionaryLearning":
        """Read what `save` wrote.

        Parameters
        ----------
        path : path-like
            The file.
        optimizer : optax.GradientTransformation, optional
            For a later `fit`.
        info : mne.Info, optional
            What becomes `info_`.

        Returns
        -------
        ConvDictionaryLearning
            The fitted model.

        Raises
        ------
        ValueError
            If the file is not of this kind, newer, or damaged.
        """
        model = load_model(cls, path, _KIND, optimizer=optimizer)
        model.info_ = info
        return model
