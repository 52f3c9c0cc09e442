"""From EEG with eyes open and closed to an observation, and filters that simulations go through as well."""

from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gyri.numerics.validation import check_array, check_option, check_scalar, import_extra


@lru_cache(maxsize=32)
def _filter_taps(sfreq: float, l_freq: float, h_freq: float) -> np.ndarray:
    """Windowed-sinc band-pass filter (Hamming), whose transition below is as wide as MNE chooses it."""
    from scipy.signal import firwin

    transition = min(max(0.25 * l_freq, 2.0), l_freq)
    n_taps = int(np.ceil(3.3 * sfreq / transition)) | 1
    return firwin(n_taps, [l_freq - transition / 2, h_freq], window="hamming", pass_zero=False, fs=sfreq)


def bandpass(
    x: Any, sfreq: float | int = 128.0, l_freq: float | int = 3.0, h_freq: float | int = 40.0
) -> Float[Array, "*n n_times"]:
    """Band-pass filter without delay, in JAX: simulations can go through the very filter that the recordings had.

    Parameters
    ----------
    x : array, shape (..., n_times)
        Recordings; they are continued at both ends by reflection.
    sfreq : float
        Samples a second.
    l_freq, h_freq : float
        Ends of the band, Hz.

    Returns
    -------
    Array, shape (..., n_times)
        Filtered.

    Raises
    ------
    ValueError
        A band that is empty or reaches beyond half the sampling frequency, or a recording that is too short.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.eeg import bandpass
    >>> t = jnp.arange(1024) / 128
    >>> slow, alpha = jnp.sin(2 * jnp.pi * t), jnp.sin(2 * jnp.pi * 10 * t)
    >>> bool(jnp.abs(bandpass(slow + alpha) - alpha)[100:-100].max() < 0.05)
    True
    """
    sfreq = check_scalar(sfreq, "sfreq", minimum=0, strict=True)
    l_freq = check_scalar(l_freq, "l_freq", minimum=0, strict=True)
    h_freq = check_scalar(h_freq, "h_freq", minimum=0, strict=True)
    if not l_freq < h_freq < sfreq / 2:
        raise ValueError(f"h_freq: expected l_freq < h_freq < sfreq / 2 = {sfreq / 2:g}, got {l_freq:g} and {h_freq:g}")
    x = jnp.asarray(check_array(x, "x", allow_nan=True))
    taps = _filter_taps(sfreq, l_freq, h_freq)
    half = len(taps) // 2
    n_times = x.shape[-1]
    if n_times <= half:
        raise ValueError(f"x: expected more than {half} samples for this band, got shape {x.shape}")
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(half, half)], mode="reflect")
    size = 2 ** int(np.ceil(np.log2(padded.shape[-1] + len(taps))))
    response = np.fft.rfft(taps, size).astype(np.complex64 if x.dtype == jnp.float32 else np.complex128)
    filtered = jnp.fft.irfft(jnp.fft.rfft(padded, size, axis=-1) * response, size, axis=-1)
    return filtered[..., 2 * half : 2 * half + n_times]


