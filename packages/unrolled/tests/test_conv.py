"""Convolutional sparse coding and its estimator: operators, bounds, planted atoms, recordings, MNE, files, errors."""

import jax
import jax.numpy as jnp
import mne
import numpy as np
import pytest
from scipy.signal import fftconvolve
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from gyri.numerics.csc import align_atoms
from gyri.numerics.csc.operators import fft_shape
from gyri.numerics.testing import check_lowers, check_no_recompilation, check_vmap
from gyri.unrolled import ConvDictionaryLearning, convolution, recovery_score
from gyri.unrolled.convolution import Rank1
from gyri.unrolled.recordings import read_signals

SETTING = {"algorithm": "fista", "lipschitz": "spectral", "backprop_depth": None}
QUIET = {"verbose": False, "max_steps": 5, "n_iter": 5}


def draw(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def synthesis(atoms, codes):
    """By SciPy, sum by sum."""
    out = [[sum(fftconvolve(z[k], np.asarray(atoms)[k, p]) for k in range(len(atoms)))
            for p in range(atoms.shape[1])] for z in np.asarray(codes)]  # fmt: skip
    return np.array(out)


def dictionary(atoms, times):
    """The synthesis as a matrix from codes to signals."""
    positions = [t - n + 1 for t, n in zip(times, atoms.shape[2:])]
    size = len(atoms) * int(np.prod(positions))
    return synthesis(atoms, np.eye(size).reshape(size, len(atoms), *positions)).reshape(size, -1).T


CASES = [((3, 1, 4), (15,)), ((2, 3, 5), (12,)), ((6, 9, 4), (11,)), ((3, 1, 3, 2), (7, 6)), ((4, 3, 2, 2), (5, 6))]


@pytest.mark.parametrize(("shape", "times"), CASES)
def test_operators_against_scipy(shape, times, x64):
    atoms, X = draw(shape), draw((2, shape[1], *times), 1)
    codes = draw((2, shape[0], *(t - n + 1 for t, n in zip(times, shape[2:]))), 2)
    made = convolution.conv_synthesize(atoms, codes)
    np.testing.assert_allclose(made, synthesis(atoms, codes), atol=1e-12)
    correlated = convolution.conv_correlations(atoms, X)
    assert abs(jnp.vdot(X, made) - jnp.vdot(correlated, codes)) < 1e-12 * made.size * 10


@pytest.mark.parametrize(("shape", "times"), CASES)
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_of_the_fit(shape, times, masked, x64):
    atoms, X = draw(shape), draw((2, shape[1], *times), 1)
    mask = jnp.asarray(np.random.default_rng(3).random(X.shape) < 0.7, float) if masked else None
    matrix = dictionary(atoms, times)
    codes = draw((2, shape[0], *(t - n + 1 for t, n in zip(times, shape[2:]))), 2)
    length = fft_shape(times)
    gradient, constants = convolution.gradient_of(X, atoms, mask, convolution.spectrum_of_atoms(atoms, length), length)
    residual = codes.reshape(2, -1) @ matrix.T - X.reshape(2, -1)
    residual = residual if mask is None else mask.reshape(2, -1) * residual
    np.testing.assert_allclose(gradient(constants, codes).reshape(2, -1), residual @ matrix, atol=1e-10)


def test_rank_one_atoms_are_their_products(x64):
    prior = Rank1(draw((3, 4)), draw((3, 5), 1))
    full = convolution.full_atoms(prior)
    X = draw((2, 4, 20), 2)
    steps = jnp.ones(6)
    for mask in (None, jnp.asarray(np.random.default_rng(0).random(X.shape) < 0.8, float)):
        codes = [
            convolution.conv_code(X, a, 0.3, steps, mask, **SETTING | {"lipschitz": "legacy"}) for a in (prior, full)
        ]
        np.testing.assert_allclose(*codes, atol=1e-10)
        values = [convolution.conv_objective(X, codes[0], a, 0.3, mask) for a in (prior, full)]
        np.testing.assert_allclose(*values, rtol=1e-10)


@pytest.mark.parametrize(("shape", "times"), CASES)
def test_the_bound_is_one_and_tight(shape, times, x64):
    atoms = draw(shape)
    exact = np.linalg.norm(dictionary(atoms, times), 2) ** 2
    spectrum = convolution.spectrum_of_atoms(atoms, fft_shape(times))
    bound = float(convolution.lipschitz_constant(atoms, spectrum, "spectral"))
    assert exact <= bound <= 1.6 * exact
    if len(times) == 1:
        rank1 = Rank1(draw(shape[:2]), draw((shape[0], shape[2]), 1))
        exact = np.linalg.norm(dictionary(convolution.full_atoms(rank1), times), 2) ** 2
        bound = convolution.lipschitz_constant(
            rank1, convolution.spectrum_of_atoms(rank1, fft_shape(times)), "spectral"
        )
        assert exact <= float(bound) <= 1.6 * exact
    legacy = float(convolution.lipschitz_constant(atoms, spectrum, "legacy"))
    axes = tuple(range(2, len(shape)))
    assert legacy == pytest.approx(float((np.abs(np.fft.fftn(atoms, axes=axes)) ** 2).max(axes).sum()), rel=1e-6)


def plain_codes(X, matrix, lam, n_iter, L):
    """FISTA with a matrix."""
    z = v = np.zeros((len(X), matrix.shape[1]))
    t = 1.0
    for _ in range(n_iter):
        u = v - (v @ matrix.T - X) @ matrix / L
        new = np.sign(u) * np.maximum(np.abs(u) - lam / L, 0)
        t_next = (1 + np.sqrt(1 + 4 * t * t)) / 2
        z, v, t = new, new + (t - 1) / t_next * (new - z), t_next
    return z


def test_codes_are_those_of_the_matrix(x64):
    atoms, X = draw((3, 2, 4)), draw((2, 2, 15), 1)
    L = float(convolution.lipschitz_constant(atoms, convolution.spectrum_of_atoms(atoms, fft_shape((15,))), "spectral"))
    expected = plain_codes(np.asarray(X).reshape(2, -1), dictionary(atoms, (15,)), 0.5, 8, L)
    found = convolution.conv_code(X, atoms, 0.5, jnp.ones(8), None, **SETTING)
    np.testing.assert_allclose(found.reshape(2, -1), expected, atol=1e-10)
    solved = convolution.solve_conv_codes(X, atoms, 0.5, None, max_iter=3000, tol=1e-12)
    expected = plain_codes(np.asarray(X).reshape(2, -1), dictionary(atoms, (15,)), 0.5, 5000, L)
    np.testing.assert_allclose(solved.reshape(2, -1), expected, atol=1e-6)


@pytest.mark.parametrize("rank1", [False, True])
def test_gradients_match_central_differences(rank1, x64):
    X = draw((1, 2, 14), 1)
    mask = jnp.asarray(np.random.default_rng(3).random(X.shape) < 0.8, float)
    atoms = Rank1(draw((2, 2)), draw((2, 3), 4)) if rank1 else draw((2, 2, 3))
    length = fft_shape((14,))
    fixed = convolution.lipschitz_constant

    def loss(atoms):
        codes = convolution.conv_code(X, atoms, 0.3, jnp.ones(5), mask, **SETTING)
        return convolution.conv_objective(X, codes, atoms, 0.3, mask)

    # The bound is held fixed by construction; so it is here, for the differences.
    value = fixed(atoms, convolution.spectrum_of_atoms(atoms, length), "spectral")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "lipschitz_constant", lambda *_: value)
        for leaf, gradient in zip(jax.tree.leaves(atoms), jax.tree.leaves(jax.grad(loss)(atoms)), strict=True):
            for place in [(0,) * leaf.ndim, tuple(n - 1 for n in leaf.shape)]:
                ends = []
                for sign in (1, -1):
                    moved = leaf.at[place].add(sign * 1e-6)
                    ends.append(loss(jax.tree.map(lambda a: moved if a is leaf else a, atoms)))  # noqa: B023
                assert abs((ends[0] - ends[1]) / 2e-6 - gradient[place]) < 1e-6


