"""The package's front: what it exports, and what importing it costs."""

import re
import subprocess
import sys
from pathlib import Path

import gyri.numerics


def run(code: str, cwd: Path | None = None) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True, cwd=cwd
    ).stdout


def test_the_front_exports_what_it_lists():
    assert all(getattr(gyri.numerics, name) is not None for name in gyri.numerics.__all__)
    assert dir(gyri.numerics) == sorted(gyri.numerics.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", gyri.numerics.__version__)
    assert not hasattr(gyri.numerics, "nothing")


def test_importing_is_silent_touches_no_device_and_loads_nothing_heavy():
    out = run(
        "import sys, gyri.numerics\n"
        "from jax._src import xla_bridge\n"
        "heavy = {'optax', 'tqdm', 'scipy.fft', 'scipy.signal', 'matplotlib', 'mne', 'numpy.testing'}\n"
        "print(sorted(heavy & set(sys.modules)), xla_bridge._backends)"
    )
    assert out == "[] {}\n"


def test_the_readmes_example_runs(tmp_path):
    readme = Path(__file__).parents[1] / "README.md"
    (code,) = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    assert run(code, tmp_path) == "[ 40  90 150]\n"
