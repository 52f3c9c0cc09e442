"""Host-side checks of what users pass in: every error names the argument, says what came and what was expected.

Given a tracer, a check looks at its shape and dtype and skips its values, so front doors may be called under `jit`.
"""

import importlib
import operator
from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

T = TypeVar("T")


def _is_tracer(x: object) -> bool:
    return isinstance(x, jax.core.Tracer)


def _default_float() -> np.dtype:
    return np.dtype(jnp.result_type(float))


def _shape_text(shape: tuple) -> str:
    entries = ["any" if entry is None else str(entry) for entry in shape]
    return f"({', '.join(entries)}{',' if len(entries) == 1 else ''})"


def _to_array(x: object, name: str) -> Array | np.ndarray:
    """Any array-like as a JAX array (if it is one) or a NumPy array of numbers."""
    if isinstance(x, jax.Array):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            raise ValueError(f"{name}: expected an array of numbers, got PRNG keys")
        return x
    if np.ma.is_masked(x):
        raise ValueError(f"{name}: expected an array of numbers, got a masked array with masked entries")
    try:
        array = np.asarray(x)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: expected an array of numbers, got {type(x).__name__} ({error})") from error
    if array.dtype.kind not in "biufV" or (array.dtype.kind == "V" and not jnp.issubdtype(array.dtype, jnp.floating)):
        raise ValueError(f"{name}: expected an array of real numbers, got dtype {array.dtype}")
    return array.astype(np.float64) if array.dtype == np.longdouble != np.float64 else array


def _cast(x: Array | np.ndarray, name: str, dtype: Any) -> Array | np.ndarray:
    """Cast within or up a kind (bool, integer, float), never down and never out of range."""
    if dtype is None:
        target = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else _default_float()
    else:
        target = jnp.dtype(dtype)
    kinds = [jnp.bool_, jnp.integer, jnp.floating]
    ranks = [next((i for i, kind in enumerate(kinds) if jnp.issubdtype(d, kind)), -1) for d in (x.dtype, target)]
    if -1 in ranks or ranks[0] > ranks[1]:
        raise ValueError(f"{name}: expected dtype {target}, got {x.dtype}")
    if ranks[0] == ranks[1] == 1 and x.size and not _is_tracer(x):
        info = jnp.iinfo(target)
        low, high = int(np.asarray(x).min()), int(np.asarray(x).max())
        if low < info.min or high > info.max:
            raise ValueError(f"{name}: expected values that fit {target}, got values from {low} to {high}")
    if x.dtype == target:
        return x
    with np.errstate(over="ignore"):  # the check of finiteness names the overflow
        return x.astype(target)


def _check_values(x: Array | np.ndarray, name: str, allow_nan: bool) -> None:
    """Refuse NaN, infinity, and host values that would become infinite on the device."""
    if _is_tracer(x) or not jnp.issubdtype(x.dtype, jnp.floating):
        return
    held = x.dtype
    if isinstance(x, np.ndarray) and x.dtype == np.float64 and _default_float() != np.float64:
        held = np.dtype("float32")
    x = _host_view(x)
    infinite = np.isinf if isinstance(x, np.ndarray) else jnp.isinf
    isnan = np.isnan if isinstance(x, np.ndarray) else jnp.isnan
    with jax.ensure_compile_time_eval():  # a constant that a jitted function closes over has values, too
        bad = infinite(x) if allow_nan else infinite(x) | isnan(x)
        if held != x.dtype:
            bad = bad | (np.abs(x) > np.finfo(held).max)
        some = bool(bad.any())
    if some:
        bad = np.asarray(bad)
        count = int(bad.sum())
        what = f"finite {held} values" + (" or NaN" if allow_nan else "")
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        where = f", the first at index {_shape_text(first)}" if first else ""
        raise ValueError(f"{name}: expected {what}, got {count} of {bad.size} that are not{where}")


def _host_view(x: Array | np.ndarray) -> Array | np.ndarray:
    """View a CPU array as NumPy's, since JAX would compile a check for every shape. Other arrays stay."""
    if isinstance(x, np.ndarray) or not x.is_fully_addressable:
        return x
    return np.asarray(x) if all(device.platform == "cpu" for device in x.devices()) else x


