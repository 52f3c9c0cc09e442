"""Recordings of MNE: what becomes data, what becomes mask, and the way back."""

import numpy as np
import pytest

from gyri.nystagmus import blink_mask, gaze_to_degrees
from gyri.nystagmus.mne_io import read_signal, to_mne

mne = pytest.importorskip("mne")

SFREQ = 100.0
SCREEN = {"screen_size_m": (0.53, 0.3), "screen_resolution": (1920, 1080), "distance_m": 0.9}


def make_raw(first_samp=0, n=300):
    rng = np.random.default_rng(0)
    info = mne.create_info(["xpos", "ypos", "pupil", "EEG"], SFREQ, ["eyegaze", "eyegaze", "pupil", "eeg"])
    raw = mne.io.RawArray(1 + rng.random((4, n)), info, first_samp=first_samp, verbose="error")
    about = {"xpos": ("eyegaze", "px", "left", "x"), "ypos": ("eyegaze", "px", "left", "y")}
    return mne.preprocessing.eyetracking.set_channel_types_eyetrack(raw, about)


@pytest.mark.parametrize("first_samp", [0, 77])
@pytest.mark.parametrize("dated", [False, True])
def test_raw_becomes_one_trial_with_bad_annotations_and_nan_masked(first_samp, dated):
    raw = make_raw(first_samp)
    if dated:
        raw.set_meas_date(1_000_000)
    raw._data[0, 5] = np.nan
    # Given from the recording's first sample where it has no date, else from the measurement's start.
    offset = raw.first_time if dated else 0.0
    onset = np.array([0.5, 2.0]) + offset
    date = raw.info["meas_date"] if dated else None
    raw.set_annotations(mne.Annotations(onset, [0.2, 0.1], ["BAD_blink", "saccade"], orig_time=date))
    signal = read_signal(raw)
    assert (signal.data.shape, signal.sfreq, signal.ch_names) == ((1, 2, 300), SFREQ, ("xpos", "ypos"))
    expected = np.ones((1, 2, 300), bool)
    expected[..., 50:70] = False
    expected[0, 0, 5] = False
    np.testing.assert_array_equal(signal.mask[..., :69], expected[..., :69])  # MNE may or may not count the last one
    np.testing.assert_array_equal(signal.mask[..., 72:], expected[..., 72:])
    np.testing.assert_array_equal(signal.data[0], raw.get_data(["xpos", "ypos"]))
    picked = read_signal(raw, picks=["ypos", "EEG"])
    assert picked.ch_names == ("ypos", "EEG")
    mask = blink_mask(raw, buffer=0.0)
    assert not mask[5] and not mask[51:69].any() and mask[[4, 6, 48, 72]].all()


def test_recordings_without_gaze_take_the_data_channels_and_wrong_picks_are_named():
    raw = make_raw().pick(["EEG", "pupil"])
    assert read_signal(raw).ch_names == ("EEG",)
    with pytest.raises(ValueError, match="picks"):
        read_signal(raw, picks=["zpos"])


@pytest.mark.parametrize("first_samp", [0, 30])
def test_epochs_are_trials_and_keep_their_annotations(first_samp):
    raw = make_raw(first_samp).set_annotations(mne.Annotations([0.5], [0.2], ["bad things"]))
    events = np.array([[20 + first_samp, 0, 1], [150 + first_samp, 0, 2]])
    epochs = mne.Epochs(
        raw, events, tmin=0.0, tmax=0.99, baseline=None, preload=True, reject_by_annotation=False, verbose="error"
    )
    signal = read_signal(epochs)
    assert signal.data.shape == (2, 2, 100)
    whole = read_signal(raw).mask[0]
    np.testing.assert_array_equal(signal.mask, [whole[:, n : n + 100] for n in (20, 150)])
    assert not signal.mask[0].all() and signal.mask[1].all()
    back = to_mne(signal.data, epochs, signal.ch_names)
    np.testing.assert_array_equal(back.get_data(copy=False), signal.data)
    np.testing.assert_array_equal(back.events, events)
    np.testing.assert_array_equal(read_signal(back).mask, signal.mask)


def test_results_go_back_in_time_and_place():
    raw = make_raw(first_samp=40).set_annotations(mne.Annotations([1.0], [0.2], ["BAD_blink"]))
    signal = read_signal(raw)
    detrended = np.where(signal.mask, signal.data - 1, np.nan)
    back = to_mne(detrended, raw, signal.ch_names)
    np.testing.assert_array_equal(back.get_data(), detrended[0])
    assert (back.first_samp, back.ch_names) == (40, ["xpos", "ypos"])
    np.testing.assert_array_equal(read_signal(back).mask, signal.mask)
    with pytest.raises(ValueError, match="data"):
        to_mne(detrended[..., 1:], raw, signal.ch_names)


def test_gaze_becomes_degrees():
    raw = make_raw()
    rng = np.random.default_rng(1)
    raw._data[0], raw._data[1] = rng.uniform(600, 1300, 300), rng.uniform(300, 700, 300)
    before = raw.get_data()
    degrees = gaze_to_degrees(raw, **SCREEN)
    for row, (middle, size, pixels) in enumerate(((960, 0.53, 1920), (540, 0.3, 1080))):
        expected = np.degrees(np.arctan((before[row] - middle) * size / pixels / 0.9))
        np.testing.assert_allclose(degrees.get_data()[row], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(degrees.get_data()[2:], before[2:])
    np.testing.assert_array_equal(raw.get_data(), before)
    with pytest.raises(ValueError, match="raw"):
        gaze_to_degrees(degrees, **SCREEN)  # in degrees already


@pytest.mark.parametrize("name", list(SCREEN))
def test_a_screen_that_is_not_described_is_named(name):
    with pytest.raises(ValueError, match=name):
        gaze_to_degrees(make_raw(), **{**SCREEN, name: None})
    with pytest.raises(ValueError, match="raw"):
        gaze_to_degrees(make_raw().pick("EEG"), **SCREEN)


def test_blinks_are_where_the_pupil_is_lost_with_a_margin():
    raw = make_raw()
    raw._data[2, 100:110] = 0
    raw._data[2, 200] = np.nan
    expected = np.ones(300, bool)
    expected[100 - 5 : 110 + 5] = expected[200 - 5 : 201 + 5] = False
    np.testing.assert_array_equal(blink_mask(raw, buffer=0.05), expected)
    assert blink_mask(make_raw()).all()
    with pytest.raises(ValueError, match="buffer"):
        blink_mask(raw, buffer=-1.0)
