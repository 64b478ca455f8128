"""TensorRT opened on a bundle: weights in host memory, and plans that are refused with the reason."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.bundle.files import Bundle
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import AdaCacheError, EngineError
from adacache_engines.tensorrt.backend import TrtBackend
from adacache_runtime.pipeline import Pipeline
from tests.helpers.gpu import fake_tensorrt
from tests.helpers.gpu.fake_cuda import FakeCuda
from tests.helpers.gpu.fake_tensorrt import WIDE, Machine, Module, library, write_plans
from tests.helpers.gpu.host_generations import expected, same
from tests.helpers.model.fake_model import BLOCKS, request, write_bundle

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
