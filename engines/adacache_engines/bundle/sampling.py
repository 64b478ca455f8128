"""The manifest's entries on sampling: which timesteps, which guidance branches, which of several transformers."""

from typing import Literal, Self

from pydantic import Field, model_validator

from adacache_engines.bundle.entries import Entry

Branch = Literal["conditional", "unconditional"]
PURE_NOISE = 1000.0  # timestep


class TimestepShift(Entry):
    """How the size of a video moves the timesteps towards noise: t' = r t / (1 + (r - 1) t), with t from 0 to 1 and
    r = sqrt(height * width / reference_pixels) * sqrt(latent frames of whole chunks).

    Attributes:
        reference_pixels: area of a frame, in pixels, at which r is that of the length alone.
        chunk_frames: frames of a chunk; a video that is shorter than one, and no single frame, has no timesteps.
        chunk_latents: latent frames of a chunk; a single frame counts as one.
    """

    reference_pixels: int = Field(ge=1)
    chunk_frames: int = Field(ge=1)
    chunk_latents: int = Field(ge=1)


class SamplerDefaults(Entry):
    """How the model is sampled; steps and guidance unless a request says otherwise.

    Attributes:
        name: sampler, by its name in the runtime's registry.
        steps: number of steps.
        guidance: guidance scale; 1 = none.
        timestep_shift: how timesteps depend on the size of a video; None = not at all.
        condition_dtype: timesteps, sizes in pixels and frames per second are rounded to this type, as they were when
            the model was trained, and then passed as float32.
    """

    name: Literal["rflow", "ddim", "pndm"]
    steps: int = Field(ge=1)
    guidance: float
    timestep_shift: TimestepShift | None = None
    condition_dtype: Literal["float32", "bfloat16"] = "float32"


class GuidanceRule(Entry):
    """Which conditionings a call evaluates, and how the unconditional one is made.

    Attributes:
        order: branches in a batch, each over all samples. One branch, the conditional: the model is guided already.
        null_captions: name of a tensor (length, width) in the weights file, which is the caption of the unconditional
            branch; None = that branch gets a negative prompt.
    """

    order: tuple[Branch, ...] = Field(min_length=1, max_length=2)
    null_captions: str | None = None

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if "conditional" not in self.order or len({*self.order}) != len(self.order):
            raise ValueError(f"branches {', '.join(self.order)}: expected the conditional one, and each once")
        return self


class Expert(Entry):
    """One of several transformers of a model, for a range of timesteps.

    Attributes:
        name: a label for people.
        timesteps: smallest and largest timestep at which the expert runs, both included; where two experts share one,
            the one that is listed first runs.
        guidance: guidance scale in these calls; None = that of the request.
    """

    name: str = "model"
    timesteps: tuple[float, float] = (0.0, PURE_NOISE)
    guidance: float | None = None
