"""The search: every method, its options, files, MNE's epochs, bad input, Ctrl-C; and that it finds what is planted."""

import jax
import jax.numpy as jnp
import mne
import numpy as np
import pytest
from flax import nnx
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from gyri.cadda import (
    Augmenter,
    Policy,
    PolicySearch,
    descent,
    exposure,
    plot_policy,
    plot_search,
    simulate_sleep,
    train,
    trials,
)
from gyri.cadda.experiments.toy import learn_polarity, polarity_windows
from gyri.cadda.functional import cross_entropy, take_apart
from gyri.cadda.spaces import PairSpace, draw_pairs
from gyri.cadda.train import Data, on_device
from gyri.cadda.windows import read_windows
from gyri.numerics.testing import check_no_recompilation
from gyri.numerics.transform import Transform, eeg_transforms

SMALL = {"sfreq": 20, "n_epochs": 2, "n_warmup": 1, "n_subpolicies": 2, "verbose": False}
OPS = ["sign_flip", "time_mask"]
METHODS = ["cadda", "adda", "dada", "faster_aa", "fast_aa", "autoaugment", "random", "randaugment", "none"]


@pytest.fixture(scope="module")
def sets():
    X, y, subject = simulate_sleep(0, 2, 40, sfreq=20, window_s=10)
    return X[subject == 0], y[subject == 0], X[subject == 1], y[subject == 1]


@pytest.fixture(scope="module")
def fitted(sets):
    return PolicySearch(perceptron(), OPS, **SMALL).fit(*sets)


class Perceptron(nnx.Module):
    """A small network of the kind that a user may bring."""

    def __init__(self, n_in, n_classes, rngs):
        self.hidden, self.out = nnx.Linear(n_in, 16, rngs=rngs), nnx.Linear(16, n_classes, rngs=rngs)

    def embed(self, x):
        return nnx.tanh(self.hidden(x.reshape(len(x), -1)))

    def __call__(self, x):
        return self.out(self.embed(x))


def perceptron(seed=0):
    return Perceptron(400, 5, nnx.Rngs(seed))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_searches(sets, method):
    make = lambda: PolicySearch(perceptron(), OPS, method=method, random_state=3, **SMALL).fit(*sets)
    search = make()
    n_rows = 5 if method == "cadda" else 1
    n_sub = {"dada": 2, "randaugment": 1}.get(method, 2)
    assert isinstance(search.policy_, Policy) and search.policy_.logits.shape == (n_rows, n_sub, 2, 2)
    n_steps = 0 if method == "none" else 2
    assert len(search.history_["time"]) == n_steps and len(search.history_["logits"]) == n_steps + 1
    for leaf in (search.policy_.probabilities, search.policy_.magnitudes):
        assert np.all((np.asarray(leaf) >= 0) & (np.asarray(leaf) <= 1))
    X, y = sets[:2]
    out = search.augmenter()(0, X, y)
    assert out.shape == X.shape and np.isfinite(out).all()
    if method == "none":
        np.testing.assert_array_equal(out, X)
        return
    again = make()
    for one, other in zip(search.policy_, again.policy_):
        np.testing.assert_array_equal(one, other)
    moved = np.abs(search.history_["probabilities"][-1] - search.history_["probabilities"][0]).max()
    assert moved > 0 or method in ("autoaugment", "random", "fast_aa", "randaugment")
    rows = search.describe()
    assert len(rows) == n_rows * n_sub * 2 * 2 and {row["operation"] for row in rows} == set(OPS)


@pytest.mark.parametrize(
    ("estimator", "hypergradient"),
    [("softmax", "exact"), ("gumbel", "finite_difference"), ("relax", "first_order"), ("relax", "finite_difference")],
)
def test_every_estimator_and_hypergradient(sets, estimator, hypergradient):
    options = {"estimator": estimator, "hypergradient": hypergradient, "class_wise": False}
    search = PolicySearch(perceptron(), OPS, **SMALL | options).fit(*sets)
    moved = np.abs(search.history_["logits"][-1] - search.history_["logits"][0]).max()
    assert (moved > 1e-3) == (hypergradient != "first_order")
    assert np.isfinite(search.history_["train_loss"]).all()


