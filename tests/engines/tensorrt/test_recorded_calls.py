"""Calls as recorded graphs on TensorRT plans: how many there are, what waits, and where numbers begin."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import SamplerDefaults
from adacache_engines.tensorrt.engine import TrtEngine
from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.wrappers import Extrapolate
from adacache_runtime.denoising.latents import Latents
from tests.helpers.gpu.fake_tensorrt import Machine, write_plans
from tests.helpers.gpu.host_generations import ADACACHE
from tests.helpers.model.fake_model import request, write_bundle


def test_nothing_inside_a_step_waits(machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    """From a decision to the first look at its results; the first calls of a path may, since they allocate."""
    made = machine()
    finite = Latents.finite

    class Watching(AdaCache):
        def decide(self, state: Any, context: Any) -> Any:
            made.cuda.stepping = context.call > 4
            return super().decide(state, context)

    def looked_at(latents: Latents) -> bool:
        made.cuda.stepping = False
        return finite(latents)

    monkeypatch.setattr(Latents, "finite", looked_at)
    made.pipeline.generate(request(steps=10, policy=Watching(codebook=[(1.0, 2)])))
    made.cuda.stepping = False


def test_a_cached_call_is_one_graph(machine: Callable[..., Machine]) -> None:
    """The graph leads from the latents to the next ones; beside it only three small arrays are copied to the GPU."""
    made = machine()
    cuda, apart = made.cuda, {"copies": 0, "kernels": 0}
    copy, launch = cuda.cudaMemcpyAsync, cuda.launch

    def copied(*arguments: Any) -> Any:
        apart["copies"] += not cuda.capturing()
        return copy(*arguments)

    def launched(*arguments: Any, **named: Any) -> None:
        apart["kernels"] += not cuda.capturing()
        launch(*arguments, **named)

    cuda.cudaMemcpyAsync, cuda.launch = copied, launched
    records = made.pipeline.calls(request(steps=12, policy=FixedInterval(every=3)))
    counts = [(record.computed, cuda.launches, apart["copies"], apart["kernels"]) for record in records]
    per_call = {
        (later[0], *(now - before for now, before in zip(later[1:], earlier[1:], strict=True)))
        for earlier, later in itertools.pairwise(counts[6:])  # the first ones are recorded, or run as they are
    }
    assert per_call == {(False, 1, 3, 0), (True, 1, 3, 0)}


def test_the_parts_of_a_recorded_call_have_times(machine: Callable[..., Machine]) -> None:
    """Marks inside the graph give the times, and a part that does not run takes none."""
    times = [call.engine_ms for call in machine().pipeline.generate(request(steps=9, policy=ADACACHE)).trace.calls]
    each = 1.5  # between any two marks of the faked CUDA
    cached = {"embed": each, "blocks": each, "final": each, "measure": 0.0}
    assert [part for part in times if part["measure"] == 0] == [cached] * len([t for t in times if t["measure"] == 0])
    assert {"embed": each, "blocks": each, "final": 2 * each, "measure": each} in times


@pytest.mark.parametrize("name", ["rflow", "pndm"])
def test_numbers_of_a_call_begin_where_a_gpu_reads_them(
    machine: Callable[..., Machine], folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bind, seen = TrtEngine.bind, {}

    def noted(engine: TrtEngine, tensors: Any) -> Any:
        for tensor in {"scale", "weights", "guidance"} & set(tensors):
            seen.setdefault((engine.graph.name, tensor), set()).add(tensors[tensor].address % 256)
        return bind(engine, tensors)

    monkeypatch.setattr(TrtEngine, "bind", noted)
    bundle = write_plans(write_bundle(folder))
    sampler = SamplerDefaults(name=name, steps=6, guidance=2.0)
    made = machine(bundle=Bundle(folder, bundle.manifest.model_copy(update={"sampler": sampler})))
    made.pipeline.generate(request(policy=Extrapolate(policy=FixedInterval(every=2)), granularity="block"))
    assert seen.keys() >= {("combine", "scale"), ("combine", "weights"), ("blend", "weights")}
    assert set().union(*seen.values()) == {0}


@pytest.mark.parametrize("granularity", ["stack", "block", "model"])
@pytest.mark.parametrize("policy", ["adacache", "weighted"])
def test_a_cached_call_of_any_policy_is_one_graph(
    machine: Callable[..., Machine], policy: str, granularity: str
) -> None:
    """This holds also where computed calls are measured, and where residuals are weighted."""
    made = machine()
    chosen = ADACACHE if policy == "adacache" else Extrapolate(policy=FixedInterval(every=3))
    records = made.pipeline.calls(request(steps=14, policy=chosen, granularity=granularity))
    counts = [(record.computed, made.cuda.launches) for record in records]
    launched = [later[1] - earlier[1] for earlier, later in itertools.pairwise(counts) if not later[0]]
    assert launched[:1] == [0], "the first one runs as it is"
    assert set(launched[2:]) == {1}
    assert len(launched) > 5
