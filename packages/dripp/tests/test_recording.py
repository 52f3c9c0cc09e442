"""Tests of gyri.dripp.recording: planted atoms are found in a recording, bad spans have no influence."""

import mne
import numpy as np
import pytest

from gyri.dripp import DriPP, events_from_raw

SFREQ, N_TIMES = 100.0, 4000
TOPOGRAPHIES = np.array([[2.0, -1.0, 0.5, 0.0], [0.3, 1.0, -1.0, 2.0]])
OPTIONS = {"atom_duration": 0.3, "max_iter": 15, "min_distance": 0.1, "progress": False}


def waves():
    t = np.arange(30) / 30
    return np.stack([np.sin(2 * np.pi * t) * np.hanning(30), np.hanning(30) ** 3])


@pytest.fixture(scope="module")
def planted():
    """Recording in volts, its sources' onsets in samples."""
    rng = np.random.default_rng(0)
    x = 0.05 * rng.standard_normal((4, N_TIMES))
    onsets = [np.arange(50, N_TIMES - 60, 130), np.sort(rng.choice(np.arange(20, N_TIMES - 60, 45), 40, replace=False))]
    for topography, wave, start in zip(TOPOGRAPHIES, waves(), onsets, strict=True):
        z = np.zeros(N_TIMES)
        z[start] = rng.uniform(0.8, 1.2, start.size)
        x += topography[:, None] * np.convolve(z, wave)[:N_TIMES]
    return 1e-6 * x, onsets


def make_raw(x, kinds="eeg"):
    return mne.io.RawArray(x, mne.create_info(len(x), SFREQ, kinds, verbose="error"), verbose="error")


@pytest.fixture(scope="module")
def found(planted):
    return events_from_raw(make_raw(planted[0]), 2, **OPTIONS)


def test_planted_atoms_and_their_times_are_found(planted, found):
    cosine = np.abs(found.spatial @ (TOPOGRAPHIES / np.linalg.norm(TOPOGRAPHIES, axis=1, keepdims=True)).T)
    source = cosine.argmax(1)
    assert sorted(source) == [0, 1]
    assert cosine.max(1).min() > 0.98
    np.testing.assert_allclose(np.linalg.norm(found.temporal, axis=1), 1, rtol=1e-5)
    assert (np.take_along_axis(found.temporal, np.abs(found.temporal).argmax(1)[:, None], 1) > 0).all()
    for times, k in zip(found.events, source, strict=True):
        # The sign of a wave with two equal lobes is free: so is which of them is its peak.
        peaks = [(planted[1][k] + peak) / SFREQ for peak in np.argsort(-np.abs(waves()[k]))[:2]]
        distances = [np.abs(times[:, None] - one).min(1) for one in peaks]
        assert min(np.mean(d > 0.021) for d in distances) < 0.1
        assert abs(times.size - planted[1][k].size) <= 4
    assert (found.sfreq, found.t_stop) == (SFREQ, N_TIMES / SFREQ)
    assert found.info.ch_names == ["0", "1", "2", "3"]


def test_events_go_into_the_estimator(planted, found):
    stimuli = planted[1][0] / SFREQ - 0.05
    model = DriPP(0.0, 0.4, sfreq=found.sfreq).fit(found.events, stimuli, t_stop=found.t_stop)
    assert np.max(model.alpha_) > 0.8


def test_same_key_same_result_and_the_unit_does_not_matter(planted, found):
    again = events_from_raw(make_raw(planted[0]), 2, **OPTIONS)
    other = events_from_raw(make_raw(1e-3 * planted[0]), 2, **OPTIONS)
    for ours, same, scaled in zip(found.events, again.events, other.events, strict=True):
        np.testing.assert_array_equal(ours, same)
        assert abs(ours.size - scaled.size) <= 1
    np.testing.assert_array_equal(found.temporal, again.temporal)


def test_bad_spans_have_no_influence(planted):
    x = planted[0].copy()
    results = []
    for value in (0.0, 1e-3):
        x[:, 1000:1400] = value
        raw = make_raw(x)
        raw.set_annotations(mne.Annotations([10.0], [4.01], ["BAD_movement"]))
        results.append(events_from_raw(raw, 2, **OPTIONS))
    np.testing.assert_array_equal(results[0].spatial, results[1].spatial)
    for ours, other in zip(results[0].events, results[1].events, strict=True):
        np.testing.assert_array_equal(ours, other)
        assert not np.any((ours > 10.0) & (ours < 14.0))


def test_channels_of_several_types_count_alike(planted):
    x = planted[0].copy()
    x[2:] *= 1e-7
    found = events_from_raw(make_raw(x, ["eeg", "eeg", "mag", "mag"]), 2, **OPTIONS)
    assert found.spatial.shape == (2, 4)
    assert np.abs(found.spatial[:, 2:]).max() > 0.3
    picked = events_from_raw(make_raw(x, ["eeg", "eeg", "mag", "mag"]), 1, picks="eeg", **OPTIONS)
    assert picked.spatial.shape == (1, 2)
    gaze = events_from_raw(make_raw(x, ["eeg", "eeg", "eyegaze", "pupil"]), 1, **OPTIONS)
    np.testing.assert_array_equal(gaze.spatial, picked.spatial)


def test_the_best_of_several_starts_and_the_activations_threshold(planted, found):
    more = events_from_raw(make_raw(planted[0]), 2, n_restarts=2, threshold=50.0, percent=True, **OPTIONS)
    assert sum(map(len, more.events)) < 0.7 * sum(map(len, found.events))


def test_atoms_are_drawn(planted, found):
    figure = found.plot_atoms()
    assert len(figure.axes) == 4
    info = mne.create_info(4, SFREQ, "eeg", verbose="error")
    names = mne.channels.make_standard_montage("biosemi16").ch_names[:4]
    info.rename_channels(dict(zip(info.ch_names, names, strict=True)), verbose="error")
    info.set_montage("biosemi16", verbose="error")
    assert found._replace(info=info).plot_atoms([1]).axes[0].get_title().startswith("atom 1, ")


BAD = [
    ({"raw": np.zeros((2, 100))}, "raw: expected mne.io.BaseRaw, got ndarray"),
    ({"kinds": "misc"}, "raw: expected data channels"),
    ({"x": np.zeros((4, 500))}, "raw: expected a signal, got constant channels of type eeg"),
    ({"n_atoms": 0}, "n_atoms: expected an integer >= 1"),
    ({"atom_duration": 0.01}, "atom_duration: expected 2 samples to the recording's"),
    ({"atom_duration": 100.0}, "atom_duration: expected 2 samples to the recording's"),
    ({"reg": 0.0}, "reg: expected a number > 0"),
    ({"max_iter": 0}, "max_iter: expected an integer >= 1"),
    ({"n_restarts": 0}, "n_restarts: expected an integer >= 1"),
    ({"threshold": -1.0}, "threshold: expected a number >= 0"),
    ({"min_distance": -1.0}, "min_distance: expected a number >= 0"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_input_is_named(planted, arguments, message):
    arguments = {"n_atoms": 1, **OPTIONS, **arguments}
    raw = arguments.pop("raw", None)
    if raw is None:
        raw = make_raw(arguments.pop("x", planted[0][:, :500]), arguments.pop("kinds", "eeg"))
    with pytest.raises(ValueError, match=message):
        events_from_raw(raw, **arguments)


def test_a_level_without_activations_warns(planted):
    with pytest.warns(UserWarning, match="reg=2: no atom is active"):
        found = events_from_raw(make_raw(planted[0]), 1, reg=2.0, **OPTIONS)
    assert found.events[0].size == 0
