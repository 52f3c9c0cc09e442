"""The lag table: all that the likelihood needs of event times and driver times, built once on the host in float64.

For every event, the delays since the driver events that may have triggered it. Events with the same delays are merged
into one row with a multiplicity, so that on a sampling grid the size of the table does not depend on the number of
events.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from gyri.numerics.validation import check_array, check_scalar

_OFF_GRID = 1e-3  # samples
_GRID_GUARD = 1e-6  # samples: 0.1 s at 150 Hz is 15.000000000000002
_DENSE_KEYS = 1 << 22  # up to so many possible rows are counted by bincount, more by sorting
_KEY_BITS = 62
_CHUNK = 1 << 18  # events at a time
_SMALL = 4096  # rows of a table up to which it has a power of two of slots
_THREADS = min(4, os.cpu_count() or 1)
_ARRAYS = (
    "lag",
    "driver",
    "weight",
    "n_outside",
    "n_full",
    "n_exposed",
    "cut",
    "covered",
    "lower",
    "upper",
    "duration",
    "sfreq",
)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=_ARRAYS,
    meta_fields=["n_atoms", "n_drivers", "names"],
)
@dataclass(frozen=True)
class LagTable:
    """Delays between events and the driver events before them, ready for `em` and `negative_log_likelihood`.

    A pytree; made by `lag_table`. With a list of ``K`` event sequences every array has a leading axis ``K``.

    Attributes
    ----------
    lag : Array, shape (n_slots, n_padded_rows)
        Delays in seconds; a row is a column of this array, its slots are padded with `lower`.
    driver : Array of int, shape (n_slots, n_padded_rows)
        Index of the driver of each delay, -1 in padded slots.
    weight : Array, shape (n_padded_rows,)
        How many events share the row; 0 in padded rows.
    n_outside : Array, shape ()
        Number of events that no driver event can have triggered.
    n_full, n_exposed : Array, shape (n_drivers,)
        Number of driver events whose window is seen whole, and in part at least.
    cut : Array, shape (n_drivers, n_cut, 2)
        Seen interval of delays of each driver event whose window is cut; padded with empty intervals.
    covered : Array, shape ()
        Seconds of the recording that lie in the window of some driver event.
    lower, upper, duration, sfreq : Array, shape ()
        Window (seconds), duration of the recording (seconds), sampling frequency in Hz (0 off a grid).
    n_atoms : int or None
        ``K``, or None for one sequence of events.
    n_drivers : int
        ``P``.
    names : tuple of str
        Names of the drivers.
    """

    lag: Float[Any, "*atoms n_slots n_padded_rows"]
    driver: Int[Any, "*atoms n_slots n_padded_rows"]
    weight: Float[Any, "*atoms n_padded_rows"]
    n_outside: Float[Any, "*atoms"]
    n_full: Float[Any, "*atoms n_drivers"]
    n_exposed: Float[Any, "*atoms n_drivers"]
    cut: Float[Any, "*atoms n_drivers n_cut 2"]
    covered: Float[Any, "*atoms"]
    lower: Float[Any, "*atoms"]
    upper: Float[Any, "*atoms"]
    duration: Float[Any, "*atoms"]
    sfreq: Float[Any, "*atoms"]
    n_atoms: int | None
    n_drivers: int
    names: tuple[str, ...]

    @property
    def n_rows(self) -> Any:
        """Number of distinct rows, padding not counted: int, or int array of shape (K,)."""
        return _counted(self, (np.asarray(self.weight) > 0).sum(-1))

    @property
    def n_events(self) -> Any:
        """Number of events: int, or int array of shape (K,)."""
        weight = np.asarray(self.weight, np.float64).sum(-1)
        return _counted(self, np.rint(weight + np.asarray(self.n_outside, np.float64)))


def _counted(table: LagTable, count: Any) -> Any:
    return int(count) if table.n_atoms is None else count.astype(int)


class Times(NamedTuple):
    """Validated input on the host: float64, sorted."""

    events: list[np.ndarray]
    drivers: list[np.ndarray]
    names: tuple[str, ...]
    batched: bool
    t_start: float
    t_stop: float
    lower: float
    upper: float


def lag_table(
    events: Any,
    drivers: Any,
    *,
    lower: float,
    upper: float,
    t_stop: float,
    t_start: float = 0.0,
    sfreq: float | None = None,
    edge: bool = True,
    compress: bool | None = None,
    resolution: float | None = None,
    dtype: Any = None,
) -> LagTable:
    r"""Collect the delays from driver events to events that lie in ``[lower, upper]``.

    Parameters
    ----------
    events : array-like, shape (n_events,), or list of K of them
        Event times in seconds, in ``[t_start, t_stop]``, in any order; duplicates count. A list of sequences (the
        events of several atoms) gives every array of the result a leading axis ``K``.
    drivers : array-like, list of array-like, dict of array-like, or None
        Times of the driver events in seconds, in any order; they may lie outside ``[t_start, t_stop]``.
    lower, upper : float
        Window of delays in seconds, ``0 <= lower < upper``, closed at both ends.
    t_stop, t_start : float
        Observation window in seconds.
    sfreq : float, optional
        Sampling frequency in Hz, if all times lie on one sampling grid. Delays are then exact multiples of ``1 /
        sfreq``.
    edge : bool
        Correct for driver events whose window is cut by the ends of the recording. False counts each as seen whole, as
        the paper's code does.
    compress : bool, optional
        Merge events with the same delays. By default on a grid, or with `resolution`, only.
    resolution : float, optional
        Round the delays to multiples of this many seconds, off a grid; an approximation with an error of order
        ``(resolution / sigma) ** 2``.
    dtype : dtype, optional
        Floating dtype of the arrays; JAX's default if None. Delays are formed in float64 whatever it is.

    Returns
    -------
    LagTable
        The table, as NumPy arrays: they move to the device when a compiled function first takes them.

    Raises
    ------
    ValueError
        If an argument has the wrong shape, is not finite, lies outside its range, or off the grid of `sfreq`.

    Notes
    -----
    Costs ``O((n_events + n_driver_events) log)`` operations and no Python loop over events. Allain, Gramfort, Moreau
    (2022), section 3.

    Examples
    --------
    >>> table = lag_table([0.3, 0.9, 1.4], [0.1, 0.6, 1.2], lower=0.0, upper=0.4, t_stop=2.0)
    >>> table.n_events, table.n_rows, table.n_drivers
    (3, 3, 1)
    >>> round(float(table.lag.max()), 3)
    0.3
    """
    times = check_times(events, drivers, lower=lower, upper=upper, t_stop=t_stop, t_start=t_start)
    if sfreq is not None:
        sfreq = check_scalar(sfreq, "sfreq", minimum=0, strict=True)
    if resolution is not None:
        resolution = check_scalar(resolution, "resolution", minimum=0, strict=True)
        if sfreq is not None:
            raise ValueError("resolution: expected None when sfreq is given, since delays on a grid are exact")
        if compress is False:
            raise ValueError("compress: expected None or True with a resolution, which merges equal delays, got False")
    if compress is None:
        compress = sfreq is not None or resolution is not None
    dtype = jax.dtypes.canonicalize_dtype(np.float64 if dtype is None else dtype)
    full, exposed, cut = _exposure(times, edge)
    rows = _rows(times, sfreq, compress, resolution)
    n_atoms, n_drivers = len(times.events), len(times.drivers)
    shared = {
        "n_full": np.broadcast_to(full, (n_atoms, n_drivers)),
        "n_exposed": np.broadcast_to(exposed, (n_atoms, n_drivers)),
        "cut": np.broadcast_to(cut, (n_atoms, *cut.shape)),
        "covered": np.full(n_atoms, _covered(times)),
        "lower": np.full(n_atoms, times.lower),
        "upper": np.full(n_atoms, times.upper),
        "duration": np.full(n_atoms, times.t_stop - times.t_start),
        "sfreq": np.full(n_atoms, sfreq or 0.0),
    }
    arrays = rows | {name: value.astype(dtype) for name, value in shared.items()}
    arrays = {
        name: value if name == "driver" else np.asarray(value).astype(dtype, copy=False)
        for name, value in arrays.items()
    }
    if not times.batched:
        arrays = {name: value[0] for name, value in arrays.items()}
    return LagTable(**arrays, n_atoms=n_atoms if times.batched else None, n_drivers=n_drivers, names=times.names)


# --- input ------------------------------------------------------------------------------------------------------------


def check_times(events: Any, drivers: Any, *, lower: float, upper: float, t_stop: float, t_start: float = 0.0) -> Times:
    """Validate and sort event and driver times (seconds, float64); a ValueError names the argument."""
    lower, upper = check_window(lower, upper)
    t_start, t_stop = check_scalar(t_start, "t_start"), check_scalar(t_stop, "t_stop")
    if not t_start < t_stop:
        raise ValueError(f"t_stop: expected more than t_start = {t_start:g}, got {t_stop:g}")
    batched = is_batch(events)
    sequences = list(events) if batched else [events]
    checked = []
    for k, sequence in enumerate(sequences):
        name = f"events[{k}]" if batched else "events"
        sequence = check_sequence(sequence, name)
        if sequence.size and (sequence[0] < t_start or sequence[-1] > t_stop):
            worst = sequence[0] if sequence[0] < t_start else sequence[-1]
            raise ValueError(f"{name}: expected times in [{t_start:g}, {t_stop:g}] s, got {worst:g}")
        checked.append(sequence)
    driver_times, names = check_drivers(drivers)
    return Times(checked, driver_times, names, batched, t_start, t_stop, lower, upper)


def check_window(lower: float, upper: float) -> tuple[float, float]:
    """Return the window of delays if ``0 <= lower < upper``, both finite."""
    lower, upper = check_scalar(lower, "lower", minimum=0.0), check_scalar(upper, "upper")
    if not lower < upper:
        raise ValueError(f"upper: expected more than lower = {lower:g}, got {upper:g}")
    return lower, upper


def is_batch(events: Any) -> bool:
    """Whether `events` is a list of sequences (one an atom) rather than one sequence of times."""
    if _is_array(events):
        if np.ndim(events) != 1:
            raise ValueError(
                f"events: expected shape (n_events,) or a list of such arrays, got an array of shape {np.shape(events)}"
            )
        return False
    if not isinstance(events, (Sequence, np.ndarray)) or isinstance(events, str):
        raise ValueError(f"events: expected times or a list of arrays of times, got {type(events).__name__}")
    return len(events) > 0 and any(np.ndim(sequence) > 0 for sequence in events)


def _is_array(times: Any) -> bool:
    """Whether `times` is an array of NumPy, JAX, pandas..., and not one of objects."""
    return hasattr(times, "__array__") and str(getattr(times, "dtype", "")) != "object"


def check_drivers(drivers: Any) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Return the driver times as a list of sorted float64 arrays, and their names."""
    if drivers is None:
        return [], ()
    if isinstance(drivers, Mapping):
        names, sequences = tuple(str(name) for name in drivers), list(drivers.values())
        labels = [f"drivers[{name!r}]" for name in names]
    else:
        if _is_array(drivers):
            sequences = [drivers]
        elif isinstance(drivers, (Sequence, np.ndarray)) and not isinstance(drivers, str):
            several = any(np.ndim(times) > 0 for times in drivers)
            sequences = list(drivers) if several or len(drivers) == 0 else [drivers]
        else:
            raise ValueError(f"drivers: expected times, a list or a dict of them, got {type(drivers).__name__}")
        names = tuple(f"driver {p}" for p in range(len(sequences)))
        labels = [f"drivers[{p}]" for p in range(len(sequences))]
    return [check_sequence(times, label) for times, label in zip(sequences, labels, strict=True)], names