@pytest.mark.parametrize(("method", "estimator"), [("dada", "gumbel"), ("faster_aa", "softmax")])
def test_other_estimators(sets, method, estimator):
    search = PolicySearch(perceptron(), OPS, method=method, estimator=estimator, **SMALL).fit(*sets)
    assert np.isfinite(search.policy_.logits).all()
    assert ("wasserstein" in search.history_) == (method == "faster_aa")


@pytest.mark.parametrize("method", ["adda", "dada", "faster_aa", "random", "randaugment"])
def test_every_method_can_be_class_wise(sets, method):
    search = PolicySearch(perceptron(), OPS, method=method, class_wise=True, **SMALL).fit(*sets)
    assert search.policy_.logits.shape[0] == 5


GAINS = tuple(Transform(f"gain {g}", lambda key, x, arg, g=g: g * x) for g in (-1.0, 0.3, 2.0))


def prepared(sets, estimator, n_rows, dtype="float32"):
    """Setting, state and batch of one step with operations that are not random."""
    graphs, weights = take_apart(perceptron())
    weights = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype == np.float32 else leaf, weights)
    setting = descent.Setting(graphs, descent.StageSpace(3, 1, 1, n_rows), GAINS, estimator, "exact", 0.05, 1)
    state = descent.start_search(setting, weights, jax.random.key(0), dtype)
    X, y, X_valid, y_valid = (jnp.asarray(a) for a in sets)
    return setting, state, descent.Batch(X.astype(dtype), y, X_valid.astype(dtype), y_valid)


@pytest.mark.parametrize("estimator", ["softmax", "relax"])
def test_exact_and_finite_differences_agree(sets, estimator, x64):
    setting, state, batch = prepared(sets, estimator, 5, "float64")
    find = descent.relaxed_hypergradient if estimator == "relax" else descent.weighted_hypergradient
    both = lambda method: find(
        setting._replace(hypergradient=method), jax.random.key(1), state, batch, jnp.ones(5), 0.1
    )[0]
    exact, difference = jax.jit(lambda: (both("exact"), both("finite_difference")))()
    for one, other in zip(exact, difference):
        assert np.abs(one).max() > 0 or one is exact.magnitudes
        np.testing.assert_allclose(one, other, atol=1e-3 * np.abs(one).max() + 1e-12)


@pytest.mark.parametrize("estimator", ["gumbel", "relax"])
def test_dada_adds_its_decay_to_the_whole_hypergradient(sets, estimator, x64):
    setting, state, batch = prepared(sets, estimator, 1, "float64")
    setting = setting._replace(space=PairSpace(((0, 1), (1, 2), (2, 0)), 3, 1))
    state = descent.start_search(setting, state.learner.weights, jax.random.key(0), "float64")
    data, held = (Data(x, y, jnp.ones(5)) for x, y in ((batch.x, batch.y), (batch.x_valid, batch.y_valid)))
    key, rows, xi = jax.random.key(1), jnp.arange(len(batch.y)), 0.02
    find = descent.relaxed_hypergradient if estimator == "relax" else descent.weighted_hypergradient
    over_xi = jax.jit(lambda: find(setting, jax.random.fold_in(key, 0), state, batch, jnp.ones(5), xi)[0])()
    expected = jax.tree.map(lambda g, p: xi * g + 1e-3 * p, over_xi, state.params)
    rates = descent.Rates(1e-3, 1e-2, xi)
    after, _ = descent.bilevel_step(setting)(state, key, 0, data, held, rows, rows, rates)
    for mean, gradient in zip(after.opt_state.mu, expected):
        np.testing.assert_allclose(mean, (1 - descent.POLICY_B1) * gradient, rtol=1e-6, atol=1e-12)