def check_array(
    x: Any,
    name: str,
    *,
    ndim: int | tuple[int, ...] | None = None,
    shape: tuple[int | str | None, ...] | None = None,
    dtype: Any = None,
    allow_nan: bool = False,
    allow_empty: bool = False,
    allow_half: bool = True,
) -> Array | np.ndarray:
    """Check an array-like and give it back as an array of real numbers.

    A JAX array or tracer stays on its device and in its dtype. Everything else becomes a NumPy array in its own
    floating dtype, so that float64 host data keep their digits for host-side work while JAX runs in float32; they
    are rounded where they enter a JAX function, and a value that would overflow there is refused here. Integers
    and booleans become JAX's default float.

    Parameters
    ----------
    x : array-like
        What the user passed.
    name : str
        The argument's name, for the message.
    ndim : int or tuple of int, optional
        Allowed number(s) of axes.
    shape : tuple, optional
        Expected shape; ``None`` or a name such as ``"n_times"`` stands for any length.
    dtype : dtype, optional
        Result's dtype. Booleans may become integers and both may become floats, never the other way round.
    allow_nan : bool
        Let NaN (missing data) through; infinity is always refused.
    allow_empty : bool
        Let arrays without entries through.
    allow_half : bool
        Let float16 and bfloat16 through; otherwise they become float32, for methods that need its digits, or a
        Fourier transform.

    Returns
    -------
    Array
        JAX array for JAX input, else NumPy array.

    Raises
    ------
    ValueError
        Wrong type, dtype, number of axes or shape; empty; NaN or infinite.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.numerics.validation import check_array
    >>> check_array([[1, 2]], "x", ndim=2)
    array([[1., 2.]], dtype=float32)
    >>> check_array(np.zeros(128), "x", shape=("n_channels", "n_times"))
    Traceback (most recent call last):
    ValueError: x: expected shape (n_channels, n_times), got (128,)
    """
    array = _to_array(x, name)
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if allowed is not None and array.ndim not in allowed:
        axes = " or ".join(str(n) for n in allowed)
        raise ValueError(f"{name}: expected {axes} {'axis' if axes == '1' else 'axes'}, got shape {array.shape}")
    if shape is not None:
        fits = len(shape) == array.ndim and all(
            not isinstance(want, int) or want == got for want, got in zip(shape, array.shape, strict=True)
        )
        if not fits:
            raise ValueError(f"{name}: expected shape {_shape_text(shape)}, got {array.shape}")
    if array.size == 0 and not allow_empty:
        raise ValueError(f"{name}: expected at least one entry, got shape {array.shape}")
    _check_values(array, name, allow_nan)
    if not allow_half and dtype is None and jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4:
        dtype = np.float32
    result = _cast(array, name, dtype)
    if result.dtype != array.dtype:
        _check_values(result, name, allow_nan)
    return result


def check_finite(tree: Any, name: str) -> None:
    """Check that no floating leaf of a pytree holds NaN or infinity.

    Parameters
    ----------
    tree : pytree
        Arrays and Python scalars; leaves that are no floating numbers, and tracers, are skipped.
    name : str
        The argument's name, for the message.

    Raises
    ------
    ValueError
        Names the leaf.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.numerics.validation import check_finite
    >>> check_finite({"w": np.array([1.0, np.nan])}, "params")
    Traceback (most recent call last):
    ValueError: params['w']: expected finite float32 values, got 1 of 2 that are not, the first at index (1,)
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array | np.ndarray | np.generic | float):
            array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
            _check_values(array, name + jax.tree_util.keystr(path), allow_nan=False)


def check_same_leading_axis(tree: Any, name: str) -> int:
    """Check that all leaves of a pytree have the same, non-zero number of rows, and return it.

    Parameters
    ----------
    tree : pytree of arrays, each of shape (n_rows, ...)
        The data.
    name : str
        The argument's name, for the message.

    Returns
    -------
    int
        The number of rows.

    Raises
    ------
    ValueError
        No leaf, a leaf that is no array or has no axes, no rows, or leaves that differ.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.numerics.validation import check_same_leading_axis
    >>> check_same_leading_axis({"x": np.zeros((5, 2)), "y": np.zeros(5)}, "data")
    5
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name}: expected arrays with a common first axis, got no array")
    rows = {}
    for path, leaf in leaves:
        leaf_name = name + jax.tree_util.keystr(path)
        try:
            rows[leaf_name] = np.shape(leaf)[:1]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{leaf_name}: expected an array, got {type(leaf).__name__} ({error})") from error
    first_name, first = next(iter(rows.items()))
    for leaf_name, length in rows.items():
        if not length or length[0] == 0:
            raise ValueError(f"{leaf_name}: expected at least one axis and one row, got shape {length}")
        if length != first:
            raise ValueError(f"{leaf_name}: expected {first[0]} rows as in {first_name}, got {length[0]}")
    return int(first[0])


def check_positive_int(value: Any, name: str, *, minimum: int = 1) -> int:
    """Check a whole number and return it as a Python int.

    Parameters
    ----------
    value : int
        Python or NumPy integer, or an integer array without axes; not a bool.
    name : str
        The argument's name, for the message.
    minimum : int
        Smallest allowed value.

    Returns
    -------
    int
        The value.

    Raises
    ------
    ValueError
        Not an integer, or too small.

    Examples
    --------
    >>> from gyri.numerics.validation import check_positive_int
    >>> check_positive_int(0, "n_atoms")
    Traceback (most recent call last):
    ValueError: n_atoms: expected an integer >= 1, got 0
    """
    try:
        if isinstance(value, bool | np.bool_) or np.dtype(bool) == getattr(value, "dtype", None):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: expected an integer >= {minimum}, got {value!r}") from None
    if number < minimum:
        raise ValueError(f"{name}: expected an integer >= {minimum}, got {number}")
    return number


