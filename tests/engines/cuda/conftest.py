"""A faked CUDA runtime that must not see a fault."""

from collections.abc import Iterator

import pytest

from tests.helpers.gpu.fake_cuda import FakeCuda


@pytest.fixture
def api() -> Iterator[FakeCuda]:
    api = FakeCuda()
    yield api
    assert api.faults == []
