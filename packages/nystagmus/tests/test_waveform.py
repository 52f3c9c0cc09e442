"""Measures of waveforms whose values are known in closed form."""

import numpy as np
import pytest

from gyri.nystagmus.datasets import waveform
from gyri.nystagmus.waveform import measure_waveform


def pulses(period, n=2000, size=2.0, start=13):
    codes = np.zeros((2, n))
    codes[:, start::period] = size
    return codes


def test_pendular():
    t = np.arange(250) / 250
    codes = pulses(250)
    codes[0, 700] = 0.1 * 2.0  # weak: does not count as a cycle
    codes[:, 264::250] = 1.9  # split between two neighbours: neither does the smaller one
    found = measure_waveform(np.cos(2 * np.pi * t)[None], codes, 1000.0)
    assert found.amplitude_deg == pytest.approx(4.0)
    assert found.frequency_hz == 4.0
    assert found.jerkiness < 1e-6
    peak = 2 * 2 * np.pi * 4  # degrees a second
    # Speed below v for arcsin(v / peak) / (pi f) around each turn.
    assert found.foveation_ms == pytest.approx(1e3 * np.arcsin(4 / peak) / (np.pi * 4), abs=2)
    speed = np.abs(np.sin(2 * np.pi * np.arange(10_000) / 10_000)) * peak
    assert found.slow_phase_velocity == pytest.approx(np.median(speed), rel=0.02)


@pytest.mark.parametrize("kind", ["jerk_sf_up", "jerk_sf_down", "jerk_fs_up"])
def test_jerk(kind):
    wave = waveform(kind, np.arange(200) / 200, 0.0)
    found = measure_waveform(wave[None], pulses(200), 1000.0)
    assert found.frequency_hz == 5.0
    assert found.amplitude_deg == pytest.approx(2.0, rel=0.05)
    assert found.slow_phase_velocity == pytest.approx(2.0 / (0.9 * 0.2), rel=1e-6)
    assert found.jerkiness == pytest.approx(1 - 0.1 / 0.9, abs=0.01)
    assert found.foveation_ms <= 2


def test_atoms_longer_than_a_period_are_measured_on_the_sum_of_their_repetitions():
    n = 200
    wave = waveform("jerk_sf_up", np.arange(2 * n) / n, 0.0) * np.hanning(2 * n + 1)[:-1]  # adds up to one at n
    found = measure_waveform(wave[None], pulses(n), 1000.0)
    assert found.slow_phase_velocity == pytest.approx(2.0 / (0.9 * 0.2), rel=1e-6)
    assert found.amplitude_deg == pytest.approx(2.0, rel=0.05)


def test_several_channels_are_measured_along_the_movement():
    wave = waveform("jerk_sf_up", np.arange(200) / 200, 0.0)
    alone = measure_waveform(wave[None], pulses(200), 1000.0)
    both = measure_waveform(np.outer([0.6, -0.8], wave), pulses(200), 1000.0)
    np.testing.assert_allclose(both, alone, rtol=1e-9)


def test_where_the_gaze_rests_is_no_movement():
    wave = waveform("jerk_sf_up", np.arange(200) / 200, 0.0)
    alone = measure_waveform(wave[None], pulses(200), 1000.0)
    np.testing.assert_allclose(measure_waveform(np.stack([wave, 0 * wave + 5]), pulses(200), 1000.0), alone, rtol=1e-9)


def test_of_signed_activations_the_size_counts():
    wave = waveform("jerk_sf_up", np.arange(200) / 200, 0.0)[None]
    codes = pulses(200)
    codes[:, 13::400] *= -1
    np.testing.assert_allclose(measure_waveform(wave, codes, 1000.0), measure_waveform(wave, np.abs(codes), 1000.0))
    assert measure_waveform(wave, codes, 1000.0).amplitude_deg == pytest.approx(2 * np.ptp(wave))


@pytest.mark.parametrize("shift", [1, 2, 60])
def test_of_equal_neighbours_the_first_counts(shift):
    wave = np.sin(2 * np.pi * np.arange(200) / 200)[None]
    codes = pulses(200)
    split = codes + np.roll(codes, shift, -1) + (np.roll(codes, 1, -1) if shift == 2 else 0)
    np.testing.assert_allclose(measure_waveform(wave, split, 1000.0), measure_waveform(wave, codes, 1000.0))


def test_the_amplitude_is_that_of_the_atom_however_its_repetitions_add_up():
    wave = np.sin(2 * np.pi * np.arange(300) / 200) * np.hanning(300)
    assert measure_waveform(wave[None], pulses(200), 1000.0).amplitude_deg == pytest.approx(2 * np.ptp(wave))


def test_one_activation_has_no_frequency_and_none_has_no_measure():
    wave = np.sin(2 * np.pi * np.arange(100) / 100)[None]
    codes = np.zeros((1, 500))
    assert np.isnan(measure_waveform(wave, codes, 1000.0)).all()
    codes[0, 3] = 1.0
    found = measure_waveform(wave, codes, 1000.0)
    assert np.isnan(found.frequency_hz) and found.amplitude_deg == pytest.approx(2.0)
    assert found.jerkiness < 1e-6
    with pytest.raises(ValueError, match="atom"):
        measure_waveform(wave[0], codes, 1000.0)
    with pytest.raises(ValueError, match="sfreq"):
        measure_waveform(wave, codes, -1.0)
