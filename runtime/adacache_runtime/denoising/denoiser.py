"""The denoising loop: where sampler, policy, buffers and engines meet.

What a call measured is read at the start of the next one, so a call is enqueued as a whole; only a policy that decides
by what the call itself shows, such as the input of its first block, waits for that. Where a policy measures nothing,
nothing is read until the end.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from adacache_engines.contract.device import Mark
from adacache_engines.errors import NonFiniteError
from adacache_runtime.caching import answers
from adacache_runtime.caching.policy import Context, Decision, Observation, Policy, Scope, compact
from adacache_runtime.denoising.assembly import Assembly
from adacache_runtime.denoising.decisions import Decisions
from adacache_runtime.denoising.device_plan import TimedCall
from adacache_runtime.denoising.latents import Latents
from adacache_runtime.denoising.probes import Probe
from adacache_runtime.denoising.residuals import Choice
from adacache_runtime.denoising.segments import Segment
from adacache_runtime.samplers.update import Floats, Update
from adacache_runtime.trace import CallRecord

TIMED = ("embed", "blocks", "final", "measure")  # "final": all from the final stage to the next latents

BeforeCall = Callable[[int, Latents], None]
BeforeAdvance = Callable[[int, Update], None]


@dataclass
class _Call:
    """One call on its way.

    Attributes:
        number: number of the call, from 1.
        segment: segment of the generation that the call belongs to.
        context: what the policy is told of the call.
        update: timestep and coefficients of the call.
        choice: groups that are computed; everything until there is a decision.
        decision: the policy's decision; None until there is one.
        observation: what the policy has made of the call's measurements so far.
        shown: probes whose numbers are on their way.
        marks: points in the enqueued work, each with the part of :data:`TIMED` that it ends; None = it begins one.
        switch_ms: milliseconds that it took to load the expert's engines; None where they were loaded.
    """

    number: int
    segment: Segment
    context: Context
    update: Update
    choice: Choice
    decision: Decision | None
    observation: Observation
    shown: list[Probe]
    marks: list[tuple[str | None, Mark]]
    switch_ms: float | None = None


class Denoiser:
    """All calls of one generation, which :meth:`records` makes one by one.

    Args:
        assembly: the generation's buffers and bound calls.
        segments: consecutive calls of each expert, in order.
        updates: the sampler's update for each call.
        policy: decides which groups a call computes.
        scope: the ``batch`` decides as one, or each ``prompt`` is measured by itself.
        condition: rounds timesteps as the model expects them.

    Attributes:
        assembly: the generation's buffers and bound calls.
    """

    def __init__(
        self,
        assembly: Assembly,
        segments: Sequence[Segment],
        updates: Sequence[Update],
        policy: Policy[Any],
        scope: Scope = "batch",
        condition: Callable[[Floats], Floats] = lambda values: values,
    ) -> None:
        self.assembly = assembly
        self._updates, self._policy, self._scope, self._condition = updates, policy, scope, condition
        self._wholes: dict[int, Choice] = {}  # by expert, the choice that computes everything
        self._segments = [segment for segment in segments for _ in range(segment.run.calls)]
        self._everywhere = (True,) * assembly.stages.branches
        self._reads_back = bool(assembly.probes)  # whether anything comes back from the device between two calls

    @property
    def latents(self) -> Latents:
        """The latents, which are those of the video when all calls are made."""
        return self.assembly.latents

    def records(
        self, before_call: BeforeCall | None = None, before_advance: BeforeAdvance | None = None
    ) -> Iterator[CallRecord]:
        """Make all calls; yield each one's record when its measurements are in, so one call late.

        Args:
            before_call: gets the number of the call, from 1, and the latents that enter it.
            before_advance: gets the number and the update of a call whose velocity is there; the latents have not
                moved.

        Raises:
            NonFiniteError: NaN or infinity in the latents; names the call and the stage. Without measurements it is
                found at the end only.
            PolicyError: the policy reuses what was never computed, or decides for other groups than there are.
        """
        decisions = Decisions(self._policy, self.assembly)
        done: list[_Call] = []
        state: Any = None
        previous = time.perf_counter()
        for number, update in enumerate(self._updates, 1):
            if done:
                state = self._finish(done[-1], state)
                yield self._record(done[-1], time.perf_counter() - previous)
                previous = time.perf_counter()  # what the caller did meanwhile is no part of a call
            segment = self._segments[number - 1]
            with self._loaded(segment) as switch_ms:
                if not done or segment is not done[-1].segment:
                    self._begin(segment)
                    decisions.begin(segment.run)
                    state = answers.start(self._policy, segment.run)
                call = self._call(number, segment, update)
                call.switch_ms = switch_ms
                self._enter(call)
                if before_call is not None:
                    before_call(number, self.latents)
                self._open(call)
                state = self._observe(call, state)
                call.decision, state = answers.decide(self._policy, state, call.context)
                call.choice = decisions.checked(call.decision, call.context, segment.expert)
                self._close(call, before_advance)
            done.append(call)
        state = self._finish(done[-1], state)
        yield self._record(done[-1], time.perf_counter() - previous)
        spoilt = None if self._reads_back else self.latents.first_spoilt()
        if spoilt is not None:
            raise NonFiniteError(self._diagnose_again(done[:spoilt]))

    @contextmanager
    def _loaded(self, segment: Segment) -> Iterator[float | None]:
        """Have the engines of a segment's expert loaded and bound inside the context; see :class:`OneExpert`."""
        one_expert = self.assembly.stages.engines.one_expert
        if one_expert is None:
            yield None
            return
        with one_expert.held(segment.expert) as switch_ms:
            self.assembly.bind(segment.expert)
            yield switch_ms

    def _begin(self, segment: Segment) -> None:
        """Make an expert ready for its calls; nothing of another expert's calls is compared with its own."""
        self.assembly.guidance.write(segment.guidance)
        self.assembly.plan.begin(segment.expert)
        groups, branches = segment.run.groups, self.assembly.stages.branches
        self._wholes[segment.expert] = Choice.alike((True,) * groups, branches, segment.expert)
        for probe in self.assembly.probes:
            probe.forget()

    def _call(self, number: int, segment: Segment, update: Update) -> _Call:
        context = segment.context(number)
        whole = self._wholes[segment.expert]
        return _Call(number, segment, context, update, whole, None, {}, [], [])

    def _enter(self, call: _Call) -> None:
        """Enqueue what makes the latents that enter a call."""
        if self.assembly.masked is not None:
            self.assembly.masked.enter(call.number)

    def _open(self, call: _Call) -> None:
        """Enqueue what comes before the decision."""
        assembly = self.assembly
        timestep = self._condition(call.update.timestep)
        assembly.stages.tensors["timestep"].write(np.tile(timestep, assembly.stages.branches))
        early = [probe for probe in assembly.probes if probe.measure.early]
        if assembly.opens:
            self._run(call, assembly.plan.open(call.choice))
        if early:
            self._mark(call, None)
            call.shown = _enqueued([(probe, probe.due(self._everywhere)) for probe in early])
            self._mark(call, "measure")

    def _close(self, call: _Call, before_advance: BeforeAdvance | None = None) -> None:
        """Enqueue the rest of a call, as it was decided."""
        assembly, plan, slot = self.assembly, self.assembly.plan, call.update.slot
        assert call.decision is not None
        assembly.residuals.weigh(call.decision.weights_by_branch(assembly.stages.branches))
        if call.decision.rebuild:
            assembly.guidance.rebuild(call.decision.rebuild)
        assembly.latents.write(call.update)
        whole = tuple(map(all, call.choice.rows))
        due = [
            (probe, probe.due(self._everywhere if probe.measure.calls == "all" else whole)) for probe in assembly.probes
        ]
        measured = [(probe, parts) for probe, parts in due if parts]
        if before_advance is None and not measured:
            self._run(call, plan.whole(call.choice, slot))
        else:
            self._run(call, plan.velocity(call.choice, slot))
            self._mark(call, None)
            self._measure(call, measured, whole)
            self._mark(call, "measure")
            if before_advance is not None:
                before_advance(call.number, call.update)
            self._run(call, plan.advance(slot))
        if self._reads_back:
            assembly.latents.ask()
        else:
            assembly.latents.note(call.number)

    def _measure(self, call: _Call, due: Sequence[tuple[Probe, list[int]]], whole: Sequence[bool]) -> None:
        """Enqueue what is measured after the decision, and keep the tensors that later ones are compared with.

        Args:
            call: the call.
            due: the probes that are measured in this call, each with its parts.
            whole: for each branch, whether all of its groups are computed.
        """
        for probe, _ in due:
            if probe.measure.site in self.assembly.shows:
                self.assembly.shows[probe.measure.site][call.update.slot]()
        call.shown = _enqueued([(probe, parts) for probe, parts in due if not probe.measure.early])
        for probe, parts in due:
            probe.remember(parts if probe.measure.since == "measured" else probe.due(whole))

    def _run(self, call: _Call, timed: TimedCall) -> None:
        """Enqueue a part of a call. Its marks are its own until it is enqueued again, so a record is made before."""
        timed.call()
        call.marks += timed.marks

    def _mark(self, call: _Call, part: str | None) -> None:
        call.marks.append((part, self.assembly.device.mark()))

    def _observe(self, call: _Call, state: Any) -> Any:
        """Wait for what a call has shown, show it to the policy, and return its state."""
        if not call.shown:
            return state
        results = [one for probe in call.shown for one in probe.result(self._scope == "prompt")]
        observation, state = answers.observe(self._policy, state, call.context, results)
        call.observation = {**call.observation, **observation}
        return state

    def _finish(self, call: _Call, state: Any) -> Any:
        """Wait for a call, show the policy what it measured, and return its state."""
        if self._reads_back and not self.latents.finite():
            raise NonFiniteError(self._diagnose(call))
        return self._observe(call, state)

    def _record(self, call: _Call, wall_s: float) -> CallRecord:
        times = dict.fromkeys(TIMED, 0.0)
        for (_, start), (part, stop) in pairwise(call.marks):
            if part is not None:
                times[part] += self.assembly.device.milliseconds(start, stop)
        timestep, compute = call.context.timestep, compact(call.choice.rows)
        rebuilt = call.choice.rebuilt if any(call.choice.rebuilt) else ()
        wall_ms = 1e3 * wall_s - (call.switch_ms or 0.0)
        return CallRecord(call.number, timestep, compute, call.observation, times, wall_ms, rebuilt, call.switch_ms)

    def _diagnose_again(self, calls: Sequence[_Call]) -> str:
        """Make all calls up to a spoilt one again, with a look at each, and say where it came from."""
        self.latents.restart()
        kept = [*self.assembly.residuals.buffers, self.assembly.guidance.difference]
        for buffer in kept:  # of the spoilt run, and a weight of 0 does not undo NaN
            if buffer is not None:
                buffer.write(np.zeros(buffer.shape, buffer.dtype))
        segment: Segment | None = None
        for call in calls:
            with self._loaded(call.segment):
                if call.segment is not segment:
                    segment = call.segment
                    self._begin(segment)
                self._enter(call)
                self._open(call)
                self._close(call)
            self.latents.ask()
            if not self.latents.finite():
                return self._diagnose(call)
        call = calls[-1]
        return (
            f"NaN or infinity in call {call.number} of {len(self._updates)}, which did not come again when the calls "
            "were repeated: engines or memory of this machine are not reliable"
        )

    def _diagnose(self, call: _Call) -> str:
        """Repeat a call, whose input is still there, and name the first stage that gives NaN or infinity."""
        where = "the sampler's update"
        with self._loaded(call.segment):
            for step in self.assembly.plan.model_steps(call.choice):
                step.call()
                if not all(np.isfinite(buffer.read().astype(np.float32)).all() for buffer in step.written):
                    where = f"stage {step.name}"
                    break
        return (
            f"NaN or infinity in call {call.number} of {len(self._updates)} (timestep {call.context.timestep:.1f}), "
            f"first in {where}; with fp16 try bf16 or fp32, and check the prompt's embeddings and the initial latents"
        )


def _enqueued(due: Sequence[tuple[Probe, list[int]]]) -> list[Probe]:
    """Return the probes whose numbers are on their way: all or none, so that a policy sees all of its sites."""
    shown = [probe for probe, parts in due if probe.enqueue(parts)]
    return shown if len(shown) == len(due) else []
