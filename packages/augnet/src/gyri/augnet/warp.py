"""Bilinear sampling of images away from their grid, and shifts of rows, which are its cheap special case.

A neighbour outside the image counts as 0. Positions may be traced and are differentiated; at whole numbers, where
bilinear interpolation has a kink, the derivative is that towards larger positions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def shift(x: Float[Any, "*batch n_columns n_channels"], amount: Float[Any, "..."]) -> Array:
    """Move images along their last but one axis, by fractions of a pixel.

    Parameters
    ----------
    x : Array, shape (..., n_columns, n_channels)
        Images.
    amount : Array, shape (n,), (n, n_rows), ...
        Pixels towards higher columns, for each entry of the first axes of `x`.

    Returns
    -------
    Array, shape (..., n_columns, n_channels)
        ``result[..., c, :]`` is `x` at column ``c - amount``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.augnet.warp import shift
    >>> shift(jnp.array([[[2.0], [4.0], [6.0]]]), jnp.array([0.5])).ravel()
    Array([1., 3., 5.], dtype=float32)
    """
    n_columns = x.shape[-2]
    rows = x.reshape(amount.size, -1, *x.shape[-2:])
    padded = jnp.pad(rows, [(0, 0), (0, 0), (n_columns + 1, n_columns + 1), (0, 0)])
    whole = jnp.floor(amount)
    part = (amount - whole).reshape(-1, 1, 1, 1)
    start = n_columns - jnp.clip(whole, -n_columns - 1, n_columns).astype(jnp.int32).ravel()
    # One contiguous window an entry holds both neighbours of every pixel: no gather pixel by pixel.
    window = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, n_columns + 1, axis=1))(padded, start)
    lower, upper = window[..., :-1, :], window[..., 1:, :]
    return (upper + part * (lower - upper)).reshape(x.shape)


def _corners(x: Any, rows: Any, columns: Any) -> tuple[Array, ...]:
    """Values at the four pixels around each position, and the position's place between them."""
    x, rows, columns = jnp.asarray(x), jnp.asarray(rows), jnp.asarray(columns)
    n_rows, n_columns = x.shape[1:3]
    padded = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]).reshape(x.shape[0], -1, x.shape[-1])
    row, column = jnp.floor(rows), jnp.floor(columns)
    part_row, part_column = (rows - row)[..., None], (columns - column)[..., None]
    row, column = row.astype(jnp.int32) + 1, column.astype(jnp.int32) + 1

    def at(r: Int[Array, "..."], c: Int[Array, "..."]) -> Array:
        place = jnp.clip(r, 0, n_rows + 1) * (n_columns + 2) + jnp.clip(c, 0, n_columns + 1)
        return jax.vmap(lambda image, i: image.at[i].get(mode="promise_in_bounds"))(padded, place)

    corners = (at(row, column), at(row, column + 1), at(row + 1, column), at(row + 1, column + 1))
    return *corners, part_row, part_column


@jax.custom_jvp
def sample(
    x: Float[Any, "n n_rows n_columns n_channels"],
    rows: Float[Any, "n n_rows_out n_columns_out"],
    columns: Float[Any, "n n_rows_out n_columns_out"],
) -> Float[Array, "n n_rows_out n_columns_out n_channels"]:
    """Interpolate images at positions.

    Parameters
    ----------
    x : Array, shape (n, n_rows, n_columns, n_channels)
        Images.
    rows, columns : Array, shape (n, n_rows_out, n_columns_out)
        Positions in pixels, the first one at 0.

    Returns
    -------
    Array, shape (n, n_rows_out, n_columns_out, n_channels)
        Interpolated images.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.augnet.warp import sample
    >>> image = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> sample(image, jnp.array([[[0.5]]]), jnp.array([[[0.5]]])).item()
    1.5
    """
    a, b, c, d, part_row, part_column = _corners(x, rows, columns)
    above, below = a + part_column * (b - a), c + part_column * (d - c)
    return above + part_row * (below - above)


def _sample_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    # Half the time of what differentiating the sums of `sample` gives: the corners are read once, and an image that is
    # not differentiated costs nothing.
    zero = lambda tangent: isinstance(tangent, jax.custom_derivatives.SymbolicZero)
    a, b, c, d, part_row, part_column = _corners(*primals)
    above, below = a + part_column * (b - a), c + part_column * (d - c)
    slopes = (below - above, (b - a) + part_row * ((d - c) - (b - a)))
    out = above + part_row * (below - above)
    change = jnp.zeros_like(out) if zero(tangents[0]) else sample(tangents[0], *primals[1:])
    for slope, tangent in zip(slopes, tangents[1:]):
        if not zero(tangent):
            change = change + slope * tangent[..., None]
    return out, change


sample.defjvp(_sample_jvp, symbolic_zeros=True)
