"""Fixtures and rules for every test of the repository; a package's own tests do without this file."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where JAX has no accelerator."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import jax  # only now: packages without JAX are tested with this file as well

    if jax.default_backend() == "cpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no accelerator"))