def test_search_prefers_what_helps():
    """Class 0 is upright in training and of both signs in validation; class 1 is its late mirror image."""
    rng = np.random.default_rng(0)
    (X, y), (X_valid, y_valid) = (polarity_windows(rng, 300, both) for both in (False, True))
    network = Perceptron(64, 3, nnx.Rngs(0))
    search = PolicySearch(
        network, [Transform("flip", lambda key, x, arg: -x)], n_subpolicies=1, n_stages=1, learning_rate=5e-3,
        unroll_rate=0.1, batch_size=64, n_epochs=80, n_warmup=0, verbose=False,
    ).fit(X[:, None], y, X_valid[:, None], y_valid)  # fmt: skip
    p = np.asarray(search.policy_.probabilities).ravel()
    assert p[0] >= 0.35 and p[1] <= 0.05 and p[2] <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_learned_polarity(seed):
    """End to end: the bump of class 0 may be inverted, those of classes 1 and 2 may not."""
    p = learn_polarity(seed)
    assert p[0] >= 0.4 and p[1] <= 0.05 and p[2] <= 0.05


def test_relax_follows_the_cost_of_choices(sets):
    """Mean over keys of the gradient in the logits against the exact expectation over all choices."""
    setting, state, batch = prepared(sets, "relax", 5)
    state = state._replace(params=state.params._replace(
        probabilities=jnp.ones((5, 1, 1, 3)), logits=0.5 * jax.random.normal(jax.random.key(9), (5, 1, 1, 3))
    ))  # fmt: skip
    xi = 1e-6  # so small that v is the same for all choices
    find = lambda key: descent.relaxed_hypergradient(setting, key, state, batch, jnp.ones(5), xi)[0].logits
    draws = np.asarray(jax.jit(jax.vmap(find))(jax.random.split(jax.random.key(1), 3000)), float)[:, :, 0, 0]
    weights = state.learner.weights
    on_windows, valid = descent.losses_of(setting, weights, batch, jnp.ones(5), jax.random.key(0))
    v = jax.grad(lambda t: valid(t)[0])(weights.params)
    cost = np.zeros((5, 3))
    for op, gain in enumerate((-1.0, 0.3, 2.0)):
        slope = jax.jvp(lambda t, gain=gain: on_windows(t, gain * batch.x)[1][1], (weights.params,), (v,))[1]
        cost[:, op] = [-float(slope[batch.y == c].sum()) for c in range(5)]
    p = np.asarray(jax.nn.softmax(state.params.logits))[:, 0, 0]
    expected = p * (cost - (p * cost).sum(1, keepdims=True))
    z = (draws.mean(0) - expected) / (draws.std(0) / np.sqrt(len(draws)))
    assert np.abs(z).max() < 4 and np.abs(expected).max() > 5e-3


def test_pairs_of_operations():
    assert len(draw_pairs(np.random.default_rng(0), 8)) == 56
    many = draw_pairs(np.random.default_rng(0), 12)
    assert len(many) == len(set(many)) == 105 and all(i != j for i, j in many)
    space = PairSpace(many, 12, 2)
    params = space.init(jax.random.key(0), jnp.float32)
    params = params._replace(logits=jnp.arange(210.0).reshape(2, 105), magnitudes=params.magnitudes.at[0, 104].set(0.9))
    policy = space.finish(params)
    assert policy.logits.shape == (2, 25, 2, 12)
    assert policy.logits[0, 0].argmax(-1).tolist() == list(many[104])  # the heaviest comes first
    np.testing.assert_allclose(policy.magnitudes[0, 0].max(-1), 0.9)
    np.testing.assert_allclose(np.asarray(exposure(policy)).sum(-1), 0.5, atol=0.01)  # one at a stage, half of the time


def test_trials_keep_the_best():
    policies = [trials.same_for_all(2, 1, 2, m) for m in (0.1, 0.2, 0.3)]
    told = []
    candidates = iter([(policy, told.append) for policy in policies])
    scores = iter([3.0, 1.0, 2.0])
    found = trials.try_policies(
        candidates, lambda policy: next(scores), trials.no_augmentation((1, 1, 2), 2), n_trials=3, verbose=False
    )
    assert told == [3.0, 1.0, 2.0] and found.history["score"].tolist() == told
    assert float(found.policy.magnitudes[0, 0, 0, 0]) == pytest.approx(0.2)
    assert found.history["magnitudes"][:, 0, 0, 0, 0] == pytest.approx([0, 0.1, 0.2, 0.2])


