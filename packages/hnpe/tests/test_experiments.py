"""Tests of gyri.hnpe.experiments, at sizes of their own."""

import numpy as np
import pytest

from gyri.hnpe import JansenRit
from gyri.hnpe.experiments import eyes, neural_mass, setting, sound, toy
from gyri.reproduce.registry import find_experiments

NAMES = {
    "ablation",
    "alpha_waves",
    "distance_to_truth",
    "jansen_rit",
    "learned_vs_exact",
    "ridge",
    "sensitivity",
    "sound_source",
}


def in_turn(function, items):
    return [function(item) for item in items]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two seeds, few simulations, short recordings."""
    monkeypatch.setitem(setting.N_SEEDS, "quick", 2)
    shallow = (("density_estimator", "maf"), ("n_layers", 1), ("hidden", (8,)))
    monkeypatch.setattr(neural_mass, "MAF", shallow)
    monkeypatch.setattr(eyes, "MAF", shallow)
    for name, options in neural_mass.VARIANTS.items():
        monkeypatch.setitem(neural_mass.VARIANTS, name, tuple((dict(options) | dict(shallow)).items()))
    model = JansenRit(duration=1.0, burn_in=0.25)
    size = {"n": 200, "epochs": 2, "most": 2, "numbers": (0, 2), "tests": 6, "drawn": 8}
    monkeypatch.setitem(neural_mass.MODELS, "quick", model)
    monkeypatch.setitem(neural_mass.SIZES, "quick", size)
    monkeypatch.setitem(neural_mass.ABLATION, "quick", (200, 2, (0, 2), 6, 8))
    monkeypatch.setattr(eyes, "MODEL", JansenRit(duration=2.0, burn_in=0.25))
    monkeypatch.setitem(eyes.SIZES, "quick", (200, 2, 2))
    monkeypatch.setitem(sound.SIZES, "quick", (400, 3, 4))
    monkeypatch.setitem(toy.RIDGE, "quick", (400, 3, {(0, 4): (0, 1, 4)}))
    monkeypatch.setitem(toy.EXACT, "quick", ((200, 400), (400,), 3, (1, 2, 4), 3))
    size = toy.DISTANCE["quick"] | {"numbers": (1, 4), "n": 400, "epochs": 3, "abc": 500, "steps": 3, "naive": 1}
    monkeypatch.setitem(toy.DISTANCE, "quick", size | {"truths": toy.TRUTHS[:1], "peers": (1, 4)})


def test_every_experiment_is_registered():
    found = find_experiments(["hnpe"])
    assert not found.broken
    assert {experiment.name for experiment in found} == NAMES
    assert all(experiment.description and experiment.figure for experiment in found)


@pytest.mark.parametrize(
    ("run", "figures"),
    [
        (toy.ridge, {"Ridge"}),
        (sound.sound_source, {"Source"}),
        (eyes.alpha_waves, {"States"}),
    ],
)
def test_experiments_run_and_draw(run, figures):
    result = run("quick", 0, in_turn)
    assert set(result.figures) == figures
    assert all(np.isfinite(claim.measured) for claim in result.claims)
    assert result.data.kind == ("stand-in" if run is eyes.alpha_waves else "simulated")


def test_experiments_on_the_neural_mass_model_run_and_draw():
    for run, figures in ((neural_mass.jansen_rit, {"Pairs", "Widths"}), (neural_mass.sensitivity, {"Sensitivity"})):
        result = run("quick", 0, in_turn)  # on the same networks
        assert set(result.figures) == figures
        assert all(np.isfinite(claim.measured) for claim in result.claims)


def test_scores_of_the_ablation_are_normalised():
    result = neural_mass.ablation("quick", 0, in_turn)
    scores = {claim.quantity: claim for claim in result.claims}
    assert scores["naive, N = 0"].measured == pytest.approx(scores["aggregated, N = 0"].measured)
    assert all(0.01 < claim.measured < 10 for claim in result.claims)


def test_divergences_to_the_exact_posterior():
    rows = toy.divergence_of(("quick", 0, "deepset", 400))
    assert rows.shape == (3,) and (rows > -1e-4).all()


@pytest.mark.parametrize("method", toy.METHODS)
def test_distances_of_every_method(method):
    assert toy.distances_of(("quick", 0, method, 0.05)).shape == (2, 2)


def test_exact_slope_is_that_of_the_closed_form(monkeypatch):
    assert toy.exact_slope(0, 2) == pytest.approx(-2, abs=0.4)


def test_real_recordings_that_are_not_there_are_said_to_be_missing(monkeypatch):
    def fail(subject):
        raise OSError("no network")

    monkeypatch.setattr(eyes, "load_alpha_waves", fail)
    monkeypatch.setitem(eyes.SIZES, "paper", (200, 2, 1))
    result = eyes.alpha_waves("paper", 0, in_turn)
    assert "no network" in str(result.data)
