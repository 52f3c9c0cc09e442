import mne
import numpy as np
import pytest

from gyri.numerics.recordings import find_bad_samples, is_epochs, is_raw, pick_data

SFREQ, EVENTS = 100.0, [50, 200, 340]


@pytest.fixture(params=[0, 37])
def raw(request):
    """Annotations inside an epoch, across the start and the end of one, between samples, and one that is not bad."""
    info = mne.create_info(1, SFREQ, "eeg")
    raw = mne.io.RawArray(np.ones((1, 500)), info, first_samp=request.param, verbose="error")
    marks = mne.Annotations([0.6, 1.95, 2.9, 3.404], [0.2, 0.1, 0.116, 0.5], ["bad", "BAD_eye", "Bad span", "good"])
    return raw.set_annotations(marks)


def make_epochs(raw, **options):
    events = np.array([[start + raw.first_samp, 0, 1] for start in EVENTS])
    options = {"tmin": 0.0, "tmax": 0.99, "baseline": None, "reject_by_annotation": False, "verbose": "error"} | options
    return mne.Epochs(raw, events, **options)


def test_bad_samples_of_epochs_are_those_of_the_recording(raw):
    whole = np.isnan(raw.get_data(reject_by_annotation="NaN", verbose="error")[0])
    bad = find_bad_samples(make_epochs(raw, preload=True))
    np.testing.assert_array_equal(bad, [whole[start : start + 100] for start in EVENTS])
    assert bad.any(1).tolist() == [True, True, False] and bad[1].sum() == 5 + 10


def test_epochs_that_are_read_late_lose_those_that_they_reject(raw):
    raw._data[0, EVENTS[0]] = 3.0
    epochs = make_epochs(raw, reject={"eeg": 1.0})
    with pytest.raises(RuntimeError):
        find_bad_samples(epochs)
    epochs.get_data()
    assert find_bad_samples(epochs).shape == (2, 100)


def test_data_are_no_gaze_no_stimuli_and_nothing_bad():
    info = mne.create_info(6, SFREQ, ["eyegaze", "pupil", "mag", "stim", "eeg", "eeg"])
    info["bads"] = ["4"]
    assert pick_data(info).tolist() == [2, 5]


def test_objects_are_told_apart(raw):
    assert is_raw(raw) and not is_epochs(raw)
    epochs = make_epochs(raw)
    assert is_epochs(epochs) and not is_raw(epochs)
    assert not is_raw([raw]) and not is_epochs(None)
