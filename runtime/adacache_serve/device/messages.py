"""The messages between the server and a worker, sent over a pipe as JSON."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from adacache_serve.orders.schema import CreateVideo

Phase = Literal["encode", "denoise", "decode"]  # the phases of a generation, in order


class Message(BaseModel):
    """The base of all messages."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Begin(Message):
    """Sent to a worker: make a video.

    Attributes:
        job: name of the job.
        attempt: number of this attempt at the job.
        model: name of the model.
        order: the client's order, without the image.
        image: path of the image, as :func:`adacache_serve.orders.images.write_image` stores it.
        output: path of the video's file, without the suffix.
    """

    kind: Literal["begin"] = "begin"
    job: str
    attempt: int
    model: str
    order: CreateVideo
    image: str | None = None
    output: str


class Cancel(Message):
    """Sent to a worker: drop a job, if you still have it."""

    kind: Literal["cancel"] = "cancel"
    job: str


class Ready(Message):
    """Sent by a worker: all models are loaded, and each has made a video."""

    kind: Literal["ready"] = "ready"
    pid: int


class Memory(Message):
    """Sent by a worker when its use of memory changes.

    Attributes:
        planned: estimated peak of the memory that its generations take beside the weights, in bytes.
        budget: memory that its generations may take beside the weights, in bytes.
        free: free memory of the device now, in bytes; None = unknown.
        waiting: number of jobs that wait for memory.
    """

    kind: Literal["memory"] = "memory"
    planned: int
    budget: int
    free: int | None
    waiting: int


class Report(Message):
    """Sent by a worker, about one attempt at a job.

    Attributes:
        job: name of the job.
        attempt: number of the attempt.
    """

    job: str
    attempt: int


class Began(Report):
    """The job has its memory, ``nbytes`` at most, and waits for its first turn."""

    kind: Literal["began"] = "began"
    nbytes: int


class PhaseEnded(Report):
    """A phase of a generation is over.

    Attributes:
        model: name of the model.
        phase: the phase.
        began: when the phase began, in seconds since 1970.
        ended: when the phase ended, in seconds since 1970.
        device_seconds: device time that this job had in the phase; other jobs had their turns in between.
        error: why the phase ended early: the code of a failure, or ``cancelled``; None = the phase is complete.
    """

    kind: Literal["phase"] = "phase"
    model: str
    phase: Phase
    began: float
    ended: float
    device_seconds: float
    error: str | None = None


class Turn(Report):
    """The next work belongs to this job, until another job's turn; a death of the worker in it counts against it.

    The work is the preparation of the job and its steps.
    """

    kind: Literal["turn"] = "turn"


class Called(Report):
    """A denoiser call is done.

    Attributes:
        model: name of the model.
        of: number of denoiser calls that the generation makes in all.
        call: record of the call, as :func:`adacache_runtime.trace.entry` writes it.
    """

    kind: Literal["called"] = "called"
    model: str
    of: int
    call: dict[str, Any]


class Decoded(Report):
    """``frames`` frames, ``of`` this number in all, are decoded and written."""

    kind: Literal["decoded"] = "decoded"
    frames: int
    of: int


class Completed(Report):
    """The video is finished: ``nbytes`` bytes in the file of this name."""

    kind: Literal["completed"] = "completed"
    file: str
    nbytes: int


class Failed(Report):
    """An error ended the attempt; ``code`` is the name of its class."""

    kind: Literal["failed"] = "failed"
    code: str
    message: str


class Cancelled(Report):
    """The job is dropped, and its buffers are free."""

    kind: Literal["cancelled"] = "cancelled"


ToWorker = Annotated[Begin | Cancel, Field(discriminator="kind")]
FromWorker = Annotated[
    Ready | Memory | Began | PhaseEnded | Turn | Called | Decoded | Completed | Failed | Cancelled,
    Field(discriminator="kind"),
]
to_worker: TypeAdapter[ToWorker] = TypeAdapter(ToWorker)
from_worker: TypeAdapter[FromWorker] = TypeAdapter(FromWorker)
