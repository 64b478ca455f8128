"""Mark the tests of this folder as attacks, and count what they try."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.helpers.serving.bench_fixtures import bench, benches, model

__all__ = ["bench", "benches", "model"]

Input = TypeVar("Input")
HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before ``-m`` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and only these: the hook is given all tests of the run."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.attack)
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def tries(record_property: Callable[[str, object], None]) -> Iterator[Callable[[Iterable[Input]], Iterator[Input]]]:
    """Count the inputs that a test goes through, for the table of attacks.

    ``for picture in tries(pictures)`` counts each picture before the test sees it, so that the one that breaks the
    test is counted too.
    """
    tried = 0

    def count(inputs: Iterable[Input]) -> Iterator[Input]:
        nonlocal tried
        for each in inputs:
            tried += 1
            yield each

    yield count
    record_property("tries", tried)
