"""Tests of gyri.hnpe.diagnostics and gyri.hnpe.plot."""

import numpy as np
import pytest

from gyri.hnpe import diagnostics, pairplot, sbc, simulate


@pytest.fixture
def sims(toy):
    return simulate(9, toy.prior, toy, 40, (0, 4))


def test_ranks_count_draws_below_the_truth(posterior, sims):
    result = sbc(0, posterior, sims, n_samples=50)
    assert result.ranks.shape == (40, 2) and result.ranks.min() >= 0 and result.ranks.max() <= 50
    assert result.pvalues.shape == (2,) and result.coverage.shape == (2, len(result.levels))
    assert (np.diff(result.coverage, axis=1) >= 0).all()
    low = sbc(0, posterior, sims._replace(theta=np.full((40, 2), 1e-6)), n_samples=50)
    high = sbc(0, posterior, sims._replace(theta=np.full((40, 2), 1 - 1e-6)), n_samples=50)
    assert (low.ranks == 0).all() and (high.ranks == 50).all()
    assert (low.pvalues < 1e-6).all() and (low.coverage[:, -1] < 0.5).all()


def test_uniform_ranks_are_calibrated(posterior, sims, monkeypatch):
    rng = np.random.default_rng(0)
    many = type(sims)(*(np.tile(leaf, (50,) + (1,) * (leaf.ndim - 1)) for leaf in map(np.asarray, sims)))
    monkeypatch.setattr(diagnostics, "_ranks", lambda *args: rng.integers(0, 101, (2000, 2)))
    result = sbc(0, posterior, many, n_samples=100)
    assert (result.pvalues > 0.001).all()
    assert np.abs(result.coverage - result.levels).max() < 0.04


def test_calibration_plot(posterior, sims):
    figure, axes = sbc(0, posterior, sims, n_samples=50).plot(n_bins=10)
    assert len(axes) == 3
    assert axes[0].get_xlabel() == "rank of alpha"
    assert sum(patch.get_height() for patch in axes[0].patches if patch.get_width() == 5) == 40
    import matplotlib.pyplot as plt

    plt.close(figure)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": np.zeros((40, 3))}, r"sims.theta: expected shape"),
        ({"x": np.zeros((39, 1))}, "sims.x: expected shape"),
        ({"x_extra": np.zeros((40, 5, 1))}, "sims.x_extra: expected at most 4 others"),
        ({"mask": np.zeros((40, 3), bool)}, "sims.mask: expected shape"),
        ({"x": np.full((40, 1), np.nan)}, "sims.x: expected finite"),
    ],
)
def test_bad_simulations_are_refused(posterior, sims, change, message):
    with pytest.raises(ValueError, match=message):
        sbc(0, posterior, sims._replace(**change), n_samples=10)


def test_pairs_are_drawn():
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(0)
    sets = {"one": rng.normal(size=(300, 3)), "other": rng.normal(size=(3000, 3)) + 1}
    figure, axes = pairplot(sets, ["a", "b", "c"], [(-4, 5)] * 3, np.zeros(3))
    assert axes.shape == (3, 3)
    assert not axes[0, 1].get_visible() and axes[1, 0].get_visible()
    assert axes[2, 0].get_xlabel() == "a" and axes[2, 0].get_ylabel() == "c"
    assert axes[1, 1].get_xlim() == (-4, 5)
    dots = [line.get_xydata() for line in axes[1, 0].get_lines() if line.get_marker() == "."]
    np.testing.assert_array_equal(dots[0], sets["one"][:, :2])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "other"]
    alone, axes = pairplot(np.c_[rng.normal(size=50), np.ones(50)])  # a parameter that does not vary
    assert not alone.legends and axes[1, 0].get_xlabel() == "parameter 0"
    plt.close("all")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({},), "samples: expected at least one set"),
        ((np.zeros(3),), "samples: expected 2 axes"),
        ((np.zeros((0, 2)),), "samples: expected at least one entry"),
        (({"a": np.zeros((3, 2)), "b": np.zeros((3, 3))},), "samples b: expected 2 parameters"),
        ((np.zeros((3, 2)), ["a"]), "names: expected 2"),
        ((np.zeros((3, 2)), None, [(0, 1)]), "limits: expected 2"),
        ((np.zeros((3, 2)), None, None, np.zeros(3)), "points: expected shape"),
        ((np.full((3, 2), np.nan),), "samples: expected finite"),
    ],
)
def test_bad_draws_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pairplot(*arguments)
