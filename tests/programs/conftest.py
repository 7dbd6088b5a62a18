"""Fixtures of the tests of programs, and their mark."""

from pathlib import Path

import jax
import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def quick_compilation(compiled_once):
    """Programs this small take longer to optimise than to run."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.program)
