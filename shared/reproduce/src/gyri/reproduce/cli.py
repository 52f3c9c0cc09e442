"""Command line: ``gyri-reproduce list | run | report``."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence
from itertools import groupby

from .claims import Verdict
from .registry import SCALES, find_experiments
from .report import count_outcomes, write_report
from .runner import forget_broken, record_broken, run_experiments
from .sweep import BACKENDS

CRASHED, USAGE, MISSED, INTERRUPTED = 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str or None
        Arguments; None takes those of the process.

    Returns
    -------
    int
        0; 1 if an experiment crashed; 2 if the arguments are wrong; 3 if a claim was missed and ``--strict`` was given;
        130 after an interruption.

    Examples
    --------
    >>> main(["report", "no/such/folder"])
    2
    """
    options = _parser().parse_args(argv)
    try:
        return int(options.command(options))
    except (ValueError, ImportError) as error:
        sys.stderr.write(f"gyri-reproduce: {error}\n")
        return USAGE


def _list(options: argparse.Namespace) -> int:
    found = find_experiments(options.papers or None)
    for paper, experiments in groupby(found, key=lambda entry: entry.paper):
        sys.stdout.write(f"{paper}\n")
        for entry in experiments:
            sys.stdout.write(f"  {entry.id:<32} {entry.figure:<16} {entry.title}\n")
    if not found.experiments:
        sys.stdout.write(
            'No experiments are installed. Install a paper\'s, say: pip install "gyri-dripp[experiments]"\n'
        )
    for broken in found.broken:
        sys.stderr.write(f"{broken.paper}: the experiments cannot be imported\n{broken.error}\n")
    return CRASHED if found.broken else 0


def _run(options: argparse.Namespace) -> int:
    found = find_experiments(options.papers or None)
    common = {"scale": options.scale, "seed": options.seed}
    for paper in {entry.paper for entry in found}:
        forget_broken(paper, options.out)
    records = [record_broken(broken, options.out, **common) for broken in found.broken]
    if not found.experiments and not records:
        raise ValueError(
            'no experiments are installed; a paper\'s come with, say, pip install "gyri-dripp[experiments]"'
        )

    # A batch system's SIGTERM ends a run as Ctrl-C does.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        records += run_experiments(
            found, options.out, jobs=options.jobs, backend=options.backend, resume=options.resume, **common
        )
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True
    finally:
        signal.signal(signal.SIGTERM, previous)
    if interrupted:
        with contextlib.suppress(ValueError):  # nothing has ended yet
            write_report(options.out)
        sys.stderr.write("\nInterrupted. What ended is kept; the same command with --resume does the rest.\n")
        return INTERRUPTED

    page = write_report(options.out)
    totals = count_outcomes(records)
    sys.stdout.write(", ".join(f"{count} {outcome}" for outcome, count in totals.items()) + f"\n{page}\n")
    if totals["crashed"]:
        return CRASHED
    return MISSED if options.strict and totals[Verdict.MISSED.value] else 0


def _report(options: argparse.Namespace) -> int:
    sys.stdout.write(f"{write_report(options.out)}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gyri-reproduce", description="Reproduce the figures of the papers behind gyri."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="list the experiments of the installed packages")
    listing.set_defaults(command=_list)

    run = commands.add_parser(
        "run",
        help="run experiments and write the report",
        description="Run experiments and write the report. "
        "Exit status: 0; 1 if one crashed; 2 for wrong arguments; 3 if a claim was missed, with --strict.",
    )
    run.set_defaults(command=_run)
    run.add_argument("--scale", choices=SCALES, default="quick", help="seconds to minutes, or the paper's sizes")
    run.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="processes at a time; -1: one a core (default: 1)"
    )
    run.add_argument("--backend", choices=BACKENDS, default="loky", help="where sweeps over seeds and settings run")
    run.add_argument("--out", default="report", metavar="DIR", help="folder of the results (default: report)")
    run.add_argument("--seed", type=int, default=0, metavar="S", help="seed of all experiments (default: 0)")
    run.add_argument("--resume", action="store_true", help="keep results of the same scale, seed and versions")
    run.add_argument("--strict", action="store_true", help="exit with 3 if a claim was missed")

    for command in (listing, run):
        command.add_argument("papers", nargs="*", metavar="PAPER", help="a paper, or PAPER/EXPERIMENT (default: all)")

    report = commands.add_parser("report", help="write the page of an earlier run again")
    report.set_defaults(command=_report)
    report.add_argument("out", metavar="DIR", help="folder of the results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
