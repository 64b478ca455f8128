"""Checks of a backend on a GPU, as plain functions: test_gpu.py runs them on the GPU, test_gpu_on_fakes.py on fakes.

Each raises an AssertionError where the backend is wrong. Tolerances are those of :mod:`tools.gpu.agreement`.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Precision
from adacache_engines.contract.engine import Backend
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_engines.tensorrt.arena import Arena
from adacache_engines.tensorrt.backend import RUNTIME_CACHE, TrtBackend
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policy import Granularity
from adacache_runtime.events import Denoised
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from tests.helpers.waiting import HANG_SECONDS
from tools.gpu.agreement import (
    POLICIES,
    STAGE_BOUNDS,
    STEPS,
    TRAJECTORY_BOUNDS,
    error,
    generations,
    graph_sizes,
    stage_outputs,
)
from tools.gpu.requests import small_request
from tools.speed.calls import EVERY_THIRD

DISTANCE_BOUNDS = {"fp32": 2e-3, "fp16": 2e-2, "bf16": 1.5e-1}  # relative, of the distances that a policy decides by
# operators that compute sizes of tensors, on the host, where the provider of a GPU wants them
SHAPE_ARITHMETIC = frozenset(
    ("Add", "Cast", "Concat", "Div", "Gather", "Mod", "Mul", "Reshape", "Round", "Slice", "Sqrt", "Squeeze", "Sub")
)

Open = Callable[..., TrtBackend]  # opens the plans that are tested; graphs=False runs them without CUDA graphs


# against a reference backend


def check_stages(
    bundle: Bundle, tested: Backend, reference: Backend, precision: Precision, texts: Sequence[int] = (0, 3)
) -> None:
    """Check that each graph gives what the reference gives, with texts of these lengths (0: the longest)."""
    errors = {}
    for graph in bundle.manifest.graphs():
        for text in texts:
            sizes = graph_sizes(bundle, graph, text)
            wanted = stage_outputs(reference, graph, sizes)
            errors[graph.name, text] = error(stage_outputs(tested, graph, sizes), wanted)
    assert {key: value for key, value in errors.items() if not value <= STAGE_BOUNDS[precision]} == {}


def check_generation(
    bundle: Bundle, tested: Backend, reference: Backend, precision: Precision, policy: str
) -> tuple[Denoised, Denoised]:
    """Check that a generation has the reference's schedule and latents; returns both generations."""
    given, wanted = generations(bundle, tested, reference, policy)
    assert given.trace.computed() == wanted.trace.computed()
    assert error({"latents": given.latents}, {"latents": wanted.latents}) <= TRAJECTORY_BOUNDS[precision]
    return given, wanted


def check_observations(given: Denoised, wanted: Denoised, precision: Precision, policy: str) -> None:
    """Check that two generations began with the same noise, and that the policy saw the same distances."""
    assert given.calls is not None
    assert wanted.calls is not None
    assert np.array_equal(given.calls[0], wanted.calls[0]), "the same noise"
    measured = [
        (mine.observation.get("distance"), other.observation.get("distance"))
        for mine, other in zip(given.trace.calls, wanted.trace.calls, strict=True)
        if other.observation.get("distance") is not None
    ]
    assert bool(measured) == (policy == "adacache")
    for mine, other in measured:
        assert mine == pytest.approx(other, rel=DISTANCE_BOUNDS[precision])


# ONNX Runtime's CUDA provider


class RecordingBackend(OrtBackend):
    """A backend whose sessions know which provider took which node."""

    def _options(self) -> Any:
        options = super()._options()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options


def check_provider(bundle: Bundle, backend: RecordingBackend) -> None:
    """Check that the CPU is left with nothing but the arithmetic of shapes."""
    left = {}
    for graph in bundle.manifest.graphs():
        parts = backend.session(graph).get_provider_graph_assignment_info()
        on_cpu = {node.op_type for part in parts if part.ep_name != backend.provider for node in part.get_nodes()}
        left[graph.name] = on_cpu - SHAPE_ARITHMETIC
    assert {name: operators for name, operators in left.items() if operators} == {}


