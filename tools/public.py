"""The public interface of the installed packages: what the pages list and the cross tests hold to account."""

import dataclasses
import importlib
import inspect
import pkgutil
import runpy
from collections.abc import Callable
from enum import Enum
from typing import Any

from tools.projects import Project, find_projects

PROJECTS = find_projects()


def modules(project: Project) -> list[str]:
    """Dotted names of all modules of a package; `__main__` runs on import and is left out."""
    package = importlib.import_module(project.module)
    found = pkgutil.walk_packages(package.__path__, project.module + ".")
    return [project.module, *(info.name for info in found if not info.name.endswith("__main__"))]


def public_names(project: Project, module_name: str) -> list[str]:
    """List functions and classes: those in `__all__` of a package's front; of numerics, what each module defines."""
    if project.name == "numerics" and module_name.removeprefix(project.module).count(".") > 1:
        return []  # a file of a module of several: the front counts, and a kernel would import what is an extra
    module = importlib.import_module(module_name)
    if project.name == "numerics" and hasattr(module, "__path__") and module_name != project.module:
        names = module.__all__
    elif project.name == "numerics":
        names = [name for name in vars(module) if getattr(getattr(module, name), "__module__", None) == module_name]
    else:
        names = module.__all__ if module_name == project.module else []
    return [name for name in names if not name.startswith("_") and _is_code(getattr(module, name))]


def public_callables(project: Project) -> dict[str, Callable[..., Any]]:
    """Public functions and classes by dotted name.

    Left out are records (named tuples, dataclasses, enumerations) and exceptions, which compute nothing.
    """
    named = {
        f"{module_name}.{name}": getattr(importlib.import_module(module_name), name)
        for module_name in modules(project)
        for name in public_names(project, module_name)
    }
    return {name: value for name, value in named.items() if not _is_record(value)}


def _is_code(value: Any) -> bool:
    return isinstance(value, type) or inspect.isroutine(inspect.unwrap(value))


def _is_record(value: Any) -> bool:
    return isinstance(value, type) and (dataclasses.is_dataclass(value) or issubclass(value, tuple | Enum | Exception))


def declarations(project: Project) -> tuple[dict[str, Callable[[], tuple]], dict[str, str]]:
    """LOWERED and HOST_SIDE of a package's tests/lowering.py; empty if it has no such file."""
    path = project.folder / "tests" / "lowering.py"
    if not path.exists():
        return {}, {}
    declared = runpy.run_path(str(path))
    return declared["LOWERED"], declared["HOST_SIDE"]
