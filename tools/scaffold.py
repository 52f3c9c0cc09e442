"""Scaffold packages/NAME, a package that passes every session at birth: `nox -s new -- NAME`.

The files are those of tools/templates, in which @NAME@, @DATE@, @NUMERICS@ and @REPRODUCE@ stand for the
package's name, today and the compatible ranges of the two shared packages; `__name__` in a path becomes the
name, and the suffix .in, which keeps tools off the templates, is dropped.
"""

import datetime
import keyword
import re
import sys
from pathlib import Path

from tools.projects import ROOT, find_projects

TEMPLATES = Path(__file__).resolve().parent / "templates"
PAGES = {"page.md": "papers", "theory.md": "theory"}  # template to folder of docs/


def create(name: str, root: Path = ROOT) -> Path:
    """Write packages/NAME, its pages in docs/ and its rows there and in the README; return the folder.

    Parameters
    ----------
    name : str
        One word in lower case; `pip install gyri-NAME` and `import gyri.NAME` follow from it.
    root : Path
        Root of the repository.

    Raises
    ------
    ValueError
        If the name is not such a word or is taken.
    """
    projects = find_projects(root)
    check_name(name, set(projects))
    values = {
        "NAME": name,
        "DATE": datetime.date.today().isoformat(),
        "NUMERICS": compatible_range(projects["numerics"].version),
        "REPRODUCE": compatible_range(projects["reproduce"].version),
    }
    folder = root / "packages" / name
    pages = {place: root / "docs" / kind / f"{name}.md" for place, kind in PAGES.items()}
    for path in (folder, *pages.values()):
        if path.exists():
            raise ValueError(f"name: {path.relative_to(root)} exists already")
    for template in sorted(path for path in TEMPLATES.rglob("*.in") if path.is_file()):
        place = str(template.relative_to(TEMPLATES)).removesuffix(".in").replace("__name__", name)
        target = pages.get(place, folder / place)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(fill(template.read_text(encoding="utf-8"), values), encoding="utf-8")
    (folder / "LICENSE").write_bytes((root / "LICENSE").read_bytes())
    readme = root / "README.md"
    readme.write_text(list_package(readme.read_text(encoding="utf-8"), name), encoding="utf-8")
    index = root / "docs" / "index.md"
    index.write_text(list_problem(index.read_text(encoding="utf-8"), name), encoding="utf-8")
    return folder


def list_problem(index: str, name: str) -> str:
    r"""Add a package's row to the table of the landing page.

    Examples
    --------
    >>> print(list_problem("| a signal | its jumps | [a](papers/a.md) |\n\nMore.\n", "b"))
    | a signal | its jumps | [a](papers/a.md) |
    | what a visitor has | what they want | [b](papers/b.md) |
    <BLANKLINE>
    More.
    <BLANKLINE>
    """
    lines = index.splitlines()
    last = max(number for number, line in enumerate(lines) if "](papers/" in line)
    lines.insert(last + 1, f"| what a visitor has | what they want | [{name}](papers/{name}.md) |")
    return "\n".join(lines) + "\n"


def list_package(readme: str, name: str) -> str:
    r"""Add a package's row to the table of the root README, and take it out of the planned ones.

    Examples
    --------
    >>> print(list_package("| [gyri-a](packages/a) | one | paper |\n\n| gyri-b | planned |\n", "b"))
    | [gyri-a](packages/a) | one | paper |
    | [gyri-b](packages/b) | what the method does, in one line | arXiv number |
    <BLANKLINE>
    <BLANKLINE>
    """
    lines = [line for line in readme.splitlines() if not line.startswith(f"| gyri-{name} |")]
    last = max(number for number, line in enumerate(lines) if line.startswith("| [gyri-"))
    lines.insert(last + 1, f"| [gyri-{name}](packages/{name}) | what the method does, in one line | arXiv number |")
    return "\n".join(lines) + "\n"


def check_name(name: str, taken: set[str]) -> None:
    """Raise ValueError if a package cannot have this name."""
    if not re.fullmatch(r"[a-z][a-z0-9]+", name) or keyword.iskeyword(name):
        raise ValueError(f"name: expected one word in lower case, letters and digits, got {name!r}")
    if name in taken or name in ("tests", "gyri"):
        raise ValueError(f"name: {name!r} is taken")


def compatible_range(version: str) -> str:
    """Range of versions that keep the interface: a minor version of 0.x, a major one afterwards.

    Examples
    --------
    >>> compatible_range("0.3.2"), compatible_range("2.1.0")
    ('~=0.3.2', '~=2.1')
    """
    major, minor, _ = version.split(".")
    return f"~={version}" if major == "0" else f"~={major}.{minor}"


def fill(text: str, values: dict[str, str]) -> str:
    """Replace each @KEY@ by its value.

    Examples
    --------
    >>> fill("gyri-@NAME@, a@b", {"NAME": "dripp"})
    'gyri-dripp, a@b'
    """
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], text)


if __name__ == "__main__":
    print(create(sys.argv[1]))
