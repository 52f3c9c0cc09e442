"""Tests of gyri.tv.experiments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.reproduce.claims import Verdict
from gyri.reproduce.registry import find_experiments
from gyri.tv import simulate
from gyri.tv.experiments import bold, conditioning, denoising, inner_error, iterations, learning
from gyri.tv.networks import NETWORKS, constants_of, init_network
from gyri.tv.training import Data

from .conftest import prox, value

NAMES = {"bold", "conditioning", "denoising", "inner_error", "iterations", "learning"}


def test_every_experiment_is_registered():
    found = find_experiments(["tv"])
    assert not found.broken
    assert {experiment.name for experiment in found} == NAMES
    assert all(experiment.description and experiment.figure for experiment in found)


def test_conditioning_meets_its_claims():
    result = conditioning.conditioning("quick", 0)
    assert {claim.verdict.value for claim in result.claims} == {"met"}


def test_curves_fall_and_start_together(monkeypatch):
    networks = {name: learning.NETWORKS[name] for name in ("LISTA", "LPGD-Taut")}  # each is a program to compile
    monkeypatch.setattr(learning, "NETWORKS", networks)
    found = learning.curves((0, 0.1, 30, 5, (0, 1, 3)))
    assert set(found) == set(learning.SOLVERS) | set(learning.NETWORKS)
    starts = [curve[0] for curve in found.values()]
    np.testing.assert_allclose(starts, starts[0], rtol=1e-9)
    assert all(curve[-1] < curve[0] for curve in found.values())
    assert found["LPGD-Taut"][-1] < found["PGD"][-1]


def test_iterations_go_down_to_the_minimum(monkeypatch):
    monkeypatch.setattr(
        iterations, "SOLVERS", {name: iterations.SOLVERS[name] for name in ("PGD", "APGD", "PGD, synthesis")}
    )
    found = iterations.curves((0, 3, 20))
    assert set(found) == set(iterations.SOLVERS)
    assert all(curve.size == 1 + 20 // iterations.CHECKS and curve[-1] > -1e-9 for curve in found.values())
    assert found["APGD"][-1] < found["PGD"][-1] < found["PGD, synthesis"][-1]
    assert iterations.reach(np.array([3.0, 2.0, 1.0]), 2.0) == iterations.CHECKS
    assert iterations.reach(np.array([3.0, 2.0]), 0.1) == iterations.CHECKS


def test_inner_errors_are_excesses_of_the_proximal_problem():
    with jax.enable_x64(True):
        x, _, _, A = simulate(0, 4)
        c = constants_of(A)
        params = init_network(A, 2, "lpgd_lista", n_inner=5, inner="per_layer")
        data = Data(x, jnp.full((4, 1), 0.3), c)
        found = np.asarray(inner_error.errors(params, data, n_inner=5))
        start, step, _ = NETWORKS["lpgd_lista"].build(c, x, data.lam, 5, None)
        weights = jax.tree.map(lambda leaf: leaf[0], params["layers"])
        u, near = np.asarray(start), np.asarray(step(weights, start))
    A, x = np.asarray(A), np.asarray(x)
    rho = np.linalg.norm(A, 2) ** 2
    y = u - (u @ A.T - x) @ A / rho
    excess = [value(n, row, np.eye(8), 0.3 / rho) - value(prox(row, 0.3 / rho), row, np.eye(8), 0.3 / rho)
              for n, row in zip(near, y)]  # fmt: skip
    assert found.shape == (2,)
    assert found[0] == pytest.approx(np.mean(excess), rel=1e-6)
    assert (found > 0).all()


def test_bold_windows_are_normalised_pieces_of_the_series():
    series = bold.load()
    assert series.shape == (28, 250)
    cut = bold.windows(series)
    assert cut.shape == (28, 7, bold.N_TIMES)
    np.testing.assert_allclose(cut.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(cut.std(-1), 1, rtol=1e-12)
    assert np.corrcoef(cut[3, 2], series[3, 2 * bold.HOP : 2 * bold.HOP + bold.N_TIMES])[0, 1] == pytest.approx(1)


def test_bold_curves_fall_on_regions_not_trained_on():
    found, (x, fit, *activity) = bold.curves((bold.windows(bold.load())[:4], 0, 3, (0, 1, 2)))
    assert set(found) == {"PGD", "APGD", "LPGD-Taut"}
    assert all((np.diff(curve) < 0).all() and curve[-1] > 0 for curve in found.values())
    assert x.shape == fit.shape == (bold.N_TIMES,)
    assert {u.shape for u in activity} == {(bold.N_TIMES - 12,)}  # the response lasts 13 scans


def test_bold_without_nitime_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(bold, "find_spec", lambda name: None)
    result = bold.bold("quick", 0)
    assert result.data.kind == "missing"
    assert all(claim.verdict is Verdict.NOT_RUN for claim in result.claims)


def test_denoising_gains():
    gradient, algebra = denoising.derivatives(0)
    assert gradient <= 1e-6
    assert algebra <= 1e-12
    truth = denoising.picture("quick")[:64, :64]
    noisy, best, lam = denoising.denoise((truth, 0))
    assert denoising.psnr(noisy, truth) == pytest.approx(20, abs=0.3)  # noise of 0.1
    assert denoising.psnr(best, truth) > denoising.psnr(noisy, truth) + 3
    assert lam in denoising.PENALTIES
