"""The lag table against a brute-force table, on a grid and off it, and its input checks."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyri.dripp import lag_table, lags
from gyri.dripp.lags import coarsen, count_older, delays, stack

SFREQ = 150.0


def rows_of(table, atom=None):
    """Multiset of rows, each a sorted tuple of (driver, delay)."""
    lag, driver, weight = (
        np.asarray(x) if atom is None else np.asarray(x)[atom] for x in (table.lag, table.driver, table.weight)
    )
    rows = {}
    for r in np.flatnonzero(weight):
        used = driver[:, r] >= 0
        row = tuple(sorted(zip(driver[used, r].tolist(), np.round(lag[used, r], 9).tolist())))
        rows[row] = rows.get(row, 0) + float(weight[r])
    return rows


def brute_rows(events, drivers, lower, upper, tolerance=0.0):
    rows, outside = {}, 0
    for t in events:
        row = [
            (p, float(np.round(t - s, 9)))
            for p, driver in enumerate(drivers)
            for s in driver
            if lower - tolerance <= t - s <= upper + tolerance
        ]
        if row:
            key = tuple(sorted(row))
            rows[key] = rows.get(key, 0) + 1.0
        outside += not row
    return rows, outside


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n_events=st.integers(0, 40), counts=st.lists(st.integers(0, 30), max_size=3))
def test_table_off_a_grid_holds_exactly_the_delays_in_the_window(seed, n_events, counts):
    rng = np.random.default_rng(seed)
    events, drivers = rng.uniform(0, 10, n_events), [rng.uniform(-2, 12, n) for n in counts]
    with jax.enable_x64(True):
        table = lag_table(events, drivers, lower=0.1, upper=0.9, t_stop=10.0)
    rows, outside = brute_rows(events, drivers, 0.1, 0.9)
    assert rows_of(table) == rows
    assert table.n_outside == outside
    assert table.n_events == n_events


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_events=st.integers(0, 60),
    counts=st.lists(st.integers(0, 25), max_size=3),
    compress=st.booleans(),
)
def test_table_on_a_grid_is_exact_whether_rows_are_merged_or_not(seed, n_events, counts, compress):
    rng = np.random.default_rng(seed)
    events = rng.integers(0, 200, n_events) / SFREQ
    drivers = [rng.integers(-30, 220, n) / SFREQ for n in counts]
    with jax.enable_x64(True):
        table = lag_table(events, drivers, lower=0.1, upper=0.4, t_stop=200 / SFREQ, sfreq=SFREQ, compress=compress)
    rows, outside = brute_rows(events, drivers, 0.1, 0.4, tolerance=1e-9)  # 0.1 s is 15.000000000000002 samples
    assert rows_of(table) == rows
    assert table.n_outside == outside
    assert table.n_rows == (len(rows) if compress else n_events - outside)


def test_rows_too_long_for_one_key_are_merged_exactly():
    rng = np.random.default_rng(0)
    pattern = np.sort(rng.choice(400, 60, replace=False))
    drivers = [np.concatenate([pattern, pattern + 2000]) / SFREQ, (pattern + 7) / SFREQ]
    events = np.array([410, 2410, 410, 411, 455]) / SFREQ
    with jax.enable_x64(True):
        table = lag_table(events, drivers, lower=0.0, upper=3.0, t_stop=20.0, sfreq=SFREQ)
    rows, outside = brute_rows(events, drivers, 0.0, 3.0, tolerance=1e-9)
    assert max(len(row) for row in rows) > 40
    assert rows_of(table) == rows
    assert (table.n_outside, table.n_events) == (outside, 5)


def test_batched_table_holds_the_tables_of_its_atoms():
    rng = np.random.default_rng(1)
    drivers = [rng.integers(0, 300, 40) / SFREQ]
    events = [rng.integers(0, 300, n) / SFREQ for n in (0, 1, 50)]
    for sfreq in (None, SFREQ):
        window = {"lower": 0.1, "upper": 0.4, "t_stop": 2.0, "sfreq": sfreq}
        together = lag_table(events, drivers, **window)
        for k, sequence in enumerate(events):
            alone = lag_table(sequence, drivers, **window)
            assert rows_of(together, k) == rows_of(alone)
            assert (together.n_outside[k], together.n_events[k], together.n_rows[k]) == (
                alone.n_outside,
                alone.n_events,
                alone.n_rows,
            )
        joined = stack([lag_table(sequence, drivers, **window) for sequence in events])
        assert joined.n_atoms == 3
        for k in range(3):
            assert rows_of(joined, k) == rows_of(together, k)


def test_order_of_events_and_drivers_and_origin_of_time_do_not_matter():
    rng = np.random.default_rng(2)
    events, drivers = rng.integers(0, 64 * 8, 80) / 64, rng.integers(0, 64 * 8, 30) / 64
    window = {"lower": 0.125, "upper": 0.5}
    base = lag_table(np.sort(events), np.sort(drivers), t_stop=8.0, **window)
    shuffled = lag_table(events, drivers, t_stop=8.0, **window)
    moved = lag_table(events + 1024, drivers + 1024, t_start=1024.0, t_stop=1032.0, **window)
    for other in (shuffled, moved):
        for ours, theirs in zip(jax.tree.leaves(base), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_exposure_counts_windows_seen_whole_in_part_and_never():
    drivers = [-1.0, -0.6, -0.2, 0.0, 5.0, 9.0, 9.3, 9.85, 10.0, 12.0]
    table = lag_table([], drivers, lower=0.1, upper=0.9, t_stop=10.0)
    # Never seen: -1.0 (ends before 0), 10.0 and 12.0; cut: -0.6, -0.2, 9.3, 9.85; the others are whole.
    assert (table.n_full, table.n_exposed) == (3, 7)
    seen = {tuple(np.round(part, 6)) for part in table.cut[0].tolist() if part[1] > part[0]}
    assert seen == {(0.6, 0.9), (0.2, 0.9), (0.1, 0.7), (0.1, 0.15)}
    counted = lag_table([], drivers, lower=0.1, upper=0.9, t_stop=10.0, edge=False)
    assert (counted.n_full, counted.n_exposed, counted.cut.shape[1]) == (10, 10, 0)


def test_covered_is_the_length_of_the_union_of_windows():
    table = lag_table([], [[1.0, 1.2, 9.8], [1.1, -0.5]], lower=0.1, upper=0.6, t_stop=10.0)
    # Union: [1.1, 1.8] of three, [9.9, 10] cut by the end, [0, 0.1] cut by the start.
    np.testing.assert_allclose(table.covered, 0.7 + 0.1 + 0.1, rtol=1e-6)


def test_grid_need_not_pass_through_zero(x64):
    events, drivers = np.array([30, 47, 80]), np.array([10, 40])
    window = {"lower": 0.03, "upper": 0.5, "t_stop": 1.0, "sfreq": SFREQ}
    centred = lag_table(events / SFREQ, drivers / SFREQ, **window)
    moved = lag_table((events + 0.3) / SFREQ, (drivers + 0.3) / SFREQ, **window)
    assert rows_of(moved) == rows_of(centred) != {}


@pytest.mark.parametrize("seed", range(3))
def test_counts_of_older_drivers_follow_the_computed_delay(seed):
    """At a lag that equals the bound up to rounding, the search and the delay may disagree: the delay decides."""
    rng = np.random.default_rng(seed)
    driver = np.sort(rng.uniform(0, 1e4, 2000))
    events = np.sort(np.concatenate([driver + 0.03, driver + 0.03 * (1 + 1e-15), rng.uniform(0, 1e4, 500)]))
    expected = np.array([np.sum(t - driver >= 0.03) for t in events])
    np.testing.assert_array_equal(count_older(events, driver, 0.03), expected)
    found = np.zeros(events.size, int)
    for _, rows, delay in delays(events, driver, 0.03, 0.5):
        assert np.all((delay >= 0.03) & (delay <= 0.5))
        found[rows] += 1
    inside = np.array([np.sum((t - driver >= 0.03) & (t - driver <= 0.5)) for t in events])
    np.testing.assert_array_equal(found, inside)


@pytest.mark.parametrize("options", [{}, {"sfreq": SFREQ}, {"compress": True}, {"resolution": 0.01}])
def test_chunks_of_events_make_the_same_table(monkeypatch, options):
    rng = np.random.default_rng(4)
    events = [rng.integers(0, 3000, n) / SFREQ for n in (60, 0, 41)]
    drivers = [rng.integers(-30, 3100, n) / SFREQ for n in (50, 20)]
    make = lambda: lag_table(events, drivers, lower=0.1, upper=0.9, t_stop=20.0, **options)
    whole = make()
    coarse = coarsen(whole, 16)
    monkeypatch.setattr(lags, "_CHUNK", 7)
    for ours, expected in ((make(), whole), (coarsen(whole, 16), coarse)):
        for atom in range(3):
            assert rows_of(ours, atom) == rows_of(expected, atom)
        np.testing.assert_array_equal(ours.n_outside, expected.n_outside)
        np.testing.assert_array_equal(ours.n_events, [60, 0, 41])


def test_resolution_merges_rounded_delays():
    rng = np.random.default_rng(3)
    drivers = np.arange(0.0, 400.0)
    events = np.sort(rng.choice(drivers, 3000) + rng.uniform(0.1, 0.5, 3000))
    fine = lag_table(events, drivers, lower=0.1, upper=0.5, t_stop=401.0)
    merged = lag_table(events, drivers, lower=0.1, upper=0.5, t_stop=401.0, resolution=0.01)
    assert merged.n_rows <= 41 < fine.n_rows
    assert merged.n_events == fine.n_events == 3000
    coarse = coarsen(fine, 40)
    assert coarse.n_rows <= 41
    assert coarse.n_events == 3000
    for table in (merged, coarse):
        mean = (table.lag[0] * table.weight).sum() / table.weight.sum()
        np.testing.assert_allclose(mean, (fine.lag[0] * fine.weight).sum() / fine.weight.sum(), atol=1e-3)


def test_drivers_come_in_every_form():
    one = lag_table([0.5], [0.2, 0.3], lower=0.0, upper=0.4, t_stop=1.0)
    assert one.n_drivers == 1
    assert lag_table([0.5], {"a": [0.2], "b": []}, lower=0.0, upper=0.4, t_stop=1.0).names == ("a", "b")
    series = pytest.importorskip("pandas").Series([0.2, 0.3])
    assert lag_table(series, series, lower=0.0, upper=0.4, t_stop=1.0).n_drivers == 1
    for none in (None, [], {}):
        table = lag_table([0.5], none, lower=0.0, upper=0.4, t_stop=1.0)
        assert (table.n_drivers, table.n_rows, float(table.n_outside)) == (0, 0, 1.0)


WINDOW = {"lower": 0.1, "upper": 0.5, "t_stop": 10.0}


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"events": [1.0, np.nan]}, "events"),
        ({"events": [1.0, np.inf]}, "events"),
        ({"events": [11.0]}, "events"),
        ({"events": [-1.0]}, "events"),
        ({"events": np.ones((2, 2))}, "events"),
        ({"events": [np.ones((2, 2))]}, "events"),
        ({"events": "abc"}, "events"),
        ({"events": 3.0}, "events"),
        ({"events": [1.0 + 1j]}, "events"),
        ({"drivers": [1.0, np.nan]}, "drivers"),
        ({"drivers": {"tone": [np.inf]}}, r"drivers\['tone'\]"),
        ({"drivers": [np.ones((2, 2))]}, r"drivers\[0\]"),
        ({"drivers": "abc"}, "drivers"),
        ({"lower": 0.5}, "upper"),
        ({"lower": -0.1}, "lower"),
        ({"upper": np.nan}, "upper"),
        ({"t_stop": 0.0}, "t_stop"),
        ({"t_start": 10.0}, "t_stop"),
        ({"t_stop": np.inf}, "t_stop"),
        ({"sfreq": 0.0}, "sfreq"),
        ({"sfreq": 100.0, "events": [1.004]}, "events.*grid"),
        ({"sfreq": 100.0, "events": [1.0], "drivers": [0.5, 0.904]}, r"drivers\[0\].*grid"),
        ({"resolution": -1.0}, "resolution"),
        ({"resolution": 0.1, "sfreq": 100.0}, "resolution"),
        ({"resolution": 0.1, "compress": False}, "compress"),
    ],
)
def test_bad_input_is_refused_by_name(change, argument):
    arguments = {"events": [1.0, 2.0], "drivers": [0.8]} | WINDOW | change
    with pytest.raises(ValueError, match=argument):
        lag_table(arguments.pop("events"), arguments.pop("drivers"), **arguments)
