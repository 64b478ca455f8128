"""Every stage and whole generations on a GPU against ONNX Runtime on the CPU, and against themselves.

``tools/gpu_check.py`` runs these. It sets ADACACHE_BUNDLES to a folder with a bundle of one model in each precision
(``fp32``, ``fp16``, ``bf16``); without it the reference model is exported.
"""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.bundle.manifest import Precision
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import AdaCacheError, InputError, MissingDependencyError
from adacache_engines.onnxruntime.backend import OnnxRuntime, OrtBackend
from adacache_engines.tensorrt.backend import RUNTIME_CACHE, TrtBackend
from adacache_engines.tensorrt.library import LIBRARIES, InstalledLibrary, open_library
from adacache_runtime.caching.policy import GRANULARITIES, Granularity
from tests.helpers.gpu import gpu_checks
from tests.helpers.gpu.gpu_checks import Open, RecordingBackend
from tools.gpu.gpu_tests import BUNDLES
from tools.gpu.libraries import unusable
from tools.gpu.machine import exporter_missing, find_gpu
from tools.gpu.model import compiled
from tools.gpu.phases import PRECISIONS

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="session")
def gpu() -> str:
    """Its compute capability."""
    try:
        return find_gpu().capability
    except AdaCacheError as reason:
        pytest.skip(f"needs a GPU: {reason}")


@pytest.fixture(scope="session")
def folder(gpu: str, request: pytest.FixtureRequest) -> Callable[[Precision], Path]:
    """The bundle of a precision. Tests must not change it."""
    assert gpu

    def find(precision: Precision) -> Path:
        if BUNDLES in os.environ:
            return Path(os.environ[BUNDLES]) / precision
        missing = exporter_missing()
        if missing is not None:
            pytest.skip(f"{BUNDLES} names no folder of bundles, and none can be exported: {missing}")
        found: Path = request.getfixturevalue("exported")(precision)
        return found

    return find


@pytest.fixture(scope="session", params=LIBRARIES)
def library(gpu: str, request: pytest.FixtureRequest) -> InstalledLibrary:
    assert gpu
    why = unusable(request.param)
    if why is not None:
        pytest.skip(why)
    return open_library(request.param)


@pytest.fixture(scope="session")
def plans(
    folder: Callable[[Precision], Path], library: InstalledLibrary, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Precision], Bundle]:
    """A bundle with plans for this library and GPU, in a place of its own."""
    made: dict[str, Bundle] = {}

    def make(precision: Precision) -> Bundle:
        if precision not in made:
            copy = tmp_path_factory.mktemp(library.name) / precision
            shutil.copytree(folder(precision), copy, ignore=shutil.ignore_patterns(RUNTIME_CACHE))
            try:
                compiled(copy, library)
            except MissingDependencyError as reason:
                pytest.skip(str(reason))
            made[precision] = open_bundle(copy)
        return made[precision]

    return make


@pytest.fixture
def opened(plans: Callable[[Precision], Bundle], library: InstalledLibrary) -> Open:
    """Opens the plans of a precision."""

    def open_(precision: Precision, graphs: bool = True) -> TrtBackend:
        return TrtBackend(plans(precision), library, graphs=graphs)

    return open_


def on_cpu(folder: Path) -> OrtBackend:
    try:
        return OrtBackend(folder)
    except (MissingDependencyError, InputError) as reason:
        pytest.skip(f"nothing to compare with: {reason}")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_stage_gives_what_the_cpu_gives(
    precision: Precision, opened: Open, plans: Callable[[Precision], Bundle]
) -> None:
    bundle = plans(precision)
    gpu_checks.check_stages(bundle, opened(precision), on_cpu(bundle.folder), precision)


@pytest.mark.parametrize("policy", gpu_checks.POLICIES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_generation_follows_the_cpus(
    precision: Precision, policy: str, opened: Open, plans: Callable[[Precision], Bundle]
) -> None:
    bundle = plans(precision)
    given, wanted = gpu_checks.check_generation(bundle, opened(precision), on_cpu(bundle.folder), precision, policy)
    gpu_checks.check_observations(given, wanted, precision, policy)


@pytest.mark.parametrize("granularity", GRANULARITIES[:-1])  # its bundles have a stage a block
def test_recorded_graphs_change_nothing(
    granularity: Granularity, opened: Open, plans: Callable[[Precision], Bundle]
) -> None:
    gpu_checks.check_recorded_graphs(plans("fp16"), partial(opened, "fp16"), granularity)


def test_sharing_the_arena_changes_nothing(opened: Open, plans: Callable[[Precision], Bundle]) -> None:
    gpu_checks.check_shared_arena(plans("fp16"), partial(opened, "fp16"))


def test_two_generations_in_threads_are_the_same_alone(opened: Open, plans: Callable[[Precision], Bundle]) -> None:
    gpu_checks.check_generations_in_threads(plans("fp16"), opened("fp16"))


def test_the_same_again_is_the_same(opened: Open, plans: Callable[[Precision], Bundle]) -> None:
    gpu_checks.check_repetition(plans("fp16"), opened("fp16"))


def test_the_runtime_cache_is_read_again(
    library: InstalledLibrary, opened: Open, plans: Callable[[Precision], Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    if library.name != "tensorrt-rtx":
        pytest.skip("TensorRT compiles all kernels when it builds; only TensorRT-RTX keeps a cache")
    gpu_checks.check_runtime_cache(plans("fp16"), partial(opened, "fp16"), caplog)


def on_cuda(bundle: Bundle) -> RecordingBackend:
    try:
        return RecordingBackend(bundle.folder, OnnxRuntime(provider="cuda"))
    except (MissingDependencyError, InputError) as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_onnxruntime_on_cuda_gives_what_the_cpu_gives(
    precision: Precision, folder: Callable[[Precision], Path]
) -> None:
    bundle = open_bundle(folder(precision))
    tested = on_cuda(bundle)
    assert isinstance(tested.device, CudaDevice)
    reference = on_cpu(bundle.folder)
    gpu_checks.check_stages(bundle, tested, reference, precision, texts=(0,))
    gpu_checks.check_generation(bundle, tested, reference, precision, "adacache")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_onnxruntime_on_cuda_leaves_the_cpu_nothing_but_shapes(
    precision: Precision, folder: Callable[[Precision], Path]
) -> None:
    bundle = open_bundle(folder(precision))
    gpu_checks.check_provider(bundle, on_cuda(bundle))


def test_onnxruntime_on_cuda_takes_no_more_memory_each_time(folder: Callable[[Precision], Path]) -> None:
    bundle = open_bundle(folder("fp16"))
    gpu_checks.check_memory_is_steady(bundle, on_cuda(bundle))
    gpu_checks.check_repetition(bundle, on_cuda(bundle))


def test_onnxruntime_on_cuda_in_threads(folder: Callable[[Precision], Path]) -> None:
    bundle = open_bundle(folder("fp16"))
    gpu_checks.check_generations_in_threads(bundle, on_cuda(bundle))
