"""Compiled programs that live as long as the functions that they were made for."""

from collections.abc import Callable, Hashable
from typing import Any

import jax

from gyri.numerics.loops import cached


def compiled(core: Callable, functions: tuple[Callable, ...], *static: Hashable) -> Callable:
    """Compile ``core(*functions, *static, *data)`` as a function of the data, once for these functions while they live.

    Parameters
    ----------
    core : callable
        Of a module.
    functions : tuple of callable
        Pure.
    *static : hashable
        Options.

    Returns
    -------
    callable
        The compiled function.
    """
    return cached(_compile, functions, (core, *static))


def _compile(*parts: Any) -> Callable:
    *getters, (core, *static) = parts
    return jax.jit(lambda *data: core(*[get() for get in getters], *static, *data))
