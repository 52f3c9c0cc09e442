r"""Gradients and products of one objective, block by block or over all its samples.

With inner objective G and outer objective F, means over samples, the directions of the framework are

.. math::
    D_z = \nabla_1 G, \qquad D_v = \nabla^2_{11} G \, v + \nabla_1 F, \qquad D_x = \nabla^2_{21} G \, v + \nabla_2 F

(Dagréou et al. 2022, equations 4 to 6), each an average over samples. What belongs to block k is scaled by
n_blocks * size of the block / n_samples, so that the plain average over blocks is the full quantity.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .sampling import count_blocks

add, subtract, dot = optax.tree.add, optax.tree.sub, optax.tree.vdot

Block = Array | None  # index of a block; None: all samples


class Side:
    """One of the two objectives with its data.

    Parameters
    ----------
    fun : callable
        ``fun(z, x, batch) -> scalar``, a mean over rows.
    data : pytree of Array or None
        Rows are samples; None for an objective without data.
    batch_size : int or "full"
        Rows of a block.
    axis_name : str or None
        Mapped axis over which the rows of each block are split.
    """

    def __init__(self, fun: Callable, data: Any, batch_size: int | str, axis_name: str | None = None) -> None:
        self.fun, self.data, self.axis_name = fun, data, axis_name
        self.n_samples = 1 if data is None else jax.tree.leaves(data)[0].shape[0]
        self.batch_size = self.n_samples if batch_size == "full" or data is None else int(batch_size)
        self.n_blocks = count_blocks(self.n_samples, self.batch_size)

    def at(self, block: Block, quantity: Callable[..., PyTree], *variables: PyTree) -> PyTree:
        """Evaluate ``quantity(batch, *variables)``, linear in the objective, on a block, scaled; or on all samples."""
        if self.axis_name is None:
            return self._local(block, quantity, variables)
        # Local derivatives, then their mean: of variables that count as the same everywhere JAX would give a sum.
        variables = jax.tree.map(lambda a: jax.lax.pcast(a, self.axis_name, to="varying"), variables)
        return jax.lax.pmean(self._local(block, quantity, variables), self.axis_name)

    def _local(self, block: Block, quantity: Callable[..., PyTree], variables: tuple) -> PyTree:
        size, n = self.batch_size, self.n_samples
        if block is None or self.n_blocks == 1:
            return quantity(self.data, *variables)
        rows = lambda a: jax.lax.dynamic_slice_in_dim(a, block * size, size)
        whole = lambda: quantity(jax.tree.map(rows, self.data), *variables)
        rest = n % size
        if rest == 0:
            return whole()
        last = lambda: quantity(jax.tree.map(lambda a: a[n - rest :], self.data), *variables)
        scaled = lambda value, rows: jax.tree.map(lambda a: a * (self.n_blocks * rows / n), value())
        return jax.lax.cond(block == self.n_blocks - 1, lambda: scaled(last, rest), lambda: scaled(whole, size))

    def value(self, block: Block, z: PyTree, x: PyTree) -> Array:
        """The objective."""
        return self.at(block, lambda batch, z, x: self.fun(z, x, batch), z, x)

    def grad_z(self, block: Block, z: PyTree, x: PyTree) -> PyTree:
        """Gradient in z."""
        return self.at(block, lambda batch, z, x: jax.grad(self.fun)(z, x, batch), z, x)

    def grad_x(self, block: Block, z: PyTree, x: PyTree) -> PyTree:
        """Gradient in x."""
        return self.at(block, lambda batch, z, x: jax.grad(self.fun, 1)(z, x, batch), z, x)

    def grads(self, block: Block, z: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        """Gradients in z and in x."""
        pair: tuple[PyTree, PyTree] = self.at(block, lambda batch, z, x: jax.grad(self.fun, (0, 1))(z, x, batch), z, x)
        return pair

    def hvp(self, block: Block, z: PyTree, v: PyTree, x: PyTree) -> PyTree:
        """Hessian in z times v."""
        gradient = lambda batch, x: lambda z: jax.grad(self.fun)(z, x, batch)
        return self.at(block, lambda batch, z, v, x: jax.jvp(gradient(batch, x), (z,), (v,))[1], z, v, x)

    def cross(self, block: Block, z: PyTree, v: PyTree, x: PyTree) -> PyTree:
        """Cross derivative times v, like x."""
        gradient = lambda batch, x: lambda z: jax.grad(self.fun, 1)(z, x, batch)
        return self.at(block, lambda batch, z, v, x: jax.jvp(gradient(batch, x), (z,), (v,))[1], z, v, x)

    def products(self, block: Block, z: PyTree, v: PyTree, x: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        """Gradient in z, Hessian times v, cross derivative times v: one differentiation gives all three."""

        def all_of(batch: Any, z: PyTree, v: PyTree, x: PyTree) -> tuple[PyTree, PyTree, PyTree]:
            gradients = lambda z: jax.grad(self.fun, (0, 1))(z, x, batch)
            (gradient, _), (product, cross) = jax.jvp(gradients, (z,), (v,))
            return gradient, product, cross

        triple: tuple[PyTree, PyTree, PyTree] = self.at(block, all_of, z, v, x)
        return triple


def negative(a: PyTree) -> PyTree:
    """Opposite of a tree."""
    return jax.tree.map(jnp.negative, a)


def scale(factor: Any, a: PyTree) -> PyTree:
    """A tree times a number, in the tree's dtypes."""
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, a)


def axpy(factor: Any, a: PyTree, b: PyTree) -> PyTree:
    """``factor * a + b``, in the dtypes of b."""
    return jax.tree.map(lambda a, b: b + jnp.asarray(factor, b.dtype) * a, a, b)


def all_directions(inner: Side, outer: Side, blocks: tuple[Block, Block], z: PyTree, v: PyTree, x: PyTree) -> tuple:
    """The three directions at one point, from one inner and one outer block."""
    gradient, product, cross = inner.products(blocks[0], z, v, x)
    outer_z, outer_x = outer.grads(blocks[1], z, x)
    return gradient, add(product, outer_z), add(cross, outer_x)
