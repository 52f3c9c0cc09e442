"""Every public function that may run inside jit lowers for CPU, CUDA and TPU; the others say why they do not.

The author of a package declares both in its tests/lowering.py; `nox -s new` writes the first.
"""

import jax
import pytest

from gyri.numerics import host
from tools.public import PROJECTS, declarations, public_callables

ON_DEVICE = [project for project in PROJECTS.values() if project.name != "reproduce"]
CASES = [(project.name, name) for project in ON_DEVICE for name in declarations(project)[0]]


@pytest.mark.parametrize("project", ON_DEVICE, ids=lambda project: project.name)
def test_every_public_callable_is_declared(project):
    lowered, host_side = declarations(project)
    public = set(public_callables(project))
    declared = {name.partition("[")[0] for name in lowered}
    assert public - declared - set(host_side) == set(), f"add these to {project.folder.name}/tests/lowering.py"
    assert set(host_side) - public == set(), "declared, but not public"
    assert declared & set(host_side) == set(), "declared twice"
    assert all(len(reason) > 10 for reason in host_side.values()), "give the reason"


@pytest.mark.parametrize(("package", "name"), CASES, ids=[name for _, name in CASES])
def test_public_function_lowers_for_every_platform(package, name, monkeypatch):
    function, arguments = declarations(PROJECTS[package])[0][name]()
    # On leaves: export rebuilds its arguments around placeholders, which the run-time check of a dataclass refuses.
    # What is exported for CPUs must run where numba is not: a user asks for that by GYRI_HOST_KERNELS=0.
    monkeypatch.setattr(host, "available", lambda: False)
    jax.clear_caches()
    leaves, structure = jax.tree.flatten(arguments)
    on_leaves = jax.jit(lambda *leaves: function(*structure.unflatten(leaves)))
    for platform in ("cpu", "cuda", "tpu"):
        exported = jax.export.export(on_leaves, platforms=[platform])(*leaves)
        assert exported.platforms == (platform,)
