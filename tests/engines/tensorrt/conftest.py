"""A pipeline on a faked GPU with a faked TensorRT, none of whose faults a test may leave."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.bundle.manifest import Library
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.tensorrt.backend import TrtBackend
from adacache_runtime.pipeline import Pipeline
from tests.helpers.gpu.fake_cuda import FakeCuda
from tests.helpers.gpu.fake_tensorrt import Machine, Module, library, write_plans
from tests.helpers.model.fake_model import write_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    api = FakeCuda(capacity=1 << 24)
    yield api
    assert api.faults == []


@pytest.fixture
def machine(folder: Path, cuda: FakeCuda) -> Callable[..., Machine]:
    """Return a function that makes a machine on a bundle with plans."""

    def make(graphs: bool = True, name: Library = "tensorrt-rtx", **options: Any) -> Machine:
        functions_, budget = options.pop("functions", None), options.pop("weight_budget", None)
        bundle = options.pop("bundle", None) or write_plans(write_bundle(folder), library=name, **options)
        module = Module(cuda, functions=functions_)
        device = CudaDevice(api=cuda, graphs=graphs)
        backend = TrtBackend(bundle, library(module, name), device, weight_budget=budget)
        return Machine(Pipeline(bundle, backend), module, cuda, bundle)

    return make
