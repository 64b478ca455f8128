"""Records a fully computed generation: each call runs in full, and beside it the final layer on older residuals.

The first block is a group of its own, so that what FBCache looks at is there, too; the stack's residual is the sum of
the two groups'. Where a model has two experts, each has its own guidance scale, and its calls are compared with each
other only, since a policy begins anew with each.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adacache_engines.contract.device import Buffer, Call
from adacache_runtime.caching.measures import ROLES, space_of
from adacache_runtime.caching.policy import (
    FIRST,
    LATENTS,
    VELOCITY,
    Context,
    Decision,
    Measure,
    Measurement,
    Needs,
    Observation,
    Run,
)
from adacache_runtime.denoising.probes import Probe, Signals
from adacache_runtime.denoising.segments import Segment
from adacache_runtime.events import Denoised
from adacache_runtime.generation import Begun
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.samplers.update import Update
from adacache_runtime.trace import CallRecord, Trace
from adacache_tune.calibration.records import RESIDUAL, Floats, Record

PLACES = 512  # of the latents, at which errors are kept: enough for a norm within a few per cent


@dataclass(frozen=True)
class Everything:
    """A policy that computes every call and measures at all sites."""

    sites: tuple[str, ...]

    @property
    def needs(self) -> Needs:
        return Needs(measures=tuple(Measure(site) for site in self.sites), granularity="first")

    def start(self, run: Run) -> None:
        """There is no state."""

    def decide(self, state: None, context: Context) -> tuple[Decision, None]:
        return Decision((True,) * context.run.groups), None

    def observe(self, state: None, context: Context, measurements: Sequence[Measurement]) -> tuple[Observation, None]:
        return {}, None


def record(
    pipeline: Pipeline,
    request: Request,
    gaps: int,
    strides: Sequence[int] = (1,),
    on_call: Callable[[CallRecord], None] = lambda _: None,
) -> tuple[Record, Denoised]:
    """Make a generation and record it.

    Args:
        pipeline: the opened pipeline.
        request: the request; its policy and granularity are not used.
        gaps: largest number of calls over which changes and errors are recorded; each takes a residual's memory and a
            tensor's at each site.
        strides: distances in frames at which motion is recorded.
        on_call: called with each call's record.

    Raises:
        AdaCacheError: as :meth:`Pipeline.generate`.
    """
    manifest = pipeline.bundle.manifest
    roles = {role: sites for role in ROLES if (sites := manifest.sites(role))}
    policy = Everything((*roles, FIRST, LATENTS, VELOCITY))
    started = pipeline.prepare(replace(request, policy=policy, granularity=None, scope="batch")).begin()
    recorder = _Recorder(pipeline, started, gaps, strides)
    calls = []
    for made in started.denoiser.records(before_advance=recorder.look):
        calls.append(made)
        on_call(made)
    result = Denoised(started.denoiser.latents.read(), Trace(tuple(calls), started.sizes, started.settled.granularity))
    return recorder.record(roles), result


class _Recorder:
    """The tensors that are kept of the last calls, and the numbers that were measured."""

    def __init__(self, pipeline: Pipeline, started: Begun, gaps: int, strides: Sequence[int]) -> None:
        assembly, arithmetic = started.denoiser.assembly, pipeline.engines.arithmetic
        device, stages = assembly.device, assembly.stages
        self._segments = [segment for segment in started.settled.segments for _ in range(segment.run.calls)]
        self._calls = len(self._segments)
        self._gaps, self._strides = max(1, min(gaps, self._calls - 1)), tuple(strides)
        self._timesteps = tuple(float(update.timestep[0]) for update in started.settled.updates)
        hidden = stages.hidden[0]
        first, rest = (assembly.groups.newest(group) for group in range(2))
        residual, scratch = (device.empty(hidden.shape, hidden.dtype) for _ in range(2))
        # the sum of both groups, which in itself is no hidden state, but adds up like one
        self._sum = arithmetic["add"].bind({"hidden": first, "residual": rest, "hidden_out": residual})
        shown: dict[str, Buffer] = {**assembly.shown, RESIDUAL: residual}
        signals = Signals(pipeline.bundle.manifest.signals, pipeline.engines.signals)
        self._probes = {
            site: [
                Probe(self._measure(signals, site, place), buffer, signals, device, stages.branches)
                for place in range(self._gaps)
            ]
            for site, buffer in shown.items()
        }
        self._ring = [probe.cached for probe in self._probes[RESIDUAL]]
        self._reuse = [
            arithmetic["add"].bind({"hidden": hidden, "residual": old, "hidden_out": scratch}) for old in self._ring
        ]
        self._stages, self._hidden, self._scratch = stages, hidden, scratch
        self._bound: dict[int, _Ends] = {}
        if stages.engines.one_expert is not None:
            stages.engines.one_expert.add(self)
        self._velocity = device.empty(assembly.latents.current.shape, np.dtype(np.float32))
        self._scale = device.empty((1,), np.dtype(np.float32))
        self._guide = self._bound_guide(pipeline)
        self._guided: Segment | None = None  # whose guidance scale is written
        self._true = [assembly.latents.velocity(slot) for slot in range(assembly.latents.history.shape[0])]
        shape = (self._gaps, self._calls)
        values = math.prod(self._velocity.shape)
        self._places = np.sort(np.random.default_rng(0).choice(values, min(values, PLACES), replace=False))
        self._error = np.full((*shape, len(self._places)), np.nan, np.float32)
        self._sites: dict[str, dict[str, Floats]] = {
            site: {
                key: np.full((self._gaps if key in probes[-1].keys else 1, self._calls), np.nan)
                for key in probes[0].keys
            }
            for site, probes in self._probes.items()
        }

    def look(self, call: int, update: Update) -> None:
        """Record a call, when its velocity is there and before the latents move on."""
        segment = self._segments[call - 1]
        if segment is not self._guided:
            self._scale.write(np.array([segment.guidance], np.float32))
            self._guided = segment
        self._sum()
        here = (call - 1) % self._gaps
        for gap in range(1, min(self._gaps, call - segment.before - 1) + 1):
            place = (call - 1 - gap) % self._gaps
            for site, probes in self._probes.items():
                self._note(site, gap, call, probes[place])
            self._error[gap - 1, call - 1] = self._error_of(segment.expert, place, update)
        for probes in self._probes.values():
            probes[here].remember()

    def record(self, roles: Mapping[str, tuple[str, ...]]) -> Record:
        """Return what was recorded."""
        calls = tuple(segment.run.calls for segment in dict.fromkeys(self._segments))
        return Record(self._timesteps, self._sites, roles, self._error, calls)

    def forget(self, expert: int) -> None:
        """Drop the calls that are bound to an expert's engines; they are bound anew when they are needed again."""
        self._bound.pop(expert, None)

    def _measure(self, signals: Signals, site: str, place: int) -> Measure:
        """Return what is measured at a place of the ring: at the first one also what depends on no earlier tensor."""
        space = space_of(site)
        graphs = {name: entry.graphs[space] for name, entry in signals.entries.items() if space in entry.graphs}
        compared = [name for name, graph in graphs.items() if any(spec.name == "cached" for spec in graph.inputs)]
        return Measure(site, signals=tuple(graphs if place == 0 else compared), strides=self._strides)

    def _note(self, site: str, gap: int, call: int, probe: Probe) -> None:
        probe.enqueue()
        (measurement,) = probe.result(per_prompt=False)
        for key, (value,) in measurement.values.items():
            numbers = self._sites[site][key]
            numbers[min(gap, len(numbers)) - 1, call - 1] = value

    def _error_of(self, expert: int, place: int, update: Update) -> NDArray[np.float64]:
        """Return how far off the latents' update with an old residual is, at the recorded places."""
        ends = self._ends(expert)
        # the embedding once more: blocks write over it
        for call in (*ends.embed, self._reuse[place], *ends.final, self._guide):
            call()
        velocity, true = (buffer.read().astype(np.float64) for buffer in (self._velocity, self._true[update.slot]))
        _, kept_velocity = update.entry()
        weights = (update.weights[update.slot].astype(np.float64) * kept_velocity)[:, None, None, None, None]
        off: NDArray[np.float64] = (weights * (velocity - true)).reshape(-1)[self._places]
        return off

    def _ends(self, expert: int) -> "_Ends":
        """Return an expert's stages before and behind its blocks, bound where they were not."""
        if expert not in self._bound:
            stages = self._stages
            embed, final = (
                [step.call for step in steps]
                for steps in (
                    stages.embed(self._hidden, stages.everyone, expert),
                    stages.final(self._scratch, stages.everyone, expert),
                )
            )
            self._bound[expert] = _Ends(embed, final)
        return self._bound[expert]

    def _bound_guide(self, pipeline: Pipeline) -> Call:
        """Bind what makes a velocity of the predictions: without guidance, there is one branch."""
        tensors = {"prediction": self._stages.tensors["prediction"], "velocity": self._velocity}
        if self._stages.branches == 1:
            return pipeline.engines.arithmetic["velocity"].bind(tensors)
        return pipeline.engines.arithmetic["guide"].bind({**tensors, "guidance": self._scale})


@dataclass(frozen=True)
class _Ends:
    """Bound calls of an expert's stages before its blocks, and of those behind them."""

    embed: Sequence[Call]
    final: Sequence[Call]
