"""From a recording to events: rank-1 convolutional dictionary learning, then thresholded activations. Needs MNE."""

import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gyri.numerics.csc import csc_lambda_max, csc_solve, init_atoms, rank1_from_full
from gyri.numerics.csc.dictionary import confine
from gyri.numerics.csc.learning import LearnData, LearnState, finish_learning, learn_step, start_learning
from gyri.numerics.loops import scan_chunks
from gyri.numerics.recordings import is_raw, pick_data
from gyri.numerics.validation import as_key, check_positive_int, check_scalar, import_extra

from .events import events_from_activations

_CHUNK = 5  # iterations between two looks of the host
_SWEEPS, _STEPS = 20, 50  # over the activations and on the atoms, an iteration
_REST, _TOL_FINAL = 1e-5, 1e-3  # relative decrease that ends the learning; precision of the activations


class RawEvents(NamedTuple):
    """Events of a recording, and the atoms that they are occurrences of.

    Attributes
    ----------
    events : list of K np.ndarray
        Event times of each atom, in seconds from the first sample: times of the atom's peak.
    spatial : np.ndarray, shape (K, n_channels)
        Topographies of unit norm, of channels divided by the standard deviation of all channels of their type.
    temporal : np.ndarray, shape (K, n_times_atom)
        Waveforms of unit norm; their largest entry in absolute value is positive.
    sfreq : float
        Sampling frequency in Hz.
    t_stop : float
        End of the recording in seconds.
    info : mne.Info
        Of the channels used, for topographic maps.
    """

    events: list[Float[np.ndarray, " n_events"]]
    spatial: Float[np.ndarray, "n_atoms n_channels"]
    temporal: Float[np.ndarray, "n_atoms n_times_atom"]
    sfreq: float
    t_stop: float
    info: Any

    def plot_atoms(self, atoms: Any = None) -> Any:
        """Draw topography and waveform of atoms.

        Parameters
        ----------
        atoms : sequence of int, optional
            Which; the first eight by default.

        Returns
        -------
        matplotlib.figure.Figure
            One column an atom. Without channel positions the topography is a bar a channel.
        """
        from .plot import plot_atoms

        chosen = list(range(min(len(self.temporal), 8)) if atoms is None else atoms)
        names = [f"atom {k}, {len(self.events[k])} events" for k in chosen]
        return plot_atoms(self.spatial[chosen], self.temporal[chosen], self.sfreq, self.info, names)


