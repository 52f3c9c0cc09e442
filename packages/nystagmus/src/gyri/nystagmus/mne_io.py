"""Recordings of MNE in and out: gaze in degrees, blinks as masks, results as recordings."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from gyri.numerics.recordings import find_bad_samples, is_raw
from gyri.numerics.validation import check_array, check_scalar, import_extra


class Signal(NamedTuple):
    """What the estimators take out of an MNE object.

    Attributes
    ----------
    data : np.ndarray of float64, shape (n_trials, n_channels, n_times)
        In the channels' units; NaN where not known.
    mask : np.ndarray of bool, same shape
        False where the data are NaN or annotated as bad.
    sfreq : float
        Sampling frequency in Hz.
    ch_names : tuple of str
        Names of the channels.
    """

    data: Float[np.ndarray, "n_trials n_channels n_times"]
    mask: Bool[np.ndarray, "n_trials n_channels n_times"]
    sfreq: float
    ch_names: tuple[str, ...]


def _mne() -> Any:
    return import_extra("mne", "gyri-nystagmus[mne]", "for objects of MNE")


def read_signal(inst: Any, picks: Any = None) -> Signal:
    """Take data, mask, sampling frequency and names out of a recording or epochs.

    Parameters
    ----------
    inst : mne.io.Raw or mne.Epochs
        The recording. Annotations that begin with "BAD" and NaN become mask.
    picks : str, list or None
        Channels, as MNE takes them; by default those of gaze, or all data channels if there are none.

    Returns
    -------
    Signal
        One trial of a recording, one an epoch of epochs.

    Raises
    ------
    ValueError
        If no channel is left.
    """
    kinds = inst.get_channel_types()
    if picks is not None or "eyegaze" in kinds:
        index = _pick(inst, "eyegaze" if picks is None else picks)
    else:
        # To MNE 1.10 and older, pupils are data.
        index = [i for i in _pick(inst, "data") if kinds[i] != "pupil"]
    names = tuple(inst.ch_names[i] for i in index)
    if is_raw(inst):
        data = np.asarray(inst.get_data(picks=index), np.float64)[None]
        annotated = np.isnan(inst.get_data(picks=index, reject_by_annotation="NaN", verbose="error"))[None]
    else:
        data = np.asarray(inst.get_data(picks=index, copy=True), np.float64)
        annotated = np.broadcast_to(find_bad_samples(inst)[:, None], data.shape)
    return Signal(data, ~(annotated | np.isnan(data)), float(inst.info["sfreq"]), names)


def _pick(inst: Any, picks: Any) -> list[int]:
    """Indices of channels, through the public `pick` of a recording without data."""
    mne = _mne()
    empty = mne.io.RawArray(np.zeros((len(inst.ch_names), 1)), inst.info.copy(), verbose="error")
    try:
        chosen = empty.pick(picks, verbose="error").ch_names
    except ValueError as error:
        raise ValueError(f"picks: expected channels of {inst.ch_names}, got {picks!r}: {error}") from error
    return [inst.ch_names.index(name) for name in chosen]


def to_mne(data: Any, inst: Any, ch_names: Any = None) -> Any:
    """Results as a recording or epochs like those that were put in.

    Parameters
    ----------
    data : array-like, shape (n_trials, n_channels, n_times)
        `trend_`, `detrended_` or `pattern_signal_` of an estimator; NaN stay NaN.
    inst : mne.io.Raw or mne.Epochs
        What the estimator was fitted to.
    ch_names : sequence of str, optional
        The channels that `data` holds, `ch_names_` of the estimator; all by default.

    Returns
    -------
    mne.io.RawArray or mne.EpochsArray
        With these channels only; times, events and annotations are kept.

    Raises
    ------
    ValueError
        If the shape does not fit.

    Examples
    --------
    >>> import mne
    >>> info = mne.create_info(["x", "y"], 100.0, "eyegaze")
    >>> raw = mne.io.RawArray(np.ones((2, 50)), info, verbose="error")
    >>> to_mne(np.zeros((1, 1, 50)), raw, ["y"]).get_data().shape
    (1, 50)
    """
    mne = _mne()
    names = list(inst.ch_names if ch_names is None else ch_names)
    raw = is_raw(inst)
    n_trials, n_times = (1, int(inst.n_times)) if raw else (len(inst), len(inst.times))
    data = np.asarray(check_array(data, "data", shape=(n_trials, len(names), n_times), allow_nan=True), np.float64)
    info = mne.pick_info(inst.info, _pick(inst, names), copy=True)
    if raw:
        result = mne.io.RawArray(data[0], info, first_samp=inst.first_samp, copy="both", verbose="error")
        # Without a date, MNE takes onsets from the first sample and gives them back from the measurement's start.
        shift = inst.first_time if inst.annotations.orig_time is None else 0.0
        return result.set_annotations(_without_channels(inst.annotations, shift), verbose="error")
    result = mne.EpochsArray(
        data, info, inst.events, tmin=inst.tmin, event_id=inst.event_id, proj=False, verbose="error"
    )
    return result.set_annotations(_without_channels(inst.annotations)) if inst.annotations is not None else result


def _without_channels(annotations: Any, shift: float = 0.0) -> Any:
    """Annotations without names of channels, some of which may be gone."""
    mne = _mne()
    return mne.Annotations(
        annotations.onset - shift, annotations.duration, annotations.description, orig_time=annotations.orig_time
    )


def gaze_to_degrees(
    raw: Any,
    calibration: Any = None,
    *,
    screen_size_m: Any = None,
    screen_resolution: Any = None,
    distance_m: float | int | None = None,
) -> Any:
    """Gaze in degrees of visual angle.

    Parameters
    ----------
    raw : mne.io.Raw or mne.Epochs
        With gaze in pixels, or in radians already.
    calibration : mne.preprocessing.eyetracking.Calibration, optional
        With size, resolution and distance of the screen. Otherwise give these:
    screen_size_m : pair of float, optional
        Width and height in metres.
    screen_resolution : pair of int, optional
        Width and height in pixels.
    distance_m : float, optional
        From eye to screen in metres.

    Returns
    -------
    mne.io.Raw or mne.Epochs
        A copy. MNE has no unit "degree": gaze channels become channels without unit.

    Raises
    ------
    ValueError
        If there is no channel of gaze, or the screen is not described.

    Examples
    --------
    >>> import mne
    >>> raw = mne.io.RawArray(np.full((1, 10), 1440.0), mne.create_info(["xpos"], 100.0, "eyegaze"), verbose="error")
    >>> raw = mne.preprocessing.eyetracking.set_channel_types_eyetrack(raw, {"xpos": ("eyegaze", "px", "left", "x")})
    >>> screen = {"screen_size_m": (0.5, 0.3), "screen_resolution": (1920, 1080), "distance_m": 0.7}
    >>> round(float(gaze_to_degrees(raw, **screen).get_data()[0, 0]), 3)  # a quarter of the width from the centre
    10.125
    """
    from mne._fiff.constants import FIFF

    mne = _mne()
    gaze = [i for i, kind in enumerate(raw.get_channel_types()) if kind == "eyegaze"]
    if not gaze:
        raise ValueError(f"raw: expected channels of type eyegaze, got {sorted(set(raw.get_channel_types()))}")
    converted = raw.copy().load_data(verbose="error")
    if any(converted.info["chs"][i]["unit"] == FIFF.FIFF_UNIT_PX for i in gaze):
        if calibration is None:
            calibration = _screen(screen_size_m, screen_resolution, distance_m)
        with mne.utils.use_log_level("error"):
            converted = mne.preprocessing.eyetracking.convert_units(converted, calibration, to="radians")
    units = {int(converted.info["chs"][i]["unit"]) for i in gaze}
    if units != {int(FIFF.FIFF_UNIT_RAD)}:
        raise ValueError("raw: expected gaze in pixels or radians, as MNE's set_channel_types_eyetrack states it")
    # Not the ufunc itself: older MNE looks at the function's signature, and NumPy's older ufuncs have none.
    converted.apply_function(
        lambda radians: np.rad2deg(radians), picks=[converted.ch_names[i] for i in gaze], verbose="error"
    )
    for i in gaze:
        converted.info["chs"][i]["unit"] = FIFF.FIFF_UNIT_NONE
    return converted


def _screen(size: Any, resolution: Any, distance: Any) -> Any:
    """A calibration of MNE that knows the screen and nothing else."""
    mne = _mne()
    for name, value, wanted in (
        ("screen_size_m", size, "width and height in metres"),
        ("screen_resolution", resolution, "width and height in pixels"),
        ("distance_m", distance, "metres from eye to screen"),
    ):
        if value is None:
            raise ValueError(f"{name}: expected {wanted}, or a calibration, got None")
    return mne.preprocessing.eyetracking.Calibration(
        onset=0.0,
        model="",
        eye="",
        avg_error=np.nan,
        max_error=np.nan,
        positions=np.zeros((0, 2)),
        offsets=np.zeros(0),
        gaze=np.zeros((0, 2)),
        screen_size=tuple(check_scalar(x, "screen_size_m", minimum=0, strict=True) for x in size),
        screen_distance=check_scalar(distance, "distance_m", minimum=0, strict=True),
        screen_resolution=tuple(check_scalar(x, "screen_resolution", minimum=0, strict=True) for x in resolution),
    )


def blink_mask(raw: Any, buffer: float | int = 0.1) -> Bool[np.ndarray, " n_times"]:
    """Samples that no blink spoils, as the estimators' `mask` takes them.

    Parameters
    ----------
    raw : mne.io.Raw
        A blink is annotated ``BAD_blink`` (any annotation that holds these words), or makes gaze NaN, or a pupil's size
        zero or NaN.
    buffer : float
        Seconds before and after a blink that are left out as well: the lid moves.

    Returns
    -------
    np.ndarray of bool, shape (n_times,)
        True where valid.

    Raises
    ------
    ValueError
        If `buffer` is negative.

    Examples
    --------
    >>> import mne
    >>> info = mne.create_info(["xpos", "pupil"], 10.0, ["eyegaze", "pupil"])
    >>> data = np.ones((2, 8)); data[1, 3] = 0
    >>> blink_mask(mne.io.RawArray(data, info, verbose="error"), buffer=0.1).tolist()
    [True, True, False, False, False, True, True, True]
    """
    buffer = check_scalar(buffer, "buffer", minimum=0)
    sfreq, n_times = raw.info["sfreq"], raw.n_times
    kinds = np.array(raw.get_channel_types())
    blink = np.zeros(n_times, bool)
    for kind, lost in (("eyegaze", np.isnan), ("pupil", lambda size: np.isnan(size) | (size == 0))):
        index = np.flatnonzero(kinds == kind)
        if index.size:
            blink |= lost(raw.get_data(picks=index)).any(0)
    times = raw.times
    for onset, duration, description in zip(  # onsets count from the start of the measurement
        raw.annotations.onset - raw.first_time, raw.annotations.duration, raw.annotations.description, strict=True
    ):
        if "bad_blink" in description.lower():
            blink |= (times > onset - 0.5 / sfreq) & (times < onset + duration + 0.5 / sfreq)
    from scipy.ndimage import binary_dilation

    margin = round(buffer * sfreq)
    return ~(binary_dilation(blink, np.ones(2 * margin + 1, bool)) if margin else blink)
