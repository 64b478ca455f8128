"""What a run will take is what it takes, to the byte; what does not fit is refused with what would."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from adacache_engines.contract.device import HostBuffer, HostDevice
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import InputError, MissingDependencyError
from adacache_engines.tensorrt.backend import TensorRT, TrtBackend
from adacache_runtime.caching.policies.measured.adacache import AdaCache, MoReg
from adacache_runtime.caching.policies.measured.easycache import EasyCache
from adacache_runtime.caching.policies.measured.fbcache import FBCache
from adacache_runtime.caching.policies.measured.teacache import TeaCache
from adacache_runtime.caching.policies.scheduled.delta_dit import DeltaDiT
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.caching.policies.wrappers import Extrapolate
from adacache_runtime.commands.run import main as run
from adacache_runtime.memory.advice import check_fit
from adacache_runtime.memory.estimate import MemoryEstimate
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.settled import settle
from tests.helpers.gpu import fake_tensorrt
from tests.helpers.gpu.fake_cuda import FakeCuda
from tests.helpers.gpu.fake_tensorrt import WIDE, Module, library, write_plans
from tests.helpers.model.fake_model import (
    BLOCKS,
    SIZE,
    WIDTH,
    captions,
    fake_pipeline,
    functions,
    request,
    write_bundle,
)
from tests.helpers.originals.reference import request as open_sora_request

SPREAD = AdaCache(
    codebook=[(0.3, 3), (1.0, 1)], probe=("spatial.0.attn", "temporal.1.attn"), moreg=MoReg(strides=(1, 2))
)
HIDDEN = 4 * 4 * int(np.prod(SIZE)) * WIDTH  # bytes: float32, 2 prompts x 2 branches
REQUESTS: dict[str, dict[str, Any]] = {
    "never": {"policy": NeverReuse()},
    "adacache": {"policy": SPREAD, "steps": 9},
    "block": {"policy": SPREAD, "steps": 9, "granularity": "block"},
    "teacache": {"policy": TeaCache(coefficients=(1, 0), threshold=0.5)},
    "fbcache": {"policy": FBCache(threshold=0.1)},
    "fbcache block": {"policy": FBCache(threshold=0.1), "granularity": "block"},
    "easycache": {"policy": EasyCache(threshold=0.6)},
    "extrapolated stack": {"policy": Extrapolate(policy=SPREAD), "steps": 9},
    "extrapolated block": {"policy": Extrapolate(policy=FBCache(threshold=0.1)), "granularity": "block"},
    "extrapolated model": {"policy": Extrapolate(policy=EasyCache(threshold=0.6)), "granularity": "model"},
    "adacache model": {"policy": SPREAD, "steps": 9, "granularity": "model"},
    "one prompt": {"policy": FixedInterval(every=2), "prompts_count": 1},
    "long": {"policy": FixedInterval(every=2), "frames": 8, "height": 3},
}


@dataclass(frozen=True)
class Counting(HostDevice):
    """Host memory that is counted when it is handed out."""

    nbytes: list[int] = field(default_factory=list)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> HostBuffer:
        buffer = super().empty(shape, dtype)
        self.nbytes.append(buffer.nbytes)
        return buffer


@pytest.mark.parametrize("case", REQUESTS)
def test_a_run_allocates_what_was_planned(tmp_path: Path, case: str) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    pipeline.backend.device = Counting()
    asked = request(**REQUESTS[case])
    plan = pipeline.prepare(asked).memory
    assert pipeline.backend.device.nbytes == []
    pipeline.generate(asked)
    assert plan.arena is None
    assert plan.run == sum(pipeline.backend.device.nbytes)


def test_tables_of_positions_are_planned(bundle_folder: Path) -> None:
    """Those of a real model, which a stage makes once a generation."""
    pipeline = Pipeline.open(bundle_folder)
    (positions,) = pipeline.bundle.manifest.stages_of("positions")
    pipeline.backend.device = counting = Counting()
    asked = open_sora_request(steps=2)
    prepared = pipeline.prepare(asked)
    assert counting.nbytes == []
    pipeline.generate(asked)
    assert prepared.memory.run == sum(counting.nbytes)
    for table in positions.graph.outputs:
        shape = table.shape(prepared.checked.loops[0].sizes)
        assert 4 * int(np.prod(shape)) in counting.nbytes


def trt_pipeline(folder: Path, cuda: FakeCuda, **options: Any) -> Pipeline:
    bundle = write_plans(write_bundle(folder), **options)
    return Pipeline(bundle, TrtBackend(bundle, library(Module(cuda)), CudaDevice(api=cuda)))


def test_closing_the_events_frees_what_a_run_holds(tmp_path: Path) -> None:
    cuda = FakeCuda(capacity=1 << 24)
    pipeline = trt_pipeline(tmp_path / "bundle", cuda)
    prepared = pipeline.prepare(request())
    pipeline.backend.device.synchronize()
    before = cuda.device_nbytes()
    events = prepared.events()
    for _ in range(3):
        next(events)
    assert cuda.device_nbytes() > before
    events.close()
    pipeline.backend.device.synchronize()
    assert cuda.device_nbytes() == before


@pytest.mark.parametrize("case", REQUESTS)
def test_a_run_on_a_gpu_takes_what_was_planned(tmp_path: Path, case: str) -> None:
    """The arena, too; and no more at any time."""
    cuda = FakeCuda(capacity=1 << 24)
    pipeline = trt_pipeline(tmp_path / "bundle", cuda)
    asked = request(**REQUESTS[case])
    plan = pipeline.prepare(asked).memory
    pipeline.backend.device.synchronize()
    assert cuda.blocks == {}
    calls = pipeline.calls(asked)
    for _ in range(5):
        next(calls)
    assert cuda.device_nbytes() == plan.run
    list(calls)
    assert cuda.peak_nbytes == plan.run
    assert cuda.faults == []


def test_kinds(tmp_path: Path) -> None:
    pipeline = trt_pipeline(tmp_path / "bundle", FakeCuda(capacity=1 << 24))
    never, stack, block = (
        pipeline.prepare(request(policy=policy, granularity=granularity)).memory
        for policy, granularity in ((NeverReuse(), "stack"), (SPREAD, "stack"), (SPREAD, "block"))
    )
    assert (never.residuals, stack.residuals, block.residuals) == (0, HIDDEN, len(BLOCKS) * HIDDEN)
    assert (never.hidden, stack.hidden, block.hidden) == (3 * HIDDEN, 3 * HIDDEN, 2 * HIDDEN)
    assert stack.probes == 2 * 2 * HIDDEN + HIDDEN  # two sites, new and cached, and what nobody looks at
    files = {entry.path: entry.nbytes for entry in pipeline.backend.plans.plans}
    assert never.weights == sum(files.values())
    assert never.encoder == 0
    needs = fake_tensorrt.needs(
        pipeline.bundle, {**dict.fromkeys(WIDE["any"], 1), "batch": 4, "patch_frames": 4, "tokens": 10}, ["add"]
    )
    assert never.arena is not None
    assert never.arena >= needs["add"]


def test_what_is_kept_to_reuse(tmp_path: Path) -> None:
    """Two residuals a group where they are weighed; one of the latents' size where the whole model is reused."""
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    latents = HIDDEN // 2  # without the branches of guidance
    for case, residuals, probes in [
        ("teacache", HIDDEN, 2 * HIDDEN + HIDDEN),
        ("fbcache", 2 * HIDDEN, HIDDEN + HIDDEN),
        ("easycache", latents, latents + 2 * latents + HIDDEN),
        ("extrapolated block", len(BLOCKS) * 2 * HIDDEN, HIDDEN + HIDDEN),
        ("extrapolated model", 2 * latents, latents + 2 * latents + HIDDEN),
    ]:
        plan = pipeline.prepare(request(**REQUESTS[case])).memory
        assert (plan.residuals, plan.probes) == (residuals, probes), case


