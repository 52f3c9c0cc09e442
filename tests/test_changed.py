"""The matrix of a change holds the packages it touches and those that stand on them, and no other."""

import json
from pathlib import Path

import pytest

from tools.changed import affected_projects, main, matrix
from tools.projects import Project, find_projects


def project(name, dependencies=(), extras=(), shared=False):
    table = {"dependencies": list(dependencies), "optional-dependencies": {"experiments": list(extras)}}
    return Project(name, Path(name), shared, table)


PROJECTS = {
    "numerics": project("numerics", shared=True),
    "reproduce": project("reproduce", shared=True),
    "dripp": project("dripp", ["gyri-numerics~=0.1.0", "jax"], ["gyri-reproduce~=0.1.0"]),
    "tv": project("tv", ["gyri-numerics~=0.1.0"]),
    "saba": project("saba", ["gyri-numerics~=0.1.0"], ["gyri-tv", "gyri-reproduce"]),
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], []),
        (["README.md", "docs/index.md", "tests/test_layers.py", "packages/README.md"], []),
        (["packages/dripp/src/gyri/dripp/model.py"], ["dripp"]),
        (["packages/tv/README.md"], ["tv", "saba"]),
        (["shared/reproduce/pyproject.toml"], ["reproduce", "dripp", "saba"]),
        (["shared/numerics/src/gyri/numerics/io.py"], ["numerics", "dripp", "tv", "saba"]),
        (["packages/gone/model.py"], []),
        (["packages/tv/README.md", "pyproject.toml"], list(PROJECTS)),
        (["tools/projects.py"], list(PROJECTS)),
    ],
)
def test_affected_projects(files, expected):
    assert affected_projects(files, PROJECTS) == expected


def test_matrix_is_packages_times_pythons_times_backends():
    rows = matrix(["dripp", "tv"])["include"]
    assert len(rows) == 6
    assert {"package": "tv", "python": "3.13", "backend": "cpu"} in rows


@pytest.mark.parametrize("arguments", [[], ["0" * 40]], ids=["no base", "unknown base"])
def test_without_a_base_every_package_is_tested(capsys, arguments):
    main(arguments)
    rows = json.loads(capsys.readouterr().out)["include"]
    assert {row["package"] for row in rows} == set(find_projects())
