"""Tests of gyri.shine.plot."""

import sys

import numpy as np
import pytest
from matplotlib import pyplot as plt

from gyri.shine import HoagResult, inverse_quality, plot_hoag, plot_inverse_quality


def result(shift=0.0):
    history = {name: np.arange(4.0) for name in ("inner_evals", "hvps", "time", "tol", "hypergrad")}
    return HoagResult(
        np.zeros(2), np.zeros(()), 1.0, history | {"outer": shift + np.array([5.0, 3.0, 4.0, 2.0]), "lam": np.zeros(4)}
    )


def test_curves_are_the_best_so_far_above_the_least():
    figure = plot_hoag({"a": result(), "b": result(1.0)})
    lines = figure.axes[0].lines
    np.testing.assert_array_equal(lines[0].get_ydata(), [3, 1, 1, 0])
    np.testing.assert_array_equal(lines[1].get_ydata(), [4, 2, 2, 1])
    np.testing.assert_array_equal(lines[0].get_xdata(), np.arange(4))
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b"]
    plt.close(figure)


def test_other_entries_are_drawn_as_they_are():
    figure, ax = plt.subplots()
    assert plot_hoag({"a": result()}, ax=ax, y="lam", x="inner_evals") is figure
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), np.zeros(4))
    plt.close(figure)


def test_points_of_inverses():
    exact = np.random.default_rng(0).standard_normal((6, 4))
    figure = plot_inverse_quality({"half": inverse_quality(exact / 2, exact)})
    line = figure.axes[0].lines[-1]
    np.testing.assert_allclose(line.get_xdata(), 0.5, rtol=1e-6)
    np.testing.assert_allclose(line.get_ydata(), 1.0, rtol=1e-6)
    plt.close(figure)


def test_bad_input_is_refused():
    for call, message in (
        (lambda: plot_hoag({}), "results: expected at least one"),
        (lambda: plot_hoag({"a": result()}, y="speed"), "y: expected one of"),
        (lambda: plot_hoag({"a": result()}, x="speed"), "x: expected one of"),
        (lambda: plot_inverse_quality({}), "qualities: expected at least one"),
        (lambda: plot_inverse_quality({"a": (1, 2)}), "qualities"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_without_matplotlib_the_pip_line_is_printed(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "gyri-shine\[plot\]"'):
        plot_hoag({"a": result()})