def test_tree_learns_what_scores(capsys):
    tree = trials.Tree(0, (1, 1, 1), 4)
    for _ in range(60):
        ops, p, _ = tree.propose()
        tree.tell(float(ops[0, 0, 0] != 2) + abs(float(p[0, 0, 0]) - 0.3))
    best = tree._study.best_params
    assert best["operation 0-0-0"] == 2 and abs(best["probability 0-0-0"] - 0.3) < 0.1
    assert "INFO" not in capsys.readouterr().err


def test_fixed_network_is_scored_on_every_window_once(sets):
    graphs, weights = take_apart(perceptron())
    X = np.concatenate([sets[0], sets[2]])[:77]
    y = np.concatenate([sets[1], sets[3]])[:77]
    data = Data(jnp.asarray(X), jnp.asarray(y, jnp.int32), jnp.asarray([1.0, 2.0, 1.0, 0.5, 1.0]))
    nothing = Augmenter(trials.no_augmentation((1, 1, 1), 2), eeg_transforms(20.0, include=OPS))
    found = trials.augmented_loss(graphs)(weights, data, nothing, jax.random.key(0))
    expected = cross_entropy(nnx.merge(graphs.evaluation, *weights)(data.X), data.y, data.class_weight)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


# --- the door -------------------------------------------------------------------------------------------------------


def test_a_validation_set_is_cut_off(sets):
    X, y = sets[:2]
    search = PolicySearch(perceptron(), OPS, **SMALL).fit(X, y)
    assert search.policy_.logits.shape == (5, 2, 2, 2)
    one, other = search._split(read_windows(X, y))
    assert np.bincount(one.y).tolist() == np.bincount(other.y).tolist() == [4] * 5
    with pytest.raises(ValueError, match="a class has one window only"):
        PolicySearch(perceptron(), OPS, **SMALL).fit(X[:5], np.arange(5))


def test_a_second_search_compiles_nothing(sets):
    fit = lambda seed, rate: (
        PolicySearch(perceptron(), OPS, random_state=seed, policy_learning_rate=rate, **SMALL).fit(*sets).policy_.logits
    )
    check_no_recompilation(fit, (0, 1e-2), (1, 2e-2), jit=False)


class Normalised(nnx.Module):
    """A module with batch normalisation."""

    def __init__(self, rngs):
        self.norm, self.out = nnx.BatchNorm(2, momentum=0.9, rngs=rngs), nnx.Linear(400, 5, rngs=rngs)

    def __call__(self, x):
        return self.out(self.norm(x.swapaxes(1, 2)).reshape(len(x), -1))


@pytest.mark.parametrize(("estimator", "hypergradient"), [("relax", "exact"), ("softmax", "finite_difference")])
def test_batch_statistics_change_by_training_steps_only(sets, estimator, hypergradient):
    """A step of zero rates leaves weights where they are and moves the running means as plain training does."""
    graphs, weights = take_apart(Normalised(nnx.Rngs(0)))
    data = on_device(read_windows(*sets[:2]), jnp.float32, np.ones(5))
    flat = tuple(Transform(name, lambda key, x, arg: x) for name in "ab")
    setting = descent.Setting(graphs, descent.StageSpace(2, 1, 1, 1), flat, estimator, hypergradient, 0.05, 1)
    state = descent.start_search(setting, weights, jax.random.key(0), jnp.float32)
    rates = descent.Rates(*(np.float32(r) for r in (0.0, 0.0, 0.5)))
    rows = np.arange(16, dtype=np.int32)
    state, _ = descent.bilevel_step(setting)(state, jax.random.key(1), np.int32(0), data, data, rows, rows + 8, rates)
    plain = nnx.merge(graphs.training, *weights, copy=True)
    plain(data.X[:16])
    after = state.learner.weights
    np.testing.assert_allclose(after.stats["norm"]["mean"][...], plain.norm.mean[...], rtol=1e-4, atol=1e-6)
    assert np.abs(plain.norm.mean[...]).max() > 0
    for old, new in zip(jax.tree.leaves(weights.params), jax.tree.leaves(after.params)):
        np.testing.assert_array_equal(old, new)


