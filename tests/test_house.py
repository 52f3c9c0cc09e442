"""The files around the packages agree with each other."""

import ast
import functools
import json
import re
import subprocess
import tokenize

import pytest
import yaml

from gyri.reproduce.registry import find_experiments
from tools.changed import PYTHONS
from tools.projects import ROOT, find_projects

PROJECTS = find_projects()
PAGES = ("README.md", "CONTRIBUTING.md", "docs/repository.md", ".ci/run", ".github/workflows/tests.yml")


def noxfile():
    return ast.parse((ROOT / "noxfile.py").read_text())


def sessions():
    functions = [node for node in noxfile().body if isinstance(node, ast.FunctionDef)]
    return {f.name for f in functions if any("nox.session" in ast.unparse(d) for d in f.decorator_list)}


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_only_sessions_that_exist(page):
    named = re.findall(r"nox -s ((?:[a-z]+ )*[a-z]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert named
    assert {name for names in named for name in names.split()} <= sessions() | {"and", "in", "or", "with"}


def test_ci_runs_the_test_command_of_the_readme():
    command = "python3 -m pip install nox && python3 -m nox -s tests"
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    assert command in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflows_and_forms_are_valid_yaml(path):
    content = yaml.safe_load(path.read_text())
    if path.parent.name == "workflows":
        assert {"name", "jobs"} <= set(content)
        assert all("runs-on" in job and job["steps"] for job in content["jobs"].values())


def test_supported_pythons_are_the_same_everywhere():
    assigned = {ast.unparse(n.targets[0]): n.value for n in noxfile().body if isinstance(n, ast.Assign)}
    assert tuple(ast.literal_eval(assigned["VERSIONS"])) == PYTHONS
    for project in PROJECTS.values():
        assert project.table["requires-python"] == f">={PYTHONS[0]}"


@pytest.mark.parametrize("project", PROJECTS.values(), ids=list(PROJECTS))
def test_package_has_every_file_that_a_reader_looks_for(project):
    for name in ("README.md", "CHANGELOG.md", "LICENSE", f"src/gyri/{project.name}/py.typed"):
        assert (project.folder / name).exists(), name
    assert (project.folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    pages = [ROOT / "docs" / kind / f"{project.name}.md" for kind in ("papers", "theory")]
    assert project.shared or all(page.exists() for page in pages)


@pytest.mark.parametrize("name", [name for name, p in PROJECTS.items() if not p.shared])
def test_readme_has_what_the_page_of_a_paper_needs(name):
    """The page includes the README: what it solves, quickstart, reproduction, benchmarks and the BibTeX entry."""
    text = (PROJECTS[name].folder / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert set(headings) >= {"Install", "Quickstart", "Reproduction", "Benchmarks", "Cite"}
    assert "<!-- reproduction:start -->" in text
    assert re.search(r"^```bibtex\n@", text, re.MULTILINE)


@pytest.mark.parametrize("name", [name for name, p in PROJECTS.items() if not p.shared])
def test_landing_page_leads_to_every_paper(name):
    assert f"papers/{name}.md" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name, p in PROJECTS.items() if not p.shared])
def test_readme_lists_every_paper(name):
    assert f"gyri-{name}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_experiment_says_what_paper_scale_costs():
    papers = [name for name, p in PROJECTS.items() if not p.shared]  # not those that other tests register
    found = find_experiments(papers)
    assert not found.broken
    assert {experiment.paper for experiment in found} == set(papers)
    said = ("Paper scale: about", "Paper scale: the same")
    assert [e.id for e in found if not any(words in e.description for words in said)] == []


def test_every_name_is_defined():
    """Outside of jaxtyping's strings, whose dimensions ruff and mypy take for names and are told to pass over."""
    command = ["ruff", "check", "--isolated", "--select", "F821", "--output-format", "json", "packages", "shared"]
    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout)
    strings = functools.cache(strings_of)
    unknown = []
    for one in found:
        place = one["location"]["row"], one["location"]["column"] - 1
        if not any(start <= place < end for start, end in strings(one["filename"])):
            unknown.append(f"{one['filename']}:{place[0]}: {one['message']}")
    assert found  # ruff ran: there are shapes in every package
    assert not unknown


def strings_of(path):
    """Start and end of each string of a file."""
    with open(path) as lines:
        tokens = list(tokenize.generate_tokens(lines.readline))
    return [(token.start, token.end) for token in tokens if token.type == tokenize.STRING]
