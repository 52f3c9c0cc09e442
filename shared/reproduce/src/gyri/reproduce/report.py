"""Report: one HTML page of all records of a run, which needs no other file and no network."""

import base64
import math
import os
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from .claims import Claim, Verdict
from .record import Record, load_records, write_atomically


def write_report(out: str | os.PathLike[str]) -> Path:
    """Write ``out/report.html`` from the records and figures in `out`.

    Parameters
    ----------
    out : path
        Folder of a run.

    Returns
    -------
    pathlib.Path
        The page.

    Raises
    ------
    ValueError
        If there are no records, or one is damaged or of another schema.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    out = Path(out)
    records = load_records(out)
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=format_number, seconds=format_seconds)
    page = environment.get_template("report.html").render(
        papers=[(paper, list(group)) for paper, group in groupby(records, key=lambda record: record.paper)],
        totals=count_outcomes(records),
        count=count_outcomes,
        accepted=format_criterion,
        spread=format_range,
        image=lambda path: _embed(out / path),
        settings=_distinct((record.scale, record.seed) for record in records),
        machines=_distinct(record.machine for record in records),
        versions=_distinct(record.versions for record in records),
        backends=_distinct(record.jax for record in records if record.jax is not None),
        sweeps=_distinct(record.backend for record in records),
        started=min(record.started for record in records),
        seconds=sum(record.seconds for record in records),
    )
    path = out / "report.html"
    write_atomically(path, page)
    return path


def count_outcomes(records: Iterable[Record]) -> dict[str, int]:
    """Count claims by verdict, and the experiments that crashed or did not run.

    Examples
    --------
    >>> count_outcomes([])
    {'met': 0, 'missed': 0, 'reported': 0, 'crashed': 0, 'not run': 0}
    """
    records = list(records)
    totals = {v.value: sum(record.count(v) for record in records) for v in Verdict if v is not Verdict.NOT_RUN}
    return totals | {status: sum(record.status == status for record in records) for status in ("crashed", "not run")}


def format_number(value: float | int | str | None, unit: str = "") -> str:
    """Four digits and the unit; words stay, None is a dash.

    Examples
    --------
    >>> format_number(0.123456, "s"), format_number(-2500000.0), format_number("2/3"), format_number(None)
    ('0.1235 s', '−2.5e+06', '2/3', '–')
    """
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "NaN"
    return f"{_typeset(f'{value:.4g}')} {unit}".rstrip()


def format_range(claim: Claim) -> str:
    """Range over the seeds, and how many there were.

    Examples
    --------
    >>> format_range(Claim.info("error", None, [0.1, 0.3, 0.2]))
    '0.1 to 0.3 over 3 seeds'
    """
    if claim.median_range is None:
        return ""
    low, high = (_typeset(f"{end:.3g}") for end in claim.median_range)
    return f"{low} to {high}" + (f" over {claim.n_seeds} seeds" if claim.n_seeds else "")


def format_criterion(claim: Claim) -> str:
    """Show the accepted interval with its unit; a dash if nothing is compared.

    Examples
    --------
    >>> format_criterion(Claim.between("latency", 7.0, 6.9, 6.5, 7.5, unit="ms"))
    '6.5 to 7.5 ms'
    """
    return f"{_typeset(claim.criterion)} {claim.unit}".rstrip() if claim.criterion else format_number(None)


def format_seconds(seconds: float | int) -> str:
    """Seconds, or minutes, or hours.

    Examples
    --------
    >>> format_seconds(1.23), format_seconds(75), format_seconds(7260)
    ('1.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _typeset(numbers: str) -> str:
    """Set a minus sign for a hyphen."""
    return numbers.replace("-", "\N{MINUS SIGN}")


def _embed(path: Path) -> str:
    """Return an image as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Keep the first of equal values, in order; they need no hash."""
    kept: list[Any] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept
