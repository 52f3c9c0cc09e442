"""Paired benchmark: ours against a peer in one process, alternated; and how cost grows with size.

A benchmark script is a function that fills a `Table`, and one line that runs it::

    from gyri.reproduce import bench

    def benchmark(table, quick):
        x = make(10_000 if quick else 1_000_000)
        table.add("prox, 1e6 samples", bench.paired(lambda: ours(x), lambda: theirs(x), check=close))

    if __name__ == "__main__":
        raise SystemExit(bench.main(benchmark, title="Total variation", peers=["prox-tv"]))
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .machine import describe_jax, describe_machine, find_versions
from .record import utc_now, write_atomically

SCHEMA = 1
Clock = Callable[[], float]


class Quartiles(NamedTuple):
    """First quartile, median and third quartile."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        """Quartiles of a sample, linear between its points.

        Examples
        --------
        >>> Quartiles.of([1.0, 2.0, 3.0, 4.0, 5.0])
        Quartiles(low=2.0, median=3.0, high=4.0)
        """
        return cls(*(float(value) for value in np.quantile(values, [0.25, 0.5, 0.75])))


@dataclass(frozen=True)
class Comparison:
    """Times of ours and a peer, in seconds; one pair a round.

    `ours_first` and `peer_first` are the first calls, which compile.
    """

    ours: tuple[float, ...]
    peer: tuple[float, ...]
    ours_first: float
    peer_first: float

    @property
    def ratio(self) -> Quartiles:
        """How many times faster ours is: quartiles over the rounds of the peer's time over ours.

        Examples
        --------
        >>> Comparison((1.0, 1.0, 2.0), (3.0, 4.0, 4.0), 9.0, 3.0).ratio.median
        3.0
        """
        return Quartiles.of([theirs / ours for ours, theirs in zip(self.ours, self.peer, strict=True)])


@dataclass(frozen=True)
class Slope:
    """Median seconds at each size, and the exponent of their power law."""

    sizes: tuple[int | float, ...]
    seconds: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """Slope of log time over log size, by least squares: 1 is linear cost.

        Examples
        --------
        >>> round(Slope((10, 100, 1000), (0.2, 2.0, 20.0)).exponent, 6)
        1.0
        """
        return float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0])


def paired(
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    *,
    check: Callable[[Any, Any], Any],
    n_rounds: int = 5,
    warmup: int = 1,
    clock: Clock = time.perf_counter,
) -> Comparison:
    """Time ours against a peer, alternated, after a check that both are equally accurate.

    The first call of each is timed apart, as it compiles. A round calls both; who goes first changes every round, so
    that a drift of the machine falls on both alike.

    Parameters
    ----------
    ours, peer : callable
        Take no arguments. JAX arrays in what they return are waited for; a peer that runs on a GPU by other means has
        to wait itself.
    check : callable
        ``check(result of ours, result of peer)``: returns a truth value, or None after its own assertions.
    n_rounds : int
        Number of timed pairs.
    warmup : int
        Number of further untimed calls of each after the first.
    clock : callable
        Seconds.

    Returns
    -------
    Comparison
        The times.

    Raises
    ------
    ValueError
        If the check fails, or `n_rounds` or `warmup` is too small.

    Examples
    --------
    >>> comparison = paired(lambda: sum(range(10)), lambda: 45, check=lambda ours, peer: ours == peer)
    >>> len(comparison.ours), len(comparison.peer)
    (5, 5)
    """
    if n_rounds < 1 or warmup < 0:
        raise ValueError(f"n_rounds: expected n_rounds >= 1 and warmup >= 0, got {n_rounds} and {warmup}")
    ours_first, ours_result = _timed(ours, clock)
    peer_first, peer_result = _timed(peer, clock)
    passed = check(ours_result, peer_result)
    if passed is not None and not passed:
        raise ValueError("check: ours and the peer are not equally accurate; their times cannot be compared")
    for _ in range(warmup):
        _timed(ours, clock)
        _timed(peer, clock)

    pair: list[tuple[Callable[[], Any], list[float]]] = [(ours, []), (peer, [])]
    for round_ in range(n_rounds):
        for function, times in pair if round_ % 2 == 0 else reversed(pair):
            times.append(_timed(function, clock)[0])
    return Comparison(tuple(pair[0][1]), tuple(pair[1][1]), ours_first, peer_first)


def slope(
    function: Callable[[Any], Any],
    sizes: Iterable[int],
    *,
    setup: Callable[[int], Any] | None = None,
    n_rounds: int = 3,
    warmup: int = 1,
    clock: Clock = time.perf_counter,
) -> Slope:
    """Time a function over growing sizes.

    Parameters
    ----------
    function : callable
        ``function(setup(size))``.
    sizes : iterable of int
        Two or more.
    setup : callable or None
        Makes the input of a size, untimed; None passes the size itself.
    n_rounds : int
        Number of timed calls of each size; their median is kept. The rounds go over all sizes in turn.
    warmup : int
        Number of untimed calls of each size before.
    clock : callable
        Seconds.

    Returns
    -------
    Slope
        Median times and the exponent.

    Raises
    ------
    ValueError
        If there are fewer than two sizes, or no rounds.

    Examples
    --------
    >>> slope(lambda n: sum(range(n)), [1000, 2000, 4000]).sizes
    (1000, 2000, 4000)
    """
    sizes = tuple(sizes)
    if len(set(sizes)) < 2 or n_rounds < 1:
        raise ValueError(f"sizes: expected two or more, and n_rounds >= 1; got {sizes} and {n_rounds}")
    calls = [partial(function, size if setup is None else setup(size)) for size in sizes]
    for call in calls:
        for _ in range(warmup):
            _timed(call, clock)
    rounds = [[_timed(call, clock)[0] for call in calls] for _ in range(n_rounds)]
    return Slope(sizes, tuple(float(seconds) for seconds in np.median(rounds, axis=0)))


def wait(result: Any) -> None:
    """Wait for all JAX arrays in a result: an array, or containers, dataclasses and objects that hold some.

    Examples
    --------
    >>> wait({"a": [1.0, None], "b": (2,)})
    """
    waiting, seen = [result], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if hasattr(node, "block_until_ready"):
            node.block_until_ready()
        elif isinstance(node, Mapping):
            waiting.extend(node.values())
        elif isinstance(node, list | tuple | set | frozenset):
            waiting.extend(node)
        elif dataclasses.is_dataclass(node) and not isinstance(node, type):  # those with slots have no __dict__
            waiting.extend(getattr(node, field.name, None) for field in dataclasses.fields(node))
        elif hasattr(node, "__dict__") and not isinstance(node, type) and not callable(node):
            waiting.extend(vars(node).values())


class Table:
    """Rows of a benchmark, printed and written as JSON.

    Parameters
    ----------
    title : str
        What is compared.
    peers : iterable of str
        Distributions whose versions are shown, beside those of Python, NumPy, JAX and gyri.

    Examples
    --------
    >>> table = Table("Sums")
    >>> table.add("ten numbers", Comparison((1.0, 1.0), (2.0, 2.0), 3.0, 2.0))
    >>> table.add("growth", Slope((10, 100), (1.0, 10.0)))
    >>> print(table)
    Sums
                 ours  peer  faster  quartiles  first: ours  first: peer
    ten numbers   1 s   2 s      2x        2-2          3 s          2 s
    growth: time ~ size^1.00 from 10 (1 s) to 100 (10 s)
    """

    def __init__(self, title: str, peers: Iterable[str] = ()) -> None:
        self.title = title
        self.peers = tuple(peers)
        self.rows: list[tuple[str, Comparison | Slope]] = []

    def add(self, name: str, row: Comparison | Slope) -> None:
        """Add a comparison or a slope."""
        self.rows.append((name, row))

    def __str__(self) -> str:
        header = ("", "ours", "peer", "faster", "quartiles", "first: ours", "first: peer")
        cells = [header] + [_cells(name, row) for name, row in self.rows if isinstance(row, Comparison)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [self.title]
        if len(cells) > 1:
            for first, *rest in cells:
                aligned = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
                lines.append("  ".join([first.ljust(widths[0]), *aligned]))
        lines += [_sentence(name, row) for name, row in self.rows if isinstance(row, Slope)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Rows, with the machine and the versions."""
        rows: list[dict[str, Any]] = []
        for name, row in self.rows:
            computed = {"ratio": row.ratio._asdict()} if isinstance(row, Comparison) else {"exponent": row.exponent}
            rows.append({"name": name, "kind": type(row).__name__.lower(), **dataclasses.asdict(row), **computed})
        return {
            "schema": SCHEMA,
            "title": self.title,
            "started": utc_now(),
            "machine": describe_machine(),
            "versions": find_versions(self.peers),
            "jax": describe_jax(),
            "rows": rows,
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file."""
        write_atomically(Path(path), json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n")


def main(
    benchmark: Callable[[Table, bool], None],
    *,
    title: str,
    peers: Iterable[str] = (),
    argv: Sequence[str] | None = None,
) -> int:
    """Run a benchmark script: ``python bench_x.py [--quick] [--out FILE.json]``.

    Parameters
    ----------
    benchmark : callable
        ``benchmark(table, quick)`` adds rows to the table; `quick` asks for small sizes.
    title : str
        Title of the table.
    peers : iterable of str
        Distributions compared with.
    argv : sequence of str or None
        Arguments; None takes those of the process.

    Returns
    -------
    int
        0: a benchmark asserts no time.

    Examples
    --------
    >>> main(lambda table, quick: None, title="Nothing", argv=["--quick"])
    Nothing
    0
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--out", metavar="FILE.json", help="write the table as JSON")
    options = parser.parse_args(argv)
    table = Table(title, peers)
    benchmark(table, options.quick)
    sys.stdout.write(f"{table}\n")
    if options.out:
        table.write(options.out)
    return 0


def _timed(function: Callable[[], Any], clock: Clock) -> tuple[float, Any]:
    """Time one call, until its result is there."""
    start = clock()
    result = function()
    wait(result)
    return clock() - start, result


def _cells(name: str, row: Comparison) -> tuple[str, ...]:
    ours, theirs, ratio = Quartiles.of(row.ours).median, Quartiles.of(row.peer).median, row.ratio
    faster = (f"{ratio.median:.3g}x", f"{ratio.low:.3g}-{ratio.high:.3g}")
    return (name, _seconds(ours), _seconds(theirs), *faster, _seconds(row.ours_first), _seconds(row.peer_first))


def _sentence(name: str, row: Slope) -> str:
    ends = " to ".join(f"{row.sizes[i]:g} ({_seconds(row.seconds[i])})" for i in (0, -1))
    return f"{name}: time ~ size^{row.exponent:.2f} from {ends}"


def _seconds(seconds: float) -> str:
    """Three digits in the fitting unit."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
