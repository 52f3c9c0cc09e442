"""Registry of experiments: the decorator that fills it and the entry points that load it."""

import functools
import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from .result import Result

ENTRY_POINT_GROUP = "gyri.experiments"
SCALES = ("quick", "paper")

Sweep = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]
Function = Callable[..., Result]


def sequential(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Map in a plain loop: the sweep of an experiment that is called directly.

    Examples
    --------
    >>> sequential(abs, [-1, 2, -3])
    [1, 2, 3]
    """
    return [function(item) for item in items]


@dataclass(frozen=True)
class Experiment:
    """A registered experiment.

    Parameters
    ----------
    paper : str
        Short name of the paper, for example ``"dripp"``.
    name : str
        The function's name.
    figure : str
        What it reproduces, for example ``"Figure 3"``.
    title : str
        One line for the report.
    description : str
        The function's docstring.
    function : callable
        ``function(scale, key, sweep) -> Result``.
    timed : bool
        It reports times, and so compiles as its users do.
    """

    paper: str
    name: str
    figure: str
    title: str
    description: str
    function: Function
    timed: bool = False

    @property
    def id(self) -> str:
        """``paper/name``, as the command line takes it."""
        return f"{self.paper}/{self.name}"


@dataclass(frozen=True)
class BrokenEntryPoint:
    """An entry point whose module cannot be imported: the paper and the traceback."""

    paper: str
    error: str


@dataclass(frozen=True)
class Found:
    """What `find_experiments` found; iterating gives the experiments."""

    experiments: tuple[Experiment, ...]
    broken: tuple[BrokenEntryPoint, ...] = ()

    def __iter__(self) -> Iterator[Experiment]:
        return iter(self.experiments)

    def __len__(self) -> int:
        return len(self.experiments)


_registered: dict[str, Experiment] = {}


def experiment(*, paper: str, figure: str, title: str, timed: bool = False) -> Callable[[Function], Function]:
    """Register a function as an experiment of a paper.

    The function has the signature ``function(scale, key, sweep) -> Result``. `scale` is ``"quick"`` or ``"paper"``,
    `key` an integer seed, and ``sweep(function, items)`` a map: it calls a function of one argument, which must be
    defined at the top level of a module, on every item (say, a tuple of seed and setting) and returns the list of
    results in order. The runner's sweep spreads the calls over processes or a cluster; the decorated function called by
    hand has a plain loop.

    Parameters
    ----------
    paper : str
        Short name of the paper, which is the name of its entry point too.
    figure : str
        What it reproduces, for example ``"Figure 3"``.
    title : str
        One line for the report.
    timed : bool
        Whether it reports a time. Where none does, the runner lets XLA optimise less at quick scale, which takes longer
        to compile than to run.

    Returns
    -------
    callable
        A decorator. What it returns is called like the function, ``sweep`` having a default.

    Raises
    ------
    ValueError
        If `paper` is no plain word, the function takes other arguments, or another function of the paper has its name;
        and, on a call, if `scale` is unknown.

    Examples
    --------
    >>> from gyri.reproduce import Claim, Data, Result, experiment
    >>> def draw(seed):
    ...     return seed % 7
    >>> @experiment(paper="example", figure="Figure 1", title="Draws are small")
    ... def draws(scale, key, sweep):
    ...     "Five seeds, one draw each."
    ...     values = sweep(draw, [key + i for i in range(5)])
    ...     return Result([Claim.at_most("draw", 6, values)], {}, Data.simulated("five integers"))
    >>> draws("quick", 0).claims[0].verdict.value
    'met'
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", paper):
        raise ValueError(f"paper: expected letters, digits, '-' and '_', got {paper!r}")

    def register(function: Function) -> Function:
        name = getattr(function, "__name__", "")
        if tuple(inspect.signature(function).parameters) != ("scale", "key", "sweep"):
            raise ValueError(f"{name}: expected the arguments (scale, key, sweep), got {inspect.signature(function)}")

        @functools.wraps(function)
        def run(scale: str, key: int, sweep: Sweep = sequential) -> Result:
            if scale not in SCALES:
                raise ValueError(f"scale: expected one of {SCALES}, got {scale!r}")
            return function(scale, key, sweep)

        entry = Experiment(paper, name, figure, title, inspect.getdoc(function) or "", run, timed)
        known = _registered.get(entry.id)
        if known is not None and _source(known.function) != _source(run):
            raise ValueError(f"{name}: {paper} has an experiment of this name in {known.function.__module__} already")
        _registered[entry.id] = entry
        return run

    return register


def find_experiments(papers: Iterable[str] | None = None) -> Found:
    """Experiments of the installed packages, found through the entry-point group ``gyri.experiments``.

    Parameters
    ----------
    papers : iterable of str or None
        Papers (``"dripp"``) or single experiments (``"dripp/figure_3"``); only their modules are imported. None: all.

    Returns
    -------
    Found
        The experiments, by paper in the order of their registration, and the entry points that could not be imported.

    Raises
    ------
    ValueError
        If a paper or experiment is unknown; the message lists the known ones.

    Examples
    --------
    >>> found = find_experiments()
    >>> sorted({experiment.paper for experiment in found}) == sorted({e.paper for e in found.experiments})
    True
    """
    wanted = None if papers is None else set(papers)
    wanted_papers = None if wanted is None else {paper.partition("/")[0] for paper in wanted}
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    broken = []
    for name in sorted(points):
        if wanted_papers is None or name in wanted_papers:
            try:
                points[name].load()
            except Exception:  # a paper that does not import must not take the others with it
                broken.append(BrokenEntryPoint(name, traceback.format_exc()))

    experiments = sorted(_registered.values(), key=lambda entry: entry.paper)
    if wanted is not None:
        known = {*points, *(entry.paper for entry in experiments), *(entry.id for entry in experiments)}
        unknown = {w for w in wanted - known if w.partition("/")[0] not in {point.paper for point in broken}}
        if unknown:
            raise ValueError(f"papers: unknown {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
        experiments = [entry for entry in experiments if wanted & {entry.paper, entry.id}]
    return Found(tuple(experiments), tuple(broken))


def registered(paper: str, name: str) -> Experiment:
    """Look up an experiment of a module that is imported already."""
    return _registered[f"{paper}/{name}"]


def _source(function: Function) -> tuple[str, str]:
    """Where a function was defined: a module that is imported again may register the same one again."""
    return function.__module__, function.__qualname__
