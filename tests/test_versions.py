"""The version is the same everywhere, and the wheel holds what it should."""

import importlib
import importlib.metadata
import re
import subprocess
import sys
import zipfile

import pytest

from tools.projects import find_projects
from tools.release import latest_version
from tools.wheels import build, wheel_problems, wheel_version

PROJECTS = find_projects()


@pytest.mark.parametrize("project", PROJECTS.values(), ids=list(PROJECTS))
def test_wheel_source_installation_and_changelog_have_one_version(project, tmp_path):
    wheel = build(project, tmp_path)[1]
    assert wheel_problems(wheel, project) == []
    assert wheel_version(wheel) == project.version
    assert importlib.import_module(project.module).__version__ == project.version
    assert importlib.metadata.version(project.distribution) == project.version
    assert latest_version((project.folder / "CHANGELOG.md").read_text(encoding="utf-8")) == project.version


def write_wheel(folder, name, version, requirements=()):
    """A wheel of nothing but metadata."""
    stem = f"gyri_{name}-{version}"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requirements)
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        archive.writestr(
            f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: gyri-{name}\nVersion: {version}\n{needs}"
        )
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.mark.parametrize("name", [name for name, p in PROJECTS.items() if not p.shared])
def test_pip_refuses_numerics_below_the_declared_bound(name, tmp_path):
    project = PROJECTS[name]
    requirement = project.siblings(extras=False)["numerics"]
    bound = re.search(r"~=(\d+)\.(\d+)\.(\d+)", requirement)
    major, minor, patch = map(int, bound.groups())
    below = f"{major}.{minor}.{patch - 1}" if patch else f"{major}.{minor - 1}.0"
    write_wheel(tmp_path, name, project.version, [requirement])
    for version in (below, PROJECTS["numerics"].version):
        write_wheel(tmp_path, "numerics", version)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(tmp_path), "--dry-run"]
    command += ["--ignore-installed", project.distribution]
    run = lambda version: subprocess.run([*command, f"gyri-numerics=={version}"], capture_output=True, text=True)
    assert run(PROJECTS["numerics"].version).returncode == 0  # the bound admits the version beside it
    refused = run(below)
    assert refused.returncode != 0
    assert "conflicting dependencies" in refused.stderr
