"""Scanned loops: the same numbers as a Python loop, one compilation, and a good end whatever ends them."""

import dataclasses
import gc
import weakref
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gyri.numerics import loops
from gyri.numerics.loops import cached, fit_minibatch, progress_bar, scan_chunks
from gyri.numerics.testing import check_no_recompilation


def add_up(carry, i, data):
    total, key = carry
    key, subkey = jax.random.split(key)
    total = total + data[i % 4] * (1 + jax.random.uniform(subkey))
    return (total, key), {"total": total, "i": i}


def python_loop(n_steps, data):
    total, key, totals = jnp.zeros(()), jax.random.key(0), []
    for i in range(n_steps):
        key, subkey = jax.random.split(key)
        total = total + data[i % 4] * (1 + jax.random.uniform(subkey))
        totals.append(total)
    return total, np.array(totals)


@pytest.mark.parametrize(("n_steps", "chunk"), [(7, 3), (6, 3), (2, 3), (5, 1)])
def test_scan_chunks_is_a_python_loop(n_steps, chunk):
    data = jnp.arange(4.0)
    start = (0.0, jax.random.key(0))  # a Python scalar has a weak type, the chunk's result has not
    (total, _), outputs = scan_chunks(add_up, start, n_steps, args=(data,), chunk=chunk, progress=False)
    expected, totals = python_loop(n_steps, data)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(outputs["total"], totals, rtol=1e-6)
    assert outputs["i"].tolist() == list(range(n_steps))
    assert type(outputs["i"]) is np.ndarray


def test_scan_chunks_of_no_steps_gives_empty_outputs():
    carry, outputs = scan_chunks(lambda c, i: (c, {"x": jnp.ones((2, 3))}), jnp.ones(1), 0, progress=False)
    assert carry.tolist() == [1]
    assert outputs["x"].shape == (0, 2, 3)


def test_scan_chunks_compiles_once_for_any_number_of_steps_and_any_values():
    def run(value, n_steps):
        return scan_chunks(step, jnp.float32(value), n_steps, args=(jnp.ones(2) * value,), chunk=5, progress=False)

    step = lambda c, i, x: (c + x.sum() * i, c)
    check_no_recompilation(run, (1.0, 5), (2.0, 13), jit=False)
    check_no_recompilation(run, (1.0, 13), (2.0, 2), jit=False)


def test_scan_chunks_traces_its_step_for_the_first_chunk_only():
    n_traces = 0

    def step(carry, i):
        nonlocal n_traces
        n_traces += 1
        return carry + 1, None

    scan_chunks(step, 0, 3, chunk=3, progress=False)
    first = n_traces
    assert scan_chunks(step, 0, 20, chunk=3, progress=False)[0] == 20
    assert n_traces == first


class Model:
    def __init__(self):
        self.offset = jnp.ones(1000)

    def step(self, carry, i):
        return carry + self.offset.sum(), carry


def test_scan_chunks_caches_bound_methods_by_their_object():
    model = Model()
    run = lambda: scan_chunks(model.step, 0.0, 4, chunk=2, progress=False)
    check_no_recompilation(run, (), (), jit=False)
    assert scan_chunks(Model().step, 0.0, 4, chunk=2, progress=False)[0] == 4000


def test_scan_chunks_lets_go_of_closures_and_their_data():
    gc.collect()
    n_before = len(loops._cache)
    model, offset = Model(), jnp.ones(3)
    closure = lambda c, i: (c + offset.sum(), None)
    never = lambda c: jnp.zeros((), bool)
    scan_chunks(model.step, 0.0, 4, progress=False)
    scan_chunks(closure, 0.0, 4, progress=False, stop=never)
    assert len(loops._cache) == n_before + 2
    refs = [weakref.ref(model), weakref.ref(closure), weakref.ref(never)]
    del model, closure, never
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3
    assert len(loops._cache) == n_before


def test_scan_chunks_runs_callables_without_weak_references():
    class Slotted:
        __slots__ = ()

        def __call__(self, carry, i):
            return carry + 1, None

    for n_steps in (4, 0):
        assert scan_chunks(Slotted(), 0, n_steps, progress=False)[0] == n_steps


@dataclasses.dataclass
class ByIdentity:  # compares by value and has therefore no hash
    factor: object

    def __call__(self, x):
        return self.factor * x


