"""What users really pass to the front doors: a clear error that names the argument, or the right result."""

import functools
import re
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gyri import augnet, cadda, dripp, hnpe, nystagmus, pavi, saba, shine, tv, unrolled
from gyri.pavi.models import gre

RNG = np.random.default_rng(0)
DRAW = lambda *shape: RNG.standard_normal(shape).astype(np.float32)
LABELS = np.arange(8) % 2


class Door(NamedTuple):
    """One front door.

    Attributes
    ----------
    name : str
        The argument that takes the data.
    x : np.ndarray
        Good data.
    call : callable
        The door with data in that argument; returns a fitted model or an array.
    result : callable
        What to compare, from what `call` returns.
    wrong : tuple of int
        A shape of the wrong rank.
    legal : tuple of str
        Bad inputs that mean something here.
    speaks : str
        Pattern of what errors say where a host library's contract words them.
    """

    name: str
    x: np.ndarray
    call: Callable[[Any], Any]
    result: Callable[[Any], Any] = lambda value: value
    wrong: tuple[int, ...] = (2, 2, 2, 2, 2)
    legal: tuple[str, ...] = ()
    speaks: str = ""

    @property
    def named(self) -> str:
        """Pattern of an error that names the argument."""
        return rf"\b{self.name}\b|{self.speaks}" if self.speaks else rf"\b{self.name}\b"


def network(rngs):
    return nnx.Sequential(lambda x: x[:, 0], nnx.Linear(10, 2, rngs=rngs))


def fit_policy(x):
    options = {"transforms": ["sign_flip"], "method": "adda", "sfreq": 10.0, "batch_size": 4, "n_subpolicies": 1}
    search = cadda.PolicySearch(network(nnx.Rngs(0)), n_stages=1, n_epochs=1, n_warmup=0, verbose=False, **options)
    return search.fit(x, LABELS, WINDOWS, LABELS)


def fit_augnet(x):
    layer = [augnet.Transform("scale", lambda key, x, arg: x * (1 + arg), (0.0, 1.0))]
    return augnet.AugNetClassifier(network, layer, n_epochs=1, batch_size=4, copies=2, verbose=False).fit(x, LABELS)


def train_hnpe(x):
    prior = hnpe.ToyModel().prior
    theta = np.clip(np.abs(THETA), 0.05, 0.95)
    estimator = hnpe.HNPE(prior, hidden=(4,), n_features=2, n_bins=3).append_simulations(theta, x)
    posterior = estimator.train(0, batch_size=8, max_epochs=1, progress=False).build_posterior()
    return posterior.log_prob(theta[0], np.asarray(x, np.float32)[0])


def minimize_ridge(x):
    inner = lambda z, lam, batch: 0.5 * jnp.mean((batch["x"] @ z - 1) ** 2) + 0.5 * jnp.exp(lam) * jnp.sum(z**2)
    outer = lambda z, lam, batch: 0.5 * jnp.mean((batch["x"] @ z - 1) ** 2)
    start = jnp.zeros(3), jnp.zeros(())
    return saba.minimize(saba.soba(inner, outer, batch_size=4), *start, {"x": x}, {"x": ROWS}, num_steps=3).z


@functools.cache
def guide():
    return pavi.AutoPAVI(gre, encoding="data", hidden=(4,), encoding_size=2, subsample_sizes={"groups": 2})


def fit_groups(x):
    return pavi.fit(guide(), 0, 3, x, num_particles=1, progress_bar=False).losses


