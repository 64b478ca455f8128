"""An order: the JSON fields with which a client asks for a video, and the statuses of the job that it becomes."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from adacache_runtime.request import MAX_SEED

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
ENDED: tuple[Status, ...] = ("completed", "failed", "cancelled")
MAX_IMAGE = 32 * 2**20  # characters of base64
LONGEST_SECONDS = 600
# databases do not store the character 0
Text = Annotated[str, StringConstraints(max_length=4000, pattern=r"^[^\x00]*$")]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=4000, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")]
DECIMAL = re.compile(r"[0-9]{1,3}(\.[0-9]{1,6})?", re.ASCII)


def _number(value: object) -> object:
    return float(value) if isinstance(value, str) and DECIMAL.fullmatch(value) else value


Seconds = Annotated[
    float,
    Field(gt=0, le=LONGEST_SECONDS),
    BeforeValidator(_number),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST_SECONDS},
                {"type": "string", "pattern": f"^{DECIMAL.pattern}$"},
            ]
        }
    ),
]


class CreateVideo(BaseModel):
    """A request for a video. The model's default is used for every field that is left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    prompt: Prompt = Field(description="What the video shows.", examples=["a red circle moves left fast"])
    negative_prompt: Text | None = Field(
        None, description="What the video should not show, for models that accept a negative prompt."
    )
    model: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        None, description="The id of a model from GET /v1/models; by default, the first."
    )
    size: Annotated[str, StringConstraints(max_length=16)] | None = Field(
        None,
        description="WIDTHxHEIGHT in pixels, such as 854x480, or the name of a size from GET /v1/models, such as 480p.",
        examples=["480p"],
    )
    aspect: Annotated[str, StringConstraints(max_length=8)] | None = Field(
        None, description="The aspect ratio WIDTH:HEIGHT of a named size, such as 9:16."
    )
    seconds: Seconds | None = Field(
        None, description='The duration in seconds; a string, such as "4", is accepted too.', examples=[2]
    )
    frames: int | None = Field(
        None, ge=1, le=100_000, description="The number of frames, instead of seconds; 1 gives an image."
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="The seed of the initial noise; random if it is left out."
    )
    steps: int | None = Field(None, ge=1, le=1000, description="The number of the sampler's steps.")
    sampler: Annotated[str, StringConstraints(min_length=1, max_length=32)] | None = Field(
        None, description="A sampler of the model from GET /v1/models; by default, the first.", examples=["euler"]
    )
    guidance: float | None = Field(None, ge=0, le=1000, description="The scale of classifier-free guidance.")
    guidance_2: float | None = Field(
        None, ge=0, le=1000, description="The guidance scale of the second expert, for models that have two."
    )
    policy: Annotated[str, StringConstraints(min_length=1, max_length=200)] = Field(
        "never",
        description="A caching policy from GET /v1/models, optionally followed by wrappers, each after a +.",
        examples=["adacache-fast"],
    )
    image: Annotated[str, StringConstraints(min_length=1, max_length=MAX_IMAGE)] | None = Field(
        None, description="The image that the video starts from: PNG, JPEG or WebP, in base64 or as a data: URL."
    )
    image_at: int = Field(
        0, ge=-100_000, le=100_000, description="The index of the frame that shows the image; -1 is the last frame."
    )
    priority: int = Field(
        0, ge=-10, le=10, description="Jobs with a higher priority go first; an API key may limit it."
    )
    deadline_seconds: float | None = Field(
        None,
        gt=0,
        le=30 * 86400,
        description="The job fails if it is not completed this many seconds after it was created.",
    )
