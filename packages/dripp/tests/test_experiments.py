"""Experiments: registered, runnable without the data they lack, and helpers that hold against brute force."""

import sys

import numpy as np
import pytest
from scipy.stats import truncnorm

from gyri.dripp import Params
from gyri.dripp.experiments import camcan, grasshopper, mne_sample, mne_somato, recordings, setting, synthetic_meg
from gyri.dripp.experiments.calibration import covered
from gyri.reproduce.claims import Verdict
from gyri.reproduce.registry import find_experiments

NAMES = {
    "camcan",
    "computing_time",
    "convergence",
    "coverage",
    "grasshopper",
    "mne_sample",
    "mne_somato",
    "raw_pipeline",
    "robustness",
    "significance",
    "synthetic_meg",
}


def test_every_experiment_is_registered():
    found = find_experiments(["dripp"])
    assert not found.broken
    assert {experiment.name for experiment in found} == NAMES
    assert all(experiment.description and experiment.figure for experiment in found)


@pytest.mark.parametrize("module", [mne_sample, mne_somato, camcan])
def test_experiments_without_their_data_say_what_they_need(module, monkeypatch):
    monkeypatch.setattr(module, "load", lambda: None)
    monkeypatch.delenv(module.VARIABLE, raising=False)
    result = getattr(module, module.__name__.rpartition(".")[2])("quick", 0)
    assert result.data.kind == "missing"
    assert module.VARIABLE in result.data.name
    assert result.claims
    assert all(claim.verdict is Verdict.NOT_RUN for claim in result.claims)


def test_grasshopper_without_nitime_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(grasshopper, "find_spec", lambda name: None)
    assert grasshopper.grasshopper("quick", 0).data.kind == "missing"


def test_recordings_are_the_same_for_the_same_seed_and_cropped_and_rounded():
    one, same = setting.record([3, 1], 200.0), setting.record([3, 1], 200.0)
    np.testing.assert_array_equal(one.events, same.events)
    short = one.crop(50.0)
    assert short.events.max() <= 50
    assert short.events.size == np.sum(one.events <= 50)
    rounded = one.round(150.0)
    assert np.abs(rounded.events - one.events).max() <= 0.5 / 150 + 1e-12
    np.testing.assert_allclose(rounded.events * 150, np.rint(rounded.events * 150), atol=1e-9)


def test_error_is_the_largest_difference_of_rates_over_the_largest_rate():
    estimate = Params(0.9, np.array([0.7, 0.8]), np.array([0.41, 0.4]), np.array([0.06, 0.2]))
    x = np.linspace(-0.97, 1.8, 2217)
    for p, error in enumerate(setting.kernel_errors(estimate)):
        rates = []
        for baseline, alpha, m, sigma in (
            (params.baseline, params.alpha[p], params.m[p], params.sigma[p]) for params in (setting.TRUTH, estimate)
        ):
            ends = (setting.LOWER - m) / sigma, (setting.UPPER - m) / sigma
            rates.append(baseline + alpha * truncnorm.pdf(x, *ends, loc=m, scale=sigma))
        # Points of the two grids do not fall on each other exactly: at an end of the window the rate jumps.
        assert error == pytest.approx(np.abs(rates[1] - rates[0]).max() / rates[0].max(), rel=1e-3)


def test_coverage_is_one_for_the_truth_and_nan_without_an_interval():
    truth = Params(1.0, np.array([0.5]), np.array([0.2]), np.array([0.1]))
    batch = Params(*(np.broadcast_to(leaf, (2, *np.shape(leaf))) for leaf in truth))
    errors = Params(np.array([0.1, np.nan]), *(np.full((2, 1), 0.01) for _ in range(3)))
    inside = covered(batch, errors, truth)
    assert inside.shape == (2, 4)
    np.testing.assert_array_equal(inside[0], 1)
    assert np.isnan(inside[1, 0])
    shifted = batch._replace(m=batch.m + 0.05)
    assert covered(shifted, errors, truth)[0, 2] == 0


def test_groups_are_fitted_as_one_by_one(x64):
    from gyri.dripp import em

    tables = [setting.record([seed, 7], 60.0).table() for seed in range(3)]
    first, second = setting.fit_groups([tables[:2], tables[2:]], init="smart_start", max_iter=20, polish=False)
    assert first.nll.shape == (2,)
    assert second.nll.shape == (1,)
    alone = em(tables[2], "smart_start", max_iter=20, polish=False)
    np.testing.assert_allclose(second.params.alpha[0], alone.params.alpha, rtol=1e-9)


