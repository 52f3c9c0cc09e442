"""Training: it learns, stops early, keeps the best epoch, weighs classes, survives Ctrl-C, refuses bad input."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight

from gyri.cadda import SleepStager, simulate_sleep, train, train_classifier
from gyri.cadda.functional import balanced_accuracy, class_weights, cross_entropy, take_apart
from gyri.numerics.testing import check_no_recompilation

SHAPE = {"n_channels": 2, "n_classes": 5, "n_times": 200, "sfreq": 20.0}


@pytest.fixture(scope="module")
def sets():
    X, y, subject = simulate_sleep(0, 4, 40, sfreq=20, window_s=10)
    return X[subject < 2], y[subject < 2], X[subject >= 2], y[subject >= 2]


def network(seed=0, **options):
    return SleepStager(**SHAPE | options, rngs=nnx.Rngs(seed))


def arrays(module):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))]


def test_it_learns_and_leaves_its_input_alone(sets):
    _, _, X_valid, y_valid = sets
    start = network()
    before = arrays(start)
    trained, history = train_classifier(0, start, *sets, n_epochs=25, learning_rate=3e-3, verbose=False)
    assert history["valid_balanced_accuracy"].max() > 0.8
    assert history["train_loss"][-1] < 0.5 * history["train_loss"][0]
    assert set(history) == {"train_loss", "valid_loss", "valid_balanced_accuracy"}
    for a, b in zip(before, arrays(start)):
        np.testing.assert_array_equal(a, b)
    predicted = np.asarray(trained(jnp.asarray(X_valid)).argmax(-1))  # the best epoch, in evaluation mode
    assert balanced_accuracy_score(y_valid, predicted) == pytest.approx(history["valid_balanced_accuracy"].max())
    again, same = train_classifier(0, start, *sets, n_epochs=25, learning_rate=3e-3, verbose=False)
    np.testing.assert_array_equal(same["train_loss"], history["train_loss"])
    np.testing.assert_array_equal(arrays(again)[0], arrays(trained)[0])


def test_it_stops_early(sets):
    _, history = train_classifier(0, network(), *sets, learning_rate=1e-9, patience=3, n_epochs=50, verbose=False)
    accuracy = history["valid_balanced_accuracy"]
    best = int(np.argmax(accuracy))  # the first of equals
    assert len(accuracy) == best + 4


def test_augmenter_sees_batches_and_counts(sets):
    seen = []

    def silence(key, x, y):
        seen.append((x.shape, y.shape))
        return 0 * x

    _, history = train_classifier(0, network(), *sets, augmenter=silence, n_epochs=3, verbose=False)
    assert seen and set(seen) == {((16, 2, 200), (16,))}
    assert history["train_loss"][-1] > 1.3  # of nothing nothing is learned: log 5 = 1.6


def test_new_values_compile_nothing(sets):
    fit = lambda seed, rate: train_classifier(
        seed, network(seed), *sets, n_epochs=2, learning_rate=rate, verbose=False
    )[1]
    check_no_recompilation(fit, (0, 1e-3), (1, 1e-2), jit=False)


def test_interrupt_returns_the_best_so_far(sets, monkeypatch):
    scored = train.score
    calls = []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scored(*arguments)

    monkeypatch.setattr(train, "score", interrupt)
    with pytest.warns(UserWarning, match="interrupted after 2 epochs"):
        trained, history = train_classifier(0, network(), *sets, n_epochs=10, verbose=False)
    assert len(history["train_loss"]) == 2
    assert np.abs(arrays(trained)[-1] - arrays(network())[-1]).max() > 0


def test_interrupt_at_the_end_of_the_first_epoch(sets, monkeypatch):
    """The best weights are those of that epoch, not those that its steps took over."""

    class Bar(contextlib.nullcontext):
        def __enter__(self):
            return self

        def update(self, n):
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "progress_bar", lambda *arguments: Bar())
    with pytest.warns(UserWarning, match="interrupted after 1 epochs"):
        trained, _ = train_classifier(0, network(), *sets, n_epochs=10, verbose=False)
    assert np.abs(arrays(trained)[-1] - arrays(network())[-1]).max() > 0


def test_losses_that_are_not_finite_say_so(sets):
    with pytest.raises(FloatingPointError, match="not finite in epoch 0.*learning_rate"):
        train_classifier(0, network(batch_norm=False), *sets, learning_rate=1e30, n_epochs=3, verbose=False)


def test_silence_and_bar(sets, capsys):
    train_classifier(0, network(), *sets, n_epochs=1, verbose=False)
    assert capsys.readouterr() == ("", "")
    train_classifier(0, network(), *sets, n_epochs=1)
    assert "training" in capsys.readouterr().err


def test_class_weights_are_scikit_learns():
    y = np.array([0, 0, 0, 1, 1, 3])
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=y)
    np.testing.assert_allclose(class_weights("balanced", y, 4)[[0, 1, 3]], expected)
    assert class_weights("balanced", y, 4)[2] == 0
    np.testing.assert_array_equal(class_weights({1: 3.0}, y, 3), [1, 3, 1])
    np.testing.assert_array_equal(class_weights(None, y, 3), 1)
    np.testing.assert_array_equal(class_weights([1, 2, 3], y, 3), [1, 2, 3])


def test_loss_is_scikit_learns():
    from sklearn.metrics import log_loss

    rng = np.random.default_rng(0)
    logits, y, w = rng.standard_normal((20, 3)), np.arange(20) % 3, np.array([0.5, 1.0, 2.0])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = log_loss(y, p, sample_weight=w[y]) * w[y].mean()
    assert float(cross_entropy(*map(jnp.asarray, (logits, y, w)))) == pytest.approx(expected, rel=1e-5)


def test_balanced_accuracy_is_scikit_learns():
    rng = np.random.default_rng(0)
    y, predicted = rng.choice([0, 1, 4], 50), rng.choice([0, 1, 4], 50)
    assert balanced_accuracy(y, predicted) == pytest.approx(balanced_accuracy_score(y, predicted))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.zeros((4, 200))}, r"X: expected shape \(n, n_channels, n_times\), got \(4, 200\)"),
        ({"X": np.zeros((0, 2, 200))}, "X: expected at least one entry"),
        ({"X": np.full((80, 2, 200), np.nan)}, "X: expected finite"),
        ({"X": np.zeros((80, 2, 200), complex)}, "X: expected an array of real numbers"),
        ({"X": np.zeros((80, 2, 100))}, r"X_valid: expected windows of shape \(2, 100\) as in X"),
        ({"y": np.zeros(80)}, "y: expected integer labels from 0, got dtype float64"),
        ({"y": np.zeros(79, int)}, r"y: expected shape \(80,\)"),
        ({"y": np.full(80, 5)}, "y: expected labels >= 0 and < 5"),
        ({"y_valid": np.full(80, -1)}, "y_valid: expected labels >= 0"),
        ({"network": lambda x: x}, "network: expected a flax.nnx.Module, got function"),
        ({"augmenter": 3}, "augmenter: expected a function"),
        ({"batch_size": 0}, "batch_size: expected an integer >= 1"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number > 0"),
        ({"class_weight": [1.0]}, r"class_weight: expected shape \(5,\)"),
        ({"class_weight": "even"}, "class_weight: expected one of 'balanced'"),
        ({"class_weight": {7: 1.0}}, "class_weight: expected classes 0 to 4"),
    ],
)
def test_bad_input(sets, change, message):
    names = ("X", "y", "X_valid", "y_valid")
    arguments = {"key": 0, "network": network()} | dict(zip(names, sets)) | {"verbose": False, "n_epochs": 1} | change
    with pytest.raises(ValueError, match=message):
        train_classifier(**arguments)


def test_windows_that_the_network_does_not_take(sets):
    X, y, X_valid, y_valid = sets
    with pytest.raises(ValueError, match=r"network: does not take windows of shape \(2, 100\)"):
        train_classifier(0, network(), X[..., :100], y, X_valid[..., :100], y_valid, n_epochs=1, verbose=False)


def test_a_copy_is_taken_apart():
    module = network()
    graphs, weights = take_apart(module)
    other = take_apart(network(1))[0]
    assert graphs == other and hash(graphs) == hash(other) and graphs.training != graphs.evaluation
    assert len(jax.tree.leaves(weights.params)) == len(arrays(module))
