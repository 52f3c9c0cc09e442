"""The release tool writes what it says, refuses what it should, and leaves no half-made release behind."""

import datetime
import subprocess
import zipfile

import pytest

from tools import release as tool
from tools.projects import find_projects
from tools.release import check_tag, date_changelog, latest_version, release
from tools.wheels import wheel_problems

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "gyri-{name}"
dynamic = ["version"]
requires-python = ">=3.11"
dependencies = [{dependencies}]
license-files = ["LICENSE"]
[tool.hatch.version]
path = "src/gyri/{name}/_version.py"
[tool.hatch.build.targets.wheel]
packages = ["src/gyri"]
"""
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n- New: more.\n\n## [0.1.0] - 2026-01-01\n\nFirst release.\n"


def git(root, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    """A repository of two packages, `top` on `base`."""
    for group, name, dependencies in (("shared", "base", ""), ("packages", "top", '"gyri-base~=0.1.0"')):
        folder = tmp_path / group / name
        source = folder / "src" / "gyri" / name
        source.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(PYPROJECT.format(name=name, dependencies=dependencies))
        (folder / "CHANGELOG.md").write_text(CHANGELOG)
        (folder / "LICENSE").write_text("free")
        (source / "_version.py").write_text('"""Version."""\n\n__version__ = "0.1.0"\n')
        (source / "__init__.py").write_text("")
        (source / "py.typed").write_text("")
    (tmp_path / ".gitignore").write_text("dist/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "start")
    return tmp_path


def test_release_bumps_dates_builds_and_says_what_to_type(repository):
    text = release("base", "minor", repository)
    base = find_projects(repository)["base"]
    assert base.version == latest_version((base.folder / "CHANGELOG.md").read_text()) == "0.2.0"
    assert {path.name for path in (repository / "dist").iterdir()} == {
        "gyri_base-0.2.0.tar.gz",
        "gyri_base-0.2.0-py3-none-any.whl",
    }
    assert "git tag -a base-v0.2.0" in text
    assert "git push origin HEAD base-v0.2.0" in text
    assert "gyri-top requires gyri-base~=0.1.0" in text  # 0.2.0 is outside of its range
    assert check_tag("base-v0.2.0", repository).name == "base"


def test_patch_release_suits_the_dependents(repository):
    assert "gyri-top" not in release("base", "patch", repository)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("nope", "minor"), "name: expected one of base, top"), (("top", "big"), "part: expected")],
)
def test_bad_arguments_are_refused(repository, arguments, message):
    with pytest.raises(ValueError, match=message):
        release(*arguments, repository)


def test_dirty_tree_is_refused(repository):
    (repository / "new.txt").write_text("not committed")
    with pytest.raises(ValueError, match=r"(?s)tree: expected no change.*new.txt"):
        release("base", "minor", repository)


def test_release_without_news_is_refused_and_nothing_changes(repository):
    changelog = repository / "shared" / "base" / "CHANGELOG.md"
    changelog.write_text(CHANGELOG.replace("- New: more.\n\n", ""))
    git(repository, "commit", "-q", "-a", "-m", "no news")
    with pytest.raises(ValueError, match=r"changelog: nothing is under"):
        release("base", "minor", repository)
    assert find_projects(repository)["base"].version == "0.1.0"


def test_failed_build_changes_nothing(repository, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no")

    monkeypatch.setattr(tool, "build", fail)
    with pytest.raises(RuntimeError):
        release("base", "minor", repository)
    assert find_projects(repository)["base"].version == "0.1.0"
    assert (repository / "shared" / "base" / "CHANGELOG.md").read_text() == CHANGELOG


@pytest.mark.parametrize("tag", ["base-v0.1.1", "base-0.1.0", "v0.1.0", "nope-v0.1.0"])
def test_tag_of_another_version_is_refused(repository, tag):
    with pytest.raises(ValueError, match=r"tag: |name: "):
        check_tag(tag, repository)


def test_changelog_keeps_what_was_released_before():
    text = date_changelog(CHANGELOG, "0.2.0", datetime.date(2030, 1, 2))
    assert text == CHANGELOG.replace("[Unreleased]\n", "[Unreleased]\n\n## [0.2.0] - 2030-01-02\n")


def test_wheel_with_a_wrong_content_is_reported(repository, tmp_path):
    wheel = tmp_path / "wrong.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("gyri/__init__.py", "")
        archive.writestr("gyri/base/__init__.py", "")
        archive.writestr("gyri/base/tests/test_a.py", "")
        archive.writestr("gyri_base-0.3.0.dist-info/METADATA", "Version: 0.3.0\n")
    problems = " ".join(wheel_problems(wheel, find_projects(repository)["base"]))
    for problem in ("gyri/__init__.py does not", "test_a.py is a test", "py.typed is missing", "LICENSE", "is 0.3.0"):
        assert problem in problems
