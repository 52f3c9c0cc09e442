"""Small runs of the experiments' parts."""

import subprocess
import sys

import numpy as np
import pytest

from gyri.nystagmus.experiments import heartbeats, recovery, setting


def comparison(seed):
    rng = np.random.default_rng(seed)
    scores = [setting.Score(*rng.uniform(0.5, 0.9, 3)) for _ in range(6)]
    return setting.Comparison(*scores, 1.0, -1e-3)


def test_claims_follow_from_the_scores():
    rows = [comparison(seed) for seed in range(5)]
    rows = [row._replace(joint=row.joint._replace(correlation=0.95), masked=row.joint) for row in rows]
    claims = {claim.quantity: claim for claim in recovery.make_claims(rows)}
    assert claims["correlation of the pattern, joint"].verdict.value == "met"
    assert claims["part of the frequencies within 5 %"].measured == 1.0
    lower = np.mean([row.joint.pattern < row.two_step.pattern for row in rows])
    assert claims["part of the recordings where joint has the lower error"].measured == lower
    assert len(recovery.draw(rows).axes) == 3


def test_scores_of_a_perfect_fit():
    from types import SimpleNamespace

    data = setting.draw_eye(0, 3000, min_std=2.0)
    assert data.nystagmus.std() >= 2
    atom = np.zeros(setting.LONGEST)
    atom[: data.pattern.shape[1]] = data.pattern[0] - data.pattern[0].mean()
    model = SimpleNamespace(
        atoms_=atom[None, None], detrended_=data.nystagmus[None] + 3.0, pattern_signal_=data.nystagmus[None] - 1.0
    )
    np.testing.assert_allclose(setting.score_fit(data, model), [1, 0, 0], atol=0.01)


def test_beats_are_found_without_atoms():
    pytest.importorskip("pywt")
    beats = heartbeats.find_beats(heartbeats.load_ecg())
    assert beats.size >= 3
    assert np.all(np.diff(beats) > heartbeats.N_BEATS_APART * heartbeats.SFREQ)


def test_importing_the_experiments_loads_no_plotting_and_no_mne():
    code = "import sys, gyri.nystagmus.experiments; print(sorted({'matplotlib', 'mne', 'pywt'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
