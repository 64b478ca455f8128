"""The manifest's schema: what a bundle says of its model.

Within schema version 1, fields may be added with a default; anything else makes a new version.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from adacache_engines.tensors import DType, TensorSpec

SCHEMA_VERSION = 1

Precision = Literal["fp32", "fp16", "bf16"]
Library = Literal["tensorrt-rtx", "tensorrt"]
Variant = Literal["full", "reuse"]
ExportGranularity = Literal["block", "module"]  # of stages: a transformer block, or its attention, MLP, ... each
DTYPES: Mapping[Precision, DType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
X_MASK = "x_mask"  # input (batch, patch_frames) of a model that may keep frames: False = this one is given, and kept


# of Check.error: rounding of the precision, through one stage
TOLERANCES: Mapping[Precision, float] = {"fp32": 2e-5, "fp16": 2e-2, "bf16": 1.5e-1}


class Entry(BaseModel):
    """Base of the manifest's parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(Entry):
    """How an engine's outputs compared with its torch stage at export: max |engine - torch| / max(1, rms(torch))."""

    error: float
    tolerance: float
    engine: str


class Graph(Entry):
    """One ONNX file.

    Attributes:
        weights_nbytes: of its weights, in the file that it points to; None = exported before they were counted.
    """

    name: str
    path: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    check: Check | None = None
    weights_nbytes: int | None = None


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
    probes: dict[str, str] = {}
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


class LatentSpace(Entry):
    """From pixels and frames to the latent's axes, and on to tokens.

    Attributes:
        channels: of the latent; a prediction's further channels are ignored.
        patch: latent (frames, rows, columns) of a token.
        whole_patches: a size that is no multiple of the patch is refused; else it is padded.
        spatial_factor: pixels of a latent row or column.
        frames: how frames become latent frames.
        decoder: what turns latents into pixels: ``pixels`` where they are pixels already, -1 to 1;
            ``autoencoder-kl`` for Stable Diffusion's, frame by frame.
        decoder_graph: of a decoder: ``latents`` (images, channels, height, width) float32 to ``pixels`` (images, 3,
            pixel_height, pixel_width) float32, about -1 to 1.
        decoder_config: of a decoder, under its published names.
    """

    channels: int
    patch: tuple[int, int, int]
    spatial_factor: int
    frames: Literal["identity", "open-sora-vae", "causal-vae"]
    decoder: Literal["none", "pixels", "autoencoder-kl"]
    whole_patches: bool = False
    decoder_graph: Graph | None = None
    decoder_config: dict[str, Any] | None = None

    def latent_frames(self, frames: int) -> int:
        """Open-Sora's VAE turns each 17 frames into 5 and a shorter rest into a quarter, rounded up; a causal one
        keeps the first of an odd number, and turns the others into a quarter, rounded up.
        """
        if self.frames == "identity":
            return frames
        if self.frames == "causal-vae":
            return math.ceil((frames - frames % 2) / 4) + frames % 2
        return 5 * (frames // 17) + math.ceil(frames % 17 / 4)

    def token_axes(self, frames: int, height: int, width: int) -> dict[str, int]:
        """Sizes of the axes ``patch_frames`` and ``tokens`` for a latent size; parts of a patch count as one."""
        sizes = (frames, height, width)
        grid = [math.ceil(size / patch) for size, patch in zip(sizes, self.patch, strict=True)]
        return {"patch_frames": grid[0], "tokens": grid[1] * grid[2]}

    def image_axes(self, height: int, width: int, images: int = 1) -> dict[str, int]:
        """Sizes of the decoder's axes for images of a latent size."""
        pixels = {"pixel_height": height * self.spatial_factor, "pixel_width": width * self.spatial_factor}
        return {"images": images, "height": height, "width": width, **pixels}

    def frame_by_frame(self) -> bool:
        """Whether a decoder of images, Stable Diffusion's AutoencoderKL, can turn them into pixels."""
        return self.frames == "identity" and self.decoder != "pixels"


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
    measured: dict[str, float] = {}


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
    options: dict[str, str | int | float | bool] = {}
    plans: tuple[PlanEntry, ...]


PartName = Literal["text_encoder", "vae"]


class Manifest(Entry):
    """
    Attributes:
        profiles: name -> axis -> smallest and largest size.
        default_probes: sites that a policy measures unless it names others.
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
    default_probes: tuple[str, ...]
    policies: dict[str, Preset] = {}
    sampler: SamplerDefaults
    video: VideoDefaults
    guidance: GuidanceRule
    latent: LatentSpace
    text: TextRule
    weights: str
    part_weights: dict[PartName, str] = {}
    checkpoint: CheckpointEntry
    files: dict[str, FileEntry]
    plans: dict[str, PlanSet] = {}

    def loop_graphs(self) -> list[Graph]:
        """Of the stages in order, and of arithmetic: what stays loaded from one generation to the next."""
        return [*(stage.graph for stage in self.stages), *self.arithmetic.values()]

    def graphs(self) -> list[Graph]:
        """Those of the loop, and of the text encoder and the decoder where there are."""
        return [*self.loop_graphs(), *self.part_graphs("text_encoder"), *self.part_graphs("vae")]

    def part_graphs(self, part: PartName) -> list[Graph]:
        """Of the text encoder or the VAE; none where the bundle has none."""
        if part == "text_encoder":
            return [*self.text.encoder_graphs()]
        return [self.latent.decoder_graph] if self.latent.decoder_graph else []

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