def tight(tmp_path: Path, asked: Any, spare: int, **options: Any) -> tuple[Pipeline, FakeCuda]:
    """A GPU on which a run lacks ``-spare`` bytes."""
    cuda = FakeCuda(capacity=1 << 24)
    pipeline = trt_pipeline(tmp_path / "bundle", cuda, **options)
    cuda.capacity = pipeline.prepare(asked).memory.run + spare
    return pipeline, cuda


def test_what_just_fits_runs(tmp_path: Path) -> None:
    asked = request(policy=SPREAD, granularity="block")
    pipeline, cuda = tight(tmp_path, asked, 0)
    pipeline.generate(asked)
    assert cuda.faults == []


def test_no_granularity_is_offered_at_which_the_policy_cannot_decide(tmp_path: Path) -> None:
    asked = request(policy=DeltaDiT(interval=(0, 1), pairs=(0, 0)), granularity="block", frames=8)
    pipeline, _ = tight(tmp_path, asked, -1)
    with pytest.raises(InputError, match="does not fit into memory") as caught:
        pipeline.generate(asked)
    assert "--policy never" in str(caught.value)
    assert "--granularity stack" not in str(caught.value)


def test_what_does_not_fit_is_refused_before_it_starts(tmp_path: Path) -> None:
    asked = request(policy=SPREAD, granularity="block", frames=8)
    pipeline, cuda = tight(tmp_path, asked, -1)
    needed, free = pipeline.prepare(asked).memory.run, cuda.capacity
    with pytest.raises(InputError) as caught:
        pipeline.generate(asked)
    message = str(caught.value)
    assert cuda.kernels == []
    assert cuda.blocks == {}
    assert f"takes {needed / 1e6:.1f} MB" in message
    assert f"{free / 1e6:.1f} MB are free" in message
    assert "cached residuals" in message
    for option in ("--granularity stack", "1 prompt at a time", "--frames 7", "--policy never"):
        assert option in message