def test_matching_pursuit_finds_separate_atoms_without_noise():
    waves = synthetic_meg.make_waveforms()
    rng = np.random.default_rng(0)
    spatial = rng.standard_normal((4, synthetic_meg.N_CHANNELS))
    spatial /= np.linalg.norm(spatial, axis=1, keepdims=True)
    z = np.zeros((4, 1000))
    for k, t in enumerate((50, 200, 400, 640)):
        z[k, t] = 10 + k
    x = sum(u[:, None] * np.convolve(row, wave) for u, row, wave in zip(spatial, z, waves, strict=True))
    found = synthetic_meg.activate(synthetic_meg.Sources(x, spatial, waves, []), stop=1e-3)
    np.testing.assert_allclose(found, z, atol=1e-9)


def test_middles_of_quiet_spans_lie_in_quiet():
    middles = grasshopper.middle_of_quiet(2, -0.8)
    assert 2000 < middles.size < 3000
    assert np.all(np.diff(middles) > 0)


def test_activations_are_read_and_wrong_files_named(tmp_path, monkeypatch):
    z, atoms = np.arange(12.0).reshape(1, 3, 4), np.ones((3, 2))
    np.savez(tmp_path / "z.npz", z=z, atoms=atoms)
    np.save(tmp_path / "z.npy", z[0])
    np.savez(tmp_path / "other.npz", y=z)
    np.savez(tmp_path / "short.npz", z=z, atoms=atoms[:2])
    read = recordings.read_activations(tmp_path / "z.npz")
    np.testing.assert_array_equal(read.z, z[0])
    assert recordings.read_activations(tmp_path / "z.npy").atoms is None
    for name in ("other.npz", "short.npz"):
        with pytest.raises(ValueError, match="path"):
            recordings.read_activations(tmp_path / name)
    monkeypatch.setenv("GYRI_DRIPP_TEST", str(tmp_path / "z.npz"))
    assert recordings.find_activations("GYRI_DRIPP_TEST").z.shape == (3, 4)
    monkeypatch.delenv("GYRI_DRIPP_TEST")
    assert recordings.find_activations("GYRI_DRIPP_TEST") is None


def test_sample_experiment_runs_on_a_recording_and_activations(tmp_path, monkeypatch):
    mne = pytest.importorskip("mne")
    rng = np.random.default_rng(0)
    sfreq, n = 450.0, 450 * 60
    stim = np.zeros(n)
    starts = np.arange(450, n - 900, 337)
    codes = np.arange(starts.size) % 4 + 1
    for start, code in zip(starts, codes, strict=True):
        stim[start : start + 5] = code
    info = mne.create_info(["MEG 0113", "MEG 0112", "STI 014"], sfreq, ["grad", "grad", "stim"])
    raw = mne.io.RawArray(np.vstack([1e-12 * rng.standard_normal((2, n)), stim]), info, first_samp=900, verbose="error")
    prepared, events = recordings.prepare(raw, notch=(60.0, 120.0))
    assert prepared.info["sfreq"] == 150
    assert prepared.get_channel_types() == ["grad", "grad"]
    drivers = recordings.get_drivers(prepared, events, mne_sample.EVENT_ID)
    auditory = starts[np.isin(codes, (1, 2))] / sfreq
    np.testing.assert_allclose(drivers["auditory"], auditory, atol=0.51 / 150)

    z = np.zeros((3, (60 * 150)))
    for atom, name, delay in ((0, "auditory", 0.086), (1, "visual", 0.188)):
        times = drivers[name] + delay + 0.008 * rng.standard_normal(drivers[name].size)
        z[atom, np.rint(times * 150).astype(int)] = 1e-9
    z[:, rng.integers(0, z.shape[1], 12)] = 1e-9
    np.savez(tmp_path / "z.npz", z=z)
    monkeypatch.setenv(mne_sample.VARIABLE, str(tmp_path / "z.npz"))
    monkeypatch.setattr(mne_sample, "load", lambda: raw)
    result = mne_sample.mne_sample("quick", 0)
    assert result.data.kind == "real"
    latencies = {c.quantity: c for c in result.claims if c.quantity.startswith("m, ")}
    assert [claim.verdict for claim in latencies.values()] == [Verdict.MET, Verdict.MET]
    assert set(latencies) == {"m, auditory atom (atom 0)", "m, visual atom (atom 1)"}


def test_importing_the_experiments_loads_no_plotting_and_no_mne():
    import subprocess

    code = "import sys, gyri.dripp.experiments; print(sorted({'matplotlib', 'mne', 'nitime'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
