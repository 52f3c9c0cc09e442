"""A scaffolded package is complete: it passes lint, imports, passes its tests and builds, without an edit."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tools.projects import ROOT, find_projects
from tools.scaffold import check_name, create
from tools.wheels import build, wheel_problems


@pytest.fixture
def repository(tmp_path):
    """A copy of what the scaffolder and its package need of the repository."""
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "index.md", tmp_path / "docs")
    shutil.copytree(ROOT / "shared", tmp_path / "shared", ignore=shutil.ignore_patterns("tests", "__pycache__"))
    return tmp_path


def run(repository, *command):
    environment = {**os.environ, "PYTHONPATH": str(repository / "packages" / "demo" / "src")}
    finished = subprocess.run(
        [sys.executable, "-m", *command], cwd=repository, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_new_package_passes_lint_and_its_own_tests_and_builds(repository):
    folder = create("demo", repository)
    assert folder == repository / "packages" / "demo"
    written = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.*") if path.is_file())
    assert not re.search("@[A-Z]+@|__name__", written.replace("__name__ ==", ""))
    assert "Paper scale: about" in written  # what test_house asks of every experiment
    assert all((repository / "docs" / kind / "demo.md").exists() for kind in ("papers", "theory"))
    assert "papers/demo.md" in (repository / "docs" / "index.md").read_text(encoding="utf-8")
    run(repository, "ruff", "check", "packages")
    run(repository, "ruff", "format", "--check", "packages")
    run(repository, "pytest", "-q", "-p", "no:cacheprovider", "packages/demo/tests")
    project = find_projects(repository)["demo"]
    assert wheel_problems(build(project, repository / "dist")[1], project) == []


@pytest.mark.parametrize("name", ["", "a", "Demo", "two_words", "two-words", "9lives", "class", "../up"])
def test_bad_name_is_refused(name):
    with pytest.raises(ValueError, match="name: expected one word in lower case"):
        check_name(name, set())


def test_taken_name_is_refused(repository):
    with pytest.raises(ValueError, match="name: 'numerics' is taken"):
        create("numerics", repository)


def test_existing_page_is_not_overwritten(repository):
    page = repository / "docs" / "papers" / "demo.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        create("demo", repository)
    assert page.read_text() == "mine"
    assert not (repository / "packages").exists()
