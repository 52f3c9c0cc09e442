"""Parameters of a fit in a file."""

import os
from collections.abc import Mapping
from typing import Any

from gyri.numerics.io import load_pytree, save_pytree
from gyri.numerics.validation import check_finite

_KIND = "pavi-params"


def save_params(path: str | os.PathLike, params: Any) -> None:
    """Save the parameters of a fit, bit by bit, without pickle.

    Parameters
    ----------
    path : path
        Of one file (.npz without pickle, with a JSON header), written as named.
    params : dict
        Of :func:`fit`, or ``svi.get_params``.

    Raises
    ------
    ValueError
        Parameters that are not finite, or no dict.

    Examples
    --------
    >>> import tempfile, os
    >>> import jax.numpy as jnp
    >>> from gyri.pavi import load_params, save_params
    >>> path = os.path.join(tempfile.mkdtemp(), "fit.npz")
    >>> save_params(path, {"mu_auto_encoding": jnp.ones(2)})
    >>> load_params(path)["mu_auto_encoding"].tolist()
    [1.0, 1.0]
    """
    if not isinstance(params, Mapping):
        raise ValueError(f"params: expected a dict of parameters, got {type(params).__name__}")
    check_finite(dict(params), "params")
    save_pytree(path, dict(params), kind=_KIND)


def load_params(path: str | os.PathLike) -> dict[str, Any]:
    """Load what :func:`save_params` saved.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    dict
        The parameters, as they were.

    Raises
    ------
    ValueError
        A damaged file, one of another method or of a newer version.

    Examples
    --------
    >>> import tempfile, os
    >>> import jax.numpy as jnp
    >>> from gyri.pavi import load_params, save_params
    >>> path = os.path.join(tempfile.mkdtemp(), "fit.npz")
    >>> save_params(path, {"sigma": jnp.ones(())})
    >>> float(load_params(path)["sigma"])
    1.0
    """
    return load_pytree(path, kind=_KIND)[0]
