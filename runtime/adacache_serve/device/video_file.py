"""One video, from order to file, in steps between which a worker can do something else."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adacache_runtime.conditioning import given_frames as start
from adacache_runtime.conditioning.given_frames import Image
from adacache_runtime.media.video import writing_video
from adacache_runtime.memory.estimate import MemoryPlan
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request, Settled, settle
from adacache_runtime.trace import CallRecord, Trace
from adacache_runtime.vae.chunks import video_frames
from adacache_runtime.vae.decode import stream

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


def film(
    pipeline: Pipeline, request: Request, output: Path, image: Image | None = None
) -> Generator[Step, None, Trace]:
    """Makes a video; what it holds is let go of when the generator is closed.

    Args:
        pipeline: of the model.
        request: for one prompt.
        output: ``.mp4`` or ``.png``, written at the end, whole or not at all.
        picture: that the video begins with, or has elsewhere.

    Yields:
        What was encoded; the record of each call of the denoiser; that there are no more of these; then how many frames
        there are, now and then.

    Returns:
        The trace.

    Raises:
        AdaCacheError: as :meth:`Pipeline.calls` and :func:`adacache_runtime.vae.decode.stream`.
    """
    bundle, backend = pipeline.bundle, pipeline.backend
    settled = settle(bundle, request)
    if image is not None:
        begins_with = start.start_with(bundle, settled, [image])
        request = start.begin(begins_with, request, settled, bundle, backend)
        yield Encoded("picture")
    started = pipeline.start(request)
    yield Encoded("text")
    result = yield from pipeline.calls_of(request, started)
    del started  # its buffers
    yield Denoised()
    (latents,) = result.latents
    count, *size = shape(pipeline, settled)
    done = 0
    with writing_video(output, count, (size[0], size[1]), float(settled.fps[0])) as write:
        for frames in stream(bundle, backend, latents, count, request.tile):
            write(frames)
            done += len(frames)
            yield Part(done, count)
    return result.trace


def memory(pipeline: Pipeline, request: Request, settled: Settled, image: Image | None) -> MemoryPlan:
    """What :func:`film` will take of its device; the request is settled, and its image is not encoded."""
    if image is None:
        return pipeline.memory(request)
    begins_with = start.start_with(pipeline.bundle, settled, [image])
    request = start.begin_on_paper(begins_with, request, settled, pipeline.bundle)
    return pipeline.memory(request, [pixels.shape for pixels in begins_with.pixels])


def shape(pipeline: Pipeline, settled: Settled) -> tuple[int, int, int]:
    """Frames, height and width of the video, in pixels."""
    space = pipeline.bundle.manifest.latent
    frames, height, width = settled.latents.shape[2:]
    return video_frames(space, frames, settled.frames), height * space.spatial_factor, width * space.spatial_factor