def events_from_raw(
    raw: Any,
    n_atoms: int = 20,
    atom_duration: float = 0.5,
    *,
    picks: Any = None,
    reg: float = 0.1,
    threshold: float = 0.0,
    percent: bool = False,
    per_atom: bool = True,
    min_distance: float = 0.01,
    max_iter: int = 100,
    n_restarts: int = 1,
    key: Any = 0,
    progress: bool = True,
) -> RawEvents:
    """Learn the recurring waveforms of a recording, and list when each occurs.

    Every atom is one topography times one waveform, as the field of one source is; activations are sparse and not
    negative. Spans that annotations call bad are left out: nothing in them has any influence.

    Parameters
    ----------
    raw : mne.io.BaseRaw
        Recording, filtered and resampled already (a high pass at 1 or 2 Hz, 100 to 200 Hz). It is not modified.
    n_atoms : int
        Number of atoms K.
    atom_duration : float
        Length of an atom in seconds.
    picks : as MNE takes it, optional
        Channels; all good data channels by default.
    reg : float
        Sparsity of the activations, as a part of the smallest level at which all are zero.
    threshold, percent, per_atom, min_distance
        As for `events_from_activations`. Activations multiply atoms of unit norm, and are in the recording's unit
        (volts, teslas) where all channels have one type, else in standard deviations. They are freed from the
        shrinkage of the penalty, and those of an atom within `min_distance` are added up first: one occurrence is
        spread over neighbouring samples.
    max_iter : int
        Most iterations.
    n_restarts : int
        Dictionaries learned from as many starts, of which the best is kept.
    key : int or PRNG key
        Draws the starts. Same key, same result.
    progress : bool
        Show progress bars.

    Returns
    -------
    RawEvents
        Atoms by the variance that they explain. Ctrl-C ends the learning with the atoms learned so far.

    Raises
    ------
    ValueError
        If `raw` is no recording, has no data channel or only bad spans, or another argument is out of range.
    ImportError
        If MNE is not installed.

    Notes
    -----
    La Tour, Moreau, Jas, Gramfort (2018), Multivariate convolutional sparse coding for electromagnetic brain signals;
    Allain, Gramfort, Moreau (2022), section 4.2.

    Examples
    --------
    >>> import mne
    >>> rng = np.random.default_rng(0)
    >>> wave, topography = np.sin(np.linspace(0, 2 * np.pi, 20)), np.array([[1.0], [-0.5], [2.0]])
    >>> z = np.zeros(2000)
    >>> z[100::200] = 1.0
    >>> data = topography * np.convolve(z, wave)[:2000] + 0.05 * rng.standard_normal((3, 2000))
    >>> raw = mne.io.RawArray(1e-6 * data, mne.create_info(3, 100.0, "eeg"), verbose="error")
    >>> found = events_from_raw(raw, 1, 0.3, min_distance=0.1, progress=False)
    >>> found.spatial.shape, found.temporal.shape, found.t_stop
    ((1, 3), (1, 30), 20.0)
    """
    n_atoms = check_positive_int(n_atoms, "n_atoms")
    check_scalar(reg, "reg", minimum=0, strict=True)
    check_scalar(min_distance, "min_distance", minimum=0)
    check_scalar(threshold, "threshold", minimum=0, maximum=100 if percent else None)
    max_iter, n_restarts = check_positive_int(max_iter, "max_iter"), check_positive_int(n_restarts, "n_restarts")
    chosen, x, mask = _read(raw, picks)
    sfreq = float(chosen.info["sfreq"])
    n_times_atom = round(check_scalar(atom_duration, "atom_duration", minimum=0, strict=True) * sfreq)
    if not 2 <= n_times_atom <= x.shape[1]:
        limit = f"2 samples to the recording's {x.shape[1] / sfreq:g} s"
        raise ValueError(f"atom_duration: expected {limit}, got {atom_duration}")
    scale = _scale(chosen, x, mask)
    signal = jnp.asarray((x / scale)[None], jnp.result_type(float))
    valid = None if mask.all() else jnp.asarray(mask)[None, None]
    best = lam = None
    for start in jax.random.split(as_key(key), n_restarts):
        # The first start sets the level of sparsity for all: else their objectives could not be compared.
        state, lam = _learn(start, signal, valid, n_atoms, n_times_atom, reg, lam, max_iter, progress)
        if best is None or state.objective < best.objective:
            best = state
    assert best is not None
    z = _gather(np.asarray(_amplitudes(best, signal, valid), np.float64), math.ceil(min_distance * sfreq))
    u, v = rank1_from_full(best.atoms)
    size = np.linalg.norm(v, axis=1)
    # The energy of an atom's part needs no signal: activations overlap little.
    order = np.argsort(-np.square(size) * np.square(z).sum(1), kind="stable")
    spatial, temporal = (
        np.asarray(factor, np.float64)[order] for factor in (u, v / np.where(size > 0, size, 1)[:, None])
    )
    unit = float(scale.flat[0]) if np.ptp(scale) == 0 else 1.0
    z = unit * (z * size[:, None])[order]
    whole = np.pad(z, ((0, 0), (0, n_times_atom - 1)))  # an activation at the last sample has its peak behind it
    options: dict[str, Any] = {"threshold": threshold, "percent": percent, "per_atom": per_atom}
    events = events_from_activations(whole, sfreq, min_distance=min_distance, atoms=temporal, **options)
    events = [times[mask[np.rint(times * sfreq).astype(int)]] for times in events]
    return RawEvents(events, spatial, temporal, sfreq, x.shape[1] / sfreq, chosen.info)


def _amplitudes(state: LearnState, signal: Array, mask: Any) -> Array:
    """Activations without the shrinkage of the penalty, shape (n_atoms, n_positions)."""
    if not jnp.any(state.codes != 0):
        return state.codes[0]
    support = state.codes > 0
    return csc_solve(signal, state.atoms, 0.0, codes=state.codes, mask=mask, support=support, tol=_TOL_FINAL).codes[0]


