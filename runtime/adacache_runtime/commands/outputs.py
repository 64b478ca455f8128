"""What ``adacache-run`` writes: videos, or latents, and what happened."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import LatentSpace
from adacache_engines.contract.engine import Backend
from adacache_engines.errors import InputError
from adacache_runtime.commands.progress import frame_progress
from adacache_runtime.conditioning.clips import joined_frames
from adacache_runtime.media.files import check_folder, writing
from adacache_runtime.media.raw_frames import STANDARD_OUTPUT, check_standard_output, write_raw
from adacache_runtime.media.video import Frames, check_video, writing_video
from adacache_runtime.pipeline import Result
from adacache_runtime.reports.schedule_plot import check_plot, plot_schedule
from adacache_runtime.request import Settled
from adacache_runtime.vae.chunks import video_frames
from adacache_runtime.vae.decode import WITHOUT_DECODER, stream


def output_files(options: argparse.Namespace, samples: int) -> list[Path]:
    """A file a prompt.

    Raises:
        InputError: several prompts cannot be one stream.
    """
    path: Path | None = options.output
    if path is None:
        return []
    if path == STANDARD_OUTPUT and samples > 1:
        raise InputError(f"-o - is one video, and there are {samples} prompts; give one, or name a file")
    return [path] if samples == 1 else [path.with_stem(f"{path.stem}-{index + 1}") for index in range(samples)]


def check_outputs(options: argparse.Namespace, outputs: list[Path], latent: LatentSpace, settled: Settled) -> None:
    """Checks what can be known before the long work.

    Raises:
        InputError, OutOfRangeError: something could not be written, and what to do.
    """
    wanted = (options.output, options.save_latents, options.trace, options.plot)
    if not any(wanted):
        raise InputError("nothing would be written: give -o FILE, --save-latents, --trace or --plot")
    if options.save_every_call and not options.save_latents:
        raise InputError("--save-every-call adds to --save-latents FILE.npz: give that, too")
    frames, height, width = _video_shape(latent, settled, options.loops)
    raw = outputs == [STANDARD_OUTPUT]
    if raw:
        check_standard_output()
        if latent.decoder == "none":
            raise InputError(f"-o - writes frames, and this bundle has no decoder; {WITHOUT_DECODER}")
    for path, rate in zip(outputs, settled.fps.tolist(), strict=False):
        # raw frames may be as many and as large as those of an array
        check_video(Path("frames.npz") if raw else path, frames, (height, width), rate, options.zoom)
    files = [] if raw else outputs if latent.decoder != "none" else [_instead(path) for path in outputs]
    if options.save_latents and options.save_latents.resolve() in [path.resolve() for path in files]:
        raise InputError(
            f"-o and --save-latents would both write {options.save_latents}: give one of them another name"
        )
    if options.plot:
        check_plot(options.plot)
    for path in (*files, options.save_latents, options.trace):
        if path:
            check_folder(path)


def _instead(video: Path) -> Path:
    """The file for latents that cannot become a video."""
    return video.with_suffix(".npz")


def write_latents(outputs: list[Path], result: Result) -> None:
    """Of a bundle without a decoder, instead of videos; says so."""
    files = [_instead(path) for path in outputs]
    for index, path in enumerate(files):
        with writing(path) as file:
            np.savez(file, latents=result.latents[index : index + 1])
        print(path)
    if files:
        print(
            f"adacache-run: this bundle has no decoder, so latents were written to {', '.join(map(str, files))} "
            f"instead of a video; {WITHOUT_DECODER}",
            file=sys.stderr,
        )


def write_videos(
    options: argparse.Namespace, outputs: list[Path], bundle: Bundle, backend: Backend, settled: Settled, result: Result
) -> None:
    """Decodes, and writes while it does."""
    if not outputs:
        return
    count, height, width = _video_shape(bundle.manifest.latent, settled, options.loops)
    pixels = bundle.manifest.latent.decoder == "pixels"
    with nullcontext(lambda: None) if pixels else frame_progress(len(outputs) * count) as progress:
        for path, latents, fps in zip(outputs, result.latents, settled.fps.tolist(), strict=True):
            frames = _counted(stream(bundle, backend, latents, count, options.tile), progress)
            if path == STANDARD_OUTPUT:
                for some in frames:
                    write_raw(some, options.zoom)
                continue
            with writing_video(path, count, (height, width), fps, options.zoom) as write:
                for some in frames:
                    write(some)
    if outputs == [STANDARD_OUTPUT]:
        size = f"{options.zoom * width}x{options.zoom * height}"
        rate = f"{settled.fps.tolist()[0]:g} a second"
        print(f"standard output: {count} frames rgb24 {size} (width x height), {rate}", file=sys.stderr)
        return
    for path in outputs:
        print(path)


def _counted(parts: Iterator[Frames], step: Callable[[], None]) -> Iterator[Frames]:
    """The same, with a step for each frame."""
    for part in parts:
        for _ in part:
            step()
        yield part


def _video_shape(latent: LatentSpace, settled: Settled, clips: int) -> tuple[int, int, int]:
    """Frames, height and width in pixels of a video of several clips."""
    latent_frames, height, width = settled.latents.shape[2:]
    factor = latent.spatial_factor
    frames = video_frames(latent, *joined_frames(latent, latent_frames, settled.frames, clips))
    return frames, height * factor, width * factor


def write_reports(options: argparse.Namespace, result: Result) -> None:
    """The final latents, the trace and the plot, those of them that were asked for."""
    if options.save_latents:
        arrays: dict[str, Any] = {"latents": result.latents}
        if result.calls is not None:
            arrays["calls"] = result.calls
        with writing(options.save_latents) as file:
            np.savez(file, **arrays)
    if options.trace:
        with writing(options.trace) as file:
            file.write(result.trace.to_json().encode())
    if options.plot:
        plot_schedule(result.trace, options.plot, f"{options.bundle.name}, policy {Path(options.policy).stem}")
    for path in (options.save_latents, options.trace, options.plot):
        if path:
            print(path, file=sys.stderr if options.output == STANDARD_OUTPUT else sys.stdout)