def test_transforms_and_lowering():
    atoms, X = draw((2, 1, 3)).astype("float32"), draw((4, 2, 1, 10), 1).astype("float32")
    call = lambda X: convolution.conv_code(X, atoms, 0.2, jnp.ones(3, "float32"), None, **SETTING)
    check_vmap(call, X, atol=1e-5)
    value = lambda atoms: convolution.conv_objective(X[0], call(X[0]), atoms, 0.2, None)
    check_lowers(jax.grad(value), atoms)


# --- the estimator --------------------------------------------------------------------------------------------------


def planted(seed, n_channels=6, n_times=4000, length=40):
    """Two events of rank one in noise."""
    rng = np.random.default_rng(seed)
    spatial = rng.standard_normal((2, n_channels))
    spatial /= np.linalg.norm(spatial, axis=1, keepdims=True)
    t = np.linspace(0, 1, length)
    temporal = np.stack([np.sin(2 * np.pi * f * t) * np.hanning(length) for f in (2, 5)])
    temporal /= np.linalg.norm(temporal, axis=1, keepdims=True)
    n = n_times - length + 1
    codes = (rng.random((2, n)) < 0.004) * (3 + rng.random((2, n)))
    X = sum(u[:, None] * np.convolve(z, v)[None] for u, z, v in zip(spatial, codes, temporal))
    return X + 0.1 * rng.standard_normal(X.shape), spatial, temporal


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_planted_rank_one_atoms_are_found(seed):
    X, spatial, temporal = planted(seed)
    model = ConvDictionaryLearning(
        6, 40, lam=0.1, lam_is_ratio=True, rank1=True, window_length=400, batch_size=10, iterations_per_epoch=12,
        verbose=False,
    ).fit(X)  # fmt: skip
    truth = spatial[:, :, None] * temporal[:, None]
    order = align_atoms(model.components_, truth.astype("f4"))[0]
    assert np.all(np.abs(np.sum(model.spatial_[order] * spatial, 1)) >= 0.95)
    assert np.all(align_atoms(model.temporal_[order][:, None], temporal[:, None].astype("f4"))[3] >= 0.9)
    assert model.history_["loss"].size == 120
    np.testing.assert_allclose(model.components_, model.spatial_[:, :, None] * model.temporal_[:, None], atol=1e-6)


