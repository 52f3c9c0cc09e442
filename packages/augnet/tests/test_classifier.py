"""The scikit-learn front door: what it learns, refuses, repeats, saves and survives."""

import importlib
import itertools
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.base import clone

from gyri.augnet import Augerino, AugNetClassifier, Transform, image_transforms, plot_augmentations
from gyri.numerics import eeg
from gyri.numerics.testing import check_no_recompilation


def rescale(key, x, arg):
    return x * (1 + arg * jax.random.uniform(key, (len(x), 1, 1), minval=-1.0))


def roll(key, x, arg):
    distance = arg * jax.random.uniform(key, (len(x),), minval=-1.0)
    at = lambda x, d: jax.scipy.ndimage.map_coordinates(x, [jnp.arange(x.size) - d], order=1, mode="wrap")
    return jax.vmap(at)(x[:, 0], distance)[:, None]


# The first leaves the labels of `data` unchanged, the second confuses early and late.
CHOICES = (Transform("rescale", rescale, (0.0, 0.8)), Transform("roll", roll, (0.0, 16.0), "samples"))


class Trunk(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(32, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x.reshape(len(x), -1))))


class Norm(nnx.Module):
    """Convolution, batch normalisation and dropout."""

    def __init__(self, rngs):
        self.conv, self.norm = nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.drop, self.out = nnx.Dropout(0.2, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(nnx.relu(self.norm(self.conv(x))).mean((1, 2))))


