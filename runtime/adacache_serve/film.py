"""One video, from order to file, in steps between which a worker can do something else."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from adacache_runtime import start
from adacache_runtime.decode import stream
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request, Settled, settle
from adacache_runtime.start import Image
from adacache_runtime.trace import CallRecord, Trace
from adacache_runtime.video import writing_video
from adacache_runtime.windows import video_frames

VIDEO, PICTURE = ".mp4", ".png"


@dataclass(frozen=True)
class Part:
    """Frames that were decoded and written, so far and in all."""

    frames: int
    of: int


Step = CallRecord | Part


def suffix(frames: int) -> str:
    """Of the file: a single frame is a picture."""
    return PICTURE if frames == 1 else VIDEO


def film(
    pipeline: Pipeline, request: Request, output: Path, picture: Image | None = None
) -> Generator[Step, None, Trace]:
    """Makes a video; what it holds is let go of when the generator is closed.

    Args:
        pipeline: of the model.
        request: for one prompt.
        output: ``.mp4`` or ``.png``, written at the end, whole or not at all.
        picture: that the video begins with, or has elsewhere.

    Yields:
        The record of each call of the denoiser, one call late; then how many frames there are, now and then.

    Returns:
        The trace.

    Raises:
        AdaCacheError: as :meth:`Pipeline.calls` and :func:`adacache_runtime.decode.stream`.
    """
    bundle, backend = pipeline.bundle, pipeline.backend
    settled = settle(bundle, request)
    if picture is not None:
        begins_with = start.start_with(bundle, settled, [picture])
        request = start.begin(begins_with, request, settled, bundle, backend)
    result = yield from pipeline.calls(request)
    (latents,) = result.latents
    count, *size = shape(pipeline, settled)
    done = 0
    with writing_video(output, count, (size[0], size[1]), float(settled.fps[0])) as write:
        for frames in stream(bundle, backend, latents, count, request.tile):
            write(frames)
            done += len(frames)
            yield Part(done, count)
    return result.trace


def shape(pipeline: Pipeline, settled: Settled) -> tuple[int, int, int]:
    """Frames, height and width of the video, in pixels."""
    space = pipeline.bundle.manifest.latent
    frames, height, width = settled.latents.shape[2:]
    return video_frames(space, frames, settled.frames), height * space.spatial_factor, width * space.spatial_factor
