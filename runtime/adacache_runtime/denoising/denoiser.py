"""The denoising loop: where sampler, policy, buffers and engines meet.

What a call measured is read at the start of the next one, so a call is enqueued as a whole; only a policy that decides
by what the call itself shows, such as the input of its first block, waits for that. Where a policy measures nothing,
nothing is read until the end.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from adacache_engines.contract.device import Device
from adacache_engines.errors import NonFiniteError, PolicyError
from adacache_runtime.caching.policy import FIRST, Context, Decision, Observation, Policy, Run, Scope
from adacache_runtime.denoising.assembly import Assembly
from adacache_runtime.denoising.device_plan import PARTS
from adacache_runtime.denoising.latents import Latents
from adacache_runtime.denoising.probes import Probe
from adacache_runtime.samplers.update import Floats, Update
from adacache_runtime.trace import CallRecord

TIMED = ("embed", "blocks", "final", "measure", "update")


@dataclass(frozen=True)
class Generation:
    """What a generation's loop needs, bound and ready.

    Attributes:
        device: that everything runs on.
        assembly: what is bound to it.
        run: that the policy is told of.
        branches: of guidance.
        scope: whose tensors are summed for a decision: those of the whole ``batch``, or of each ``prompt``, the most
            cautious of which decides.
        condition: rounds a timestep as the original does.
    """

    device: Device
    assembly: Assembly
    run: Run
    branches: int
    scope: Scope
    condition: Callable[[Floats], Floats]

    @property
    def reads_back(self) -> bool:
        """Whether anything comes back from the device between two calls."""
        return bool(self.assembly.probes)


@dataclass
class _Call:
    """One call on its way.

    Attributes:
        context, update: which call it is.
        decision: None until there is one.
        observation: what the policy has made of it so far.
        shown: probes whose sums are on their way.
        marks: in the enqueued work, each with the part of :data:`TIMED` that it ends; None = it begins one.
    """

    context: Context
    update: Update
    decision: Decision | None
    observation: Observation
    shown: list[Probe]
    marks: list[tuple[str | None, object]]

    @property
    def compute(self) -> tuple[bool, ...]:
        assert self.decision is not None
        return self.decision.compute


def denoise(
    generation: Generation,
    updates: Sequence[Update],
    policy: Policy[Any],
    before_call: Callable[[int, Latents], None] = lambda _call, _latents: None,
    before_advance: Callable[[int, Update], None] = lambda _call, _update: None,
) -> Iterator[CallRecord]:
    """Runs all calls; yields each one's record when its measurements are in, so one call late.

    Args:
        generation: bound buffers and engines.
        updates: of the sampler, a call each.
        policy: decides which groups to compute.
        before_call: gets the number of the call, from 1, and the latents that enter it.
        before_advance: gets the number and the update of a call whose velocity is there; the latents have not moved.

    Raises:
        NonFiniteError: NaN or infinity in the latents; names the call and the stage. Without measurements it is found
            at the end only.
        PolicyError: the policy reuses what was never computed.
    """
    latents, run = generation.assembly.latents, generation.run
    state = policy.start(run)
    filled = [False] * run.groups  # whose residual there is
    done: list[_Call] = []
    previous = time.perf_counter()
    for number, update in enumerate(updates, 1):
        if done:
            state = _finish(generation, done[-1], policy, state)
            yield _record(generation, done[-1], time.perf_counter() - previous)
            previous = time.perf_counter()  # what the caller did meanwhile is no part of a call
        _enter(generation, number)
        before_call(number, latents)
        call = _Call(Context(run, number, run.timesteps[number - 1]), update, None, {}, [], [])
        _open(generation, call)
        state = _observe(generation, call, policy, state)
        call.decision, state = policy.decide(state, call.context)
        _check_decision(call.decision, filled, policy, number)
        filled = [before or now for before, now in zip(filled, call.compute, strict=True)]
        _close(generation, call, before_advance)
        done.append(call)
    state = _finish(generation, done[-1], policy, state)
    yield _record(generation, done[-1], time.perf_counter() - previous)
    spoilt = None if generation.reads_back else latents.first_spoilt()
    if spoilt is not None:
        raise NonFiniteError(_diagnose_again(generation, done[:spoilt]))


def _check_decision(decision: Decision, filled: Sequence[bool], policy: Policy[Any], call: int) -> None:
    if len(decision.compute) != len(filled):
        raise PolicyError(
            f"policy {policy!r} decided for {len(decision.compute)} groups at call {call}, not {len(filled)}"
        )
    needs = policy.needs
    for group, (compute, there) in enumerate(zip(decision.compute, filled, strict=True)):
        if not compute and not (there and needs.residuals):
            raise PolicyError(
                f"policy {policy!r} reuses group {group} at call {call}, for which no residual was kept; compute a "
                "group before reusing it, and have residuals in its needs"
            )
    if not decision.compute[0] and any(measure.site == FIRST and measure.early for measure in needs.measures):
        raise PolicyError(
            f"policy {policy!r} reuses group 0 at call {call}, and measures its residual in all calls, so that it has "
            "already run; compute it"
        )
    lengths = [len(row) for row in decision.weights]
    if lengths and (not needs.weighted or lengths != [needs.residuals] * len(filled)):
        raise PolicyError(
            f"policy {policy!r} weighs residuals at call {call} by {decision.weights}; its needs have weighted "
            f"{needs.weighted}, and {needs.residuals} residuals for each of {len(filled)} groups"
        )


def _enter(generation: Generation, call: int) -> None:
    """Enqueues what makes the latents that enter a call."""
    if generation.assembly.masked is not None:
        generation.assembly.masked.enter(call)


def _open(generation: Generation, call: _Call) -> None:
    """Enqueues what comes before the decision."""
    assembly = generation.assembly
    assembly.latents.spread()
    timestep = generation.condition(call.update.timestep)
    assembly.plan.tensors["timestep"].write(np.tile(timestep, generation.branches))
    early = [probe for probe in assembly.probes if probe.measure.early]
    _mark(generation, call, None)
    if assembly.embeds_first:
        assembly.plan.embed()
        _mark(generation, call, "embed")
        assembly.plan.first()
        _mark(generation, call, "blocks")
    if not early:
        return
    call.shown = _asked(early)
    _mark(generation, call, "measure")


def _close(
    generation: Generation,
    call: _Call,
    before_advance: Callable[[int, Update], None] = lambda _call, _update: None,
) -> None:
    """Enqueues the rest of a call, as it was decided."""
    assembly, latents, slot = generation.assembly, generation.assembly.latents, call.update.slot
    assert call.decision is not None
    weights, whole = call.decision.weights, all(call.compute)
    _mark(generation, call, None)
    if assembly.model is None or whole:
        _run_model(generation, call)
        latents.guide(slot)
        if assembly.model is not None:
            assembly.model.keep(slot)
    else:
        assembly.model.reuse(slot, weights[0] if weights else ())
    if generation.reads_back:
        _mark(generation, call, "update")
        _measure(generation, call, slot, whole)
        _mark(generation, call, "measure")
    before_advance(call.context.call, call.update)
    latents.advance(call.update)
    if generation.reads_back:
        latents.ask()
    else:
        latents.note(call.context.call)
    _mark(generation, call, "update")


def _measure(generation: Generation, call: _Call, slot: int, whole: bool) -> None:
    """Enqueues what is measured after the decision, ``whole``: every group being computed."""
    assembly = generation.assembly
    if assembly.show_velocity:
        assembly.show_velocity[slot]()
    active = [probe for probe in assembly.probes if probe.measure.calls == "all" or whole]
    call.shown = _asked([probe for probe in active if not probe.measure.early])
    for probe in active:
        if probe.measure.since == "measured" or whole:
            probe.remember()


def _asked(probes: Sequence[Probe]) -> list[Probe]:
    """Those whose sums are on their way: all or none, so that a policy sees all of its sites."""
    shown = [probe for probe in probes if probe.enqueue()]
    return shown if len(shown) == len(probes) else []


def _run_model(generation: Generation, call: _Call) -> None:
    """Enqueues embedding, blocks and final layer, but for what ran before the decision."""
    plan, decision = generation.assembly.plan, call.decision
    assert decision is not None
    if plan.weights is not None:
        groups, kept = plan.weights.shape
        newest = ((1.0, *(0.0,) * (kept - 1)),) * groups
        plan.weights.write(np.array(decision.weights or newest, np.float32))
    calls = plan.calls(_blocks(generation, call))
    if not generation.assembly.embeds_first:
        plan.embed()
        _mark(generation, call, "embed")
    for part in ("blocks", "final"):
        calls[part]()
        _mark(generation, call, part)


def _mark(generation: Generation, call: _Call, part: str | None) -> None:
    call.marks.append((part, generation.device.mark()))


def _blocks(generation: Generation, call: _Call) -> tuple[bool, ...]:
    """Which of the plan's groups are computed; those of a whole model all are."""
    return call.compute if generation.assembly.model is None else (True,) * len(generation.assembly.plan.groups)


