"""The version is the same everywhere, and the wheel holds what it should."""

import importlib
import importlib.metadata

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
