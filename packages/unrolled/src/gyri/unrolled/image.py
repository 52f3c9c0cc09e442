"""Images restored with what is learned on them alone: patches, convolutional atoms, analysis priors."""

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gyri.numerics import soft_threshold
from gyri.numerics.optim import fista
from gyri.numerics.validation import check_array, check_option, check_positive_int

from .coding import Measurement, check_mask, dot, gram_gradient, lipschitz_constant
from .convolution import conv_synthesize, solve_conv_codes

if TYPE_CHECKING:
    from .dictionary import DictionaryLearning

METHODS = ("conv", "patch", "analysis")
MAX_ITER, TOL = 1000, 1e-3
_BLOCK = 1024  # patches solved at once
_ATOMS = {"conv": 16, "patch": 128}
_PATCH_OPTIONS: dict[str, Any] = {"batch_size": 250, "epochs": 4, "init": "data"}


def extract_patches(image: np.ndarray, size: int) -> np.ndarray:
    """All overlapping square patches of an image (h, w) or (h, w, c), as rows (n_patches, size * size * c).

    Examples
    --------
    >>> extract_patches(np.arange(6.0).reshape(2, 3), 2)
    array([[0., 1., 3., 4.],
           [1., 2., 4., 5.]])
    """
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))
    windows = np.moveaxis(windows, 2, -1) if image.ndim == 3 else windows
    return windows.reshape(windows.shape[0] * windows.shape[1], -1)