WINDOWS, ROWS, THETA, ATOMS = DRAW(8, 1, 10), DRAW(8, 3), DRAW(20, 2), DRAW(4, 8)
OPERATOR = DRAW(5, 8)
EVENTS = np.sort(RNG.uniform(1, 19, 30)).astype(np.float32)
STIMULI = np.arange(1.0, 19.0)
DOORS = {
    "dripp.DriPP": Door(
        "events", EVENTS, lambda x: dripp.DriPP(max_iter=5, polish=False).fit(x, STIMULI, t_stop=20.0),
        lambda m: m.alpha_, (2, 2), ("empty",),
    ),
    "dripp.events_from_activations": Door(
        "z", np.abs(DRAW(2, 40)), lambda x: dripp.events_from_activations(x, 10.0)[0], wrong=(3,)
    ),
    "tv.prox_tv1d": Door("x", DRAW(3, 20), lambda x: tv.prox_tv1d(x, 0.3), wrong=()),
    "tv.solve": Door("x", DRAW(4, 5), lambda x: tv.solve(x, OPERATOR, 0.1, max_iter=5).u),
    "tv.LearnedTV": Door(
        "X", DRAW(8, 5), lambda x: tv.LearnedTV(1, max_iter=3, verbose=False).fit(x, OPERATOR),
        lambda m: m.transform(DOORS["tv.LearnedTV"].x),
    ),
    "nystagmus.ConvolutionalDictionaryLearning": Door(
        "X", DRAW(1, 1, 60), lambda x: nystagmus.ConvolutionalDictionaryLearning(1, 6, max_iter=2).fit(x),
        lambda m: m.atoms_,
    ),
    "nystagmus.NystagmusCDL": Door(
        "X", DRAW(1, 1, 60),
        lambda x: nystagmus.NystagmusCDL(1, n_times_atom=6, sfreq=50.0, trend_reg=1.0, max_iter=2).fit(x),
        lambda m: m.atoms_,
    ),
    "unrolled.sparse_code": Door("X", DRAW(6, 8), lambda x: unrolled.sparse_code(x, ATOMS, 0.1, n_iter=3)),
    "unrolled.DictionaryLearning": Door(
        "X", DRAW(12, 8), lambda x: unrolled.DictionaryLearning(3, n_iter=3, max_steps=3, verbose=False).fit(x),
        lambda m: m.components_, speaks="array|Complex data|DictionaryLearning|float()",
    ),
    "unrolled.ConvDictionaryLearning": Door(
        "X", DRAW(1, 1, 40),
        lambda x: unrolled.ConvDictionaryLearning(2, 5, n_iter=3, max_steps=3, verbose=False).fit(x),
        lambda m: m.components_,
    ),
    "unrolled.AnalysisPrior": Door(
        "X", DRAW(12, 8), lambda x: unrolled.AnalysisPrior(3, n_iter=3, max_steps=3, verbose=False).fit(x),
        lambda m: m.prior_,
    ),
    "shine.BilevelLogisticRegression": Door(
        "X", ROWS, lambda x: shine.BilevelLogisticRegression(max_iter=2).fit(x, LABELS, ROWS, LABELS), lambda m: m.coef_
    ),
    "cadda.zscore": Door("X", WINDOWS, cadda.zscore, wrong=()),
    "cadda.PolicySearch": Door("X", WINDOWS, fit_policy, lambda m: m.policy_.magnitudes, (2, 2)),
    "augnet.AugNetClassifier": Door("X", WINDOWS, fit_augnet, lambda m: m.predict_proba(WINDOWS), (8,)),
    "hnpe.HNPE": Door("x", DRAW(20, 1), train_hnpe, wrong=()),
    "hnpe.log_psd": Door("x", DRAW(2, 64), lambda x: hnpe.log_psd(x, 9), wrong=(), legal=("empty", "nan", "inf")),
    "pavi.fit": Door("x", DRAW(4, 3, 2), fit_groups, speaks="'x'"),
    "saba.minimize": Door("inner_data", ROWS, minimize_ridge, wrong=(), legal=("complex",)),
}  # fmt: skip
FITTED = [name for name, door in DOORS.items() if name.rpartition(".")[2][0].isupper() and name != "hnpe.HNPE"]
NAMES = pytest.mark.parametrize("name", DOORS)


