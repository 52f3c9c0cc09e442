"""The estimator as its users meet it: scikit-learn's habits, persistence, plots, bad input, Ctrl-C."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from gyri.dripp import DriPP, Params, datasets, em, estimator, lag_table, negative_log_likelihood, simulate

DRIVERS = {"tone": np.arange(1.0, 200.0, 1.3), "flash": np.arange(1.5, 200.0, 1.9)}
TRUTH = Params(0.5, np.array([0.8, 0.3]), np.array([0.2, 0.3]), np.array([0.03, 0.05]))
WINDOW = {"lower": 0.03, "upper": 0.5, "t_stop": 200.0}
EVENTS = [simulate(k, DRIVERS, TRUTH, **WINDOW) for k in range(2)]


@pytest.fixture(scope="module")
def single():
    return DriPP(init="smart_start").fit(EVENTS[0], DRIVERS, t_stop=200.0)


@pytest.fixture(scope="module")
def several():
    return DriPP(init="smart_start").fit([*EVENTS, []], DRIVERS, t_stop=200.0)


def test_fit_is_em_on_the_lag_table(single):
    table = lag_table(EVENTS[0], DRIVERS, **WINDOW)
    result = em(table, "smart_start")
    for ours, theirs in zip(single.params_, result.params, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert single.driver_names_ == ("tone", "flash")
    assert single.n_events_ == EVENTS[0].size
    np.testing.assert_allclose(single.ratio_, single.alpha_ / single.baseline_, rtol=1e-6)
    np.testing.assert_allclose(single.score(EVENTS[0]), -single.nll_, rtol=1e-6)
    other = single.score(EVENTS[1], DRIVERS, t_stop=200.0)
    expected = -negative_log_likelihood(single.params_, lag_table(EVENTS[1], DRIVERS, **WINDOW))
    np.testing.assert_allclose(other, expected, rtol=1e-6)


def test_atoms_share_one_call(single, several):
    np.testing.assert_allclose(several.m_[0], single.m_, rtol=1e-4)
    assert several.alpha_.shape == several.ratio_.shape == (3, 2)
    assert several.baseline_[2] == 0 and np.all(several.ratio_[2] == 0)
    assert several.n_events_.tolist() == [EVENTS[0].size, EVENTS[1].size, 0]
    assert several.score([EVENTS[0], EVENTS[1], []]).shape == (3,)
    assert several.intensity([1.0, 2.0]).shape == (3, 2)
    assert several.intensity([1.0, 2.0], atom=1).shape == (2,)
    assert several.kernel_values([0.1, 0.2, 0.9]).shape == (3, 2, 3)
    assert len(several.simulate(0, t_stop=10.0)) == 3
    assert several.standard_errors().m.shape == (3, 2)
    assert several.goodness_of_fit().pvalue.shape == (3,)


def test_it_is_a_scikit_learn_estimator(single):
    model = DriPP(0.1, 0.9, kernel="raised_cosine", tol=1e-5)
    assert clone(model).get_params() == model.get_params()
    assert model.set_params(max_iter=7).max_iter == 7
    assert "raised_cosine" in repr(model)
    for use in ("standard_errors", "summary", "goodness_of_fit", "test", "plot_intensity", "plot_qq", "to_frame"):
        with pytest.raises(NotFittedError):
            getattr(model, use)()
    with pytest.raises(NotFittedError):
        model.save("nowhere.npz")


def test_kernel_values_integrate_to_alpha(single):
    x = np.linspace(0, 0.6, 6001)
    values = single.kernel_values(x)
    np.testing.assert_allclose(np.trapezoid(values, x), single.alpha_, rtol=1e-3)


@pytest.mark.parametrize("which", ["single", "several"])
def test_a_saved_model_comes_back_bit_for_bit_with_its_data(which, request, tmp_path):
    model = request.getfixturevalue(which)
    path = tmp_path / "model.dripp"
    model.save(path)
    loaded = DriPP.load(path)
    assert loaded.get_params() == model.get_params()
    for ours, theirs in zip(jax.tree.leaves(model.params_), jax.tree.leaves(loaded.params_), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype
    for ours, theirs in zip(jax.tree.leaves(model.table_), jax.tree.leaves(loaded.table_), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(model.history_, loaded.history_)
    assert loaded.summary() == model.summary()
    np.testing.assert_array_equal(loaded.goodness_of_fit().pvalue, model.goodness_of_fit().pvalue)
    again = tmp_path / "again.dripp"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_options_survive_saving(tmp_path):
    model = DriPP(
        0.0, 0.5, init=TRUTH, m_bounds=(-np.inf, np.inf), sfreq=100.0, random_state=jax.random.key(3), polish=False
    )
    model.fit([0.5, 0.7, 1.9], {"a": [0.3], "b": [1.5]}, t_stop=3.0).save(tmp_path / "m")
    loaded = DriPP.load(tmp_path / "m")
    assert (loaded.m_bounds, loaded.sfreq, loaded.polish) == ((-np.inf, np.inf), 100.0, False)
    np.testing.assert_array_equal(loaded.init.alpha, TRUTH.alpha)
    assert jax.random.key_data(loaded.random_state).tolist() == jax.random.key_data(jax.random.key(3)).tolist()


def test_damaged_and_foreign_files_are_refused(single, tmp_path):
    path = tmp_path / "model"
    single.save(path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for size in (0, 1, len(content) // 2, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:size])
        with pytest.raises(ValueError, match="cut"):
            DriPP.load(tmp_path / "cut")
    for place in rng.integers(0, len(content), 60):
        (tmp_path / "flip").write_bytes(content[:place] + bytes([content[place] ^ 0x20]) + content[place + 1 :])
        with pytest.raises(ValueError, match="flip"):
            DriPP.load(tmp_path / "flip")
    from gyri.numerics.io import save_pytree

    save_pytree(tmp_path / "other", {"x": np.ones(2)}, kind="something else")
    with pytest.raises(ValueError, match="something else"):
        DriPP.load(tmp_path / "other")


def test_without_t_stop_the_recording_ends_after_the_last_event_and_says_so():
    with pytest.warns(UserWarning, match="t_stop"):
        model = DriPP(0.0, 0.5, init="smart_start").fit([0.5, 0.7, 1.9], [0.3])
    np.testing.assert_allclose(model.times_.t_stop, 2.4)
    with pytest.raises(ValueError, match="t_stop"):
        DriPP().fit([], None)
    with pytest.raises(ValueError, match="events"):
        DriPP().fit([1.0, np.nan], None)


def test_intervals_contain_the_estimate(single):
    for level in (0.5, 0.95):
        for name, ends in single.confidence_intervals(level).items():
            value = np.asarray(getattr(single.params_, name))
            assert np.all((ends[..., 0] < value) & (value < ends[..., 1]))
    boot = single.confidence_intervals(method="bootstrap", n_resamples=8)
    assert boot["alpha"].shape == (2, 2)
    with pytest.raises(ValueError, match="method"):
        single.confidence_intervals(method="jackknife")


def test_test_needs_no_data(single):
    test = single.test(n_resamples=19)
    assert test.pvalue.shape == (2,) and test.pvalue[0] == 0.05


def test_tables_list_every_atom_and_driver(several):
    text = several.summary()
    assert len(text.splitlines()) == 1 + 3 * 2
    assert "flash" in text
    frame = pytest.importorskip("pandas") and several.to_frame()
    assert frame.shape[0] == 6
    np.testing.assert_allclose(frame["alpha"], np.ravel(several.alpha_))
    alone = DriPP().fit([1.0, 2.0, 5.0], t_stop=10.0)
    assert "0.3" in alone.summary()


def test_plots_draw_on_given_axes_and_return_the_figure(single, several):
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    assert single.plot_intensity(ax=ax) is figure
    assert len(ax.lines) == 3
    peak = max(np.max(line.get_ydata()) for line in ax.lines)
    np.testing.assert_allclose(
        peak, single.baseline_ + single.kernel_values(np.linspace(0, 0.6, 5001)).max(), rtol=1e-2
    )
    assert several.plot_qq(1).axes[0].get_title() == "Atom 1"
    assert several.plot_qq(2) is not several.plot_intensity()
    with pytest.raises(ValueError, match="atom"):
        several.plot_intensity(3)
    with pytest.raises(ValueError, match="atom"):
        single.intensity([1.0], atom=0)
    plt.close("all")


BAD = [
    ({"events": [1.0, np.nan]}, {}, "events"),
    ({"events": [1.0, 300.0]}, {}, "events"),
    ({"events": np.ones((3, 2))}, {}, "events"),
    ({"drivers": [np.inf]}, {}, "drivers"),
    ({"drivers": {"a": np.ones((2, 2))}}, {}, "drivers"),
    ({"t_stop": -1.0}, {}, "t_stop"),
    ({}, {"lower": 0.5, "upper": 0.5}, "upper"),
    ({}, {"lower": -0.1}, "lower"),
    ({}, {"kernel": "boxcar"}, "kernel"),
    ({}, {"init": "guess"}, "init"),
    ({}, {"m_step": "other"}, "m_step"),
    ({}, {"max_iter": -1}, "max_iter"),
    ({}, {"sfreq": 3.0}, "grid"),
    ({}, {"init": Params(-1.0, np.ones(1), np.ones(1), np.ones(1))}, "init.baseline"),
    ({}, {"init": Params(1.0, np.ones(1), np.ones(1), -np.ones(1))}, "init.sigma"),
]


@pytest.mark.parametrize(("data", "options", "argument"), BAD)
def test_bad_input_is_refused_by_name(data, options, argument):
    arguments = {"events": [1.0, 2.0, 3.1], "drivers": [0.9], "t_stop": 10.0} | data
    with pytest.raises(ValueError, match=argument):
        DriPP(**options).fit(arguments["events"], arguments["drivers"], t_stop=arguments["t_stop"])


def test_interrupting_a_fit_keeps_the_atoms_that_are_done(monkeypatch):
    monkeypatch.setattr(estimator, "_ATOMS_AT_ONCE", 2)
    calls, real = [], estimator.em

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    events = [*EVENTS, EVENTS[0], EVENTS[1][:50], []]
    whole = DriPP(init="smart_start").fit(events, DRIVERS, t_stop=200.0)
    assert np.all(whole.converged_)
    monkeypatch.setattr(estimator, "em", interrupted)
    with pytest.warns(UserWarning, match="interrupted: 2 of 5"):
        model = DriPP(init="smart_start").fit(events, DRIVERS, t_stop=200.0)
    assert model.converged_.tolist() == [True, True, False, False, False]
    np.testing.assert_allclose(model.m_[:2], whole.m_[:2], rtol=1e-5)
    assert np.all(np.isfinite(model.alpha_)) and "nan" not in str(model.baseline_)
    calls.clear()
    calls.append(1)
    before = model.params_
    with pytest.raises(KeyboardInterrupt):
        model.fit(events, DRIVERS, t_stop=200.0)
    assert model.params_ is before


def test_progress_is_shown_only_if_asked_for(capsys):
    for progress in (False, True):
        DriPP(init="smart_start", progress=progress).fit(EVENTS, DRIVERS, t_stop=200.0)
        shown = capsys.readouterr()
        assert bool(shown.err) is progress
        assert not shown.out


@pytest.mark.slow
def test_the_real_recording_gives_the_published_estimates():
    pytest.importorskip("nitime")
    with jax.enable_x64(True):
        for recording, expected in (
            (1, (55.05, 0.669, 6.96e-3, 0.459e-3, -3687.097)),
            (2, (12.27, 0.322, 7.45e-3, 0.476e-3, -3508.460)),
        ):
            data = datasets.grasshopper(recording)
            model = DriPP(0.0, 0.02, edge=False).fit(data.events, data.drivers, t_stop=data.t_stop)
            found = (model.baseline_, model.alpha_[0], model.m_[0], model.sigma_[0])
            np.testing.assert_allclose(found, expected[:4], rtol=1.2e-3)  # as many digits as are published
            np.testing.assert_allclose(model.nll_, expected[4], atol=2e-3)


def test_missing_extras_print_the_pip_line():
    code = (
        "import sys\n"
        "for name in ('matplotlib', 'matplotlib.pyplot', 'pandas', 'mne'):\n"
        "    sys.modules[name] = None\n"
        "import numpy as np\n"
        "from gyri.dripp import DriPP, drivers_from_mne\n"
        "model = DriPP().fit([1.0, 2.0], t_stop=3.0)\n"
        "for use in (model.plot_intensity, model.to_frame, lambda: drivers_from_mne(object())):\n"
        "    try:\n"
        "        use()\n"
        "    except ImportError as error:\n"
        "        print(str(error))\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for extra in ("plot", "pandas", "mne"):
        assert f"gyri-dripp[{extra}]" in shown
