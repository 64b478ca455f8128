"""Experts that take turns on a faked GPU: what is destroyed when, and what is ever on the GPU at once."""

import gc
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.files import Bundle
from adacache_engines.errors import BundleError
from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.measured.fbcache import FBCache
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from tests.helpers.gpu.fake_tensorrt import Machine, Module, write_plans
from tests.helpers.model.experts import LOW, STAGES, functions_of_experts, two_experts
from tests.helpers.model.fake_model import BLOCKS, fake_pipeline, request, write_bundle

STEPS, FIRST_OF_LOW = 8, 5
POLICIES = {
    "interval": {"policy": FixedInterval(every=3)},
    "block": {"policy": FixedInterval(every=2), "granularity": "block"},
    "adacache": {"policy": AdaCache(codebook=[(0.5, 3), (1.0, 2)], probe=("temporal.0.attn",))},
    "fbcache": {"policy": FBCache(threshold=0.5)},
}


def on_the_gpu(module: Module) -> set[bool]:
    """Return of which experts there are engines: False = of the first one, True = of the second."""
    names = {engine.plan["function"] for engine in module.engines}
    return {name.startswith(LOW) for name in names if name in STAGES}


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    return write_plans(write_bundle(folder, **two_experts()))


@pytest.fixture
def offloading(machine: Callable[..., Machine], bundle: Bundle) -> Callable[..., Machine]:
    """Return a function that makes a machine with one expert at a time, which looks at the GPU at every load."""

    def make(graphs: bool = True) -> Machine:
        made = machine(graphs, bundle=bundle, functions=functions_of_experts(), expert_offload=True)
        load = made.pipeline.backend.load

        def watched(graph: Any) -> Any:
            there = on_the_gpu(made.module)
            assert there <= {graph.name.startswith(LOW)}, "the other expert's engines are still there"
            return load(graph)

        made.pipeline.backend.load = watched
        return made

    return make


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
@pytest.mark.parametrize("case", POLICIES)
def test_videos_are_equal_and_nothing_is_destroyed_too_early(
    offloading: Callable[..., Machine], tmp_path: Path, case: str, graphs: bool
) -> None:
    asked = request(steps=STEPS, **POLICIES[case])
    host, _ = fake_pipeline(tmp_path / "host", functions_of_experts(), **two_experts())
    made = offloading(graphs)
    for switches in ([FIRST_OF_LOW], [1, FIRST_OF_LOW]):
        result = made.pipeline.generate(asked)
        np.testing.assert_array_equal(result.latents, host.generate(asked).latents)
        assert list(result.trace.switches()) == switches
        assert on_the_gpu(made.module) == {True}
    assert (made.cuda.launches > 0) == graphs


@pytest.mark.parametrize("case", POLICIES)
def test_a_run_takes_what_was_planned(offloading: Callable[..., Machine], case: str) -> None:
    """As much memory at most with either expert, and as many contexts."""
    made = offloading()
    device = made.pipeline.backend.device
    asked = request(steps=STEPS, **POLICIES[case])
    prepared = made.pipeline.prepare(asked)
    device.synchronize()
    assert made.cuda.blocks == {}
    living = set()
    for _ in prepared.denoise():
        device.synchronize()
        living.add(len(made.module.contexts))
    assert made.cuda.peak_nbytes == prepared.memory.run
    assert max(living) == prepared.memory.contexts


def test_weights_are_estimated_with_and_without(
    offloading: Callable[..., Machine], machine: Callable[..., Machine], bundle: Bundle
) -> None:
    asked = request(steps=STEPS)
    one = offloading().pipeline.prepare(asked).memory
    both = machine(bundle=bundle, functions=functions_of_experts()).pipeline.prepare(asked).memory
    files = {entry.graph: entry.nbytes for entry in next(iter(bundle.manifest.plans.values())).plans}
    low = sum(nbytes for name, nbytes in files.items() if name in STAGES and name.startswith(LOW))
    high = sum(nbytes for name, nbytes in files.items() if name in STAGES and not name.startswith(LOW))
    assert both.weights == both.weights_without_offload == one.weights_without_offload == sum(files.values())
    assert one.weights == one.weights_with_offload == both.weights_with_offload
    assert one.weights == both.weights - min(low, high)
    assert (one.run, one.arena) == (both.run, both.arena)
    assert one.contexts < both.contexts


