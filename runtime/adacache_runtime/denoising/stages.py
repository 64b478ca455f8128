"""A model's stages bound to tensors: which buffers each one reads and writes, for all guidance branches or for some.

The state moves through a small pool of buffers. Tensors with a ``batch`` axis hold all samples of one branch, then
those of the next, so a run of branches is a part of each of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adacache_engines.bundle.manifest import Manifest, Role, StageEntry
from adacache_engines.bundle.tensors import NUMPY_DTYPES, TensorSpec
from adacache_engines.contract.device import Buffer, Call, Device
from adacache_engines.contract.engine import Engine
from adacache_runtime.caching.groups import hidden_spec
from adacache_runtime.denoising.experts import OneExpert

OUT = "_out"  # a stage's output "hidden_out" is the next one's "hidden"
BATCH = "batch"


@dataclass(frozen=True)
class Engines:
    """A bundle's engines, loaded once for all generations; each mapping goes by the graph's name.

    Attributes:
        stages: engines of the model's stages.
        arithmetic, signals: engines of the arithmetic and of signals, which all experts share.
        one_expert: what loads the stages of one expert at a time, so that ``stages`` has those of one; None = the
            stages of all experts are loaded.
    """

    stages: Mapping[str, Engine]
    arithmetic: Mapping[str, Engine]
    signals: Mapping[str, Engine]
    one_expert: OneExpert | None = None


@dataclass(frozen=True)
class Step:
    """A bound call.

    Attributes:
        name: graph that it runs, for error messages.
        call: runs it.
        written: buffers that it writes, for finding the first one with NaN.
    """

    name: str
    call: Call
    written: tuple[Buffer, ...]


@dataclass(frozen=True)
class Span:
    """Consecutive guidance branches that a step runs for: ``start`` to ``stop`` of all, the latter excluded."""

    start: int
    stop: int

    def of(self, buffer: Buffer, samples: int) -> Buffer:
        """Return the part of a tensor (branches * samples, ...) that belongs to these branches."""
        whole = self.start == 0 and self.stop * samples == buffer.shape[0]
        return buffer if whole else buffer.part(self.start * samples, self.stop * samples)


class BoundStages:
    """The tensors that a generation's stages read and write, and the stages bound to them.

    Args:
        manifest: the bundle's manifest.
        engines: the bundle's loaded engines.
        device: device of the tensors.
        sizes: sizes of the dynamic axes; ``batch`` counts the guidance branches of all samples.
        pool: number of buffers for the state.
        probes: site -> buffer that receives what the site's stage shows.

    Attributes:
        tensors: the model's inputs and outputs and what stages hand on, by name, except states and probes; what
            prepares a block is there under :meth:`adacache_engines.bundle.stages.StageEntry.own_name`.
        hidden: pool of buffers for the state (batch, ...).
        unwatched: shape and dtype -> buffer that receives all probes like it that nobody looks at.
        samples, branches: number of prompts, and of guidance branches.
    """

    def __init__(
        self,
        manifest: Manifest,
        engines: Engines,
        device: Device,
        sizes: Mapping[str, int],
        pool: int,
        probes: Mapping[str, Buffer],
    ) -> None:
        self.manifest, self.engines, self.device = manifest, engines, device
        self.samples = sizes["samples"]
        self.branches = sizes[BATCH] // self.samples
        self._sizes, self._probes = sizes, probes
        self._spec = hidden_spec(manifest)
        self.hidden: Sequence[Buffer] = [self.empty_hidden() for _ in range(pool)]
        self.unwatched: dict[tuple[tuple[int, ...], str], Buffer] = {}
        preparing = [stage for stage in manifest.stages if stage.prepares_block]
        self._own = {stage.own_name(spec.name) for stage in preparing for spec in stage.graph.outputs}
        self.tensors: dict[str, Buffer] = {}
        for stage in manifest.stages:
            watched = {*(probe.output for probe in stage.probes.values()), "hidden", "hidden" + OUT}
            named = {self._name(stage, spec.name): spec for spec in (*stage.graph.inputs, *stage.graph.outputs)}
            for name, spec in named.items():
                if spec.name not in watched and name not in self.tensors:
                    self.tensors[name] = self._empty(spec)

    @property
    def everyone(self) -> Span:
        """All guidance branches."""
        return Span(0, self.branches)

    @property
    def prepared(self) -> list[Buffer]:
        """Buffers of what prepares one block alone."""
        return [self.tensors[name] for name in sorted(self._own)]

    def empty_hidden(self, kept: int | None = None, branches: int | None = None) -> Buffer:
        """Allocate a tensor of the state's shape for some branches, or ``kept`` of them in one."""
        sizes = self._sizes if branches is None else {**self._sizes, BATCH: branches * self.samples}
        shape = self._spec.shape(sizes)
        return self.device.empty(shape if kept is None else (kept, *shape), NUMPY_DTYPES[self._spec.dtype])

    def begin(self, expert: int = 0) -> list[Step]:
        """Bind the stages that run once a generation, when an expert's calls begin."""
        stages = [stage for stage in self.manifest.stages if stage.expert == expert and stage.per_generation]
        return [self.bind(stage, self.hidden[0], self.hidden[0], self.everyone) for stage in stages]

    def embed(self, hidden: Buffer, span: Span, expert: int = 0) -> list[Step]:
        """Bind what turns latents into the state, for a run of branches."""
        return [self.bind(stage, hidden, hidden, span) for stage in self._each_call("embed", expert)]

    def final(self, hidden: Buffer, span: Span, expert: int = 0) -> list[Step]:
        """Bind what turns the state into a prediction, for a run of branches."""
        return [self.bind(stage, hidden, hidden, span) for stage in self._each_call("final", expert)]

    def forward(self, expert: int = 0) -> list[Step]:
        """Bind a whole evaluation of the model, from embedding to prediction, for all branches."""
        here, after = self.hidden[:2]
        steps = self.embed(here, self.everyone, expert)
        for stage in self.manifest.stages_of("block", expert=expert):
            steps.append(self.bind(stage, here, after, self.everyone))
            here, after = after, here
        return [*steps, *self.final(here, self.everyone, expert)]

    def bind(self, stage: StageEntry, hidden: Buffer, hidden_out: Buffer, span: Span) -> Step:
        """Bind a stage that reads and writes these states, for a run of branches.

        Raises:
            EngineError: the engine does not run at these sizes.
        """
        graph, sites = stage.graph, {probe.output: site for site, probe in stage.probes.items()}
        tensors: dict[str, Buffer] = {}
        for spec in (*graph.inputs, *graph.outputs):
            if spec.name == "hidden":
                buffer = hidden
            elif spec.name == "hidden" + OUT:
                buffer = hidden_out
            elif spec.name in sites:
                buffer = self._probes.get(sites[spec.name]) or self._ignored(spec)
            else:
                buffer = self.tensors[self._name(stage, spec.name)]
            tensors[spec.name] = span.of(buffer, self.samples) if spec.axes[0] == BATCH else buffer
        call = self.engines.stages[graph.name].bind(tensors)
        return Step(graph.name, call, tuple(tensors[spec.name] for spec in graph.outputs))

    def _each_call(self, role: Role, expert: int) -> list[StageEntry]:
        stages = [stage for stage in self.manifest.stages_of(role, expert=expert) if not stage.per_generation]
        if role == "embed":  # positions that depend on the call are made first, wherever they are listed
            return [*self._each_call("positions", expert), *stages]
        return stages

    def _name(self, stage: StageEntry, tensor: str) -> str:
        """Return the name in ``tensors`` of a stage's input or output."""
        own = stage.own_name(tensor)
        return own if own in self._own else tensor

    def _ignored(self, spec: TensorSpec) -> Buffer:
        key = spec.shape(self._sizes), spec.dtype
        if key not in self.unwatched:
            self.unwatched[key] = self._empty(spec)
        return self.unwatched[key]

    def _empty(self, spec: TensorSpec) -> Buffer:
        return self.device.empty(spec.shape(self._sizes), NUMPY_DTYPES[spec.dtype])
