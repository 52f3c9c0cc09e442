"""The front doors: scikit-learn style estimators over the algorithms. They hold no mathematics."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from gyri.numerics.csc import conv_synthesis, rank1_from_full
from gyri.numerics.io import as_python, load_pytree, save_pytree
from gyri.numerics.recordings import is_epochs, is_raw
from gyri.numerics.validation import as_key, check_array, check_option, check_positive_int, check_scalar

from . import algorithms, plot
from .recordings import Recording, Scaling, apply_scaling, device_dtype, find_scaling, read_recording
from .trend import fill_gaps, trend_level, tv_background
from .waveform import measure_waveform

Codes = Float[np.ndarray, "n_trials n_atoms n_valid"]
Signals = Float[np.ndarray, "n_trials n_channels n_times"]
_INITS = ("chunk", "random", "greedy", "kmeans")
_TUKEY = 0.5
_WINDOW_END = 1e-9  # of the window: atoms end there, and still can be divided by it
_ARRAYS = ("atoms_", "codes_", "objective_", "trend_", "detrended_", "pattern_signal_")
_SCALARS = ("lam_", "trend_reg_", "n_iter_", "converged_", "sfreq_", "ch_names_")


class Decomposition(NamedTuple):
    """A recording in parts: trend + pattern + residual.

    Attributes
    ----------
    trend, pattern, residual : np.ndarray, shape (n_trials, n_channels, n_times)
        In the data's unit; the residual is NaN where masked.
    codes : np.ndarray, shape (n_trials, n_atoms, n_times_valid)
        Activations.
    """

    trend: Float[np.ndarray, "n_trials n_channels n_times"]
    pattern: Float[np.ndarray, "n_trials n_channels n_times"]
    residual: Float[np.ndarray, "n_trials n_channels n_times"]
    codes: Float[np.ndarray, "n_trials n_atoms n_times_valid"]


class ConvolutionalDictionaryLearning(BaseEstimator):
    r"""Learn a few short waveforms and the sparse times at which they occur.

    Minimises :math:`\tfrac12 \|X - \sum_k z_k * D_k\|^2 + \lambda \|z\|_1` over codes z and atoms D of norm at most
    one.

    Parameters
    ----------
    n_atoms : int
        Number of atoms K.
    n_times_atom : int
        Length of the atoms in samples L.
    reg : float
        Sparsity, see `lam_mode`.
    lam_mode : {"scaled", "fixed", "shared", "per_atom"}
        ``"scaled"``: lambda is `reg` times its smallest value at which the initial atoms give zero codes. ``"fixed"``:
        lambda is `reg`, in the data's unit. ``"shared"`` and ``"per_atom"``: as scaled, but computed anew in each
        iteration, one for all atoms or one for each; the objective may then rise.
    rank1 : bool
        Atoms are a spatial times a temporal pattern.
    positive : bool
        Non-negative codes.
    window : bool or array-like, shape (n_times_atom,)
        Multiply atoms by a window, the Tukey window if True: they then begin and end at zero.
    init : {"chunk", "random", "greedy", "kmeans"} or array-like, shape (n_atoms, n_channels, n_times_atom)
        Initial atoms: windows of the data, normal values, largest residuals one by one, centres of clusters of windows,
        or given.
    n_restarts : int
        Number of starts, of which the one with the lowest objective is kept.
    algorithm : {"batch", "online", "greedy"}
        All data in each iteration; some windows of it, for recordings that are long; or all data, with atoms added one
        by one.
    max_iter : int
        Largest number of iterations.
    n_sweeps : int
        Passes of coordinate descent over the codes in an iteration.
    tol, tol_final : float
        Optimality of codes relative to lambda: at which the codes of an iteration are good enough, and of those that
        are returned.
    eps : float, optional
        Relative decrease of the objective at which to stop; 1e-8 for data in float64, 1e-6 in float32.
    batch_size, window_length : int
        Of ``"online"``: number of windows in an iteration, and their samples (8 times `n_times_atom` by default). Three
        times `n_times_atom` are the least, of recordings too.
    outliers : {None, "mad", "quantile", "iqr", "zscore"}
        Samples that the atoms do not learn from in an iteration: those where the residual is out of the ordinary.
    unbiased : bool
        Give back amplitudes without the shrinkage of the penalty.
    sort_atoms : bool
        Largest variance first.
    random_state : int or PRNG key
        Of the start, and of the windows of ``"online"``.
    verbose : bool
        Show a progress bar.
    callback : callable, optional
        ``callback(progress)`` every few iterations, with a `gyri.nystagmus.algorithms.Progress`; returning True stops.

    Attributes
    ----------
    atoms_ : np.ndarray, shape (n_atoms, n_channels, n_times_atom)
        Of norm at most one.
    spatial_, temporal_ : np.ndarray, shape (n_atoms, n_channels) and (n_atoms, n_times_atom)
        Their factors, if `rank1`.
    codes_ : np.ndarray, shape (n_trials, n_atoms, n_times - n_times_atom + 1)
        Activations in the data's unit; one at t places an atom from t on.
    lam_ : float or np.ndarray, shape (n_atoms,)
        Lambda in the data's unit.
    objective_ : np.ndarray
        After each step of each iteration, and last of what is given back; in the data's unit squared.
    n_iter_ : int
        Number of iterations.
    converged_ : bool
        Whether the objective came to rest.
    pattern_signal_ : np.ndarray, shape (n_trials, n_channels, n_times)
        Sum of the atoms at their activations.
    sfreq_, ch_names_
        Sampling frequency in Hz and names of channels, None where not known.

    Notes
    -----
    Lalanne, Rateaux, Oudre, Robert, Moreau (2020), without the trend; Grosse, Raina, Kwong, Ng (2007), Shift-invariant
    sparse coding for audio classification.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> codes = np.zeros(400); codes[::70] = 1 + rng.random(6)
    >>> x = np.convolve(codes, np.hanning(30)) + 0.01 * rng.standard_normal(429)
    >>> model = ConvolutionalDictionaryLearning(1, 30, max_iter=20).fit(x)
    >>> model.atoms_.shape, model.codes_.shape, bool(np.abs(model.atoms_[0, 0] @ np.hanning(30)) > 3.2)
    ((1, 1, 30), (1, 1, 400), True)
    """

    def __init__(
        self,
        n_atoms: int = 1,
        n_times_atom: int | None = None,
        *,
        reg: float | int = 0.1,
        lam_mode: str = "scaled",
        rank1: bool = False,
        positive: bool = True,
        window: Any = False,
        init: Any = "chunk",
        n_restarts: int = 1,
        algorithm: str = "batch",
        max_iter: int = 100,
        n_sweeps: int = 20,
        tol: float | int = 1e-3,
        tol_final: float | int = 1e-4,
        eps: float | int | None = None,
        batch_size: int = 8,
        window_length: int | None = None,
        outliers: str | None = None,
        unbiased: bool = False,
        sort_atoms: bool = True,
        random_state: Any = 0,
        verbose: bool = False,
        callback: Callable | None = None,
    ) -> None:
        self.n_atoms = n_atoms
        self.n_times_atom = n_times_atom
        self.reg = reg
        self.lam_mode = lam_mode
        self.rank1 = rank1
        self.positive = positive
        self.window = window
        self.init = init
        self.n_restarts = n_restarts
        self.algorithm = algorithm
        self.max_iter = max_iter
        self.n_sweeps = n_sweeps
        self.tol = tol
        self.tol_final = tol_final
        self.eps = eps
        self.batch_size = batch_size
        self.window_length = window_length
        self.outliers = outliers
        self.unbiased = unbiased
        self.sort_atoms = sort_atoms
        self.random_state = random_state
        self.verbose = verbose
        self.callback = callback

    # --- fit ----------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, mask: Any = None, *, picks: Any = None) -> Any:
        """Learn atoms and activations.

        Parameters
        ----------
        X : array-like, or mne.io.Raw, mne.Epochs
            Recordings, shape (n_times,), (n_channels, n_times) or (n_trials, n_channels, n_times). Of MNE objects, NaN
            and what is annotated as bad are masked.
        mask : array-like of bool, optional
            Broadcast to `X`; True where a sample is valid. Nothing that stands elsewhere has an influence.
        picks : str, list or None
            Channels of an MNE object; those of gaze by default.

        Returns
        -------
        estimator
            Itself. Ctrl-C keeps the last good state, and warns.

        Raises
        ------
        ValueError
            If an argument or a parameter of the estimator is out of range; the message names it.
        """
        recording = read_recording(X, mask, picks)
        sfreq = self._find_sfreq(recording)
        plan, levels, key = (
            self._plan(recording, sfreq),
            self._levels(recording),
            as_key(self.random_state, "random_state"),
        )
        if plan.algorithm == "online" and plan.window_length < 3 * plan.n_times_atom:
            needed, n_times = f"{3 * plan.n_times_atom} samples, three atoms", recording.data.shape[-1]
            raise ValueError(f"X: expected at least {needed}, for algorithm='online', got {n_times}")
        problem = self._pose(recording, self._find_trend_level(recording, sfreq), plan.n_times_atom)
        atoms = self._given_atoms(recording, plan)
        if not problem.scaling.scale.any():
            warnings.warn("X is constant: there is nothing to learn, all codes are zero", stacklevel=2)
        elif self.lam_mode == "scaled" and self.reg >= 1:
            warnings.warn(f"reg is {self.reg}: with lam_mode='scaled', from 1 on all codes are zero", stacklevel=2)
        levels = self._in_data_type(levels, problem)
        options: dict[str, Any] = {
            "max_iter": int(self.max_iter),
            "verbose": bool(self.verbose),
            "report": self._report(problem),
        }
        learned = algorithms.learn(problem.data, plan, levels, key, atoms, **options)
        if learned.interrupted:
            warnings.warn(f"interrupted after {learned.n_iter} of {self.max_iter} iterations", stacklevel=2)
        self.sfreq_, self.ch_names_, self.trend_reg_ = sfreq, recording.ch_names, problem.mu
        self._keep(recording, problem, learned)
        return self

    def fit_transform(self, X: Any, mask: Any = None, *, picks: Any = None) -> Codes:
        """Learn from recordings and give their activations, as `fit` and then ``codes_``."""
        return self.fit(X, mask, picks=picks).codes_

    # --- what differs between the two estimators ----------------------------------------------------------------------

    _has_trend = False

    def _find_sfreq(self, recording: Recording) -> float | None:
        return recording.sfreq

    def _atom_length(self, sfreq: float | None) -> int:
        if self.n_times_atom is None:
            raise ValueError("n_times_atom: expected the number of samples of an atom, got None")
        return check_positive_int(self.n_times_atom, "n_times_atom", minimum=2)

    def _normalization(self) -> str | None:
        return None

    def _find_trend_level(self, recording: Recording, sfreq: float | None) -> float | None:
        """Weight of the total variation in the data's unit (with normalised trials, in theirs); None: no trend."""
        return None

    def _is_joint(self) -> bool:
        return True

    # --- from parameters to a problem ---------------------------------------------------------------------------------

    def _plan(self, recording: Recording, sfreq: float | None) -> algorithms.Plan:
        n_times, length = recording.data.shape[-1], self._atom_length(sfreq)
        if length > n_times:
            raise ValueError(f"n_times_atom: expected at most the {n_times} samples of X, got {length}")
        window_length = 8 * length if self.window_length is None else self.window_length
        window_length = check_positive_int(window_length, "window_length", minimum=3 * length)
        n_atoms, max_iter = check_positive_int(self.n_atoms, "n_atoms"), check_positive_int(self.max_iter, "max_iter")
        batch_size = check_positive_int(self.batch_size, "batch_size")
        given = not isinstance(self.init, str)
        for name, options in (("lam_mode", algorithms.LAM_MODES), ("algorithm", algorithms.ALGORITHMS)):
            check_option(getattr(self, name), name, options)
        return algorithms.Plan(
            algorithm=self.algorithm,
            lam_mode=self.lam_mode,
            outliers=check_option(self.outliers, "outliers", (None, *algorithms.OUTLIERS)),
            init=None if given else check_option(self.init, "init", _INITS),
            n_atoms=n_atoms,
            n_times_atom=length,
            n_restarts=1 if given else check_positive_int(self.n_restarts, "n_restarts"),
            n_sweeps=check_positive_int(self.n_sweeps, "n_sweeps"),
            batch_size=batch_size if self.algorithm == "online" else 0,
            window_length=min(window_length, n_times) if self.algorithm == "online" else 0,
            stage=max(max_iter // n_atoms, 1) if self.algorithm == "greedy" else 0,
            rank1=bool(self.rank1),
            positive=bool(self.positive),
            unbiased=bool(self.unbiased),
        )

    def _levels(self, recording: Recording) -> algorithms.Levels:
        eps = self.eps
        if eps is None:
            eps = 1e-8 if device_dtype(recording) == np.float64 else 1e-6
        return algorithms.Levels(
            reg=check_scalar(self.reg, "reg", minimum=0, strict=True),
            tol=check_scalar(self.tol, "tol", minimum=0, strict=True),
            tol_final=check_scalar(self.tol_final, "tol_final", minimum=0, strict=True),
            eps=check_scalar(eps, "eps", minimum=0),
        )

    def _in_data_type(self, levels: algorithms.Levels, problem: "Problem") -> algorithms.Levels:
        if self.lam_mode == "fixed":
            levels = levels._replace(reg=levels.reg / problem.unit)
        dtype = problem.data.signal.dtype
        return algorithms.Levels(*(jnp.asarray(level, dtype) for level in levels))

    def _given_atoms(self, recording: Recording, plan: algorithms.Plan) -> Any:
        if plan.init is not None:
            return None
        shape = (plan.n_atoms, recording.data.shape[1], plan.n_times_atom)
        atoms = check_array(self.init, "init", shape=shape)
        return jnp.asarray(atoms, device_dtype(recording))

    def _make_window(self, length: int, dtype: Any) -> Any:
        if isinstance(self.window, (bool, np.bool_)):
            if not self.window:
                return None
            from scipy.signal.windows import tukey

            window = tukey(length, _TUKEY)
            window[[0, -1]] = _WINDOW_END
            return jnp.asarray(window, dtype)
        return jnp.asarray(check_array(self.window, "window", shape=(length,)), dtype)

    def _pose(self, recording: Recording, mu: float | None, length: int) -> "Problem":
        """Data in units of their standard deviation, with the trend as background, or taken off beforehand."""
        normalize = self._normalization()
        scaling = find_scaling(recording, centre=self._has_trend, normalize=normalize)
        unit = 1.0 if normalize else float(scaling.scale[0, 0, 0]) or 1.0
        signal = apply_scaling(recording, scaling)
        background = None if mu is None else tv_background(jnp.asarray(mu / unit, signal.dtype))
        data = algorithms.make_data(signal, recording.mask, self._make_window(length, signal.dtype), background)
        fixed, penalty = None, 0.0
        if background is not None and not self._is_joint():
            fixed, penalty = algorithms.take_off(data)
            rest = data.signal - fixed
            rest = rest if data.mask is None else jnp.where(data.mask, rest, 0)
            data = data._replace(signal=rest, background=None)
        return Problem(data, scaling, unit, mu, fixed, float(penalty))

    def _report(self, problem: "Problem") -> Callable | None:
        if self.callback is None:
            return None
        callback, unit = self.callback, problem.unit

        def report(n_iter: int, objective: float, atoms: np.ndarray) -> Any:
            return callback(algorithms.Progress(n_iter, unit**2 * (objective + problem.penalty), atoms))

        return report

    # --- from a solution to attributes --------------------------------------------------------------------------------

    def _keep(self, recording: Recording, problem: "Problem", learned: algorithms.Learned) -> None:
        order = np.arange(len(learned.atoms))
        if self.sort_atoms:
            order = np.argsort(-np.asarray(algorithms.variances(learned.atoms, learned.codes)), kind="stable")
        lam = problem.unit * np.asarray(learned.lam)[order]
        self.atoms_ = np.asarray(learned.atoms)[order]
        self.lam_ = lam if self.lam_mode == "per_atom" else float(lam[0])
        # In float64: a square of the unit may leave the range of the data's dtype.
        self.objective_ = problem.unit**2 * (np.asarray(learned.objective, np.float64) + problem.penalty)
        self.n_iter_, self.converged_ = learned.n_iter, learned.converged
        parts = self._parts(recording, problem, np.asarray(learned.codes)[:, order], learned.background)
        self.codes_, self.pattern_signal_ = parts.codes, parts.pattern
        if self._has_trend:
            self.trend_ = parts.trend
            self.detrended_ = recording.unmasked(recording.data - parts.trend)
        self._keep_factors()

    def _keep_factors(self) -> None:
        for name in ("spatial_", "temporal_"):  # of an earlier fit
            self.__dict__.pop(name, None)
        if self.rank1:
            self.spatial_, self.temporal_ = (np.asarray(factor) for factor in rank1_from_full(self.atoms_))

    def _parts(self, recording: Recording, problem: "Problem", codes: np.ndarray, background: Any) -> Decomposition:
        """Back to the data's unit."""
        scaling = problem.scaling
        codes = codes * scaling.scale.astype(codes.dtype)
        background = problem.fixed if background is None else background
        trend = np.broadcast_to(scaling.offset, recording.data.shape)
        if background is not None:
            trend = trend + scaling.scale * np.asarray(background, np.float64)
            if recording.mask is not None:  # any curve between the neighbours costs the same in a gap: a straight one
                trend = fill_gaps(trend, recording.mask)
        trend = trend.astype(recording.data.dtype)
        pattern = np.asarray(conv_synthesis(self.atoms_, codes))
        residual = recording.unmasked(recording.data - trend - pattern)
        return Decomposition(trend, pattern, residual, codes)

    # --- use ----------------------------------------------------------------------------------------------------------

    def _solve(self, X: Any, mask: Any, picks: Any) -> tuple[Recording, Decomposition, float]:
        """Recording, its parts at the atoms learned, and the objective."""
        check_is_fitted(self)
        if picks is None and (is_raw(X) or is_epochs(X)) and self.ch_names_ and set(self.ch_names_) <= set(X.ch_names):
            picks = list(self.ch_names_)
        recording = read_recording(X, mask, picks)
        n_atoms, n_channels, length = self.atoms_.shape
        if recording.data.shape[1] != n_channels:
            raise ValueError(f"X: expected {n_channels} channels, as in fit, got {recording.data.shape[1]}")
        if recording.data.shape[2] < length:
            raise ValueError(f"X: expected at least {length} samples, an atom's length, got {recording.data.shape[2]}")
        problem = self._pose(recording, self.trend_reg_, length)
        plan = self._plan(recording, self.sfreq_)
        dtype = problem.data.signal.dtype
        lam = jnp.broadcast_to(jnp.asarray(self.lam_ / problem.unit, dtype), (n_atoms,))
        tol = jnp.asarray(check_scalar(self.tol_final, "tol_final", minimum=0, strict=True), dtype)
        atoms = jnp.asarray(self.atoms_, dtype)
        state = algorithms.decode(problem.data._replace(lam=lam), atoms, tol, plan)
        parts = self._parts(recording, problem, np.asarray(state.codes), state.background)
        return recording, parts, problem.unit**2 * (float(state.objective) + problem.penalty)

    def transform(self, X: Any, mask: Any = None, *, picks: Any = None) -> Codes:
        """Activations of the atoms in recordings.

        Parameters
        ----------
        X, mask, picks
            As for `fit`; of MNE objects, the channels of the fit by default, where `X` has them.

        Returns
        -------
        np.ndarray, shape (n_trials, n_atoms, n_times - n_times_atom + 1)
            In the data's unit.

        Notes
        -----
        Each number of samples compiles anew, in seconds: many recordings of different lengths are better padded to a
        common one, with a `mask` that is False there. Activations are then possible over the end, too.
        """
        return self._solve(X, mask, picks)[1].codes

    def inverse_transform(self, codes: Any) -> Signals:
        """Sum of the atoms at their activations.

        Parameters
        ----------
        codes : array-like, shape (n_trials, n_atoms, n_times_valid)
            Activations.

        Returns
        -------
        np.ndarray, shape (n_trials, n_channels, n_times_valid + n_times_atom - 1)
            In the unit of the codes.
        """
        check_is_fitted(self)
        return np.asarray(
            conv_synthesis(self.atoms_, check_array(codes, "codes", shape=(None, len(self.atoms_), None)))
        )

    def score(self, X: Any, mask: Any = None, *, picks: Any = None) -> float:
        """Minus the objective at the best activations, over the number of samples; larger is better."""
        recording, _, objective = self._solve(X, mask, picks)
        return -objective / recording.data.size

    def activations(self, threshold: float | int = 0.0) -> list[np.ndarray]:
        """List the activations of the fit, in the order of time.

        Parameters
        ----------
        threshold : float
            Smaller ones (in absolute value) and equal ones are left out; in the data's unit.

        Returns
        -------
        list of structured np.ndarray
            One a trial, with the fields "time_s" ("sample", where the sampling frequency is not known) of the atom's
            first sample, "atom" and "amplitude".
        """
        check_is_fitted(self)
        threshold = check_scalar(threshold, "threshold", minimum=0)
        time = ("sample", np.int64) if self.sfreq_ is None else ("time_s", np.float64)
        listed = []
        for codes in self.codes_:
            start, atom = np.nonzero((np.abs(codes) > threshold).T)
            rows = np.empty(start.size, [time, ("atom", np.int64), ("amplitude", np.float64)])
            rows[time[0]] = start if self.sfreq_ is None else start / self.sfreq_
            rows["atom"], rows["amplitude"] = atom, codes[atom, start]
            listed.append(rows)
        return listed

    def plot_atoms(self, ax: Any = None) -> Any:
        """Draw the waveforms at their median size; arguments and result as for `gyri.nystagmus.plot_atoms`."""
        check_is_fitted(self)
        size = [float(np.median(np.abs(z[z != 0]))) if z.any() else 1.0 for z in np.moveaxis(self.codes_, 1, 0)]
        return plot.plot_atoms(self.atoms_, self.sfreq_, scale=size, ch_names=self.ch_names_, ax=ax)

    # --- keep ---------------------------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write the fitted model to one file (no pickle), exactly at `path`; a callback is not written."""
        check_is_fitted(self)
        options = as_python(self.get_params(deep=False))
        del options["callback"]
        arrays = {name: options.pop(name) for name in ("init", "window", "random_state") if _is_array(options[name])}
        fitted = {name: getattr(self, name) for name in _ARRAYS if hasattr(self, name)}
        scalars = {name: getattr(self, name) for name in _SCALARS}
        if isinstance(self.lam_, np.ndarray):
            fitted["lam_"] = scalars.pop("lam_")
        tree = {"options": arrays, "fitted": fitted}
        save_pytree(path, tree, kind=self._kind(), meta={"options": options, "fitted": scalars})

    @classmethod
    def load(cls, path: Any, callback: Callable | None = None) -> Any:
        """Read what `save` wrote.

        Parameters
        ----------
        path : str or Path
            The file.
        callback : callable, optional
            Functions are not in files: the callback of the model.

        Returns
        -------
        estimator
            As it was saved.

        Raises
        ------
        ValueError
            If the file is not of this kind, newer, or damaged.
        """
        tree, meta = load_pytree(path, kind=cls._kind())
        model = cls(**meta["options"] | tree["options"], callback=callback)
        for name, value in (meta["fitted"] | tree["fitted"]).items():
            setattr(model, name, tuple(value) if name == "ch_names_" and value is not None else value)
        model._keep_factors()
        return model

    @classmethod
    def _kind(cls) -> str:
        return f"gyri.nystagmus.{cls.__name__}"


class NystagmusCDL(ConvolutionalDictionaryLearning):
    r"""Learn the waveforms of a nystagmus and the trend of the gaze under them.

    Minimises :math:`\tfrac12 \|X - B - \sum_k z_k * D_k\|^2 + \lambda \sum z + \mu \sum_t |B_{t+1} - B_t|` over the
    trend B, codes z >= 0 and atoms D of norm at most one. Every trial and channel has a trend of its own; it takes up
    the mean.

    Parameters
    ----------
    n_atoms : int
        Number of atoms.
    atom_duration : float
        Length of the atoms in seconds: a period and a half is good.
    sfreq : float, optional
        Sampling frequency in Hz; taken from MNE objects.
    reg : float
        Sparsity, see `lam_mode`.
    trend_reg : "auto", float or None
        Weight of the total variation: just enough to flatten the nystagmus out of the trend
        (`gyri.nystagmus.estimate_tv_threshold`), or what `trend_scale` says. None: the trend is the mean.
    trend_scale : {"absolute", "max_diff", "max_diff_legacy", "lambda_max"}
        What `trend_reg` multiplies, see `gyri.nystagmus.trend.trend_level`.
    joint : bool
        Learn trend and atoms together; otherwise the trend is taken off beforehand, and stays.
    window : bool or array-like
        As there; the default is the Tukey window.
    normalize : {None, "l2"}
        ``"l2"``: each trial is centred and divided by its norm first, and `reg` and `trend_reg` are in these units.
    n_times_atom : int, optional
        Length of the atoms in samples, instead of `atom_duration`.
    lam_mode, rank1, positive, init, n_restarts, algorithm, max_iter, n_sweeps, tol, tol_final, eps
        As for `ConvolutionalDictionaryLearning`.
    batch_size, window_length, outliers, unbiased, sort_atoms, random_state, verbose, callback
        As for `ConvolutionalDictionaryLearning`.

    Attributes
    ----------
    trend_ : np.ndarray, shape (n_trials, n_channels, n_times)
        In the data's unit; straight where masked.
    detrended_ : np.ndarray, shape (n_trials, n_channels, n_times)
        Recording less trend; NaN where masked.
    trend_reg_ : float or None
        The weight used.
    atoms_, spatial_, temporal_, codes_, lam_, objective_, n_iter_, converged_, pattern_signal_, sfreq_, ch_names_
        As for `ConvolutionalDictionaryLearning`.

    Notes
    -----
    Lalanne, Rateaux, Oudre, Robert, Moreau (2020), Extraction of Nystagmus Patterns from Eye-Tracker Data with
    Convolutional Sparse Coding, EMBC.

    Examples
    --------
    >>> from gyri.nystagmus import simulate_nystagmus
    >>> data = simulate_nystagmus(0, n_times=3000, sfreq=500.0, kind="jerk_sf_up", frequency=4.0, nystagmus_std=3.0)
    >>> model = NystagmusCDL(atom_duration=0.37, sfreq=500.0, max_iter=20).fit(data.recording)
    >>> model.trend_.shape, model.atoms_.shape, round(model.waveforms()[0]["frequency_hz"])
    ((1, 1, 3000), (1, 1, 185), 4)
    """

    def __init__(
        self,
        n_atoms: int = 1,
        atom_duration: float | int = 0.3,
        *,
        sfreq: float | int | None = None,
        reg: float | int = 0.5,
        trend_reg: Any = "auto",
        trend_scale: str = "absolute",
        joint: bool = True,
        window: Any = True,
        normalize: str | None = None,
        n_times_atom: int | None = None,
        lam_mode: str = "scaled",
        rank1: bool = False,
        positive: bool = True,
        init: Any = "chunk",
        n_restarts: int = 1,
        algorithm: str = "batch",
        max_iter: int = 100,
        n_sweeps: int = 20,
        tol: float | int = 1e-3,
        tol_final: float | int = 1e-4,
        eps: float | int | None = None,
        batch_size: int = 8,
        window_length: int | None = None,
        outliers: str | None = None,
        unbiased: bool = False,
        sort_atoms: bool = True,
        random_state: Any = 0,
        verbose: bool = False,
        callback: Callable | None = None,
    ) -> None:
        super().__init__(
            n_atoms,
            n_times_atom,
            reg=reg,
            lam_mode=lam_mode,
            rank1=rank1,
            positive=positive,
            window=window,
            init=init,
            n_restarts=n_restarts,
            algorithm=algorithm,
            max_iter=max_iter,
            n_sweeps=n_sweeps,
            tol=tol,
            tol_final=tol_final,
            eps=eps,
            batch_size=batch_size,
            window_length=window_length,
            outliers=outliers,
            unbiased=unbiased,
            sort_atoms=sort_atoms,
            random_state=random_state,
            verbose=verbose,
            callback=callback,
        )
        self.atom_duration = atom_duration
        self.sfreq = sfreq
        self.trend_reg = trend_reg
        self.trend_scale = trend_scale
        self.joint = joint
        self.normalize = normalize

    _has_trend = True

    def _find_sfreq(self, recording: Recording) -> float | None:
        sfreq = None if self.sfreq is None else float(check_scalar(self.sfreq, "sfreq", minimum=0, strict=True))
        if sfreq is None and recording.sfreq is None:
            raise ValueError("sfreq: expected the sampling frequency in Hz, since X is an array, got None")
        if sfreq is not None and recording.sfreq is not None and not np.isclose(sfreq, recording.sfreq):
            raise ValueError(f"sfreq: expected None or {recording.sfreq} Hz, as X has, got {sfreq}")
        return recording.sfreq if sfreq is None else sfreq

    def _atom_length(self, sfreq: float | None) -> int:
        if self.n_times_atom is not None:
            return super()._atom_length(sfreq)
        duration = check_scalar(self.atom_duration, "atom_duration", minimum=0, strict=True)
        length = round(duration * float(sfreq or 0))
        if length < 2:
            raise ValueError(f"atom_duration: expected at least two samples at {sfreq} Hz, got {duration} s")
        return length

    def _normalization(self) -> str | None:
        return check_option(self.normalize, "normalize", (None, "l2"))

    def _find_trend_level(self, recording: Recording, sfreq: float | None) -> float | None:
        if self.trend_reg is None:
            return None
        data: Any = recording.data
        if self._normalization() == "l2":
            data = apply_scaling(recording, find_scaling(recording, centre=True, normalize="l2"))
        return trend_level(data, self.trend_reg, self.trend_scale, sfreq=sfreq, mask=recording.mask)

    def _is_joint(self) -> bool:
        return bool(self.joint)

    # --- use ----------------------------------------------------------------------------------------------------------

    @property
    def decomposition_(self) -> Decomposition:
        """The recording of the fit in parts."""
        check_is_fitted(self)
        return Decomposition(self.trend_, self.pattern_signal_, self.detrended_ - self.pattern_signal_, self.codes_)

    def decompose(self, X: Any, mask: Any = None, *, picks: Any = None) -> Decomposition:
        """Trend, patterns, residual and activations of recordings, at the atoms learned.

        Parameters
        ----------
        X, mask, picks
            As for `transform`.

        Returns
        -------
        Decomposition
            In the data's unit.
        """
        return self._solve(X, mask, picks)[1]

    def trend(self, X: Any, mask: Any = None, *, picks: Any = None) -> Signals:
        """Trend of recordings, at the atoms learned; arguments as for `transform`."""
        return self._solve(X, mask, picks)[1].trend

    def detrend(self, X: Any, mask: Any = None, *, picks: Any = None) -> Signals:
        """Recordings less their trend, at the atoms learned, NaN where masked; arguments as for `transform`."""
        recording, parts, _ = self._solve(X, mask, picks)
        return recording.unmasked(recording.data - parts.trend)

    def waveforms(self) -> list[dict[str, float]]:
        """Amplitude, frequency, slow-phase velocity, jerkiness and foveation of each atom; keys as of `Waveform`."""
        check_is_fitted(self)
        return [
            measure_waveform(atom, self.codes_[:, k], float(self.sfreq_ or 0))._asdict()
            for k, atom in enumerate(self.atoms_)
        ]


class Problem(NamedTuple):
    """A recording as the algorithms take it, and what leads back.

    Attributes
    ----------
    data : LearnData
        In units of the scaling.
    scaling : Scaling
        Offsets and scales.
    unit : float
        Of codes, levels and trend: the standard deviation, or 1 where each trial is normalised.
    mu : float or None
        Weight of the total variation, in the data's unit.
    fixed : Array or None
        Trend that was taken off beforehand.
    penalty : float
        Its value in the objective.
    """

    data: Any
    scaling: Scaling
    unit: float
    mu: float | None
    fixed: Any
    penalty: float


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, jax.Array, list, tuple))
