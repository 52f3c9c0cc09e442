"""Packages keep their place: the namespace stays implicit, methods do not know each other, numerics knows no method."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.projects import ROOT, Project, find_projects, requirement_name

PROJECTS = find_projects()


def imported_modules(path: Path, source: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that a file imports, relative ones resolved, with their lines; `from a import b` gives `a.b`."""
    package = path.relative_to(source).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = [*above, *((node.module or "").split(".") if node.module else [])]
            yield from ((".".join([*base, alias.name]), node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "import_module":
            yield from ((a.value, node.lineno) for a in node.args[:1] if isinstance(a, ast.Constant))


def siblings_imported(path: Path, source: Path) -> Iterator[tuple[str, int]]:
    """Packages of gyri that a file imports."""
    for name, line in imported_modules(path, source):
        parts = name.split(".")
        if parts[0] == "gyri" and len(parts) > 1:
            yield parts[1], line


def allowed_siblings(project: Project, path: Path) -> set[str]:
    """Packages of gyri that a file may import."""
    if project.shared:
        return {project.name}
    inside = path.relative_to(project.source / "gyri" / project.name).parts
    if inside[0] != "experiments":
        return {project.name, "numerics"}
    extra = {requirement_name(r).removeprefix("gyri-") for r in project.extras.get("experiments", [])}
    return {project.name, "numerics", *(extra & set(PROJECTS))}


def test_gyri_is_an_implicit_namespace():
    assert not list(ROOT.glob("*/*/src/gyri/__init__.py"))


@pytest.mark.parametrize("project", PROJECTS.values(), ids=list(PROJECTS))
def test_package_imports_only_packages_below_it(project):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports gyri.{sibling}"
        for path in project.source.rglob("*.py")
        for sibling, line in siblings_imported(path, project.source)
        if sibling not in allowed_siblings(project, path)
    ]
    assert not wrong


def test_only_methods_depend_on_other_packages():
    assert {name: p.siblings(extras=True) for name, p in PROJECTS.items() if p.shared and p.siblings(extras=True)} == {}
    for name, project in PROJECTS.items():
        assert set(project.siblings(extras=False)) <= {"numerics"}, name


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import gyri.reproduce.bench", {"reproduce"}),
        ("from gyri import dripp", {"dripp"}),
        ("from ..pavi import core", {"pavi"}),
        ("from .. import pavi", {"pavi"}),
        ("from . import model", {"demo"}),
        ("def f():\n    from gyri.tv.model import prox", {"tv"}),
        ("importlib.import_module('gyri.saba')", {"saba"}),
        ("import numpy", set()),
    ],
)
def test_imports_are_found(tmp_path, code, expected):
    path = tmp_path / "gyri" / "demo" / "model.py"
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert {name for name, _ in siblings_imported(path, tmp_path)} == expected