def test_what_a_fit_gives_is_in_the_data_unit():
    X, _, _ = planted(0, 2, 500, 20)
    models = [ConvDictionaryLearning(3, 20, lam=0.2, lam_is_ratio=True, **QUIET).fit(c * X[None]) for c in (1, 1e-12)]
    assert models[0].lam_ == pytest.approx(models[1].lam_ * 1e12, rel=1e-4)
    codes = [model.transform(c * X[None]) for model, c in zip(models, (1, 1e-12))]
    np.testing.assert_allclose(codes[0], 1e12 * codes[1], atol=1e-2)
    assert codes[0].shape == (1, 3, 481)
    made = models[1].inverse_transform(codes[1])
    np.testing.assert_allclose(made, synthesis(models[1].components_, codes[1]), atol=1e-5 * np.abs(made).max())
    value = 0.5 * np.sum((made - 1e-12 * X) ** 2) + models[1].lam_ * np.abs(codes[1]).sum()
    assert models[1].score(1e-12 * X[None]) == pytest.approx(-value, rel=1e-3)
    absolute = ConvDictionaryLearning(3, 20, lam=models[0].lam_, **QUIET).fit(X[None])
    np.testing.assert_allclose(absolute.components_, models[0].components_, atol=1e-3)
    assert np.all(np.diff(models[0].history_["loss"]) < 0)
    np.testing.assert_allclose(np.linalg.norm(models[0].components_, axis=(1, 2)), 1, atol=1e-6)


