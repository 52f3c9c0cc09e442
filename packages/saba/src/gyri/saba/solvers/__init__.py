"""Stochastic and deterministic bilevel solvers under one pair of functions; `make` finds them by name."""

from collections.abc import Callable
from typing import Any

from gyri.numerics.validation import check_option

from ..types import BilevelSolver
from .deterministic import aid, itd, pzobo
from .double_loop import amigo, bsa, stocbio, ttsa
from .momentum import mrbo, sustain
from .penalty import bome, f2sa
from .recursive import bio_svrg, srba, vrbo
from .single_loop import fsla, saba, soba

_FACTORIES: dict[str, Callable[..., BilevelSolver]] = {
    "soba": soba,
    "saba": saba,
    "fsla": fsla,
    "amigo": amigo,
    "stocbio": stocbio,
    "bsa": bsa,
    "ttsa": ttsa,
    "mrbo": mrbo,
    "sustain": sustain,
    "srba": srba,
    "vrbo": vrbo,
    "f2sa": f2sa,
    "bome": bome,
    "pzobo": pzobo,
    "aid": aid,
    "itd": itd,
    "bio_svrg": bio_svrg,
}
NAMES = tuple(_FACTORIES)

__all__ = [
    "NAMES",
    "aid",
    "amigo",
    "bio_svrg",
    "bome",
    "bsa",
    "f2sa",
    "fsla",
    "itd",
    "make",
    "mrbo",
    "pzobo",
    "saba",
    "soba",
    "srba",
    "stocbio",
    "sustain",
    "ttsa",
    "vrbo",
]


def make(name: str, inner_fun: Callable, outer_fun: Callable, **options: Any) -> BilevelSolver:
    """Make a solver by name.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    **options
        Of that solver.

    Returns
    -------
    BilevelSolver
        `init` and `update`.

    Raises
    ------
    ValueError
        An unknown name, and as of :func:`soba`.

    Examples
    --------
    >>> from gyri.saba import problems, solvers
    >>> problem = problems.quadratic(0, n=64, m=64, p=3, d=2)
    >>> solvers.make("srba", problem.inner_fun, problem.outer_fun, batch_size=16).name
    'srba'
    """
    return _FACTORIES[check_option(name, "name", NAMES)](inner_fun, outer_fun, **options)
