"""Checks of user input: what is refused, what is said, and what comes back."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.numerics.testing import check_no_recompilation
from gyri.numerics.validation import (
    as_key,
    check_array,
    check_finite,
    check_option,
    check_positive_int,
    check_same_leading_axis,
    check_scalar,
    import_extra,
)

BAD_ARRAYS = [
    ([[1, 2], [3]], {}, "x: expected an array of numbers"),
    (np.array(["a"]), {}, "x: expected an array of real numbers, got dtype <U1"),
    (np.array([None]), {}, "got dtype object"),
    (np.array([1j]), {}, "got dtype complex128"),
    (jnp.array([1j]), {}, "got complex64"),
    (np.array(["2020-01-01"], "datetime64[D]"), {}, "got dtype datetime64"),
    (np.ma.masked_array([1.0, 2.0], [True, False]), {}, "masked entries"),
    (jax.random.key(0), {}, "got PRNG keys"),
    ([], {}, "x: expected at least one entry, got shape (0,)"),
    ([1.0, np.nan], {}, "x: expected finite float32 values, got 1 of 2 that are not, the first at index (1,)"),
    ([1.0, np.inf], {"allow_nan": True}, "x: expected finite float32 values or NaN, got 1 of 2"),
    (jnp.array([[1.0], [-jnp.inf]]), {}, "the first at index (1, 0)"),
    (np.array([1e300]), {}, "x: expected finite float32 values, got 1 of 1"),
    (np.array([1e300]), {"dtype": np.float32}, "x: expected finite float32 values, got 1 of 1"),
    (np.zeros(128), {"shape": ("n_channels", "n_times")}, "x: expected shape (n_channels, n_times), got (128,)"),
    (np.zeros((2, 3)), {"shape": (None, 4)}, "x: expected shape (any, 4), got (2, 3)"),
    (np.zeros(2), {"shape": (3,)}, "x: expected shape (3,), got (2,)"),
    (np.zeros(2), {"ndim": 2}, "x: expected 2 axes, got shape (2,)"),
    (np.zeros(2), {"ndim": (2, 3)}, "x: expected 2 or 3 axes, got shape (2,)"),
    (np.zeros((2, 2)), {"ndim": 1}, "x: expected 1 axis, got shape (2, 2)"),
    (np.zeros(2), {"dtype": np.int32}, "x: expected dtype int32, got float64"),
    (np.ones(2, int), {"dtype": bool}, "x: expected dtype bool, got int64"),
    (np.array([300]), {"dtype": np.uint8}, "x: expected values that fit uint8, got values from 300 to 300"),
]


@pytest.mark.parametrize(("x", "options", "message"), BAD_ARRAYS)
def test_check_array_names_argument_what_came_and_what_was_expected(x, options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        check_array(x, "x", **options)
    assert str(caught.value).startswith("x: expected")


def test_check_array_keeps_host_precision_and_device_arrays():
    host = np.array([1 / 3])
    assert check_array(host, "x") is host  # float64 although JAX runs in float32
    assert check_array(host.astype(np.float16), "x").dtype == np.float16
    device = jnp.array([1.0], jnp.bfloat16)
    assert check_array(device, "x") is device
    assert check_array([True, False], "x").dtype == np.float32
    assert check_array(jnp.arange(3), "x").dtype == jnp.float32
    assert check_array([1, 2], "x", dtype=np.uint8).dtype == np.uint8
    assert check_array(np.array([1], np.longdouble), "x").dtype == np.float64


def test_check_array_integers_become_the_default_float(dtype):
    assert check_array([1, 2], "x").dtype == dtype
    assert check_array(np.array([1e300]) if dtype == np.float64 else [1.0], "x").dtype == np.float64


def test_check_array_lets_through_what_it_is_told_to():
    assert np.isnan(check_array([np.nan], "x", allow_nan=True)).all()
    assert check_array(np.zeros((0, 3)), "x", allow_empty=True, shape=(None, 3)).shape == (0, 3)


def test_check_array_checks_the_values_of_constants_under_jit():
    good, bad = jnp.ones(3), jnp.array([1.0, jnp.nan])
    assert (jax.jit(lambda x: x + check_array(good, "good"))(1.0) == 2).all()
    with pytest.raises(ValueError, match="bad: expected finite"):
        jax.jit(lambda x: x + check_array(bad, "bad"))(1.0)


def test_check_array_checks_the_shape_of_tracers_and_skips_their_values():
    checked = jax.jit(lambda x: check_array(x, "x", ndim=1, dtype=np.float32))
    assert np.isnan(checked(jnp.array([jnp.nan]))).all()
    assert checked(jnp.array([1])).dtype == jnp.float32
    with pytest.raises(ValueError, match="x: expected 1 axis"):
        checked(jnp.zeros((2, 2)))


def test_check_finite_names_the_leaf():
    check_finite({"a": np.array([1, 2]), "b": [1.0, jax.random.key(0)], "c": None, "d": "text"}, "params")
    for leaf in (np.array([np.nan]), jnp.array(jnp.inf), float("nan"), np.float32(np.inf)):
        with pytest.raises(ValueError, match=r"^params\['b'\]\[0\]: expected finite"):
            check_finite({"a": np.ones(2), "b": [leaf]}, "params")
    jax.jit(lambda x: check_finite(x, "x"))(jnp.array(jnp.nan))


class Ragged:
    """What NumPy takes for a sequence and cannot read, such as a recording of MNE."""

    def __len__(self):
        return 2

    def __getitem__(self, i):
        if i >= 2:
            raise IndexError(i)
        return [0] * (i + 1)


def test_check_same_leading_axis():
    assert check_same_leading_axis((np.zeros((4, 2)), jnp.zeros(4), [1, 2, 3, 4][0:0]), "data") == 4
    for data, message in [
        ({}, "data: expected arrays with a common first axis, got no array"),
        ([np.zeros(3), np.zeros(4)], r"data\[1\]: expected 3 rows as in data\[0\], got 4"),
        ([np.zeros(())], r"data\[0\]: expected at least one axis and one row"),
        ([np.zeros((0, 2))], r"data\[0\]: expected at least one axis and one row"),
        ({"x": Ragged()}, r"data\['x'\]: expected an array, got Ragged"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_same_leading_axis(data, "data")


def test_check_positive_int():
    for value in (3, np.int64(3), np.array(3), jnp.array(3)):
        assert check_positive_int(value, "n") == 3
        assert type(check_positive_int(value, "n")) is int
    assert check_positive_int(0, "n", minimum=0) == 0
    for value in (0, -1, 2.0, "2", None, True, np.bool_(True), np.array(True), np.array([3])):
        with pytest.raises(ValueError, match=r"^n: expected an integer >= 1, got "):
            check_positive_int(value, "n")


def test_check_scalar():
    for value in (2, 2.0, np.float32(2), np.array(2.0), jnp.array(2)):
        assert check_scalar(value, "tol", minimum=2, maximum=2) == 2.0
        assert type(check_scalar(value, "tol")) is float
    for value in (np.nan, np.inf, "2", None, True, np.array(True), [1.0], np.zeros(1), 1j, np.array(1j)):
        with pytest.raises(ValueError, match=r"^tol: expected a (finite )?number, got "):
            check_scalar(value, "tol")
    for value in (0.0, 1.0, -1, 2):
        with pytest.raises(ValueError, match=rf"^tol: expected a number > 0 and < 1, got {value}$"):
            check_scalar(value, "tol", minimum=0, maximum=1, strict=True)
    with pytest.raises(ValueError, match=r"^tol: expected a number <= 1, got 2$"):
        check_scalar(2, "tol", maximum=1)
    assert jax.jit(lambda x: check_scalar(x, "x", minimum=0))(-1.0) == -1.0


def test_check_option():
    assert check_option("cg", "method", ("cg", "dense")) == "cg"
    for value in ("CG", None, 1, ["cg"], np.array(["cg"])):
        with pytest.raises(ValueError, match=r"^method: expected one of 'cg', True, got "):
            check_option(value, "method", ("cg", True))


def test_as_key_gives_the_same_typed_key_for_seed_raw_and_typed():
    key = jax.random.key(7)
    for value in (7, np.int64(7), np.uint32(7), jax.random.PRNGKey(7), np.asarray(jax.random.PRNGKey(7)), key):
        assert as_key(value) == key
    assert jax.jit(as_key)(jnp.int32(7)) == key
    assert jax.jit(as_key)(jax.random.PRNGKey(7)) == key
    assert jax.jit(as_key)(key) == key


@pytest.mark.parametrize(
    "value", [None, True, 1.0, "0", -1, 2**32, np.zeros(3, np.uint32), np.zeros((2, 2), np.uint32), [1, 2]]
)
def test_as_key_refuses(value):
    with pytest.raises(ValueError, match=r"^key: expected an integer seed in \[0, 2\*\*32\) or one JAX PRNG key, got "):
        as_key(value)


def test_as_key_refuses_several_keys():
    with pytest.raises(ValueError, match=r"got keys of shape \(2,\)"):
        as_key(jax.random.split(jax.random.key(0)))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_is_raised_where_a_method_needs_more(dtype):
    x = np.ones(3, dtype)
    assert check_array(x, "x").dtype == dtype
    assert check_array(x, "x", allow_half=False).dtype == np.float32
    assert check_array(np.ones(3), "x", allow_half=False).dtype == np.float64


def test_missing_extra_says_what_to_type(monkeypatch):
    assert import_extra("json.decoder", "a[b]", "to read").JSONDecoder
    monkeypatch.setitem(sys.modules, "json.decoder", None)
    with pytest.raises(ImportError, match=r'^json is needed to read: pip install "a\[b\]"$'):
        import_extra("json.decoder", "a[b]", "to read")


def test_checking_an_array_on_a_cpu_compiles_nothing_and_lets_it_be_donated():
    def check(x):
        check_array(x, "x")
        check_finite({"x": x}, "params")

    cpu = jax.devices("cpu")[0]
    place = lambda *shape: jax.device_put(np.ones(shape, np.float32), cpu)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = add(place(3, 1, 5, 7))
    check_no_recompilation(check, (place(2),), (x,), jit=False)  # the second call has a new shape
    address = x.unsafe_buffer_pointer()
    assert add(x).unsafe_buffer_pointer() == address
    with pytest.raises(ValueError, match="got 1 of 2"):
        check_array(jax.device_put(np.float32([1, np.inf]), cpu), "x")
