"""Execution contexts: how many there are, in which order they go, and what is bound to them; on the fakes."""

import gc
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.contract.dry_run import DryRunDevice
from adacache_engines.contract.staging import ALIGNMENT, staged
from adacache_engines.errors import EngineError
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policy import Decision
from tests.helpers.gpu.fake_cuda import Fault
from tests.helpers.gpu.fake_tensorrt import Machine
from tests.helpers.model.fake_model import BLOCKS, WIDTH, fake_pipeline, functions, request

FLOAT = np.dtype(np.float32)


class Different(FixedInterval):
    """A policy that decides something else in every call after the first."""

    def decide(self, state: Any, context: Any) -> Any:
        if context.call == 1:
            return super().decide(state, context)
        number = context.call - 2
        return Decision(tuple(bool(number >> group & 1) for group in range(context.run.groups))), state


# how many


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
def test_decisions_share_contexts(machine: Callable[..., Machine], tmp_path: Path, graphs: bool) -> None:
    """There is one context for each plan and its sizes, however many decisions come and however often."""
    made = machine(graphs)
    options = {"steps": 40, "policy": Different(every=2), "granularity": "block"}
    contexts = made.pipeline.prepare(request(**options)).memory.contexts
    assert contexts < len(made.bundle.manifest.graphs())
    decisions, living = set(), set()
    for record in made.pipeline.calls(request(**options)):
        decisions.add(record.compute)
        made.pipeline.backend.device.synchronize()
        living.add(len(made.module.contexts))
    assert len(decisions) == 2 ** len(BLOCKS)
    assert living == {contexts}
    assert made.pipeline.generate(request(**options)).trace.contexts == contexts
    whole = fake_pipeline(tmp_path / "host", functions())[0].generate(request(**options))
    np.testing.assert_array_equal(made.pipeline.generate(request(**options)).latents, whole.latents)


def test_generations_of_one_size_share_contexts(machine: Callable[..., Machine]) -> None:
    made = machine()
    first, second = (made.pipeline.calls(request(steps=6, seed=seed)) for seed in (1, 2))
    next(first)
    there = made.module.made
    for _ in range(5):
        next(second)
        next(first)
    assert made.module.made == there


# in which order they go


def test_a_pipeline_is_dropped_with_work_under_way(machine: Callable[..., Machine]) -> None:
    """Contexts go first and when their work is done, then configuration, cache, engine and runtime."""
    made = machine()
    cuda, module, device = made.cuda, made.module, made.pipeline.backend.device
    tensors = {name: device.empty((1, 1, 1, WIDTH), FLOAT) for name in ("before", "after", "residual")}
    call = made.pipeline.engines.arithmetic["subtract"].bind(tensors)
    call()
    del made, call, tensors
    gc.collect()
    assert cuda.queue
    assert len(module.contexts) == 1, "the work is not done"
    device.synchronize()
    assert len(module.contexts) == len(module.engines) == 0


@pytest.mark.parametrize("every", [1, 7, 40])
def test_finalisers_run_inside_any_call(machine: Callable[..., Machine], tmp_path: Path, every: int) -> None:
    """The garbage collector may run in any call, and free what abandoned generations held at that point."""
    made = machine()
    abandoned: list[Any] = []
    for number in range(12):
        calls = made.pipeline.calls(request(steps=6, policy=FixedInterval(every=2), seed=number, frames=2 + number % 3))
        for _ in range(number % 5):
            next(calls)
        abandoned.append(calls)
    del calls
    counter = itertools.count(1)

    def interrupt() -> None:
        if abandoned and next(counter) % every == 0:
            abandoned.pop()

    made.module.interrupt = interrupt
    result = made.pipeline.generate(request(steps=8, policy=FixedInterval(every=2)))
    made.module.interrupt = None
    assert len(abandoned) < 12 - 3
    abandoned.clear()
    whole = fake_pipeline(tmp_path / "host", functions())[0]
    expected = whole.generate(request(steps=8, policy=FixedInterval(every=2)))
    np.testing.assert_array_equal(result.latents, expected.latents)
    made.pipeline.backend.device.synchronize()
    assert len(made.module.contexts) == 0


