"""Tests of gyri.pavi.experiments, at sizes of their own."""

import numpy as np
import pytest

from gyri.pavi.experiments import convergence, expressivity, parcellation, peers, random_effects
from gyri.reproduce.registry import find_experiments


def in_turn(function, items):
    return [function(item) for item in items]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two seeds, few groups, few steps."""
    for module in (convergence, parcellation, random_effects):
        monkeypatch.setattr(module, "N_SEEDS", {"quick": 2})
    monkeypatch.setitem(random_effects.ENCODING, "quick", ((12, 4, 2), (1, 16), 20))
    monkeypatch.setitem(random_effects.SCALING, "quick", ((6, 8), 2, 20))
    monkeypatch.setitem(random_effects.PARTS, "quick", (12, (2, 10), 20))
    monkeypatch.setitem(convergence.BUDGETS, "quick", (12, 2, (5, 10, 20), 0.05))
    monkeypatch.setitem(expressivity.SIZES, "quick", (expressivity.QUICK, 2, 10))
    monkeypatch.setitem(parcellation.SIZES, "quick", ((4, 2, 10, 3), 2, 2, 20))


def test_every_experiment_is_registered():
    found = find_experiments(["pavi"])
    assert not found.broken
    names = {experiment.name for experiment in found}
    assert names == {"convergence", "encoding_size", "expressivity", "parcellation", "peers", "scaling", "stochastic"}
    assert all(experiment.description and experiment.figure for experiment in found)


@pytest.mark.parametrize(
    ("run", "figures"),
    [(random_effects.encoding_size, {"Encoding"}), (parcellation.parcellation, {"Networks"})],
)
def test_experiments_run_and_draw(run, figures):
    result = run("quick", 0, in_turn)
    assert set(result.figures) == figures and result.data.kind == "simulated"
    values = [claim.measured for claim in result.claims if claim.measured is not None]
    assert values and np.isfinite(values).all()


def test_gaps_of_parts_are_put_in_their_places():
    """Gap 10 b for PAVI-F, b for PAVI-E: the sweep's order is undone."""

    def sweep(function, items):
        assert function is random_effects.part_gap
        return [b * (10 if encoding == "free" else 1) for _, _, encoding, b in items]

    found = {claim.quantity: claim.measured for claim in random_effects.stochastic("quick", 0, sweep).claims}
    assert found["PAVI-F: gap per group, 2 of 12 a step"] == 20
    assert found["PAVI-E: gap per group, 10 of 12 a step"] == 10


def test_scaling_compares_the_methods():
    def sweep(function, items):
        gap = {"PAVI-F": 0.5, "PAVI-E": 0.05, "no sharing": 1.0, "mean field": 2.0}
        return [[(gap[method] * n, 1.0, 100.0) for n in (6, 8)] for _, _, method in items]

    result = random_effects.scaling("quick", 0, sweep)
    found = {claim.quantity: claim.measured for claim in result.claims}
    assert found["gap of mean field over that of PAVI-E, G = 8"] == pytest.approx(40)
    assert found["PAVI-E: weights at the most groups over the fewest"] == 1
    assert set(result.figures) == {"Gap", "Weights"}


def test_steps_to_a_goal():
    assert convergence.steps_to(np.array([3.0, 0.04, 0.01]), (10, 20, 40), 0.05) == 20
    assert convergence.steps_to(np.array([3.0, 2.0, 1.0]), (10, 20, 40), 0.05) == 80


def test_convergence_and_expressivity_compare_the_methods():
    def sweep(function, items):
        if function is convergence.gaps_of:
            speed = {"PAVI-F": 1.0, "PAVI-E": 0.01, "no sharing": 10.0, "mean field": 5.0}
            return [np.array([[speed[method], 1.0]] * 3) for _, _, method in items]
        return [1.0 if "maf" in method else 0.0 for _, _, method, _ in items]

    claims = {claim.quantity: claim.measured for claim in convergence.convergence("quick", 0, sweep).claims}
    assert claims["gap of mean field over that of PAVI-E, 10 steps"] == pytest.approx(500)
    result = expressivity.expressivity("quick", 0, sweep)
    assert {claim.quantity: claim.measured for claim in result.claims}["GM: ELBO of PAVI-F maf over affine"] == 1
    assert set(result.figures) == {"Bounds"}


@pytest.mark.parametrize("method", ["PAVI-F affine", "mean field"])
def test_bounds_are_finite(method):
    assert np.isfinite(expressivity.bound_of(("quick", "NC", method, 0)))


@pytest.mark.parametrize("method", ["PAVI-E", "mean field"])
def test_gaps_are_positive(method):
    rows = random_effects.scaling_of(("quick", 0, method))
    assert rows.shape == (2, 3) and (rows > 0).all()


@pytest.mark.parametrize("method", ["PAVI-E", "whole-space normal", "UIVI"])
def test_gaps_of_other_families_are_positive(method, monkeypatch):
    monkeypatch.setitem(peers.PEERS, "quick", ((method,), (4,), 2, 10, 1))
    ((gap, seconds, weights, temporary),) = peers.peer_of(("quick", 0, method))
    assert gap > 0 and seconds > 0 and weights > 0
    assert np.isnan(temporary) if method == "UIVI" else temporary > 0


def test_other_families_are_compared(monkeypatch):
    monkeypatch.setitem(peers.PEERS, "quick", (peers.METHODS, (4, 8), 2, 10, 2))
    sweep = lambda function, items: [np.full((2, 4), 1.0 + peers.METHODS.index(item[2])) for item in items]
    result = peers.peers("quick", 0, sweep)
    found = {claim.quantity: claim.measured for claim in result.claims}
    assert found["least gap of all, G = 8"] == 1.0 and found["UIVI: gap per group, G = 8"] == len(peers.METHODS)
    assert set(result.figures) == {"Quality", "Gap per group", "Time", "Weights", "Memory"}


def test_locally_enhanced_bound_is_below_the_evidence():
    gap, seconds = convergence.semi_dais(0, (6, 5, 2), 2, 10)
    assert gap > 0 and seconds > 0


def test_networks_are_matched():
    truth = np.random.default_rng(0).normal(size=(5, 3))
    order = np.array([3, 1, 4, 0, 2])
    found = np.empty_like(truth)
    found[order] = truth + 0.01
    np.testing.assert_array_equal(parcellation.match(truth, found), order)
