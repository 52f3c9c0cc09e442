"""Transforms of images (n, n_rows, n_columns, n_channels) with values in [0, 1], differentiable in their strengths.

The functions are deterministic, with one number an example or one for all; :func:`image_transforms` wraps them with
the draws of the paper: a size uniform between 0 and the strength, with either sign.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, ScalarLike

from gyri.numerics.relax import relaxed_bernoulli
from gyri.numerics.transform import Transform
from gyri.numerics.validation import check_option, check_scalar

from .warp import sample, shift

Images = Float[Any, "n n_rows n_columns n_channels"]
PerExample = Float[Any, "..."] | ScalarLike


def _checked(x: Any, amount: Any, name: str) -> tuple[Array, Array]:
    """Images in at least single precision, and one number an example."""
    x = jnp.asarray(x)
    if x.ndim != 4 or x.size == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        shape = "(n, n_rows, n_columns, n_channels)"
        raise ValueError(f"x: expected floating images {shape}, channels last, got {x.dtype}{list(x.shape)}")
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    amount = jnp.asarray(amount, x.dtype)
    if amount.shape not in ((), x.shape[:1]):
        raise ValueError(f"{name}: expected one number or {len(x)}, one an image, got shape {amount.shape}")
    return x, jnp.broadcast_to(amount, x.shape[:1])


def _transposed(fn: Callable[[Array], Array], x: Array) -> Array:
    return jnp.swapaxes(fn(jnp.swapaxes(x, 1, 2)), 1, 2)


def translate_x(x: Images, fraction: PerExample) -> Images:
    """Move images to the right.

    Parameters
    ----------
    x : Array, shape (n, n_rows, n_columns, n_channels)
        Images.
    fraction : Array or float
        Distance as a fraction of the width; negative to the left.

    Returns
    -------
    Array, shape (n, n_rows, n_columns, n_channels)
        Bilinear interpolation, zero where nothing moves in.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.augnet import image
    >>> image.translate_x(jnp.arange(1.0, 5.0).reshape(1, 1, 4, 1) / 4, 0.25).ravel()
    Array([0.  , 0.25, 0.5 , 0.75], dtype=float32)
    """
    dtype, (x, fraction) = jnp.result_type(x), _checked(x, fraction, "fraction")
    return shift(x, fraction * x.shape[2]).astype(dtype)


def translate_y(x: Images, fraction: PerExample) -> Images:
    """Move images down.

    Parameters
    ----------
    x : Array, shape (n, n_rows, n_columns, n_channels)
        Images.
    fraction : Array or float
        Distance as a fraction of the height; negative upwards.

    Returns
    -------
    Array, shape (n, n_rows, n_columns, n_channels)
        Bilinear interpolation, zero where nothing moves in.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.augnet import image
    >>> image.translate_y(jnp.arange(1.0, 5.0).reshape(1, 4, 1, 1) / 4, 0.25).ravel()
    Array([0.  , 0.25, 0.5 , 0.75], dtype=float32)
    """
    dtype, (x, fraction) = jnp.result_type(x), _checked(x, fraction, "fraction")
    return _transposed(lambda x: shift(x, fraction * x.shape[2]), x).astype(dtype)


def _offsets(n: int, center: str, dtype: Any) -> Array:
    first = {"corner": 0.0, "image": (n - 1) / 2}[check_option(center, "center", ("corner", "image"))]
    return jnp.arange(n, dtype=dtype) - first


def shear_x(x: Images, slope: PerExample, *, center: str = "corner") -> Images:
    """Move each row to the right in proportion to how far down it is.

    Parameters
    ----------
    x : Array, shape (n, n_rows, n_columns, n_channels)
        Images.
    slope : Array or float
        Pixels to the right for each pixel down.
    center : {"corner", "image"}
        What stays: the first row, or the middle of the image.

    Returns
    -------
    Array, shape (n, n_rows, n_columns, n_channels)
        Bilinear interpolation, zero where nothing moves in.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.augnet import image
    >>> image.shear_x(jnp.eye(3).reshape(1, 3, 3, 1), -1.0)[0, ..., 0]
    Array([[1., 0., 0.],
           [1., 0., 0.],
           [1., 0., 0.]], dtype=float32)
    """
    dtype, (x, slope) = jnp.result_type(x), _checked(x, slope, "slope")
    return shift(x, slope[:, None] * _offsets(x.shape[1], center, x.dtype)).astype(dtype)


def shear_y(x: Images, slope: PerExample, *, center: str = "corner") -> Images:
    """Move each column down in proportion to how far right it is.

    Parameters
    ----------
    x : Array, shape (n, n_rows, n_columns, n_channels)
        Images.
    slope : Array or float
        Pixels down for each pixel to the right.
    center : {"corner", "image"}
        What stays: the first column, or the middle of the image.

    Returns
    -------
    Array, shape (n, n_rows, n_columns, n_channels)
        Bilinear interpolation, zero where nothing moves in.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.augnet import image
    >>> image.shear_y(jnp.eye(3).reshape(1, 3, 3, 1), -1.0)[0, 0, :, 0]
    Array([1., 1., 1.], dtype=float32)
    """
    dtype, (x, slope) = jnp.result_type(x), _checked(x, slope, "slope")
    offsets = slope[:, None] * _offsets(x.shape[2], center, x.dtype)
    return _transposed(lambda x: shift(x, offsets), x).astype(dtype)


def rotate(x: Images, degrees: PerExample) -> Images:
    """Turn images about their centre.

    Parameters
    ----------
    x : Array, shape (n, n_rows, n_columns, n_channels)
        Images.
    degrees : Array or float
        Angle, counter-clockwise on a picture whose first row is at the top.

    Returns
    -------
    Array, shape (n, n_rows, n_columns, n_channels)
        Bilinear interpolation, zero where nothing turns in.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.augnet import image
    >>> image.rotate(jnp.eye(3).reshape(1, 3, 3, 1), 90.0)[0, ..., 0].round(3)
    Array([[0., 0., 1.],
           [0., 1., 0.],
           [1., 0., 0.]], dtype=float32)
    """
    dtype, (x, degrees) = jnp.result_type(x), _checked(x, degrees, "degrees")
    middle = (x.shape[1] - 1) / 2, (x.shape[2] - 1) / 2
    down = (jnp.arange(x.shape[1], dtype=x.dtype) - middle[0])[:, None]
    right = jnp.arange(x.shape[2], dtype=x.dtype) - middle[1]
    angle = degrees[:, None, None] * (math.pi / 180)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    rows, columns = middle[0] + cosine * down + sine * right, middle[1] - sine * down + cosine * right
    return sample(x, rows, columns).astype(dtype)


def horizontal_flip(x: Images) -> Images:
    """Mirror images left to right.

    Parameters
    ----------
    x : Array, shape (n, n_rows, n_columns, n_channels)
        Images.

    Returns
    -------
    Array, shape (n, n_rows, n_columns, n_channels)
        Mirrored images.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.augnet import image
    >>> image.horizontal_flip(jnp.arange(3.0).reshape(1, 1, 3, 1)).ravel()
    Array([2., 1., 0.], dtype=float32)
    """
    return jnp.asarray(x)[:, :, ::-1]


def contrast(x: Images, amount: PerExample) -> Images:
    """Draw values towards the image's mean gray.

    Parameters
    ----------
    x : Array, shape (n, n_rows, n_columns, n_channels)
        Images in [0, 1] with one channel, or red, green and blue.
    amount : Array or float
        0 for no change, 1 for a uniform gray, which is rounded to one of 256 levels.

    Returns
    -------
    Array, shape (n, n_rows, n_columns, n_channels)
        Images in [0, 1].

    Raises
    ------
    ValueError
        For another number of channels.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.augnet import image
    >>> image.contrast(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), 1.0).ravel()
    Array([0.5019608, 0.5019608], dtype=float32)
    """
    dtype, (x, amount) = jnp.result_type(x), _checked(x, amount, "amount")
    if x.shape[-1] not in (1, 3):
        raise ValueError(f"x: expected images of 1 or 3 channels, got {x.shape[-1]}")
    # The reference's third weight is .110, not .114: a white image has a mean gray of .996.
    weights = jnp.array([0.299, 0.587, 0.110], x.dtype)
    gray = x[..., 0] if x.shape[-1] == 1 else jnp.matmul(x, weights, precision=jax.lax.Precision.HIGHEST)
    mean = jnp.floor(255 * gray.mean((1, 2)) + 0.5)[:, None, None, None] / 255
    return jnp.clip(mean + (1 - amount[:, None, None, None]) * (x - mean), 0, 1).astype(dtype)


def brightness(x: Images, amount: PerExample) -> Images:
    """Darken images.

    Parameters
    ----------
    x : Array, shape (n, n_rows, n_columns, n_channels)
        Images in [0, 1].
    amount : Array or float
        0 for no change, 1 for black.

    Returns
    -------
    Array, shape (n, n_rows, n_columns, n_channels)
        Images in [0, 1].

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.augnet import image
    >>> image.brightness(jnp.ones((1, 1, 1, 1)), 0.25).item()
    0.75
    """
    dtype, (x, amount) = jnp.result_type(x), _checked(x, amount, "amount")
    return jnp.clip((1 - amount[:, None, None, None]) * x, 0, 1).astype(dtype)


def sample_pairing(x: Images, amount: PerExample, permutation: Int[Any, "n"]) -> Images:
    """Blend images with others of the batch.

    Parameters
    ----------
    x : Array, shape (n, n_rows, n_columns, n_channels)
        Images in [0, 1].
    amount : Array or float
        0 for no change, 1 for the other image.
    permutation : Array of int, shape (n,)
        The other image of each.

    Returns
    -------
    Array, shape (n, n_rows, n_columns, n_channels)
        Images in [0, 1].

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.augnet import image
    >>> image.sample_pairing(jnp.array([0.0, 1.0]).reshape(2, 1, 1, 1), 0.25, jnp.array([1, 0])).ravel()
    Array([0.25, 0.75], dtype=float32)
    """
    dtype, (x, amount) = jnp.result_type(x), _checked(x, amount, "amount")
    return jnp.clip(x + amount[:, None, None, None] * (x[permutation] - x), 0, 1).astype(dtype)


def _signed(key: Key[Array, ""], x: Any, arg: Any) -> Array:
    """Sizes uniform between 0 and the argument, with either sign, one an example."""
    key_size, key_sign = jax.random.split(key)
    dtype = jnp.promote_types(jnp.result_type(x), jnp.float32)
    size = jax.random.uniform(key_size, x.shape[:1], dtype)
    return jnp.asarray(arg, dtype) * jnp.where(jax.random.bernoulli(key_sign, shape=x.shape[:1]), size, -size)


def _random(fn: Callable[..., Array]) -> Callable[..., Array]:
    return lambda key, x, arg: fn(x, _signed(key, x, arg))


def _fixed(fn: Callable[..., Array]) -> Callable[..., Array]:
    return lambda key, x, arg: fn(x, arg)


def _flip(key: Key[Array, ""], x: Any, arg: Any) -> Array:
    flipped = relaxed_bernoulli(key, arg, x.shape[:1], hard=True, temperature=0.1)[:, None, None, None]
    return (x + flipped * (horizontal_flip(x) - x)).astype(x.dtype)


def _pair(key: Key[Array, ""], x: Any, arg: Any) -> Array:
    return sample_pairing(x, arg, jax.random.permutation(key, len(x)))


AFFINE = ("translate_x", "translate_y", "rotate", "shear_x", "shear_y")
NON_AFFINE = ("contrast", "brightness", "sample_pairing", "horizontal_flip")
COLOUR = ("contrast", "brightness", "sample_pairing")
SETS = {"affine": AFFINE, "non_affine": NON_AFFINE, "geometric": (*AFFINE, "horizontal_flip")}


def image_transforms(
    include: str | Sequence[str] = "affine", *, rotate_degrees: float | int = 30.0, center: str = "corner"
) -> tuple[Transform, ...]:
    """Transforms of images with the ranges of the paper.

    Arguments at magnitude 1, of which each example takes a uniform part with either sign:

    - translate_x, translate_y: 0.45 of the width, of the height;
    - rotate: `rotate_degrees`;
    - shear_x, shear_y: slope 0.3.

    Arguments that every example takes as they are:

    - contrast, brightness, sample_pairing: 1;
    - horizontal_flip: flipped with probability 0.5, so that magnitude 1 is the whole group of two;
    - identity: none.

    Parameters
    ----------
    include : {"affine", "non_affine", "geometric"} or sequence of str
        A set, or names in the order wanted. The sets hold the five first; contrast, brightness, sample_pairing and
        horizontal_flip; the five first and horizontal_flip.
    rotate_degrees : float
        Largest angle in degrees.
    center : {"corner", "image"}
        What a shear leaves in place.

    Returns
    -------
    tuple of Transform
        The same objects for the same arguments, so that what is compiled for them is found again.

    Raises
    ------
    ValueError
        For an unknown or repeated name, a negative angle or an unknown centre.

    Examples
    --------
    >>> from gyri.augnet import image_transforms
    >>> [transform.name for transform in image_transforms("non_affine")]
    ['contrast', 'brightness', 'sample_pairing', 'horizontal_flip']

    References
    ----------
    Rommel, Moreau, Gramfort (2022), appendix on image transforms.
    """
    if isinstance(include, str):
        include = SETS[check_option(include, "include", tuple(SETS))]
    known = ("identity", *AFFINE, *NON_AFFINE)
    if not len(include) or len(set(include)) < len(include) or not set(include) <= set(known):
        raise ValueError(f"include: expected different names among {', '.join(known)}, got {list(include)}")
    degrees = check_scalar(rotate_degrees, "rotate_degrees", minimum=0.0)
    return _build(tuple(include), degrees, check_option(center, "center", ("corner", "image")))


@functools.lru_cache(maxsize=64)
def _build(include: tuple[str, ...], degrees: float, center: str) -> tuple[Transform, ...]:
    transforms = (
        Transform("identity", lambda key, x, arg: jnp.asarray(x)),
        Transform("translate_x", _random(translate_x), (0.0, 0.45), "widths"),
        Transform("translate_y", _random(translate_y), (0.0, 0.45), "heights"),
        Transform("rotate", _random(rotate), (0.0, degrees), "degrees"),
        Transform("shear_x", _random(functools.partial(shear_x, center=center)), (0.0, 0.3)),
        Transform("shear_y", _random(functools.partial(shear_y, center=center)), (0.0, 0.3)),
        Transform("contrast", _fixed(contrast), (0.0, 1.0)),
        Transform("brightness", _fixed(brightness), (0.0, 1.0)),
        Transform("sample_pairing", _pair, (0.0, 1.0)),
        Transform("horizontal_flip", _flip, (0.0, 0.5)),
    )
    by_name = {transform.name: transform for transform in transforms}
    return tuple(by_name[name] for name in include)
