"""TensorRT plans through fakes that fail like the library and check what CUDA would; the arithmetic is numpy's."""

import itertools
import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import SamplerDefaults
from adacache_engines.contract.device import Array
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import AdaCacheError, EngineError, NonFiniteError
from adacache_engines.tensorrt.backend import TrtBackend
from adacache_engines.tensorrt.engine import TrtEngine
from adacache_runtime.caching.policies.adacache import AdaCache, MoReg
from adacache_runtime.caching.policies.easycache import EasyCache
from adacache_runtime.caching.policies.fbcache import FBCache
from adacache_runtime.caching.policies.interval import FixedInterval
from adacache_runtime.caching.policies.never import NeverReuse
from adacache_runtime.caching.policies.teacache import TeaCache
from adacache_runtime.caching.policies.wrappers import Extrapolate, MaxReuses
from adacache_runtime.denoising.latents import Latents
from adacache_runtime.events import Denoised
from adacache_runtime.pipeline import Pipeline
from tests.helpers.gpu import fake_tensorrt
from tests.helpers.gpu.fake_cuda import FakeCuda
from tests.helpers.gpu.fake_tensorrt import WIDE, Machine, Module, library, needs, write_plans
from tests.helpers.model import fake_model
from tests.helpers.model.fake_model import BLOCKS, SIZE, captions, fake_pipeline, functions, request, write_bundle

ADACACHE = AdaCache(codebook=[(0.05, 4), (0.3, 3), (1.0, 1)], moreg=MoReg())
POLICIES = {"never": NeverReuse(), "adacache": ADACACHE, "interval": FixedInterval(every=3)}
WITHIN: dict[str, Any] = {
    "teacache": TeaCache(coefficients=(1, 0), threshold=0.5),
    "fbcache": FBCache(threshold=0.1),
    "easycache": EasyCache(threshold=0.6),
    "extrapolated": Extrapolate(policy=ADACACHE),
    "extrapolated model": Extrapolate(policy=MaxReuses(policy=EasyCache(threshold=0.8), reuses=2)),
}


def expected(tmp_path: Path, **options: Any) -> Denoised:
    """Return what the same request gives on the host."""
    return fake_pipeline(tmp_path / "host", functions())[0].generate(request(**options))


def same(one: Denoised, other: Denoised) -> None:
    np.testing.assert_array_equal(one.latents, other.latents)
    assert [call.compute for call in one.trace.calls] == [call.compute for call in other.trace.calls]
    np.testing.assert_array_equal(
        [call.observation.get("distance") or 0 for call in one.trace.calls],
        [call.observation.get("distance") or 0 for call in other.trace.calls],
    )


# weights in host memory


