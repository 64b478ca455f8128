"""One video, from order to file, in steps between which a worker can do something else."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adacache_runtime.events import Called, Decoded, ImagesEncoded, TextEncoded
from adacache_runtime.events import Denoised as AllCalled
from adacache_runtime.generation import Prepared
from adacache_runtime.media.video import writing_video
from adacache_runtime.trace import CallRecord, Trace

VIDEO, PICTURE = ".mp4", ".png"
MEDIA_TYPES = {VIDEO: "video/mp4", PICTURE: "image/png"}


@dataclass(frozen=True)
class Encoded:
    """The picture that the video begins with, or all that comes before the first call."""

    what: Literal["picture", "text"]


@dataclass(frozen=True)
class Denoised:
    """All calls were made; what they took is free."""


@dataclass(frozen=True)
class Part:
    """Frames that were decoded and written, so far and in all."""

    frames: int
    of: int


Step = Encoded | CallRecord | Denoised | Part


def suffix(frames: int) -> str:
    """Of the file: a single frame is a picture."""
    return PICTURE if frames == 1 else VIDEO


def film(prepared: Prepared, output: Path) -> Generator[Step, None, Trace]:
    """Makes a video; what it holds is let go of when the generator is closed.

    Args:
        prepared: for one prompt.
        output: ``.mp4`` or ``.png``, written at the end, whole or not at all.

    Yields:
        What was encoded; the record of each call of the denoiser; that there are no more of these; then how many frames
        there are, now and then.

    Returns:
        The trace.

    Raises:
        AdaCacheError: as :meth:`Prepared.events`.
    """
    video = prepared.video
    size = (video.height, video.width)
    with closing(prepared.events()) as events:
        for event in events:
            if isinstance(event, ImagesEncoded):
                yield Encoded("picture")
            elif isinstance(event, TextEncoded):
                yield Encoded("text")
            elif isinstance(event, Called):
                yield event.record
            elif isinstance(event, AllCalled):
                trace = event.trace
                break
        yield Denoised()
        with writing_video(output, video.frames, size, video.fps[0]) as write:
            for event in events:
                if isinstance(event, Decoded):
                    write(event.frames)
                    yield Part(event.done, event.total)
    return trace
