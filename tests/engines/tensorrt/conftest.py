"""A pipeline on a faked GPU with a faked TensorRT, none of whose faults a test may leave; and plans that are built."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.bundle.manifest import Library
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.tensorrt.backend import TrtBackend
from adacache_engines.tensorrt.build import BuildOptions
from adacache_engines.tensorrt.library import InstalledLibrary, open_library
from adacache_engines.tensorrt.plan_builder import build_plans
from adacache_runtime.pipeline import Pipeline
from tests.helpers.gpu.built_plans import profiles
from tests.helpers.gpu.fake_cuda import FakeCuda
from tests.helpers.gpu.fake_tensorrt import Machine, Module, library, write_plans
from tests.helpers.model.fake_model import write_bundle

Once = Callable[[str, Callable[[Path], object]], Path]


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
        offload = options.pop("expert_offload", False)
        bundle = options.pop("bundle", None) or write_plans(write_bundle(folder), library=name, **options)
        module = Module(cuda, functions=functions_)
        device = CudaDevice(api=cuda, graphs=graphs)
        backend = TrtBackend(bundle, library(module, name), device, weight_budget=budget)
        return Machine(Pipeline(bundle, backend, expert_offload=offload), module, cuda, bundle)

    return make


@pytest.fixture(scope="session")
def rtx() -> InstalledLibrary:
    return open_library("tensorrt-rtx")


@pytest.fixture(scope="session")
def compiled(once: Once, exported: Callable[..., Path], rtx: InstalledLibrary) -> Path:
    """The reference model in fp16 with plans. Tests must not change it."""

    def build(folder: Path) -> None:
        part = folder.with_suffix(".part")
        shutil.copytree(exported("fp16"), part)
        build_plans(part, rtx, profiles(part), BuildOptions(), workers=1)
        part.rename(folder)

    return once("bundle-A-fp16-plans", build)


@pytest.fixture
def bundle(compiled: Path, tmp_path: Path) -> Path:
    """The reference model in fp16 with plans, for one test alone."""
    return Path(shutil.copytree(compiled, tmp_path / "bundle"))


@pytest.fixture
def bare(exported: Callable[..., Path], tmp_path: Path) -> Path:
    """The reference model in fp16 without plans, for one test alone."""
    return Path(shutil.copytree(exported("fp16"), tmp_path / "bare"))
