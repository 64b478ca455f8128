"""TensorRT plans as engines on a faked GPU: tensors, profiles, runs that fail, and the memory of all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.errors import EngineError
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from tests.helpers.gpu.fake_tensorrt import WIDE, Machine, needs, write_plans
from tests.helpers.gpu.host_generations import ADACACHE, expected, same
from tests.helpers.model.fake_model import BLOCKS, SIZE, captions, request, write_bundle


def test_an_input_that_carries_no_value_may_be_missing(folder: Path, machine: Callable[..., Machine]) -> None:
    """``final`` takes the latents for their shape alone."""
    bundle = write_bundle(folder)
    graph = next(stage.graph for stage in bundle.manifest.stages if stage.graph.name == "embed")
    short = graph.model_dump(mode="json")
    short["inputs"] = [spec for spec in short["inputs"] if spec["name"] not in ("fps", "height", "width")]
    made = machine(bundle=write_plans(bundle, embed={"graph": short}))
    made.pipeline.generate(request())


def test_sizes_outside_the_profiles_are_named(machine: Callable[..., Machine]) -> None:
    narrow = {axis: (1, 1, 2) if axis == "patch_frames" else ranges for axis, ranges in WIDE["any"].items()}
    wide = {**WIDE["any"], "tokens": (20, 30, 40)}
    made = machine(profiles={"short": narrow, "large": wide})
    with pytest.raises(EngineError) as caught:
        made.pipeline.generate(request())
    message = str(caught.value)
    assert "profile short: patch_frames 4, allowed 1 to 2" in message
    assert "profile large: tokens 10, allowed 20 to 40" in message
    assert "--backend tensorrt-rtx --profile" in message


def test_the_first_profile_that_covers_is_taken(machine: Callable[..., Machine], tmp_path: Path) -> None:
    narrow = {axis: (1, 1, 2) if axis == "patch_frames" else ranges for axis, ranges in WIDE["any"].items()}
    made = machine(profiles={"short": narrow, "any": WIDE["any"]})
    for frames in (2, 4):
        options = {"frames": frames, "policy": ADACACHE}
        same(made.pipeline.generate(request(**options)), expected(tmp_path / str(frames), **options))


@pytest.mark.parametrize("graphs", [True, False])
def test_a_run_that_fails_is_named_with_the_log(machine: Callable[..., Machine], graphs: bool) -> None:
    made = machine(graphs)
    made.module.refuse = "temporal.00"
    with pytest.raises(EngineError, match=r"engine temporal.00 failed on hidden \(4, 4, 10, 3\).*or refused"):
        made.pipeline.generate(request())
    made.module.refuse = None
    calls = made.pipeline.calls(request())
    for _ in range(2):
        next(calls)
    made.module.refuse = "temporal.00"
    if graphs:
        next(calls)  # was recorded before
    else:
        with pytest.raises(EngineError, match=r"engine temporal.00 failed"):
            list(calls)


def test_a_capture_that_fails_names_the_way_out(machine: Callable[..., Machine]) -> None:
    made = machine()

    class Once(FixedInterval):
        def decide(self, state: Any, context: Any) -> Any:
            made.module.refuse = "temporal.01" if context.call == 2 else None
            return super().decide(state, context)

    calls = made.pipeline.calls(request(policy=Once(every=1)))
    with pytest.raises(
        EngineError, match=r"a call's .* cannot be recorded .*engine temporal.01 failed.*--no-cuda-graphs"
    ):
        list(calls)
    made.module.refuse = None
    made.pipeline.generate(request())


def test_memory_that_another_process_takes_meanwhile(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = machine()
    monkeypatch.setattr(made.cuda, "cudaMemGetInfo", lambda: (0, 1 << 30, 1 << 30))
    made.cuda.capacity = made.cuda.device_nbytes() + 6000
    with pytest.raises(EngineError, match=r"allocating .* bytes of device memory"):
        made.pipeline.generate(request())


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
