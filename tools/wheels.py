"""Build a project's wheel and check what is in it; needs `build` and `hatchling` in the environment."""

import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

from tools.projects import Project, find_projects


def build(project: Project, out: Path) -> list[Path]:
    """Build the sdist, and the wheel out of the sdist, so that an incomplete sdist is noticed; return both."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(project.folder)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if finished.returncode:
        raise RuntimeError(f"{project.distribution}: the build failed\n{finished.stdout}")
    stem = f"gyri_{project.name}-{project.version}"
    return [out / f"{stem}.tar.gz", out / f"{stem}-py3-none-any.whl"]


def wheel_version(wheel: Path) -> str:
    """Version in the wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return str(Parser().parsestr(archive.read(name).decode())["Version"])


def wheel_problems(wheel: Path, project: Project) -> list[str]:
    """Everything that is wrong with a wheel; an empty list if it may be published."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    own, information = f"gyri/{project.name}/", re.compile(r"[^/]+\.dist-info/")
    problems = [
        f"{name} does not belong in it" for name in names if not name.startswith(own) and not information.match(name)
    ]
    problems += [f"{name} is a test" for name in names if "/tests/" in name]
    problems += [f"{name} is missing" for name in (f"{own}__init__.py", f"{own}py.typed") if name not in names]
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        problems.append("LICENSE is missing")
    if wheel_version(wheel) != project.version:
        problems.append(f"its version is {wheel_version(wheel)}, the source's {project.version}")
    return problems


def main(arguments: Sequence[str]) -> None:
    """Build the named projects, or all, into the folder given first; exit with a message if a wheel is not right."""
    out, *names = arguments
    projects = find_projects()
    for project in (projects[name] for name in names or projects):
        wheel = build(project, Path(out))[1]
        if problems := wheel_problems(wheel, project):
            sys.exit(f"{wheel.name}: " + "; ".join(problems))
        print(wheel)


if __name__ == "__main__":
    main(sys.argv[1:])
