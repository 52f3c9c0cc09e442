"""What every jit-able function of the repository must pass; for tests only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

_compilations = 0


def _count(event: str, duration_secs: float, **_: Any) -> None:
    global _compilations
    if event.endswith("backend_compile_duration"):
        _compilations += 1


def _assert_close(actual: PyTree, expected: PyTree, rtol: float | None, atol: float, message: str) -> None:
    structures: list[Any] = [jax.tree.structure(actual), jax.tree.structure(expected)]
    assert structures[0] == structures[1], f"{message}: other structure"
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        a, e = jnp.asarray(a), jnp.asarray(e)
        name = f"{message}: result{jax.tree_util.keystr(path)}"
        assert a.dtype == e.dtype, f"{name}: {a.dtype} and {e.dtype}"
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, e = jax.random.key_data(a), jax.random.key_data(e)
        limit = 0.0
        if jnp.issubdtype(a.dtype, jnp.inexact):
            limit = 100 * float(jnp.finfo(a.dtype).eps) if rtol is None else rtol
        np.testing.assert_allclose(np.asarray(a), np.asarray(e), rtol=limit, atol=atol if limit else 0, err_msg=name)


def check_jit(fn: Callable, *args: Any, rtol: float | None = None, atol: float = 1e-6) -> None:
    """Check that a function gives the same under `jit`.

    Parameters
    ----------
    fn : callable
        Function of arrays and pytrees of arrays.
    *args : pytree of Array
        Its arguments.
    rtol, atol : float
        Tolerances of floating results; 100 units of the dtype's precision when `rtol` is None. Others must be equal.

    Raises
    ------
    AssertionError
        Names the result that differs.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.testing import check_jit
    >>> check_jit(jnp.sin, jnp.arange(3.0))
    """
    _assert_close(jax.jit(fn)(*args), fn(*args), rtol, atol, "jit and no jit")


def check_vmap(fn: Callable, *args: Any, rtol: float | None = None, atol: float = 1e-6) -> None:
    """Check that `vmap` over the first axis of all arguments gives what a loop gives.

    Parameters
    ----------
    fn : callable
        Function of arrays and pytrees of arrays.
    *args : pytree of Array
        Its arguments with one more axis in front.
    rtol, atol : float
        As in :func:`check_jit`.

    Raises
    ------
    AssertionError
        Names the result that differs.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.testing import check_vmap
    >>> check_vmap(jnp.sum, jnp.ones((3, 2)))
    """
    n = len(jax.tree.leaves(args)[0])
    one = jax.jit(fn)
    rows = [one(*jax.tree.map(lambda x, i=i: x[i], args)) for i in range(n)]
    _assert_close(jax.vmap(fn)(*args), jax.tree.map(lambda *r: jnp.stack(r), *rows), rtol, atol, "vmap and loop")


def check_lowers(fn: Callable, *args: Any, platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")) -> None:
    """Check that a function lowers for each platform; none of them is needed.

    Parameters
    ----------
    fn : callable
        Function of arrays and pytrees of arrays.
    *args : pytree of Array
        Its arguments; only shapes and dtypes matter.
    platforms : tuple of str
        JAX's names.

    Raises
    ------
    Exception
        JAX's own, where an operation has no lowering.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.testing import check_lowers
    >>> check_lowers(jnp.sin, jnp.arange(3.0))
    """
    from jax import export

    export.export(jax.jit(fn), platforms=platforms)(*args)


def check_no_recompilation(fn: Callable, args: tuple, other_args_same_shapes: tuple, *, jit: bool = True) -> None:
    """Check that a second call with other values of the same shapes compiles nothing.

    Parameters
    ----------
    fn : callable
        The function.
    args, other_args_same_shapes : tuple
        Arguments of the first and the second call.
    jit : bool
        Wrap `fn` in `jax.jit`; False for host drivers, which compile inside.

    Raises
    ------
    AssertionError
        Says how many programs the second call compiled.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.testing import check_no_recompilation
    >>> check_no_recompilation(jnp.sin, (jnp.arange(3.0),), (jnp.ones(3),))
    """
    call = jax.jit(fn) if jit else fn
    # The listener stays for the process: JAX has no public way to take it off, and it only counts.
    if not getattr(_count, "registered", False):
        jax.monitoring.register_event_duration_secs_listener(_count)
        _count.registered = True  # type: ignore[attr-defined]
    before = _compilations
    jax.jit(lambda x: x + 1)(0.0)
    assert _compilations > before, "JAX no longer reports its compilations: nothing would be tested"
    jax.block_until_ready(call(*args))
    before = _compilations
    jax.block_until_ready(call(*other_args_same_shapes))
    assert _compilations == before, f"the second call compiled {_compilations - before} programs"