# what can be recorded


def test_a_context_that_cannot_be_recorded_names_the_way_out(machine: Callable[..., Machine]) -> None:
    made = machine()
    made.module.capturable = False
    with pytest.raises(
        EngineError, match=r"cannot be recorded as a CUDA graph: tensorrt-rtx 1\.7 cannot run .* --no-cuda-graphs"
    ):
        made.pipeline.generate(request())
    eager = machine(graphs=False, bundle=made.bundle)
    eager.module.capturable = False
    eager.pipeline.generate(request())


def test_the_fake_faults_where_a_recording_would_fail(machine: Callable[..., Machine]) -> None:
    made = machine()
    device, cuda = made.pipeline.backend.device, made.cuda
    before, after, residual = (device.empty((1, 1, 1, WIDTH), FLOAT) for _ in range(3))
    call = made.pipeline.engines.arithmetic["subtract"].bind({"before": before, "after": after, "residual": residual})
    with device.recording():
        cuda.cudaStreamBeginCapture(device.stream, 1)
        with pytest.raises(EngineError, match="cannot run engine subtract in a recording"):
            call()
        (context,) = made.module.contexts
        with pytest.raises(Fault, match="has not run with its shapes before it is recorded"):
            context._prepare("subtract")
        context._ran_with = context._shapes
        with pytest.raises(Fault, match="was not asked whether it can be"):
            context._prepare("subtract")
        cuda.cudaStreamEndCapture(device.stream)
    cuda.faults.clear()


# what is bound


def test_tensors_that_are_not_aligned_are_copied(machine: Callable[..., Machine]) -> None:
    """Rows of tensors may begin anywhere, and so may a buffer that is input and output."""
    made = machine()
    device, engine = made.pipeline.backend.device, made.pipeline.engines.arithmetic["add"]
    values = np.random.default_rng(1).standard_normal((2, 3, 1, 1, 2, WIDTH)).astype(np.float32)
    hidden, residual = (device.empty(part.shape, FLOAT) for part in values)
    hidden.write(values[0])
    residual.write(values[1])
    rows = [(hidden.row(index), residual.row(index)) for index in range(3)]
    assert [row.address % ALIGNMENT for row, _ in rows] == [0, 24, 48]
    calls = [engine.bind({"hidden": row, "residual": change, "hidden_out": row}) for row, change in rows]
    sequence = device.sequence(calls)
    for runs in range(1, 5):
        sequence()
        np.testing.assert_allclose(hidden.read(), values[0] + runs * values[1], rtol=1e-6)
    assert made.cuda.captures == 1


def test_an_estimate_counts_the_copies(machine: Callable[..., Machine]) -> None:
    made = machine()
    graph = made.pipeline.engines.arithmetic["add"].graph
    places = []
    for device in (made.pipeline.backend.device, DryRunDevice()):
        row = device.empty((3, 1, 1, 2, WIDTH), FLOAT).row(1)
        whole = device.empty((1, 1, 2, WIDTH), FLOAT)
        places.append(staged(graph, {"hidden": row, "residual": whole, "hidden_out": row}, 700))
    assert places == [({"hidden": 768, "hidden_out": 1024}, 1024 + 24)] * 2


@pytest.mark.parametrize("aliased", ["before", "after"])
def test_the_fake_faults_where_an_output_is_read(machine: Callable[..., Machine], aliased: str) -> None:
    """Only graphs that are one element-wise kernel may write where they read."""
    made = machine()
    device = made.pipeline.backend.device
    tensors = {name: device.empty((1, 1, 1, WIDTH), FLOAT) for name in ("before", "after", "residual")}
    tensors["residual"] = tensors[aliased]
    with pytest.raises(EngineError, match=f"residual of subtract overlaps {aliased}"):
        made.pipeline.engines.arithmetic["subtract"].bind(tensors)()
    assert made.cuda.faults == [f"residual of subtract overlaps {aliased}"]
    made.cuda.faults.clear()