def check_scalar(
    value: Any,
    name: str,
    *,
    minimum: float | int | None = None,
    maximum: float | int | None = None,
    strict: bool = False,
) -> Any:
    """Check a finite real number and return it as a Python float.

    Parameters
    ----------
    value : float
        Python or NumPy number, or an array without axes; not a bool. A tracer comes back as it is.
    name : str
        The argument's name, for the message.
    minimum, maximum : float, optional
        Bounds.
    strict : bool
        Refuse the bounds themselves.

    Returns
    -------
    float
        The value.

    Raises
    ------
    ValueError
        Not a number, not finite, or out of bounds.

    Examples
    --------
    >>> from gyri.numerics.validation import check_scalar
    >>> check_scalar(0, "sfreq", minimum=0, strict=True)
    Traceback (most recent call last):
    ValueError: sfreq: expected a number > 0, got 0
    """
    low, high = (">", "<") if strict else (">=", "<=")
    limits = [f"{low} {minimum}"] * (minimum is not None) + [f"{high} {maximum}"] * (maximum is not None)
    message = f"{name}: expected {' '.join(['a number', ' and '.join(limits)]).strip()}, got {value!r}"
    if not isinstance(value, int | float | np.number | np.ndarray | jax.Array) or isinstance(value, bool):
        raise ValueError(message)
    if np.ndim(value) or not (jnp.issubdtype(jnp.result_type(value), jnp.number) or _is_tracer(value)):
        raise ValueError(message)
    if _is_tracer(value):
        return value
    if np.iscomplexobj(value) or not np.isfinite(float(value)):
        raise ValueError(message.replace("a number", "a finite number", 1))
    number = float(value)
    too_small = minimum is not None and (number <= minimum if strict else number < minimum)
    too_large = maximum is not None and (number >= maximum if strict else number > maximum)
    if too_small or too_large:
        raise ValueError(message)
    return number


def check_option(value: T, name: str, options: Iterable[T]) -> T:
    """Check that a value is one of a few and return it.

    Parameters
    ----------
    value : object
        What the user passed.
    name : str
        The argument's name, for the message.
    options : iterable
        The allowed values, compared with their types.

    Returns
    -------
    object
        `value`.

    Raises
    ------
    ValueError
        Lists the options.

    Examples
    --------
    >>> from gyri.numerics.validation import check_option
    >>> check_option("cg", "method", ("direct", "neumann"))
    Traceback (most recent call last):
    ValueError: method: expected one of 'direct', 'neumann', got 'cg'
    """
    options = tuple(options)
    if not any(type(value) is type(option) and value == option for option in options):
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def as_key(key_or_int: Any, name: str = "key") -> Key[Array, ""]:
    """One typed PRNG key from a seed, a raw key or a typed key.

    Parameters
    ----------
    key_or_int : int, Array of uint32 or typed key
        A seed in ``[0, 2**32)`` (JAX would fold larger and negative ones onto these without a word), a raw key as of
        `jax.random.PRNGKey`, or a typed key as of `jax.random.key`, which comes back as it is. Tracers are allowed.
    name : str
        What the caller's argument is called.

    Returns
    -------
    Key array, shape ()
        A typed key; seeds and raw keys take JAX's default generator.

    Raises
    ------
    ValueError
        None, a bool, a float, a seed out of range, or more than one key.

    Examples
    --------
    >>> import jax
    >>> from gyri.numerics.validation import as_key
    >>> as_key(7) == jax.random.key(7)
    Array(True, dtype=bool)
    """
    expected = f"{name}: expected an integer seed in [0, 2**32) or one JAX PRNG key"
    dtype = getattr(key_or_int, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key_or_int.shape:
            raise ValueError(f"{expected}, got keys of shape {key_or_int.shape}")
        return key_or_int
    if dtype == np.uint32 and np.ndim(key_or_int) == 1:
        try:
            return jax.random.wrap_key_data(jnp.asarray(key_or_int))
        except TypeError:
            raise ValueError(f"{expected}, got uint32 of shape {np.shape(key_or_int)}") from None
    if _is_tracer(key_or_int) and jnp.issubdtype(key_or_int.dtype, jnp.integer) and key_or_int.ndim == 0:
        return jax.random.key(key_or_int)
    try:
        seed = check_positive_int(key_or_int, name, minimum=0)
    except ValueError:
        raise ValueError(f"{expected}, got {key_or_int!r}") from None
    if seed >= 2**32:
        raise ValueError(f"{expected}, got {seed}")
    return jax.random.key(seed)


def import_extra(module: str, extra: str, purpose: str) -> Any:
    """Import a module that an extra brings, or say what to install.

    Parameters
    ----------
    module : str
        Dotted name.
    extra : str
        What pip is asked for, such as ``"a-package[plot]"``.
    purpose : str
        What the module is for, such as ``"to plot"``.

    Returns
    -------
    module
        The module.

    Raises
    ------
    ImportError
        It cannot be imported; with the line to type.

    Examples
    --------
    >>> from gyri.numerics.validation import import_extra
    >>> import_extra("not_here.pyplot", "a-package[plot]", "to plot")
    Traceback (most recent call last):
    ImportError: not_here is needed to plot: pip install "a-package[plot]"
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ImportError(f'{name} is needed {purpose}: pip install "{extra}"') from error
