"""The public interface of the installed packages: what the pages list and the cross tests hold to account."""

import dataclasses
import importlib
import pkgutil
import runpy
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tools.projects import Project, find_projects

PROJECTS = find_projects()


def modules(project: Project) -> list[str]:
    """Dotted names of all modules of a package; `__main__` runs on import and is left out."""
    package = importlib.import_module(project.module)
    found = pkgutil.walk_packages(package.__path__, project.module + ".")
    return [project.module, *(info.name for info in found if not info.name.endswith("__main__"))]


def public_names(project: Project, module_name: str) -> list[str]:
    """Names that a module offers: `__all__` of a package's front, and in the modules of numerics what they define."""
    if module_name == project.module:
        offered = importlib.import_module(module_name).__all__
        return [name for name in offered if not name.startswith("_") and not _is_module(module_name, name)]
    if project.name != "numerics" or "._" in module_name:
        return []
    module = importlib.import_module(module_name)
    names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    return [name for name in names if getattr(getattr(module, name), "__module__", None) == module_name]


def public_callables(project: Project) -> dict[str, Callable[..., Any]]:
    """Public functions and classes by dotted name, without those that `gyri.numerics` only exports again.

    Left out are records (named tuples, dataclasses) and exceptions, which compute nothing.
    """
    named: dict[str, Any] = {}
    for module_name in modules(project):
        if project.name == "numerics" and module_name == project.module:
            continue
        module = importlib.import_module(module_name)
        named |= {f"{module_name}.{name}": getattr(module, name) for name in public_names(project, module_name)}
    return {name: value for name, value in named.items() if callable(value) and not _is_record(value)}


def _is_module(module_name: str, name: str) -> bool:
    return isinstance(getattr(importlib.import_module(module_name), name), ModuleType)


def _is_record(value: Any) -> bool:
    return isinstance(value, type) and (dataclasses.is_dataclass(value) or issubclass(value, tuple | Exception))


def declarations(project: Project) -> tuple[dict[str, Callable[[], tuple]], dict[str, str]]:
    """LOWERED and HOST_SIDE of a package's tests/lowering.py; empty if it has no such file."""
    path = project.folder / "tests" / "lowering.py"
    if not path.exists():
        return {}, {}
    declared = runpy.run_path(str(path))
    return declared["LOWERED"], declared["HOST_SIDE"]
