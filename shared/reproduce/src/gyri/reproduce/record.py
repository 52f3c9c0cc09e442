"""Record: what is kept of one run of one experiment, and its JSON file."""

import json
import math
import os
import re
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from .claims import Claim, Verdict
from .machine import describe_machine, find_versions
from .result import Data

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """One experiment to run, as a worker process gets it."""

    module: str
    paper: str
    name: str
    figure: str
    title: str
    description: str
    scale: str
    seed: int
    backend: str
    jobs: int


@dataclass(frozen=True, kw_only=True)
class FigureFile:
    """A saved figure: the files are relative to the folder of the run."""

    name: str
    caption: str
    png: str
    svg: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of one experiment.

    `status` is "finished", "crashed" (then `error` has the traceback) or "not run" (its data is missing). `started` is
    in UTC, `seconds` the wall time, `code` the source of the module that ran. The other fields are those of the task,
    the result and the machine.
    """

    schema: int = SCHEMA
    paper: str
    name: str
    figure: str
    title: str
    description: str
    status: Literal["finished", "crashed", "not run"]
    scale: str
    seed: int
    backend: str
    jobs: int
    started: str
    seconds: float
    machine: dict[str, Any] = field(default_factory=describe_machine)
    versions: dict[str, str] = field(default_factory=find_versions)
    jax: dict[str, Any] | None = None
    data: Data | None = None
    claims: tuple[Claim, ...] = ()
    figures: tuple[FigureFile, ...] = ()
    error: str = ""
    code: str = ""

    @property
    def id(self) -> str:
        """``paper/name``."""
        return f"{self.paper}/{self.name}"

    def count(self, verdict: Verdict) -> int:
        """Count the claims of a verdict."""
        return sum(claim.verdict is verdict for claim in self.claims)

    def to_json(self) -> dict[str, Any]:
        """Convert to what JSON can hold; every claim gets its verdict and criterion in words."""
        claims = [{**asdict(c), "criterion": c.criterion, "verdict": c.verdict.value} for c in self.claims]
        return _finite({**asdict(self), "claims": claims})

    @classmethod
    def from_json(cls, content: Any) -> "Record":
        """Undo `to_json`; verdicts are computed again from the numbers.

        Raises
        ------
        ValueError
            If the schema is another one or a field is missing.
        """
        if not isinstance(content, dict):
            raise ValueError(f"not a record of gyri-reproduce: {type(content).__name__}")
        if content.get("schema") != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}, got {content.get('schema')!r}; run the experiment again")
        try:
            # Records of 0.1.0 have no code.
            rest = {f.name: content.get("code", "") if f.name == "code" else content[f.name] for f in fields(cls)}
            rest["data"] = None if rest["data"] is None else Data(**rest["data"])
            rest["claims"] = tuple(_claim(claim) for claim in rest["claims"])
            rest["figures"] = tuple(FigureFile(**figure) for figure in rest["figures"])
            return cls(**rest)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a record of gyri-reproduce: {type(error).__name__} {error}") from error

    def save(self, out: Path) -> None:
        """Write ``out/results/PAPER/NAME.json``, whole or not at all."""
        path = record_path(out, self.paper, self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def record_path(out: Path, paper: str, name: str) -> Path:
    """File of an experiment's record."""
    return out / "results" / paper / f"{name}.json"


def load_record(path: Path) -> Record:
    """Read one record.

    Raises
    ------
    ValueError
        If the file is damaged or of another schema.
    """
    try:
        return Record.from_json(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:  # json's own error is one too
        raise ValueError(f"{path}: {error}") from error


def load_records(out: str | os.PathLike[str]) -> list[Record]:
    """Read all records of a run, sorted by paper; within a paper, by figure.

    Parameters
    ----------
    out : path
        The folder given to the run.

    Raises
    ------
    ValueError
        If there is none, or one is damaged or of another schema.
    """
    records = [load_record(path) for path in sorted(Path(out).glob("results/*/*.json"))]
    if not records:
        raise ValueError(f"out: no results in {out}")
    return sorted(records, key=lambda record: (record.paper, _natural(record.figure), record.name))


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that no reader, and no crash, ever meets half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def utc_now() -> str:
    """Now, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _natural(figure: str) -> list[tuple[int, str]]:
    """Sort "Figure 2" before "Figure 10"."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", figure)]


def _claim(content: dict[str, Any]) -> Claim:
    kept = {name: value for name, value in content.items() if name not in ("criterion", "verdict")}
    if kept["measured"] in ("nan", "inf", "-inf"):
        kept["measured"] = float(kept["measured"])
    if kept["median_range"] is not None:
        kept["median_range"] = tuple(float(end) for end in kept["median_range"])
    return Claim(**kept)


def _finite(content: Any) -> Any:
    """Write numbers that are not finite, which JSON lacks, as words."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return str(content) if isinstance(content, float) and not math.isfinite(content) else content