def test_a_weight_budget_is_shared_by_all_plans(machine: Callable[..., Machine], folder: Path) -> None:
    bundle = write_plans(write_bundle(folder), **{graph: {"streaming": True} for graph in (*BLOCKS, "final")})
    ((name, plans),) = bundle.manifest.plans.items()
    streaming = plans.model_copy(update={"options": {"weight_streaming": True}})
    bundle = Bundle(folder, bundle.manifest.model_copy(update={"plans": {name: streaming}}))
    total = sum({entry.path: entry.nbytes for entry in plans.plans}.values())
    with pytest.raises(EngineError, match=r"cannot record CUDA graphs of plans whose weights .* --no-cuda-graphs"):
        machine(bundle=bundle)
    made = machine(graphs=False, bundle=bundle, weight_budget=total // 2)
    assert made.pipeline.prepare(request()).memory.weights == pytest.approx(total / 2, abs=1)
    budgets, halves = (
        {engine.plan["function"]: number(engine) for engine in made.module.engines}
        for number in (lambda each: each.weight_streaming_budget_v2, lambda each: each.streamable_weights_size / 2)
    )
    assert budgets == pytest.approx(halves, abs=1)
    assert budgets["spatial.00"] > 0
    made.pipeline.generate(request(steps=2))
    whole = machine(graphs=False, bundle=bundle, weight_budget=total)
    assert not any(hasattr(engine, "weight_streaming_budget_v2") for engine in whole.module.engines)


def test_a_weight_budget_needs_plans_for_it(machine: Callable[..., Machine]) -> None:
    with pytest.raises(EngineError, match=r"keep all weights on the GPU; build .* --weight-streaming --force"):
        machine(weight_budget=100)


# whole generations


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
@pytest.mark.parametrize("granularity", ["stack", "block"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["tensorrt-rtx", "tensorrt"])
def test_generations_are_the_hosts_to_the_bit(
    machine: Callable[..., Machine], tmp_path: Path, name: str, policy: str, granularity: str, graphs: bool
) -> None:
    made = machine(graphs, name)
    options = {"steps": 12, "policy": POLICIES[policy], "granularity": granularity, "keep_calls": True}
    result = made.pipeline.generate(request(**options))
    whole = expected(tmp_path, **options)
    same(result, whole)
    np.testing.assert_array_equal(result.calls, whole.calls)
    if policy != "never":
        assert 2 < len(result.trace.computed()) < 12
    paths = {call.compute for call in result.trace.calls}
    # where a call is measured, its update comes apart
    apart = bool(POLICIES[policy].needs.measures)
    assert made.cuda.captures == (len(paths) + apart if graphs else 0)


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
@pytest.mark.parametrize("policy", WITHIN)
def test_policies_that_look_into_a_call(
    machine: Callable[..., Machine], tmp_path: Path, policy: str, graphs: bool
) -> None:
    """Each with its own groups and residuals."""
    made = machine(graphs)
    options = {"steps": 12, "policy": WITHIN[policy], "keep_calls": True}
    result = made.pipeline.generate(request(**options))
    whole = expected(tmp_path, **options)
    same(result, whole)
    np.testing.assert_array_equal(result.calls, whole.calls)
    assert 2 < sum(all(call.compute) for call in result.trace.calls) < 12


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
@pytest.mark.parametrize("policy", ["never", *WITHIN])
def test_kept_frames_are_the_hosts_to_the_bit(
    machine: Callable[..., Machine], folder: Path, tmp_path: Path, policy: str, graphs: bool
) -> None:
    changes = fake_model.conditioned(fake_model.manifest())
    made = machine(graphs, bundle=write_plans(write_bundle(folder, **changes)))
    shape = (2, fake_model.WIDTH, *SIZE)
    options: dict[str, Any] = {
        "latents": np.random.default_rng(1).standard_normal(shape, np.float32),
        "mask": np.array([[0, 1, 0.45, 1], [1, 0.7, 0, 1]], np.float32),
        "policy": {**POLICIES, **WITHIN}[policy],
        "steps": 12,
        "keep_calls": True,
    }
    result = made.pipeline.generate(request(**options))
    whole = fake_pipeline(tmp_path / "host", functions(), **changes)[0].generate(request(**options))
    same(result, whole)
    np.testing.assert_array_equal(result.calls, whole.calls)


@pytest.mark.parametrize(("name", "calls"), [("ddim", 12), ("pndm", 20)])
def test_samplers_of_noise_predictions(machine: Callable[..., Machine], tmp_path: Path, name: str, calls: int) -> None:
    """PNDM combines up to six predictions, most of which are not there at first."""
    sampler = SamplerDefaults(name=name, steps=12, guidance=2.0)
    bundle = write_plans(write_bundle(tmp_path / "bundle"))
    made = machine(bundle=Bundle(bundle.folder, bundle.manifest.model_copy(update={"sampler": sampler})))
    host, _ = fake_pipeline(tmp_path / "host", functions(), sampler=sampler)
    options = {"policy": ADACACHE, "keep_calls": True}
    result, whole = (pipeline.generate(request(**options)) for pipeline in (made.pipeline, host))
    same(result, whole)
    np.testing.assert_array_equal(result.calls, whole.calls)
    assert len(result.trace.calls) == calls
    assert np.isfinite(result.latents).all()


def test_every_path_is_replayed(machine: Callable[..., Machine]) -> None:
    """Run once, recorded once, launched from then on."""
    made = machine()
    result = made.pipeline.generate(request(steps=9, policy=FixedInterval(every=3)))
    assert len(result.trace.computed()) == 4
    assert made.cuda.launches == 9 - 2


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
def test_generations_in_turn(machine: Callable[..., Machine], tmp_path: Path, graphs: bool) -> None:
    """They have other sizes and numbers of prompts, call by call: each has its own buffers, contexts and graphs."""
    made = machine(graphs)
    several = [
        {"steps": 7, "policy": ADACACHE, "seed": 1},
        {"steps": 7, "policy": FixedInterval(every=2), "seed": 2, "granularity": "block", "frames": 7},
        {"steps": 7, "policy": NeverReuse(), "seed": 3, "prompts_count": 1, "height": 3},
    ]
    running = [made.pipeline.calls(request(**options)) for options in several]
    for _ in range(7):
        for calls in running:
            next(calls)
    for index, calls in enumerate(running):
        with pytest.raises(StopIteration) as end:
            next(calls)
        same(end.value.value, expected(tmp_path / str(index), **several[index]))


def test_generations_on_two_threads(machine: Callable[..., Machine], tmp_path: Path) -> None:
    made = machine()
    made.cuda.pause_s = 0.002
    several = [
        {"steps": 8, "policy": ADACACHE, "seed": 1},
        {"steps": 8, "policy": FixedInterval(every=2), "seed": 2, "granularity": "block"},
    ]
    results: dict[int, Denoised] = {}
    start = threading.Barrier(2)

    def work(index: int) -> None:
        start.wait()
        for _ in range(2):
            results[index] = made.pipeline.generate(request(**several[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, options in enumerate(several):
        same(results[index], expected(tmp_path / str(index), **options))


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


# memory


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


# what cannot be


def refused(bundle: Bundle, cuda: FakeCuda, version: str = fake_tensorrt.VERSION) -> tuple[str, Module]:
    module = Module(cuda, version)
    with pytest.raises(AdaCacheError) as caught:
        Pipeline(bundle, TrtBackend(bundle, library(module), CudaDevice(api=cuda)))
    return str(caught.value), module


def test_a_changed_plan_is_refused_unopened(folder: Path, cuda: FakeCuda) -> None:
    bundle = write_plans(write_bundle(folder))
    for path in sorted(folder.glob("engines/*/*.plan")):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + b" ")
        message, module = refused(bundle, cuda)
        assert f"{path.relative_to(folder)} was changed" in message
        assert module.opened == []
        path.write_bytes(whole)
    path.unlink()
    assert f"{path.name} is missing" in refused(bundle, cuda)[0]


def test_other_plans_are_refused_with_the_reason(folder: Path, cuda: FakeCuda) -> None:
    bundle = write_bundle(folder)
    assert "none at all" in refused(bundle, cuda)[0]
    bundle = write_plans(bundle, library="tensorrt", version="1.7")
    bundle = write_plans(bundle, version="1.6")
    message, module = refused(bundle, cuda)
    assert "tensorrt-1.7: built by tensorrt" in message
    assert "tensorrt-rtx-1.6: built by version 1.6" in message
    assert "--backend tensorrt-rtx --target 8.9" in message
    bundle = write_plans(bundle, targets=("8.0", "12.0"))
    assert "built for compute capability 8.0, 12.0, this GPU has 8.9" in refused(bundle, cuda)[0]
    cuda.capability = (9, 0)
    message, module = refused(bundle, cuda)
    assert "this GPU has 9.0); tensorrt-rtx 1.7 builds for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1 and not for 9.0" in message
    assert "run with --backend tensorrt, or with --backend onnxruntime --provider cuda" in message
    assert module.opened == []


def test_plans_for_another_gpu_run_only_where_that_is_asked_for(folder: Path, cuda: FakeCuda, tmp_path: Path) -> None:
    bundle = write_plans(write_bundle(folder), targets=("8.0", "12.0"))
    module = Module(cuda)
    module.portable = True
    backend = TrtBackend(bundle, library(module), CudaDevice(api=cuda), target="8.0")
    assert backend.name == "tensorrt-rtx 1.7 on compute capability 8.9 with plans for 8.0"
    same(Pipeline(bundle, backend).generate(request()), expected(tmp_path))
    with pytest.raises(EngineError, match=r"built for compute capability 8\.0, 12\.0"):
        TrtBackend(bundle, library(Module(cuda)), CudaDevice(api=cuda), target="8.6")


def test_a_gpu_that_the_library_refuses_is_named(folder: Path, cuda: FakeCuda) -> None:
    """The head of a plan tells it before the plan is opened."""
    cuda.capability = (9, 0)
    bundle = write_plans(write_bundle(folder), targets=("8.0", "12.0"))
    module = Module(cuda)
    backend = TrtBackend(bundle, library(module), CudaDevice(api=cuda), target="8.0")
    with pytest.raises(
        EngineError,
        match=r"tensorrt-rtx 1\.7 refuses engines/.*add\.plan on this GPU, NVIDIA Faked with compute capability 9\.0 "
        r"\(UNSUPPORTED_CC\); it was built for 8\.0, 12\.0; tensorrt-rtx 1\.7 builds for .* and not for 9\.0: run with",
    ):
        backend.load(bundle.manifest.arithmetic["add"])
    assert module.opened == []
    backend.close()


def test_a_plan_that_is_not_there_is_named(folder: Path, cuda: FakeCuda) -> None:
    bundle = write_plans(write_bundle(folder))
    ((name, plans),) = bundle.manifest.plans.items()
    some = plans.model_copy(update={"plans": tuple(e for e in plans.plans if e.stage != "temporal.00")})
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"plans": {name: some}}))
    assert "have none for temporal.00" in refused(bundle, cuda)[0]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "magic": ({"magic": "x"}, "failed opening .*final.plan: Serialization assertion failed"),
    "version": (
        {"version": "1.6"},
        r"refuses engines/.*final\.plan .*\(VERSION_MISMATCH\); .* build them with: .*-rtx$",
    ),
    "no plan": ({"magic": [1] * 9}, "failed opening"),
    "profiles": ({"profiles": [WIDE["any"]] * 2}, "has 2 profiles, the manifest any"),
    "on the host": ({"on_host": "time"}, "time is read on the host"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_plan_that_does_not_fit_is_named(folder: Path, cuda: FakeCuda, case: str) -> None:
    change, message = WRONG[case]
    bundle = write_plans(write_bundle(folder), final=change)
    assert re.search(message, refused(bundle, cuda)[0])


def test_tensors_of_a_plan_are_the_graphs(folder: Path, cuda: FakeCuda) -> None:
    bundle = write_bundle(folder)
    graph = bundle.manifest.stages[-1].graph.model_dump(mode="json")
    graph["inputs"][0]["dtype"] = "float16"
    graph["outputs"][0]["name"] = "velocity"
    message, _ = refused(write_plans(bundle, final={"graph": graph}), cuda)
    assert "the plan of final does not fit its graph: hidden is DataType.HALF, expected float32" in message
    assert "velocity is not a tensor of the graph" in message
    assert "prediction is missing" in message


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


def test_a_number_that_is_none_is_found_behind_graphs(machine: Callable[..., Machine]) -> None:
    every, count = functions(), [0]

    def broken(given: Mapping[str, Array]) -> Mapping[str, Array]:
        count[0] += 1
        outputs = every["spatial.01"](given)
        return {**outputs, "hidden_out": outputs["hidden_out"] * np.float32(np.nan if count[0] > 3 else 1)}

    made = machine(functions={**every, "spatial.01": broken})
    with pytest.raises(NonFiniteError, match=r"call 4 of 6 .* first in stage spatial.01"):
        made.pipeline.generate(request(policy=AdaCache(codebook=[(1.0, 1)])))


# the runtime cache


def cache_of(bundle: Bundle) -> Path:
    return bundle.path("engines/tensorrt-rtx-1.7/runtime.cache")


def test_kernels_are_compiled_once(machine: Callable[..., Machine]) -> None:
    first = machine()
    result = first.pipeline.generate(request(policy=ADACACHE))
    assert first.module.compiled
    first.pipeline.backend.close()
    assert [path.name for path in cache_of(first.bundle).parent.iterdir() if path.suffix != ".plan"] == [
        "runtime.cache"
    ]
    written = cache_of(first.bundle).stat().st_mtime_ns
    second = machine(bundle=first.bundle)
    same(second.pipeline.generate(request(policy=ADACACHE)), result)
    assert second.module.compiled == []
    second.pipeline.backend.close()
    assert cache_of(first.bundle).stat().st_mtime_ns == written


def test_the_cache_is_kept_by_who_forgets_to_close(machine: Callable[..., Machine]) -> None:
    made = machine()
    made.pipeline.generate(request())
    bundle = made.bundle
    del made
    assert cache_of(bundle).is_file()


def test_a_cache_of_another_version_is_not_used(
    machine: Callable[..., Machine], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = write_plans(write_bundle(folder))
    cache_of(bundle).write_bytes(b"kernels of 1.6\n")
    with caplog.at_level(logging.WARNING):
        made = machine(bundle=bundle)
    assert "runtime.cache is damaged or of another version" in caplog.text
    made.pipeline.generate(request())
    made.pipeline.backend.close()
    assert cache_of(bundle).read_bytes().startswith(b"kernels of 1.7\n")


def test_a_place_that_cannot_be_used_is_a_warning(
    machine: Callable[..., Machine], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = write_plans(write_bundle(folder))
    cache_of(bundle).mkdir()
    with caplog.at_level(logging.WARNING):
        made = machine(bundle=bundle)
        assert "cannot be read" in caplog.text
        made.pipeline.generate(request())
        made.pipeline.backend.close()
    assert "cannot be kept" in caplog.text
    assert [path.name for path in cache_of(bundle).parent.glob(".*")] == []
