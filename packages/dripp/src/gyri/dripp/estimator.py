"""The front door: a scikit-learn style estimator over lag table, EM and tests. It holds no mathematics."""

import warnings
from dataclasses import fields, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from gyri.numerics.io import load_pytree, save_pytree
from gyri.numerics.loops import progress_bar
from gyri.numerics.validation import check_array, import_extra

from . import inference, kernels, model, plot
from .init import initialize
from .lags import LagTable, Times, check_drivers, check_sequence, check_times, check_window, is_batch, lag_table
from .model import Params
from .optim import EMResult, em
from .simulation import simulate

_KIND = "gyri.dripp.DriPP"
_ATOMS_AT_ONCE = 256
_FITTED = ("nll_", "n_iter_", "converged_", "history_")


class DriPP(BaseEstimator):
    r"""Driven point process: which drivers trigger events, how many, after what delay.

    The rate of events is a baseline plus, after every driver event, alpha times a kernel of the delay:
    :math:`\lambda(t) = \mu + \sum_p \alpha_p \sum_s \kappa(t - s; m_p, \sigma_p)`.

    Parameters
    ----------
    lower, upper : float
        Window of delays in seconds in which a driver can trigger events.
    kernel : {"truncated_gaussian", "raised_cosine", "truncated_exponential"}
        Density of the delays.
    init : {"auto", "smart_start", "peaks", "random"} or Params
        Starting values, see `em`.
    max_iter : int
        Largest number of EM iterations.
    tol : float, optional
        Relative change of the negative log-likelihood at which to stop; 1e-9 in float64, 1e-6 in float32.
    m_bounds : pair of float, optional
        Bounds of `m` in seconds; the window by default.
    sigma_min : float, optional
        Lower bound of `sigma` in seconds.
    m_step : {"fixed_point", "exact"}
        The update of (m, sigma), see `em`.
    polish : bool
        Finish by Newton steps.
    edge : bool
        Correct for windows that the ends of the recording cut.
    sfreq : float, optional
        Sampling frequency in Hz, if all times lie on one grid: the fit then costs the same for any number of events.
    random_state : int or PRNG key
        For ``init="random"`` and, where no key is given, the spread of events within their samples.
    progress : bool
        Show a progress bar over the atoms.

    Attributes
    ----------
    params_ : Params
        All estimates.
    baseline_ : Array, shape () or (K,)
        Rate of spontaneous events, events/s.
    alpha_, m_, sigma_ : Array, shape (P,) or (K, P)
        Expected events per driver event; location and scale of the delay, seconds.
    ratio_ : np.ndarray, shape (P,) or (K, P)
        alpha over baseline: how much an atom answers to a driver.
    nll_, n_iter_, converged_, history_
        As in `EMResult`.
    driver_names_ : tuple of str
        Names of the drivers.
    n_events_ : int or np.ndarray of int, shape (K,)
        Number of events.
    table_ : LagTable
        The lag table of the fit.

    Notes
    -----
    Allain, Gramfort, Moreau (2022), DriPP: Driven Point Processes to Model Stimuli Induced Patterns in M/EEG Signals,
    ICLR.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.dripp import DriPP, Params, simulate
    >>> truth = Params(0.5, np.array([0.8]), np.array([0.1]), np.array([0.02]))
    >>> stimuli = np.arange(1.0, 500.0)
    >>> events = simulate(0, stimuli, truth, lower=0.03, upper=0.5, t_stop=500.0)
    >>> model = DriPP().fit(events, {"tone": stimuli}, t_stop=500.0)
    >>> bool(abs(model.m_[0] - 0.1) < 0.01)
    True
    """

    def __init__(
        self,
        lower: float = 0.03,
        upper: float = 0.5,
        *,
        kernel: str = "truncated_gaussian",
        init: str | Params = "auto",
        max_iter: int = 400,
        tol: float | None = None,
        m_bounds: tuple[float, float] | None = None,
        sigma_min: float | None = None,
        m_step: str = "fixed_point",
        polish: bool = True,
        edge: bool = True,
        sfreq: float | None = None,
        random_state: Any = 0,
        progress: bool = False,
    ) -> None:
        self.lower = lower
        self.upper = upper
        self.kernel = kernel
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.m_bounds = m_bounds
        self.sigma_min = sigma_min
        self.m_step = m_step
        self.polish = polish
        self.edge = edge
        self.sfreq = sfreq
        self.random_state = random_state
        self.progress = progress

    # --- fit ----------------------------------------------------------------------------------------------------------

    def fit(self, events: Any, drivers: Any = None, *, t_stop: float | None = None, t_start: float = 0.0) -> "DriPP":
        """Estimate the parameters by maximum likelihood.

        Parameters
        ----------
        events : array-like, shape (n_events,), or list of K of them
            Event times in seconds, of one atom or of several.
        drivers : array-like, list, dict or None
            Times in seconds of the driver events; a dict names the drivers.
        t_stop : float, optional
            End of the recording in seconds; last event + `upper` by default, with a warning.
        t_start : float
            Start of the recording in seconds.

        Returns
        -------
        DriPP
            Itself. Ctrl-C keeps the atoms that are done, leaves the others at their starting values (``converged_``
            tells) and warns.

        Raises
        ------
        ValueError
            If an argument or a parameter of the estimator is out of range; the message names it.
        """
        if t_stop is None:
            t_stop = self._guess_t_stop(events, drivers)
        times = check_times(events, drivers, lower=self.lower, upper=self.upper, t_stop=t_stop, t_start=t_start)
        table = self._table(times)
        self._keep(times, table, self._fit_table(table))
        return self

    def _fit_table(self, table: LagTable) -> EMResult:
        """Fit all atoms, a group at a time; groups are equally large, so that they share one compilation."""
        if table.n_atoms is None or table.n_atoms <= _ATOMS_AT_ONCE:
            with progress_bar(table.n_atoms or 1, "atoms", self.progress) as bar:
                result = jax.block_until_ready(em(table, self.init, **self._em_kwargs()))
                bar.update(table.n_atoms or 1)
            return result
        n_groups = -(-table.n_atoms // _ATOMS_AT_ONCE)
        size = -(-table.n_atoms // n_groups)
        results: list[EMResult] = []
        with progress_bar(table.n_atoms, "atoms", self.progress) as bar:
            try:
                for start in range(0, table.n_atoms, size):
                    index = np.minimum(np.arange(start, start + size), table.n_atoms - 1)
                    group, init = _take(table, index), self.init
                    if isinstance(init, Params):
                        init = Params(*(np.asarray(leaf)[index] for leaf in init))
                    results.append(jax.block_until_ready(em(group, init, **self._em_kwargs())))
                    bar.update(min(size, table.n_atoms - start))
            except KeyboardInterrupt:
                done = len(results) * size
                if done == 0:
                    raise
                warnings.warn(f"interrupted: {done} of {table.n_atoms} atoms are fitted", stacklevel=3)
                results.append(self._unfitted(_take(table, np.arange(done, table.n_atoms)), results[0]))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: table.n_atoms], *results)

    def _unfitted(self, table: LagTable, like: EMResult) -> EMResult:
        """Starting values in the place of estimates, flagged as not converged."""
        params = initialize(table, kernel=self.kernel, m_bounds=self.m_bounds, sigma_min=self.sigma_min)
        value = np.asarray(model.negative_log_likelihood(params, table, kernel=self.kernel))
        history = np.full((value.size, like.history.shape[-1]), np.nan, value.dtype)
        history[:, 0] = value
        zero = np.zeros(value.size, np.asarray(like.n_iter).dtype)
        return EMResult(params, value, zero, zero.astype(bool), history)

    def _em_kwargs(self) -> dict:
        names = ("kernel", "max_iter", "tol", "m_bounds", "sigma_min", "m_step", "polish")
        return {name: getattr(self, name) for name in names} | {"key": self.random_state}

    def _refit_kwargs(self) -> dict:
        """Options for refits to other data: starting values that were made for these data do not carry over."""
        options = self._em_kwargs() | {"init": "auto" if isinstance(self.init, Params) else self.init}
        del options["key"]
        return options

    def _guess_t_stop(self, events: Any, drivers: Any) -> float:
        check_window(self.lower, self.upper)
        sequences = [check_sequence(sequence, "events") for sequence in (events if is_batch(events) else [events])]
        drivers, _ = check_drivers(drivers)
        last = [t[-1] for t in sequences if t.size] or [t[-1] for t in drivers if t.size]
        if not last:
            raise ValueError(
                "t_stop: expected the end of the recording in seconds, since there are no events, got None"
            )
        t_stop = float(max(last)) + self.upper
        warnings.warn(
            f"t_stop is not given: the recording is taken to end at {t_stop:g} s, last event + upper", stacklevel=3
        )
        return t_stop

    def _table(self, times: Times) -> LagTable:
        events = times.events if times.batched else times.events[0]
        named = dict(zip(times.names, times.drivers)) if len(set(times.names)) == len(times.drivers) else times.drivers
        return lag_table(events, named, **self._recording(times))

    def _recording(self, times: Times) -> dict:
        return {
            "lower": times.lower,
            "upper": times.upper,
            "t_stop": times.t_stop,
            "t_start": times.t_start,
            "sfreq": self.sfreq,
            "edge": self.edge,
        }

    def _keep(self, times: Times, table: LagTable, result: EMResult) -> None:
        self.times_, self.table_, self.params_ = times, table, result.params
        self.nll_, self.n_iter_, self.converged_, self.history_ = result[1:]
        self.baseline_, self.alpha_, self.m_, self.sigma_ = result.params
        self.driver_names_, self.n_events_ = times.names, table.n_events
        alpha, baseline = np.asarray(self.alpha_), np.asarray(self.baseline_)[..., None]
        with np.errstate(divide="ignore", invalid="ignore"):
            self.ratio_ = np.where(alpha > 0, alpha / baseline, 0)

    # --- use ----------------------------------------------------------------------------------------------------------

    def score(
        self, events: Any, drivers: Any = None, *, t_stop: float | None = None, t_start: float | None = None
    ) -> Float[np.ndarray, "*atoms"] | float:
        """Log-likelihood of events under the fitted parameters.

        Parameters
        ----------
        events, drivers, t_stop, t_start
            As for `fit`; drivers and windows default to those of the fit.

        Returns
        -------
        float or np.ndarray, shape (K,)
            In nats, without the constant that depends on the number of events alone.
        """
        check_is_fitted(self)
        times = self.times_
        checked = check_times(
            events,
            times.drivers if drivers is None else drivers,
            lower=times.lower,
            upper=times.upper,
            t_stop=times.t_stop if t_stop is None else t_stop,
            t_start=times.t_start if t_start is None else t_start,
        )
        if (len(checked.events) if checked.batched else None) != self.table_.n_atoms:
            raise ValueError(
                f"events: expected {self.table_.n_atoms or 1} sequences, as in fit, got {len(checked.events)}"
            )
        if len(checked.drivers) != self.table_.n_drivers:
            raise ValueError(f"drivers: expected {self.table_.n_drivers}, as in fit, got {len(checked.drivers)}")
        value = -np.asarray(model.negative_log_likelihood(self.params_, self._table(checked), kernel=self.kernel))
        return value if checked.batched else float(value)

    def intensity(self, t: Any, drivers: Any = None, atom: int | None = None) -> Float[np.ndarray, "*atoms n_times"]:
        """Rate of events at any times.

        Parameters
        ----------
        t : array-like, shape (n_times,)
            Times in seconds.
        drivers : array-like, list, dict or None
            Driver times in seconds; those of the fit by default.
        atom : int, optional
            One atom of several.

        Returns
        -------
        np.ndarray, shape (n_times,) or (K, n_times)
            Events/s.
        """
        params, drivers = self._atom(atom), self._drivers(drivers)
        return model.intensity(t, drivers, params, lower=self.times_.lower, upper=self.times_.upper, kernel=self.kernel)

    def kernel_values(self, x: Any) -> Float[np.ndarray, "*atoms n_drivers n_times"]:
        """Rate that one event of each driver adds after a delay: alpha times the kernel.

        Parameters
        ----------
        x : array-like, shape (n_times,)
            Delays in seconds.

        Returns
        -------
        np.ndarray, shape (P, n_times) or (K, P, n_times)
            Events/s.
        """
        check_is_fitted(self)
        x = np.asarray(check_array(x, "x", ndim=1, dtype=np.float64, allow_empty=True))
        pdf, window = kernels.get(self.kernel).pdf, (self.times_.lower, self.times_.upper)
        _, alpha, m, sigma = (np.asarray(leaf, np.float64) for leaf in self.params_)
        values = np.zeros((*alpha.shape, x.size))
        for index in np.ndindex(alpha.shape):
            values[index] = alpha[index] * kernels.on_host(pdf, x, m[index], sigma[index], *window)
        return values

    def simulate(self, key: Any, drivers: Any = None, t_stop: float | None = None) -> np.ndarray | list[np.ndarray]:
        """Draw events from the fitted process.

        Parameters
        ----------
        key : int or PRNG key
            Source of randomness.
        drivers : array-like, list, dict or None
            Driver times in seconds; those of the fit by default.
        t_stop : float, optional
            End of the simulated recording in seconds; that of the fit by default.

        Returns
        -------
        np.ndarray, or list of K of them
            Sorted event times in seconds.
        """
        drivers, times = self._drivers(drivers), self.times_
        return simulate(
            key,
            drivers,
            self.params_,
            lower=times.lower,
            upper=times.upper,
            t_stop=times.t_stop if t_stop is None else t_stop,
            t_start=times.t_start,
            kernel=self.kernel,
        )

    def goodness_of_fit(self, key: Any = None) -> inference.GoodnessOfFit:
        """Time-rescaling test of the fit to its own events; see `gyri.dripp.goodness_of_fit`."""
        recording = self._fitted_recording()
        del recording["edge"]
        if recording["sfreq"] is not None and key is None:
            key = 0 if self.random_state is None else self.random_state
        return inference.goodness_of_fit(
            self._events(), self.times_.drivers, self.params_, kernel=self.kernel, key=key, **recording
        )

    def test(self, method: str = "shift", n_resamples: int = 199, key: Any = 0) -> inference.LRTResult:
        """Likelihood-ratio test of every driver; see `gyri.dripp.likelihood_ratio_test`."""
        return inference.likelihood_ratio_test(
            self._events(),
            self._drivers(None),
            method=method,
            n_resamples=n_resamples,
            key=key,
            **self._fitted_recording(),
            **self._refit_kwargs(),
        )

    def standard_errors(self) -> Params:
        """Standard errors from the observed information; NaN on a bound. See `gyri.dripp.inference.standard_errors`."""
        check_is_fitted(self)
        return inference.standard_errors(
            self.params_, self.table_, self.kernel, m_bounds=self.m_bounds, sigma_min=self.sigma_min
        )

    def confidence_intervals(
        self,
        level: float = 0.95,
        method: str = "wald",
        n_resamples: int = 200,
        key: Any = 0,
        subsample: float | None = None,
    ) -> dict[str, Float[np.ndarray, "... 2"]]:
        """Confidence intervals.

        Parameters
        ----------
        level : float
            Coverage, in (0, 1).
        method : {"wald", "bootstrap"}
            From standard errors (on the log scale but for m), or percentiles of refits to simulated events.
        n_resamples : int
            Refits of the bootstrap.
        key : int or PRNG key
            For the bootstrap.
        subsample : float, optional
            Bootstrap by keeping this fraction of the driver events instead of simulating; see
            `gyri.dripp.inference.bootstrap_intervals`.

        Returns
        -------
        dict of np.ndarray, shape (..., 2)
            Ends of the intervals by field of `Params`.
        """
        check_is_fitted(self)
        if method == "wald":
            return inference.wald_intervals(self.params_, self.standard_errors(), level)
        if method != "bootstrap":
            raise ValueError(f"method: expected 'wald' or 'bootstrap', got {method!r}")
        return inference.bootstrap_intervals(
            self._events(),
            self.times_.drivers,
            self.params_,
            level=level,
            n_resamples=n_resamples,
            subsample=subsample,
            key=key,
            **self._fitted_recording(),
            **self._refit_kwargs(),
        )

    # --- show ---------------------------------------------------------------------------------------------------------

    def _rows(self) -> list[dict]:
        check_is_fitted(self)
        errors = self.standard_errors()
        rows = []
        for k, (one, error) in enumerate(zip(model.split(self.params_), model.split(errors))):
            for p, name in enumerate(self.driver_names_ or ("",)):
                row: dict[str, Any] = {"atom": k, "baseline": float(one.baseline), "driver": name}
                for field in ("alpha", "m", "sigma") if self.driver_names_ else ():
                    row[field] = float(getattr(one, field)[p])
                    row[f"{field}_se"] = float(getattr(error, field)[p])
                if self.driver_names_:
                    row["ratio"] = float(np.reshape(self.ratio_, (-1, len(self.driver_names_)))[k, p])
                rows.append(row)
        return rows

    def summary(self) -> str:
        """Estimates as a text table, a line for each atom and driver; seconds, standard errors in brackets."""
        rows = self._rows()
        head = ["atom", "baseline", "driver", "alpha (se)", "m (se)", "sigma (se)", "alpha/baseline"]
        body = []
        for row in rows:
            cells = [str(row["atom"]), f"{row['baseline']:.4g}", row["driver"]]
            if "alpha" in row:
                cells += [f"{row[name]:.4g} ({row[name + '_se']:.2g})" for name in ("alpha", "m", "sigma")]
                cells.append(f"{row['ratio']:.3g}")
            body.append(cells + [""] * (len(head) - len(cells)))
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in [head, *body]]
        return "\n".join(lines)

    def to_frame(self) -> Any:
        """Estimates and standard errors as a pandas DataFrame, a row for each atom and driver."""
        pd = import_extra("pandas", "gyri-dripp[pandas]", "to make a table")
        return pd.DataFrame(self._rows())

    def plot_intensity(self, atom: int | None = None, ax: Any = None) -> Any:
        """Draw the rate after one event of each driver.

        Parameters
        ----------
        atom : int, optional
            Which atom; the first by default.
        ax : matplotlib.axes.Axes, optional
            Where to draw.

        Returns
        -------
        matplotlib.figure.Figure
            The figure.
        """
        atom = self._default_atom(atom)
        window = {"lower": self.times_.lower, "upper": self.times_.upper}
        title = "" if atom is None else f"Atom {atom}"
        return plot.plot_intensity(
            self._atom(atom), self.driver_names_, kernel=self.kernel, title=title, ax=ax, **window
        )

    def plot_qq(self, atom: int | None = None, ax: Any = None) -> Any:
        """Draw the QQ plot of the time-rescaling test; arguments and result as for `plot_intensity`."""
        atom = self._default_atom(atom)
        test = self.goodness_of_fit()
        if atom is None:
            return plot.plot_qq(test.rescaled, pvalue=test.pvalue, ax=ax)
        return plot.plot_qq(test.rescaled[atom], pvalue=test.pvalue[atom], title=f"Atom {atom}", ax=ax)

    # --- keep ---------------------------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write the fitted model with its data to one file (no pickle), exactly at `path`."""
        check_is_fitted(self)
        options = self.get_params(deep=False)
        arrays = {name: options.pop(name) for name in ("init", "random_state") if not isinstance(options[name], str)}
        if self.m_bounds is not None:
            options["m_bounds"] = [float(bound) for bound in self.m_bounds]
        table = {field.name: getattr(self.table_, field.name) for field in fields(self.table_)}
        layout = {name: table.pop(name) for name in ("n_atoms", "n_drivers", "names")}
        times = self.times_._asdict()
        content = {"events": times.pop("events"), "drivers": times.pop("drivers")}
        tree = {
            "options": {name: tuple(value) if isinstance(value, Params) else value for name, value in arrays.items()},
            "params": tuple(self.params_),
            "result": {name: getattr(self, name) for name in _FITTED},
            "table": table,
            **content,
        }
        meta = {
            "options": options,
            "layout": layout | {"names": list(layout["names"])},
            "times": times | {"names": list(times["names"])},
        }
        save_pytree(path, tree, kind=_KIND, meta=meta)

    @classmethod
    def load(cls, path: Any) -> "DriPP":
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If the file is not of this kind, newer, or damaged.
        """
        tree, meta = load_pytree(path, kind=_KIND)
        options = meta["options"] | tree["options"]
        if not isinstance(options["init"], str):
            options["init"] = Params(*options["init"])
        if options["m_bounds"] is not None:
            options["m_bounds"] = tuple(options["m_bounds"])
        fitted = cls(**options)
        layout = meta["layout"] | {"names": tuple(meta["layout"]["names"])}
        times = Times(
            **meta["times"] | {"names": tuple(meta["times"]["names"])}, events=tree["events"], drivers=tree["drivers"]
        )
        result = EMResult(Params(*tree["params"]), **{name[:-1]: tree["result"][name] for name in _FITTED})
        fitted._keep(times, LagTable(**tree["table"], **layout), result)
        return fitted

    # --- what the last fit knows --------------------------------------------------------------------------------------

    def _events(self) -> Any:
        check_is_fitted(self)
        return self.times_.events if self.times_.batched else self.times_.events[0]

    def _drivers(self, drivers: Any) -> Any:
        check_is_fitted(self)
        return self.times_.drivers if drivers is None else drivers

    def _fitted_recording(self) -> dict:
        check_is_fitted(self)
        return self._recording(self.times_)

    def _default_atom(self, atom: int | None) -> int | None:
        check_is_fitted(self)
        return 0 if atom is None and self.table_.n_atoms is not None else atom

    def _atom(self, atom: int | None) -> Params:
        """Parameters of one atom, or all."""
        check_is_fitted(self)
        if atom is None:
            return self.params_
        n_atoms = self.table_.n_atoms
        if n_atoms is None or not 0 <= atom < n_atoms:
            raise ValueError(f"atom: expected {'None' if n_atoms is None else f'0 to {n_atoms - 1}'}, got {atom!r}")
        return Params(*(leaf[atom] for leaf in self.params_))


def _take(table: LagTable, index: np.ndarray) -> LagTable:
    """Part of the atoms of a batched table."""
    return replace(jax.tree.map(lambda leaf: np.asarray(leaf)[index], table), n_atoms=len(index))