def epochs_of(X, y, names=("C3", "C4"), bads=()):
    info = mne.create_info(list(names), 20.0, "eeg")
    info["bads"] = list(bads)
    events = np.stack([np.arange(len(y)), np.zeros(len(y), int), 10 * np.asarray(y) + 3], 1)
    return mne.EpochsArray(1e-6 * X, info, events, verbose="error")


def test_epochs_of_mne(sets):
    X, y, X_valid, y_valid = sets
    names = ["channels_symmetry", "gaussian_noise"]
    search = PolicySearch(perceptron(), names, **SMALL | {"sfreq": 100})
    search.fit(epochs_of(X, y), None, epochs_of(X_valid, y_valid), None)
    assert search.sfreq_ == 20 and search.ch_names_ == ("C3", "C4") and search.n_classes_ == 5
    same = PolicySearch(perceptron(), names, ch_names=["C3", "C4"], **SMALL).fit(*sets)
    np.testing.assert_allclose(search.policy_.logits, same.policy_.logits, atol=0.05)  # z-scored again
    with pytest.raises(ValueError, match="X_valid: expected the channels of X"):
        PolicySearch(perceptron(), OPS, **SMALL).fit(
            epochs_of(X, y), y, epochs_of(X_valid, y_valid, ("C3", "Cz")), y_valid
        )
    one = Perceptron(200, 5, nnx.Rngs(0))
    with pytest.warns(UserWarning, match="'EEG Pz-Oz': operations that need such names are left out"):
        bipolar = PolicySearch(perceptron(), method="none").fit(epochs_of(X, y, ("EEG Fpz-Cz", "EEG Pz-Oz")), None)
    assert bipolar.transforms_ == eeg_transforms(20.0)
    with pytest.raises(ValueError, match="ch_names: expected names of the 10-20 system"):
        PolicySearch(perceptron(), "all").fit(epochs_of(X, y, ("EEG Fpz-Cz", "EEG Pz-Oz")), None)
    dropped = PolicySearch(one, OPS, **SMALL).fit(epochs_of(X, y, bads=["C4"]), y)
    assert dropped.window_shape_ == (1, 200)
    alone = PolicySearch(one, method="none").fit(epochs_of(X, y, bads=["C4"]), y)
    assert alone.transforms_ == eeg_transforms(20.0)


def test_save_and_load(sets, fitted, tmp_path):
    path = tmp_path / "search.npz"
    fitted.save(path)
    back = PolicySearch.load(path, network=perceptron())
    for one, other in zip(fitted.policy_, back.policy_):
        np.testing.assert_array_equal(one, other)
    assert back.describe() == fitted.describe() and set(back.history_) == set(fitted.history_)
    np.testing.assert_array_equal(back.augmenter()(0, *sets[:2]), fitted.augmenter()(0, *sets[:2]))
    assert back.get_params()["n_subpolicies"] == 2 and back.sfreq_ == 20 and back.n_classes_ == 5
    np.testing.assert_array_equal(back.fit(*sets).policy_.logits, fitted.policy_.logits)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="search.npz"):
        PolicySearch.load(path)


def test_a_custom_network_is_handed_in(sets, fitted, tmp_path):
    fitted.save(tmp_path / "s.npz")
    PolicySearch.load(tmp_path / "s.npz").save(tmp_path / "again.npz")
    back = PolicySearch.load(tmp_path / "again.npz")
    assert back.describe() == fitted.describe() and back.augmenter()(0, *sets[:2]).shape == sets[0].shape
    for search in (back, clone(back)):
        with pytest.raises(ValueError, match="network: it was a custom one"):
            search.fit(*sets)
    np.testing.assert_array_equal(
        back.set_params(network=perceptron()).fit(*sets).policy_.logits, fitted.policy_.logits
    )
    plain = PolicySearch(None, OPS, method="none", **SMALL).fit(*sets)
    plain.save(tmp_path / "plain.npz")
    assert PolicySearch.load(tmp_path / "plain.npz").fit(*sets).network is None


