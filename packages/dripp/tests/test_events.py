"""The front ends: MNE's objects and a dictionary's activations, against written-out examples."""

import numpy as np
import pytest

from gyri.dripp import drivers_from_mne, events_from_activations

EVENTS = np.array([[1150, 0, 1], [1300, 0, 3], [1450, 0, 2], [1600, 0, 1]])


def test_events_array_is_grouped_by_code_from_the_first_sample():
    drivers = drivers_from_mne(EVENTS, {"auditory": [1, 2], "visual": (3,), "left": 1}, sfreq=150.0, first_samp=1000)
    np.testing.assert_allclose(drivers["auditory"], [1, 3, 4])
    np.testing.assert_allclose(drivers["visual"], [2])
    np.testing.assert_allclose(drivers["left"], [1, 4])
    assert list(drivers_from_mne(EVENTS, sfreq=150.0)) == ["1", "2", "3"]


def test_recordings_and_annotations_give_the_same_times():
    mne = pytest.importorskip("mne")
    sfreq, first = 100.0, 700
    data = np.zeros((2, 1000))
    data[1, [100, 250, 400]] = [1, 2, 1]
    info = mne.create_info(["MEG 001", "STI 014"], sfreq, ["mag", "stim"])
    raw = mne.io.RawArray(data, info, first_samp=first, verbose="error")
    drivers = drivers_from_mne(raw, {"tone": 1, "flash": 2})
    np.testing.assert_allclose(drivers["tone"], [1.0, 4.0])
    np.testing.assert_allclose(drivers["flash"], [2.5])
    annotations = mne.Annotations([1.0, 4.0, 2.5], 0.0, ["tone", "tone", "flash"])
    np.testing.assert_allclose(drivers_from_mne(annotations)["tone"], [1.0, 4.0])
    later = mne.Annotations(annotations.onset + first / sfreq, 0.0, annotations.description)
    np.testing.assert_allclose(drivers_from_mne(later, sfreq=sfreq, first_samp=first)["tone"], [1.0, 4.0])
    with pytest.raises(ValueError, match="sfreq: expected the sampling frequency in Hz of first_samp = 700"):
        drivers_from_mne(later, first_samp=first)
    plain = mne.io.RawArray(data[:1], mne.create_info(1, sfreq, "mag"), first_samp=first, verbose="error")
    plain.set_annotations(annotations, verbose="error")
    for from_raw in (drivers_from_mne(plain), drivers_from_mne(plain, {"tone": "tone", "flash": ["flash"]})):
        np.testing.assert_allclose(from_raw["tone"], [1.0, 4.0])
        np.testing.assert_allclose(from_raw["flash"], [2.5])


@pytest.mark.parametrize(
    ("source", "options", "argument"),
    [
        (EVENTS[:, :2], {"sfreq": 150.0}, "source"),
        (EVENTS.astype(float), {"sfreq": 150.0}, "source"),
        (EVENTS, {}, "sfreq"),
        (EVENTS, {"sfreq": -1.0}, "sfreq"),
        (EVENTS, {"sfreq": 150.0, "event_id": {"x": 9}}, "event_id"),
        (object(), {}, "source"),
    ],
)
def test_bad_sources_are_refused_by_name(source, options, argument):
    with pytest.raises(ValueError, match=argument):
        drivers_from_mne(source, **options)


Z = np.zeros((2, 12))
Z[0, [2, 3, 7]] = [5.0, 4.0, 1.0]
Z[1, [0, 6, 9]] = [2.0, 8.0, 6.0]


def test_only_the_largest_activation_within_the_distance_is_kept():
    # 0.02 s at 100 Hz: two samples, so a neighbour at one sample is removed and one at two is not.
    events = events_from_activations(Z, 100.0, min_distance=0.02)
    np.testing.assert_allclose(events[0], [0.02, 0.07])
    np.testing.assert_allclose(events[1], [0.0, 0.06, 0.09])
    everything = events_from_activations(Z[None], 100.0, min_distance=0.0)
    np.testing.assert_allclose(everything[0], [0.02, 0.03, 0.07])


def test_thresholds_are_absolute_or_percentiles_of_what_the_filter_left():
    absolute = events_from_activations(Z, 100.0, threshold=5.0, min_distance=0.02)
    assert [e.size for e in absolute] == [0, 2]  # strictly above
    # Left by the filter: (5, 1) and (2, 8, 6); medians 3 and 6, kept if not below; pooled median 5, kept if above.
    per_atom = events_from_activations(Z, 100.0, threshold=50.0, percent=True, min_distance=0.02)
    np.testing.assert_allclose(per_atom[0], [0.02])
    np.testing.assert_allclose(per_atom[1], [0.06, 0.09])
    pooled = events_from_activations(Z, 100.0, threshold=50.0, percent=True, per_atom=False, min_distance=0.02)
    assert [e.size for e in pooled] == [0, 2]
    assert [e.size for e in events_from_activations(np.zeros((2, 5)), 100.0, threshold=50.0, percent=True)] == [0, 0]


def test_activations_move_to_the_peak_of_their_atom_and_do_not_wrap():
    atoms = np.array([[0.1, 0.2, -0.9, 0.3], [1.0, 0.0, 0.0, 0.0]])
    moved = events_from_activations(Z, 100.0, min_distance=0.0, atoms=atoms)
    np.testing.assert_allclose(moved[0], [0.04, 0.05, 0.09])
    np.testing.assert_allclose(moved[1], [0.0, 0.06, 0.09])
    late = np.zeros((1, 12))
    late[0, 11] = 1.0
    assert events_from_activations(late, 100.0, atoms=atoms[:1])[0].size == 0
    assert events_from_activations(late[:, -2:], 100.0, atoms=np.eye(4)[3:])[0].size == 0  # a peak beyond all samples


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"z": np.ones(5)}, "z"),
        ({"z": np.ones((2, 3, 5))}, "z"),
        ({"z": np.full((2, 5), np.nan)}, "z"),
        ({"z": np.empty((0, 5))}, "z"),
        ({"sfreq": 0.0}, "sfreq"),
        ({"threshold": -1.0}, "threshold"),
        ({"threshold": 101.0, "percent": True}, "threshold"),
        ({"min_distance": -0.1}, "min_distance"),
        ({"atoms": np.ones((3, 4))}, "atoms"),
    ],
)
def test_bad_activations_are_refused_by_name(change, argument):
    arguments = {"z": Z, "sfreq": 100.0} | change
    with pytest.raises(ValueError, match=argument):
        events_from_activations(arguments.pop("z"), arguments.pop("sfreq"), **arguments)
