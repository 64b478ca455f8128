"""What a run will take of its device's memory, before anything is allocated.

The numbers are those of the run itself by construction: the same code assembles the generation, on a device that
hands out buffers without memory and engines that only say what they need.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from adacache_engines.base import Backend, Engine, check_binding
from adacache_engines.buffers import Array, Buffer, Call, in_turn
from adacache_engines.bundle import Bundle
from adacache_engines.manifest import Graph, LatentSpace
from adacache_runtime.assembly import assemble
from adacache_runtime.bound import allocate
from adacache_runtime.decode import decoder_sizes
from adacache_runtime.plan import Engines
from adacache_runtime.request import Request, Settled
from adacache_runtime.windows import video_frames

GROWS = "grows as needed"


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by kind.

    Attributes:
        weights: of the engines, which stay loaded for all runs.
        encoder: weights of the text encoder that are loaded at once, before the run only; 0 where the run needs none,
            has none here, or the bundle does not say.
        decoder: weights of the decoder, likewise, and what one prompt's windows or tiles are decoded in; it is there
            after the run only, and its activations are not counted.
        arena: activations of the engine that takes most; None = it grows as needed.
        hidden: hidden states between blocks.
        residuals: that the policy reuses.
        probes: what the policy measures, and the last of it.
        latents: latents and velocities, conditions, and what the stages hand on beside the hidden state.
    """

    weights: int
    encoder: int
    decoder: int
    arena: int | None
    hidden: int
    residuals: int
    probes: int
    latents: int

    @property
    def run(self) -> int:
        """What is allocated when the engines are loaded, and given back at the end."""
        return (self.arena or 0) + self.hidden + self.residuals + self.probes + self.latents

    @property
    def beside_weights(self) -> int:
        """The most that there is at once beside the engines' weights."""
        return max(self.encoder, self.run, self.decoder)


KINDS: Mapping[str, str] = {
    "weights": "weights of the engines",
    "encoder": "weights of the text encoder, before the run",
    "decoder": "decoder and its buffers, after the run",
    "arena": "activations",
    "hidden": "hidden states",
    "residuals": "cached residuals",
    "probes": "probes",
    "latents": "latents and conditions",
}


def plan_memory(
    bundle: Bundle,
    backend: Backend,
    engines: Engines,
    request: Request,
    settled: Settled,
    sizes: Mapping[str, int],
    encodes: bool,
) -> MemoryPlan:
    """What :func:`adacache_runtime.assembly.assemble` would allocate; same arguments, the back end, and whether the
    text encoder runs before.

    Raises:
        EngineError: an engine does not run at these sizes.
    """
    device = _Paper()
    needs: list[int | None] = []
    asked = Engines(
        {name: _Asked(engine, needs) for name, engine in engines.stages.items()},
        {name: _Asked(engine, needs) for name, engine in engines.arithmetic.items()},
    )
    manifest = bundle.manifest
    assembly = assemble(manifest, asked, device, request, settled, sizes)
    known = [need for need in needs if need is not None]
    plan = assembly.plan
    probes = [*assembly.probed.values(), *(probe.cached for probe in assembly.probes)]
    if plan.unwatched is not None:
        probes.append(plan.unwatched)
    kinds = {"hidden": plan.hidden, "residuals": assembly.residuals, "probes": probes}
    nbytes = {kind: sum(buffer.nbytes for buffer in buffers) for kind, buffers in kinds.items()}
    weights = backend.weights_nbytes(manifest.loop_graphs())
    return MemoryPlan(
        weights=bundle.path(manifest.weights).stat().st_size if weights is None else weights,
        encoder=_most_weights(backend, manifest.part_graphs("text_encoder")) if encodes else 0,
        decoder=_weights(backend, manifest.latent.decoding) + _decoder_buffers(manifest.latent, request, settled),
        arena=max(known) if len(known) == len(needs) else None,
        **nbytes,
        latents=device.nbytes - sum(nbytes.values()),
    )


def _most_weights(backend: Backend, graphs: Sequence[Graph]) -> int:
    """Of the graph that has most: a text encoder's are loaded one at a time."""
    return max((_weights(backend, [graph]) for graph in graphs), default=0)


def _weights(backend: Backend, graphs: Sequence[Graph]) -> int:
    """Of graphs that are loaded together."""
    known = backend.weights_nbytes(graphs) if graphs else 0
    return sum(graph.weights_nbytes or 0 for graph in graphs) if known is None else known


def _decoder_buffers(space: LatentSpace, request: Request, settled: Settled) -> int:
    """Bytes that :func:`adacache_runtime.decode.decode` allocates for a prompt; videos are decoded one by one."""
    if not space.decoding:
        return 0
    shape = settled.latents.shape[1:]
    device = _Paper()
    for graph, sizes in decoder_sizes(space, shape, video_frames(space, shape[1], settled.frames), request.tile):
        allocate(graph, sizes, device)
    return device.nbytes


def table(plan: MemoryPlan, free: int | None, place: str) -> Table:
    """For a terminal: a row a kind.

    Args:
        plan: what the run takes.
        free: bytes that are free now, the weights being loaded; None = unknown.
        place: name of the back end.
    """
    shown = Table("memory", "MB", title=place, title_justify="left")
    shown.columns[1].justify = "right"
    for name, text in KINDS.items():
        nbytes = getattr(plan, name)
        shown.add_row(text, GROWS if nbytes is None else megabytes(nbytes))
    shown.add_section()
    shown.add_row("most at once, beside the weights", megabytes(plan.beside_weights))
    shown.add_row("free now, the weights being loaded", "unknown" if free is None else megabytes(free))
    return shown


def megabytes(nbytes: int) -> str:
    """For people: 10^6 bytes, one decimal."""
    return f"{nbytes / 1e6:.1f}"


@dataclass(frozen=True)
class _Sheet:
    """A buffer without memory."""

    shape: tuple[int, ...]
    dtype: np.dtype
    address: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def part(self, start: int, stop: int) -> "_Sheet":
        return _Sheet((len(range(self.shape[0])[start:stop]), *self.shape[1:]), self.dtype)

    def row(self, index: int) -> "_Sheet":
        return _Sheet(self.shape[1:], self.dtype)

    def write(self, array: Array) -> None:
        pass

    def read(self) -> Array:
        raise NotImplementedError("there is nothing to read")


@dataclass(frozen=True)
class _NoReadback:
    def start(self) -> None:
        pass

    def result(self) -> Array:
        raise NotImplementedError("there is nothing to read")


@dataclass
class _Paper:
    """A device that only counts."""

    nbytes: int = 0
    kind: str = "paper"
    index: int = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> _Sheet:
        sheet = _Sheet(shape, dtype)
        self.nbytes += sheet.nbytes
        return sheet

    def copy(self, source: Buffer, target: Buffer) -> Call:
        return _nothing

    def readback(self, source: Buffer) -> _NoReadback:
        return _NoReadback()

    def sequence(self, calls: Sequence[Call], name: str = "calls") -> Call:
        return in_turn(calls)

    def free_nbytes(self) -> None:
        """Paper is never short."""

    def mark(self) -> None:
        """Nothing runs."""

    def milliseconds(self, start: object, stop: object) -> float:
        return 0.0


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class _Asked:
    """An engine that is asked for its need instead of being bound."""

    engine: Engine
    needs: list[int | None]

    @property
    def graph(self) -> Graph:
        return self.engine.graph

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        check_binding(self.graph, tensors)
        self.needs.append(self.workspace_nbytes({spec.name: tensors[spec.name].shape for spec in self.graph.inputs}))
        return _nothing

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        return self.engine.workspace_nbytes(shapes)