@dataclasses.dataclass(frozen=True, slots=True)
class ByValue:  # no weak references either
    factor: object

    def __call__(self, x):
        return self.factor * x


def test_cached_takes_functions_without_a_hash_and_lets_go_of_them():
    n_before = len(loops._cache)
    build = lambda get, offset: lambda x: get()(x) + offset
    first, second = ByIdentity(jnp.ones(2)), ByIdentity(2)
    run = cached(build, (first,), 1)
    assert run(3.0).tolist() == [4, 4]
    assert cached(build, (first,), 1) is run
    assert cached(build, (first,), 2)(3.0).tolist() == [5, 5]
    assert cached(build, (second,), 1)(3.0) == 7
    ref = weakref.ref(first)
    del first, second
    gc.collect()
    assert ref() is None
    assert len(loops._cache) == n_before


def test_cached_knows_functions_of_equal_value():
    build = lambda get: lambda x: get()(x)
    assert cached(build, (ByValue(2),)) is cached(build, (ByValue(2),))
    assert cached(build, (ByValue(3),))(2.0) == 6
    unhashable = ByValue([2])  # builds anew
    assert cached(build, (unhashable,))(2) == [2, 2]


def test_scan_chunks_does_not_touch_the_callers_carry():
    start = jnp.zeros(3)
    scan_chunks(lambda c, i: (c + 1, None), start, 4, progress=False)
    assert start.tolist() == [0, 0, 0]


@pytest.mark.parametrize("after", [1, 2])
def test_ctrl_c_returns_the_last_complete_carry_and_its_outputs(after):
    def interrupt(n_done, carry, outputs):
        if n_done == 3 * after:
            raise KeyboardInterrupt

    carry, outputs = scan_chunks(lambda c, i: (c + 1, c), 0, 10, chunk=3, progress=False, callback=interrupt)
    assert carry == 3 * after
    assert outputs.tolist() == list(range(3 * after))


def test_ctrl_c_in_the_middle_of_a_chunk_drops_that_chunk(monkeypatch):
    get, calls = jax.device_get, []

    def interrupted_get(x):
        calls.append(x)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return get(x)

    monkeypatch.setattr(jax, "device_get", interrupted_get)
    carry, outputs = scan_chunks(lambda c, i: (c + 1, c), 0, 10, chunk=3, progress=False)
    assert carry == 6
    assert outputs.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(calls) == 3  # and one look a chunk


def test_donation_overwrites_the_carry_and_survives_ctrl_c(monkeypatch):
    start = jnp.zeros(1000)
    carry, _ = scan_chunks(lambda c, i: (c + 1, None), start, 10, chunk=3, progress=False, donate=True)
    assert float(carry[0]) == 10
    assert start.is_deleted()
    get, calls = jax.device_get, []

    def interrupted_get(x):
        calls.append(x)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return get(x)

    monkeypatch.setattr(jax, "device_get", interrupted_get)
    step = lambda c, i: (c + 1, c[0])
    carry, outputs = scan_chunks(step, jnp.zeros(1000), 10, chunk=3, progress=False, donate=True)
    # The chunk had run, and its carry is all that is left.
    assert float(carry[0]) == 9
    assert outputs.tolist() == list(range(9))


def test_stop_and_callback_end_the_loop_after_their_chunk():
    step = lambda c, i: (c + 1, c)
    carry, outputs = scan_chunks(step, 0, 20, chunk=3, progress=False, stop=lambda c: c >= 4)
    assert (int(carry), len(outputs)) == (6, 6)
    seen = []

    def callback(n_done, carry, outputs):
        seen.append((n_done, int(carry), outputs.tolist()))
        return outputs[-1] >= 3  # NumPy's True

    carry, outputs = scan_chunks(step, 0, 20, chunk=3, progress=False, callback=callback)
    assert (int(carry), len(outputs)) == (6, 6)
    assert seen == [(3, 3, [0, 1, 2]), (6, 6, [3, 4, 5])]


class Out(NamedTuple):
    loss: object
    other: object


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("wrap", [lambda x: {"loss": x}, lambda x: Out(x, x), lambda x: ({"loss": x[None]}, 1.0)])
def test_a_loss_that_is_not_finite_names_its_step(value, wrap):
    step = lambda c, i: (c, wrap(jnp.where(i == 5, value, 1.0)))
    with pytest.raises(FloatingPointError, match=r"fit: the loss is .*(nan|inf).* at step 5: use a smaller step size"):
        scan_chunks(step, 0, 10, chunk=4, desc="fit", progress=False)