OPTIONS: list[tuple[str, Callable[[Any], Any]]] = [
    ("--granularity stack", lambda asked: replace(asked, granularity="stack")),
    ("--policy never", lambda asked: replace(asked, policy=NeverReuse())),
    ("1 prompt at a time", lambda asked: replace(asked, captions=captions(1))),
]


@pytest.mark.parametrize("share", [0.95, 0.8, 0.65, 0.5, 0.3, 0.05])
def test_only_what_helps_is_offered(tmp_path: Path, share: float) -> None:
    """And all of it, however little memory there is."""
    asked = request(policy=SPREAD, granularity="block", frames=8)
    pipeline, cuda = tight(tmp_path, asked, 0)
    cuda.capacity = int(cuda.capacity * share)
    with pytest.raises(InputError) as caught:
        pipeline.generate(asked)
    for text, change in OPTIONS:
        fits = pipeline.prepare(change(asked)).memory.run <= cuda.capacity
        assert (text in str(caught.value)) == fits
        if fits:
            pipeline.generate(change(asked))
    offered = re.search(r"--frames (\d)", str(caught.value))
    if offered:
        pipeline.generate(replace(asked, frames=int(offered[1])))
    if share < 0.1:
        assert "no single change" in str(caught.value)


def test_sizes_are_not_offered_where_the_noise_is_given(tmp_path: Path) -> None:
    noise = np.zeros((2, WIDTH, 8, 2, 5), np.float32)
    asked = request(latents=noise, policy=SPREAD)
    pipeline, _ = tight(tmp_path, asked, -1)
    with pytest.raises(InputError, match="1 prompt at a time") as caught:
        pipeline.generate(asked)
    assert "--frames" not in str(caught.value)
    assert "--size" not in str(caught.value)


