"""Every package imports alone, fast, silently and without touching a device; all of them import together."""

import importlib.metadata
import json
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from tools.projects import find_projects

PROJECTS = find_projects()
HEAVY = ("matplotlib", "mne", "pandas", "sklearn.datasets", "torch")

# Processor time, not wall time: other work on the machine must not fail a package.
IMPORT = """
import json, sys, time
start = time.process_time()
import jax
of_jax = time.process_time() - start
import {module}
seconds = time.process_time() - start - of_jax
from jax._src import xla_bridge
seen = {{"seconds": seconds, "of_jax": of_jax, "modules": sorted(sys.modules), "backends": list(xla_bridge._backends)}}
print(json.dumps(seen))
"""


def run_python(code: str) -> str:
    finished = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert not finished.stderr
    return finished.stdout


@pytest.mark.parametrize("project", PROJECTS.values(), ids=list(PROJECTS))
def test_package_imports_alone_fast_and_without_a_device(project):
    for _ in range(4):  # the first run may read a cold disk
        seen = json.loads(run_python(IMPORT.format(module=project.module)))
        if seen["seconds"] <= max(1, seen["of_jax"]):  # 1 s, more where all is slower
            break
    assert seen["seconds"] <= max(1, seen["of_jax"])
    assert not set(HEAVY) & set(seen["modules"])
    assert seen["backends"] == []
    allowed = {"numerics", project.name}
    assert not [other for other in set(PROJECTS) - allowed if f"gyri.{other}" in seen["modules"]]


@pytest.mark.parametrize("order", [1, -1], ids=["forwards", "backwards"])
def test_all_packages_import_together_in_any_order(order):
    modules = [project.module for project in PROJECTS.values()][::order]
    run_python("; ".join(f"import {module}" for module in modules))


def test_no_two_packages_ship_the_same_file():
    owner = {}
    for project in PROJECTS.values():
        for path in project.source.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(project.source)
                assert owner.setdefault(name, project.name) == project.name, name


@pytest.mark.parametrize("name", PROJECTS)
def test_requirements_of_every_package_are_met_in_one_environment(name):
    for text in importlib.metadata.requires(PROJECTS[name].distribution) or []:
        requirement = Requirement(text)
        extras = ["", "test"]
        if any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in extras):
            installed = importlib.metadata.version(requirement.name)
            assert requirement.specifier.contains(installed, prereleases=True), f"{text}, but {installed} is installed"