def test_other_outputs_may_be_infinite():
    assert np.isinf(scan_chunks(lambda c, i: (c, {"x": jnp.inf}), 0, 2, progress=False)[1]["x"]).all()


def test_a_step_that_changes_its_carrys_type_is_named():
    with pytest.raises(
        ValueError, match=r"step: expected a carry of the types that it got, int32\[\], got float32\[\]"
    ):
        scan_chunks(lambda c, i: (c + 0.5, None), 0, 2, progress=False)


def test_progress_is_shown_or_silent(capsys):
    step = lambda c, i: (c, {"loss": 0.25})
    scan_chunks(step, 0, 4, progress=False, desc="shown")
    with progress_bar(3, "shown", enable=False) as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")
    scan_chunks(step, 0, 4, progress=True, desc="shown")
    err = capsys.readouterr().err
    assert "shown" in err
    assert "4/4" in err
    assert "loss=0.25" in err


# --- fit_minibatch


def squares(params, batch, key):
    x, y = batch
    return jnp.mean((x @ params["w"] - y) ** 2)


def regression(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    return x, x @ [1.0, -2.0, 0.5] + 0.1 * rng.normal(size=n)


def fit(data, loss=squares, key=0, **options):
    options = {"optimizer": SGD, "batch_size": 16, "max_epochs": 30, "progress": False, **options}
    return fit_minibatch(key, loss, {"w": jnp.zeros(3)}, data, **options)


SGD = optax.sgd(0.05)


def test_fit_minibatch_reaches_least_squares(dtype):
    data = regression(200)
    params, history = fit_minibatch(
        0, squares, {"w": jnp.zeros(3, dtype)}, jax.tree.map(lambda x: x.astype(dtype), data),
        optimizer=SGD, batch_size=16, max_epochs=30, progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(params["w"], np.linalg.lstsq(*data)[0], atol=0.05)
    assert params["w"].dtype == dtype
    assert set(history) == {"train_loss", "valid_loss"}
    for losses in history.values():
        assert type(losses) is np.ndarray
        assert losses.shape == (30,)
        assert losses[-1] < 0.1 * losses[0]


def test_fit_minibatch_returns_the_parameters_of_the_best_validation_loss():
    # One step a row walks the parameter through 1, 2, 3 ... ; the held-out loss is lowest at 7.
    walk = lambda p, batch, key: jnp.where(batch["held_out"].mean() > 0.5, (p - 7.0) ** 2, p - jax.lax.stop_gradient(p))
    n_rows = 4
    order = jax.random.permutation(jax.random.split(jax.random.key(0))[0], n_rows)
    data = {"held_out": jnp.zeros(n_rows).at[order[0]].set(1.0)}
    params, history = fit_minibatch(
        0,
        walk,
        jnp.array(12.0),
        data,
        optimizer=optax.sgd(1.0),
        batch_size=3,
        max_epochs=20,
        patience=4,
        progress=False,
    )
    assert params == 7
    np.testing.assert_allclose(history["valid_loss"], (12 - np.arange(1, 10) - 7.0) ** 2)  # best after 5, then 4 more
    params, history = fit_minibatch(
        0, walk, jnp.array(12.0), data, optimizer=optax.sgd(1.0), batch_size=3, max_epochs=3, progress=False
    )
    assert params == 9
    assert len(history["valid_loss"]) == 3


@pytest.mark.parametrize("n_valid", [5, 12, 16])
def test_validation_loss_is_that_of_all_held_out_rows(n_valid):
    data = (jnp.zeros((40, 3)), jnp.arange(40.0))
    _, history = fit(data, batch_size=5, max_epochs=1, validation_fraction=n_valid / 40)
    order = jax.random.permutation(jax.random.split(jax.random.key(0))[0], 40)
    np.testing.assert_allclose(history["valid_loss"], [np.mean(np.asarray(data[1][order[:n_valid]]) ** 2)], rtol=1e-5)


def test_an_epoch_sees_each_training_row_at_most_once_and_fills_its_batches():
    # The gradient of row r is e_r, so that plain descent counts how often each row came by.
    count = lambda p, batch, key: -jnp.sum(p[batch])
    fit_rows = lambda **options: fit_minibatch(
        0,
        count,
        jnp.zeros(10),
        jnp.arange(10),
        optimizer=optax.sgd(1.0),
        progress=False,
        validation_fraction=0.0,
        **options,
    )
    params, history = fit_rows(batch_size=4, max_epochs=1)
    assert sorted(params.tolist()) == [0] * 2 + [1] * 8
    assert np.isnan(history["valid_loss"]).all()
    params, _ = fit_rows(batch_size=64, max_epochs=2)  # more than there are
    assert params.tolist() == [2] * 10
    many, _ = fit_rows(batch_size=4, max_epochs=50)
    assert many.min() > 30  # what was left out changes with the shuffle


def test_clip_norm_bounds_the_step():
    data = regression(40)
    params, _ = fit(data, optimizer=optax.sgd(1.0), clip_norm=1e-3, max_epochs=1, batch_size=36)
    np.testing.assert_allclose(jnp.linalg.norm(params["w"]), 1e-3, rtol=1e-4)


def test_keys_reach_the_loss_and_differ():
    noise = lambda p, batch, key: jnp.sum(p["w"]) * 0 + jax.random.uniform(key)
    _, history = fit(regression(40), noise, max_epochs=6, batch_size=10)
    assert len(set(history["train_loss"].tolist())) == 6
    assert len(set(history["valid_loss"].tolist())) == 1  # common random numbers


def test_validation_may_have_its_own_loss():
    data = regression(40)
    plain, plain_history = fit(data, max_epochs=5)
    options = {"max_epochs": 5, "valid_loss_fn": lambda *args: squares(*args) + 1}
    params, history = fit(data, **options)
    np.testing.assert_allclose(history["valid_loss"], plain_history["valid_loss"] + 1, rtol=1e-6)
    np.testing.assert_array_equal(history["train_loss"], plain_history["train_loss"])
    np.testing.assert_array_equal(params["w"], plain["w"])


def test_same_key_same_result_other_key_another():
    data = regression(40)
    (a, _), (b, _), (c, _) = fit(data), fit(data, key=jax.random.key(0)), fit(data, key=1)
    assert (a["w"] == b["w"]).all()
    assert (a["w"] != c["w"]).any()


def test_fit_minibatch_compiles_once():
    data = regression(40)
    run = lambda key, clip_norm, patience: fit(data, key=key, clip_norm=clip_norm, patience=patience)
    check_no_recompilation(run, (0, None, None), (1, 2.0, 3), jit=False)


def test_fit_minibatch_lets_go_of_its_loss():
    data = regression(40)
    loss = lambda params, batch, key: squares(params, batch, key)
    fit(data, loss, max_epochs=1)
    ref = weakref.ref(loss)
    del loss
    gc.collect()
    assert ref() is None


def test_fit_minibatch_names_the_epoch_at_which_it_diverges():
    with pytest.raises(FloatingPointError, match=r"fit: the loss is (nan|inf) at step \d+: use a smaller step size"):
        fit(regression(40), optimizer=optax.sgd(1e3))


def test_ctrl_c_in_fit_minibatch_returns_the_best_so_far(monkeypatch):
    def interrupt(*args):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(args)
        return check(*args)

    calls, check = [], loops._check_losses
    monkeypatch.setattr(loops, "_check_losses", interrupt)
    params, history = fit(regression(40), max_epochs=100)
    assert 0 < len(history["train_loss"]) < 100
    assert jnp.isfinite(params["w"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected an integer >= 1"),
        ({"max_epochs": 0}, "max_epochs: expected an integer >= 1"),
        ({"patience": 0}, "patience: expected an integer >= 1"),
        ({"validation_fraction": 1.0}, "validation_fraction: expected to leave a training row of 8, got 1.0"),
        ({"validation_fraction": -0.1}, "validation_fraction: expected a number >= 0"),
        ({"clip_norm": 0.0}, "clip_norm: expected a number > 0"),
        ({"key": -1}, "key: expected an integer seed"),
        ({"data": (np.zeros((8, 3)), np.zeros(7))}, r"data\[1\]: expected 8 rows"),
    ],
)
def test_fit_minibatch_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        fit(**{"data": regression(8), **options})


def test_fit_minibatch_refuses_parameters_that_are_not_finite():
    with pytest.raises(ValueError, match=r"params\['w'\]: expected finite"):
        fit_minibatch(0, squares, {"w": jnp.array(jnp.nan)}, regression(8), optimizer=SGD, batch_size=1, max_epochs=1)
