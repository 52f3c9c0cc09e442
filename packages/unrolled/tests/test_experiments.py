"""Tests of gyri.unrolled.experiments: that each is found, and its parts at tiny sizes."""

import numpy as np
import pytest

from gyri.reproduce.registry import find_experiments
from gyri.unrolled.experiments import gradients, images, inverse_problems, jacobians, optimisation, recordings, setting
from gyri.unrolled.metrics import psnr

NAMES = {"gradients", "images", "inverse_problems", "jacobians", "optimisation", "recordings", "stochastic"}


def test_every_experiment_is_registered():
    found = find_experiments(["unrolled"])
    assert not found.broken
    assert {experiment.name for experiment in found} == NAMES
    assert all(experiment.description and experiment.figure for experiment in found)


def test_the_photograph_is_one():
    image = setting.photograph(64)
    assert image.shape == (64, 64) and 0 <= image.min() < 0.3 and 0.7 < image.max() <= 1
    shifted = np.corrcoef(image[:-1].ravel(), image[1:].ravel())[0, 1]
    assert shifted > 0.9


def test_errors_of_gradients_fall(monkeypatch):
    monkeypatch.setattr(gradients, "ESTIMATES", {name: gradients.ESTIMATES[name] for name in ("g1", "g2, 20", "g2")})
    found = gradients.errors_of(("recipe", 0, (5, 100), 1000, 60))
    assert found["g1"][1] < 0.1 * found["g1"][0] and found["g2"][1] < found["g1"][1]
    assert np.isnan(found["g2, 20"][0])
    X, D = gradients.patches(0, 20, 6)
    assert X.shape == (20, 100) and D.shape == (6, 100)
    np.testing.assert_allclose(np.linalg.norm(D, axis=1), 1, rtol=1e-5)


def test_jacobians_converge_on_a_sample():
    curve = jacobians.sample_curves((0, 0, 600))
    assert curve["errors"].size == 600 and curve["errors"][-1] < 0.1 * curve["errors"].max()
    assert curve["wrong"][-1] <= curve["wrong"][0]
    assert all(np.isfinite(curve["cut"][depth]).all() for depth in jacobians.DEPTHS)


def test_learning_at_one_depth(monkeypatch):
    monkeypatch.setattr(optimisation, "recipe", lambda seed, *_: setting.recipe(seed, 10, 12, 80))
    monkeypatch.setattr(optimisation, "METHODS", {"DDL": ("g2", False)})
    found = optimisation.learn((0, (5,)))
    assert found["DDL", 5][2] > 0
    assert found["authors' bound, learned", 5][0] < found["authors' bound, fixed", 5][0]


def test_planted_recordings():
    X, spatial, temporal = recordings.plant(0, 3000)
    assert X.shape == (20, 3000) and X.std() < 1e-11
    np.testing.assert_allclose(np.linalg.norm(temporal, axis=1), 1)
    np.testing.assert_allclose(np.linalg.norm(spatial, axis=1), 1)


def test_missing_recording_is_none(monkeypatch, tmp_path):
    from pathlib import Path

    import mne

    monkeypatch.setattr(mne.datasets.sample, "data_path", lambda **_: Path())
    assert recordings.load_sample() is None


@pytest.mark.parametrize("method", ["tv", "separable", "patches"])
def test_inpainting_gains(method):
    score, image = inverse_problems.inpaint((0, 32, 0.5, method, 3))
    truth = setting.photograph(32)
    assert image.shape == (32, 32) and score == pytest.approx(psnr(image, truth))
    mask = np.random.default_rng([0, 4]).random(truth.shape) < 0.5
    assert score > psnr(np.where(mask, truth, truth[mask].mean()), truth)


def test_starts_differ():
    first, second = (images.starts((0, start, 32, 4, 2)) for start in (0, 1))
    assert np.any(first[1] != second[1]) and first[0] > 18
