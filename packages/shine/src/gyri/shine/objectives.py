"""Inner and outer objectives of the paper's linear models: sums over samples, a ridge of ``exp(lam) / 2``."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@partial(jax.tree_util.register_dataclass, data_fields=["values", "rows", "columns"], meta_fields=["shape"])
@dataclass(frozen=True)
class SparseRows:
    """A sparse matrix as the coordinates of its entries, row by row.

    Examples
    --------
    >>> import numpy as np
    >>> import scipy.sparse
    >>> X = SparseRows.of(scipy.sparse.csr_array(np.array([[0.0, 2.0], [1.0, 0.0]])), np.float32)
    >>> X @ jnp.array([1.0, 10.0])
    Array([20.,  1.], dtype=float32)
    """

    values: Any
    rows: Any
    columns: Any
    shape: tuple[int, int]

    @classmethod
    def of(cls, matrix: Any, dtype: Any) -> "SparseRows":
        """From a matrix of scipy.sparse."""
        matrix = matrix.tocsr().tocoo()
        rows, columns = (jnp.asarray(index, jnp.int32) for index in (matrix.row, matrix.col))
        return cls(jnp.asarray(matrix.data.astype(dtype)), rows, columns, matrix.shape)

    def __matmul__(self, w: Array) -> Array:
        return jax.ops.segment_sum(self.values * w[self.columns], self.rows, self.shape[0], indices_are_sorted=True)


def logistic_loss(scores: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, ""]:
    """Sum of ``log(1 + exp(-y score))`` for labels of -1 and 1.

    Examples
    --------
    >>> logistic_loss(jnp.zeros(2), jnp.array([1.0, -1.0])).round(4)
    Array(1.3863, dtype=float32)
    """
    return jnp.logaddexp(0, -y * scores).sum()


def nls_loss(scores: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, ""]:
    """Half the sum of ``(y - sigmoid(score))^2``, not convex.

    Examples
    --------
    >>> nls_loss(jnp.zeros(2), jnp.array([1.0, 0.0]))
    Array(0.25, dtype=float32)
    """
    return 0.5 * jnp.sum((y - jax.nn.sigmoid(scores)) ** 2)


LOSSES = {"logistic": logistic_loss, "nls": nls_loss}


def penalized(loss: str, w: Float[Array, " d"], lam: Array, data: Any) -> Float[Array, ""]:
    """Inner objective: loss of the training set, ``data = ((X, y), ...)``, plus ``exp(lam) / 2 |w|^2``.

    Examples
    --------
    >>> penalized("logistic", jnp.ones(1), jnp.zeros(()), ((jnp.zeros((1, 1)), jnp.ones(1)),)).round(4)
    Array(1.1931, dtype=float32)
    """
    X, y = data[0]
    return LOSSES[loss](X @ w, y) + 0.5 * jnp.exp(lam) * jnp.sum(w**2)


def held_out(loss: str, w: Float[Array, " d"], lam: Array, data: Any) -> Float[Array, ""]:
    """Outer objective: loss of the validation set, ``data = (..., (X, y))``, without penalty.

    Examples
    --------
    >>> held_out("nls", jnp.ones(1), jnp.zeros(()), ((), (jnp.zeros((1, 1)), jnp.ones(1))))
    Array(0.125, dtype=float32)
    """
    X, y = data[1]
    return LOSSES[loss](X @ w, y)
