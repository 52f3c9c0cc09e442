import os
import platform
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from gyri.reproduce.machine import anonymous, describe_jax, describe_machine, find_versions


def test_machine_names_no_host_user_or_path():
    text = str(describe_machine())
    assert str(Path.home()) not in text
    assert not re.search(rf"\b{re.escape(platform.node())}\b", text)
    assert "/" not in text.replace("/s", "")


def test_machine_has_cores_and_memory():
    machine = describe_machine()
    assert 1 <= machine["cores"] <= os.cpu_count()
    assert machine["memory_gib"] is None or machine["memory_gib"] > 0.1


def test_versions_are_those_that_import():
    import numpy as np

    versions = find_versions(["joblib", "no-such-distribution"])
    assert versions["numpy"] == np.__version__
    assert versions["python"] == platform.python_version()
    assert "joblib" in versions
    assert "no-such-distribution" not in versions


def test_asking_for_jax_does_not_import_it():
    code = (
        "import sys\n"
        "from gyri.reproduce.machine import describe_jax\n"
        "assert describe_jax() is None\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_jax_backend_is_told():
    jax = pytest.importorskip("jax")
    assert describe_jax() == {"backend": jax.default_backend(), "devices": [d.device_kind for d in jax.devices()]}


def test_traceback_loses_the_folders():
    try:
        subprocess.run(["no such program"], check=True)
    except FileNotFoundError:
        text = traceback.format_exc()
    assert sys.base_prefix in text
    assert sys.base_prefix not in anonymous(text)
    assert "subprocess.py" in anonymous(text)
