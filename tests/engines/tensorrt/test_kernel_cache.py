"""The runtime cache of TensorRT-RTX: kernels are compiled once, and a cache that cannot be used is none."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from adacache_engines.bundle.files import Bundle
from tests.helpers.gpu.fake_tensorrt import Machine, write_plans
from tests.helpers.gpu.host_generations import ADACACHE, same
from tests.helpers.model.fake_model import request, write_bundle


def cache_of(bundle: Bundle) -> Path:
    return bundle.folder / "engines/tensorrt-rtx-1.7/runtime.cache"


def test_kernels_are_compiled_once(machine: Callable[..., Machine]) -> None:
    first = machine()
    result = first.pipeline.generate(request(policy=ADACACHE))
    assert first.module.compiled
    first.pipeline.backend.close()
    assert [path.name for path in cache_of(first.bundle).parent.iterdir() if path.suffix != ".plan"] == [
        "runtime.cache"
    ]
    written = cache_of(first.bundle).stat().st_mtime_ns
    second = machine(bundle=first.bundle)
    same(second.pipeline.generate(request(policy=ADACACHE)), result)
    assert second.module.compiled == []
    second.pipeline.backend.close()
    assert cache_of(first.bundle).stat().st_mtime_ns == written


def test_the_cache_is_kept_by_who_forgets_to_close(machine: Callable[..., Machine]) -> None:
    made = machine()
    made.pipeline.generate(request())
    bundle = made.bundle
    del made
    assert cache_of(bundle).is_file()


def test_a_cache_of_another_version_is_not_used(
    machine: Callable[..., Machine], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = write_plans(write_bundle(folder))
    cache_of(bundle).write_bytes(b"kernels of 1.6\n")
    with caplog.at_level(logging.WARNING):
        made = machine(bundle=bundle)
    assert "runtime.cache is damaged or of another version" in caplog.text
    made.pipeline.generate(request())
    made.pipeline.backend.close()
    assert cache_of(bundle).read_bytes().startswith(b"kernels of 1.7\n")


def test_a_place_that_cannot_be_used_is_a_warning(
    machine: Callable[..., Machine], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = write_plans(write_bundle(folder))
    cache_of(bundle).mkdir()
    with caplog.at_level(logging.WARNING):
        made = machine(bundle=bundle)
        assert "cannot be read" in caplog.text
        made.pipeline.generate(request())
        made.pipeline.backend.close()
    assert "cannot be kept" in caplog.text
    assert [path.name for path in cache_of(bundle).parent.glob(".*")] == []
