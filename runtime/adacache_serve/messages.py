"""What the server and a worker say to one another over their pipe, as JSON, a line each."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from adacache_serve.schema import CreateVideo

Phase = Literal["encode", "denoise", "decode"]  # of a generation, in this order


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


class Memory(Message):
    """From a worker, whenever it changes: bytes beside the weights that its generations may come to take, of its
    ``budget``; what is ``free`` on the device now (None = unknown); and how many jobs are ``waiting`` for memory.
    """

    kind: Literal["memory"] = "memory"
    planned: int
    budget: int
    free: int | None
    waiting: int


class Of(Message):
    """From a worker, of one attempt at a job."""

    job: str
    attempt: int


class Began(Of):
    """It has its memory, so many bytes, and its first turn is next."""

    kind: Literal["began"] = "began"
    nbytes: int


class PhaseEnded(Of):
    """A part of the work is over, whole, or because of ``error``: the code of a failure, or ``cancelled``.

    ``began`` and ``ended`` are seconds since 1970; others had their turns in between: ``device_seconds`` were its own.
    """

    kind: Literal["phase"] = "phase"
    model: str
    phase: Phase
    began: float
    ended: float
    device_seconds: float
    error: str | None = None


class Turn(Of):
    """The next steps are of this job, until another's turn; should the worker die in one, that job is to blame."""

    kind: Literal["turn"] = "turn"


class Called(Of):
    """A call of the denoiser, as :func:`adacache_runtime.trace.entry` describes it; of the first ``of``."""

    kind: Literal["called"] = "called"
    model: str
    of: int
    call: dict[str, Any]


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
    Ready | Memory | Began | PhaseEnded | Turn | Called | Decoded | Completed | Failed | Cancelled,
    Field(discriminator="kind"),
]
to_worker: TypeAdapter[ToWorker] = TypeAdapter(ToWorker)
from_worker: TypeAdapter[FromWorker] = TypeAdapter(FromWorker)
