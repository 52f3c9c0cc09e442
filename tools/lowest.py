"""Print constraints that pin every direct dependency of the repository to the oldest version it declares.

What `uv pip install --resolution lowest-direct` does, for machines without uv, but for patches: `>=2.0` becomes
`==2.0.*`, as a first patch may never have been published. What several projects declare gets the highest bound.
"""

import re
from collections.abc import Iterable

from tools.projects import Project, find_projects, requirement_name


def lowest_pins(projects: Iterable[Project]) -> list[str]:
    """Constraints, one a line of the file, sorted."""
    bounds: dict[str, str] = {}
    for project in projects:
        requirements = project.dependencies + [r for extra in project.extras.values() for r in extra]
        for requirement in requirements:
            name, bound = requirement_name(requirement), _lower_bound(requirement)
            if name.startswith("gyri-") or bound is None:
                continue
            bounds[name] = max(bound, bounds.get(name, "0"), key=_release)
    return [f"{name}=={bound}.*" for name, bound in sorted(bounds.items())]


def _lower_bound(requirement: str) -> str | None:
    """Version after `>=` or `~=`, if there is one."""
    found = re.search(r"[>~]=\s*([0-9.]+)", requirement)
    return found[1] if found else None


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


if __name__ == "__main__":
    print("\n".join(lowest_pins(find_projects().values())))
