"""Memory of TensorRT plans on a faked GPU: one arena, contexts, and what is left of a generation."""

from collections.abc import Callable

import numpy as np
import pytest

from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from tests.helpers.gpu.fake_tensorrt import Machine, needs
from tests.helpers.gpu.host_generations import ADACACHE
from tests.helpers.model.fake_model import BLOCKS, SIZE, captions, request


def sizes(prompts: int = 2) -> dict[str, int]:
    frames, height, width = SIZE
    tokens = {"patch_frames": frames, "tokens": height * width, "text": 4, "calls": 1, "pairs": frames - 1}
    return {"samples": prompts, "batch": 2 * prompts, "frames": frames, "height": height, "width": width, **tokens}


def test_one_arena_as_large_as_the_largest_need(machine: Callable[..., Machine]) -> None:
    made = machine()
    names = [graph.name for graph in made.bundle.manifest.graphs()]
    largest = max(needs(made.bundle, sizes(), names).values())
    calls = made.pipeline.calls(request(steps=6, policy=FixedInterval(every=2)))
    for _ in range(4):
        next(calls)
    assert len(made.module.contexts) > 2 * len(BLOCKS)
    assert [len(block) for block in made.cuda.blocks.values() if len(block) >= largest] == [largest]
    assert made.cuda.device_nbytes() < 2 * largest


def test_a_later_context_may_need_more(machine: Callable[..., Machine]) -> None:
    """A graph that was recorded before keeps its memory; memory is freed with its users."""
    made = machine()
    small = made.pipeline.calls(request(steps=8, prompts_count=1, seed=1))
    for _ in range(4):
        next(small)
    before = made.cuda.device_nbytes()
    large = made.pipeline.calls(request(steps=8, seed=2))
    for _ in range(4):
        next(large)
        next(small)
    large.close()
    del large
    made.pipeline.backend.device.synchronize()
    assert made.cuda.device_nbytes() == before
    assert len(list(small)) == 0


@pytest.mark.parametrize("after", [None, 0, 1, 2, 5])
def test_nothing_is_left_of_a_generation(machine: Callable[..., Machine], after: int | None) -> None:
    """Finished, or abandoned with work in the queue."""
    made = machine()
    if after is None:
        made.pipeline.generate(request(policy=ADACACHE))
    else:
        calls = made.pipeline.calls(request(policy=ADACACHE))
        for _ in range(after):
            next(calls)
        del calls
    made.pipeline.backend.device.synchronize()
    assert made.cuda.device_nbytes() == 0
    assert made.cuda.graphs == []
    assert len(made.module.contexts) == 0


def test_plans_are_opened_once_and_equal_ones_shared(machine: Callable[..., Machine]) -> None:
    made = machine()
    made.pipeline.generate(request())
    files = {entry.path for entry in next(iter(made.bundle.manifest.plans.values())).plans}
    assert len(made.module.opened) == len(files)
    add = made.bundle.manifest.arithmetic["add"]
    made.pipeline.backend.load(add)
    assert len(made.module.opened) == len(files)


def test_an_engine_that_nobody_holds_is_let_go(machine: Callable[..., Machine]) -> None:
    """The text encoder is loaded for each use."""
    made = machine()
    backend = made.pipeline.backend
    before = len(made.module.engines)
    graph = made.bundle.manifest.stages[0].graph
    made.pipeline.__dict__.clear()
    backend.device.synchronize()
    assert len(made.module.engines) == 0 < before
    tensors = {
        spec.name: backend.device.empty(spec.shape(sizes()), np.dtype(np.float32))
        for spec in (*graph.inputs, *graph.outputs)
    }
    values = captions(4).embeddings
    tensors["captions"].write(values)
    backend.load(graph).bind(tensors)()
    np.testing.assert_array_equal(tensors["text"].read(), values / 2)
    backend.device.synchronize()
    assert len(made.module.engines) == 0
