"""The manifest's entries on sampling: timesteps, guidance branches, and the transformers of a model."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from adacache_engines.bundle.entries import Entry
from adacache_engines.bundle.names import Guidance, Name, Size, Small

Branch = Literal["conditional", "unconditional"]
PURE_NOISE = 1000.0  # timestep
Timestep = Annotated[float, Field(ge=0, le=PURE_NOISE)]


class TimestepShift(Entry):
    """The shift of timesteps towards noise, by the size of a video.

    t' = r t / (1 + (r - 1) t), with t from 0 to 1 and
    r = sqrt(height * width / reference_pixels) * sqrt(latent frames of whole chunks).

    Attributes:
        reference_pixels: area of a frame, in pixels, at which r depends on the length alone.
        chunk_frames: number of frames of a chunk; a video shorter than a chunk, unless it is a single frame, has no
            timesteps.
        chunk_latents: number of latent frames of a chunk; a single frame counts as one.
    """

    reference_pixels: Size
    chunk_frames: Small
    chunk_latents: Small


class SamplerDefaults(Entry):
    """The model's sampler and its settings; a request may choose other steps and guidance.

    Attributes:
        name: sampler, by its name in the runtime's registry.
        steps: number of steps.
        guidance: guidance scale; 1 = none.
        timestep_shift: shift of a flow's timesteps towards noise: by the size of a video, or the ratio r itself, with
            t' = r t / (1 + (r - 1) t); None = they are not shifted.
        velocity: direction in which the velocity leads that a model of a flow predicts.
        whole_timesteps: round the timesteps of UniPC down to whole numbers before the model gets them, as diffusers
            does.
        condition_dtype: dtype to which timesteps, sizes in pixels and frames per second are rounded, as they were when
            the model was trained; they are then passed as float32.
    """

    name: Literal["rflow", "euler", "unipc", "ddim", "pndm"]
    steps: int = Field(ge=1, le=1000)
    guidance: Guidance
    timestep_shift: TimestepShift | Annotated[float, Field(gt=0, le=100)] | None = None
    velocity: Literal["to-data", "to-noise"] = "to-data"
    whole_timesteps: bool = False
    condition_dtype: Literal["float32", "bfloat16"] = "float32"


class GuidanceRule(Entry):
    """The rule by which a call evaluates conditionings, and by which the unconditional one is made.

    Attributes:
        order: branches in a batch, each over all samples; the conditional one alone = the model needs no guidance.
        null_captions: name of a tensor (length, width) in the weights file, which is the caption of the unconditional
            branch; None = that branch gets a negative prompt.
    """

    order: tuple[Branch, ...] = Field(min_length=1, max_length=2)
    null_captions: Name | None = None

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if "conditional" not in self.order or len({*self.order}) != len(self.order):
            raise ValueError(f"branches {', '.join(self.order)}: expected the conditional one, and each once")
        return self


class Expert(Entry):
    """A transformer that runs in a range of timesteps, where a model may have several.

    Attributes:
        name: a label for people.
        timesteps: smallest and largest timestep at which the expert runs, both included; where two experts share a
            timestep, the first in the list runs.
        guidance: guidance scale in these calls; None = the request's.
    """

    name: Name = "model"
    timesteps: tuple[Timestep, Timestep] = (0.0, PURE_NOISE)
    guidance: Guidance | None = None

    @model_validator(mode="after")
    def _upward(self) -> Self:
        lowest, highest = self.timesteps
        if lowest > highest:
            raise ValueError(f"timesteps {lowest:g} to {highest:g} go down; expected the smaller one first")
        return self
