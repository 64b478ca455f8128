"""What the server and a worker say to one another over their pipe, as JSON, a line each."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from adacache_serve.schema import CreateVideo


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Begin(Message):
    """To a worker: make this video. ``picture`` is a file of :mod:`adacache_serve.uploads`, ``output`` the path of the
    video's file without its suffix.
    """

    kind: Literal["begin"] = "begin"
    job: str
    attempt: int
    model: str
    order: CreateVideo
    picture: str | None = None
    output: str


class Cancel(Message):
    """To a worker: let go of this job, if you still have it."""

    kind: Literal["cancel"] = "cancel"
    job: str


class Ready(Message):
    """From a worker: all models are loaded, and each has made a video."""

    kind: Literal["ready"] = "ready"
    pid: int


class Of(Message):
    """From a worker, of one attempt at a job."""

    job: str
    attempt: int


class Began(Of):
    """It has its memory, and the first call is next."""

    kind: Literal["began"] = "began"
    nbytes: int | None


class Turn(Of):
    """The next steps are of this job, until another's turn; should the worker die in one, that job is to blame."""

    kind: Literal["turn"] = "turn"


class Called(Of):
    """A call of the denoiser, as :func:`adacache_runtime.trace.entry` describes it; of the first ``of``."""

    kind: Literal["called"] = "called"
    of: int
    call: dict[str, Any]
    memory: int


class Decoded(Of):
    """Frames so far."""

    kind: Literal["decoded"] = "decoded"
    frames: int
    of: int


class Completed(Of):
    """The video is in its file, which has this name."""

    kind: Literal["completed"] = "completed"
    file: str
    nbytes: int


class Failed(Of):
    """An error ended it; ``code`` is its class."""

    kind: Literal["failed"] = "failed"
    code: str
    message: str


class Cancelled(Of):
    """Its buffers are free."""

    kind: Literal["cancelled"] = "cancelled"


ToWorker = Annotated[Begin | Cancel, Field(discriminator="kind")]
FromWorker = Annotated[
    Ready | Began | Turn | Called | Decoded | Completed | Failed | Cancelled, Field(discriminator="kind")
]
to_worker: TypeAdapter[ToWorker] = TypeAdapter(ToWorker)
from_worker: TypeAdapter[FromWorker] = TypeAdapter(FromWorker)
