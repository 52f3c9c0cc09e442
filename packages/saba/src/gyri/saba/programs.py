"""Compiled programs that live as long as the functions that they were made for."""

import types
import weakref
from collections.abc import Callable, Hashable

import jax

_programs: dict[tuple, Callable] = {}


def compiled(core: Callable, functions: tuple[Callable, ...], *static: Hashable) -> Callable:
    """Compile ``core(*functions, *static, *data)`` as a function of the data, once for these functions while they live.

    A cache that kept them alive would keep every closure, with the data or the traced values in it, for ever.

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
    pop = _programs.pop  # bound now: at the end of the interpreter the name may be gone before the functions are
    forget = lambda _: pop(key, None)
    kinds = (weakref.WeakMethod if isinstance(f, types.MethodType) else weakref.ref for f in functions)
    refs = [kind(function, forget) for kind, function in zip(kinds, functions, strict=True)]
    key: tuple = (core, *static, *refs)
    if key not in _programs:
        _programs[key] = jax.jit(lambda *data: core(*[ref() for ref in refs], *static, *data))
    return _programs[key]
