"""On a GPU: every stage and whole generations against ONNX Runtime on the CPU, and what must not change a bit.

``tools/gpu_check.py`` runs these. It sets ADACACHE_BUNDLES to a folder with a bundle of one model in each precision
(``fp32``, ``fp16``, ``bf16``); without it the reference model is exported. ADACACHE_RTX_TARGET says which target's
plans TensorRT-RTX is to take on purpose, on a GPU that it does not name; ``none`` = it does not run there.
"""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.bundle.manifest import Precision
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import AdaCacheError, InputError, MissingDependencyError
from adacache_engines.onnxruntime.engine import OrtBackend
from adacache_engines.tensorrt.backend import RUNTIME_CACHE, TrtBackend
from adacache_engines.tensorrt.library import LIBRARIES, TensorRT, open_library
from adacache_runtime.caching.policies.adacache import AdaCache
from adacache_runtime.caching.policies.interval import FixedInterval
from adacache_runtime.caching.policies.never import NeverReuse
from adacache_runtime.caching.policy import GRANULARITIES, Granularity
from adacache_runtime.events import Denoised
from adacache_runtime.pipeline import Pipeline
from tools.gpu.machine import exporter_missing, find_gpu
from tools.gpu.model import PRECISIONS, compiled, run_target
from tools.gpu.rig import (
    BUNDLES,
    NO_TARGET,
    RTX_TARGET,
    PrivateArena,
    beside_each_other,
    error,
    graph_sizes,
    same,
    small_request,
    stage_outputs,
)

pytestmark = pytest.mark.gpu

EVERY_THIRD = AdaCache(codebook=((1.0, 3),))  # measures as any codebook does, and always decides the same
POLICIES = {"never": NeverReuse(), "adacache": EVERY_THIRD}
STEPS = 8
# of one stage; export bounds the same stages on a CPU, in float32 ten times closer: a GPU sums in another order
STAGE_BOUNDS = {"fp32": 2e-4, "fp16": 2e-2, "bf16": 1.5e-1}
# of latents after STEPS calls, relative to their rms: roundings of all stages and calls, with guidance's gain
TRAJECTORY_BOUNDS = {"fp32": 5e-3, "fp16": 5e-2, "bf16": 4e-1}
DISTANCE_BOUNDS = {"fp32": 2e-3, "fp16": 2e-2, "bf16": 1.5e-1}  # relative, of what the policy decides by


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
def library(gpu: str, request: pytest.FixtureRequest) -> TensorRT:
    if request.param == "tensorrt-rtx" and os.environ.get(RTX_TARGET) == NO_TARGET:
        pytest.skip(f"tensorrt-rtx was tried and does not run on compute capability {gpu}")
    try:
        return open_library(request.param)
    except MissingDependencyError as reason:
        pytest.skip(str(reason))


Open = Callable[..., TrtBackend]


@pytest.fixture(scope="session")
def plans(
    folder: Callable[[Precision], Path], library: TensorRT, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Precision], Bundle]:
    """A bundle with plans for this library and GPU, in a place of its own."""
    made: dict[str, Bundle] = {}

    def make(precision: Precision) -> Bundle:
        if precision not in made:
            copy = tmp_path_factory.mktemp(library.name) / precision
            shutil.copytree(folder(precision), copy, ignore=shutil.ignore_patterns(RUNTIME_CACHE))
            try:
                compiled(copy, library, taken=os.environ.get(RTX_TARGET))
            except MissingDependencyError as reason:
                pytest.skip(str(reason))
            made[precision] = open_bundle(copy)
        return made[precision]

    return make


@pytest.fixture
def opened(plans: Callable[[Precision], Bundle], library: TensorRT) -> Open:
    """Opens the plans of a precision."""

    def open_(precision: Precision, graphs: bool = True) -> TrtBackend:
        target = run_target(library.name, os.environ.get(RTX_TARGET))
        return TrtBackend(plans(precision), library, graphs=graphs, target=target)

    return open_


def on_cpu(folder: Path) -> OrtBackend:
    try:
        return OrtBackend(folder)
    except (MissingDependencyError, InputError) as reason:
        pytest.skip(f"nothing to compare with: {reason}")


# against the CPU


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_stage_gives_what_the_cpu_gives(
    precision: Precision, opened: Open, plans: Callable[[Precision], Bundle]
) -> None:
    bundle, tested = plans(precision), opened(precision)
    reference = on_cpu(bundle.folder)
    errors = {}
    for graph in bundle.manifest.graphs():
        for text in (0, 3):
            sizes = graph_sizes(bundle, graph, text)
            wanted = stage_outputs(reference, graph, sizes)
            errors[graph.name, text] = error(stage_outputs(tested, graph, sizes), wanted)
    assert {key: value for key, value in errors.items() if not value <= STAGE_BOUNDS[precision]} == {}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_generation_follows_the_cpus(
    precision: Precision, policy: str, opened: Open, plans: Callable[[Precision], Bundle]
) -> None:
    bundle = plans(precision)
    request = small_request(bundle, STEPS, POLICIES[policy])
    given = Pipeline(bundle, opened(precision)).generate(request)
    wanted = Pipeline(bundle, on_cpu(bundle.folder)).generate(request)
    assert given.trace.computed() == wanted.trace.computed()
    assert given.calls is not None
    assert wanted.calls is not None
    assert np.array_equal(given.calls[0], wanted.calls[0]), "the same noise"
    assert error({"latents": given.latents}, {"latents": wanted.latents}) <= TRAJECTORY_BOUNDS[precision]
    measured = [
        (mine.observation.distance, other.observation.distance)
        for mine, other in zip(given.trace.calls, wanted.trace.calls, strict=True)
        if other.observation.distance is not None
    ]
    assert bool(measured) == (policy == "adacache")
    for mine, other in measured:
        assert mine == pytest.approx(other, rel=DISTANCE_BOUNDS[precision])


