"""Options that several commands share."""

import argparse
from pathlib import Path
from typing import TypedDict

from adacache_engines.backends import BACKENDS, ONNXRUNTIME, TEXT_DEVICES
from adacache_engines.bundle.manifest import Manifest
from adacache_engines.bundle.shape_profiles import possible_frames
from adacache_engines.bundle.video_sizes import IMAGE, RESOLUTIONS, USUAL_ASPECT, frames_of, size_of
from adacache_engines.errors import InputError
from adacache_engines.onnxruntime.engine import PROVIDERS


class VideoSize(TypedDict):
    """Of a request: pixels and frames; None = the bundle's default."""

    height: int | None
    width: int | None
    frames: int | None


def add_size(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The size and length of a video; see :func:`video_size`."""
    add = parser.add_argument
    add(
        "--size", type=_size, metavar="SIZE", help=f"HxW in pixels, or {', '.join(RESOLUTIONS)} (default: the bundle's)"
    )
    add("--aspect", metavar="H:W", help=f"height to width of a named size (default: {USUAL_ASPECT})")
    add("--frames", type=int, metavar="F", help="1 = an image (default: the bundle's)")
    add("--duration", metavar="TIME", help=f"instead of frames: {IMAGE}, or seconds, such as 2s")


def _size(text: str) -> str:
    """For ``argparse``: a size whose aspect is still open."""
    try:
        size_of(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def video_size(options: argparse.Namespace, manifest: Manifest, fps: float | None = None) -> VideoSize:
    """What :func:`add_size` was given, for a bundle; ``fps`` other than the bundle's decides how long frames last.

    Raises:
        InputError: a name is unknown, or two options say the same in different ways.
        OutOfRangeError: the model makes no video of that duration.
    """
    if options.aspect and not options.size:
        raise InputError(f"--aspect {options.aspect} is of a named size: give --size, such as 480p, too")
    if options.duration and options.frames is not None:
        raise InputError("give either --frames or --duration, and not both")
    height, width = size_of(options.size, options.aspect) if options.size else (None, None)
    frames = options.frames
    if options.duration:
        named = manifest.names.only_named_durations
        frames = frames_of(options.duration, fps or manifest.video.fps, possible_frames(manifest), named)
    return VideoSize(height=height, width=width, frames=frames)


def add_video(parser: argparse.ArgumentParser) -> None:
    """What a generation makes, and how it is sampled."""
    group = parser.add_argument_group("video and sampling")
    add_size(group)
    add = group.add_argument
    add("--steps", type=int, help="(default: the bundle's)")
    add("--guidance", type=float, help="(default: the bundle's)")


def add_engine(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What runs the bundle; returns the group, for more of it."""
    group = parser.add_argument_group("engine")
    add = group.add_argument
    add("--backend", choices=BACKENDS, default=ONNXRUNTIME, help="(default: onnxruntime)")
    add("--provider", choices=tuple(PROVIDERS), default="cpu", help="of ONNX Runtime (default: cpu)")
    add("--threads", type=int, default=0, help="of ONNX Runtime (default: one a core)")
    add(
        "--text-device",
        choices=TEXT_DEVICES,
        default="backend",
        help="of the text encoder: where the model runs, or the CPU (default: backend)",
    )
    add(
        "--embedding-cache",
        metavar="DIR",
        type=Path,
        help="keep what the text encoder makes of a prompt, and use it again (default: no)",
    )
    return group