@pytest.fixture(scope="module")
def data():
    """Bumps early, late or nowhere, of either sign."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    X = 0.3 * rng.normal(size=(120, 1, 32)).astype(np.float32)
    for i, label in enumerate(y):
        if label < 2:
            X[i, 0, 6 + 16 * label : 10 + 16 * label] += rng.choice([-2.0, 2.0])
    return X, y


def make(trunk=Trunk, layers=CHOICES, **options):
    settings = {"n_epochs": 6, "batch_size": 20, "learning_rate": 0.01, "copies": 4, "verbose": False}
    return AugNetClassifier(trunk, layers, **settings | options)


@pytest.fixture(scope="module")
def fitted(data):
    return make(n_epochs=40, init_magnitude=0.2, reg=0.1, aug_learning_rate=3e-3).fit(*data)


def test_learns_which_transform_leaves_the_labels_unchanged(fitted, data):
    X, y = data
    assert fitted.score(X, y) > 0.9
    kept, dropped = fitted.model_.describe()
    assert kept["operation"] == "rescale" and kept["weight"] > 0.95 and kept["magnitude"] > 0.4
    assert dropped["weight"] * dropped["magnitude"] < 0.02
    assert np.median(fitted.invariance(X, CHOICES[0])) > 0.8 > np.median(fitted.invariance(X, CHOICES[1]))


def test_fitted_attributes(fitted, data):
    history = fitted.history_
    assert {name: value.shape for name, value in history.items()} == {
        "loss": (40,), "ce": (40,), "accuracy": (40,), "weights": (40, 2), "magnitudes": (40, 2),
    }  # fmt: skip
    assert history["ce"][-1] < history["ce"][0] and 0.9 < history["accuracy"][-1] <= 1
    np.testing.assert_allclose(history["weights"].sum(1), 1, rtol=1e-5)
    assert history["magnitudes"].min() >= 0 and history["magnitudes"].max() <= 1
    np.testing.assert_array_equal(fitted.classes_, [0, 1, 2])
    assert fitted.n_features_in_ == 32 and fitted.input_shape_ == (1, 32)
    assert fitted.model_.deterministic


def test_predictions_are_deterministic_and_have_a_key(fitted, data):
    X, _ = data
    probabilities = fitted.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities, fitted.predict_proba(X))
    assert np.abs(probabilities - fitted.predict_proba(X, key=1)).max() > 0
    np.testing.assert_array_equal(fitted.predict(X), probabilities.argmax(1))
    assert fitted.predict(X[:1]).shape == (1,)


def test_same_state_same_history_and_other_state_another(data):
    runs = [make(random_state=seed).fit(*data) for seed in (0, 0, 1)]
    for name, value in runs[0].history_.items():
        np.testing.assert_array_equal(value, runs[1].history_[name])
    assert np.abs(runs[0].history_["loss"] - runs[2].history_["loss"]).max() > 0
    with_key = make(random_state=jax.random.key(0)).fit(*data)
    np.testing.assert_array_equal(with_key.history_["loss"], runs[0].history_["loss"])


def test_a_second_fit_with_another_key_magnitude_and_penalty_compiles_nothing(data):
    check_no_recompilation(
        lambda seed, mu, reg: make(Trunk, random_state=seed, init_magnitude=mu, reg=reg, n_epochs=1).fit(*data),
        (0, 0.1, 0.5),
        (1, 0.7, 0.2),
        jit=False,
    )


def test_a_module_is_copied_and_a_clone_is_unfitted(data):
    trunk = Trunk(nnx.Rngs(0))
    before = np.asarray(trunk.out.kernel[...])
    model = make(trunk, n_epochs=1).fit(*data)
    np.testing.assert_array_equal(trunk.out.kernel[...], before)
    assert np.abs(model.model_.trunk.out.kernel[...] - before).max() > 0
    other = clone(make(Trunk, reg=0.3))
    assert other.get_params()["reg"] == 0.3 and not hasattr(other, "model_")
    assert other.set_params(n_layers=2).n_layers == 2


def test_batch_norm_dropout_images_and_schedules():
    rng = np.random.default_rng(0)
    X = rng.uniform(size=(24, 8, 8, 1)).astype(np.float32)
    y = np.repeat(["cat", "dog"], 12)
    X[12:] *= 0.5
    model = make(
        Norm, ["non_affine", "non_affine"], batch_size=10, train_copies=2, n_epochs=2, decoupled=True,
        weight_decay=0.01, learning_rate=lambda step: 0.01 * 0.99**step, aug_learning_rate=0.02,
        reg_schedule=lambda epoch: 1 / (1 + epoch),
    )  # fmt: skip
    model.fit(X, y)
    assert len(model.model_.describe()) == 8 and set(model.predict(X)) <= {"cat", "dog"}
    assert model.model_.layers[0].apply_temperature == 0.1
    assert np.abs(model.model_.trunk.norm.mean[...]).max() > 0
    one, two = model.predict_proba(X), model.predict_proba(X)
    np.testing.assert_array_equal(one, two)


def test_coupled_and_decoupled_decay_differ(data):
    # Added to the gradient before Adam, the decay pulls unrewarded magnitudes to 0; beside Adam, hardly.
    gain = (Transform("gain", lambda key, x, arg: x + 0 * arg, (0.0, 1.0)),)
    settings = {
        "layers": gain,
        "reg": 0.0,
        "weight_decay": 1.0,
        "learning_rate": 2e-3,
        "init_magnitude": 0.1,
        "n_epochs": 20,
    }
    coupled = make(**settings).fit(*data).history_["magnitudes"][-1, 0]
    decoupled = make(**settings, decoupled=True).fit(*data).history_["magnitudes"][-1, 0]
    assert coupled < 0.01 < 0.05 < decoupled


def test_the_reward_moves_magnitudes_and_the_schedule_scales_it(data):
    # Without a decay and with no influence on the loss, only the reward moves the magnitude.
    gain = (Transform("gain", lambda key, x, arg: x + 0 * arg, (0.0, 1.0)),)
    settings = {"layers": gain, "n_epochs": 3}
    rewarded, not_rewarded = (make(reg=reg, **settings).fit(*data).history_["magnitudes"] for reg in (0.5, 0.0))
    assert rewarded[-1, 0] > 0.1 > 0.051 > not_rewarded[-1, 0]
    losses = [make(reg_schedule=s, **settings).fit(*data).history_ for s in (None, lambda epoch: 0.0)]
    assert losses[0]["loss"][0] < losses[0]["ce"][0] and losses[1]["loss"][0] == pytest.approx(losses[1]["ce"][0])


def test_augerino_as_a_layer():
    X = np.random.default_rng(0).uniform(size=(20, 8, 8, 1)).astype(np.float32)
    model = make(Norm, Augerino(init_width=0.1), penalty="width_safe", reg=0.2, n_epochs=2, batch_size=10)
    model.fit(X, np.arange(20) % 2)
    assert model.history_["weights"].shape == (2, 0) and len(model.model_.describe()) == 6
    assert np.abs(model.model_.layers[0].width - 0.2).max() > 1e-3


def test_float64(x64, data):
    X, y = data
    model = make(lambda rngs: nnx.Linear(32, 3, rngs=rngs, param_dtype=jnp.float64), n_epochs=2, layers=(
        Transform("flat", lambda key, x, arg: x), ))  # fmt: skip
    model.fit(X[:, 0].astype(float), y)
    assert (
        model.history_["weights"].dtype == np.float64 and model.predict_proba(X[:, 0].astype(float)).dtype == np.float64
    )


def test_save_and_load(fitted, data, tmp_path):
    X, _ = data
    path = tmp_path / "model.gyri"
    fitted.save(path)
    again = AugNetClassifier.load(path, trunk=Trunk, layers=CHOICES)
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    for name, value in fitted.history_.items():
        np.testing.assert_array_equal(again.history_[name], value)
    assert again.reg == 0.1 and again.n_epochs == 40
    np.testing.assert_array_equal(again.invariance(X, CHOICES[0]), fitted.invariance(X, CHOICES[0]))
    with pytest.raises(ValueError, match="layers: expected the transforms"):
        AugNetClassifier.load(path, trunk=Trunk)
    with pytest.raises(ValueError, match="layers: expected"):
        AugNetClassifier.load(path, trunk=Trunk, layers=CHOICES[::-1])
    with pytest.raises(ValueError, match="trunk"):
        AugNetClassifier.load(path, trunk=lambda rngs: nnx.Linear(32, 3, rngs=rngs), layers=CHOICES)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated|damaged|not"):
        AugNetClassifier.load(path, trunk=Trunk, layers=CHOICES)


def test_save_and_load_with_named_layers_strings_and_a_key(data, tmp_path):
    X, y = data
    names = np.array(["a", "b", "c"])[y]
    key = jax.random.key(7)
    model = make(layers="time_freq", sfreq=100.0, n_epochs=1, random_state=key).fit(X, names)
    model.save(tmp_path / "model")
    again = AugNetClassifier.load(tmp_path / "model", trunk=Trunk)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    assert again.layers == "time_freq" and again.sfreq == 100.0
    assert again.fit(X, names).history_["loss"] == model.history_["loss"]


def test_saved_numbers_of_numpy_and_changes_of_the_model_are_loaded(data, tmp_path):
    X, y = data
    options = {"copies": np.int64(2), "temperature": np.float32(1.0), "init_magnitude": np.array([0.5, 0.25])}
    options |= {"decoupled": np.bool_(True), "random_state": np.int64(3)}
    model = make(n_epochs=1).set_params(**options).fit(X, y)  # as a search over a grid of arrays does

    def loaded():
        model.save(tmp_path / "model")
        again = AugNetClassifier.load(tmp_path / "model", trunk=Trunk, layers=CHOICES)
        np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
        return again

    again = loaded()
    assert (again.copies, again.temperature, again.random_state, again.decoupled) == (2, 1.0, 3, True)
    np.testing.assert_array_equal(again.fit(X, y).history_["loss"], model.history_["loss"])
    model.set_params(copies=7)  # of the next fit
    assert loaded().model_.copies == 2
    model.model_.copies, model.model_.train_copies, model.model_.aggregate = 5, 3, "softmax"
    model.model_.layers[0].temperature, model.model_.layers[0].sampling = 0.1, "example"
    again = loaded()
    assert again.copies == 7 and again.model_.train_copies == 3 and again.model_.layers[0].temperature == 0.1


def test_what_cannot_be_saved_is_named(data, tmp_path):
    schedules = {"learning_rate": lambda step: 0.01, "reg_schedule": lambda epoch: 1.0}
    model = make(**schedules, n_epochs=1).fit(*data)
    with pytest.warns(UserWarning, match="set learning_rate, reg_schedule before another fit"):
        model.save(tmp_path / "model")
    model.set_params(n_layers=2)
    with pytest.warns(UserWarning, match="functions"), pytest.raises(ValueError, match="layers, n_layers: expected"):
        model.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_invariance_to_a_transform_that_leaves_the_range_of_images():
    model = make(Norm, "non_affine", n_epochs=1).fit(IMAGES, np.arange(9) % 2)
    noise = lambda key, x: x + 0.1 * jax.random.normal(key, x.shape)
    assert model.invariance(IMAGES, noise).shape == (9,)
    with pytest.raises(ValueError, match=r"X: expected images in \[0, 1\]"):
        model.invariance(2 * IMAGES, noise)


@pytest.mark.parametrize("decoupled", [False, True])
def test_rates_are_data_of_one_program(data, decoupled):
    training = importlib.import_module("gyri.augnet.training")
    losses = []
    for rate, decay in ((1e-3, 0.0), (1e-2, 0.1)):
        model = make(learning_rate=rate, weight_decay=decay, aug_learning_rate=2 * rate, decoupled=decoupled)
        losses.append(model.fit(*data).history_["loss"])
        if len(losses) == 1:
            n_programs = training.train_step._cache_size()
    assert training.train_step._cache_size() == n_programs
    assert losses[0][0] != losses[1][0] and losses[0][-1] != losses[1][-1]


def test_ctrl_c_keeps_what_was_learned(data, monkeypatch):
    module = importlib.import_module("gyri.augnet.classifier")
    calls, step = [], module.train_step

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(module, "train_step", interrupted)
    with pytest.warns(UserWarning, match="interrupted after 2 complete epochs"):
        model = make().fit(*data)
    assert len(model.history_["loss"]) == 2 and model.predict(data[0]).shape == (120,)


def test_ctrl_c_between_any_two_instructions_keeps_the_last_step(data, monkeypatch):
    # A signal is handled between two instructions; those from the third step to the fourth are tried one by one.
    module = importlib.import_module("gyri.augnet.classifier")
    calls, step = [], module.train_step

    def counted(*args):
        calls.append(1)
        return step(*args)

    def fit(at):
        instructions = itertools.count()

        def trace(frame, event, _):
            if frame.f_code.co_name != "_run":
                return None
            frame.f_trace_opcodes = True  # Python 3.12 shows lines all the same
            if event in ("line", "opcode") and len(calls) == 3 and next(instructions) == at:
                raise KeyboardInterrupt
            return trace

        calls.clear()
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            return make(n_epochs=1).fit(*data)
        finally:
            sys.settrace(before)

    monkeypatch.setattr(module, "train_step", counted)
    expected = None
    for at in itertools.count():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = fit(at)
        if not caught:
            break
        kernel = np.asarray(model.model_.trunk.out.kernel[...])
        expected = kernel if expected is None else expected
        np.testing.assert_array_equal(kernel, expected)
    assert at > 2 and len(calls) == 6


def test_a_step_gives_plain_arrays(monkeypatch):
    # Typed keys, such as those of a dropout, are rebuilt by Python after the step, which Ctrl-C can cut in two.
    module = importlib.import_module("gyri.augnet.classifier")
    step, seen = module.train_step, []
    monkeypatch.setattr(module, "train_step", lambda *args: seen.append(step(*args)) or seen[-1])
    model = make(Norm, "affine", n_epochs=1).fit(IMAGES, np.arange(9) % 2)
    assert not any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in seen[-1])
    assert jnp.issubdtype(model.model_.trunk.drop.rngs.key[...].dtype, jax.dtypes.prng_key)


def test_the_last_batch_is_filled_up_with_examples():
    # A pairing of equal images changes nothing, unless what fills the batch takes part in it.
    X = np.ones((5, 8, 8, 1), np.float32)
    model = make(Norm, image_transforms(("sample_pairing",)), n_epochs=1, init_magnitude=0.5, batch_size=4)
    probabilities = model.fit(X, np.arange(5) % 2).set_params(batch_size=8).predict_proba(X)
    np.testing.assert_allclose(probabilities, np.broadcast_to(probabilities[0], (5, 2)), rtol=1e-5)


def test_a_loss_that_is_not_finite_stops(data):
    X, y = data
    with pytest.raises(FloatingPointError, match="epoch 1: lower learning_rate"):
        make(lambda rngs: nnx.Sequential(nnx.Linear(32, 3, rngs=rngs), lambda x: jnp.log(-jnp.exp(x))), (
            Transform("flat", lambda key, x, arg: x), )).fit(X[:, 0], y)  # fmt: skip


def test_silent_without_a_bar(data, capsys):
    make(n_epochs=1).fit(*data)
    assert capsys.readouterr() == ("", "")
    make(n_epochs=1, verbose=True).fit(*data)
    assert "augnet" in capsys.readouterr().err


IMAGES = np.random.default_rng(0).uniform(size=(9, 8, 8, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("options", "X", "message"),
    [
        ({}, np.zeros((0, 1, 32)), "X"),
        ({}, np.full((9, 1, 32), np.nan), "X: expected finite"),
        ({}, np.full((9, 1, 32), np.inf), "X: expected finite"),
        ({}, np.array(["a"] * 9), "X"),
        ({}, np.ones(9), r"X: expected shape \(n, ...\)"),
        ({"layers": "affine"}, np.ones((9, 1, 32)), "X: expected shape .* for images"),
        ({"layers": "non_affine"}, 2 * IMAGES, r"X: expected images in \[0, 1\]"),
        ({"layers": image_transforms(("brightness",))}, IMAGES - 1, r"X: expected images in \[0, 1\]"),
        ({"layers": "time_freq", "sfreq": 100.0}, IMAGES, "X: expected shape .* for EEG"),
        ({"layers": "time_freq"}, None, "sfreq"),
        ({"layers": "spatial", "sfreq": 100.0}, None, "ch_names"),
        ({"layers": "warp"}, None, "layers: expected one of"),
        ({"reg": -0.1}, None, "reg"),
        ({"penalty": "both"}, None, "penalty"),
        ({"copies": 0}, None, "copies"),
        ({"train_copies": 0}, None, "train_copies"),
        ({"init_magnitude": 1.2}, None, "init_magnitude"),
        ({"temperature": 0.0}, None, "temperature"),
        ({"n_epochs": 0}, None, "n_epochs"),
        ({"batch_size": 0}, None, "batch_size"),
        ({"n_layers": 0}, None, "n_layers"),
        ({"learning_rate": -1.0}, None, "learning_rate"),
        ({"aug_weight_decay": -1.0}, None, "aug_weight_decay"),
        ({"reg_schedule": lambda epoch: -1.0}, None, "reg_schedule"),
        ({"trunk": 3}, None, "trunk"),
        ({"trunk": lambda rngs: nnx.Linear(32, 3, rngs=rngs)}, None, "trunk: expected outputs of shape"),
    ],
)
def test_bad_input_is_named(options, X, message):
    X = np.zeros((9, 1, 32), np.float32) if X is None else X
    with pytest.raises(ValueError, match=message):
        make(**options).fit(X, np.zeros(9, int))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros(119, int), r"y: expected shape \(120,\)"),
        (np.arange(120) % 4, r"y: expected labels in \[0, 3\)"),
        (np.arange(120) % 3 - 1, r"y: expected labels in \[0, 3\)"),
        (np.array(["a", "b"] * 60), "y: expected 3 different labels"),
        (np.linspace(0, 1, 120), "y: expected integers or names"),
    ],
)
def test_bad_labels_are_named(y, message, data):
    with pytest.raises(ValueError, match=message):
        make().fit(data[0], y)


def test_bad_calls_of_a_fitted_one(fitted, data):
    X, _ = data
    with pytest.raises(ValueError, match=r"X: expected examples of shape \(1, 32\)"):
        fitted.predict(X[:, :, :16])
    with pytest.raises(ValueError, match="X"):
        fitted.predict(np.full((2, 1, 32), np.nan))
    with pytest.raises(Exception, match="not fitted"):
        make().predict(X)


def test_plots(fitted):
    figure = plot_augmentations(fitted)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["rescale", "roll"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), fitted.history_["weights"][:, 0])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), fitted.history_["magnitudes"][:, 0])
    assert plot_augmentations(fitted.history_, axes) is figure and len(axes.lines) == 8
    for nothing in ({}, {"weights": np.zeros((0, 2)), "magnitudes": np.zeros((0, 2))}):
        with pytest.raises(ValueError, match="history_or_classifier"):
            plot_augmentations(nothing)


def test_a_learned_shift_of_sinusoids():
    # Two frequencies of which each example has its own within half a hertz; one neuron a class would memorise them.
    rng = np.random.default_rng(0)
    t, y = np.arange(500) / 100, np.arange(160) % 2
    f = 2 + 2 * y + rng.uniform(-0.5, 0.5, 160)
    X = np.sin(2 * np.pi * f[:, None] * t + rng.uniform(0, 6.3, 160)[:, None]) + 0.5 * rng.normal(size=(160, 500))
    shift = Transform(
        "shift",
        lambda key, x, arg: eeg.frequency_shift(x, arg * jax.random.uniform(key, x.shape[:1], minval=-1.0), 100.0),
        (0.0, 2.0),
        "Hz",
    )
    trunk = lambda rngs: nnx.Sequential(
        lambda x: x[:, 0], nnx.Linear(500, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 2, rngs=rngs)
    )
    model = make(trunk, (shift,), reg=0.5, init_magnitude=0.1, aug_learning_rate=3e-3, n_epochs=40, batch_size=32)
    model.fit(X[:, None].astype(np.float32), y)
    assert 0.1 < model.model_.describe()[0]["argument"] < 1.0
