"""Prepare the release of one package: `nox -s release -- NAME major|minor|patch`; publishes and pushes nothing.

`python -m tools.release --check-tag NAME-vX.Y.Z` is what the release workflow asks before it publishes.
"""

import datetime
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.projects import ROOT, Project, find_projects
from tools.wheels import build, wheel_problems

PARTS = ("major", "minor", "patch")
UNRELEASED = "## [Unreleased]"


def release(name: str, part: str, root: Path = ROOT) -> str:
    """Bump the version, date the changelog, build, check; return what to type next.

    Raises
    ------
    ValueError
        If the arguments are wrong, the tree is dirty, nothing is under [Unreleased], or the wheel is not right. The
        tree is then as it was.
    """
    project = _project(name, root)
    if part not in PARTS:
        raise ValueError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
    if dirty := _git(root, "status", "--porcelain"):
        raise ValueError(f"tree: expected no change that is not committed, got\n{dirty}")
    files = (project.version_file, project.folder / "CHANGELOG.md")
    before = [file.read_bytes() for file in files]
    try:
        bump(project, part)
        text = files[1].read_text(encoding="utf-8")
        files[1].write_text(date_changelog(text, project.version, datetime.date.today()), encoding="utf-8")
        built = build(project, root / "dist")
        if problems := wheel_problems(built[1], project):
            raise ValueError(f"{built[1].name}: " + "; ".join(problems))
    except BaseException:
        for file, content in zip(files, before, strict=True):
            file.write_bytes(content)
        raise
    return instructions(project, files, find_projects(root), root)


def bump(project: Project, part: str) -> None:
    """Let hatch write the next version into the version file."""
    command = [sys.executable, "-m", "hatchling", "version", part]
    subprocess.run(command, cwd=project.folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def date_changelog(text: str, version: str, date: datetime.date) -> str:
    r"""Move what is under [Unreleased] below a heading of its own.

    Examples
    --------
    >>> print(date_changelog("## [Unreleased]\n\n- New.\n", "0.2.0", datetime.date(2030, 1, 2)))
    ## [Unreleased]
    <BLANKLINE>
    ## [0.2.0] - 2030-01-02
    <BLANKLINE>
    - New.
    <BLANKLINE>
    """
    before, found, after = text.partition(UNRELEASED + "\n")
    if not found:
        raise ValueError(f"changelog: expected a heading {UNRELEASED!r}")
    if not re.split(r"^## ", after, maxsplit=1, flags=re.MULTILINE)[0].strip():
        raise ValueError(f"changelog: nothing is under {UNRELEASED!r}; say what changed for the user")
    return f"{before}{UNRELEASED}\n\n## [{version}] - {date.isoformat()}\n{after}"


def latest_version(changelog: str) -> str:
    """Version of the newest heading that has a date."""
    found = re.search(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    if found is None:
        raise ValueError("changelog: expected a heading '## [X.Y.Z] - YYYY-MM-DD'")
    return found[1]


def narrow_dependents(project: Project, projects: dict[str, Project]) -> list[str]:
    """List the requirements of other packages that the new version does not meet."""
    from packaging.requirements import Requirement

    requirements = {p.distribution: p.siblings(extras=True).get(project.name) for p in projects.values()}
    return [
        f"{distribution} requires {requirement}"
        for distribution, requirement in requirements.items()
        if requirement and not Requirement(requirement).specifier.contains(project.version)
    ]


def instructions(project: Project, files: Sequence[Path], projects: dict[str, Project], root: Path) -> str:
    """Commands that commit, tag and publish, and the packages that have to follow."""
    tag = f"{project.name}-v{project.version}"
    lines = [f"{project.distribution} {project.version} is built in dist/ and checked. To publish it:", ""]
    lines.append(f"    git add {' '.join(str(file.relative_to(root)) for file in files)}")
    lines.append(f'    git commit -m "Release {project.distribution} {project.version}"')
    lines += [f'    git tag -a {tag} -m "{project.distribution} {project.version}"', f"    git push origin HEAD {tag}"]
    if narrow := narrow_dependents(project, projects):
        lines += ["", "These do not take the new version; widen their range in the same commit:"]
        lines += [f"    {line}" for line in narrow]
    return "\n".join(lines)


def check_tag(tag: str, root: Path = ROOT) -> Project:
    """Project of a tag NAME-vX.Y.Z, if the tree has that version and a changelog entry for it."""
    found = re.fullmatch(r"([a-z][a-z0-9]+)-v(\d+\.\d+\.\d+)", tag)
    if found is None:
        raise ValueError(f"tag: expected NAME-vX.Y.Z, got {tag!r}")
    project = _project(found[1], root)
    entry = latest_version((project.folder / "CHANGELOG.md").read_text(encoding="utf-8"))
    if not found[2] == project.version == entry:
        raise ValueError(f"tag: {tag} is of a tree with version {project.version} and changelog entry {entry}")
    return project


def _project(name: str, root: Path) -> Project:
    projects = find_projects(root)
    if name not in projects:
        raise ValueError(f"name: expected one of {', '.join(projects)}, got {name!r}")
    return projects[name]


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    if len(arguments) != 2:
        sys.exit("usage: nox -s release -- NAME major|minor|patch")
    first, second = arguments
    try:
        print(check_tag(second).name if first == "--check-tag" else release(first, second))
    except (ValueError, RuntimeError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