def check_sequence(times: Any, name: str) -> np.ndarray:
    """Return finite 1-D times as a sorted float64 array."""
    # NumPy first: JAX would round to float32, unless its double precision is switched on.
    times = np.asarray(times) if isinstance(times, jax.Array) else times
    array = np.asarray(check_array(times, name, ndim=1, dtype=np.float64, allow_empty=True))
    return array if np.all(array[1:] >= array[:-1]) else np.sort(array)


def pad_size(n: int) -> int:
    """Size to which `n` rows are padded, so that few different shapes are ever compiled."""
    octave = 1 << max(n - 1, 0).bit_length()
    step = octave if octave <= 1 << 16 else octave // 16
    return max(-(-n // step) * step, 1)


# --- windows ----------------------------------------------------------------------------------------------------------


def _exposure(times: Times, edge: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the windows seen whole and in part, and list the seen interval of those that are cut."""
    if not edge:
        count = np.array([d.size for d in times.drivers], np.float64)
        return count, count, np.zeros((len(times.drivers), 0, 2))
    full: list[int] = []
    exposed: list[int] = []
    parts: list[np.ndarray] = []
    for driver in times.drivers:
        first, last = times.t_start - driver, times.t_stop - driver
        seen = (last > times.lower) & (first < times.upper)
        whole = (first <= times.lower) & (last >= times.upper)
        part = seen & ~whole
        full.append(whole.sum())
        exposed.append(seen.sum())
        parts.append(np.clip(np.stack([first, last], -1)[part], times.lower, times.upper))
    n_cut = max((len(part) for part in parts), default=0)
    size = 1 << (n_cut - 1).bit_length() if n_cut else 0
    cut = np.empty((len(parts), size, 2))
    cut[..., 0], cut[..., 1] = times.upper, times.lower  # empty: nothing to see, nothing hidden
    for p, part in enumerate(parts):
        cut[p, : len(part)] = part
    return np.array(full, np.float64), np.array(exposed, np.float64), cut


def _covered(times: Times) -> float:
    """Length of the union of all windows, within the recording."""
    starts = np.concatenate([*times.drivers, np.empty(0)])
    if starts.size == 0:
        return 0.0
    starts.sort(kind="stable")  # a few sorted runs: merged in linear time
    left = np.clip(starts + times.lower, times.t_start, times.t_stop)
    right = np.clip(starts + times.upper, times.t_start, times.t_stop)
    right[:-1] = np.minimum(right[:-1], left[1:])
    return float((right - left).sum())


# --- rows -------------------------------------------------------------------------------------------------------------


class _Clock(NamedTuple):
    """Times in the units in which delays are compared: samples on a grid (integers), seconds off it."""

    events: np.ndarray
    drivers: list[np.ndarray]
    lower: Any
    upper: Any
    seconds: float  # of one unit


def _on_clock(times: Times, events: np.ndarray, sfreq: float | None) -> _Clock:
    if sfreq is None:
        return _Clock(events, times.drivers, times.lower, times.upper, 1.0)
    # The grid need not pass through zero: it is anchored at the first time that there is.
    origin = min((t[0] for t in [*times.events, *times.drivers] if t.size), default=0.0)
    labels = [f"drivers[{p}]" for p in range(len(times.drivers))]
    ticks = [_samples(t, origin, sfreq, label) for t, label in zip([events, *times.drivers], ["events", *labels])]
    lower = int(np.ceil(times.lower * sfreq - _GRID_GUARD))
    upper = int(np.floor(times.upper * sfreq + _GRID_GUARD))
    return _Clock(ticks[0], ticks[1:], lower, upper, 1 / sfreq)


def _samples(times: np.ndarray, origin: float, sfreq: float, name: str) -> np.ndarray:
    exact = (times - origin) * sfreq
    ticks = np.rint(exact)
    exact -= ticks
    if exact.size and max(exact.max(), -exact.min()) > _OFF_GRID:
        raise ValueError(
            f"{name}: expected times on a grid of sfreq = {sfreq:g} Hz, got one that is off by "
            f"{np.abs(exact).max():.3g} sample"
        )
    return ticks.astype(np.int64)


def most_in_window(driver: np.ndarray, lower: Any, upper: Any) -> int:
    """Bound on the slots of `delays`: the most driver events that lie in one closed window."""
    if driver.size == 0:
        return 0
    width = upper - lower
    if not np.issubdtype(driver.dtype, np.integer):  # allow for the rounding of a delay
        width += 8 * np.finfo(np.float64).eps * max(abs(driver[0]), abs(driver[-1]), upper)
    most = 1
    while most < driver.size and np.any(driver[most:] - driver[:-most] <= width):
        most += 1
    return most


def count_older(events: np.ndarray, driver: np.ndarray, age: Any) -> np.ndarray:
    """Count, for every event, the driver events at least `age` older, by the delay ``event - driver`` as computed."""
    if driver.size < events.size and np.all(events[1:] >= events[:-1]):
        # Search the fewer in the more, then count: half the time of the other way round.
        position = np.searchsorted(events, driver + age, side="left")
        count = np.cumsum(np.bincount(position, minlength=events.size + 1)[: events.size])
    else:
        count = np.searchsorted(driver, events - age, side="right")
    if np.issubdtype(events.dtype, np.integer) or driver.size == 0:
        return count
    # The search compares rounded sums, not delays: move the few counts that are out by a rounding.
    for step in (-1, 1):
        while True:
            at = np.minimum(count - 1, driver.size - 1) if step < 0 else np.minimum(count, driver.size - 1)
            old = events - driver[at] >= age
            wrong = (count > 0) & ~old if step < 0 else (count < driver.size) & old
            if not wrong.any():
                break
            count[wrong] += step
    return count


def delays(
    events: np.ndarray, driver: np.ndarray, lower: Any, upper: Any
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield, from the most recent driver event backwards, (slot, events' indices, delays) of all delays in the window.

    Both times are sorted (`events` in parts at least) and in one unit: integers, compared exactly, or floats, where
    the delay that is compared is the one that is returned. The number of slots is at most `most_in_window`.
    """
    if driver.size == 0 or events.size == 0:
        return
    last = count_older(events, driver, lower)
    rows = np.flatnonzero(last)
    last, events = last[rows] - 1, events[rows]
    slot = 0
    while rows.size:
        delay = events - driver[last]
        seen = np.flatnonzero(delay <= upper)  # indices: taken faster than a mask selects
        if seen.size < rows.size:
            rows, last, events, delay = rows[seen], last[seen], events[seen], delay[seen]
        if rows.size:
            yield slot, rows, delay
        more = np.flatnonzero(last)
        if more.size < rows.size:
            rows, last, events = rows[more], last[more], events[more]
        last, slot = last - 1, slot + 1


def _rows(times: Times, sfreq: float | None, compress: bool, resolution: float | None) -> dict[str, np.ndarray]:
    events = times.events[0] if len(times.events) == 1 else np.concatenate([*times.events, np.empty(0)])
    clock = _on_clock(times, events, sfreq)
    sizes = np.array([sequence.size for sequence in times.events])
    unit = 1.0 if sfreq is not None else resolution
    if compress and unit is not None:
        delay, driver, weight, atom, n_outside = _merged_rows(clock, sizes, unit)
    else:
        delay, driver, weight, atom, n_outside = _all_rows(clock, sizes, compress)
    delay = np.clip(delay * clock.seconds, times.lower, times.upper)
    return _pad(delay, driver, weight, atom, n_outside, len(times.events), times.lower, len(times.drivers))


_Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _all_rows(clock: _Clock, sizes: np.ndarray, compress: bool) -> _Rows:
    """One row an event (merged if their floating-point delays are equal, with `compress`)."""
    parts = _in_chunks(partial(_rows_of_chunk, clock), clock.events.size, _CHUNK)
    length = np.concatenate([np.zeros(0, np.int32), *(length for _, _, length in parts)])
    used = np.flatnonzero(length)
    shape = int(length.max(initial=0)), used.size
    lag, driver = np.zeros(shape), np.full(shape, -1, _driver_dtype(len(clock.drivers)))
    filled = 0
    for part_lag, part_driver, _ in parts:
        place = slice(len(part_lag)), slice(filled, filled + part_lag.shape[1])
        lag[place], driver[place] = part_lag, part_driver
        filled += part_lag.shape[1]
    atom = np.repeat(np.arange(sizes.size), sizes)
    outside = np.bincount(atom[length == 0], minlength=sizes.size)
    weight, atom = np.ones(used.size), atom[used]
    if compress and used.size:
        order = np.lexsort([*lag, *driver, atom])
        lag, driver, atom = lag[:, order], driver[:, order], atom[order]
        new = (
            np.any(np.diff(lag, axis=1) != 0, axis=0)
            | np.any(np.diff(driver, axis=1) != 0, axis=0)
            | (np.diff(atom) != 0)
        )
        start = np.flatnonzero(np.concatenate([[True], new]))
        weight = np.diff(np.append(start, used.size)).astype(np.float64)
        lag, driver, atom = lag[:, start], driver[:, start], atom[start]
    return lag, driver, weight, atom, outside


def _rows_of_chunk(clock: _Clock, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Delays and drivers of the events of one chunk that have any, and the number of delays of each event."""
    events = clock.events[start : start + _CHUNK]
    length = np.zeros(events.size, np.int32)
    found = []
    for p, driver in enumerate(clock.drivers):
        for _, rows, delay in delays(events, _near(driver, events, clock.upper), clock.lower, clock.upper):
            found.append((p, length[rows], rows, delay))
            length[rows] += 1
    used = length > 0
    index = np.cumsum(used) - 1
    shape = int(length.max(initial=0)), int(index[-1]) + 1
    lag, driver = np.zeros(shape), np.full(shape, -1, _driver_dtype(len(clock.drivers)))
    for p, slot, rows, delay in found:
        place = slot * shape[1] + index[rows]
        lag.ravel()[place], driver.ravel()[place] = delay, p
    return lag, driver, length


def _near(driver: np.ndarray, events: np.ndarray, upper: Any) -> np.ndarray:
    """Driver events that may lie in the window of some of the events: a chunk of a long recording sees few of them."""
    return driver[slice(*np.searchsorted(driver, [events.min() - upper - 1, events.max() + 1]))]


def _in_chunks(function: Callable[[int], Any], n: int, size: int) -> list[Any]:
    """Results of `function` for the starts of all chunks, on all cores: NumPy's loops run outside the GIL."""
    starts = range(0, n, size)
    with ThreadPoolExecutor(min(_THREADS, max(len(starts), 1))) as pool:
        return list(pool.map(function, starts))


class _Packing(NamedTuple):
    """How the delays of a row, in multiples of a unit, are packed in integers: one digit a slot, 0 for none."""

    n_slots: list[int]  # of each driver
    first: int  # delay of digit 1
    radix: int
    per_word: int
    n_words: int
    unit: float


def _packing(clock: _Clock, unit: float) -> _Packing:
    n_slots = [most_in_window(driver, clock.lower, clock.upper) for driver in clock.drivers]
    first, last = round(clock.lower / unit), round(clock.upper / unit)
    radix = last - first + 2
    per_word = max(int(_KEY_BITS // np.log2(radix)), 1)
    return _Packing(n_slots, first, radix, per_word, max(-(-sum(n_slots) // per_word), 1), unit)


def _packed(clock: _Clock, packing: _Packing, events: np.ndarray) -> Int[np.ndarray, "n_words n_events"]:
    """Rows of some events, packed."""
    words = np.zeros((packing.n_words, events.size), np.int64)
    position = 0
    for driver, slots in zip(clock.drivers, packing.n_slots):
        codes = _codes_on_grid if packing.unit == 1.0 else _codes
        for slot, rows, code in codes(events, _near(driver, events, clock.upper), clock, packing, slots):
            word, digit = divmod(position + slot, packing.per_word)
            words[word, rows] += code if digit == 0 else code * packing.radix**digit
        position += slots
    return words


def _codes(
    events: np.ndarray, driver: np.ndarray, clock: _Clock, packing: _Packing, n_slots: int
) -> Iterator[tuple[int, Any, np.ndarray]]:
    """Yield (slot, rows, digits) of delays that are rounded to multiples of a unit."""
    for slot, rows, delay in delays(events, driver, clock.lower, clock.upper):
        yield slot, rows, np.rint(delay / packing.unit).astype(np.int64) - (packing.first - 1)


def _codes_on_grid(
    events: np.ndarray, driver: np.ndarray, clock: _Clock, packing: _Packing, n_slots: int
) -> Iterator[tuple[int, Any, np.ndarray]]:
    """Yield the same as `_codes` for integer times; a delay out of the window gets digit 0 instead of leaving.

    Most events have a delay in the first slot, where gathers over all are faster than selections; few go on.
    """
    if driver.size == 0:
        return
    last = count_older(events, driver, clock.lower)
    before = np.concatenate([[events.min() - clock.upper - 1], driver])  # its delay is too long for any event
    rows: Any = slice(None)
    for slot in range(n_slots):
        code = events - before[last]
        code -= clock.lower - 1
        code *= code < packing.radix
        yield slot, rows, code
        again = np.flatnonzero(code)
        if slot + 1 == n_slots or again.size == 0:
            return
        rows = again if slot == 0 else rows[again]
        last, events = np.maximum(last[again] - 1, 0), events[again]


def _merged_rows(clock: _Clock, sizes: np.ndarray, unit: float) -> _Rows:
    """Merge rows with equal delays (multiples of `unit`): count their packed integers, a chunk of events at a time."""
    packing, n_atoms = _packing(clock, unit), sizes.size
    radix, per_word, n_words, depth = packing.radix, packing.per_word, packing.n_words, sum(packing.n_slots)
    n_keys = radix**depth * n_atoms
    dense = n_words == 1 and n_keys <= _DENSE_KEYS
    atom = np.repeat(np.arange(n_atoms), sizes) if n_atoms > 1 else None

    def count(start: int) -> Any:
        chunk = slice(start, start + size)
        words = _packed(clock, packing, clock.events[chunk])
        of_atom = np.zeros(words.shape[1], np.int64) if atom is None else atom[chunk]
        if not dense:
            return _count_rows(words, of_atom)
        return np.bincount(words[0] if atom is None else words[0] + of_atom * radix**depth, minlength=n_keys)

    size = max(_CHUNK // n_words, n_keys if dense else 1)
    parts = _in_chunks(count, clock.events.size, size)
    if dense:
        counts = sum(parts, np.zeros(n_keys, np.int64))
        key = np.flatnonzero(counts)
        weight, row_atom, words = counts[key], key // radix**depth, (key % radix**depth)[None]
    else:
        words, row_atom, weight = _join_counts(parts, n_words)
    empty = ~np.any(words, axis=0)
    outside = np.bincount(row_atom[empty], weights=weight[empty], minlength=n_atoms)
    words, row_atom, weight = words[:, ~empty], row_atom[~empty], weight[~empty]
    owner = np.repeat(np.arange(len(packing.n_slots)), packing.n_slots)
    digits = [words[s // per_word] // radix ** (s % per_word) % radix for s in range(depth)]
    return (*_compact(digits, owner, packing.first, unit, words.shape[1]), weight.astype(np.float64), row_atom, outside)


def _count_rows(words: np.ndarray, atom: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Sort rows of (atom, words), merge equal ones, add up their weights (1 each if None)."""
    if len(words) == 1 and not np.any(atom):
        order = None if weight is None else np.argsort(words[0])
        words = np.sort(words) if order is None else words[:, order]
    else:
        order = np.lexsort([*words, atom])
        words, atom = words[:, order], atom[order]
    changes = np.any(words[:, 1:] != words[:, :-1], axis=0) | (atom[1:] != atom[:-1])
    start = np.flatnonzero(np.concatenate([np.ones(min(atom.size, 1), bool), changes]))
    if weight is None:
        total = np.diff(np.append(start, atom.size))
    else:
        total = np.add.reduceat(weight[order], start) if start.size else weight[:0]
    return words[:, start], atom[start], total


def _join_counts(parts: list[tuple[np.ndarray, ...]], n_words: int) -> tuple[np.ndarray, ...]:
    """Merge the rows that `_count_rows` found in each of several parts."""
    none = np.zeros((n_words, 0), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    return _count_rows(*(np.concatenate(leaves, -1) for leaves in zip(none, *parts)))


def _compact(
    digits: list[np.ndarray], owner: np.ndarray, first: int, unit: float, n_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Unpack codes into delays and drivers, without the empty slots between them."""
    length = np.zeros(n_rows, np.int64)
    for code in digits:
        length += code > 0
    depth = int(length.max(initial=0))
    lag = np.zeros((depth, n_rows))
    driver = np.full((depth, n_rows), -1, _driver_dtype(int(owner.max(initial=0)) + 1))
    length[:] = 0
    for code, p in zip(digits, owner):
        rows = np.flatnonzero(code)
        lag[length[rows], rows] = (code[rows] + (first - 1)) * unit
        driver[length[rows], rows] = p
        length[rows] += 1
    return lag, driver


def _driver_dtype(n_drivers: int) -> Any:
    return np.int8 if n_drivers < 127 else np.int32


def _pad(
    delay: np.ndarray,
    driver: np.ndarray,
    weight: np.ndarray,
    atom: np.ndarray,
    n_outside: np.ndarray,
    n_atoms: int,
    lower: float,
    n_drivers: int,
) -> dict[str, np.ndarray]:
    """Stack the rows of all atoms, padded to a common size."""
    count = np.bincount(atom, minlength=n_atoms) if atom.size else np.zeros(n_atoms, np.int64)
    size, depth = pad_size(int(count.max(initial=0))), max(len(delay), 1)
    if size <= _SMALL:  # an empty slot costs less here than to compile for another number of them
        depth = 1 << (depth - 1).bit_length()
    if n_atoms == 1:
        shape, place = (depth, size), (slice(0, len(delay)), slice(0, atom.size))
        lags, owners, weights = np.full(shape, lower), np.full(shape, -1, _driver_dtype(n_drivers)), np.zeros((1, size))
        lags[place], owners[place], weights[0, : atom.size] = delay, driver, weight
        lags[owners < 0] = lower
        lags, owners = lags[None], owners[None]
    else:
        lags = np.full((n_atoms, depth, size), lower)
        owners = np.full((n_atoms, depth, size), -1, _driver_dtype(n_drivers))
        weights = np.zeros((n_atoms, size))
        position = np.arange(atom.size) - (np.cumsum(count) - count)[atom]
        for slot in range(len(delay)):
            owners[atom, slot, position] = driver[slot]
            lags[atom, slot, position] = np.where(driver[slot] < 0, lower, delay[slot])
        weights[atom, position] = weight
    return {"lag": lags, "driver": owners, "weight": weights, "n_outside": n_outside.astype(np.float64)}


# --- coarsening -------------------------------------------------------------------------------------------------------


def coarsen(table: LagTable, n_bins: int) -> LagTable:
    """Round the delays of a table to `n_bins` steps of the window and merge equal rows: a start for a fit off the grid.

    Parameters
    ----------
    table : LagTable
        Any table; its rows need not be distinct.
    n_bins : int
        Steps in ``[lower, upper]``.

    Returns
    -------
    LagTable
        Fewer rows with the same total weight; everything else is shared with `table`.
    """
    batched = table.n_atoms is not None
    lag, driver, weight = (
        np.asarray(x) if batched else np.asarray(x)[None] for x in (table.lag, table.driver, table.weight)
    )
    lower, upper = (float(np.ravel(x)[0]) for x in (table.lower, table.upper))
    n_atoms, depth, n_rows = lag.shape
    lag, driver = (np.moveaxis(x, 1, 0).reshape(depth, -1) for x in (lag, driver))
    weight = weight.ravel()
    radix = table.n_drivers * (n_bins + 1) + 1
    per_word = max(int(_KEY_BITS // np.log2(radix)), 1)
    n_words = -(-depth // per_word)

    def count(start: int) -> tuple[np.ndarray, ...]:
        chunk = slice(start, start + _CHUNK)
        row = start + np.flatnonzero(weight[chunk])
        taken: Any = chunk if row.size == weight[chunk].size else row  # without padding, views
        words = np.zeros((n_words, row.size), np.int64)
        for slot in range(depth):
            owner = driver[slot, taken].astype(np.int64)
            code = np.rint((lag[slot, taken] - lower) * (n_bins / (upper - lower))).astype(np.int64)
            code += owner * (n_bins + 1) + 1
            code *= owner >= 0
            word, digit = divmod(slot, per_word)
            words[word] += code if digit == 0 else code * radix**digit
        each = None if np.all(weight[taken] == 1) else weight[taken].astype(np.float64)
        return _count_rows(words, row // n_rows, each)

    words, row_atom, total = _join_counts(_in_chunks(count, weight.size, _CHUNK), n_words)
    digits = np.stack([words[s // per_word] // radix ** (s % per_word) % radix for s in range(depth)])
    owner, step = np.divmod(digits - 1, n_bins + 1)
    delay = lower + step * ((upper - lower) / n_bins)
    rows = _pad(delay, owner, total, row_atom, np.zeros(n_atoms), n_atoms, lower, table.n_drivers)
    rows = {name: rows[name].astype(getattr(table, name).dtype) for name in ("lag", "driver", "weight")}
    return replace(table, **(rows if batched else {name: value[0] for name, value in rows.items()}))


def stack(tables: Sequence[LagTable]) -> LagTable:
    """Join tables of one atom each, with the same window, grid and number of drivers, into a batched one.

    Parameters
    ----------
    tables : sequence of LagTable
        Not batched; events and times of drivers may differ.

    Returns
    -------
    LagTable
        With a leading axis as long as `tables`.
    """
    first = tables[0]
    arrays: dict[str, Any] = {}
    for name in _ARRAYS:
        leaves = [np.asarray(getattr(table, name)) for table in tables]
        shape = np.max([leaf.shape for leaf in leaves], axis=0).astype(int) if leaves[0].ndim else ()
        out = np.zeros((len(leaves), *shape), leaves[0].dtype)
        if name == "lag":
            out[:] = np.array([table.lower for table in tables]).reshape(-1, 1, 1)
        elif name == "driver":
            out[:] = -1
        elif name == "cut":  # empty intervals
            out[..., 0], out[..., 1] = 1.0, 0.0
        for k, leaf in enumerate(leaves):
            place: Any = (k, *map(slice, leaf.shape))
            out[place] = leaf
        arrays[name] = out
    return replace(first, **arrays, n_atoms=len(tables))