def result_or_refusal(door, x):
    """Result of a door, or None where it refuses the data by their name."""
    try:
        return np.asarray(door.result(door.call(x)), float)
    except (ValueError, TypeError) as error:
        assert re.search(door.named, str(error))  # noqa: PT017
        return None


@functools.cache
def expected_of(name):
    """Result of the good data."""
    door = DOORS[name]
    return np.asarray(door.result(door.call(door.x)))


def with_value(x, value):
    x = x.copy()
    x.flat[x.size // 2] = value
    return x


BAD = {
    "wrong rank": lambda door: np.ones(door.wrong, np.float32),
    "empty": lambda door: door.x[:0],
    "nan": lambda door: with_value(door.x, np.nan),
    "inf": lambda door: with_value(door.x, np.inf),
    "objects": lambda door: np.array([{"a": 1}] * door.x.size, object).reshape(door.x.shape),
    "text": lambda door: np.full(door.x.shape, "a"),
    "complex": lambda door: door.x + 1j,
    "none": lambda door: None,
}
SAME = {
    "float64": lambda x: x.astype(np.float64),
    "lists": lambda x: x.tolist(),
    "not contiguous": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "Fortran order": np.asfortranarray,
    "read-only": lambda x: np.require(x.copy(), requirements="C")[...],
    "jax": jnp.asarray,
}


@pytest.mark.parametrize(
    ("name", "bad"), [(name, bad) for name in DOORS for bad in BAD if bad not in DOORS[name].legal]
)
def test_bad_data_is_refused_by_name(name, bad):
    door = DOORS[name]
    # Warnings are errors in the tests: HNPE leaves simulations out that are not finite, and says so.
    with pytest.raises((ValueError, TypeError, UserWarning), match=door.named):
        door.call(BAD[bad](door))


@NAMES
def test_other_layouts_of_the_same_data_give_the_same_result(name):
    door = DOORS[name]
    before, expected = door.x.copy(), expected_of(name)
    for layout, change in SAME.items():
        x = change(door.x)
        if layout == "read-only":
            x.setflags(write=False)
        found = result_or_refusal(door, x)
        assert found is not None or layout == "lists"  # functions of arrays may ask for an array
        if found is not None:
            np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4, err_msg=layout)
    np.testing.assert_array_equal(door.x, before)  # nothing was written into


@pytest.mark.parametrize("dtype", ["int32", "float16"])
@NAMES
def test_integers_and_half_precision_work_or_are_refused(name, dtype):
    door = DOORS[name]
    x = np.rint(4 * door.x).astype(dtype) if name != "dripp.DriPP" else np.unique(np.rint(door.x)).astype(dtype)
    found = result_or_refusal(door, x)
    assert found is None or np.isfinite(found).all()


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@NAMES
def test_huge_and_tiny_data_work_or_are_refused(name, scale):
    door = DOORS[name]
    try:
        found = result_or_refusal(door, (scale * door.x).astype(np.float32))
    except (FloatingPointError, RuntimeWarning) as error:
        assert re.search("scale|smaller|step|finite", str(error))  # noqa: PT017  # what to change
    else:
        assert found is None or np.isfinite(found).all()


@pytest.mark.parametrize("name", [name for name, door in DOORS.items() if door.x.ndim == 2])
def test_data_frames_are_read_as_their_values(name):
    pandas = pytest.importorskip("pandas")
    door, expected = DOORS[name], expected_of(name)
    frame = pandas.DataFrame(door.x, columns=[f"c{i}" for i in range(door.x.shape[1])])
    found = result_or_refusal(door, frame)
    if found is not None:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# Doors that take recordings or epochs of MNE, and what their data then are to the same door given arrays.
AS_MNE = {
    "cadda.PolicySearch": ("epochs", cadda.zscore),
    "nystagmus.ConvolutionalDictionaryLearning": ("raw", lambda x: x),
    "nystagmus.NystagmusCDL": ("raw", lambda x: x),
    "unrolled.ConvDictionaryLearning": ("raw", lambda x: x),
}


