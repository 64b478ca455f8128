"""Files that ``adacache-run`` writes: videos or latents, traces and plots."""

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from adacache_engines.bundle.manifest import LatentSpace
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_runtime.caching.presets import policy_file
from adacache_runtime.checking import VideoShape
from adacache_runtime.commands.destinations import check_apart
from adacache_runtime.commands.progress import frame_progress
from adacache_runtime.events import Decoded, Denoised
from adacache_runtime.media.files import check_writable, standard_stream, writing
from adacache_runtime.media.raw_frames import STANDARD_OUTPUT, check_standard_output, write_raw
from adacache_runtime.media.video import Frames, check_video, writing_video
from adacache_runtime.reports.schedule_plot import check_plot, plot_schedule
from adacache_runtime.vae.decode import WITHOUT_DECODER

REPORTS = ("save_latents", "trace", "plot")  # options that each name a file beside the video


def output_files(options: argparse.Namespace, samples: int) -> list[Path]:
    """Return one file for each prompt.

    Raises:
        InputError: several prompts cannot be one stream.
    """
    path: Path | None = options.output
    if path is None:
        return []
    if path == STANDARD_OUTPUT and samples > 1:
        raise InputError(f"-o - is one video, and there are {samples} prompts; give one, or name a file")
    return [path] if samples == 1 else [path.with_stem(f"{path.stem}-{index + 1}") for index in range(samples)]


def check_outputs(options: argparse.Namespace, outputs: list[Path], latent: LatentSpace, video: VideoShape) -> None:
    """Check what can be known before the long work.

    Raises:
        InputError, OutOfRangeError: something could not be written, and what to do.
    """
    if not options.output and not any(getattr(options, name) for name in REPORTS):
        raise InputError("nothing would be written: give -o FILE, --save-latents, --trace or --plot")
    if options.save_every_call and not options.save_latents:
        raise InputError("--save-every-call adds to --save-latents FILE.npz: give that, too")
    if options.zoom < 1:
        raise OutOfRangeError(f"zoom {options.zoom} is not possible; choose at least 1")
    raw = outputs == [STANDARD_OUTPUT]
    if raw:
        check_standard_output()
        if latent.decoder == "none":
            raise InputError(f"-o - writes frames, and this bundle has no decoder; {WITHOUT_DECODER}")
    for path, rate in zip(outputs, video.fps, strict=False):
        # raw frames may be as many and as large as those of an array
        shown = Path("frames.npz") if raw else path
        check_video(shown, video.frames, (video.height, video.width), rate, options.zoom)
    files = [] if raw else outputs if latent.decoder != "none" else [_instead(path) for path in outputs]
    written = [("-o", path) for path in (outputs if raw else files)]
    written += [(f"--{name.replace('_', '-')}", getattr(options, name)) for name in REPORTS]
    read = [("--text-embeddings", options.text_embeddings), ("--latents", options.latents), ("--video", options.video)]
    read += [*(("--image", path) for path in options.image), ("--policy", policy_file(options.policy))]
    check_apart([*written, ("--embedding-cache", options.embedding_cache)], read, [options.bundle])
    if options.plot:
        check_plot(options.plot)
    for path in (*files, options.save_latents, options.trace):
        if path:
            check_writable(path)


def _instead(video: Path) -> Path:
    """Return the file for latents that cannot become a video."""
    return video.with_suffix(".npz")


def write_latents(options: argparse.Namespace, outputs: list[Path], result: Denoised) -> None:
    """Write latents instead of videos, for a bundle without a decoder, and say so."""
    files = [_instead(path) for path in outputs]
    for index, path in enumerate(files):
        with writing(path) as file:
            np.savez(file, latents=result.latents[index : index + 1])
        _tell(options, path)
    if files:
        print(
            f"adacache-run: this bundle has no decoder, so latents were written to {', '.join(map(str, files))} "
            f"instead of a video; {WITHOUT_DECODER}",
            file=sys.stderr,
        )


def write_videos(
    options: argparse.Namespace, outputs: list[Path], video: VideoShape, decoded: Iterator[Decoded]
) -> None:
    """Write frames as they are decoded, the video of each prompt to its file."""
    size = (video.height, video.width)
    with frame_progress(len(outputs) * video.frames) as progress:
        for prompt, parts in groupby(decoded, key=lambda event: event.prompt):
            frames = _counted((part.frames for part in parts), progress)
            if outputs == [STANDARD_OUTPUT]:
                for some in frames:
                    write_raw(some, options.zoom)
                continue
            with writing_video(outputs[prompt], video.frames, size, video.fps[prompt], options.zoom) as write:
                for some in frames:
                    write(some)
    if outputs == [STANDARD_OUTPUT]:
        shown = f"{options.zoom * video.width}x{options.zoom * video.height}"
        rate = f"{video.fps[0]:g} a second"
        print(f"standard output: {video.frames} frames rgb24 {shown} (width x height), {rate}", file=sys.stderr)
        return
    for path in outputs:
        _tell(options, path)


def _tell(options: argparse.Namespace, path: Path) -> None:
    """Print the name of a file that was written: on standard error, where results go to standard output."""
    results = [options.output, *(getattr(options, name) for name in REPORTS)]
    taken = any(each and (each == STANDARD_OUTPUT or standard_stream(each) == 1) for each in results)
    print(path, file=sys.stderr if taken else sys.stdout)


def _counted(parts: Iterator[Frames], step: Callable[[], None]) -> Iterator[Frames]:
    """Yield the same parts, with a step for each frame."""
    for part in parts:
        for _ in part:
            step()
        yield part


def write_reports(options: argparse.Namespace, result: Denoised) -> None:
    """Write the final latents, the trace and the plot, those of them that were asked for."""
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
    for name in REPORTS:
        if path := getattr(options, name):
            _tell(options, path)
