"""Estimate of the device memory that a run takes, before anything is allocated.

The numbers are those of the run itself by construction: the same code assembles the generation, the decoder and the
encoder, on a device that hands out buffers without memory and engines that only say what they need.
"""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Graph, LatentSpace, Manifest
from adacache_engines.contract.dry_run import (
    DryRunBackend,
    DryRunDevice,
    DryRunEngine,
    KnownWorkspaces,
    Workspaces,
    arena_nbytes,
)
from adacache_engines.contract.engine import Backend
from adacache_engines.errors import EngineError, OutOfRangeError
from adacache_runtime.conditioning.image_states import encodes_image
from adacache_runtime.denoising.assembly import assemble
from adacache_runtime.denoising.experts import expert_graphs
from adacache_runtime.denoising.stages import Engines
from adacache_runtime.request import Request
from adacache_runtime.settled import Settled
from adacache_runtime.vae.carrying import load_step
from adacache_runtime.vae.chunks import video_frames
from adacache_runtime.vae.decode import decoder_steps
from adacache_runtime.vae.encode import encoder_steps
from adacache_runtime.vae.graph import Step


@dataclass(frozen=True)
class PartMemory:
    """Bytes that the engines of a part take while they are loaded.

    Attributes:
        held: bytes of weights and buffers.
        arena: bytes of activations; None = they grow as needed.
    """

    held: int = 0
    arena: int | None = 0

    @property
    def nbytes(self) -> int:
        """All bytes that are known."""
        return self.held + (self.arena or 0)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a generation takes, by kind.

    Attributes:
        weights: weights of the engines, which stay loaded for all runs; where experts take turns, of those of the
            largest one.
        weights_with_offload, weights_without_offload: the same where experts take turns, and where all are loaded;
            None = the model is one transformer.
        encoder: weights of the text encoder that are loaded at once, before the run only; 0 where the run needs none,
            has none here, or the bundle does not say. Its activations are those of one prompt, and not counted.
        image_encoder: the same of the encoder whose states of an image the model attends to.
        pixel_encoder: weights of the encoder of images and clips, and what it encodes them in; it is there before
            the run only. 0 where nothing is to be encoded.
        pixel_encoder_arena: its activations; None = they grow as needed.
        decoder: weights of the decoder, and what one prompt's chunks or tiles are decoded in; it is there after the
            run only.
        decoder_arena: activations of the decoder; None = they grow as needed.
        arena: activations of the engine that takes most; None = it grows as needed.
        hidden: hidden states between blocks.
        residuals: residuals that the policy reuses.
        probes: tensors at which the policy looks, and the earlier ones that they are compared with.
        prepared: tensors that are prepared for one block alone, once in a generation, such as the keys and values of
            its text: of 40 blocks 5120 wide, 512 tokens and two branches, 1.7 GB in float32.
        latents: latents and velocities, conditions, and the tensors that stages hand on beside the hidden state.
        contexts: number of pairs of an engine and sizes that are bound before the first call, of one expert at most
            where experts take turns; only a policy that decides by branch adds to them later, with the sizes of one
            branch. For each, TensorRT keeps an execution context, whose own memory no library tells and no kind above
            counts.
    """

    weights: int
    encoder: int
    image_encoder: int
    pixel_encoder: int
    pixel_encoder_arena: int | None
    decoder: int
    decoder_arena: int | None
    arena: int | None
    hidden: int
    residuals: int
    probes: int
    prepared: int
    latents: int
    contexts: int
    weights_with_offload: int | None = None
    weights_without_offload: int | None = None

    @property
    def run(self) -> int:
        """Bytes that a run allocates beside the weights, and gives back at its end."""
        return (self.arena or 0) + self.hidden + self.residuals + self.probes + self.prepared + self.latents

    @property
    def before(self) -> int:
        """Bytes that encoders take, one at a time, before the run allocates its own."""
        return max(self.encoder, self.image_encoder, self.pixel_encoder + (self.pixel_encoder_arena or 0))

    @property
    def after(self) -> int:
        """Bytes that the decoder takes after the run has given its own back."""
        return self.decoder + (self.decoder_arena or 0)

    @property
    def beside_weights(self) -> int:
        """The most bytes that are taken at once beside the engines' weights."""
        return max(self.before, self.run, self.after)


