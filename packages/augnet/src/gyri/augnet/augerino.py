"""Augerino, the peer that learns the widths of affine transforms of images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from gyri.numerics.validation import check_scalar

from .warp import sample

_HIGHEST = jax.lax.Precision.HIGHEST  # in TensorFloat-32 positions would be off by hundredths of a pixel
NAMES = ("tx", "ty", "rot", "scale", "stretch", "shear")


# Tag of the parameters of augmentations, by which optimisers and penalties tell them from those of the network.
AUGMENTATION = "augmentation"


def _generators(translation_scale: float) -> np.ndarray:
    """Generators of affine maps in coordinates (right, down, 1) with corners at -1 and 1, in the order of NAMES."""
    unit = lambda i, j: np.eye(3)[:, [i]] @ np.eye(3)[[j]]
    return np.stack(
        [
            translation_scale * unit(0, 2),
            translation_scale * unit(1, 2),
            unit(1, 0) - unit(0, 1),
            unit(0, 0) + unit(1, 1),
            unit(0, 0) - unit(1, 1),
            unit(0, 1) + unit(1, 0),
        ]
    )


class Augerino(nnx.Module):
    r"""Random affine transforms of images with learned widths.

    Each example is sampled at the positions of the grid mapped by :math:`\exp(\sum_k \varepsilon_k G_k)`, with
    :math:`\varepsilon_k \sim U(-r_k / 2, r_k / 2)` and widths :math:`r_k = \log(1 + e^{\theta_k})`.

    Parameters
    ----------
    init_width : float, optional
        Half of the first widths, so that coefficients start within plus and minus it; :math:`\theta = 0` when None.
    translation_scale : float
        Factor of the two generators of translations.

    Attributes
    ----------
    theta : nnx.Param, shape (6,)
        :math:`\theta`, in the order tx, ty, rot, scale, stretch, shear.

    Raises
    ------
    ValueError
        If `init_width` is not positive.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.augnet import Augerino
    >>> [f"{width:.2f}" for width in Augerino(init_width=0.3).width]
    ['0.60', '0.60', '0.60', '0.60', '0.60', '0.60']

    References
    ----------
    Benton, Finzi, Izmailov, Wilson (2020), Learning invariances in neural networks.
    """

    def __init__(self, *, init_width: float | int | None = None, translation_scale: float | int = 0.1) -> None:
        theta = 0.0
        if init_width is not None:
            theta = np.log(np.expm1(2 * check_scalar(init_width, "init_width", minimum=0.0, strict=True)))
        self.theta = nnx.Param(jnp.full(6, theta), tag=AUGMENTATION)
        self.translation_scale = check_scalar(translation_scale, "translation_scale")

    @property
    def width(self) -> Float[Array, "6"]:
        """Widths of the uniform laws of the coefficients."""
        return jax.nn.softplus(self.theta[...])

    def apply(
        self, x: Float[Any, "n n_rows n_columns n_channels"], coefficients: Float[Any, "n 6"]
    ) -> Float[Array, "n n_rows n_columns n_channels"]:
        """Transform images with given coefficients.

        Parameters
        ----------
        x : Array, shape (n, n_rows, n_columns, n_channels)
            Images.
        coefficients : Array, shape (n, 6)
            Coefficients of the generators, in the order tx, ty, rot, scale, stretch, shear.

        Returns
        -------
        Array, shape (n, n_rows, n_columns, n_channels)
            Bilinear interpolation, zero outside the image, in the dtype of `x`.
        """
        x, coefficients = jnp.asarray(x), jnp.asarray(coefficients)
        if x.ndim != 4 or coefficients.shape != (len(x), 6):
            raise ValueError(f"coefficients: expected shape ({len(x)}, 6), one row an image, got {coefficients.shape}")
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        generators = jnp.asarray(_generators(self.translation_scale), dtype)
        generator = jnp.einsum("nk,kij->nij", coefficients.astype(dtype), generators, precision=_HIGHEST)
        maps = jax.scipy.linalg.expm(generator)
        down, right = jnp.meshgrid(*(jnp.linspace(-1, 1, n, dtype=dtype) for n in x.shape[1:3]), indexing="ij")
        grid = jnp.stack([right, down, jnp.ones_like(right)])
        column, row = jnp.einsum("nij,jrc->inrc", maps[:, :2], grid, precision=_HIGHEST)
        half = (x.shape[1] - 1) / 2, (x.shape[2] - 1) / 2
        return sample(x.astype(dtype), half[0] * (row + 1), half[1] * (column + 1)).astype(x.dtype)

    def __call__(
        self, x: Float[Any, "n n_rows n_columns n_channels"], *, key: Key[Array, ""]
    ) -> Float[Array, "n n_rows n_columns n_channels"]:
        """Transform images at random, each one differently.

        Parameters
        ----------
        x : Array, shape (n, n_rows, n_columns, n_channels)
            Images.
        key : PRNG key
            Source of randomness.

        Returns
        -------
        Array, shape (n, n_rows, n_columns, n_channels)
            Transformed images, in training as in evaluation.
        """
        u = jax.random.uniform(key, (x.shape[0], 6), self.theta[...].dtype, minval=-0.5, maxval=0.5)
        return self.apply(x, u * self.width)

    def describe(self) -> list[dict[str, Any]]:
        """One row a generator: operation, weight (1, as all are applied), magnitude (its width), argument, unit.

        The argument is the largest coefficient, half the width, in degrees for the rotation.
        """
        rows = []
        for name, width in zip(NAMES, np.asarray(self.width, float)):
            argument, unit = (np.rad2deg(width / 2), "degrees") if name == "rot" else (width / 2, "")
            row = {"operation": name, "weight": 1.0, "magnitude": float(width), "argument": float(argument)}
            rows.append({**row, "unit": unit})
        return rows
