"""Tests of gyri.cadda.experiments: that each is found, and runs at a tiny size."""

import numpy as np
import pytest
from flax import nnx

from gyri.cadda.experiments import ablation, agnostic, class_wise, operations, pairs, setting, toy
from gyri.reproduce.registry import find_experiments, sequential

NAMES = {"ablation", "agnostic", "class_wise", "operations", "pairs", "polarity"}


class Small(nnx.Module):
    """Compiles faster than the paper's network."""

    def __init__(self, n_in, rngs):
        self.hidden, self.out = nnx.Linear(n_in, 4, rngs=rngs), nnx.Linear(4, 5, rngs=rngs)

    def embed(self, x):
        return nnx.tanh(self.hidden(x.reshape(len(x), -1)))

    def __call__(self, x):
        return self.out(self.embed(x))


@pytest.fixture
def tiny(monkeypatch):
    for module in (setting, agnostic):
        small = lambda fold, seed: Small(fold.X[0].size, nnx.Rngs(seed))
        monkeypatch.setattr(module, "new_network", small)
    for name, value in {"n_windows": 10, "sfreq": 20.0, "window_s": 8.0}.items():
        monkeypatch.setitem(setting.QUICK, name, value)
    monkeypatch.setitem(setting.EPOCHS, "quick", 2)
    monkeypatch.setitem(setting.N_SEEDS, "quick", 1)
    monkeypatch.setitem(agnostic.EVERY, "quick", 1)
    monkeypatch.setitem(agnostic.OPERATIONS, "quick", ("sign_flip", "time_mask"))
    for name in ("n_epochs", "n_warmup", "n_subpolicies"):
        monkeypatch.setitem(agnostic.BUDGET["quick"], name, 1)
    monkeypatch.setitem(pairs.N_ASSIGNMENTS, "quick", 1)
    monkeypatch.setitem(pairs.OPERATIONS, "quick", ("identity", "sign_flip"))


def check(result, n_claims, figure):
    assert len(result.claims) == n_claims and set(result.figures) == set(result.captions) == {figure}
    assert all(np.isfinite(np.asarray(claim.measured, float)).all() for claim in result.claims)
    assert "simulate_sleep" in str(result.data)


def test_every_experiment_is_registered():
    found = find_experiments(["cadda"])
    assert not found.broken
    assert {experiment.name for experiment in found} == NAMES
    assert all(experiment.description and experiment.figure for experiment in found)


def test_folds_hold_different_subjects(tiny, monkeypatch):
    fold = setting.make_fold("quick", 3)
    assert len(setting.make_fold("quick", 3, 0.5).y) == 5
    assert [len(y) for y in (fold.y, fold.y_valid, fold.y_test)] == [10, 20, 50]
    assert fold.X.shape[1:] == (2, 160) and fold.sfreq == 20
    monkeypatch.undo()
    assert setting.new_network(fold, 0)(fold.X).shape == (10, 5)


def test_operations_have_the_arguments_that_were_found_best():
    """Those that later work of the authors found on Sleep-EDF, also where they are beyond the range of a policy."""
    best = {
        "gaussian_noise": 0.16, "frequency_shift": 0.6, "ft_surrogate": 1.0, "time_mask": 140.0,
        "channels_dropout": 0.2, "channels_shuffle": 0.6, "bandstop": 0.6,
    }  # fmt: skip
    assert {name: argument for name, argument in operations.ARGUMENTS.items() if argument is not None} == best
    for transform in operations.make_operations(100.0, ("identity", *operations.ARGUMENTS)):
        assert transform.range is None or transform.range[0] <= best[transform.name] <= transform.range[1]


def test_operations_one_at_a_time(tiny, monkeypatch):
    monkeypatch.setattr(operations, "ARGUMENTS", {"sign_flip": None, "time_mask": 50.0})
    check(operations.operations("quick", 0, sequential), 1 + 2 + 5, "gains")


def test_handmade_pairs(tiny):
    check(pairs.pairs("quick", 0, sequential), 4, "pairs")


def test_methods_for_all_classes(tiny, monkeypatch):
    monkeypatch.setattr(agnostic, "METHODS", {name: {} for name in ("none", "faster_aa", "dada", "adda")})
    check(agnostic.agnostic("quick", 0, sequential), 10, "agnostic")


def test_methods_for_each_class(tiny, monkeypatch):
    check(class_wise.class_wise("quick", 0, sequential), 9, "class-wise")


def test_estimators(tiny, monkeypatch):
    monkeypatch.setattr(ablation, "ESTIMATORS", ("softmax", "gumbel", "relax"))
    check(ablation.ablation("quick", 0, sequential), 7, "ablation")


def test_polarity_toy(monkeypatch):
    monkeypatch.setattr(toy, "learn_polarity", lambda seed: np.array([0.5, 0.0, 0.01 * seed]))
    result = toy.polarity("quick", 0, sequential)
    assert [claim.verdict.value for claim in result.claims] == ["met", "reported", "met"]
    X, y = toy.polarity_windows(np.random.default_rng(0), 300, False)
    means = np.array([X[y == c].mean(0) for c in range(3)])
    assert means[0, 19] > 0.7 and means[1, 44] > 0.7 and means[2, 44] < -0.7