KINDS: Mapping[str, str] = {
    "weights": "weights of the engines",
    "encoder": "weights of the text encoder, before the run",
    "image_encoder": "weights of the image encoder, before the run",
    "pixel_encoder": "encoder of pixels and its buffers, before the run",
    "pixel_encoder_arena": "activations of the encoder of pixels",
    "decoder": "decoder and its buffers, after the run",
    "decoder_arena": "activations of the decoder",
    "arena": "activations of the engines",
    "hidden": "hidden states",
    "residuals": "cached residuals",
    "probes": "probes",
    "prepared": "tensors prepared for each block",
    "latents": "latents and conditions",
}


def estimate_memory(
    bundle: Bundle,
    backend: Backend,
    engines: Engines,
    request: Request,
    settled: Settled,
    sizes: Mapping[str, int],
    encodes: bool,
    known: KnownWorkspaces,
) -> MemoryEstimate:
    """Estimate what a generation takes: assemble it on a device that only counts.

    Args:
        bundle: the opened bundle.
        backend: the backend that runs it.
        engines: the engines of its loop.
        request, settled, sizes: as of :func:`adacache_runtime.denoising.assembly.assemble`.
        encodes: whether the text encoder runs on this backend before.
        known: remembers what engines need that are loaded only to be asked.

    Raises:
        EngineError: an engine does not run at these sizes.
        OutOfRangeError: nor does the decoder or the encoder at these tiles.
    """
    manifest = bundle.manifest
    with _kept(engines):
        run = _run_memory(manifest, engines, request, settled, sizes)
    take_turns = engines.one_expert is not None
    together, one = _loop_weights(bundle, backend)
    several = len(manifest.experts) > 1
    pixels = [(3, count, settled.height, settled.width) for count in settled.encoded]
    encoder = encoder_memory(bundle, backend, pixels, request.tile, known)
    decoder = _decoder_memory(manifest.latent, backend, request, settled, known)
    return MemoryEstimate(
        weights=one if take_turns else together,
        weights_with_offload=one if several else None,
        weights_without_offload=together if several else None,
        encoder=_most_weights(backend, manifest.part_graphs("text_encoder")) if encodes else 0,
        image_encoder=_most_weights(backend, manifest.part_graphs("image_encoder"))
        if encodes_image(manifest, request)
        else 0,
        pixel_encoder=encoder.held,
        pixel_encoder_arena=encoder.arena,
        decoder=decoder.held,
        decoder_arena=decoder.arena,
        arena=run.arena,
        **run.nbytes,
        contexts=run.shared + (max(run.bound) if take_turns else sum(run.bound)),
    )


@dataclass(frozen=True)
class _RunMemory:
    """Bytes that a run allocates, and the engines that it binds.

    Attributes:
        nbytes: bytes of tensors, by kind.
        arena: bytes of activations; None = they grow as needed.
        shared: number of bindings of engines that all experts share, each at its sizes.
        bound: the same for each expert's own.
    """

    nbytes: Mapping[str, int]
    arena: int | None
    shared: int
    bound: Sequence[int]


def _run_memory(
    manifest: Manifest, engines: Engines, request: Request, settled: Settled, sizes: Mapping[str, int]
) -> _RunMemory:
    """Assemble a run on a device that only counts; nothing that this returns keeps an engine alive."""
    device = DryRunDevice()
    shared: Workspaces = {}
    of_experts: list[Workspaces] = [{} for _ in manifest.experts]
    sources = engines.stages if engines.one_expert is None else engines.one_expert.sources()
    experts = {stage.graph.name: stage.expert for stage in manifest.stages}
    dry = Engines(
        {name: DryRunEngine(sources[name], of_experts[expert]) for name, expert in experts.items()},
        {name: DryRunEngine(engine, shared) for name, engine in engines.arithmetic.items()},
        {name: DryRunEngine(engine, shared) for name, engine in engines.signals.items()},
    )
    assembly = assemble(manifest, dry, device, request, settled, sizes)
    stages = assembly.stages
    probes = [*assembly.probed.values(), *(probe.cached for probe in assembly.probes)]
    probes += stages.unwatched.values()
    kinds = {
        "hidden": stages.hidden,
        "residuals": assembly.residuals.buffers,
        "probes": probes,
        "prepared": stages.prepared,
    }
    nbytes = {kind: sum(buffer.nbytes for buffer in buffers) for kind, buffers in kinds.items()}
    nbytes["latents"] = device.nbytes - sum(nbytes.values())
    return _RunMemory(nbytes, arena_nbytes(ChainMap(shared, *of_experts)), len(shared), list(map(len, of_experts)))


