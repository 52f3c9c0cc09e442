"""Tests of gyri.pavi.plot."""

import sys

import numpy as np
import pytest
from matplotlib import pyplot as plt

from gyri.pavi.plot import plot_elbo, plot_posterior


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_lines_are_moving_medians_of_the_elbo():
    losses = np.array([5.0, 1.0, 3.0, 2.0, 10.0])
    ax = plot_elbo(losses, smooth=3).axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), -losses)
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [-5, -3, -3, -2, -3])
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [1, 2, 3, 4, 5])


def test_several_fits_have_names_and_the_axes_of_the_caller():
    figure, ax = plt.subplots()
    assert plot_elbo({"a": np.ones(4), "b": np.arange(100.0)}, ax=ax, smooth=1) is figure
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert len(ax.lines) == 2


def test_intervals_hold_the_probability():
    draws = np.random.default_rng(0).normal(size=(20_000, 3, 1, 2)) * np.array([1.0, 2.0])
    ax = plot_posterior({"theta": draws}, "theta", event_index=1, prob=0.5).axes[0]
    ends = np.array([path.vertices[:, 1] for path in ax.collections[0].get_paths()])
    np.testing.assert_allclose(ends, [[-2 * 0.6745, 2 * 0.6745]] * 3, atol=0.06)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 0, atol=0.06)


@pytest.mark.parametrize(("shape", "n_copies"), [((50,), 1), ((50, 4), 1), ((50, 300, 1, 2), 300)])
def test_copies_of_sites_of_all_shapes(shape, n_copies):
    ax = plot_posterior({"a": np.zeros(shape)}, "a").axes[0]
    assert len(ax.lines[0].get_ydata()) == n_copies


def test_all_copies_of_a_site_of_scalars():
    draws = np.tile(np.arange(8.0), (50, 1))
    ax = plot_posterior({"theta": draws}, "theta", event_index=None).axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), np.arange(8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_elbo({}), "losses: expected at least one"),
        (lambda: plot_elbo(np.ones((2, 2))), "losses"),
        (lambda: plot_elbo({"a": np.array([1.0, np.nan])}), "losses a"),
        (lambda: plot_elbo(np.ones(3), smooth=0), "smooth"),
        (lambda: plot_posterior({"a": np.ones(3)}, "b"), "site: expected one of"),
        (lambda: plot_posterior({"a": np.ones((3, 2))}, "a", event_index=2), "event_index: expected 0 to 1"),
        (lambda: plot_posterior({"a": np.ones(3)}, "a", prob=1.0), "prob"),
        (lambda: plot_posterior({"a": np.array(1.0)}, "a"), "samples"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_matplotlib_the_pip_line_is_printed(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"gyri-pavi\[plot\]"):
        plot_elbo(np.ones(3))
