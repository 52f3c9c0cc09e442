"""The simulator has the properties that it promises; Sleep-EDF is read as it is written; splits respect subjects."""

import mne
import numpy as np
import pytest
from scipy.signal import welch

from gyri.cadda import data, load_sleep_physionet, simulate_sleep, split_subjects, subject_folds, zscore


@pytest.fixture(scope="module")
def night():
    return simulate_sleep(0, 6, 100)


def test_shapes_and_balance(night):
    X, y, subject = night
    assert X.shape == (600, 2, 3000) and X.dtype == np.float32
    assert all(np.bincount(y[subject == s]).tolist() == [20] * 5 for s in range(6))
    np.testing.assert_allclose(X.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(X.std(-1), 1, rtol=1e-4)
    again, other = simulate_sleep(0, 6, 100)[0], simulate_sleep(1, 6, 100)[0]
    np.testing.assert_array_equal(X, again)
    assert np.abs(X - other).max() > 1


@pytest.mark.parametrize(
    ("stage", "low", "high"), [(0, 7.5, 12.5), (1, 3, 8), (2, 10.5, 15.5), (3, 0.2, 2.6), (4, 1.5, 4.6)]
)
def test_each_stage_has_its_rhythm(night, stage, low, high):
    X, y, _ = night
    frequencies, power = welch(X[y == stage, 0], 100, nperseg=1000)
    pink = np.where(frequencies > 0, 1 / np.maximum(frequencies, 0.1), 0)
    peaks = frequencies[(power / pink.clip(1e-3))[:, frequencies > 0.15].argmax(1) + np.sum(frequencies <= 0.15)]
    inside = np.mean((peaks >= low) & (peaks <= high))
    assert inside > (0.7 if stage == 4 else 0.9)  # a sawtooth's harmonics stand out of 1/f as much as it does


def test_what_tells_stages_apart_when_flipped_and_reversed(night):
    X, y, _ = night
    skewness = lambda x: np.mean(x**3, -1)
    of = lambda stage: skewness(X[y == stage, 0])
    assert of(3).mean() > 0.5 and all(abs(of(stage).mean()) < 0.15 for stage in (0, 1, 2, 4))
    # A sawtooth's slopes are skewed, and so they are told from those of its flip and of its reversal.
    slopes = np.diff(X[:, 0].reshape(len(X), -1, 5).mean(-1), axis=-1)
    slopes /= slopes.std(-1, keepdims=True)
    tilt = np.array([skewness(slopes[y == stage]).mean() for stage in range(5)])
    assert tilt[4] < -0.4 and np.abs(tilt[:4]).max() < 0.25


def test_noise_is_pink():
    noise = data.pink_noise(np.random.default_rng(0), 3000, (400,))
    assert noise.std() == pytest.approx(1, rel=0.03)
    power = np.mean(np.abs(np.fft.rfft(noise)) ** 2, 0)
    k = np.arange(2, 1000)
    assert np.polyfit(np.log(k), np.log(power[k]), 1)[0] == pytest.approx(-1, abs=0.05)


def test_channels_and_precision(x64):
    X, y, _ = simulate_sleep(3, 1, 50, n_channels=4, sfreq=25, window_s=8)
    assert X.shape == (50, 4, 200) and X.dtype == np.float64
    waves = X[y == 3]
    strength = [np.mean(np.sum(waves[:, 0] * waves[:, c], -1)) for c in (1, 2, 3)]
    assert strength[0] > strength[1] > strength[2] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_subjects": 0}, "n_subjects: expected an integer >= 1"),
        ({"sfreq": 0}, "sfreq: expected a number > 0"),
        ({"window_s": 0.01}, "window_s: expected two samples or more"),
        ({"key_or_seed": "a"}, "key"),
    ],
)
def test_simulator_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate_sleep(**{"key_or_seed": 0} | arguments)


def test_zscore():
    x = np.random.default_rng(0).normal(3, 2, (4, 2, 50)).astype("f4")
    x[0, 1] = 7.0
    z = zscore(x)
    assert z.dtype == np.float32 and not z[0, 1].any()
    expected = (x[1] - x[1].mean(-1, keepdims=True)) / x[1].std(-1, keepdims=True)
    np.testing.assert_allclose(z[1], expected, atol=1e-5)
    with pytest.raises(ValueError, match="X: expected finite"):
        zscore([[np.nan, 1.0]])