def test_numbers_of_numpy_come_back_as_numbers(sets, tmp_path):
    options = {"batch_size": np.int64(8), "n_subpolicies": np.int32(2), "unroll_rate": jnp.float32(0.25)}
    options |= {"temperature": np.array(0.5), "learning_rate": np.float32(0.25)}
    search = PolicySearch(perceptron(), OPS, method="none", **SMALL).fit(*sets)
    search.set_params(**options).save(tmp_path / "s.npz")
    back = PolicySearch.load(tmp_path / "s.npz", network=perceptron())
    for name, value in options.items():
        assert type(getattr(back, name)) in (int, float) and getattr(back, name) == value
    assert back.set_params(method="adda").fit(*sets).policy_.logits.shape == (1, 2, 2, 2)


def test_custom_operations_are_handed_in(sets, tmp_path):
    custom = Transform("invert", lambda key, x, arg: -x)
    search = PolicySearch(
        perceptron(), [custom, *eeg_transforms(20.0, include=["time_mask"])], class_weight={0: 2.0},
        random_state=jax.random.key(3), **SMALL,
    ).fit(*sets)  # fmt: skip
    search.save(tmp_path / "s.npz")
    back = PolicySearch.load(tmp_path / "s.npz")
    assert back.describe() == search.describe()
    np.testing.assert_array_equal(back.history_["logits"], search.history_["logits"])
    assert plot_policy(back).axes
    with pytest.raises(ValueError, match="transforms: 'invert' is a custom one"):
        back.augmenter()(0, *sets[:2])
    whole = PolicySearch.load(tmp_path / "s.npz", network=perceptron(), transforms=[custom])
    np.testing.assert_array_equal(whole.augmenter()(0, *sets[:2]), search.augmenter()(0, *sets[:2]))
    np.testing.assert_array_equal(whole.fit(*sets).policy_.logits, search.policy_.logits)
    with pytest.raises(ValueError, match=r"transforms: expected some of \['invert', 'time_mask'\]"):
        PolicySearch.load(tmp_path / "s.npz", transforms=[Transform("other", custom.fn)])


def test_conventions_of_scikit_learn(fitted):
    assert clone(fitted).get_params()["transforms"] == OPS
    assert "n_epochs=2" in repr(fitted)
    new = PolicySearch()
    for call in (new.augmenter, new.describe, lambda: new.save("nowhere.npz")):
        with pytest.raises(NotFittedError):
            call()


def test_earlier_policies(fitted, sets):
    start = fitted.augmenter(step=0).policy
    np.testing.assert_array_equal(start.logits, fitted.history_["logits"][0])
    np.testing.assert_array_equal(fitted.augmenter(step=2).policy.logits, fitted.policy_.logits)
    with pytest.raises(ValueError, match="step: expected 0 to 2, got 3"):
        fitted.augmenter(step=3)


def test_interrupt_keeps_the_last_epoch(sets, monkeypatch):
    checked, calls = descent.check_losses, []

    def interrupt(losses, epoch):
        calls.append(epoch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return checked(losses, epoch)

    monkeypatch.setattr(descent, "check_losses", interrupt)
    search = PolicySearch(perceptron(), OPS, **SMALL | {"n_epochs": 9, "n_warmup": 0})
    with pytest.warns(UserWarning, match="interrupted after 2 epochs or trials"):
        search.fit(*sets)
    assert len(search.history_["time"]) == 2
    np.testing.assert_array_equal(search.policy_.logits, search.history_["logits"][-1])


@pytest.mark.parametrize(
    ("method", "module", "name"), [("fast_aa", train, "check_losses"), ("adda", descent, "warm_up")]
)
def test_interrupt_before_the_search_keeps_its_start(sets, monkeypatch, method, module, name):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, interrupt)
    search = PolicySearch(perceptron(), OPS, method=method, **SMALL)
    with pytest.warns(UserWarning, match="interrupted after 0 epochs or trials"):
        search.fit(*sets)
    assert len(search.history_["time"]) == 0 and len(search.history_["logits"]) == 1
    np.testing.assert_array_equal(search.policy_.logits, search.history_["logits"][0])


