"""The JSON that the server answers with."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from adacache_serve.orders.schema import Status


class Failure(BaseModel):
    """Why a job failed."""

    code: str = Field(description="The kind of error, such as InputError, deadline or worker_died.")
    message: str


class TraceNumbers(BaseModel):
    """Totals over all denoiser calls that were made so far."""

    calls: int = Field(description="The number of denoiser calls that were made.")
    of: int = Field(description="The number of denoiser calls that the generation makes in all.")
    computed: int = Field(description="The number of calls in which at least one block ran in full.")
    wall_ms: float
    engine_ms: dict[str, float] = Field(description="The time spent inside engines, by part of the call.")
    distance: float | None = Field(description="The last distance between residuals that the policy measured.")


class Video(BaseModel):
    """A job and its state. Times are in seconds since 1970."""

    id: str
    object: Literal["video"] = "video"
    status: Status
    progress: float = Field(ge=0, le=100, description="The percentage of calls and frames that are done.")
    model: str
    created_at: float
    started_at: float | None
    completed_at: float | None = Field(description="When the job was completed, failed or was cancelled.")
    expires_at: float | None = Field(description="When the content is deleted.")
    request: dict[str, Any] = Field(description="The request, with the seed that is used, without the image.")
    attempts: int = Field(description="How many times the job was started.")
    error: Failure | None
    trace: TraceNumbers | None
    content: str | None = Field(description="The path of the video, once the job is completed.")


class VideoList(BaseModel):
    """A page of jobs, the newest first."""

    object: Literal["list"] = "list"
    data: list[Video]
    has_more: bool
    last_id: str | None = Field(description="The value of ?after= for the next page; null for an empty page.")


class Policy(BaseModel):
    """A caching policy of a model."""

    name: str
    note: str = Field(description="Where the policy's constants come from; may be empty.")
    why_not: str | None = Field(None, description="Why the model cannot run the policy; null if it can.")


class NamedSize(BaseModel):
    """A size that has a name."""

    name: str = Field(description="The name, such as 480p.")
    aspect: str = Field(description="The aspect ratio WIDTH:HEIGHT that the size has unless a request says otherwise.")
    aspects: dict[str, str] = Field(description="WIDTHxHEIGHT in pixels for each aspect ratio WIDTH:HEIGHT.")


class Model(BaseModel):
    """A bundle that is served."""

    id: str
    object: Literal["model"] = "model"
    family: str
    precision: str
    defaults: dict[str, float] = Field(
        description="The default width, height, frames, fps, steps and guidance, and guidance_2 for two experts."
    )
    sizes: list[NamedSize] = Field(description="The sizes that have a name.")
    durations: dict[str, int] = Field(description="Durations that the model makes, with their number of frames.")
    samplers: list[str] = Field(description="The samplers that fit the model; the first is the default.")
    policies: list[Policy]
    negative_prompt: bool = Field(description="Whether the model accepts a negative prompt.")
    image: bool = Field(description="Whether a video can start from an image.")
    image_required: bool = Field(description="Whether the model makes no video without an image.")


class ModelList(BaseModel):
    """All models that are served; the first is the default."""

    object: Literal["list"] = "list"
    data: list[Model]


class Problem(BaseModel):
    """An error, as RFC 9457 defines it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    field: str | None = Field(None, description="The field of the request that the error is about.")
    errors: list[dict[str, str]] = Field(
        default_factory=list, description="The field and the detail of each error, where there are several."
    )
