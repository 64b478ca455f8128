"""The manifest's schema: the whole description of a bundle's model.

Everything that distinguishes one family of models from another is a value here, so that a program that runs a bundle
needs to know no family. Within schema version 1, fields may be added with a default; anything else makes a new version.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from adacache_engines.bundle.conditioning import VIDEO_CONDITION as VIDEO_CONDITION
from adacache_engines.bundle.conditioning import X_MASK as X_MASK
from adacache_engines.bundle.conditioning import Conditioning as Conditioning
from adacache_engines.bundle.conditioning import conditioning_of as conditioning_of
from adacache_engines.bundle.entries import Check as Check
from adacache_engines.bundle.entries import Entry
from adacache_engines.bundle.entries import Graph as Graph
from adacache_engines.bundle.image_rule import IMAGE as IMAGE
from adacache_engines.bundle.image_rule import IMAGE_STATES as IMAGE_STATES
from adacache_engines.bundle.image_rule import ImageRule as ImageRule
from adacache_engines.bundle.image_rule import check_image_rule
from adacache_engines.bundle.latent_space import FrameRule as FrameRule
from adacache_engines.bundle.latent_space import LatentSpace as LatentSpace
from adacache_engines.bundle.names import BundlePath, FolderName, Frames, Length, Name, Nbytes, Rate, Sha256, Side, Span
from adacache_engines.bundle.plan_entries import Library as Library
from adacache_engines.bundle.plan_entries import PlanEntry as PlanEntry
from adacache_engines.bundle.plan_entries import PlanSet as PlanSet
from adacache_engines.bundle.plan_entries import Variant as Variant
from adacache_engines.bundle.references import check_references
from adacache_engines.bundle.sampling import Branch as Branch
from adacache_engines.bundle.sampling import Expert as Expert
from adacache_engines.bundle.sampling import GuidanceRule as GuidanceRule
from adacache_engines.bundle.sampling import SamplerDefaults as SamplerDefaults
from adacache_engines.bundle.sampling import TimestepShift as TimestepShift
from adacache_engines.bundle.signals import SignalEntry as SignalEntry
from adacache_engines.bundle.stages import ProbeEntry as ProbeEntry
from adacache_engines.bundle.stages import ProbeRole as ProbeRole
from adacache_engines.bundle.stages import Role as Role
from adacache_engines.bundle.stages import StageEntry as StageEntry
from adacache_engines.bundle.stages import Term as Term
from adacache_engines.bundle.tensors import DTYPES as DTYPES
from adacache_engines.bundle.tensors import Precision as Precision

SCHEMA_VERSION = 1

ExportGranularity = Literal["block", "module"]  # a stage is a transformer block, or its attention, MLP, ... alone
# largest Check.error of a graph: rounding of the precision, through one stage
TOLERANCES: Mapping[Precision, float] = {"fp32": 2e-5, "fp16": 2e-2, "bf16": 1.5e-1}


class VideoDefaults(Entry):
    """The video that a request makes unless it says otherwise.

    Attributes:
        height, width: size in pixels.
        frames: number of frames.
        fps: frames per second of a video.
        image_fps: frames per second that a single frame is said to have, where the model takes them as a condition.
    """

    height: Side
    width: Side
    frames: Frames
    fps: Rate = 24.0
    image_fps: Rate = 120.0


class VideoNames(Entry):
    """Sizes and durations that users may call by a name, all of them possible with the model.

    Attributes:
        sizes: name, such as ``480p`` -> aspect, WIDTH:HEIGHT -> width and height in pixels.
        aspect: aspect of a named size unless a request says otherwise; a size without it has its first aspect.
        durations: name, such as ``2s`` -> number of frames. Of several names for one number, the first is the usual.
        only_named_durations: whether the model makes no other durations than these, which it was trained for; else
            seconds are multiplied by frames per second.
    """

    sizes: dict[Name, Annotated[dict[Name, tuple[Side, Side]], Field(min_length=1)]] = Field(default_factory=dict)
    aspect: Name = "16:9"
    durations: dict[Name, Frames] = Field(default_factory=dict)
    only_named_durations: bool = False


Cleaning = Literal["plain", "repaired", "html-and-captions", "html-and-captions-trimmed"]
Score = Literal["aesthetic", "motion", "camera"]


class TextRule(Entry):
    """The rule by which a prompt becomes captions (length, width).

    Attributes:
        max_length: largest number of tokens.
        width: width of a caption's tokens.
        cleaning: procedure that a prompt goes through before it is tokenised, by its name in the runtime's registry.
        scores: scores that the model was trained to read at the end of a prompt.
        masking: ``mask`` = a mask hides the padding behind a prompt; ``cut`` = nothing hides it: the captions of a
            single prompt are cut to its tokens, and among several prompts the captions of padding are zeros; ``zeros``
            = nothing hides it: captions of padding are zeros, up to ``max_length``.
        tokenizer: path of the tokenizer's file.
        encoder_config: configuration of the text encoder.
        encoder_stages: the text encoder, a chain of graphs from ``tokens`` and ``mask`` to ``captions``: ``hidden_out``
            of one is ``hidden`` of the next; empty = the bundle has none.
        precision: precision of the text encoder.
    """

    max_length: Length
    width: Length
    cleaning: Cleaning = "plain"
    scores: tuple[Score, ...] = ()
    masking: Literal["mask", "cut", "zeros"] = "mask"
    tokenizer: BundlePath | None = None
    encoder_config: dict[str, Any] | None = None
    encoder_stages: tuple[Graph, ...] = ()
    precision: Precision = "fp32"


class Preset(Entry):
    """A caching policy with constants for this model.

    Attributes:
        policy: the policy, in the form of its JSON file.
        note: source of the constants, for people; empty where there is nothing to say.
        measured: results that ``adacache-calibrate`` measured with it: ``psnr_db`` or ``latents_db``, ``speed_up``,
            ``computed_calls``, ``calls``, ``prompts``; empty for presets from elsewhere.
    """

    policy: dict[str, Any]
    note: str = ""
    measured: dict[str, float] = Field(default_factory=dict)


class FileEntry(Entry):
    """Hash and size of a file."""

    sha256: Sha256
    nbytes: Nbytes


class CheckpointEntry(Entry):
    """The files that the weights came from, and their hash."""

    files: tuple[Name, ...]
    sha256: Sha256


PartName = Literal["text_encoder", "image_encoder", "vae"]


class Manifest(Entry):
    """The description of a bundle.

    Attributes:
        schema_version: version of this schema.
        producer: program that wrote the bundle.
        family: name of the model's family, for people.
        config: the model's configuration, as its family reads it.
        precision: precision of the weights and matrix products.
        granularity: whether a stage is a whole block or a residual part of one.
        profiles: name -> axis -> smallest and largest size; a request must be within one of them.
        stages: the stages of all experts, in the order of execution.
        experts: the model's transformers; there are several where different timesteps have different ones.
        conditioning: pictures that a video can be made from: ``none``, by text alone; ``kept-frames``, which are given
            and stay as they are; ``not-exported``, the same, of which this bundle's stages were exported without the
            input; or ``encoded-video``: the model takes, beside the latents of each call, those of a video that begins
            with an image and is grey from then on, and it makes no video without an image.
        arithmetic: name -> graph that all stages share, such as ``add``.
        signals: name -> signal that policies can measure.
        policies: name -> preset, which replaces the program's own preset of that name.
        sampler: the sampler and its settings.
        video: the video that a request makes unless it says otherwise.
        names: sizes and durations that have a name.
        guidance: rule by which a call evaluates conditionings.
        latent: relation between pixels and latents, and the graphs between them.
        text: rule by which a prompt becomes captions, and the text encoder.
        image: rule by which an image becomes states that the model attends to, and the image encoder; None = the model
            attends to none.
        weights: path of the model's weights file.
        part_weights: part -> path of its weights file.
        checkpoint: files that the weights came from.
        files: path -> hash and size.
        plans: folder under ``engines/`` -> the compiled plans in it.
    """

    schema_version: int
    producer: Name
    family: Name
    config: dict[str, Any]
    precision: Precision
    granularity: ExportGranularity = "block"
    profiles: Annotated[dict[Name, dict[Name, Span]], Field(min_length=1)]
    stages: tuple[StageEntry, ...]
    experts: tuple[Expert, ...] = Field(default=(Expert(),), min_length=1)
    conditioning: Conditioning = "none"
    arithmetic: dict[Name, Graph]
    signals: dict[Name, SignalEntry]
    policies: dict[Name, Preset] = Field(default_factory=dict)
    sampler: SamplerDefaults
    video: VideoDefaults
    names: VideoNames = VideoNames()
    guidance: GuidanceRule
    latent: LatentSpace
    text: TextRule
    image: ImageRule | None = None
    weights: BundlePath
    part_weights: dict[PartName, BundlePath] = Field(default_factory=dict)
    checkpoint: CheckpointEntry
    files: dict[BundlePath, FileEntry]
    plans: dict[FolderName, PlanSet] = Field(default_factory=dict)

    def signal_graphs(self) -> list[Graph]:
        """Return the graphs of all signals."""
        return [graph for signal in self.signals.values() for graph in signal.graphs.values()]

    def loop_graphs(self) -> list[Graph]:
        """Return the graphs that stay loaded from one generation to the next: stages in order, arithmetic, signals."""
        return [*(stage.graph for stage in self.stages), *self.arithmetic.values(), *self.signal_graphs()]

    def graphs(self) -> list[Graph]:
        """Return the graphs of the loop, and of the parts that the bundle has."""
        return [*self.loop_graphs(), *(graph for part in get_args(PartName) for graph in self.part_graphs(part))]

    def vae_graphs(self) -> list[Graph]:
        """Return the graphs of the VAE's decoder, then of its encoder."""
        latent = self.latent
        return [*latent.first_decoding, *latent.decoding, *latent.first_encoding, *latent.encoding]

    def part_graphs(self, part: PartName) -> list[Graph]:
        """Return the graphs of a part; none where the bundle has no such part."""
        image = () if self.image is None else self.image.encoder_stages
        graphs: dict[PartName, Sequence[Graph]] = {
            "text_encoder": self.text.encoder_stages,
            "image_encoder": image,
            "vae": self.vae_graphs(),
        }
        return [*graphs[part]]

    def weight_files(self) -> dict[str, str]:
        """Return the path of the file with each graph's weights, by the graph's name."""
        parts = {graph.name: path for part, path in self.part_weights.items() for graph in self.part_graphs(part)}
        return dict.fromkeys((graph.name for graph in self.loop_graphs()), self.weights) | parts

    def used_files(self) -> list[str]:
        """Return the paths of the files that graphs and their weights, and the tokenizer, are read from, each once."""
        graphs, tokenizer = (graph.path for graph in self.graphs()), self.text.tokenizer
        used = [self.weights, *self.weight_files().values(), *graphs, *([tokenizer] if tokenizer else [])]
        return [*dict.fromkeys(used)]

    def hash_of(self, path: str) -> FileEntry | PlanEntry | None:
        """Return the entry with the hash of a file of the bundle or of a compiled plan; None = there is none."""
        plans = (entry for plans in self.plans.values() for entry in plans.plans)
        return self.files.get(path) or next((entry for entry in plans if entry.path == path), None)

    def expert_at(self, timestep: float) -> int:
        """Return the index of the expert that runs at a timestep.

        Raises:
            ValueError: no expert covers the timestep.
        """
        for index, expert in enumerate(self.experts):
            lowest, highest = expert.timesteps
            if lowest <= timestep <= highest:
                return index
        ranges = ", ".join(f"{low:g} to {high:g}" for low, high in (expert.timesteps for expert in self.experts))
        raise ValueError(f"timestep {timestep:g} has no expert; this model's are for {ranges}")

    def stages_of(self, *roles: Role, expert: int = 0) -> tuple[StageEntry, ...]:
        """Return the stages of an expert that have one of these roles, in the order of execution."""
        return tuple(stage for stage in self.stages if stage.expert == expert and stage.role in roles)

    def probes(self) -> dict[str, StageEntry]:
        """Return the stage that shows each probe, by the probe's site, in the order of execution.

        Experts have probes at the same sites; the stage is that of one of them.
        """
        return {site: stage for stage in self.stages for site in stage.probes}

    def sites(self, role: str) -> tuple[str, ...]:
        """Return the sites of the probes that have a role, in the order of execution."""
        probes = ((site, probe) for stage in self.stages for site, probe in stage.probes.items())
        return tuple(dict.fromkeys(site for site, probe in probes if probe.role == role))

    @model_validator(mode="after")
    def _whole(self) -> Self:
        unknown = sorted({stage.expert for stage in self.stages} - {*range(len(self.experts))})
        if unknown:
            raise ValueError(f"stages belong to expert {unknown[0]}, and there are {len(self.experts)}")
        shown = conditioning_of(self.stages)
        if self.conditioning != shown and (self.conditioning, shown) != ("not-exported", "none"):
            raise ValueError(f"conditioning is {self.conditioning}, and the inputs of the stages are those of {shown}")
        lacking = [part for part in get_args(PartName) if self.part_graphs(part) and part not in self.part_weights]
        if lacking:
            raise ValueError(f"part_weights does not name the weights of {', '.join(lacking)}")
        check_references(self)
        check_image_rule(self.image, self.stages)
        return self