def test_free_memory_is_counted_with_the_largest_expert(offloading: Callable[..., Machine]) -> None:
    """Whichever is loaded: a check before a generation does not count what the other expert will take."""
    made = offloading()
    device, pipeline = made.pipeline.backend.device, made.pipeline
    manifest = made.bundle.manifest
    nbytes = [
        pipeline.backend.weights_nbytes([stage.graph for stage in manifest.stages if stage.expert == expert])
        for expert in range(2)
    ]
    assert pipeline.free_nbytes() == device.free_nbytes() - (max(nbytes) - nbytes[0])
    pipeline.generate(request(steps=STEPS))
    assert pipeline.free_nbytes() == device.free_nbytes() - (max(nbytes) - nbytes[1])


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
def test_generations_in_turn(offloading: Callable[..., Machine], tmp_path: Path, graphs: bool) -> None:
    """Each switch drops what other generations have bound and recorded, while their work is under way."""
    host, _ = fake_pipeline(tmp_path / "host", functions_of_experts(), **two_experts())
    made = offloading(graphs)
    requests = [request(steps=STEPS, seed=seed, **POLICIES["interval"]) for seed in range(2)]
    first, second = (made.pipeline.prepare(asked).denoise() for asked in requests)
    for _ in range(6):
        next(first)
    for events, asked in ((second, requests[1]), (first, requests[0])):
        *_, denoised = events
        np.testing.assert_array_equal(denoised.latents, host.generate(asked).latents)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 7, 40])
def test_finalisers_run_inside_any_call(offloading: Callable[..., Machine], tmp_path: Path, every: int) -> None:
    """Abandoned generations may be collected in the middle of a switch."""
    host, _ = fake_pipeline(tmp_path / "host", functions_of_experts(), **two_experts())
    made = offloading()
    asked = request(steps=STEPS, **POLICIES["block"])
    abandoned: list[Any] = []
    for number in range(4):
        calls = made.pipeline.calls(request(steps=STEPS, policy=FixedInterval(every=2), seed=number))
        for _ in range(2 * number):
            next(calls)
        abandoned.append(calls)
    del calls
    counter = itertools.count(1)

    def interrupt() -> None:
        if abandoned and next(counter) % every == 0:
            abandoned.pop()
            gc.collect()

    made.module.interrupt = interrupt
    result = made.pipeline.generate(asked)
    made.module.interrupt = None
    np.testing.assert_array_equal(result.latents, host.generate(asked).latents)


def test_a_plan_that_was_changed(offloading: Callable[..., Machine], tmp_path: Path, bundle: Bundle) -> None:
    """The generation ends with one message, no engine of either expert stays, and the next one is made."""
    made = offloading()
    asked = request(steps=STEPS)
    host, _ = fake_pipeline(tmp_path / "host", functions_of_experts(), **two_experts())
    plan = next(bundle.folder.rglob(f"{LOW}{BLOCKS[2]}.plan"))
    content = plan.read_bytes()
    plan.write_bytes(b"nothing")
    with pytest.raises(BundleError, match=rf"{LOW}{BLOCKS[2]}\.plan has 7 bytes instead of"):
        made.pipeline.generate(asked)
    made.pipeline.backend.device.synchronize()
    assert on_the_gpu(made.module) == set()
    assert made.cuda.device_nbytes() == 0
    plan.write_bytes(content)
    np.testing.assert_array_equal(made.pipeline.generate(asked).latents, host.generate(asked).latents)
