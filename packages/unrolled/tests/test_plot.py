"""Figures."""

from types import SimpleNamespace

import mne
import numpy as np
import pytest
from matplotlib import pyplot as plt

from gyri.unrolled import AnalysisPrior, ConvDictionaryLearning, DictionaryLearning, plot_atoms, plot_history

QUIET = {"verbose": False, "max_steps": 2, "n_iter": 3}


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_atoms_of_every_kind():
    rng = np.random.default_rng(0)
    vectors = DictionaryLearning(5, **QUIET).fit(rng.standard_normal((30, 7)))
    assert [ax.get_title() for ax in plot_atoms(vectors).axes] == [f"atom {k}" for k in range(5)]
    patches = SimpleNamespace(components_=rng.standard_normal((6, 16)))
    assert plot_atoms(patches).axes[0].images[0].get_array().shape == (4, 4)
    colour = SimpleNamespace(components_=rng.standard_normal((2, 3, 3, 4)))
    assert plot_atoms(colour).axes[0].images[0].get_array().shape == (3, 4, 3)
    filters = AnalysisPrior(constraint="conv", kernel_shape=(3, 3), **QUIET).fit(rng.standard_normal((1, 1, 9, 9)))
    np.testing.assert_allclose(plot_atoms(filters).axes[1].images[0].get_array(), filters.prior_[1])
    many = SimpleNamespace(components_=rng.standard_normal((70, 5)))
    assert len(plot_atoms(many).axes) == 64


def test_rank_one_atoms_with_and_without_sensors():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((8, 200))
    model = ConvDictionaryLearning(3, 10, rank1=True, **QUIET).fit(X)
    figure = plot_atoms(model)
    assert len(figure.axes) == 6
    np.testing.assert_allclose(figure.axes[3].lines[0].get_ydata(), model.temporal_[0])
    angles = np.arange(8) * np.pi / 4
    radii = 0.05 + 0.01 * np.arange(8) % 0.03
    places = np.stack([radii * np.cos(angles), radii * np.sin(angles), np.full(8, 0.08)], 1)
    montage = mne.channels.make_dig_montage(dict(zip("ABCDEFGH", places)), coord_frame="head")
    info = mne.create_info(list("ABCDEFGH"), 100.0, "eeg").set_montage(montage)
    figure = plot_atoms(model, info)
    assert figure.axes[3].get_xlabel() == "Time (s)"
    raw = mne.io.RawArray(X, info, verbose="error")
    assert plot_atoms(ConvDictionaryLearning(3, 10, rank1=True, **QUIET).fit(raw)).axes[3].get_xlabel() == "Time (s)"


def test_history():
    model = DictionaryLearning(5, **QUIET).fit(np.random.default_rng(0).standard_normal((30, 7)))
    figure = plot_history(model)
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), model.history_["loss"])


def test_nothing_is_drawn_before_fit():
    for plot, what in ((plot_atoms, "components_"), (plot_history, "history_")):
        with pytest.raises(ValueError, match=f"model: expected a fitted one, got one without {what}"):
            plot(DictionaryLearning())
