"""Transforms with a magnitude between 0 and 1, as policies and augmentation layers choose from, and those of EEG."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, ScalarLike

from . import eeg
from .validation import check_scalar


@dataclass(frozen=True)
class Transform:
    """A named transform of a batch, random or not, with a strength.

    Parameters
    ----------
    name : str
        What tables and files call it.
    fn : callable
        ``fn(key, x, arg) -> x`` on a whole batch (n, ...). `arg` is a scalar or has one number an example, may be
        traced, and is None for a transform without a range.
    range : (float, float), optional
        Arguments at magnitudes 0 and 1. None: there is no strength, and magnitudes are ignored.
    unit : str
        Unit of the argument.

    Raises
    ------
    ValueError
        If the name is empty or the range is not two finite numbers.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.transform import Transform
    >>> gain = Transform("gain", lambda key, x, arg: arg * x, (1.0, 3.0))
    >>> gain(jax.random.key(0), jnp.ones(2), 0.5)
    Array([2., 2.], dtype=float32)
    """

    name: str
    fn: Callable[..., Any]
    range: tuple[float | int, ...] | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name: expected a word, got an empty string")
        if self.range is not None:
            if np.shape(self.range) != (2,):
                raise ValueError(f"range: expected two numbers or None, got {self.range!r}")
            low, high = (check_scalar(end, "range") for end in self.range)
            object.__setattr__(self, "range", (low, high))

    def argument(self, magnitude: Float[Any, "..."] | ScalarLike) -> Float[Array, "..."] | ScalarLike | None:
        """Physical argument at a magnitude in [0, 1], in `unit`; None without a range."""
        if self.range is None:
            return None
        low, high = self.range
        return low + magnitude * (high - low)

    def __call__(
        self, key: Key[Array, ""], x: Float[Any, "n *shape"], magnitude: Float[Any, "..."] | ScalarLike
    ) -> Float[Array, "n *shape"]:
        """Transform a batch.

        Parameters
        ----------
        key : PRNG key
            Source of randomness.
        x : Array, shape (n, ...)
            Examples.
        magnitude : Array or float
            Strength in [0, 1], a scalar or of shape (n,).

        Returns
        -------
        Array, shape (n, ...)
            Transformed examples.
        """
        return self.fn(key, x, self.argument(magnitude))


def _symmetric(key: Key[Array, ""], x: Array, arg: Any) -> Array:
    """One number an example, uniform between -arg and arg."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.asarray(arg, dtype) * jax.random.uniform(key, x.shape[:-2], dtype, minval=-1.0, maxval=1.0)


def _frequency_shift(sfreq: float) -> Callable:
    return lambda key, x, arg: eeg.frequency_shift(x, _symmetric(key, x, arg), sfreq)


def _bandstop(sfreq: float) -> Callable:
    def fn(key: Key[Array, ""], x: Array, arg: Any) -> Array:
        width = jnp.asarray(arg, jnp.promote_types(x.dtype, jnp.float32))
        low, high = 1 + width / 2, sfreq / 2 - 1 - width / 2  # the band and its edges stay within the spectrum
        center = low + (high - low) * jax.random.uniform(key, x.shape[:-2], width.dtype)
        return eeg.bandstop_filter(x, center, sfreq, width)

    return fn


def _time_mask(key: Key[Array, ""], x: Array, arg: Any) -> Array:
    length = jnp.asarray(arg, jnp.promote_types(x.dtype, jnp.float32))
    latest = jnp.maximum(x.shape[-1] - length, 0)
    return eeg.smooth_time_mask(x, latest * jax.random.uniform(key, x.shape[:-2], length.dtype), length)


def _rotation(ch_names: tuple[str, ...], axis: str) -> Transform:
    positions = eeg.standard_positions(ch_names)

    def fn(key: Key[Array, ""], x: Array, arg: Any) -> Array:
        return eeg.sensors_rotation(x, positions, _symmetric(key, x, arg), axis)

    return Transform(f"rotation_{axis}", fn, (0.0, 30.0), "degrees")


DEFAULT_ORDER = (
    "time_reverse",
    "sign_flip",
    "channels_symmetry",
    "ft_surrogate",
    "channels_dropout",
    "frequency_shift",
    "gaussian_noise",
    "time_mask",
    "channels_shuffle",
    "rotation_z",
    "rotation_y",
    "rotation_x",
)
SETS = {
    "time_freq": ("time_reverse", "gaussian_noise", "time_mask", "ft_surrogate", "frequency_shift"),
    "spatial": ("sign_flip", "channels_symmetry", "channels_dropout", "channels_shuffle"),
    "all": DEFAULT_ORDER,
}
NEED_NAMES = ("channels_symmetry", "rotation_z", "rotation_y", "rotation_x")


