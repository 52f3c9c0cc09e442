"""Tests of gyri.saba.experiments."""

import numpy as np
import pytest

from gyri.reproduce.registry import find_experiments
from gyri.saba.experiments import ablations, cleaning, multiclass, quadratics, selection, setting, toy

NAMES = {
    "ablations",
    "breast_cancer",
    "cleaning",
    "covtype",
    "ijcnn1",
    "mnist_cleaning",
    "multiclass",
    "quadratics",
    "selection",
    "toy",
}


def in_turn(function, items):
    return [function(item) for item in items]


def test_every_experiment_is_registered():
    found = find_experiments(["saba"])
    assert not found.broken
    assert {experiment.name for experiment in found} == NAMES
    assert all(experiment.description and experiment.figure for experiment in found)


def test_the_first_figure_meets_its_claims():
    result = toy.toy("quick", 0, in_turn)
    assert {claim.verdict.value for claim in result.claims} == {"met"}
    assert set(result.figures) == {"Toy"}


def test_tuned_solvers_on_quadratics(monkeypatch):
    monkeypatch.setattr(quadratics, "TUNED", {name: quadratics.TUNED[name] for name in ("saba", "stocbio")})
    calls, gaps = quadratics.run_solver(("saba", 256, 5, 0, 2, 2000))
    assert calls.tolist() == (500 * np.arange(21)).tolist()
    assert gaps.shape == (2, 21)
    assert (gaps[:, 0] == 1).all() and (gaps[:, -1] < 0.5).all()


def test_selection_lowers_the_value_and_shows_divergence(monkeypatch):
    pytest.importorskip("sklearn")
    _, values = selection.run_solver(("breast_cancer", "saba", 0, 2, 400, 2))
    assert values.shape == (2, 3)
    assert (np.diff(values, axis=1) < 0).all()
    curves = {setting.LABELS[name]: (np.arange(3), np.ones((2, 3))) for name in selection.TUNED}
    curves["SOBA"] = (np.arange(3), np.array([[1.0, np.nan, np.nan], [1.0, 0.5, 0.4]]))
    claims = {claim.quantity: claim for claim in selection.make_claims(curves, reference=True)}
    assert claims["SOBA: part of the runs that diverge"].measured == 0.5
    assert claims["SOBA: last value"].measured == 0.4
    assert claims["SABA or SRBA over FSLA, last value"].verdict.value == "met"


def test_scores_of_cleaning():
    x, clean = np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False])
    assert cleaning.auc_of(x, clean) == 0.75
    pytest.importorskip("sklearn")
    row = cleaning.run_seed(("digits_cleaning", 0, 0.5, 400, 2))
    assert row["oracle"][0] < row["weights 1/2"][0]
    assert row["saba"][2] > 0.8
    assert row["soba"][4].shape == (3,)


def test_errors_of_multiclass_fall():
    pytest.importorskip("sklearn")
    rows = multiclass.run_solver(("digits", "saba", 0, 1, 300, 2))
    assert rows.shape == (1, 2, 3)
    assert (rows[:, :, -1] < 0.2).all() and (rows[:, :, 0] > 0.5).all()


def test_ablations_count_passes():
    passes, gaps = ablations.run_variant(("Size of a block", "64 rows", 0, 1))
    assert passes[-1] == pytest.approx(625)
    assert gaps[0, -1] < 1e-6


def test_data_that_are_not_there_are_said_to_be_missing():
    for experiment in (selection.ijcnn1, cleaning.mnist_cleaning, multiclass.covtype):
        result = experiment("quick", 0, in_turn)
        assert result.data.kind == "missing"
        assert [claim.verdict.value for claim in result.claims] == ["not run"]