def _gather(z: Float[np.ndarray, "n_atoms n_times"], reach: int) -> Float[np.ndarray, "n_atoms n_times"]:
    """Put the activations within `reach` samples of a large one together, at their mean place.

    An atom that occurs between two samples, or is smooth, has its activation spread over some neighbours.
    """
    gathered = np.zeros_like(z)
    for row, left in zip(gathered, z.copy(), strict=True):
        active = np.flatnonzero(left)
        for t in active[np.argsort(-left[active], kind="stable")]:
            if left[t] > 0:
                near = slice(max(t - reach, 0), t + reach + 1)
                total = left[near].sum()
                place = near.start + round(left[near] @ np.arange(left[near].size) / total)
                row[place] += total
                left[near] = 0
    return gathered


def _read(raw: Any, picks: Any) -> tuple[Any, Float[np.ndarray, "n_channels n_times"], Bool[np.ndarray, " n_times"]]:
    """Recording of the channels picked, its samples, and which of them are good."""
    import_extra("mne", "gyri-dripp[mne]", "to read a recording")
    if not is_raw(raw):
        raise ValueError(f"raw: expected mne.io.BaseRaw, got {type(raw).__name__}")
    if picks is None:
        picks = pick_data(raw.info)
        if not picks.size:
            raise ValueError("raw: expected data channels (MEG, EEG, ...), got none")
    chosen = raw.copy().pick(picks, exclude=(), verbose="error")
    x = chosen.get_data(reject_by_annotation="NaN", verbose="error")
    mask = np.isfinite(x).all(0)
    if not mask.any():
        raise ValueError("raw: expected some samples outside bad spans, got none")
    return chosen, np.where(mask, x, 0), mask


def _scale(raw: Any, x: np.ndarray, mask: np.ndarray) -> Float[np.ndarray, "n_channels 1"]:
    """Standard deviation of all channels of a channel's type, which may have another unit."""
    types = np.array(raw.get_channel_types())
    scale = np.ones((len(types), 1))
    for one in np.unique(types):
        deviation = x[types == one][:, mask].std()
        if deviation == 0:
            raise ValueError(f"raw: expected a signal, got constant channels of type {one}")
        scale[types == one] = deviation
    return scale


def _step(state: LearnState, i: Array, data: LearnData) -> tuple[LearnState, dict[str, Array]]:
    """One iteration of `scan_chunks`; one function for all fits, so that equal shapes compile once."""
    options: dict[str, Any] = {"rank1": True, "positive": True, "n_sweeps": _SWEEPS, "n_steps": _STEPS}
    state = jax.lax.cond(state.converged, lambda s: s, lambda s: learn_step(data, s, _REST, **options), state)
    return state, {"loss": state.objective}


def _at_rest(state: LearnState) -> Array:
    return state.converged


@jax.jit
def _finish(data: LearnData, state: LearnState) -> LearnState:
    return finish_learning(data, state, _TOL_FINAL, positive=True)


def _learn(
    key: Array,
    signal: Array,
    mask: Any,
    n_atoms: int,
    n_times_atom: int,
    reg: float,
    lam: Any,
    max_iter: int,
    progress: bool,
) -> tuple[LearnState, Array]:
    """Learn a dictionary from one random start."""
    from scipy.signal.windows import tukey

    window = np.maximum(tukey(n_times_atom), 1e-9)  # atoms fade in and out
    atoms = init_atoms(key, signal, n_atoms, n_times_atom, method="kmeans", mask=mask, rank1=True, window=window)
    if lam is None:
        lam = jnp.full(n_atoms, reg * csc_lambda_max(atoms, signal))
    data = LearnData(signal, lam, mask, jnp.asarray(window, signal.dtype), None)
    state = start_learning(data, confine(atoms, rank1=True))
    state, _ = scan_chunks(
        _step, state, max_iter, args=(data,), chunk=_CHUNK, desc="atoms", progress=progress, stop=_at_rest
    )
    if not jnp.any(state.codes != 0):
        warnings.warn(f"reg={reg:g}: no atom is active; choose a smaller one", stacklevel=3)
    return _finish(data, state), lam
