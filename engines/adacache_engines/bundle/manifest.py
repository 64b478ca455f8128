"""The manifest's schema: what a bundle says of its model.

Within schema version 1, fields may be added with a default; anything else makes a new version.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from adacache_engines.bundle.entries import Check as Check
from adacache_engines.bundle.entries import Entry
from adacache_engines.bundle.entries import Graph as Graph
from adacache_engines.bundle.latent_space import LatentSpace as LatentSpace
from adacache_engines.bundle.signals import SignalEntry as SignalEntry
from adacache_engines.bundle.tensors import DTYPES as DTYPES
from adacache_engines.bundle.tensors import Precision as Precision
from adacache_engines.bundle.tensors import TensorSpec

SCHEMA_VERSION = 1

Library = Literal["tensorrt-rtx", "tensorrt"]
Variant = Literal["full", "reuse"]
ExportGranularity = Literal["block", "module"]  # of stages: a transformer block, or its attention, MLP, ... each
X_MASK = "x_mask"  # input (batch, patch_frames) of a model that may keep frames: False = this one is given, and kept


# of Check.error: rounding of the precision, through one stage
TOLERANCES: Mapping[Precision, float] = {"fp32": 2e-5, "fp16": 2e-2, "bf16": 1.5e-1}


class Term(Entry):
    """A part of a stage's work: so many ``flops`` for each element of the product of the axes' sizes."""

    axes: tuple[str, ...]  # one may come twice: every token attends to every token
    flops: int


class StageEntry(Entry):
    """A stage of the model, in the order of execution.

    Attributes:
        block: has the form hidden' = hidden + r(hidden, ...), so a policy may reuse its residual.
        probes: site -> output that carries it.
        flops: floating-point operations of one call, the sum of these terms; None = exported before they were counted.
    """

    graph: Graph
    block: bool = False
    probes: dict[str, str] = Field(default_factory=dict)
    flops: tuple[Term, ...] | None = None

    def probe_spec(self, site: str) -> TensorSpec:
        """The output that carries a probe."""
        return next(spec for spec in self.graph.outputs if spec.name == self.probes[site])


class SamplerDefaults(Entry):
    """How the model is sampled; steps and guidance unless a generation is told otherwise.

    Attributes:
        timestep_transform: timesteps depend on the video's size, as in Open-Sora.
        rounds_conditions: timesteps, sizes and frames per second are rounded to the weights' bfloat16, likewise.
    """

    name: Literal["rflow", "ddim", "pndm"]
    steps: int = Field(ge=1)
    guidance: float
    timestep_transform: bool = False
    rounds_conditions: bool = True


class VideoDefaults(Entry):
    """What a generation makes unless it is told otherwise; height and width in pixels, fps of a clip and of an image
    (for a model that takes it as a condition).
    """

    height: int
    width: int
    frames: int
    fps: float = 24.0
    image_fps: float = 120.0


class GuidanceRule(Entry):
    """Classifier-free guidance: the order of the branches in a batch, and the unconditional branch's captions: a
    tensor (length, width) of the weights file, or None where they are those of a negative prompt.
    """

    order: tuple[Literal["conditional", "unconditional"], ...]
    null_captions: str | None


class TextRule(Entry):
    """From a prompt to captions (length, width).

    Attributes:
        masking: what hides the padding behind a prompt: a ``mask``; or, as in Latte, nothing does: the captions of a
            single prompt are ``cut`` to its tokens, with several prompts those of the padding are zeros.
        encoder: from ``tokens`` and ``mask`` to ``captions`` in one graph, as bundles had it.
        encoder_stages: the same as a chain of graphs, in order: ``hidden_out`` of one is ``hidden`` of the next.
        precision: of the encoder.
    """

    max_length: int
    width: int
    cleaning: Literal["open-sora", "deepfloyd"]
    masking: Literal["mask", "cut"] = "mask"
    tokenizer: str | None = None  # path
    encoder: Graph | None = None
    encoder_config: dict[str, Any] | None = None
    encoder_stages: tuple[Graph, ...] = ()
    precision: Precision = "fp32"

    def encoder_graphs(self) -> tuple[Graph, ...]:
        """The chain, of one graph where it is whole; none without an encoder."""
        return (self.encoder,) if self.encoder else self.encoder_stages


class Preset(Entry):
    """A caching policy with constants for this model.

    Attributes:
        policy: as its JSON file describes it.
        note: where the constants come from, for people; empty where there is nothing to say.
        measured: what ``adacache-calibrate`` measured with it: ``psnr_db`` or ``latents_db``, ``speed_up``,
            ``computed_calls``, ``calls``, ``prompts``; empty for others.
    """

    policy: dict[str, Any]
    note: str = ""
    measured: dict[str, float] = Field(default_factory=dict)


class FileEntry(Entry):
    sha256: str
    nbytes: int


class CheckpointEntry(Entry):
    """Where the weights came from."""

    files: tuple[str, ...]
    sha256: str


class PlanEntry(Entry):
    """One compiled plan of TensorRT.

    Attributes:
        stage: that it runs.
        variant: ``full``, or for a block ``reuse``: hidden' = hidden + residual, one plan that all blocks share.
        graph: that it was built from: the stage's own, or ``add``.
        path: in the bundle; plans of equal content have one file.
        nbytes, sha256: of that file, which ``Manifest.files`` does not list.
        graph_sha256: of that graph's file.
        build_s: seconds that it took to build; 0 where the content was there already.
    """

    stage: str
    variant: Variant
    graph: str
    path: str
    nbytes: int
    sha256: str
    graph_sha256: str
    build_s: float


class PlanSet(Entry):
    """Plans for all stages of a bundle, built together.

    Attributes:
        library, version: that built them; no other version may open them.
        targets: compute capabilities, such as ``8.9``, that they run on.
        precision: of the graphs.
        profiles: name -> dynamic axis -> smallest, usual and largest size; the order is that of the plans' own
            optimisation profiles.
        options: of the build, as the user gave them.
    """

    library: Library
    version: str
    targets: tuple[str, ...]
    precision: Precision
    profiles: dict[str, dict[str, tuple[int, int, int]]]
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    plans: tuple[PlanEntry, ...]


PartName = Literal["text_encoder", "vae"]


class Manifest(Entry):
    """
    Attributes:
        profiles: name -> axis -> smallest and largest size.
        default_probes: sites that a policy measures unless it names others.
        signals: signals that policies can measure, by name.
        policies: by name; they come before the program's own of that name.
        weights: path of the model's weights file.
        part_weights: paths of those of the text encoder and the VAE; where one is missing, its weights are in the
            model's file, as in bundles to which nothing could be added.
        plans: folder under engines/ -> what is in it.
    """

    schema_version: int
    producer: str
    family: str
    config: dict[str, Any]
    precision: Precision
    granularity: ExportGranularity = "block"
    profiles: dict[str, dict[str, tuple[int, int]]]
    stages: tuple[StageEntry, ...]
    arithmetic: dict[str, Graph]
    signals: dict[str, SignalEntry]
    default_probes: tuple[str, ...]
    policies: dict[str, Preset] = Field(default_factory=dict)
    sampler: SamplerDefaults
    video: VideoDefaults
    guidance: GuidanceRule
    latent: LatentSpace
    text: TextRule
    weights: str
    part_weights: dict[PartName, str] = Field(default_factory=dict)
    checkpoint: CheckpointEntry
    files: dict[str, FileEntry]
    plans: dict[str, PlanSet] = Field(default_factory=dict)

    def signal_graphs(self) -> list[Graph]:
        """Return the graphs of all signals."""
        return [graph for signal in self.signals.values() for graph in signal.graphs.values()]

    def loop_graphs(self) -> list[Graph]:
        """Return the graphs that stay loaded from one generation to the next: stages in order, arithmetic, signals."""
        return [*(stage.graph for stage in self.stages), *self.arithmetic.values(), *self.signal_graphs()]

    def graphs(self) -> list[Graph]:
        """Those of the loop, and of the text encoder and the VAE where there are."""
        return [*self.loop_graphs(), *self.part_graphs("text_encoder"), *self.part_graphs("vae")]

    def vae_graphs(self) -> list[Graph]:
        """Of the decoder and the encoder of pixels."""
        return [*self.latent.decoding, *self.latent.encoding]

    def part_graphs(self, part: PartName) -> list[Graph]:
        """Of the text encoder or the VAE; none where the bundle has none."""
        return [*self.text.encoder_graphs()] if part == "text_encoder" else self.vae_graphs()

    def weight_files(self) -> dict[str, str]:
        """Graph -> path of the file with its weights."""
        own = {graph.name: path for part, path in self.part_weights.items() for graph in self.part_graphs(part)}
        return {graph.name: own.get(graph.name, self.weights) for graph in self.graphs()}

    def conditioned(self) -> bool:
        """Whether some frames may be given and kept."""
        return any(spec.name == X_MASK for stage in self.stages for spec in stage.graph.inputs)

    def probes(self) -> dict[str, StageEntry]:
        """Site -> stage, in the order of execution."""
        return {site: stage for stage in self.stages for site in stage.probes}