@pytest.mark.parametrize("name", AS_MNE)
def test_recordings_of_mne_are_read_as_their_values(name):
    mne = pytest.importorskip("mne")
    door, (kind, meaning) = DOORS[name], AS_MNE[name]
    info = mne.create_info(["Cz"], 10.0 if kind == "epochs" else 50.0, "eeg")
    make = (
        mne.EpochsArray if kind == "epochs" else lambda x, info, verbose: mne.io.RawArray(x[0], info, verbose=verbose)
    )
    found = result_or_refusal(door, make(door.x.astype(float), info, verbose="error"))
    expected = np.asarray(door.result(door.call(meaning(door.x))))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, door in DOORS.items() if name not in AS_MNE and door.x.ndim >= 2])
def test_recordings_of_mne_are_refused_by_name_where_they_are_not_read(name):
    mne = pytest.importorskip("mne")
    raw = mne.io.RawArray(np.ones((1, 20)), mne.create_info(["Cz"], 10.0, "eeg"), verbose="error")
    with pytest.raises((ValueError, TypeError), match=DOORS[name].named):
        DOORS[name].call(raw)


@NAMES
def test_same_key_same_result_and_no_global_state(name):
    door = DOORS[name]
    settings, random = dict(jax.config.values), np.random.get_state()[1].copy()  # noqa: NPY002
    np.testing.assert_array_equal(np.asarray(door.result(door.call(door.x))), expected_of(name))
    assert dict(jax.config.values) == settings
    np.testing.assert_array_equal(np.random.get_state()[1], random)  # noqa: NPY002


# NumPyro's handlers share one stack in the process: its models are traced by one thread at a time.
@pytest.mark.parametrize("name", [name for name in DOORS if name != "pavi.fit"])
def test_two_threads_get_the_result_of_one(name):
    door, found, expected = DOORS[name], {}, expected_of(name)

    def run(i):
        found[i] = np.asarray(door.result(door.call(door.x)))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(found) == [0, 1]
    for value in found.values():
        np.testing.assert_array_equal(value, expected)


LOAD = {
    "cadda.PolicySearch": {"network": network(nnx.Rngs(0))},
    "augnet.AugNetClassifier": {
        "trunk": network, "layers": [augnet.Transform("scale", lambda key, x, arg: x * (1 + arg), (0.0, 1.0))]
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FITTED)
def test_files_survive_and_damaged_ones_are_refused(name, tmp_path):
    door, path = DOORS[name], tmp_path / "model.npz"
    model = door.call(door.x)
    model.save(path)
    options = LOAD.get(name, {})
    loaded = type(model).load(path, **options)
    np.testing.assert_array_equal(np.asarray(door.result(loaded)), np.asarray(door.result(model)))
    content = path.read_bytes()
    middle = len(content) // 2
    for damaged in (content[:middle], content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.npz"):
            type(model).load(path, **options)


class Bar:
    """A bar at whose first move the user presses Ctrl-C, once."""

    pressed = False

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return None

    def set_postfix(self, *args, **kwargs):
        pass

    set_postfix_str = set_postfix

    def update(self, n=1):
        if not Bar.pressed:
            Bar.pressed = True
            raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore")  # most say that they were interrupted
# DriPP fits its atoms in one call, and more of them in groups: its own tests interrupt those.
@pytest.mark.parametrize("name", [*sorted(set(FITTED) - {"dripp.DriPP"}), "hnpe.HNPE", "saba.minimize"])
def test_interrupted_fit_returns_the_last_good_state(name, monkeypatch):
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    monkeypatch.setattr(Bar, "pressed", False)
    door = DOORS[name]
    found = np.asarray(door.result(door.call(door.x)), float)
    assert Bar.pressed  # every long fit has a bar
    assert found.shape == expected_of(name).shape
    assert np.isfinite(found).all()
