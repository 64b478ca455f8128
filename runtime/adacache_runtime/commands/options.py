"""Options that several commands share."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict

from adacache_engines.backends import BACKENDS, backend_from_texts, default_backend
from adacache_engines.bundle.manifest import Manifest
from adacache_engines.bundle.video_sizes import IMAGE
from adacache_engines.contract.engine import BackendConfig
from adacache_engines.contract.options import Option, options_of, switch
from adacache_engines.errors import InputError
from adacache_runtime.request_options import VideoSize
from adacache_runtime.request_options import video_size as resolved_size
from adacache_runtime.text.device import TEXT_DEVICES, TextDevice, check_text_device


def add_size(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options for the size and length of a video, which :func:`video_size` reads."""
    add = parser.add_argument
    add(
        "--size",
        metavar="SIZE",
        help="WIDTHxHEIGHT in pixels, such as 854x480, or a name that the bundle has for a size, such as 480p; "
        "adacache-export --inspect lists them (default: the bundle's)",
    )
    add("--width", type=int, metavar="PIXELS", help="width, instead of --size (default: the bundle's)")
    add("--height", type=int, metavar="PIXELS", help="height, instead of --size (default: the bundle's)")
    add("--aspect", metavar="W:H", help="width to height of a named size, such as 9:16 (default: the bundle's)")
    add("--frames", type=int, metavar="F", help="number of frames; 1 = an image (default: the bundle's)")
    add("--duration", metavar="TIME", help=f"instead of frames: {IMAGE}, or seconds, such as 2s")


def video_size(options: argparse.Namespace, manifest: Manifest, fps: float | None = None) -> VideoSize:
    """Return the size and length that the options of :func:`add_size` ask of a bundle.

    Args:
        options: parsed command line.
        manifest: the bundle's manifest.
        fps: frames per second by which a duration is counted; None = the bundle's.

    Raises:
        InputError: a name is unknown, or two options say the same in different ways.
        OutOfRangeError: the model makes no video of that duration.
    """
    size = {name: getattr(options, name) for name in ("size", "aspect", "width", "height", "frames", "duration")}
    return resolved_size(manifest, **size, fps=fps)


def add_video(parser: argparse.ArgumentParser) -> None:
    """Add the options for the size and length of a video, the image that it starts from, and sampling."""
    group = parser.add_argument_group("video and sampling")
    add_size(group)
    add = group.add_argument
    add(
        "--image",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="the image that all videos start from, for a model that needs one",
    )
    add("--steps", type=int, help="(default: the bundle's)")
    add("--guidance", type=float, help="(default: the bundle's)")
    add("--guidance-2", type=float, help="that of the second of two experts (default: --guidance, or the bundle's)")


def add_backend(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options of all backends; return their group, for more of them.

    The values stay text until a backend is chosen; see :func:`backend_from`.
    """
    group = parser.add_argument_group("backend")
    add = group.add_argument
    add(
        "--backend",
        choices=tuple(BACKENDS),
        default=default_backend(),
        help=f"library that runs the bundle (default: {default_backend()})",
    )
    for name, option_of in _backend_options().items():
        flag = f"--{name.replace('_', '-')}"
        told: dict[str, list[str]] = {}
        for backend, option in option_of.items():
            told.setdefault(option.help, []).append(backend)
        description = "; ".join(f"{', '.join(backends)}: {text}" for text, backends in told.items())
        first = next(iter(option_of.values()))
        if first.metavar is None:
            add(flag, action=argparse.BooleanOptionalAction, help=description)
        else:
            parsers = [option.parse for option in option_of.values()]
            add(flag, metavar=first.metavar, type=partial(_accepted, parsers), help=description)
    return group


def add_opening(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options of :func:`add_backend` and those of the text encoder; see :func:`opening_from`."""
    group = add_backend(parser)
    add = group.add_argument
    add(
        "--text-device",
        choices=TEXT_DEVICES,
        default="backend",
        help="where the text encoder runs: where the model does, or on the CPU (default: backend)",
    )
    add(
        "--embedding-cache",
        metavar="DIR",
        type=Path,
        help="folder that keeps what the text encoder makes of each prompt, for the next time (default: none)",
    )
    add_expert_offload(group)
    return group


def add_expert_offload(group: argparse._ArgumentGroup) -> None:
    """Add the option for a device that cannot hold the engines of two experts."""
    group.add_argument(
        "--expert-offload",
        action="store_true",
        help="load the engines of one of two experts at a time, for a device that cannot hold both (default: both)",
    )


def _backend_options() -> dict[str, dict[str, Option]]:
    """Return each option's descriptions, by its name and by the backends that have it."""
    found: dict[str, dict[str, Option]] = {}
    for backend, value in BACKENDS.items():
        for name, option in options_of(value).items():
            found.setdefault(name, {})[backend] = option
    return found


def _accepted(parsers: Sequence[Callable[[str], object]], text: str) -> str:
    """For ``argparse``: a text that at least one of the backends can read."""
    problems = []
    for parse in parsers:
        try:
            parse(text)
            return text
        except ValueError as error:  # noqa: PERF203 - there are one or two
            problems.append(str(error))
    raise argparse.ArgumentTypeError("; ".join(dict.fromkeys(problems)))


def backend_texts(options: argparse.Namespace) -> dict[str, str]:
    """Return the options of backends that were given, as text, by their names."""
    given = {name: getattr(options, name) for name in _backend_options()}
    return {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in given.items()
        if value is not None
    }


def backend_from(options: argparse.Namespace) -> BackendConfig:
    """Return the backend that :func:`add_backend`'s options choose.

    Raises:
        InputError: the backend does not have one of the options, or an option's value is not possible.
    """
    return backend_from_texts(options.backend, backend_texts(options))


class Opening(TypedDict):
    """How a bundle is opened: arguments of :meth:`adacache_runtime.pipeline.Pipeline.open`."""

    backend: BackendConfig
    text_device: TextDevice
    embedding_cache: Path | None
    expert_offload: bool


def opening_from(options: argparse.Namespace) -> Opening:
    """Return what :func:`add_opening`'s options say of how a bundle is opened.

    Raises:
        InputError: the backend does not have one of the options, or an option's value is not possible.
    """
    return Opening(
        backend=backend_from(options),
        text_device=check_text_device(options.text_device),
        embedding_cache=options.embedding_cache,
        expert_offload=options.expert_offload,
    )


def opening_from_texts(texts: Mapping[str, str]) -> Opening:
    """Return what ``name=value`` texts say of how a bundle is opened, where there is no command line.

    Args:
        texts: by the names of the options with underscores, such as ``backend``, ``weight_budget``, ``text_device``;
            those that are missing keep their defaults. An option that is on or off takes ``true`` or ``false``.

    Raises:
        InputError: a name is unknown, or a value is not possible.
    """
    rest = dict(texts)
    name, device = rest.pop("backend", default_backend()), rest.pop("text_device", "backend")
    cache, offload = rest.pop("embedding_cache", ""), rest.pop("expert_offload", "false")
    try:
        expert_offload = switch(offload)
    except ValueError as error:
        raise InputError(f"option expert_offload: {error}") from error
    return Opening(
        backend=backend_from_texts(name, rest),
        text_device=check_text_device(device),
        embedding_cache=Path(cache) if cache else None,
        expert_offload=expert_offload,
    )
