"""Worker: one experiment in a process of its own, so that neither an exception nor a crash reaches the others."""

import importlib
import inspect
import json
import re
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from .machine import anonymous, describe_jax
from .record import FigureFile, Record, Task, utc_now
from .registry import registered
from .result import Result
from .sweep import JoblibSweep, connect


def run_task(task: Task, out: Path) -> Record:
    """Run one experiment in this process and save its figures; an exception ends up in the record."""
    started, start = utc_now(), time.perf_counter()
    common: dict[str, Any] = {name: value for name, value in vars(task).items() if name != "module"}
    common["started"] = started
    try:
        common["code"] = inspect.getsource(importlib.import_module(task.module))
        with connect(task.backend):
            function = registered(task.paper, task.name).function
            result = function(task.scale, task.seed, JoblibSweep(task.backend, task.jobs))
        if not isinstance(result, Result):
            raise TypeError(f"{task.name}: expected a gyri.reproduce.Result, got {type(result).__name__}")
        figures = save_figures(result, out, task)
    except Exception:
        common |= {"status": "crashed", "error": anonymous(traceback.format_exc())}
        return Record(**common, seconds=time.perf_counter() - start)
    return Record(
        **common,
        status="not run" if result.data.kind == "missing" else "finished",
        seconds=time.perf_counter() - start,
        jax=describe_jax(),
        data=result.data,
        claims=tuple(result.claims),
        figures=figures,
    )


def save_figures(result: Result, out: Path, task: Task) -> tuple[FigureFile, ...]:
    """Save every figure as PNG, for the report, and as SVG, for a paper; figures of an earlier run go."""
    folder = Path("figures", task.paper, task.name)
    shutil.rmtree(out / folder, ignore_errors=True)
    files = []
    for number, (name, figure) in enumerate(result.figures.items(), 1):
        (out / folder).mkdir(parents=True, exist_ok=True)
        stem = folder / f"{number}-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}"
        png, svg = stem.with_suffix(".png").as_posix(), stem.with_suffix(".svg").as_posix()
        figure.savefig(out / png, dpi=160, bbox_inches="tight", facecolor="white")
        figure.savefig(out / svg, bbox_inches="tight", facecolor="white", metadata={"Date": None})
        files.append(FigureFile(name=name, caption=result.captions.get(name, name), png=png, svg=svg))
    return tuple(files)


def main(argv: list[str]) -> None:
    """Run the task given as JSON in the first argument; the second is the folder of the run."""
    out = Path(argv[1])
    run_task(Task(**json.loads(argv[0])), out).save(out)


if __name__ == "__main__":
    main(sys.argv[1:])