def _observe(generation: Generation, call: _Call, policy: Policy[Any], state: Any) -> Any:
    """Waits for what a call has shown, and shows it the policy."""
    if not call.shown:
        return state
    results = [probe.result(generation.branches, generation.scope == "prompt") for probe in call.shown]
    observation, state = policy.observe(state, call.context, results)
    call.observation = {**call.observation, **observation}
    return state


def _finish(generation: Generation, call: _Call, policy: Policy[Any], state: Any) -> Any:
    """Waits for a call and shows the policy what it measured."""
    if generation.reads_back and not generation.assembly.latents.finite():
        raise NonFiniteError(_diagnose(generation, call))
    return _observe(generation, call, policy, state)


def _record(generation: Generation, call: _Call, wall_s: float) -> CallRecord:
    times = dict.fromkeys(TIMED, 0.0)
    for (_, start), (part, stop) in pairwise(call.marks):
        if part is not None:
            times[part] += generation.device.milliseconds(start, stop)
    return CallRecord(call.context.call, call.context.timestep, call.compute, call.observation, times, 1e3 * wall_s)


def _diagnose_again(generation: Generation, calls: Sequence[_Call]) -> str:
    """Makes all calls up to a spoilt one again, with a look at each."""
    latents = generation.assembly.latents
    latents.restart()
    for residuals in generation.assembly.residuals:  # of the spoilt run, and a weight of 0 does not undo NaN
        residuals.write(np.zeros(residuals.shape, residuals.dtype))
    for call in calls:
        _enter(generation, call.context.call)
        _open(generation, call)
        _close(generation, call)
        latents.ask()
        if not latents.finite():
            return _diagnose(generation, call)
    context = calls[-1].context
    return (
        f"NaN or infinity in call {context.call} of {context.run.calls}, which did not come again when the calls were "
        "repeated: engines or memory of this machine are not reliable"
    )


def _diagnose(generation: Generation, call: _Call) -> str:
    """Repeats the call, whose input is still there, and names the first stage that gives NaN or infinity."""
    where = "the sampler's update"
    steps = generation.assembly.plan.steps(_blocks(generation, call))
    reused = generation.assembly.model is not None and not all(call.compute)
    for step in [] if reused else [step for part in PARTS for step in steps[part]]:
        step.call()
        if not all(np.isfinite(buffer.read().astype(np.float32)).all() for buffer in step.written):
            where = f"stage {step.name}"
            break
    context = call.context
    return (
        f"NaN or infinity in call {context.call} of {context.run.calls} (timestep {context.timestep:.1f}), first in "
        f"{where}; with fp16 try bf16 or fp32, and check the prompt's embeddings and the initial latents"
    )