def eeg_transforms(
    sfreq: float | int, ch_names: Sequence[str] | None = None, include: Sequence[str] | str | None = None
) -> tuple[Transform, ...]:
    """Transforms of EEG windows (n, n_channels, n_times), with the ranges of magnitudes in common use.

    Arguments at magnitude 1, where there are any:

    - identity, time_reverse, sign_flip, channels_symmetry: none;
    - ft_surrogate: factor 1 of the phases;
    - frequency_shift: shifts uniform within 5 Hz;
    - bandstop: 2 Hz about a uniform centre;
    - gaussian_noise: standard deviation 0.2, for signals of unit variance;
    - time_mask: 100 samples from a uniform start;
    - channels_dropout, channels_shuffle: probability 1;
    - rotation_x, rotation_y, rotation_z: angles uniform within 30 degrees.

    Parameters
    ----------
    sfreq : float
        Sampling frequency in hertz.
    ch_names : sequence of str, optional
        Names of the channels in the 10-20 system; channels_symmetry and the rotations need them.
    include : sequence of str or {"time_freq", "spatial", "all"}, optional
        Names in the order wanted, or a named set. By default the twelve of "all" (those above but identity and
        bandstop), without the four that need names where there are none.

    Returns
    -------
    tuple of Transform
        The same objects for the same arguments, so that what is compiled for them is found again.

    Raises
    ------
    ValueError
        For a frequency that is not positive, an unknown or repeated transform, one that needs names without them, or
        a channel that is not in the template where a rotation needs its place.

    Examples
    --------
    >>> from gyri.numerics.transform import eeg_transforms
    >>> [transform.name for transform in eeg_transforms(100.0, include="time_freq")]
    ['time_reverse', 'gaussian_noise', 'time_mask', 'ft_surrogate', 'frequency_shift']

    References
    ----------
    Rommel, Moreau, Paillard, Gramfort (2022).
    """
    sfreq = check_scalar(sfreq, "sfreq", minimum=0.0, strict=True)
    if include is None:
        include = tuple(name for name in DEFAULT_ORDER if ch_names is not None or name not in NEED_NAMES)
    elif isinstance(include, str):
        if include not in SETS:
            raise ValueError(f"include: expected one of {', '.join(map(repr, SETS))} or names, got {include!r}")
        include = SETS[include]
    include = tuple(include)
    known = ("identity", *DEFAULT_ORDER, "bandstop")
    wrong = [name for name in include if name not in known]
    if wrong or len(set(include)) < len(include) or not include:
        raise ValueError(f"include: expected different names among {', '.join(known)}, got {list(include)}")
    if ch_names is None and (lacking := [name for name in include if name in NEED_NAMES]):
        raise ValueError(f"ch_names: expected the channels' names, which {', '.join(lacking)} need, got None")
    return _build(sfreq, None if ch_names is None else tuple(eeg._names(ch_names)), include)


@functools.lru_cache(maxsize=64)
def _build(sfreq: float, ch_names: tuple[str, ...] | None, include: tuple[str, ...]) -> tuple[Transform, ...]:
    builders: dict[str, Callable[[], Transform]] = {
        "identity": lambda: Transform("identity", lambda key, x, arg: eeg.identity(x)),
        "time_reverse": lambda: Transform("time_reverse", lambda key, x, arg: eeg.time_reverse(x)),
        "sign_flip": lambda: Transform("sign_flip", lambda key, x, arg: eeg.sign_flip(x)),
        "ft_surrogate": lambda: Transform("ft_surrogate", eeg.ft_surrogate, (0.0, 1.0)),
        "channels_dropout": lambda: Transform("channels_dropout", eeg.channels_dropout, (0.0, 1.0)),
        "channels_shuffle": lambda: Transform("channels_shuffle", eeg.channels_shuffle, (0.0, 1.0)),
        "frequency_shift": lambda: Transform("frequency_shift", _frequency_shift(sfreq), (0.0, 5.0), "Hz"),
        "bandstop": lambda: Transform("bandstop", _bandstop(sfreq), (0.0, 2.0), "Hz"),
        "gaussian_noise": lambda: Transform("gaussian_noise", eeg.gaussian_noise, (0.0, 0.2)),
        "time_mask": lambda: Transform("time_mask", _time_mask, (0.0, 100.0), "samples"),
    }
    if ch_names is not None:
        permutation = eeg.symmetry_permutation(ch_names)
        builders["channels_symmetry"] = lambda: Transform(
            "channels_symmetry", lambda key, x, arg: eeg.channels_symmetry(x, permutation)
        )
        for axis in "xyz":
            builders[f"rotation_{axis}"] = functools.partial(_rotation, ch_names, axis)
    return tuple(builders[name]() for name in include)
