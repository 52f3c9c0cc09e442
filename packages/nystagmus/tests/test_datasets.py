"""Simulated recordings have the distribution of the paper's recipe; files are read as written."""

import numpy as np
import pytest

from gyri.nystagmus import NystagmusData, simulate_nystagmus
from gyri.nystagmus.datasets import KINDS, load_eyefant, load_eyelink, waveform


def test_same_seed_same_recording_and_parts_have_the_given_sizes():
    data = simulate_nystagmus(3, n_trials=4, n_times=5000, nystagmus_std=2.5, noise_std=0.0)
    again = simulate_nystagmus(np.random.default_rng(3), n_trials=4, n_times=5000, nystagmus_std=2.5, noise_std=0.0)
    for ours, theirs in zip(data[:3], again[:3], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(data.nystagmus.std(1), 2.5, rtol=1e-12)
    assert isinstance(data, NystagmusData) and data.recording.shape == (4, 1, 5000)
    np.testing.assert_array_equal(data.recording[:, 0], data.trend + data.nystagmus)
    assert data.pattern.shape[1] == max(int(np.ceil(1000 / f)) for f in data.frequency)


def test_the_nystagmus_repeats_its_pattern():
    for kind in KINDS:
        data = simulate_nystagmus(0, n_times=1000, kind=kind, frequency=5.0, curvature=0.3)
        np.testing.assert_allclose(data.nystagmus[0], np.tile(data.pattern[0], 5), atol=1e-9)


def test_jerk_waveforms_by_their_formulas():
    t = np.linspace(0, 1, 200, endpoint=False)
    c = 0.4
    slow = c * (t / 0.9) ** 2 + (1 - c) * t / 0.9 - 0.5
    up = np.where(t < 0.9, slow, 0.5 - (t - 0.9) / 0.1)
    np.testing.assert_allclose(waveform("jerk_sf_up", t, c), up, atol=1e-12)
    np.testing.assert_allclose(waveform("jerk_sf_down", t + 3, c), -up, atol=1e-9)
    np.testing.assert_allclose(waveform("jerk_sf_down", t, c, legacy=True), up, atol=1e-12)
    inside = slice(1, None)
    np.testing.assert_allclose(waveform("jerk_fs_up", t, c)[inside], up[inside][::-1], atol=1e-9)
    np.testing.assert_allclose(waveform("jerk_fs_down", t, c), -waveform("jerk_fs_up", t, c))


def test_draws_follow_the_recipe():
    data = simulate_nystagmus(1, n_trials=400, n_times=200, sfreq=100.0)
    pendular = np.mean([kind == "pendular" for kind in data.kind])
    assert abs(pendular - 0.5) < 4 * np.sqrt(0.25 / 400)
    assert data.frequency.min() == 3.0 and data.frequency.max() == 8.0
    inside = (data.frequency > 3) & (data.frequency < 8)
    assert abs(np.mean(inside) - 0.7745) < 4 * np.sqrt(0.7745 * 0.2255 / 400)  # normal(5, 2) within 3 and 8
    size = data.nystagmus.std(1)
    assert size.min() >= 1 - 1e-9
    assert abs(np.median(size) - 3) < 4 * 1.2533 * 2 / 20


def test_noise_is_white_with_its_standard_deviation():
    data = simulate_nystagmus(5, n_times=20_000, saccade_std=0.0, slow_std=0.0, noise_std=0.3)
    np.testing.assert_allclose(data.trend.std(), 0.3, rtol=0.02)
    x = data.trend[0] / data.trend.std()
    assert abs(np.mean(x[1:] * x[:-1])) < 4 / np.sqrt(x.size)


def test_slow_movement_has_no_power_above_half_a_hertz():
    data = simulate_nystagmus(2, saccade_std=0.0, slow_std=7.0, noise_std=0.0)
    np.testing.assert_allclose(data.trend.std(), 7.0, rtol=1e-12)
    assert abs(data.trend.mean()) < 1e-12
    power = np.abs(np.fft.rfft(data.trend[0])) ** 2
    assert np.flatnonzero(power > 1e-9 * power.max()).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("legacy", [False, True])
def test_saccades_are_steps_and_legacy_ones_jump(legacy):
    data = simulate_nystagmus(4, slow_std=0.0, saccade_std=10.0, noise_std=0.0, legacy=legacy)
    trend = data.trend[0]
    np.testing.assert_allclose(trend.std(), 10.0, rtol=1e-12)
    jumps = np.abs(np.diff(trend[200:]))  # behind the samples near which the legacy sigmoids are centred
    size = np.ptp(trend)
    if legacy:
        assert np.sum(jumps > 0.01 * size) == np.sum(jumps > 1e-6 * size) > 5  # flat in between
    else:
        # A sigmoid of slope 0.12 a sample rises by 3 % of its height at most, 0.25 % where it starts.
        assert jumps.max() < 0.05 * size


def test_recordings_too_short_for_a_saccade_are_finite():
    data = simulate_nystagmus(0, n_trials=3, n_times=10)
    assert np.all(np.isfinite(data.trend))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"n_trials": 0}, "n_trials"),
        ({"n_times": 1}, "n_times"),
        ({"sfreq": 0.0}, "sfreq"),
        ({"kind": "square"}, "kind"),
        ({"frequency": 0.0}, "frequency"),
        ({"frequency": 600.0}, "frequency"),
        ({"curvature": 2.0}, "curvature"),
        ({"noise_std": -1.0}, "noise_std"),
        ({"saccade_std": float("nan")}, "saccade_std"),
    ],
)
def test_bad_options_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        simulate_nystagmus(0, **options)


def write_eyefant(path, rows, n_signals=2, first="Number of signals"):
    header = [f"{first}: {n_signals}", *[f"line {i}" for i in range(6)], *[f"signal {i} é" for i in range(n_signals)]]
    text = "\n".join([*header, "columns", *["\t".join(f"{x}".replace(".", ",") for x in row) for row in rows]])
    path.write_text(text + "\n", encoding="iso-8859-1")


def test_eyefant_files_are_read(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 4)).round(4)
    write_eyefant(tmp_path / "a.txt", rows)
    np.testing.assert_array_equal(load_eyefant(tmp_path / "a.txt"), rows[:, 2:].T)
    wide = rng.standard_normal((20, 7)).round(4)
    write_eyefant(tmp_path / "b.txt", wide, n_signals=4)
    np.testing.assert_array_equal(load_eyefant(tmp_path / "b.txt"), wide[::8, 2:6].T)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    write_eyefant(tmp_path / "words.txt", [["a", "b", "c"]])
    write_eyefant(tmp_path / "narrow.txt", [[1.0, 2.0]])
    write_eyefant(tmp_path / "ragged.txt", [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]])
    write_eyefant(tmp_path / "foreign.txt", [[1.0, 2.0, 3.0]], first="Signals")
    for name in ("empty", "words", "narrow", "ragged", "foreign"):
        with pytest.raises(ValueError, match="path"):
            load_eyefant(tmp_path / f"{name}.txt")


def test_eyelink_files_are_read_through_mne(tmp_path):
    pytest.importorskip("mne")
    with pytest.raises(FileNotFoundError):
        load_eyelink(tmp_path / "none.asc")