# what must not change a bit


@pytest.mark.parametrize("granularity", GRANULARITIES[:-1])  # its bundles have a stage a block
def test_recorded_graphs_change_nothing(
    granularity: Granularity, opened: Open, plans: Callable[[Precision], Bundle]
) -> None:
    bundle = plans("fp16")
    for policy in (EVERY_THIRD, FixedInterval(every=2)):
        request = replace(small_request(bundle, 2 * STEPS, policy), granularity=granularity)
        results = [Pipeline(bundle, opened("fp16", graphs)).generate(request) for graphs in (True, False)]
        assert same(*results)


def test_sharing_the_arena_changes_nothing(opened: Open, plans: Callable[[Precision], Bundle]) -> None:
    bundle = plans("fp16")
    request = small_request(bundle, STEPS, EVERY_THIRD)
    private = opened("fp16")
    private._arena = PrivateArena(private.device)
    assert same(Pipeline(bundle, opened("fp16")).generate(request), Pipeline(bundle, private).generate(request))


def test_two_generations_beside_each_other_are_the_same_alone(
    opened: Open, plans: Callable[[Precision], Bundle]
) -> None:
    bundle = plans("fp16")
    pipeline = Pipeline(bundle, opened("fp16"))
    requests = [small_request(bundle, 2 * STEPS, policy, seed) for seed, policy in enumerate(POLICIES.values())]
    alone = [pipeline.generate(request) for request in requests]
    for _ in range(3):
        assert all(map(same, beside_each_other(pipeline, requests), alone))


def test_the_same_again_is_the_same(opened: Open, plans: Callable[[Precision], Bundle]) -> None:
    """Whatever ran before in the same memory."""
    bundle = plans("fp16")
    pipeline = Pipeline(bundle, opened("fp16"))
    request = small_request(bundle, STEPS, EVERY_THIRD)
    first = pipeline.generate(request)
    pipeline.generate(small_request(bundle, STEPS, EVERY_THIRD, seed=1))
    assert same(pipeline.generate(request), first)


# kernels that were compiled here before


def test_the_runtime_cache_is_read_again(
    library: TensorRT, opened: Open, plans: Callable[[Precision], Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    if library.name != "tensorrt-rtx":
        pytest.skip("TensorRT compiles all kernels when it builds; only TensorRT-RTX keeps a cache")
    bundle = plans("fp16")
    request = small_request(bundle, STEPS, EVERY_THIRD)

    def run() -> tuple[Path, Denoised]:
        backend = opened("fp16")
        result = Pipeline(bundle, backend).generate(request)
        backend.close()
        (cache,) = bundle.folder.rglob(RUNTIME_CACHE)
        return cache, result

    cache, first = run()
    content = cache.read_bytes()
    assert len(content) > 0
    with caplog.at_level(logging.WARNING):
        _, again = run()
    assert caplog.records == []
    assert same(again, first)
    cache.write_bytes(content[::-1])
    with caplog.at_level(logging.WARNING):
        _, after = run()
    assert "is not used" in caplog.text
    assert same(after, first)


# ONNX Runtime's CUDA provider


@pytest.mark.parametrize("precision", PRECISIONS)
def test_onnxruntime_on_cuda_gives_what_the_cpu_gives(
    precision: Precision, folder: Callable[[Precision], Path]
) -> None:
    bundle = open_bundle(folder(precision))
    try:
        tested = OrtBackend(bundle.folder, "cuda")
    except (MissingDependencyError, InputError) as reason:
        pytest.skip(str(reason))
    assert isinstance(tested.device, CudaDevice)
    reference = on_cpu(bundle.folder)
    errors = {}
    for graph in bundle.manifest.graphs():
        sizes = graph_sizes(bundle, graph)
        errors[graph.name] = error(stage_outputs(tested, graph, sizes), stage_outputs(reference, graph, sizes))
    assert {name: value for name, value in errors.items() if not value <= STAGE_BOUNDS[precision]} == {}
    request = small_request(bundle, STEPS, EVERY_THIRD)
    given = Pipeline(bundle, tested).generate(request)
    wanted = Pipeline(bundle, reference).generate(request)
    assert given.trace.computed() == wanted.trace.computed()
    assert error({"latents": given.latents}, {"latents": wanted.latents}) <= TRAJECTORY_BOUNDS[precision]
