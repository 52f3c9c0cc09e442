"""The pip projects of this repository, read from their pyproject.toml files; needs the standard library alone."""

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Project:
    """One folder of packages/ or shared/: a complete pip project."""

    name: str
    folder: Path
    shared: bool
    table: dict[str, Any] = field(repr=False, compare=False)

    @property
    def distribution(self) -> str:
        """What pip calls it."""
        return f"gyri-{self.name}"

    @property
    def module(self) -> str:
        """What Python imports."""
        return f"gyri.{self.name}"

    @property
    def source(self) -> Path:
        """The folder to put on the path."""
        return self.folder / "src"

    @property
    def version_file(self) -> Path:
        """The one place where the version is written."""
        return self.source / "gyri" / self.name / "_version.py"

    @property
    def version(self) -> str:
        """The version as the source tree has it."""
        found = re.search(r'^__version__ = "([^"]+)"$', self.version_file.read_text(), re.MULTILINE)
        if found is None:
            raise ValueError(f'{self.version_file}: expected a line __version__ = "X.Y.Z"')
        return found[1]

    @property
    def extras(self) -> dict[str, list[str]]:
        """Its optional dependencies."""
        return self.table.get("optional-dependencies", {})

    @property
    def dependencies(self) -> list[str]:
        """Its run-time dependencies."""
        return self.table.get("dependencies", [])

    def siblings(self, *, extras: bool) -> dict[str, str]:
        """Other projects of this repository that it depends on: name to requirement."""
        requirements = list(self.dependencies)
        if extras:
            requirements += [requirement for extra in self.extras.values() for requirement in extra]
        found = {requirement_name(r).removeprefix("gyri-"): r for r in requirements if r.startswith("gyri-")}
        return {name: requirement for name, requirement in sorted(found.items()) if name != self.name}

    def requirement(self, *wanted: str) -> str:
        """Folder with those of the wanted extras that it has, as `pip install -e` takes it."""
        extras = [extra for extra in wanted if extra in self.extras]
        return f"{self.folder}[{','.join(extras)}]" if extras else str(self.folder)


def find_projects(root: Path = ROOT) -> dict[str, Project]:
    """All projects by name, the shared ones first."""
    projects = {}
    for group in ("shared", "packages"):
        for path in sorted((root / group).glob("*/pyproject.toml")):
            folder = path.parent
            table = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
            projects[folder.name] = Project(folder.name, folder, group == "shared", table)
    return projects


def find_dependents(names: set[str], projects: dict[str, Project]) -> set[str]:
    """Add to the named projects all that depend on one of them, extras included, at any remove."""
    while True:
        more = {p.name for p in projects.values() if names & set(p.siblings(extras=True))} - names
        if not more:
            return names
        names = names | more


def requirement_name(requirement: str) -> str:
    """Distribution that a requirement names, normalised."""
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    if found is None:
        raise ValueError(f"requirement: expected a name first, got {requirement!r}")
    return re.sub(r"[-_.]+", "-", found[0]).lower()
