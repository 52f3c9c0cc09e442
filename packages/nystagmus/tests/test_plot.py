"""Figures hold what they are given."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from gyri.nystagmus import plot_atoms, plot_decomposition


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_decomposition():
    rng = np.random.default_rng(0)
    trend, pattern, residual = rng.standard_normal((3, 2, 1, 50))
    codes = np.zeros((2, 1, 41))
    codes[1, 0, [3, 20]] = 1.0, 2.0
    parts = SimpleNamespace(trend=trend, pattern=pattern, residual=residual, codes=codes)
    figure, axes = plt.subplots(3)
    assert plot_decomposition(parts, t=np.arange(50) / 100, ax=axes, trial=1) is figure
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), (trend + pattern + residual)[1, 0])
    np.testing.assert_allclose(axes[1].lines[1].get_ydata(), pattern[1, 0])
    segments = axes[2].collections[0].get_segments()
    np.testing.assert_allclose([s[1] for s in segments], [[0.03, 1.0], [0.2, 2.0]])
    with pytest.raises(ValueError, match="t"):
        plot_decomposition(parts, t=np.arange(4))
    with pytest.raises(ValueError, match="ax"):
        plot_decomposition(parts, ax=axes[0])


def test_atoms():
    atoms = np.arange(12.0).reshape(2, 2, 3)
    figure = plot_atoms(atoms, 1000.0, scale=[1.0, 2.0], ch_names=["x", "y"])
    np.testing.assert_allclose(figure.axes[1].lines[1].get_ydata(), 2 * atoms[1, 1])
    assert figure.axes[0].get_xlabel() == "Time (ms)" and figure.axes[0].get_legend().texts[1].get_text() == "y"
    with pytest.raises(ValueError, match="ax"):
        plot_atoms(atoms, ax=figure.axes[:1])
    with pytest.raises(ValueError, match="scale"):
        plot_atoms(atoms, scale=[1.0])