@pytest.mark.parametrize("loud", [0, 1])
def test_a_ratio_is_of_all_samples(loud):
    X = np.random.default_rng(0).standard_normal((2, 1, 300))
    X[1 - loud] *= 1e-6
    atoms = np.random.default_rng(1).standard_normal((2, 1, 10))
    options = {"lam_is_ratio": True, "init": atoms, "window_length": 100, "epochs": 1, "iterations_per_epoch": 1}
    model = ConvDictionaryLearning(2, 10, lam=0.3, **QUIET | options).fit(X)
    # Twenty windows of 100 samples, spread over 600, leave no part out.
    peaks = [np.abs(np.correlate(x, d / np.linalg.norm(d), "valid")).max() for x in X[:, 0] for d in atoms[:, 0]]
    assert model.lam_ == pytest.approx(0.3 * max(peaks), rel=1e-4)


def test_images_and_colours():
    rng = np.random.default_rng(0)
    image = fftconvolve(rng.standard_normal((3, 20, 22)) * (rng.random((3, 20, 22)) < 0.05), np.ones((1, 3, 3)))
    model = ConvDictionaryLearning(2, (3, 3), lam=0.1, **QUIET).fit(image[None])
    assert model.components_.shape == (2, 3, 3, 3) and model.transform(image[None]).shape == (1, 2, 20, 22)
    grey = ConvDictionaryLearning(2, (3, 4), lam=0.1, learn_steps=True, **QUIET).fit(image[:, None])
    assert grey.transform(image[:, None]).shape == (3, 2, 20, 21)


def test_masked_samples_have_no_influence():
    X, _, _ = planted(1, 2, 300, 20)
    mask = np.ones(X.shape)
    mask[:, 100:130] = 0
    fits = [ConvDictionaryLearning(2, 20, lam=1.0, init="random", **QUIET).fit(
        np.where(mask == 1, X, value)[None], mask=mask[None]) for value in (0, np.nan, 1e5)]  # fmt: skip
    for other in fits[1:]:
        np.testing.assert_array_equal(fits[0].components_, other.components_)
    codes = fits[0].transform(np.where(mask == 1, X, np.nan), mask=mask)
    np.testing.assert_array_equal(codes, fits[0].transform(X, mask=mask))
    assert np.isfinite(fits[0].score(X, mask=mask))
    windows = ConvDictionaryLearning(2, 20, lam=1.0, window_length=60, batch_size=4, epochs=1, **QUIET)
    assert np.isfinite(windows.fit(X, mask=mask).components_).all()


def test_a_new_fit_forgets_factors_of_before():
    X, _, _ = planted(1, 2, 300, 20)
    model = ConvDictionaryLearning(2, 20, lam=1.0, rank1=True, **QUIET).fit(X)
    model.set_params(rank1=False, n_components=3).fit(X)
    assert not hasattr(model, "spatial_") and not hasattr(model, "temporal_") and len(model.components_) == 3


def test_the_window_tapers_atoms():
    X, _, _ = planted(1, 2, 300, 20)
    init = np.random.default_rng(0).standard_normal((2, 2, 20))
    model = ConvDictionaryLearning(2, 20, lam=0.5, window="tukey", init=init, **QUIET).fit(X[None])
    assert np.abs(model.components_[..., [0, -1]]).max() < 1e-8


def test_options_of_training():
    X, _, _ = planted(1, 2, 300, 20)
    batches = np.stack([X[:, 100 * i : 100 * (i + 1)] for i in range(3)])
    options = {"estimator": "g1", "batch_size": 2, "epochs": 2, "lipschitz": "legacy"}
    model = ConvDictionaryLearning(2, 20, lam=1.0, **(QUIET | options)).fit(batches)
    assert np.isfinite(model.components_).all() and model.history_["loss"].size == 4
    model = ConvDictionaryLearning(2, 20, lam=1.0, window_length=50, epochs=1, **QUIET).fit(X)
    assert model.history_["loss"].size == 10 and model.get_params()["batch_size"] is None


def test_a_second_fit_compiles_nothing():
    X, _, _ = planted(1, 2, 300, 20)
    fit = lambda X, lam: ConvDictionaryLearning(2, 20, lam=lam, **QUIET).fit(X[None]) and None
    check_no_recompilation(fit, (X, 1.0), (2 * X, 2.0), jit=False)


