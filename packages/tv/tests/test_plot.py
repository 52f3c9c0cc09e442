"""Tests of gyri.tv.plot."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from gyri.tv import plot_convergence, plot_signals


def test_plot_convergence_draws_the_mean_above_the_optimum():
    history = np.array([[3.0, 2.0, 1.5], [5.0, 4.0, 3.5]])
    figure = plot_convergence({"PGD": history, "net": history[:, :2]}, optimum=[1.0, 3.0], depths={"net": [0, 10]})
    first, second = figure.axes[0].lines
    np.testing.assert_allclose(first.get_xydata(), [[0, 2], [1, 1], [2, 0.5]])
    np.testing.assert_allclose(second.get_xydata(), [[0, 2], [10, 1]])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["PGD", "net"]
    assert figure.axes[0].get_yscale() == "log"
    figure.canvas.draw()
    plt.close(figure)


def test_plot_signals_draws_them_over_time():
    figure, ax = plt.subplots()
    assert plot_signals({"noisy": np.arange(4.0), "flat": [0.0, 0.0, 0.0, 1.0]}, sfreq=2.0, ax=ax) is figure
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0, 0.5, 1, 1.5])
    assert [line.get_drawstyle() for line in ax.lines] == ["default", "steps-mid"]
    assert ax.get_xlabel() == "Time (s)"
    plt.close(figure)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_convergence({}), "curves: expected at least one"),
        (lambda: plot_convergence({"a": np.ones((2, 3))}, optimum=np.ones(3)), r"curves\['a'\]: expected 3 rows"),
        (lambda: plot_convergence({"a": np.ones(3)}, depths=[1, 2]), "depths: expected 3 for 'a'"),
        (lambda: plot_convergence({"a": [np.nan]}), r"curves\['a'\]: expected finite"),
        (lambda: plot_signals({}), "signals: expected at least one"),
        (lambda: plot_signals({"a": np.ones((2, 2))}), r"signals\['a'\]: expected 1 axis"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