def alpha_waves_observation(
    epochs: Any,
    picks: str = "Oz",
    l_freq: float | int | None = 3.0,
    h_freq: float | int | None = 40.0,
    sfreq: float | int = 128.0,
    x0_event: str = "closed",
    context: str | None = "all",
) -> tuple[np.ndarray, np.ndarray]:
    """Observation from epochs with eyes closed and open: one recording of interest, and others of the same subject.

    The signal is resampled, filtered by :func:`bandpass` and centred; simulations should go through the same filter, as
    in ``summary=lambda x: log_psd(bandpass(x))``. (The authors' later code filters the data only: then pass
    ``summary=log_psd``.)

    Parameters
    ----------
    epochs : mne.Epochs
        With conditions named in their ``event_id``, ``"closed"`` and ``"open"``.
    picks : str
        A channel.
    l_freq, h_freq : float or None
        Band, Hz; None for both does not filter.
    sfreq : float
        Samples a second of the result.
    x0_event : str
        Condition of the recording of interest: its first epoch.
    context : {"all", "closed", "open"} or None
        Which other epochs to take along: all, those of a condition, none.

    Returns
    -------
    x : numpy.ndarray, shape (n_times,)
        The recording of interest, microvolts.
    x_extra : numpy.ndarray, shape (N, n_times)
        The others, in the order of time.

    Raises
    ------
    ValueError
        An unknown condition or channel, no epoch, no `mne.Epochs`.

    Examples
    --------
    >>> import mne, numpy as np
    >>> from gyri.hnpe.eeg import alpha_waves_observation
    >>> data = 1e-5 * np.random.default_rng(0).normal(size=(4, 1, 2048))
    >>> events = np.c_[2048 * np.arange(4), np.zeros(4, int), [1, 2, 1, 2]]
    >>> info = mne.create_info(["Oz"], 256.0, "eeg")
    >>> options = {"event_id": {"closed": 1, "open": 2}, "verbose": "error"}
    >>> x, x_extra = alpha_waves_observation(mne.EpochsArray(data, info, events, **options), context="open")
    >>> x.shape, x_extra.shape
    ((1024,), (2, 1024))

    References
    ----------
    Rodrigues, Moreau, Louppe, Gramfort (2021); Cattan, Rodrigues, Congedo (2018), EEG alpha waves dataset.
    """
    check_option(context, "context", ("all", "closed", "open", None))
    if (l_freq is None) != (h_freq is None):
        raise ValueError(f"h_freq: expected both ends of the band or None for both, got {l_freq} and {h_freq}")
    if not hasattr(epochs, "event_id") or not hasattr(epochs, "resample"):
        raise ValueError(f"epochs: expected mne.Epochs, got {type(epochs).__name__}")
    if picks not in epochs.ch_names:
        raise ValueError(f"picks: expected one of {', '.join(epochs.ch_names)}, got {picks!r}")
    for name, label in ((x0_event, "x0_event"), (context, "context")):
        if name not in (None, "all") and name not in epochs.event_id:
            raise ValueError(f"{label}: expected one of {', '.join(epochs.event_id)}, got {name!r}")
    one = epochs.copy().load_data().pick([picks])
    # Whole samples of the epoch's duration; rounded first, since 1001 / 250 * 250 is below 1001.
    n_times = int(round(one.get_data(copy=False).shape[-1] / one.info["sfreq"] * sfreq, 6))
    if one.info["sfreq"] != sfreq:
        one = one.resample(sfreq, verbose="error")
    data = 1e6 * one.get_data(copy=True)[:, 0, :n_times]
    if l_freq is not None and h_freq is not None:
        data = np.asarray(bandpass(data, sfreq, l_freq, h_freq), data.dtype)
    data = data - data.mean(-1, keepdims=True)
    codes = one.events[:, 2]
    matching = np.flatnonzero(codes == one.event_id[x0_event])
    if len(matching) == 0:
        raise ValueError(f"epochs: expected at least one of {x0_event!r}, got none")
    first = matching[0]
    chosen = np.arange(len(codes)) != first
    if context is None:
        chosen[:] = False
    elif context != "all":
        chosen &= codes == one.event_id[context]
    return data[first], data[chosen]


def load_alpha_waves(subject: int) -> Any:
    """Download the epochs of a subject of the alpha waves dataset, five with eyes closed and five with eyes open.

    Needs the internet and ``pip install "gyri-hnpe[alphawaves]"``.

    Parameters
    ----------
    subject : int
        1 to 19.

    Returns
    -------
    mne.Epochs
        Of 8 s each.

    Raises
    ------
    ImportError
        Without MOABB.

    References
    ----------
    Cattan, Rodrigues, Congedo (2018), EEG alpha waves dataset, Zenodo.
    """
    mne = import_extra("mne", "gyri-hnpe[alphawaves]", "to read the recordings")
    Rodrigues2017 = import_extra("moabb.datasets", "gyri-hnpe[alphawaves]", "to load the recordings").Rodrigues2017
    sessions = Rodrigues2017().get_data([subject])[subject]
    raw = next(iter(next(iter(sessions.values())).values()))
    events = mne.find_events(raw, shortest_event=0, verbose="error")
    options = {"tmin": 1.0, "tmax": 9.0, "baseline": None, "preload": True, "verbose": "error"}
    return mne.Epochs(raw, events, {"closed": 1, "open": 2}, **options)
