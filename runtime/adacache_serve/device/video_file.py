"""The file of a video: its format, and a generation that is written to it."""

from collections.abc import Generator
from contextlib import ExitStack, closing
from pathlib import Path

from adacache_runtime.events import Decoded, Denoised, Event
from adacache_runtime.generation import Prepared
from adacache_runtime.media.video import writing_video

VIDEO, IMAGE = ".mp4", ".png"
MEDIA_TYPES = {VIDEO: "video/mp4", IMAGE: "image/png"}


def suffix(frames: int) -> str:
    """Return the suffix of the file of a video with this number of frames; a single frame is an image."""
    return IMAGE if frames == 1 else VIDEO


def write_events(prepared: Prepared, output: Path) -> Generator[Event, None, None]:
    """Run a generation of one prompt, write its frames to a file, and yield its events.

    Closing the generator cancels the generation, frees what it holds, and leaves no file.

    Args:
        prepared: the prepared generation.
        output: file with one of the suffixes above; it appears when it is complete.

    Raises:
        AdaCacheError: the generation fails, see :meth:`Prepared.events`, or the file cannot be written.
    """
    video = prepared.video
    with closing(prepared.events()) as events, ExitStack() as stack:
        for event in events:
            if isinstance(event, Denoised):
                size = (video.height, video.width)
                write = stack.enter_context(writing_video(output, video.frames, size, video.fps[0]))
            elif isinstance(event, Decoded):
                write(event.frames)
            yield event
