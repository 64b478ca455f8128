"""The denoising loop: where sampler, policy, buffers and engines meet.

Inside a call nothing waits for the device. What a call measured is read at the start of the next one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from adacache_engines.buffers import Device
from adacache_engines.errors import NonFiniteError, PolicyError
from adacache_engines.manifest import StageEntry
from adacache_runtime.latents import Latents
from adacache_runtime.plan import PARTS, Plan, group_name
from adacache_runtime.policy import Context, Decision, Observation, Policy, Run
from adacache_runtime.probe import Probe
from adacache_runtime.samplers import Floats, Update
from adacache_runtime.trace import CallRecord

Scope = Literal["batch", "prompt"]
SCOPES: tuple[Scope, ...] = ("batch", "prompt")
TIMED = (*PARTS, "measure", "update")


@dataclass(frozen=True)
class Generation:
    """What a generation's loop needs, bound and ready.

    Attributes:
        device: that everything runs on.
        plan, latents, probes: bound to that device; ``probes`` in the order of execution.
        branches: of guidance.
        prompts: of the batch.
        scope: whose residuals are summed for a decision: the whole ``batch``, or each ``prompt``, the most cautious
            of which decides.
        condition: rounds a timestep as the original does.
    """

    device: Device
    plan: Plan
    latents: Latents
    probes: Sequence[Probe]
    branches: int
    prompts: int
    scope: Scope
    condition: Callable[[Floats], Floats]


def run_of(groups: Sequence[Sequence[StageEntry]], updates: Sequence[Update], units: int) -> Run:
    """What a policy is told before the first call."""
    timesteps = tuple(float(update.timestep[0]) for update in updates)
    names = tuple(map(group_name, groups))
    return Run(len(updates), len(names), units, names, timesteps)


def denoise(
    generation: Generation,
    updates: Sequence[Update],
    policy: Policy[Any],
    before_call: Callable[[int, Latents], None] = lambda _call, _latents: None,
) -> Iterator[CallRecord]:
    """Runs all calls; yields each one's record when its measurements are in, so one call late.

    Args:
        generation: bound buffers and engines.
        updates: of the sampler, a call each.
        policy: decides which groups to compute.
        before_call: gets the number of the call, from 1, and the latents that enter it.

    Raises:
        NonFiniteError: NaN or infinity in the latents; names the call and the stage.
        PolicyError: the policy reuses what was never computed.
    """
    run = run_of(generation.plan.groups, updates, generation.prompts if generation.scope == "prompt" else 1)
    state = policy.start(run)
    filled = [False] * run.groups  # whose residual there is
    pending: _Enqueued | None = None
    previous = time.perf_counter()
    for call, update in enumerate(updates, 1):
        if pending is not None:
            observation, state = _finish(generation, pending, policy, state)
            yield _record(generation, pending, observation, time.perf_counter() - previous)
            previous = time.perf_counter()  # what the caller did meanwhile is no part of a call
        before_call(call, generation.latents)
        context = Context(run, call, float(update.timestep[0]))
        decision, state = policy.decide(state, context)
        _check_decision(decision, filled, policy, call)
        filled = [before or now for before, now in zip(filled, decision.compute, strict=True)]
        pending = _enqueue(generation, context, update, decision.compute)
    assert pending is not None
    observation, state = _finish(generation, pending, policy, state)
    yield _record(generation, pending, observation, time.perf_counter() - previous)


def _check_decision(decision: Decision, filled: Sequence[bool], policy: Policy[Any], call: int) -> None:
    if len(decision.compute) != len(filled):
        raise PolicyError(
            f"policy {policy!r} decided for {len(decision.compute)} groups at call {call}, not {len(filled)}"
        )
    for group, (compute, there) in enumerate(zip(decision.compute, filled, strict=True)):
        if not compute and not (there and policy.reuses):
            raise PolicyError(
                f"policy {policy!r} reuses group {group} at call {call}, for which no residual was kept; compute a "
                "group before reusing it, and have `reuses` true"
            )


@dataclass(frozen=True)
class _Enqueued:
    """A call whose results are still on the device."""

    context: Context
    compute: tuple[bool, ...]
    measured: bool
    marks: Sequence[object]  # around each of TIMED


def _enqueue(generation: Generation, context: Context, update: Update, compute: tuple[bool, ...]) -> _Enqueued:
    plan, device = generation.plan, generation.device
    generation.latents.spread()
    timestep = generation.condition(update.timestep)
    plan.tensors["timestep"].write(np.tile(timestep, generation.branches))
    calls = plan.calls(compute)
    marks = [device.mark()]
    for part in PARTS:
        calls[part]()
        marks.append(device.mark())
    # a residual that was not computed cannot have changed
    shown = [probe.measure() for probe in generation.probes] if all(compute) else []
    measured = bool(shown) and all(shown)
    marks.append(device.mark())
    generation.latents.update(update)
    marks.append(device.mark())
    return _Enqueued(context, compute, measured, marks)


def _finish(generation: Generation, call: _Enqueued, policy: Policy[Any], state: Any) -> tuple[Observation, Any]:
    """Waits for a call and shows the policy what it measured."""
    if not generation.latents.finite():
        raise NonFiniteError(_diagnose(generation, call))
    if not call.measured:
        return Observation(), state
    results = [probe.result(generation.branches, generation.scope == "prompt") for probe in generation.probes]
    return policy.observe(state, call.context, results)


def _record(generation: Generation, call: _Enqueued, observation: Observation, wall_s: float) -> CallRecord:
    spans = zip(TIMED, call.marks, call.marks[1:], strict=False)
    times = {name: generation.device.milliseconds(start, stop) for name, start, stop in spans}
    return CallRecord(call.context.call, call.context.timestep, call.compute, observation, times, 1e3 * wall_s)


def _diagnose(generation: Generation, call: _Enqueued) -> str:
    """Repeats the call, whose input is still there, and names the first stage that gives NaN or infinity."""
    parts = generation.plan.steps(call.compute)
    where = "the sampler's update"
    for step in [step for part in PARTS for step in parts[part]]:
        step.call()
        if not all(np.isfinite(buffer.read().astype(np.float32)).all() for buffer in step.written):
            where = f"stage {step.name}"
            break
    context = call.context
    return (
        f"NaN or infinity in call {context.call} of {context.run.calls} (timestep {context.timestep:.1f}), first in "
        f"{where}; with fp16 try bf16 or fp32, and check the prompt's embeddings and the initial latents"
    )
