"""TensorRT plans as engines: tensors, profiles, and runs that fail."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.errors import EngineError
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from tests.helpers.gpu.fake_tensorrt import WIDE, Machine, write_plans
from tests.helpers.gpu.host_generations import ADACACHE, expected, same
from tests.helpers.model.fake_model import request, write_bundle


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
