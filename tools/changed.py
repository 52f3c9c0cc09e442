"""Print the test matrix of a change: the packages it touches and their dependents, times the supported Pythons.

`python -m tools.changed BASE` compares HEAD with where it left BASE; without BASE, or if git does not know it, every
package is in.
"""

import argparse
import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from tools.projects import ROOT, Project, find_dependents, find_projects

PYTHONS = ("3.11", "3.12", "3.13")
BACKENDS = ("cpu",)

# A change of one of these may change the outcome of any package's tests.
SHARED_BY_ALL = ("pyproject.toml", "noxfile.py", "conftest.py", "tools", ".github/workflows")


def affected_projects(files: Iterable[str], projects: dict[str, Project]) -> list[str]:
    """Names of the projects whose tests a change of these files may turn, in the order of `projects`."""
    touched = set()
    for path in map(PurePosixPath, files):
        if any(path.is_relative_to(common) for common in SHARED_BY_ALL):
            return list(projects)
        if len(path.parts) > 2 and path.parts[0] in ("shared", "packages"):
            touched.add(path.parts[1])
    affected = find_dependents(touched & set(projects), projects)
    return [name for name in projects if name in affected]


def matrix(names: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """Build the matrix in the form that a GitHub workflow reads."""
    rows = [
        {"package": name, "python": python, "backend": backend}
        for name in names
        for python in PYTHONS
        for backend in BACKENDS
    ]
    return {"include": rows}


def changed_files(base: str) -> list[str] | None:
    """Files that differ between HEAD and its merge base with `base`; None if git cannot tell."""
    run = subprocess.run(
        ["git", "diff", "--name-only", "--no-renames", f"{base}...HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return run.stdout.splitlines() if run.returncode == 0 else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", nargs="?", default="", help="branch or commit to compare HEAD with")
    options = parser.parse_args(arguments)
    projects = find_projects()
    files = changed_files(options.base) if options.base else None
    names = list(projects) if files is None else affected_projects(files, projects)
    print(json.dumps(matrix(names), separators=(",", ":")))


if __name__ == "__main__":
    main()