def test_splits_keep_subjects_whole():
    subject = np.repeat(np.arange(20), 3)
    parts = split_subjects(subject, [0.7, 0.2, 0.1], random_state=3)
    assert sorted(np.concatenate(parts)) == list(range(60)) and [len(p) for p in parts] == [42, 12, 6]
    assert not set(subject[parts[0]]) & set(subject[parts[1]])
    small = split_subjects([0, 1, 2], [0.98, 0.01, 0.01])
    assert [len(p) for p in small] == [1, 1, 1]
    folds = list(subject_folds(subject, 6, random_state=1))
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(60))
    assert all(not set(subject[a]) & set(subject[b]) for a, b in folds)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_subjects([0, 0], [0.5, 0.5]), "subject: expected 2 subjects or more"),
        (lambda: split_subjects([0, 1], [0.5, 0.4]), "fractions: expected positive numbers that sum to 1"),
        (lambda: split_subjects([0.5, 1], [0.5, 0.5]), "subject: expected integers"),
        (lambda: subject_folds([0, 1], 3), "n_folds: expected as many as there are subjects, 2"),
        (lambda: load_sleep_physionet([]), "subjects: expected some of 0 to 82"),
        (lambda: load_sleep_physionet([39]), r"got \[39\]"),
        (lambda: load_sleep_physionet([0], recordings=(3,)), "recordings: expected 1, 2 or both"),
    ],
)
def test_bad_splits_and_subjects(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def write_edf(path, signals, sfreq, names):
    """A minimal EDF file: 16-bit integers, records of one second, physical range -300 to 300 microvolt."""
    n, n_records = len(names), signals.shape[1] // sfreq
    field = lambda text, width: str(text).ljust(width)[:width].encode("ascii")
    header = field(0, 8) + field("X X X X", 80) + field("Startdate 01-JAN-2000 X X X", 80) + field("01.01.00", 8)
    header += field("00.00.00", 8) + field(256 * (n + 1), 8) + field("", 44) + field(n_records, 8) + field(1, 8)
    header += field(n, 4)
    columns = [(names, 16), ([""] * n, 80), (["uV"] * n, 8), ([-300] * n, 8), ([300] * n, 8), ([-32768] * n, 8)]
    columns += [([32767] * n, 8), ([""] * n, 80), ([sfreq] * n, 8), ([""] * n, 32)]
    header += b"".join(field(value, width) for values, width in columns for value in values)
    digital = np.round((signals + 300) / 600 * 65535 - 32768).astype("<i2")
    records = digital.reshape(n, n_records, sfreq).swapaxes(0, 1)
    path.write_bytes(header + records.tobytes())


def test_sleep_edf_is_read(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    stages = ["W"] * 8 + ["1", "2", "3", "4", "R", "?"] + ["W"] * 6
    t = np.arange(3000 * len(stages)) / 100
    slow, fast = 40 * np.sin(2 * np.pi * 2 * t), 40 * np.sin(2 * np.pi * 45 * t)
    signals = np.stack([slow + fast, slow + rng.standard_normal(t.size), np.ones(t.size)])
    pairs = []
    for night in (1, 2):
        edf, scores = tmp_path / f"SC4{7:02d}{night}E0-PSG.edf", tmp_path / f"night{night}.csv"
        write_edf(edf, signals, 100, ["EEG Fpz-Cz", "EEG Pz-Oz", "Temp rectal"])
        onsets, names = 30.0 * np.arange(len(stages)), [f"Sleep stage {stage}" for stage in stages]
        mne.Annotations(onsets, [30.0] * len(stages), names).save(str(scores).replace(".csv", "-annot.fif"))
        pairs.append((str(edf), str(scores).replace(".csv", "-annot.fif")))
    asked = []
    fetch = lambda subjects, recordings, **options: asked.append((subjects, recordings)) or pairs
    monkeypatch.setattr("mne.datasets.sleep_physionet.age.fetch_data", fetch)
    X, y, subject = load_sleep_physionet([7], max_wake_min=2)
    assert asked == [([7], [1, 2])]
    kept = [0] * 4 + [1, 2, 3, 3, 4] + [0] * 4  # four windows of wake at each end; what is unscored is left out
    assert y.tolist() == kept * 2 and set(subject) == {7}
    assert X.shape == (26, 2, 3000) and X.dtype == np.float32
    np.testing.assert_allclose(X.std(-1), 1, rtol=1e-3)
    spectrum = np.abs(np.fft.rfft(X[5, 0]))
    assert spectrum[60] > 100 * spectrum[45 * 30]  # 2 Hz is kept, 45 Hz is gone
    full = load_sleep_physionet([7], h_freq=None)[0]
    assert len(full) == 38 and np.abs(np.fft.rfft(full[9, 0]))[45 * 30] > 0.5 * np.abs(np.fft.rfft(full[9, 0]))[60]