def test_a_smaller_size_is_offered(tmp_path: Path) -> None:
    """In the bundle's profiles, and in multiples of 16."""
    profiles = {
        "default": {**dict.fromkeys(("samples", "text", "frames"), (1, 8)), "height": (8, 64), "width": (8, 64)}
    }
    cuda = FakeCuda(capacity=1 << 28)
    bundle = write_bundle(tmp_path / "bundle")
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"profiles": profiles}))
    bundle = write_plans(bundle, {"any": {**WIDE["any"], "tokens": (1, 64, 4096)}})
    pipeline = Pipeline(bundle, TrtBackend(bundle, library(Module(cuda)), CudaDevice(api=cuda)))
    asked = request(height=64, width=48)
    cuda.capacity = pipeline.prepare(asked).memory.run * 3 // 4
    with pytest.raises(InputError, match=r"--size 32x48 \(") as caught:
        pipeline.generate(asked)
    assert "--policy never" not in str(caught.value)


def test_tiles_are_offered_where_the_decoder_is_too_large(tmp_path: Path) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    usual = pipeline.prepare(request()).memory

    def plan(asked: Request) -> MemoryEstimate:
        return replace(usual, decoder=10**6 * (asked.tile or 600))

    for tile, message in ((None, r"--tile 512 \(512\.0 MB\)"), (512, r"--tile 256 \(256\.0 MB\)")):
        asked = request(tile=tile)
        with pytest.raises(InputError, match=message):
            check_fit(asked, settle(pipeline.bundle, request()), plan(asked), (tile or 600) * 10**6 - 1, plan)


def test_memory_that_nobody_knows_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    monkeypatch.setattr(HostDevice, "free_nbytes", lambda _self: None)
    pipeline.generate(request())
    monkeypatch.setattr(HostDevice, "free_nbytes", lambda _self: 100)
    with pytest.raises(InputError, match="does not fit into memory"):
        pipeline.generate(request())


# command line


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Module:
    """A machine with a GPU and TensorRT-RTX, as far as ``import`` can tell."""
    cuda = FakeCuda(capacity=1 << 24)
    module = Module(cuda)
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = cuda  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    return module


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    write_plans(write_bundle(tmp_path / "bundle"))
    given = captions()
    np.savez(tmp_path / "text.npz", embeddings=given.embeddings, mask=given.mask)
    frames, height, width = SIZE
    size = ["--size", f"{width}x{height}", "--frames", str(frames)]
    return [str(tmp_path / "bundle"), "--text-embeddings", str(tmp_path / "text.npz"), *size]


def test_the_plan_is_printed_and_nothing_runs(
    gpu: Module, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--backend", "tensorrt-rtx", "--estimate-memory", "--policy", "adacache-fast"]) == 0
    out = capsys.readouterr().out
    for text in ("weights of the engines", "activations", "cached residuals", "free now", "16.8"):
        assert text in out
    assert gpu.cuda.kernels == []


@pytest.mark.parametrize("graphs", [True, False])
def test_a_run_on_tensorrt(gpu: Module, command: list[str], tmp_path: Path, graphs: bool) -> None:
    out = tmp_path / "out.npz"
    options = ["--backend", "tensorrt-rtx", "--save-latents", str(out)] + ["--no-cuda-graphs"] * (not graphs)
    assert run([*command, *options]) == 0
    with np.load(out) as saved:
        expected = fake_pipeline(tmp_path / "host", functions())[0].generate(request()).latents
        np.testing.assert_array_equal(saved["latents"], expected)
    assert (gpu.cuda.launches > 0) == graphs
    assert (tmp_path / "bundle" / "engines" / "tensorrt-rtx-1.7" / "runtime.cache").is_file()
    assert gpu.cuda.faults == []


def test_a_backend_that_cannot_be(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as where it is not installed
    bundle = write_bundle(tmp_path / "other")
    with pytest.raises(MissingDependencyError, match=r"tensorrt is not installed .*adacache-export\[trt\]"):
        TensorRT("tensorrt").open(bundle)
    assert run([*command, "--backend", "tensorrt", "--estimate-memory"]) == 1
    assert "adacache-export[trt]" in capsys.readouterr().err
