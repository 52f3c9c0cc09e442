"""Tests of gyri.hnpe.eeg."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from gyri.hnpe.eeg import alpha_waves_observation, bandpass, load_alpha_waves
from gyri.numerics.testing import check_jit, check_vmap

mne = pytest.importorskip("mne")
SFREQ, CODES = 256.0, [1, 2, 2, 1, 2, 1]


@pytest.fixture(scope="module")
def epochs():
    """Six epochs of 8 s, two channels; the k-th holds a sine of 10 uV and 8 + k Hz, and a drift."""
    t = np.arange(8 * 256 + 1) / SFREQ
    data = np.array([[1e-5 * np.sin(2 * np.pi * (8 + k) * t) + 1e-4 * t, 0 * t] for k in range(6)])
    events = np.c_[3000 * np.arange(6), np.zeros(6, int), CODES]
    info = mne.create_info(["Oz", "Cz"], SFREQ, "eeg")
    return mne.EpochsArray(data, info, events, event_id={"closed": 1, "open": 2}, verbose="error")


def peak(x):
    spectrum = np.abs(np.fft.rfft(x * np.hanning(1024)))
    return 128 / 1024 * spectrum.argmax()


@pytest.mark.parametrize(
    ("x0_event", "context", "expected"),
    [
        ("closed", "all", [9, 10, 11, 12, 13]),
        ("closed", "closed", [11, 13]),
        ("closed", "open", [9, 10, 12]),
        ("closed", None, []),
        ("open", "all", [8, 10, 11, 12, 13]),
    ],
)
def test_which_epochs_are_taken(epochs, x0_event, context, expected):
    x, x_extra = alpha_waves_observation(epochs, x0_event=x0_event, context=context)
    assert x.shape == (1024,) and x_extra.shape == (len(expected), 1024)
    assert peak(x) == pytest.approx(8 if x0_event == "closed" else 9, abs=0.2)
    assert [round(peak(e)) for e in x_extra] == expected


@pytest.mark.parametrize(
    ("sfreq", "target", "n_times"), [(250.0, 250.0, 1001), (1000.0, 1000.0, 1001), (256.0, 128.0, 500)]
)
def test_no_sample_is_lost(sfreq, target, n_times):
    info = mne.create_info(["Oz"], sfreq, "eeg")
    events = np.c_[[0, 5000], [0, 0], [1, 1]]
    data = np.random.default_rng(0).normal(size=(2, 1, 1001))
    epochs = mne.EpochsArray(data, info, events, event_id={"closed": 1}, verbose="error")
    x, x_extra = alpha_waves_observation(epochs, sfreq=target)
    assert x.shape == (n_times,) and x_extra.shape == (1, n_times)


def test_units_filter_and_mean(epochs):
    x, _ = alpha_waves_observation(epochs)
    assert np.abs(x[100:-100]).max() == pytest.approx(10, rel=0.1)  # microvolts, the drift of 100 uV/s gone
    assert abs(x.mean()) < 1e-6
    raw, _ = alpha_waves_observation(epochs, l_freq=None, h_freq=None)
    assert np.ptp(raw) > 500
    again = np.asarray(bandpass(jnp.asarray(raw, jnp.float32)))
    np.testing.assert_allclose(again - again.mean(), x, atol=0.05)


def test_filter_passes_the_band_and_has_no_delay(dtype):
    t = np.arange(1024) / 128
    for frequency, gain in ((0.5, 0), (1.0, 0), (5.0, 1), (20.0, 1), (36.0, 1), (50.0, 0)):
        wave = np.sin(2 * np.pi * frequency * t).astype(dtype)
        filtered = bandpass(wave)
        assert filtered.dtype == dtype
        assert np.abs(np.asarray(filtered) - gain * wave)[200:-200].max() < 0.02


def test_filter_is_a_convolution_with_reflected_ends(x64):
    from gyri.hnpe.eeg import _filter_taps

    taps, x = _filter_taps(128.0, 3.0, 40.0), np.random.default_rng(0).normal(size=(2, 700))
    padded = np.pad(x, ((0, 0), (len(taps) // 2,) * 2), mode="reflect")
    expected = [signal.convolve(row, taps, mode="valid") for row in padded]
    np.testing.assert_allclose(bandpass(x), expected, atol=1e-10)
    check_jit(bandpass, jnp.asarray(x))
    check_vmap(bandpass, jnp.asarray(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"picks": "Pz"}, "picks: expected one of Oz, Cz"),
        ({"x0_event": "asleep"}, "x0_event: expected one of closed, open"),
        ({"context": "both"}, "context: expected one of"),
        ({"l_freq": None}, "h_freq: expected both ends"),
        ({"h_freq": 80.0}, "h_freq: expected l_freq < h_freq < sfreq / 2"),
    ],
)
def test_bad_options_are_refused(epochs, options, message):
    with pytest.raises(ValueError, match=message):
        alpha_waves_observation(epochs, **options)


def test_bad_input_is_refused(epochs):
    with pytest.raises(ValueError, match=r"epochs: expected mne.Epochs, got ndarray"):
        alpha_waves_observation(np.zeros((3, 2, 100)))
    none_closed = epochs.copy().drop([0, 3, 5], verbose="error")
    none_closed.event_id = {"closed": 1, "open": 2}
    with pytest.raises(ValueError, match="epochs: expected at least one of 'closed'"):
        alpha_waves_observation(none_closed, context=None)
    with pytest.raises(ValueError, match="x: expected more than"):
        bandpass(np.zeros(50))


def test_loader_says_what_it_needs():
    try:
        import moabb  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r'pip install "gyri-hnpe\[alphawaves\]"'):
            load_alpha_waves(1)