def test_silence_and_bars(sets, capsys):
    PolicySearch(perceptron(), OPS, **SMALL).fit(*sets)
    assert capsys.readouterr() == ("", "")
    PolicySearch(perceptron(), OPS, **SMALL | {"verbose": True}).fit(*sets)
    assert "search" in capsys.readouterr().err


def test_figures(fitted):
    from matplotlib import pyplot as plt

    figure = plot_policy(fitted)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()][1] == "time_mask (samples)"
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), exposure(fitted.policy_), rtol=1e-6)
    _, ax = plt.subplots()
    assert plot_policy(fitted.policy_, fitted.transforms_, ax=ax) is ax.figure
    assert len(plot_search(fitted).axes[0].lines) == 2
    plt.close("all")
    for call, message in (
        (lambda: plot_policy(fitted.policy_), "transforms: expected the operations"),
        (lambda: plot_policy(PolicySearch()), "expected a Policy or a fitted PolicySearch"),
        (lambda: plot_search(PolicySearch()), "search: expected a fitted one"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "adam"}, "method: expected one of 'cadda'"),
        ({"method": "dada", "estimator": "softmax"}, "estimator: expected 'relax' or 'gumbel' for method 'dada'"),
        ({"method": "dada", "transforms": ["sign_flip"]}, "transforms: expected two or more for method 'dada'"),
        ({"method": "faster_aa", "batch_size": 1}, "batch_size: expected 2 or more"),
        ({"estimator": "exact"}, "estimator: expected one of"),
        ({"hypergradient": "relax"}, "hypergradient: expected one of"),
        ({"n_epochs": 0}, "n_epochs: expected an integer >= 1"),
        ({"n_warmup": -1}, "n_warmup: expected an integer >= 0"),
        ({"sfreq": 0}, "sfreq: expected a number > 0"),
        ({"unroll_rate": 0.0}, "unroll_rate: expected a number > 0"),
        ({"transforms": ["flip"]}, "include: expected different names among"),
        ({"transforms": []}, "transforms: expected one or more"),
        ({"transforms": ["rotation_x"]}, "ch_names: expected the channels' names"),
        ({"transforms": ["rotation_x"], "ch_names": ["C3", "Foo"]}, "Foo"),
        ({"ch_names": ["C3"]}, "ch_names: expected 2 names as there are channels, got 1"),
        ({"network": 3}, "network: expected a flax.nnx.Module, got int"),
    ],
)
def test_bad_options(sets, options, message):
    with pytest.raises(ValueError, match=message):
        PolicySearch(**{"transforms": OPS, "network": perceptron()} | SMALL | options).fit(*sets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.zeros((40, 200))}, "X: expected shape"),
        ({"X": np.full((40, 2, 200), np.inf)}, "X: expected finite"),
        ({"X": np.zeros((0, 2, 200))}, "X: expected at least one entry"),
        ({"y": np.zeros(40)}, "y: expected integer labels"),
        ({"y": np.zeros(3, int)}, "y: expected shape"),
        ({"y": np.arange(40) - 1}, "y: expected labels >= 0"),
        ({"X_valid": np.zeros((40, 2, 150))}, "X_valid: expected windows of shape"),
        ({"X_valid": None}, "y_valid: expected None without X_valid"),
    ],
)
def test_bad_windows(sets, change, message):
    arguments = dict(zip(("X", "y", "X_valid", "y_valid"), sets)) | change
    with pytest.raises(ValueError, match=message):
        PolicySearch(perceptron(), OPS, **SMALL).fit(**arguments)
