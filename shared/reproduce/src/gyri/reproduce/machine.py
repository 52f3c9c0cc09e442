"""The machine and the versions behind a number. No host name, no user name and no path leaves this file."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    """Describe the machine that runs this process.

    Returns
    -------
    dict
        ``cpu`` (model), ``cores`` (that this process may use), ``memory_gib`` (None where unknown) and ``os``.

    Examples
    --------
    >>> sorted(describe_machine())
    ['cores', 'cpu', 'memory_gib', 'os']
    """
    from joblib import cpu_count

    return {
        "cpu": _cpu_model(),
        "cores": cpu_count(),
        "memory_gib": _memory_gib(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def find_versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Versions of Python, NumPy, JAX, all installed gyri packages, and `packages`.

    Parameters
    ----------
    packages : iterable of str
        Names of further distributions; those that are not installed are left out.

    Returns
    -------
    dict of str to str
        By name.

    Examples
    --------
    >>> versions = find_versions(["joblib"])
    >>> {"python", "numpy", "gyri-reproduce", "joblib"} <= set(versions)
    True
    """
    versions = {"python": platform.python_version()}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if name.startswith("gyri-") or name in {"numpy", "scipy", "jax", "jaxlib", *packages}:
            versions.setdefault(name, distribution.version)  # the first on sys.path is the one that imports
    return dict(sorted(versions.items()))


def describe_jax() -> dict[str, Any] | None:
    """Describe JAX's backend and devices; None if this process has not imported JAX: the question does not."""
    jax = sys.modules.get("jax")
    if jax is None:
        return None
    return {"backend": jax.default_backend(), "devices": [device.device_kind for device in jax.devices()]}


def anonymous(text: str) -> str:
    """Cut this machine's folders and name from a text, such as a traceback.

    Examples
    --------
    >>> anonymous(f"File {os.getcwd()}{os.sep}figures.py")
    'File figures.py'
    """
    folders = {*sys.path, sys.prefix, sys.base_prefix, os.getcwd(), str(Path.home()), tempfile.gettempdir()}
    for folder in sorted(folders, key=len, reverse=True):  # the longest first: a folder may lie in another
        if len(folder) > 1:
            text = text.replace(folder.rstrip(os.sep) + os.sep, "")
    return re.sub(rf"\b{re.escape(platform.node())}\b", "host", text) if platform.node() else text


def _cpu_model() -> str:
    """Name the CPU; Python's own answer is only the architecture on Linux and macOS."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    return platform.processor() or platform.machine() or "unknown"


def _memory_gib() -> float | None:
    """Physical memory; Windows has no sysconf."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