def average_patches(
    patches: np.ndarray, shape: tuple[int, ...], size: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Image of a shape whose overlapping patches are averaged, one shifted sum a patch's entry.

    Each patch counts by its weight, 1 by default; a pixel whose patches all have weight 0 is NaN.

    Examples
    --------
    >>> average_patches(extract_patches(np.arange(6.0).reshape(2, 3), 2), (2, 3), 2)
    array([[0., 1., 2.],
           [3., 4., 5.]])
    """
    rows, columns = shape[0] - size + 1, shape[1] - size + 1
    weights = np.ones(len(patches)) if weights is None else weights
    weights = weights.astype(patches.dtype).reshape(rows, columns, *[1] * (len(shape) - 2))
    values = patches.reshape(rows, columns, size, size, *shape[2:])
    total, count = np.zeros(shape, patches.dtype), np.zeros((*shape[:2], *weights.shape[2:]), patches.dtype)
    for i in range(size):
        for j in range(size):
            total[i : i + rows, j : j + columns] += weights * values[:, :, i, j]
            count[i : i + rows, j : j + columns] += weights
    return total / np.where(count > 0, count, np.nan)


def centre_patches(patches: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Patches less the mean of their valid entries, and these means (n, 1); 0 where nothing is valid.

    Examples
    --------
    >>> centre_patches(np.array([[1.0, 3.0, 9.0]]), np.array([[1.0, 1.0, 0.0]]))[1]
    array([[2.]])
    """
    weights = np.ones_like(patches) if mask is None else mask
    count = weights.sum(1, keepdims=True)
    mean = (weights * patches).sum(1, keepdims=True) / np.maximum(count, 1)
    return weights * (patches - mean), mean.astype(patches.dtype)


@partial(jax.jit, static_argnames=("max_iter",))
def solve_codes(X: Array, components: Array, lam: Any, mask: Array | None, tol: Any, *, max_iter: int) -> Array:
    """Codes to a tolerance, some patches at a time."""
    step = 1 / lipschitz_constant(components, Measurement(), "spectral")
    lam = jnp.asarray(lam, X.dtype)
    gram = dot(components, components.T)

    def block(rows: tuple) -> Array:
        x, m = rows
        if m is None:
            constants = gram, dot(x, components.T)
            gradient = lambda z: gram_gradient(constants, z)
        else:
            gradient = lambda z: dot(m * (dot(z, components) - x), components.T)
        prox = lambda z, step: soft_threshold(z, lam * step)
        z0 = jnp.zeros((len(x), len(components)), x.dtype)
        return fista(gradient, prox, z0, step, max_iter=max_iter, tol=tol).x

    n = len(X)
    n_blocks = -(-n // _BLOCK)
    size = -(-n // n_blocks)
    fill = lambda leaf: jnp.pad(leaf, ((0, n_blocks * size - n), (0, 0))).reshape(n_blocks, size, -1)
    codes: Array = jax.lax.map(block, jax.tree.map(fill, (X, mask)))
    return codes.reshape(n_blocks * size, -1)[:n]


_solve_conv = jax.jit(solve_conv_codes, static_argnames=("max_iter",))
_synthesize = jax.jit(conv_synthesize)


def restore_image(
    image: Any,
    *,
    mask: Any = None,
    method: str = "conv",
    patch_size: int = 10,
    n_components: int | None = None,
    lam: float | int = 0.1,
    n_iter: int = 20,
    smooth: Any = True,
    random_state: Any = 0,
    verbose: bool = False,
    **model_options: Any,
) -> tuple[Float[np.ndarray, "..."], Any]:
    """Remove noise from an image, or fill in its missing pixels, with a prior that is learned on this image alone.

    Parameters
    ----------
    image : array-like, shape (height, width) or (height, width, 3)
        Grey or colour values in [0, 1], up to noise.
    mask : array-like, shape (height, width), optional
        1 where a pixel is valid; anything, NaN too, may stand elsewhere.
    method : {"conv", "patch", "analysis"}
        Convolutional atoms; a dictionary of all overlapping patches, each less its mean, whose reconstructions are
        averaged (amid a hole wider than a patch a local mean of the valid pixels stands); or an analysis prior (3 x 3
        filters with ``constraint="conv"`` by default; ``constraint="tv"``, ``"haar"`` and ``"db4"`` are fixed priors to
        compare with).
    patch_size : int
        Height and width of patches and convolutional atoms.
    n_components : int, optional
        Number of atoms or filters: 16, 128 (or one a patch of a small image) and 2 for the three methods.
    lam : float
        Penalty, positive: larger for more noise.
    n_iter : int
        Iterations of sparse coding while learning; the image itself is restored from codes solved to a tolerance.
    smooth : bool
        Of "conv": take a local mean of the valid pixels off before learning, and add it afterwards. The paper keeps
        the mean in; sparse atoms spend themselves on it then, which costs several decibels.
    random_state : int or PRNG key
        Of the start and of minibatches.
    verbose : bool
        Show progress bars.
    **model_options : dict
        Further options of `ConvDictionaryLearning`, `DictionaryLearning` or `AnalysisPrior`.

    Returns
    -------
    restored : np.ndarray, of the shape of `image`
        Values in [0, 1].
    model : ConvDictionaryLearning, DictionaryLearning or AnalysisPrior
        What was learned.

    Raises
    ------
    ValueError
        If an argument is out of range; the message names it.

    Examples
    --------
    >>> from gyri.unrolled import restore_image
    >>> rng = np.random.default_rng(0)
    >>> image = np.kron(rng.random((4, 4)), np.ones((8, 8)))
    >>> noisy = image + 0.1 * rng.standard_normal(image.shape)
    >>> restored, model = restore_image(noisy, method="analysis", constraint="tv")
    >>> bool(np.mean((restored - image) ** 2) < 0.5 * np.mean((noisy - image) ** 2))
    True

    References
    ----------
    Malézieux, Moreau, Kowalski (2022), section 4.
    """
    check_option(method, "method", METHODS)
    patch_size = check_positive_int(patch_size, "patch_size")
    pixels, weights = _check_image(image, mask)
    if patch_size > min(pixels.shape[:2]):
        raise ValueError(f"patch_size: expected at most the image's {pixels.shape[:2]}, got {patch_size}")
    check_option(smooth, "smooth", (False, True))
    options = {"lam": lam, "n_iter": n_iter, "random_state": random_state, "verbose": verbose} | model_options
    if method == "conv" and smooth:
        base = local_mean(pixels, weights, patch_size / 2)
        details = pixels - base if weights is None else _mask_of(pixels, weights) * (pixels - base)
        restored, model = _by_convolution(details, weights, patch_size, n_components, options)
        return np.clip(restored + base, 0, 1).astype(pixels.dtype), model
    run = {"conv": _by_convolution, "patch": _by_patches, "analysis": _by_analysis}[method]
    restored, model = run(pixels, weights, patch_size, n_components, options)
    return np.clip(restored, 0, 1).astype(pixels.dtype), model


def _check_image(image: Any, mask: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels, zero where missing, and the mask (h, w)."""
    shape = np.shape(image)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3):
        raise ValueError(f"image: expected shape (height, width) or (height, width, 3), got {shape}")
    checked = check_mask(mask, shape[:2])
    pixels = np.asarray(check_array(image, "image", allow_nan=checked is not None))
    weights = None if checked is None else np.asarray(checked, pixels.dtype)
    if weights is not None:
        if not weights.any():
            raise ValueError("mask: expected at least one valid pixel, got none")
        pixels = np.where((weights if len(shape) == 2 else weights[..., None]) != 0, pixels, 0).astype(pixels.dtype)
    pixels = np.asarray(check_array(pixels, "image"))
    if pixels.min() < -1 or pixels.max() > 2:
        raise ValueError(
            f"image: expected values in [0, 1], up to noise, got values from {pixels.min():.3g} to {pixels.max():.3g}"
        )
    return pixels, weights


def local_mean(pixels: np.ndarray, weights: np.ndarray | None, sigma: float) -> np.ndarray:
    """Gaussian mean of the valid pixels around each.

    Examples
    --------
    >>> bool(np.allclose(local_mean(np.ones((4, 4)), np.eye(4), 2.0), 1.0))
    True
    """
    from scipy.ndimage import gaussian_filter

    weights = np.ones(pixels.shape[:2], pixels.dtype) if weights is None else weights
    wide = weights if pixels.ndim == 2 else weights[..., None]
    axes = (0, 1)
    total, count = gaussian_filter(wide * pixels, sigma, axes=axes), gaussian_filter(weights, sigma)
    # Far from any valid pixel the weights underflow: the mean of all stands there.
    count = count if pixels.ndim == 2 else count[..., None]
    far = count < 1e-6
    return np.where(far, (wide * pixels).sum(axes) / weights.sum(), total / np.where(far, 1, count)).astype(
        pixels.dtype
    )


def _as_sample(image: np.ndarray) -> np.ndarray:
    """One sample with channels first."""
    return (image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0))[None]


def _as_image(sample: np.ndarray) -> np.ndarray:
    return sample[0] if len(sample) == 1 else np.moveaxis(sample, 0, -1)


def _mask_of(pixels: np.ndarray, weights: np.ndarray | None) -> np.ndarray | None:
    """The mask with the image's channels."""
    if weights is None or pixels.ndim == 2:
        return weights
    return np.repeat(weights[..., None], 3, -1)


def _by_convolution(
    pixels: np.ndarray, weights: np.ndarray | None, size: int, n_components: int | None, options: dict
) -> tuple[np.ndarray, Any]:
    from .conv import ConvDictionaryLearning

    n = _ATOMS["conv"] if n_components is None else n_components
    mask = _mask_of(pixels, weights)
    sample, where = _as_sample(pixels), None if mask is None else _as_sample(mask)
    model = ConvDictionaryLearning(n, (size, size), **options).fit(sample, mask=where)
    X = jnp.asarray(sample)
    atoms, valid = jnp.asarray(model.components_, X.dtype), None if where is None else jnp.asarray(where)
    codes = _solve_conv(X, atoms, model.lam_, valid, max_iter=MAX_ITER, tol=TOL / 10)
    return _as_image(np.asarray(_synthesize(atoms, codes))[0]), model


def _by_patches(
    pixels: np.ndarray, weights: np.ndarray | None, size: int, n_components: int | None, options: dict
) -> tuple[np.ndarray, "DictionaryLearning"]:
    from .dictionary import DictionaryLearning

    mask = _mask_of(pixels, weights)
    valid = None if mask is None else extract_patches(mask, size)
    patches, mean = centre_patches(extract_patches(pixels, size), valid)
    n = min(_ATOMS["patch"], len(patches)) if n_components is None else n_components
    model = DictionaryLearning(n, **(_PATCH_OPTIONS | options)).fit(patches, mask=valid)
    X = jnp.asarray(patches)
    codes = solve_codes(
        X, jnp.asarray(model.components_), model.lam_, None if valid is None else jnp.asarray(valid, X.dtype), TOL,
        max_iter=MAX_ITER,
    )  # fmt: skip
    # A patch without a valid pixel says nothing, and does not count.
    informed = None if valid is None else valid.max(axis=1, keepdims=True)
    restored = average_patches(np.asarray(codes) @ model.components_ + mean, pixels.shape, size, informed)
    unseen = np.isnan(restored)
    return (np.where(unseen, local_mean(pixels, weights, size / 2), restored) if unseen.any() else restored), model


def _by_analysis(
    pixels: np.ndarray, weights: np.ndarray | None, size: int, n_components: int | None, options: dict
) -> tuple[np.ndarray, Any]:
    from .analysis import AnalysisPrior
    from .priors import FIXED

    options = {"constraint": "conv", "n_components": n_components, **options}
    if options["constraint"] not in FIXED:
        options.setdefault("kernel_shape", (3, 3))
    mask = _mask_of(pixels, weights)
    sample, where = _as_sample(pixels), None if mask is None else _as_sample(mask)
    model = AnalysisPrior(**options).fit(sample, mask=where)
    return _as_image(model.transform(sample, mask=where, n_iter=MAX_ITER)[0]), model