def raw_of(X, kind="grad"):
    info = mne.create_info([f"MEG {i:03d}2" for i in range(len(X))] + ["STI"], 100.0, [kind] * len(X) + ["stim"])
    return mne.io.RawArray(np.vstack([X, np.ones(X.shape[1])]), info, verbose="error")


def test_recordings_of_mne():
    X, _, _ = planted(1, 4, 600, 20)
    raw = raw_of(1e-12 * X)
    options = {"lam": 0.3, "lam_is_ratio": True, "rank1": True, "window_length": 100, "epochs": 1} | QUIET
    model = ConvDictionaryLearning(2, 20, **options).fit(raw)
    assert model.info_.ch_names == raw.ch_names[:4] and model.spatial_.shape == (2, 4)
    plain = ConvDictionaryLearning(2, 20, **options).fit(1e-12 * X)
    np.testing.assert_allclose(model.components_, plain.components_, atol=1e-6)
    assert model.transform(raw).shape == (1, 2, 581)
    raw.set_annotations(mne.Annotations([1.0], [0.5], ["BAD_blink"]))
    read = read_signals(raw, None, 1)
    np.testing.assert_array_equal(read.mask[0, :, 100:150], 0)
    assert read.mask.sum() == 4 * 550 and not read.X[0, :, 100:150].any()
    epochs = mne.make_fixed_length_epochs(raw_of(1e-12 * X), 2.0, preload=True, verbose="error")
    read = read_signals(epochs, None, 1)
    assert read.X.shape == (3, 4, 200) and read.info["sfreq"] == 100.0
    np.testing.assert_allclose(read.X[1], 1e-12 * X[:, 200:400])
    mixed = raw_of(X).set_channel_types({"MEG 0002": "eeg"}, verbose="error")
    with pytest.raises(ValueError, match="data channels of one kind"):
        ConvDictionaryLearning(2, 20, **options).fit(mixed)
    with pytest.raises(ValueError, match="expected an array for atoms with 2 axes"):
        ConvDictionaryLearning(2, (2, 2), **QUIET).fit(raw)


def test_bad_annotations_mask_epochs_as_they_do_recordings():
    X = np.random.default_rng(0).standard_normal((2, 600))
    raw = raw_of(X)
    marks = mne.Annotations([0.3, 1.9, 3.004], [0.3, 0.3, 0.2], ["bad eye", "BAD_jump", "good"])
    raw.set_annotations(marks)
    whole = read_signals(raw, None, 1).mask[0]
    events = np.array([[100, 0, 1], [200, 0, 1], [400, 0, 1]])
    options = {"tmin": -0.5, "tmax": 0.49, "baseline": None, "reject_by_annotation": False, "verbose": "error"}
    read = read_signals(mne.Epochs(raw, events, **options), None, 1)  # whose length is not known until they are read
    epochs = mne.Epochs(raw, events, preload=True, **options)
    np.testing.assert_array_equal(read.mask, read_signals(epochs, None, 1).mask)
    np.testing.assert_array_equal(read.mask, [whole[:, n - 50 : n + 50] for n in (100, 200, 400)])
    assert not read.mask.all((1, 2))[:2].any() and read.mask[2].all() and not read.X[read.mask == 0].any()
    given = np.ones(read.mask.shape)
    given[2, 0] = 0
    np.testing.assert_array_equal(read_signals(epochs, given, 1).mask, given * read.mask)
    assert read_signals(epochs[2], None, 1).mask is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank1": True, "window": "tukey", "kernel_shape": (20,)},
        {"kernel_shape": (np.int64(20),), "n_iter": np.int64(5), "lam": np.float32(1), "random_state": np.int64(3)},
    ],
)
def test_save_and_load(tmp_path, options):
    X, _, _ = planted(1, 2, 300, 20)
    model = ConvDictionaryLearning(**({"n_components": 2, "kernel_shape": 20, "lam": 1.0} | QUIET | options)).fit(X)
    path = tmp_path / "model.npz"
    model.save(path)
    again = ConvDictionaryLearning.load(path)
    assert again.get_params() == model.get_params()
    kept = [again.n_iter, again.lam, again.random_state, *np.atleast_1d(np.array(again.kernel_shape, object))]
    assert list(map(type, kept)) == [int, float, int, int]
    np.testing.assert_array_equal(again.transform(X), model.transform(X))
    assert again.score(X) == model.score(X) and again.info_ is None
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="model.npz"):
        ConvDictionaryLearning.load(path)


