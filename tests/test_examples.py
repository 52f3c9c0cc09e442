"""What the documentation shows, runs: docstring examples of every module, and the Python of the README."""

import contextlib
import doctest
import importlib
import io
import subprocess
import sys

import pytest

from tools.projects import ROOT
from tools.public import PROJECTS, modules, public_callables

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = [name for project in PROJECTS.values() for name in modules(project)]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    fixtures = {"getfixture": request.getfixturevalue}  # as under pytest's own --doctest-modules
    with contextlib.redirect_stdout(io.StringIO()) as said:
        results = doctest.testmod(importlib.import_module(name), optionflags=FLAGS, extraglobs=fixtures)
    assert results.failed == 0, said.getvalue()


@pytest.mark.parametrize("name", ["changed", "check_site", "quickstart", "release", "scaffold"])
def test_docstring_examples_of_the_tools_run(name):
    assert doctest.testmod(importlib.import_module(f"tools.{name}")).failed == 0


@pytest.mark.parametrize("project", PROJECTS.values(), ids=list(PROJECTS))
def test_every_public_name_has_an_example(project):
    lacking = [name for name, value in public_callables(project).items() if ">>>" not in (value.__doc__ or "")]
    assert not lacking


def test_readme_runs():
    """Those of the packages run where they have to, beside their own wheel alone: `nox -s isolated -- --smoke`."""
    command = [sys.executable, str(ROOT / "tools" / "quickstart.py"), str(ROOT / "README.md")]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
