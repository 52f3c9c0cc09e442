"""Transforms of signals against a rewrite in NumPy, frozen vectors, MNE-Python, finite differences and their laws.

`eeg_reference.npz` holds what the rewrite below gave for draws that were recorded from the keys, so it freezes both
the formulas and the way from a key to its draws.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import fft, stats

from gyri.numerics import eeg
from gyri.numerics.testing import check_jit, check_no_recompilation, check_vmap
from gyri.numerics.transform import eeg_transforms

REFERENCE = Path(__file__).parent / "eeg_reference.npz"
KEY = jax.random.key(7)
SFREQ = 50.0
NAMES = ["Fz", "C3", "Cz", "C4", "Pz", "O1", "O2", "F3"]
POSITIONS = np.array(  # any eight directions will do where names do not matter
    [
        [0, -0.7, 0, 0.7, 0, -0.3, 0.3, -0.5],
        [0.7, 0, 0, 0, -0.7, -0.9, -0.9, 0.6],
        [0.7, 0.7, 1, 0.7, 0.7, 0.1, 0.1, 0.6],
    ]
)


# A rewrite that shares nothing with the code but the definitions: complex exponentials and SciPy's FFT in float64,
# explicit loops over examples and channels, Legendre polynomials by their own recurrence.


def numpy_shift_phases(x, phases):
    spectrum = fft.rfft(x)
    last = (x.shape[-1] - 1) // 2  # the last frequency below Nyquist's
    spectrum[..., 1 : last + 1] = spectrum[..., 1 : last + 1] * np.exp(1j * phases[..., 1 : last + 1])
    return fft.irfft(spectrum, x.shape[-1])


def numpy_frequency_shift(x, delta, sfreq):
    out = np.empty_like(x)
    for b, c in np.ndindex(x.shape[:2]):
        n_padded = 1
        while n_padded < x.shape[-1]:
            n_padded *= 2
        padded = np.zeros(n_padded)
        padded[: x.shape[-1]] = x[b, c]
        spectrum = fft.fft(padded)  # the analytic signal from the two-sided spectrum
        frequency = fft.fftfreq(n_padded)
        weight = np.where(frequency > 0, 2.0, 0.0)
        weight[0] = 1.0
        if n_padded > 1:
            weight[n_padded // 2] = 1.0
        analytic = fft.ifft(spectrum * weight)[: x.shape[-1]]
        out[b, c] = (analytic * np.exp(2j * np.pi * delta[b] * np.arange(x.shape[-1]) / sfreq)).real
    return out


def numpy_bandstop(x, center, sfreq, width):
    out = np.empty_like(x)
    for b in range(len(x)):
        gain = np.ones(x.shape[-1] // 2 + 1)
        for k, f in enumerate(fft.rfftfreq(x.shape[-1], 1 / sfreq)):
            distance = abs(f - center[b])
            if distance <= width[b] / 2:
                gain[k] = 0
            elif distance < width[b] / 2 + 1:
                gain[k] = np.sin(np.pi / 2 * (distance - width[b] / 2)) ** 2
        out[b] = x[b] if width[b] == 0 else fft.irfft(fft.rfft(x[b]) * gain, x.shape[-1])
    return out


def numpy_time_mask(x, start, length):
    t, k = np.arange(x.shape[-1]), 1000 / x.shape[-1]
    with np.errstate(over="ignore"):
        before = 1 / (1 + np.exp(-k * (start[:, None] - t)))
        after = 1 / (1 + np.exp(-k * (t - start[:, None] - length[:, None])))
    return x * (before + after)[:, None]


def numpy_shuffle(x, chosen, scores):
    out = x.copy()
    for b in range(len(x)):
        where = [c for c in range(x.shape[1]) if chosen[b, c]]
        for place, source in zip(where, sorted(where, key=lambda c: scores[b, c])):
            out[b, place] = x[b, source]
    return out


def numpy_kernel(cosine, n_terms=50, stiffness=4):
    previous, current, total = np.ones_like(cosine), cosine, np.zeros_like(cosine)
    for n in range(1, n_terms + 1):
        total = total + (2 * n + 1) / (4 * np.pi * n**stiffness * (n + 1) ** stiffness) * current
        previous, current = current, ((2 * n + 1) * cosine * current - n * previous) / (n + 1)
    return total


def numpy_spline(pos_from, pos_to):
    p, q = (a / np.sqrt((a**2).sum(1, keepdims=True)) for a in (pos_from, pos_to))
    n = len(p)
    system = np.block(
        [[numpy_kernel(p @ p.T) + 1e-5 * np.eye(n), np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]]
    )
    right = np.vstack([np.eye(n), np.zeros((1, n))])
    return np.hstack([numpy_kernel(q @ p.T), np.ones((len(q), 1))]) @ np.linalg.solve(system, right)


def numpy_rotation_matrix(degrees, axis):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array(
        {
            "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
            "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
            "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
        }[axis]
    )


def numpy_rotation(x, degrees, axis):
    return np.stack(
        [
            numpy_spline(POSITIONS.T, (numpy_rotation_matrix(d, axis) @ POSITIONS).T) @ example
            for d, example in zip(degrees, x)
        ]
    )


def rewrite(r):
    """All results of the rewrite, from the signals and draws of the frozen file."""
    x, u = r["x"], r["uniform"]
    arg = {"shift": 3.0, "width": 1.5, "length": 9.0, "degrees": 25.0}
    low, high = 1 + arg["width"] / 2, SFREQ / 2 - 1 - arg["width"] / 2
    return {
        "ft_surrogate": numpy_shift_phases(x, 0.8 * 2 * np.pi * r["phases"]),
        "ft_surrogate_indep": numpy_shift_phases(x, 0.8 * 2 * np.pi * r["phases_indep"]),
        "frequency_shift": numpy_frequency_shift(x, arg["shift"] * (2 * u - 1), SFREQ),
        "bandstop": numpy_bandstop(x, low + (high - low) * u, SFREQ, np.full(len(x), arg["width"])),
        "gaussian_noise": x + 0.15 * r["normal"],
        "time_mask": numpy_time_mask(x, (x.shape[-1] - arg["length"]) * u, np.full(len(x), arg["length"])),
        "channels_dropout": x * (r["selection"] < 0.4)[..., None],
        "channels_shuffle": numpy_shuffle(x, r["selection_shuffle"] > 1 - 0.6, r["order"]),
        **{f"rotation_{a}": numpy_rotation(x, arg["degrees"] * (2 * u - 1), a) for a in "xyz"},
    }


def results(x):
    """The same results by the code, from the key; `x` sets the precision."""
    transforms = {t.name: t for t in eeg_transforms(SFREQ, include=("frequency_shift", "bandstop", "time_mask"))}
    u = jax.random.uniform(KEY, x.shape[:1], x.dtype)
    return {
        "ft_surrogate": eeg.ft_surrogate(KEY, x, 0.8),
        "ft_surrogate_indep": eeg.ft_surrogate(KEY, x, 0.8, channel_indep=True),
        "frequency_shift": transforms["frequency_shift"](KEY, x, 3.0 / 5.0),
        "bandstop": transforms["bandstop"](KEY, x, 1.5 / 2.0),
        "gaussian_noise": eeg.gaussian_noise(KEY, x, 0.15),
        "time_mask": transforms["time_mask"](KEY, x, 9.0 / 100.0),
        "channels_dropout": eeg.channels_dropout(KEY, x, 0.6),
        "channels_shuffle": eeg.channels_shuffle(KEY, x, 0.6),
        **{f"rotation_{a}": eeg.sensors_rotation(x, POSITIONS, 25.0 * (2 * u - 1), a) for a in "xyz"},
    }


def record():
    """Signals and the draws of KEY in single precision, which the frozen file starts from."""
    n, c, t = 3, 8, 45
    key_select, key_order = jax.random.split(KEY)
    f32 = jnp.float32
    draws = {
        "x": np.random.default_rng(0).normal(size=(n, c, t)),
        "uniform": jax.random.uniform(KEY, (n,), f32),
        "phases": jax.random.uniform(KEY, (n, 1, t // 2 + 1), f32),
        "phases_indep": jax.random.uniform(KEY, (n, c, t // 2 + 1), f32),
        "normal": jax.random.normal(KEY, (n, c, t), f32),
        # A relaxed draw is above one half where logit(u) > -logit(p), u > 1 - p.
        "selection": jax.random.uniform(KEY, (n, c), f32),
        "selection_shuffle": jax.random.uniform(key_select, (n, c), f32),
        "order": jax.random.uniform(key_order, (n, c), f32),
    }
    draws = {name: np.asarray(value, np.float64) for name, value in draws.items()}
    return draws | rewrite(draws)


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as file:
        return dict(file)


def test_the_frozen_vectors_are_those_of_the_rewrite(reference):
    for name, value in rewrite(reference).items():
        np.testing.assert_allclose(reference[name], value, atol=1e-10, err_msg=name)


def test_results_in_single_precision_are_the_frozen_vectors(reference):
    for name, value in results(jnp.asarray(reference["x"], jnp.float32)).items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, reference[name], atol=2e-5, err_msg=name)  # a tenth of what is promised


def test_results_in_double_precision_are_the_rewrite(reference, x64):
    x, given = jnp.asarray(reference["x"]), {}
    u = jnp.asarray(reference["uniform"])
    low, high = 1.75, SFREQ / 2 - 1.75
    given["ft_surrogate"] = eeg.shift_phases(x, 0.8 * 2 * np.pi * jnp.asarray(reference["phases"]))
    given["ft_surrogate_indep"] = eeg.shift_phases(x, 0.8 * 2 * np.pi * jnp.asarray(reference["phases_indep"]))
    given["frequency_shift"] = eeg.frequency_shift(x, 3.0 * (2 * u - 1), SFREQ)
    given["bandstop"] = eeg.bandstop_filter(x, low + (high - low) * u, SFREQ, 1.5)
    given["time_mask"] = eeg.smooth_time_mask(x, (x.shape[-1] - 9.0) * u, 9.0)
    for axis in "xyz":
        given[f"rotation_{axis}"] = eeg.sensors_rotation(x, POSITIONS, 25.0 * (2 * u - 1), axis)
    for name, value in given.items():
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, reference[name], atol=1e-9, err_msg=name)


@pytest.mark.parametrize("n_times", [1, 2, 7, 16, 33])
def test_lengths_odd_even_powers_of_two_and_one(n_times, x64):
    x = np.random.default_rng(1).normal(size=(2, 3, n_times))
    phases = np.random.default_rng(2).uniform(0, 6, (2, 1, n_times // 2 + 1))
    np.testing.assert_allclose(eeg.shift_phases(x, phases), numpy_shift_phases(x, phases), atol=1e-10)
    delta = np.array([1.3, -2.0])
    np.testing.assert_allclose(eeg.frequency_shift(x, delta, SFREQ), numpy_frequency_shift(x, delta, SFREQ), atol=1e-10)
    width = np.array([0.0, 1.0])
    stopped = eeg.bandstop_filter(x, delta + 5, SFREQ, width)
    np.testing.assert_allclose(stopped, numpy_bandstop(x, delta + 5, SFREQ, width), atol=1e-10)
    np.testing.assert_array_equal(stopped[0], x[0])  # a width of zero is no filter
    for draw in (eeg.ft_surrogate, eeg.gaussian_noise, eeg.channels_dropout, eeg.channels_shuffle):
        assert draw(KEY, x, 0.5).shape == x.shape


def test_signs_order_and_symmetry():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 5)))
    np.testing.assert_array_equal(eeg.identity(x), x)
    np.testing.assert_array_equal(eeg.sign_flip(x), -x)
    np.testing.assert_array_equal(eeg.time_reverse(x), np.asarray(x)[:, :, ::-1])
    np.testing.assert_array_equal(eeg.channels_symmetry(x, [1, 0, 2]), np.asarray(x)[:, [1, 0, 2]])


def test_surrogates_keep_power_and_relations_between_channels():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, 64)))
    spectrum, other = jnp.fft.rfft(x), jnp.fft.rfft(eeg.ft_surrogate(KEY, x))
    np.testing.assert_allclose(jnp.abs(other), jnp.abs(spectrum), rtol=1e-3, atol=1e-3)
    cross = [s[:, 0] * s[:, 1].conj() for s in (spectrum, other)]
    np.testing.assert_allclose(cross[1], cross[0], atol=2e-3)
    lost = jnp.fft.rfft(eeg.ft_surrogate(KEY, x, channel_indep=True))
    assert np.abs(lost[:, 0] * lost[:, 1].conj() - cross[0]).max() > 1
    np.testing.assert_allclose(eeg.ft_surrogate(KEY, x, 0.0), x, atol=1e-5)


def test_frequency_shift_of_a_long_recording_keeps_its_phase_in_single_precision():
    t = np.arange(30_000) / 100.0  # five minutes
    x = np.sin(2 * np.pi * 8 * t)[None]
    shifted = np.asarray(eeg.frequency_shift(x.astype(np.float32), 4.0, 100.0))
    inner = slice(2000, -2000)  # away from the padding
    np.testing.assert_allclose(shifted[0, inner], np.sin(2 * np.pi * 12 * t)[inner], atol=5e-3)


def test_bandstop_removes_what_the_fir_filters_of_mne_remove():
    t = np.arange(3000) / 100.0
    gains = []
    for frequency in (5, 19.5, 20, 20.5, 22, 30):
        wave = np.sin(2 * np.pi * frequency * t)[None]
        gains.append(np.linalg.norm(eeg.bandstop_filter(wave, 20.0, 100.0)) / np.linalg.norm(wave))
    np.testing.assert_allclose(gains, [1.0, 0.0032, 0.0024, 0.0032, 0.9998, 1.0], atol=5e-3)


def test_time_mask_is_silent_where_it_should_be():
    masked = np.asarray(eeg.smooth_time_mask(jnp.ones((2, 1, 200)), jnp.array([50.0, 150.0]), jnp.array([20.0, 100.0])))
    assert np.abs(masked[0, 0, 52:69]).max() < 1e-3 and np.abs(masked[1, 0, 153:]).max() < 1e-3
    np.testing.assert_allclose(masked[0, 0, :47], 1, atol=1e-3)
    np.testing.assert_allclose(eeg.smooth_time_mask(jnp.ones((1, 200)), 60.0, 0.0), 1, atol=1e-6)


def test_laws_of_dropout_and_shuffle():
    x = jnp.broadcast_to(jnp.arange(1.0, 5.0)[:, None], (20_000, 4, 1))
    dropped = np.asarray(eeg.channels_dropout(KEY, x, jnp.where(jnp.arange(20_000) < 10_000, 0.2, 0.7)))[..., 0] == 0
    for part, p in ((dropped[:10_000], 0.2), (dropped[10_000:], 0.7)):
        assert stats.binomtest(int(part.sum()), part.size, p).pvalue > 1e-4
    shuffled = np.asarray(eeg.channels_shuffle(KEY, x, 1.0))[..., 0]
    codes = shuffled @ [1000, 100, 10, 1]
    values, counts = np.unique(codes, return_counts=True)
    assert len(values) == 24 and stats.chisquare(counts).pvalue > 1e-4
    some = np.asarray(eeg.channels_shuffle(KEY, x, 0.5))[..., 0]
    np.testing.assert_array_equal(np.sort(some), np.asarray(x[..., 0]))  # nothing is lost or doubled
    # A channel stays if it is not selected, or selected with k - 1 others and left in place: E[1/k] of the selected.
    p_stay = 0.5 + 0.5 * sum(stats.binom.pmf(k, 3, 0.5) / (k + 1) for k in range(4))
    stays = int((some[:, 0] == 1).sum())
    assert stats.binomtest(stays, len(some), p_stay).pvalue > 1e-4
    for fn in (eeg.channels_dropout, eeg.channels_shuffle):
        np.testing.assert_array_equal(fn(KEY, x[:100], 0.0), x[:100])


def test_each_example_has_draws_of_its_own():
    x = jnp.broadcast_to(jnp.asarray(np.random.default_rng(1).normal(size=(6, 64))), (5, 6, 64))
    for transform in eeg_transforms(
        SFREQ,
        include=(
            "ft_surrogate",
            "frequency_shift",
            "bandstop",
            "gaussian_noise",
            "time_mask",
            "channels_dropout",
            "channels_shuffle",
        ),
    ):
        y = np.asarray(transform(KEY, x, 0.5))
        assert len(np.unique(y.reshape(5, -1), axis=0)) > 1, transform.name


def test_spline_matrix_is_the_one_of_the_rewrite_and_of_mne(x64):
    rng = np.random.default_rng(3)
    pos_from, pos_to = rng.normal(size=(8, 3)), rng.normal(size=(5, 3))
    expected = numpy_spline(pos_from, pos_to)
    ours = eeg.spline_matrix(pos_from, pos_to)
    np.testing.assert_allclose(ours, expected, atol=1e-9)
    np.testing.assert_allclose(ours.sum(1), 1, atol=1e-9)
    np.testing.assert_allclose(jax.jit(lambda q: eeg.spline_matrix(pos_from, q))(pos_to), expected, atol=1e-9)
    interpolation = pytest.importorskip("mne.channels.interpolation")
    np.testing.assert_allclose(ours, interpolation._make_interpolation_matrix(pos_from, pos_to), atol=1e-7)


def test_spline_matrix_in_single_precision():
    rng = np.random.default_rng(3)
    pos_from, pos_to = rng.normal(size=(16, 3)), rng.normal(size=(5, 3)).astype(np.float32)
    expected = numpy_spline(pos_from, pos_to.astype(np.float64))
    np.testing.assert_allclose(eeg.spline_matrix(pos_from, pos_to), expected, atol=2e-6)
    traced = jax.jit(lambda q: eeg.spline_matrix(pos_from, q))(pos_to)
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, expected, atol=2e-3)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
@pytest.mark.parametrize("degrees", [0.0, 12.3, -179.0, 400.0])
def test_rotation_at_any_angle(axis, degrees):
    x = np.random.default_rng(4).normal(size=(2, 8, 20)).astype(np.float32)
    expected = numpy_rotation(x.astype(np.float64), [degrees] * 2, axis)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(eeg.sensors_rotation(x, POSITIONS, degrees, axis), expected, atol=2e-5 * scale)
    if degrees == 0:
        assert 0.01 < np.abs(expected - x).max() < 0.5  # the ridge: near the identity, not at it


def test_rotation_carries_a_field_along():
    # A field that is linear in the positions is what splines interpolate best; turning sensors by 90 degrees about z
    # makes them read at (-y, x, z).
    rng = np.random.default_rng(0)
    places = rng.normal(size=(3, 60))
    places /= np.linalg.norm(places, axis=0)
    turned = eeg.sensors_rotation(places[0][:, None].astype(np.float32), places, 90.0, "z")
    np.testing.assert_allclose(turned[:, 0], -places[1], atol=0.02)


def test_names_of_the_ten_twenty_system():
    names = ["Fz", "F3", "F4", "F9", "F10", "C3", "Pz", "O1", "O2", "Fp1"]
    assert eeg.symmetry_permutation(names).tolist() == [0, 2, 1, 4, 3, 5, 6, 8, 7, 9]
    assert eeg.symmetry_permutation(["AFF5h", "AFF6h", "F3-A2", "F4-A1", "EEG Fpz-Cz"]).tolist() == [1, 0, 3, 2, 4]
    pytest.importorskip("mne")
    places = eeg.standard_positions(["Cz", "C3", "c4"])
    assert places.shape == (3, 3) and places.dtype == np.float64
    assert places[0, 1] < 0 < places[0, 2] and abs(places[0, 0]) < 0.005  # left, right, middle
    with pytest.raises(ValueError, match="ch_names: expected names of the 10-20 system, got 'EEG Fpz-Cz'"):
        eeg.standard_positions(["Cz", "EEG Fpz-Cz"])
    for bad in (["Cz", "Cz"], [], "Cz"):
        with pytest.raises(ValueError, match="ch_names"):
            eeg.symmetry_permutation(bad)


def derivatives_of(fn, magnitude):
    """Derivative by JAX and by central differences."""
    step = 1e-5
    return jax.grad(fn)(magnitude), (fn(magnitude + step) - fn(magnitude - step)) / (2 * step)


@pytest.mark.parametrize(
    "name",
    [
        "ft_surrogate",
        "frequency_shift",
        "bandstop",
        "gaussian_noise",
        "time_mask",
        "rotation_x",
        "rotation_y",
        "rotation_z",
    ],
)
def test_derivative_in_every_magnitude(name, x64):
    pytest.importorskip("mne")
    (transform,) = eeg_transforms(SFREQ, NAMES, include=(name,))
    x = jnp.asarray(np.random.default_rng(5).normal(size=(2, 8, 110)))
    weight = jnp.asarray(np.random.default_rng(6).normal(size=x.shape))
    ours, expected = derivatives_of(lambda m: jnp.sum(weight * transform(KEY, x, m)), 0.37)
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    each = jax.grad(lambda m: jnp.sum(weight * transform(KEY, x, m)))(jnp.array([0.37, 0.37]))
    np.testing.assert_allclose(each.sum(), ours, rtol=1e-8)  # one magnitude an example is a magnitude for all


def test_derivatives_in_signals_and_deterministic_arguments(x64):
    x = jnp.asarray(np.random.default_rng(5).normal(size=(2, 2, 12)))
    b = jnp.array([1.2, 3.4])
    check_grads(lambda x, d: eeg.frequency_shift(x, d, SFREQ), (x, b), order=2, rtol=1e-4)
    check_grads(lambda x, c, w: eeg.bandstop_filter(x, c, SFREQ, w), (x, 4 * b, b), order=1, rtol=1e-3)
    check_grads(lambda x, p: eeg.shift_phases(x, p), (x, jnp.ones((2, 1, 7))), order=1, rtol=1e-4)
    check_grads(lambda x, s: eeg.smooth_time_mask(x, s, 3.1), (x, b), order=1, rtol=1e-3)
    check_grads(lambda x, s: eeg.gaussian_noise(KEY, x, s), (x, b), order=1, rtol=1e-4)


def test_derivative_of_dropout_is_that_of_its_mean(x64):
    x = jnp.ones((20_000, 2, 1))
    each = jax.grad(lambda p: eeg.channels_dropout(KEY, x, p).mean(axis=(1, 2)).sum())(jnp.full(20_000, 0.4))
    assert abs(each.mean() + 1) < 4 * each.std() / np.sqrt(each.size)  # d(1 - p)/dp = -1


def test_derivative_of_shuffle_mixes_a_channel_with_the_one_in_its_place(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(300, 5, 1)))
    p, step = 0.4, jnp.full(300, 0.4)
    ours = jax.grad(lambda p: eeg.channels_shuffle(KEY, x, p).sum(axis=(1, 2)) @ jnp.ones(300))(step)
    key_select, key_order = jax.random.split(KEY)
    u = np.asarray(jax.random.uniform(key_select, (300, 5)))
    scores = np.asarray(jax.random.uniform(key_order, (300, 5)))
    moved = numpy_shuffle(np.asarray(x), u > 1 - p, scores)
    s = 1 / (1 + np.exp(-(np.log(p / (1 - p)) + np.log(u / (1 - u))) / 0.05))
    slope = s * (1 - s) / 0.05 / (p * (1 - p))
    np.testing.assert_allclose(ours, (slope * (moved - np.asarray(x))[..., 0]).sum(1), rtol=1e-6, atol=1e-9)


def test_jit_vmap_and_no_recompilation():
    x = jnp.asarray(np.random.default_rng(5).normal(size=(3, 8, 40)), jnp.float32)
    b = jnp.array([0.2, 0.5, 0.9])
    deterministic = {
        "frequency_shift": lambda x, b: eeg.frequency_shift(x, b, SFREQ),
        "bandstop": lambda x, b: eeg.bandstop_filter(x, 8 + b, SFREQ, b),
        "mask": lambda x, b: eeg.smooth_time_mask(x, 10 * b, 20 * b),
        "rotation": lambda x, b: eeg.sensors_rotation(x, POSITIONS, 30 * b),
        "phases": lambda x, b: eeg.shift_phases(x, b[..., None, None] * jnp.ones((1, 21))),
    }
    for fn in deterministic.values():
        check_jit(fn, x, b, atol=1e-4)
        np.testing.assert_allclose(jax.vmap(fn)(x, b), fn(x, b), atol=1e-4)  # one an example = a batch
        check_no_recompilation(fn, (x, b), (2 * x, b / 2))
    for draw in (eeg.ft_surrogate, eeg.gaussian_noise, eeg.channels_dropout, eeg.channels_shuffle):
        check_jit(draw, KEY, x, b, atol=1e-5)
        check_vmap(draw, jax.random.split(KEY, 3), x, b, atol=1e-5)
        check_no_recompilation(draw, (KEY, x, b), (jax.random.key(1), x, b / 2))


def test_precision_is_kept(dtype):
    x = np.random.default_rng(5).normal(size=(2, 2, 16)).astype(dtype)
    places = POSITIONS[:, :2]
    for kind in (dtype, np.dtype("float16")):
        y = jnp.asarray(x, kind)
        for value in (
            eeg.identity(y),
            eeg.sign_flip(y),
            eeg.time_reverse(y),
            eeg.channels_symmetry(y, [1, 0]),
            eeg.ft_surrogate(KEY, y),
            eeg.frequency_shift(y, 1.0, SFREQ),
            eeg.bandstop_filter(y, 8.0, SFREQ),
            eeg.gaussian_noise(KEY, y, 0.1),
            eeg.smooth_time_mask(y, 2.0, 3.0),
            eeg.channels_dropout(KEY, y, 0.3),
            eeg.channels_shuffle(KEY, y, 0.3),
            eeg.sensors_rotation(y, places, 20.0),
            eeg.shift_phases(y, jnp.ones((1, 9))),
        ):
            assert value.dtype == kind and np.isfinite(np.asarray(value, np.float64)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: eeg.frequency_shift(x, jnp.ones(3), SFREQ), "delta_hz: expected one number, or one an example"),
        (lambda x: eeg.channels_symmetry(x, [0]), "permutation: expected 2 channels"),
        (lambda x: eeg.shift_phases(x, jnp.ones((3, 1, 4))), "phases: expected shape"),
        (lambda x: eeg.sensors_rotation(x, POSITIONS, 3.0), "positions: expected shape"),
        (lambda x: eeg.sensors_rotation(x[:, :1], POSITIONS[:, :1], 3.0), "at least 2"),
        (lambda x: eeg.sensors_rotation(x, np.zeros((3, 2)), 3.0), "positions: expected finite positions away from"),
        (lambda x: eeg.sensors_rotation(x, POSITIONS[:, :2], 3.0, "w"), "axis"),
        (lambda x: eeg.spline_matrix(np.ones((2, 2)), POSITIONS.T), "pos_from: expected shape"),
        (lambda x: eeg.spline_matrix(POSITIONS.T, np.ones((2, 2))), "pos_to: expected shape"),
        (lambda x: jax.jit(lambda p: eeg.spline_matrix(p, p))(POSITIONS.T), "pos_from: expected concrete"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 2, 8)))


@pytest.mark.parametrize("x", [np.ones(8), np.ones((2, 0, 8)), np.ones((2, 3, 8), int), np.ones((2, 3, 8), complex)])
def test_bad_signals_are_refused(x):
    with pytest.raises((ValueError, TypeError), match="x"):
        eeg.sign_flip(x)
