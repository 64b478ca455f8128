"""What goes over the wire, as JSON."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from adacache_runtime.request import MAX_SEED

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
ENDED: tuple[Status, ...] = ("completed", "failed", "cancelled")
MAX_IMAGE = 32 * 2**20  # characters of base64
LONGEST_SECONDS = 600
# without the character 0, which databases do not keep
Text = Annotated[str, StringConstraints(max_length=4000, pattern=r"^[^\x00]*$")]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=4000, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")]
SPELLED = re.compile(r"[0-9]{1,3}(\.[0-9]{1,6})?", re.ASCII)


def _number(value: object) -> object:
    return float(value) if isinstance(value, str) and SPELLED.fullmatch(value) else value


Seconds = Annotated[
    float,
    Field(gt=0, le=LONGEST_SECONDS),
    BeforeValidator(_number),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST_SECONDS},
                {"type": "string", "pattern": f"^{SPELLED.pattern}$"},
            ]
        }
    ),
]


class CreateVideo(BaseModel):
    """A video that is wanted. What is left out is the model's default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    prompt: Prompt = Field(description="what is to be seen", examples=["a red circle moves left fast"])
    negative_prompt: Text | None = Field(None, description="what to lead away from, for a model that takes it")
    model: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        None, description="one of GET /v1/models; the first by default"
    )
    size: Annotated[str, StringConstraints(max_length=16)] | None = Field(
        None, description="WIDTHxHEIGHT in pixels, such as 854x480, or a name, such as 480p", examples=["480p"]
    )
    aspect: Annotated[str, StringConstraints(max_length=8)] | None = Field(
        None, description="height to width of a named size, such as 9:16"
    )
    seconds: Seconds | None = Field(
        None, description='length of the video; a string, such as "4", is good, too', examples=[2]
    )
    frames: int | None = Field(None, ge=1, le=100_000, description="instead of seconds; 1 = an image")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="of the initial noise; drawn by default")
    steps: int | None = Field(None, ge=1, le=1000, description="of the sampler")
    guidance: float | None = Field(None, ge=0, le=1000, description="scale of classifier-free guidance")
    policy: Annotated[str, StringConstraints(min_length=1, max_length=200)] = Field(
        "never", description="a preset of GET /v1/models, with wrappers, each after a +", examples=["adacache-fast"]
    )
    image: Annotated[str, StringConstraints(min_length=1, max_length=MAX_IMAGE)] | None = Field(
        None, description="PNG, JPEG or WebP in base64, or as a data: URL, that the video begins with"
    )
    image_at: int = Field(0, ge=-100_000, le=100_000, description="frame where the picture is, -1 = the last")
    priority: int = Field(0, ge=-10, le=10, description="higher goes first, as far as the API key allows")
    deadline_seconds: float | None = Field(
        None, gt=0, le=30 * 86400, description="a job that is not completed so long after it came, fails"
    )


class Failure(BaseModel):
    """Why a job failed."""

    code: str = Field(description="the kind of the error, such as InputError, deadline or worker_died")
    message: str


class TraceNumbers(BaseModel):
    """What a generation did, of all calls so far."""

    calls: int = Field(description="of the denoiser, that were made")
    of: int = Field(description="that the sampler makes")
    computed: int = Field(description="calls in which a block ran in full")
    wall_ms: float
    engine_ms: dict[str, float] = Field(description="time inside engines, by part of the call")
    distance: float | None = Field(description="of the last call that measured one")


class Video(BaseModel):
    """A job, and what became of it. Times are seconds since 1970."""

    id: str
    object: Literal["video"] = "video"
    status: Status
    progress: float = Field(ge=0, le=100, description="per cent of the calls and the frames")
    model: str
    created_at: float
    started_at: float | None
    completed_at: float | None = Field(description="or failed, or cancelled")
    expires_at: float | None = Field(description="when the content is deleted")
    request: dict[str, Any] = Field(description="as it was asked for, with the seed, without the image")
    attempts: int = Field(description="how often it was begun")
    error: Failure | None
    trace: TraceNumbers | None
    content: str | None = Field(description="path of the video, once it is completed")


class VideoList(BaseModel):
    """Newest first."""

    object: Literal["list"] = "list"
    data: list[Video]
    has_more: bool
    last_id: str | None = Field(description="for ?after=, if there are more")


class Policy(BaseModel):
    """A preset of a model."""

    name: str
    note: str


class Model(BaseModel):
    """A bundle that is served."""

    id: str
    object: Literal["model"] = "model"
    family: str
    precision: str
    defaults: dict[str, float] = Field(description="width, height, frames, fps, steps, guidance")
    policies: list[Policy]
    negative_prompt: bool = Field(description="it takes one")
    image: bool = Field(description="it can begin with a picture")


class ModelList(BaseModel):
    """All that are served; the first is the default."""

    object: Literal["list"] = "list"
    data: list[Model]


class Problem(BaseModel):
    """RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    field: str | None = Field(None, description="of the request, that the problem is about")
    errors: list[dict[str, str]] = Field(default_factory=list, description="field and detail, where there are several")
