"""The estimators as their users meet them: scikit-learn's habits, invariances, masks, files, bad input, Ctrl-C."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from gyri.numerics.testing import check_no_recompilation
from gyri.nystagmus import (
    ConvolutionalDictionaryLearning,
    NystagmusCDL,
    algorithms,
    pattern_correlation,
    simulate_nystagmus,
)

SFREQ, LENGTH = 200.0, 60
OPTIONS = {"n_times_atom": LENGTH, "sfreq": SFREQ, "max_iter": 15, "reg": 0.3}


def make(seed=0, n_trials=1, n_times=1200, **options):
    about = {"kind": "jerk_sf_up", "frequency": 5.0, "nystagmus_std": 3.0, "saccade_std": 5.0, "slow_std": 3.0}
    return simulate_nystagmus(seed, n_trials, n_times, SFREQ, **{**about, **options})


DATA = make()
X = DATA.recording


@pytest.fixture(scope="module")
def model():
    return NystagmusCDL(**OPTIONS).fit(X)


@pytest.fixture(scope="module")
def blinking():
    mask = np.ones(X.shape[-1], bool)
    mask[200:230] = mask[700:740] = False
    return mask


# --- what a fit gives -------------------------------------------------------------------------------------------------


def test_a_fit_finds_the_waveform_and_takes_the_recording_apart(model):
    assert model.atoms_.shape == (1, 1, LENGTH) and model.codes_.shape == (1, 1, 1200 - LENGTH + 1)
    assert pattern_correlation(DATA.pattern[0], model.atoms_[:, 0])[0] > 0.85
    assert np.linalg.norm(model.atoms_) <= 1 + 1e-5 and np.all(model.codes_ >= 0)
    parts = model.decomposition_
    np.testing.assert_allclose(parts.trend + parts.pattern + parts.residual, X, atol=1e-4)
    np.testing.assert_allclose(model.detrended_, X - model.trend_, atol=1e-9)
    np.testing.assert_allclose(model.pattern_signal_, model.inverse_transform(model.codes_), atol=1e-6)
    convolved = np.convolve(model.codes_[0, 0], model.atoms_[0, 0])
    np.testing.assert_allclose(model.pattern_signal_[0, 0], convolved, atol=1e-4)
    (about,) = model.waveforms()
    assert about["frequency_hz"] == pytest.approx(5.0, rel=0.05)
    assert {"amplitude_deg", "slow_phase_velocity", "jerkiness", "foveation_ms"} < set(about)


def test_the_objective_is_the_stated_one_and_falls(model):
    residual = (X - model.trend_ - model.pattern_signal_).astype(np.float64)
    steps = np.abs(np.diff(model.trend_, axis=-1)).sum()
    value = 0.5 * (residual**2).sum() + model.lam_ * model.codes_.sum() + model.trend_reg_ * steps
    np.testing.assert_allclose(model.objective_[-1], value, rtol=1e-4)
    assert np.all(np.diff(model.objective_) <= 1e-5 * model.objective_[0])
    assert model.objective_.size == 3 * model.n_iter_ + 2
    np.testing.assert_allclose(model.score(X), -value / X.size, rtol=1e-3)


def test_the_objective_falls_to_rounding_in_double_precision(x64):
    fitted = NystagmusCDL(**OPTIONS).fit(X)
    assert fitted.codes_.dtype == np.float64
    assert np.all(np.diff(fitted.objective_) <= 1e-9 * fitted.objective_[:-1])


def test_transform_at_the_learned_atoms_gives_the_fit(x64):
    fitted = NystagmusCDL(**OPTIONS, tol_final=1e-6).fit(X)
    parts = fitted.decompose(X)
    scale = np.abs(fitted.pattern_signal_).max()
    np.testing.assert_allclose(parts.pattern, fitted.pattern_signal_, atol=0.02 * scale)
    np.testing.assert_array_equal(fitted.transform(X), parts.codes)
    np.testing.assert_array_equal(fitted.detrend(X), X - parts.trend)
    np.testing.assert_array_equal(fitted.trend(X), parts.trend)
    other = make(5).recording[..., :1000]
    assert fitted.transform(other).shape == (1, 1, 1000 - LENGTH + 1)


def test_without_trend_it_is_plain_dictionary_learning_on_the_centred_data(x64):
    options = {"reg": 0.3, "window": True, "max_iter": 8}
    plain = ConvolutionalDictionaryLearning(1, LENGTH, **options).fit(X - X.mean())
    same = NystagmusCDL(n_times_atom=LENGTH, sfreq=SFREQ, trend_reg=None, **options).fit(X)
    np.testing.assert_allclose(same.atoms_, plain.atoms_, atol=1e-10)
    np.testing.assert_allclose(same.codes_, plain.codes_, atol=1e-8)
    np.testing.assert_allclose(same.trend_, X.mean(), rtol=1e-12)
    assert not hasattr(plain, "trend_") and same.trend_reg_ is None


def test_two_steps_take_the_trend_off_first():
    from gyri.numerics.prox import prox_tv1d

    fitted = NystagmusCDL(**OPTIONS, joint=False, trend_reg=3.0).fit(X)
    trend = np.asarray(prox_tv1d(X, 3.0))
    np.testing.assert_allclose(fitted.trend_, trend, atol=1e-4)
    np.testing.assert_allclose(fitted.trend(X), trend, atol=1e-4)
    value = 0.5 * ((X - trend - fitted.pattern_signal_) ** 2).sum() + fitted.lam_ * fitted.codes_.sum()
    np.testing.assert_allclose(fitted.objective_[-1], value + 3.0 * np.abs(np.diff(trend)).sum(), rtol=1e-4)


def test_rank_one_atoms_have_factors():
    x = np.concatenate([X, -0.5 * X], 1) + 0.1 * np.random.default_rng(0).standard_normal((1, 2, 1200))
    fitted = NystagmusCDL(2, **OPTIONS, rank1=True).fit(x)
    np.testing.assert_allclose(fitted.atoms_, fitted.spatial_[:, :, None] * fitted.temporal_[:, None], atol=1e-5)
    direction = np.abs(fitted.spatial_[0] @ [1, -0.5]) / np.sqrt(1.25)
    assert direction > 0.98
    fitted.set_params(rank1=False, max_iter=1).fit(x)
    assert not hasattr(fitted, "spatial_") and not hasattr(fitted, "temporal_")


def test_atoms_are_sorted_by_their_part_of_the_signal():
    fitted = NystagmusCDL(3, **OPTIONS).fit(X)
    parts = [np.var(np.convolve(fitted.codes_[0, k], fitted.atoms_[k, 0])) for k in range(3)]
    assert np.all(np.diff(parts) <= 0)


def test_unbiased_amplitudes_undo_the_shrinkage():
    biased = NystagmusCDL(**OPTIONS).fit(X)
    fitted = NystagmusCDL(**OPTIONS, unbiased=True).fit(X)
    np.testing.assert_array_equal(fitted.codes_ > 0, (fitted.codes_ > 0) & (biased.codes_ > 0))
    assert fitted.codes_.sum() > 1.05 * biased.codes_.sum()
    # Least squares on the support: the residual is orthogonal to every atom in use.
    residual = X[0, 0] - fitted.trend_[0, 0] - fitted.pattern_signal_[0, 0]
    gradient = np.correlate(residual, fitted.atoms_[0, 0], "valid")[fitted.codes_[0, 0] > 0]
    assert np.abs(gradient).max() < 1e-2 * fitted.lam_


def test_normalised_trials_come_back_in_the_unit_of_the_data():
    trials = make(1, 3).recording * np.array([1.0, 10.0, 0.1])[:, None, None]
    fitted = NystagmusCDL(**OPTIONS | {"normalize": "l2", "trend_reg": 0.2, "reg": 0.7}).fit(trials)
    assert fitted.trend_reg_ == 0.2
    np.testing.assert_allclose(fitted.trend_ + fitted.detrended_, trials, rtol=1e-6)
    same = make(1, 3).recording
    again = NystagmusCDL(**OPTIONS | {"normalize": "l2", "trend_reg": 0.2, "reg": 0.7}).fit(same)
    np.testing.assert_allclose(fitted.atoms_, again.atoms_, atol=1e-4)
    np.testing.assert_allclose(fitted.codes_[1], 10 * again.codes_[1], rtol=1e-3, atol=1e-3)


def test_activations_list_what_is_not_zero(model):
    (rows,) = model.activations()
    start = np.flatnonzero(model.codes_[0, 0])
    np.testing.assert_allclose(rows["time_s"], start / SFREQ)
    np.testing.assert_array_equal(rows["amplitude"], model.codes_[0, 0, start].astype(float))
    assert set(rows["atom"]) == {0}
    middle = float(np.median(rows["amplitude"]))
    assert 0 < model.activations(middle)[0].size < rows.size
    plain = ConvolutionalDictionaryLearning(2, LENGTH, max_iter=3, positive=False).fit(X)
    assert plain.activations()[0].dtype.names == ("sample", "atom", "amplitude")


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam_mode", ["fixed", "scaled", "shared", "per_atom"])
def test_levels_of_sparsity(lam_mode, x64):
    from gyri.numerics.csc import csc_lambda_max

    x = X - X.mean()
    init = np.random.default_rng(0).standard_normal((2, 1, LENGTH))
    init /= np.linalg.norm(init, axis=2, keepdims=True)
    reg = 20.0 if lam_mode == "fixed" else 0.4
    fitted = ConvolutionalDictionaryLearning(
        2, LENGTH, reg=reg, lam_mode=lam_mode, init=init, max_iter=1, sort_atoms=False
    ).fit(x)
    top = np.asarray(csc_lambda_max(init, x, per_atom=True))
    expected = {"fixed": 20.0, "scaled": 0.4 * top.max(), "shared": 0.4 * top.max(), "per_atom": 0.4 * top}
    np.testing.assert_allclose(fitted.lam_, expected[lam_mode], rtol=1e-10)
    longer = fitted.set_params(max_iter=6).fit(x)
    if lam_mode in ("shared", "per_atom"):
        assert np.all(longer.lam_ != expected[lam_mode])
    else:
        np.testing.assert_allclose(longer.lam_, expected[lam_mode], rtol=1e-10)


@pytest.mark.parametrize("options", [{"algorithm": "greedy", "max_iter": 20}, {"algorithm": "online", "max_iter": 30}])
def test_other_algorithms_find_the_waveform_too(options):
    fitted = NystagmusCDL(2, **OPTIONS | options, window_length=4 * LENGTH).fit(X)
    assert pattern_correlation(DATA.pattern[0], fitted.atoms_[:, 0]).max() > 0.8
    assert np.all(np.linalg.norm(fitted.atoms_, axis=(1, 2)) > 0.5) and np.all(np.isfinite(fitted.objective_))
    assert fitted.codes_.shape == (1, 2, 1200 - LENGTH + 1) and np.any(fitted.codes_)


@pytest.mark.parametrize("method", ["mad", "quantile", "iqr", "zscore"])
def test_outliers_do_not_reach_the_atoms(method):
    x = np.array(X)
    burst = slice(500, 540)
    x[..., burst] += 40 * np.random.default_rng(0).standard_normal(40)
    plain = pattern_correlation(DATA.pattern[0], NystagmusCDL(**OPTIONS, trend_reg=20.0).fit(x).atoms_[:, 0])
    robust = NystagmusCDL(**OPTIONS, trend_reg=20.0, outliers=method).fit(x)
    score = pattern_correlation(DATA.pattern[0], robust.atoms_[:, 0])
    assert score > plain - 0.02
    if method == "mad":
        assert score > 0.8


@pytest.mark.parametrize("method", ["mad", "quantile", "iqr", "zscore"])
def test_masked_samples_are_no_measure_of_what_is_ordinary(method):
    residual = np.random.default_rng(0).standard_normal((1, 2, 1000))
    residual[..., 100:105] = 9.0
    mask = np.ones(residual.shape, bool)
    mask[..., 200:850] = mask[0, 0, 900:] = False
    zeroed = jnp.asarray(np.where(mask, residual, 0))
    found = np.asarray(algorithms.find_inliers(zeroed, 20, method, jnp.asarray(mask)))[0, 0]
    assert not found[100:105].any() and found[np.r_[0:70, 135:200, 850:1000]].mean() > 0.85
    # By definition: averages over what is valid of 20 samples and all channels, a threshold over valid samples.
    seen = np.flatnonzero(mask[0].any(0))
    around = [(slice(None), slice(max(t - 9, 0), t + 11)) for t in seen]
    error = np.array([2 * np.mean(np.square(residual[0][place][mask[0][place]])) for place in around])
    low, middle, high = np.quantile(error, [0.25, 0.5, 0.75])
    threshold = {
        "mad": middle + 3.5 * np.median(np.abs(error - middle)) / 0.6745,
        "quantile": np.quantile(error, 0.99),
        "iqr": high + 1.5 * (high - low),
        "zscore": error.mean() + 3 * error.std(),
    }[method]
    outlying = np.isin(np.arange(1000), seen[error > threshold])
    np.testing.assert_array_equal(found, np.convolve(outlying, np.ones(21), "same") == 0)


@pytest.mark.parametrize("algorithm", ["batch", "online"])
def test_atoms_learn_from_ordinary_samples_beside_a_long_gap(algorithm):
    mask = np.abs(np.arange(1200) - 600) > 400
    init = np.random.default_rng(0).standard_normal((1, 1, LENGTH))
    options = {"trend_reg": 20.0, "max_iter": 3, "algorithm": algorithm, "init": init, "batch_size": 2}
    robust, plain = (NystagmusCDL(**OPTIONS | options, outliers=how).fit(X, mask).atoms_ for how in ("mad", None))
    assert np.linalg.norm(robust - plain) < 0.5 * np.linalg.norm(plain - init / np.linalg.norm(init))


@pytest.mark.parametrize("lam_mode", ["scaled", "per_atom"])
def test_more_starts_keep_the_best_at_one_level_of_sparsity(lam_mode):
    options = {**OPTIONS, "max_iter": 5, "random_state": 3, "lam_mode": lam_mode}
    keys = jax.random.split(jax.random.split(jax.random.key(3))[0], 4)
    best = NystagmusCDL(**options, n_restarts=4).fit(X)
    problem = best._pose(best_recording(), best.trend_reg_, LENGTH)
    plan = best._plan(best_recording(), SFREQ)
    starts = algorithms.make_atoms(problem.data, keys, plan)
    single = [NystagmusCDL(**options, init=np.asarray(atoms)).fit(X) for atoms in starts]
    sums = np.stack([np.abs(one.codes_).sum((0, 2)) for one in single])
    lam = np.stack([np.broadcast_to(one.lam_, sums.shape[1]) for one in single])
    values = np.array([one.objective_[-1] for one in single]) + ((lam.mean(0) - lam) * sums).sum(1)
    assert len(set(lam[:, 0])) > 1
    np.testing.assert_allclose(best.objective_[-2], single[int(values.argmin())].objective_[-2], rtol=1e-4)


def best_recording():
    from gyri.nystagmus.recordings import read_recording

    return read_recording(X)


@pytest.mark.parametrize("init", ["chunk", "random", "greedy", "kmeans"])
def test_same_key_same_result(init):
    options = {**OPTIONS, "max_iter": 3, "init": init}
    first, second, other = (NystagmusCDL(2, **options, random_state=seed).fit(X) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.atoms_, second.atoms_)
    np.testing.assert_array_equal(first.codes_, second.codes_)
    if init not in ("greedy", "kmeans"):  # these may well meet again
        assert np.any(first.atoms_ != other.atoms_)


# --- invariances ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    x = np.concatenate([make(1, 2).recording, make(2, 2).recording], 1)
    with jax.enable_x64(True):
        fitted = NystagmusCDL(2, **OPTIONS).fit(x)
    return x, fitted


def close(ours, theirs, size=1.0):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize("scale", [1e-3, 7.3, 1e4])
def test_scale(reference, scale, x64):
    x, first = reference
    fitted = NystagmusCDL(2, **OPTIONS).fit(scale * x)
    close(fitted.atoms_, first.atoms_)
    size = scale * np.abs(first.codes_).max()
    close(fitted.codes_, scale * first.codes_, size)
    close(fitted.trend_, scale * first.trend_, scale * np.abs(first.trend_).max())
    np.testing.assert_allclose(fitted.lam_, scale * first.lam_, rtol=1e-6)
    np.testing.assert_allclose(fitted.trend_reg_, scale * first.trend_reg_, rtol=1e-6)


def test_offset(reference, x64):
    x, first = reference
    offset = np.array([[[100.0], [-3.0]], [[5.0], [0.0]]])
    fitted = NystagmusCDL(2, **OPTIONS).fit(x + offset)
    close(fitted.atoms_, first.atoms_)
    close(fitted.codes_, first.codes_, np.abs(first.codes_).max())
    close(fitted.trend_, first.trend_ + offset, 100)


def test_order_of_trials_and_channels(reference, x64):
    x, first = reference
    init = np.random.default_rng(0).standard_normal((2, 2, LENGTH))
    first = NystagmusCDL(2, **OPTIONS, init=init).fit(x)
    swapped = NystagmusCDL(2, **OPTIONS, init=init).fit(x[::-1])
    close(swapped.atoms_, first.atoms_)
    close(swapped.codes_, first.codes_[::-1], np.abs(first.codes_).max())
    swapped = NystagmusCDL(2, **OPTIONS, init=init[:, ::-1]).fit(x[:, ::-1])
    close(swapped.atoms_, first.atoms_[:, ::-1])
    close(swapped.trend_, first.trend_[:, ::-1], np.abs(first.trend_).max())


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"joint": False}, {"trend_reg": None}, {"algorithm": "online"}])
def test_what_stands_in_masked_samples_has_no_influence(options, blinking):
    fits = [
        NystagmusCDL(**OPTIONS | {"max_iter": 4} | options).fit(np.where(blinking, X, value), blinking)
        for value in (0.0, np.nan, 1e6)
    ]
    for other in fits[1:]:
        for name in ("atoms_", "codes_", "trend_", "detrended_", "objective_"):
            np.testing.assert_array_equal(getattr(fits[0], name), getattr(other, name))
    np.testing.assert_array_equal(np.isnan(fits[0].detrended_[0, 0]), ~blinking)
    assert np.all(np.isfinite(fits[0].trend_))
    parts = [fits[0].decompose(np.where(blinking, X, value), blinking) for value in (np.nan, 1e6)]
    np.testing.assert_array_equal(parts[0].codes, parts[1].codes)
    np.testing.assert_array_equal(np.isnan(parts[0].residual[0, 0]), ~blinking)


def test_a_mask_of_ones_changes_nothing(model):
    fitted = NystagmusCDL(**OPTIONS).fit(X, np.ones(X.shape, bool))
    np.testing.assert_array_equal(fitted.atoms_, model.atoms_)


def test_blinks_cost_little(model, blinking):
    masked = NystagmusCDL(**OPTIONS).fit(X, blinking)
    whole, cut = (pattern_correlation(DATA.pattern[0], m.atoms_[:, 0])[0] for m in (model, masked))
    assert cut > whole - 0.05
    assert np.all(np.diff(masked.objective_) <= 1e-5 * masked.objective_[0])


# --- MNE --------------------------------------------------------------------------------------------------------------


def test_mne_objects_go_in(model, blinking):
    mne = pytest.importorskip("mne")
    info = mne.create_info(["xpos", "EEG"], SFREQ, ["eyegaze", "eeg"])
    raw = mne.io.RawArray(np.vstack([np.where(blinking, X[0, 0], np.nan), X[0, 0]]), info, verbose="error")
    options = {name: value for name, value in OPTIONS.items() if name != "sfreq"}
    fitted = NystagmusCDL(**options).fit(raw)
    assert (fitted.sfreq_, fitted.ch_names_) == (SFREQ, ("xpos",))
    np.testing.assert_array_equal(fitted.atoms_, NystagmusCDL(**OPTIONS).fit(X, blinking).atoms_)
    np.testing.assert_array_equal(NystagmusCDL(**options).fit(raw, picks="eeg").atoms_, model.atoms_)
    with pytest.raises(ValueError, match="sfreq"):
        NystagmusCDL(**OPTIONS | {"sfreq": 100.0}).fit(raw)


def test_the_channels_of_the_fit_are_taken_again():
    mne = pytest.importorskip("mne")
    info = mne.create_info(["left", "right"], SFREQ, ["eyegaze", "eyegaze"])
    raw = mne.io.RawArray(np.vstack([X[0], 2 * X[0, :, ::-1]]), info, verbose="error")
    fitted = ConvolutionalDictionaryLearning(1, LENGTH, max_iter=2).fit(raw, picks=["right"])
    np.testing.assert_array_equal(fitted.transform(raw), fitted.transform(raw, picks=["right"]))
    np.testing.assert_array_equal(fitted.transform(raw.copy().pick(["left"])), fitted.transform(raw, picks=["left"]))


def test_when_to_stop_is_the_matter_of_the_datas_precision(x64):
    from gyri.nystagmus.recordings import read_recording

    stops = [NystagmusCDL(**OPTIONS)._levels(read_recording(X.astype(dtype))).eps for dtype in ("f4", "f8")]
    assert stops == [1e-6, 1e-8]


def test_online_needs_three_atoms_of_a_recording_to_learn_from_only():
    x = X[..., : 3 * LENGTH]
    fitted = ConvolutionalDictionaryLearning(1, LENGTH, algorithm="online", max_iter=2, batch_size=1, reg=0.05).fit(x)
    start = fitted.atoms_
    again = ConvolutionalDictionaryLearning(1, LENGTH, algorithm="online", max_iter=1, batch_size=1, reg=0.05).fit(x)
    assert np.any(again.atoms_ != start)
    assert fitted.transform(x[..., : 2 * LENGTH]).shape == (1, 1, LENGTH + 1)


# --- an estimator -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [ConvolutionalDictionaryLearning, NystagmusCDL])
def test_it_is_a_scikit_learn_estimator(cls):
    estimator = cls(2, n_times_atom=20, reg=0.7, lam_mode="shared")
    assert clone(estimator).get_params() == estimator.get_params()
    assert estimator.set_params(max_iter=7).max_iter == 7
    assert "shared" in repr(estimator)
    assert cls(n_atoms=-3, reg=-1.0).reg == -1.0  # nothing is looked at before fit
    for name in ("transform", "inverse_transform", "score"):
        with pytest.raises(NotFittedError):
            getattr(estimator, name)(X)
    for name in ("activations", "plot_atoms"):
        with pytest.raises(NotFittedError):
            getattr(estimator, name)()
    with pytest.raises(NotFittedError):
        estimator.save("nowhere")


def test_fit_does_not_change_parameters_or_data():
    init, x = np.random.default_rng(0).standard_normal((1, 1, LENGTH)), X.copy()
    estimator = NystagmusCDL(**OPTIONS | {"max_iter": 2}, init=init)
    before = {name: np.copy(value) for name, value in estimator.get_params().items()}
    assert estimator.fit(x) is estimator
    np.testing.assert_array_equal(x, X)
    for name, value in estimator.get_params().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    "options",
    [{}, {"lam_mode": "per_atom", "rank1": True, "n_atoms": 2}, {"window": np.hanning(LENGTH), "joint": False}],
)
def test_a_saved_model_comes_back(options, tmp_path):
    fitted = NystagmusCDL(**OPTIONS | {"max_iter": 3} | options).fit(X)
    path = tmp_path / "model.nys"
    fitted.save(path)
    loaded = NystagmusCDL.load(path)
    for name, value in fitted.get_params().items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    for name in vars(fitted):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(fitted, name), err_msg=name)
        assert np.asarray(getattr(loaded, name)).dtype == np.asarray(getattr(fitted, name)).dtype, name
    np.testing.assert_array_equal(loaded.transform(X), fitted.transform(X))
    again = tmp_path / "again"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_given_atoms_keys_and_callbacks_survive_or_are_given_again(tmp_path):
    init = np.random.default_rng(0).standard_normal((1, 1, LENGTH))
    heard = []
    options = {"init": init, "random_state": jax.random.key(3), "callback": heard.append}
    ConvolutionalDictionaryLearning(1, LENGTH, max_iter=2, **options).fit(X).save(tmp_path / "m")
    loaded = ConvolutionalDictionaryLearning.load(tmp_path / "m", callback=print)
    np.testing.assert_array_equal(loaded.init, init)
    assert jax.random.key_data(loaded.random_state).tolist() == [0, 3] and loaded.callback is print
    with pytest.raises(ValueError, match="NystagmusCDL"):
        NystagmusCDL.load(tmp_path / "m")


def test_scalars_of_numpy_and_jax_are_saved_as_numbers(tmp_path):
    scalars = {"trend_reg": jnp.asarray(50.0), "sfreq": np.asarray(SFREQ), "reg": np.float32(0.5)}
    scalars |= {"max_iter": jnp.asarray(2), "n_times_atom": np.int64(LENGTH), "window": np.bool_(True)}
    scalars |= {"random_state": jnp.asarray(3), "eps": jnp.asarray(0.25), "tol": np.asarray(0.5)}
    fitted = NystagmusCDL().set_params(**scalars).fit(X)
    fitted.save(tmp_path / "model")
    loaded = NystagmusCDL.load(tmp_path / "model")
    for name in scalars:
        assert isinstance(getattr(loaded, name), (bool, int, float)) and getattr(loaded, name) == getattr(fitted, name)
    np.testing.assert_array_equal(loaded.transform(X), fitted.transform(X))


def test_damaged_files_are_refused(model, tmp_path):
    model.save(tmp_path / "model")
    content = (tmp_path / "model").read_bytes()
    for size in (0, 1, len(content) // 2, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:size])
        with pytest.raises(ValueError, match="cut"):
            NystagmusCDL.load(tmp_path / "cut")
    for place in np.random.default_rng(0).integers(0, len(content), 30):
        (tmp_path / "flip").write_bytes(content[:place] + bytes([content[place] ^ 0x20]) + content[place + 1 :])
        with pytest.raises(ValueError, match="flip"):
            NystagmusCDL.load(tmp_path / "flip")


def test_callbacks_hear_of_progress_and_may_stop():
    heard = []

    def callback(progress):
        heard.append(progress)
        return progress.n_iter >= 20

    options = {**OPTIONS, "max_iter": 50, "eps": 0.0}
    fitted = NystagmusCDL(**options, callback=callback).fit(X)
    assert [progress.n_iter for progress in heard] == [10, 20] and fitted.n_iter_ == 20
    np.testing.assert_allclose(heard[-1].objective, fitted.objective_[-2], rtol=1e-5)
    np.testing.assert_array_equal(heard[-1].atoms, fitted.atoms_)


def test_ctrl_c_keeps_the_last_good_state():
    def callback(progress):
        if progress.n_iter == 20:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted after 20 of 50"):
        fitted = NystagmusCDL(**OPTIONS | {"max_iter": 50, "eps": 0.0}, callback=callback).fit(X)
    whole = NystagmusCDL(**OPTIONS | {"max_iter": 20, "eps": 0.0}).fit(X)
    np.testing.assert_array_equal(fitted.atoms_, whole.atoms_)
    assert not fitted.converged_ and fitted.n_iter_ == 20 and np.any(fitted.codes_)
    np.testing.assert_allclose(fitted.objective_[-1], whole.objective_[-2], rtol=1e-5)


def test_progress_is_shown_only_if_asked_for(capsys):
    for verbose in (False, True):
        NystagmusCDL(**OPTIONS | {"max_iter": 2}, verbose=verbose).fit(X)
        shown = capsys.readouterr()
        assert bool(shown.err) is verbose
        assert not shown.out


def test_a_second_fit_compiles_nothing():
    def fit(seed):
        return NystagmusCDL(**OPTIONS | {"max_iter": 3, "reg": 0.3 + 0.1 * seed}).fit(make(seed).recording).atoms_

    check_no_recompilation(fit, (1,), (2,), jit=False)


def test_plots_draw_the_fit(model):
    from gyri.nystagmus import plot_decomposition

    figure = plot_decomposition(model)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), X[0, 0], atol=1e-4)
    assert figure.axes[2].get_xlabel() == "Time (s)"
    assert len(model.plot_atoms().axes) == 1


def test_atoms_are_drawn_at_the_median_size_of_signed_activations():
    fitted = ConvolutionalDictionaryLearning(1, LENGTH, max_iter=2, positive=False).fit(X)
    fitted.codes_ = np.tile([3.0, -3.0], 10)[None, None]
    np.testing.assert_allclose(fitted.plot_atoms().axes[0].lines[0].get_ydata(), 3 * fitted.atoms_[0, 0])


# --- bad input --------------------------------------------------------------------------------------------------------

LONG = np.ones((1, 1, 1200))
BAD = [
    ({}, {"X": np.where(X > 0, X, np.nan)}, "X: .* or a mask"),
    ({}, {"X": np.where(X > 0, X, np.inf)}, "X"),
    ({}, {"X": np.where(np.arange(1200) == 3, np.nan, X), "mask": np.arange(1200) != 4}, "X"),
    ({}, {"X": np.zeros((1, 1, 0))}, "X"),
    ({}, {"X": np.zeros((1, 1, 1, 100))}, "X"),
    ({}, {"X": 3.0}, "X"),
    ({}, {"X": X * 1j}, "X"),
    ({}, {"X": [["a", "b"]]}, "X"),
    ({"n_times_atom": 1}, {}, "n_times_atom"),
    ({"n_times_atom": 1201}, {}, "n_times_atom"),
    ({"n_atoms": 0}, {}, "n_atoms"),
    ({"reg": 0.0}, {}, "reg"),
    ({"reg": -1.0}, {}, "reg"),
    ({"reg": float("nan")}, {}, "reg"),
    ({"lam_mode": "best"}, {}, "lam_mode"),
    ({"algorithm": "adam"}, {}, "algorithm"),
    ({"outliers": "some"}, {}, "outliers"),
    ({"init": "svd"}, {}, "init"),
    ({"init": np.ones((1, 1, 3))}, {}, "init"),
    ({"init": np.full((1, 1, LENGTH), np.nan)}, {}, "init"),
    ({"window": np.ones(3)}, {}, "window"),
    ({"n_restarts": 0}, {}, "n_restarts"),
    ({"max_iter": 0}, {}, "max_iter"),
    ({"n_sweeps": 0}, {}, "n_sweeps"),
    ({"tol": -1.0}, {}, "tol"),
    ({"tol_final": 0.0}, {}, "tol_final"),
    ({"eps": -1.0}, {}, "eps"),
    ({"batch_size": 0}, {}, "batch_size"),
    ({"window_length": 10}, {}, "window_length"),
    ({"random_state": -1}, {}, "random_state: expected an integer"),
    ({"random_state": None}, {}, "random_state: expected an integer"),
    ({"random_state": np.random.RandomState(0)}, {}, "random_state: expected an integer"),
    ({"algorithm": "online"}, {"X": X[..., : 3 * LENGTH - 1]}, "X: expected at least 180 samples"),
    ({}, {"mask": np.ones(7, bool)}, "mask"),
    ({}, {"mask": np.zeros(1200, bool)}, "mask"),
    ({}, {"mask": np.ones(1200)}, "mask"),
    ({}, {"picks": "eeg"}, "picks"),
]
BAD_NYSTAGMUS = [
    ({"trend_reg": -1.0}, {}, "trend_reg"),
    ({"trend_reg": "best"}, {}, "trend_reg"),
    ({}, {"X": X[..., :199]}, "trend_reg: expected a number"),
    ({"trend_reg": 1.0, "trend_scale": "relative"}, {}, "trend_scale"),
    ({"sfreq": None}, {}, "sfreq"),
    ({"sfreq": 0.0}, {}, "sfreq"),
    ({"normalize": "max"}, {}, "normalize"),
    ({"n_times_atom": None, "atom_duration": 0.0}, {}, "atom_duration"),
    ({"n_times_atom": None, "atom_duration": 0.001}, {}, "atom_duration"),
]


@pytest.mark.parametrize(("options", "data", "argument"), BAD)
def test_bad_input_is_refused_by_name(options, data, argument):
    with pytest.raises(ValueError, match=f"^{argument}"):
        ConvolutionalDictionaryLearning(**{"n_times_atom": LENGTH} | options).fit(**{"X": X} | data)


@pytest.mark.parametrize(("options", "data", "argument"), BAD + BAD_NYSTAGMUS)
def test_bad_input_is_refused_by_name_here_too(options, data, argument):
    with pytest.raises(ValueError, match=f"^{argument}"):
        NystagmusCDL(**OPTIONS | options).fit(**{"X": X} | data)


def test_data_unlike_those_of_the_fit_are_refused(model):
    with pytest.raises(ValueError, match="X: expected 1 channels"):
        model.transform(np.ones((2, 1200)))
    with pytest.raises(ValueError, match="X: expected at least 60 samples"):
        model.transform(np.ones(59))
    with pytest.raises(ValueError, match="codes"):
        model.inverse_transform(np.ones((1, 2, 100)))
    with pytest.raises(ValueError, match="threshold"):
        model.activations(-1.0)


def test_too_much_sparsity_warns_and_leaves_the_atoms():
    init = np.random.default_rng(0).standard_normal((1, 1, LENGTH))
    init /= np.linalg.norm(init)
    with pytest.warns(UserWarning, match="reg is 1"):
        fitted = NystagmusCDL(**OPTIONS | {"reg": 1.0}, init=init).fit(X)
    assert not fitted.codes_.any()
    np.testing.assert_allclose(fitted.atoms_, init, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"trend_reg": 1.0}, {"normalize": "l2"}, {"joint": False}])
def test_a_constant_signal_warns_and_gives_zero(options):
    with pytest.warns(UserWarning, match="X is constant"):
        fitted = NystagmusCDL(**OPTIONS | options).fit(np.full(1200, 3.1))
    assert not fitted.codes_.any() and np.all(np.isfinite(fitted.atoms_)) and np.all(np.isfinite(fitted.objective_))
    np.testing.assert_allclose(fitted.trend_, 3.1, rtol=1e-6)


def test_importing_the_package_is_cheap():
    code = (
        "import sys, gyri.nystagmus; print(sorted({'sklearn', 'matplotlib', 'mne', 'scipy.signal'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
