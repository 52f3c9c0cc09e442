"""The Transform class and the set of EEG transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.numerics import eeg
from gyri.numerics.testing import check_jit, check_no_recompilation
from gyri.numerics.transform import Transform, eeg_transforms

KEY = jax.random.key(0)
NAMES = ["Fz", "C3", "Cz", "C4", "Pz", "O1", "O2", "F3"]


def test_magnitude_maps_to_the_argument():
    gain = Transform("gain", lambda key, x, arg: x * jnp.asarray(arg)[..., None], (2.0, 4.0), "V")
    np.testing.assert_array_equal(gain(KEY, jnp.ones((2, 3)), jnp.array([0.0, 0.5])), [[2] * 3, [3] * 3])
    assert gain.argument(1) == 4.0 and gain.unit == "V"
    fixed = Transform("fixed", lambda key, x, arg: x if arg is None else None)
    assert fixed.argument(0.3) is None
    np.testing.assert_array_equal(fixed(KEY, jnp.ones(2), 0.3), [1, 1])
    with pytest.raises(AttributeError):
        gain.name = "other"
    assert {gain: 1}[gain] == 1  # usable as a static argument


@pytest.mark.parametrize(
    ("arguments", "message"), [(("", abs), "name"), (("a", abs, (1.0,)), "range"), (("a", abs, (0.0, np.inf)), "range")]
)
def test_bad_transforms_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Transform(*arguments)


def test_default_order_and_sets():
    pytest.importorskip("mne")
    names = [t.name for t in eeg_transforms(100.0, NAMES)]
    assert names == [
        "time_reverse", "sign_flip", "channels_symmetry", "ft_surrogate", "channels_dropout", "frequency_shift",
        "gaussian_noise", "time_mask", "channels_shuffle", "rotation_z", "rotation_y", "rotation_x",
    ]  # fmt: skip
    assert names == [t.name for t in eeg_transforms(100.0, NAMES, "all")]
    without = [t.name for t in eeg_transforms(100.0)]
    assert without == [n for n in names if n not in ("channels_symmetry", "rotation_z", "rotation_y", "rotation_x")]
    spatial = [t.name for t in eeg_transforms(100.0, NAMES, "spatial")]
    assert spatial == ["sign_flip", "channels_symmetry", "channels_dropout", "channels_shuffle"]
    assert [t.name for t in eeg_transforms(100.0, include=("bandstop", "identity"))] == ["bandstop", "identity"]


def test_the_same_arguments_give_the_same_objects():
    assert eeg_transforms(100.0)[0] is eeg_transforms(100)[0]
    assert eeg_transforms(100.0)[5] is not eeg_transforms(50.0)[5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), "sfreq"),
        ((100.0, None, "time"), "include: expected one of 'time_freq', 'spatial', 'all'"),
        ((100.0, None, ("sign_flip", "warp")), "include: expected different names among"),
        ((100.0, None, ("sign_flip", "sign_flip")), "include"),
        ((100.0, None, ()), "include"),
        ((100.0, None, ("rotation_x",)), "ch_names: expected the channels' names, which rotation_x need"),
        ((100.0, None, "spatial"), "ch_names"),
        ((100.0, ["C3", "C3"]), "ch_names"),
        ((100.0, ["C3", "nose"]), "ch_names: expected names of the 10-20 system, got 'nose'"),
    ],
)
def test_bad_requests_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        eeg_transforms(*arguments)


def test_names_are_not_looked_up_unless_a_rotation_is_wanted():
    (symmetry,) = eeg_transforms(100.0, ["EEG Fpz-Cz", "EEG Pz-Oz"], ("channels_symmetry",))
    assert symmetry(KEY, jnp.ones((1, 2, 4)), 1.0).shape == (1, 2, 4)


@pytest.mark.parametrize("position", range(14))
def test_every_transform_takes_traced_scalar_and_per_example_magnitudes(position):
    pytest.importorskip("mne")
    names = ("identity", "bandstop", *(t.name for t in eeg_transforms(50.0, NAMES)))
    (transform,) = eeg_transforms(50.0, NAMES, (names[position],))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 128)), jnp.float32)
    scalar, each = transform(KEY, x, 0.5), transform(KEY, x, jnp.full(4, 0.5))
    assert scalar.shape == x.shape and scalar.dtype == x.dtype
    np.testing.assert_allclose(scalar, each, atol=1e-5)
    if transform.range is not None and transform.name != "channels_shuffle":
        assert np.abs(scalar - x).max() > 1e-2
    check_jit(transform, KEY, x, 0.5, atol=1e-4)
    check_no_recompilation(jax.jit(transform), (KEY, x, 0.5), (jax.random.key(1), x, 0.1))


def test_strength_zero_is_the_identity_where_it_should_be():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 128)), jnp.float32)
    for transform in eeg_transforms(
        50.0,
        include=(
            "ft_surrogate",
            "channels_dropout",
            "frequency_shift",
            "gaussian_noise",
            "time_mask",
            "channels_shuffle",
            "bandstop",
        ),
    ):
        np.testing.assert_allclose(transform(KEY, x, 0.0), x, atol=1e-5, err_msg=transform.name)


def test_random_arguments_stay_in_their_range_and_are_symmetric():
    t = jnp.arange(512) / 64.0
    x = jnp.broadcast_to(jnp.sin(2 * jnp.pi * 16 * t), (400, 1, 512))
    (shift,) = eeg_transforms(64.0, include=("frequency_shift",))
    peaks = np.abs(np.fft.rfft(shift(KEY, x, 0.8)))[:, 0].argmax(1) / 8 - 16
    assert np.abs(peaks).max() <= 4.1 and peaks.min() < -3 and peaks.max() > 3 and abs(peaks.mean()) < 0.5
    (mask,) = eeg_transforms(64.0, include=("time_mask",))
    silent = np.asarray(jnp.abs(mask(KEY, jnp.ones((400, 1, 512)), 1.0)) < 0.5)[:, 0]
    np.testing.assert_allclose(silent.sum(1), 100, atol=1)
    short = mask(KEY, jnp.ones((5, 1, 40)), 1.0)  # a mask longer than the window silences all of it
    assert np.abs(short[..., 1:]).max() < 1e-3


def test_symmetry_is_an_involution():
    (symmetry,) = eeg_transforms(50.0, NAMES, ("channels_symmetry",))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 6)))
    np.testing.assert_array_equal(symmetry(KEY, symmetry(KEY, x, 1.0), 1.0), x)
    assert eeg.symmetry_permutation(NAMES).tolist() == [0, 3, 2, 1, 4, 6, 5, 7]