def _loop_weights(bundle: Bundle, backend: Backend) -> tuple[int, int]:
    """Return the bytes of the weights of the loop's engines with all experts loaded, and with the largest alone."""
    manifest = bundle.manifest
    known = backend.weights_nbytes(manifest.loop_graphs())
    together = bundle.path(manifest.weights).stat().st_size if known is None else known
    experts = [_weights(backend, graphs) for graphs in expert_graphs(manifest)]
    return together, together - (sum(experts) - max(experts))


def _kept(engines: Engines) -> AbstractContextManager[None]:
    """Keep the engines that are loaded inside the context, where experts take turns."""
    return nullcontext() if engines.one_expert is None else engines.one_expert.kept()


def encoder_memory(
    bundle: Bundle, backend: Backend, references: Sequence[Sequence[int]], tile: int | None, known: KnownWorkspaces
) -> PartMemory:
    """Estimate what :func:`adacache_runtime.vae.encode.encode` takes for pixels of these shapes, one after another.

    Its graphs are loaded one at a time.

    Raises:
        EngineError, OutOfRangeError: as in :func:`estimate_memory`.
    """
    space = bundle.manifest.latent
    steps = [step for shape in references for step in encoder_steps(space, shape, tile)]
    parts = [_part_memory(space, backend, [step], tile, known) for step in steps]
    return max(parts, key=lambda part: part.nbytes, default=PartMemory())


def _decoder_memory(
    space: LatentSpace, backend: Backend, request: Request, settled: Settled, known: KnownWorkspaces
) -> PartMemory:
    """Estimate what :func:`adacache_runtime.vae.decode.decode` takes for one prompt; videos are decoded one by one."""
    if not space.decoding:
        return PartMemory()
    shape = settled.latent_shape[1:]
    steps = decoder_steps(space, shape, video_frames(space, shape[1], settled.frames), request.tile)
    return _part_memory(space, backend, steps, request.tile, known)


def _part_memory(
    space: LatentSpace,
    backend: Backend,
    steps: Sequence[Step],
    tile: int | None,
    known: KnownWorkspaces,
) -> PartMemory:
    """Estimate the memory of graphs of the VAE that are loaded together, each at its sizes.

    A backend that knows its weights knows its activations, too; engines of another are not loaded to be asked, and
    neither is what does not fit anyway.
    """
    graphs = [graph for step in steps for graph in step.graphs]
    weights, free = _weights(backend, graphs), backend.device.free_nbytes()
    loads = backend.weights_nbytes(graphs) is not None and (free is None or weights <= free)
    dry_run = DryRunBackend(backend, loads, known)
    try:
        for step in steps:
            load_step(step, dry_run)
    except EngineError as error:
        if tile is None or space.tile is None or tile <= space.tile:
            raise
        raise OutOfRangeError(
            f"the compiled plans of this bundle's VAE take tiles of {space.tile} pixels at most, and not {tile}: "
            f"choose --tile {space.tile} or less, or leave it out"
        ) from error
    return PartMemory(weights + dry_run.device.nbytes, arena_nbytes(dry_run.workspaces))


def _most_weights(backend: Backend, graphs: Sequence[Graph]) -> int:
    """Return the bytes of weights of the largest graph: those of encoders of text and images are loaded in turn."""
    return max((_weights(backend, [graph]) for graph in graphs), default=0)


def _weights(backend: Backend, graphs: Sequence[Graph]) -> int:
    """Return the bytes of weights of graphs that are loaded together."""
    known = backend.weights_nbytes(graphs) if graphs else 0
    return sum(graph.weights_nbytes or 0 for graph in graphs) if known is None else known


def megabytes(nbytes: int) -> str:
    """Return a number of bytes for people, in 10^6 bytes with one decimal."""
    return f"{nbytes / 1e6:.1f}"
