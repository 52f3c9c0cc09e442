"""Stochastic solutions of the linear system in v that start anew at each iteration."""

from typing import Any

import jax
from jaxtyping import Array, PyTree

from ..directions import add, axpy, negative, scale
from ..iteration import Iteration

Point = tuple[PyTree, PyTree]  # z and x


def neumann(it: Iteration, points: list[Point], rhs: list[PyTree], n_steps: int) -> list[PyTree]:
    """Truncated Neumann series of n + 1 terms for each point, all with the same blocks: v of that point."""
    rate = it.size(1)

    def body(carry: tuple) -> tuple:
        terms, sums = carry
        i = it.draw_inner()
        terms = [axpy(-rate, it.inner.hvp(i, z, u, x), u) for (z, x), u in zip(points, terms, strict=True)]
        return terms, [add(a, u) for a, u in zip(sums, terms, strict=True)]

    first = [negative(r) for r in rhs]
    _, sums = it.repeat(n_steps, body, (first, first))
    it.count(n_steps * len(points))
    return [scale(rate, a) for a in sums]


def one_term(it: Iteration, points: list[Point], rhs: list[PyTree], n_steps: int) -> list[PyTree]:
    """One random term of the Neumann series of n terms, n times as large: an unbiased estimate of their sum."""
    rate = it.size(1)
    n_products: Array = jax.random.randint(it.draw_key(), (), 0, n_steps)

    def body(terms: list) -> list:
        i = it.draw_inner()
        return [axpy(-rate, it.inner.hvp(i, z, u, x), u) for (z, x), u in zip(points, terms, strict=True)]

    terms: Any = it.repeat(n_products, body, [negative(r) for r in rhs])
    it.count(n_products * len(points))
    return [scale(n_steps * rate, u) for u in terms]


def full_neumann(it: Iteration, point: Point, rhs: PyTree, n_steps: int) -> PyTree:
    """Truncated Neumann series of n + 1 terms over all samples."""
    (z, x), rate = point, it.size(1)

    def body(_: Any, carry: tuple) -> tuple:
        term, total = carry
        term = axpy(-rate, it.inner.hvp(None, z, term, x), term)
        return term, add(total, term)

    first = negative(rhs)
    it.count(n_steps * it.inner.n_blocks)
    return scale(rate, jax.lax.fori_loop(0, n_steps, body, (first, first))[1])
