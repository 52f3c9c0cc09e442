"""Fixtures and rules for every test of the repository; a package's own tests do without this file."""

import gc
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

STARTED = time.monotonic()
SECONDS = float(os.environ.get("GYRI_TESTS_SECONDS", "inf"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is left when the time is over that CI has: a verdict on most tests is worth more than none."""
    if time.monotonic() - STARTED > SECONDS:
        pytest.skip(f"GYRI_TESTS_SECONDS={SECONDS:.0f} are over: not run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where JAX has no accelerator."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import jax  # only now: packages without JAX are tested with this file as well

    if jax.default_backend() == "cpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no accelerator"))


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    """Close the figures that a test leaves: the worker shares pyplot, which warns of the twenty-first."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


MOST_MAPS = 20_000  # Linux allows a process some 65 000
TEARDOWNS = itertools.count(1)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Let go of compiled programs now and then: each holds memory maps, and a process that has too many crashes."""
    maps = Path("/proc/self/maps")
    if nextitem is None or "jax" not in sys.modules or not maps.exists():
        return
    if nextitem.path == item.path and next(TEARDOWNS) % 10:  # to count them takes some milliseconds
        return
    with maps.open("rb") as lines:
        n_maps = sum(1 for _ in lines)
    if n_maps > MOST_MAPS:
        sys.modules["jax"].clear_caches()
        gc.collect()