def test_it_is_an_estimator(tmp_path):
    model = ConvDictionaryLearning(2, (3,))
    assert clone(model).get_params() == model.get_params()
    for call in (lambda: model.transform(np.ones((1, 1, 9))), lambda: model.score(np.ones((1, 1, 9))),
                 lambda: model.inverse_transform(np.ones((1, 2, 9))), lambda: model.save(tmp_path)):  # fmt: skip
        with pytest.raises(NotFittedError):
            call()
    X = planted(0, 2, 100, 20)[0]
    made = ConvDictionaryLearning(2, 9, lam=1.0, **QUIET)
    np.testing.assert_array_equal(made.fit_transform(X), made.transform(X))
    assert recovery_score(made.components_, made.components_) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 0}, "n_components: expected an integer >= 1"),
        ({"kernel_shape": 0}, "kernel_shape: expected an integer >= 1"),
        ({"kernel_shape": 200}, r"kernel_shape: expected at most the signal's \(100,\)"),
        ({"kernel_shape": (3, 3)}, "X: expected shape"),
        ({"kernel_shape": (3, 3), "rank1": True}, "kernel_shape: expected one axis"),
        ({"lam": 0.0}, "lam: expected a number > 0"),
        ({"lam_is_ratio": 1}, "lam_is_ratio: expected one of"),
        ({"window": "hann"}, "window: expected one of None, 'tukey'"),
        ({"estimator": "g3"}, "estimator: expected one of 'g1', 'g2'"),
        ({"lipschitz": "frobenius"}, "lipschitz: expected one of 'spectral', 'legacy'"),
        ({"window_length": 4}, "window_length: expected an integer >= 5"),
        ({"window_length": 101}, "window_length: expected at most the signal's 100"),
        ({"init": "chunk"}, "init: expected one of"),
        ({"init": np.ones((2, 1, 5))}, r"init: expected shape \(2, 2, 5\)"),
        ({"n_iter": 0}, "n_iter: expected an integer >= 1"),
    ],
)
def test_bad_options(options, message):
    arguments = {"n_components": 2, "kernel_shape": 5, "lam": 1.0, "verbose": False} | options
    with pytest.raises(ValueError, match=message):
        ConvDictionaryLearning(**arguments).fit(np.ones((2, 100)))


@pytest.mark.parametrize(
    ("X", "mask", "message"),
    [
        (np.ones(100), None, r"X: expected shape \(n_samples, n_channels, n_times\)"),
        (np.full((2, 100), np.nan), None, "X: expected finite"),
        (np.zeros((2, 0)), None, "X: expected at least one entry"),
        (np.ones((2, 100)), np.ones((2, 99)), r"mask: expected shape \(2, 100\)"),
        (np.ones((2, 100)), np.full((2, 100), 0.3), "mask: expected 1"),
        (np.ones((2, 3)), None, "expected at (most|least)"),
    ],
)
def test_bad_data(X, mask, message):
    made = ConvDictionaryLearning(2, 5, lam=1.0, **QUIET).fit(np.random.default_rng(0).standard_normal((2, 50)))
    for call in (clone(made).fit, made.transform):
        with pytest.raises(ValueError, match=message):
            call(X, mask=mask)
    with pytest.raises(ValueError, match="X: expected 2 channels"):
        made.transform(np.ones((3, 50)))
    with pytest.raises(ValueError, match="codes: expected shape"):
        made.inverse_transform(np.ones((1, 3, 9)))