def check_memory_is_steady(bundle: Bundle, backend: Backend) -> None:
    """Check that a generation takes no device memory that the one before has not taken."""
    pipeline = Pipeline(bundle, backend)
    free = []
    for seed in range(3):
        pipeline.generate(small_request(bundle, STEPS, EVERY_THIRD, seed))
        free.append(backend.device.free_nbytes())
    assert free[1] == free[2]


# against itself: not a bit may change


def check_recorded_graphs(bundle: Bundle, open_plans: Open, granularity: Granularity) -> None:
    """Check that a generation is the same with CUDA graphs and without them."""
    for policy in (EVERY_THIRD, FixedInterval(every=2)):
        request = replace(small_request(bundle, 2 * STEPS, policy), granularity=granularity)
        recorded, plain = (Pipeline(bundle, open_plans(graphs=graphs)).generate(request) for graphs in (True, False))
        assert same(recorded, plain)


def check_shared_arena(bundle: Bundle, open_plans: Open) -> None:
    """Check that a generation is the same whether contexts share their activation memory or each has its own."""
    request = small_request(bundle, STEPS, EVERY_THIRD)
    private = open_plans()
    private._arena = PrivateArena(private.device)
    assert same(Pipeline(bundle, open_plans()).generate(request), Pipeline(bundle, private).generate(request))


def check_generations_in_threads(bundle: Bundle, backend: Backend) -> None:
    """Check that two generations in two threads are the same as one after the other."""
    pipeline = Pipeline(bundle, backend)
    requests = [small_request(bundle, 2 * STEPS, policy, seed) for seed, policy in enumerate(POLICIES.values())]
    alone = [pipeline.generate(request) for request in requests]
    for _ in range(3):
        assert all(map(same, in_threads(pipeline, requests), alone))


def check_repetition(bundle: Bundle, backend: Backend) -> None:
    """Check that a generation is the same again after another one has used the memory."""
    pipeline = Pipeline(bundle, backend)
    request = small_request(bundle, STEPS, EVERY_THIRD)
    first = pipeline.generate(request)
    pipeline.generate(small_request(bundle, STEPS, EVERY_THIRD, seed=1))
    assert same(pipeline.generate(request), first)


def check_runtime_cache(bundle: Bundle, open_plans: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Check that compiled kernels are kept and read again, and that a broken file of them is noticed and not used."""
    request = small_request(bundle, STEPS, EVERY_THIRD)

    def run() -> tuple[Path, Denoised]:
        backend = open_plans()
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


# what the checks are made of


class PrivateArena(Arena):
    """An arena that gives every context memory of its own."""

    def memory(self) -> Any:
        return self._device.allocate(max(claim.nbytes for claim in self._claims))


def same(one: Denoised, other: Denoised) -> bool:
    """Whether two generations are alike to the bit: latents before every call, schedule, observations."""
    assert one.calls is not None
    assert other.calls is not None
    return (
        np.array_equal(one.latents, other.latents)
        and np.array_equal(one.calls, other.calls)
        and [call.compute for call in one.trace.calls] == [call.compute for call in other.trace.calls]
        and [call.observation for call in one.trace.calls] == [call.observation for call in other.trace.calls]
    )


def in_threads(pipeline: Pipeline, requests: Sequence[Request]) -> list[Denoised]:
    """Run each request in a thread of its own, all begun together; raises what any of them raised."""
    results: dict[int, Denoised] = {}
    failed: list[BaseException] = []
    start = threading.Barrier(len(requests))

    def work(index: int) -> None:
        try:
            start.wait(HANG_SECONDS)
            results[index] = pipeline.generate(requests[index])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
    if failed:
        raise failed[0]
    return [results[index] for index in range(len(requests))]
