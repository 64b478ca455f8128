"""Show the videos of one prompt under all policies side by side, each with its name and numbers above it."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from adacache_engines.errors import require
from adacache_runtime.media.video import MAX_SIDE, Frames, write_video
from adacache_tune.comparison.measure import FULL, Row

COLUMNS = 4  # at most, before a new row of panels begins
READABLE = 240  # pixels, the width of a panel at which its caption can be read
GAP = 4  # pixels between panels, and around captions
TEXT, SMALLEST = 14, 6  # pixels, the height of a caption's letters, and of one that would not fit
BACKGROUND, INK, FAINT = (24, 24, 24), (255, 255, 255), (190, 190, 190)


def usual_zoom(width: int) -> int:
    """Return the smallest zoom at which captions of panels that are ``width`` pixels wide can be read."""
    return max(1, math.ceil(READABLE / width))


def side_by_side(frames: Mapping[str, Frames], rows: Sequence[Row], zoom: int) -> Frames:
    """Return one video that shows the videos of all policies.

    Args:
        frames: videos by label, (frames, height, width, 3) RGB, of one shape.
        rows: numbers of the same policies, in the order of the panels.
        zoom: side of the square that a pixel becomes.

    Returns:
        (frames, height, width, 3): panels from left to right, and below each other where they are many; both sides
        even.

    Raises:
        MissingDependencyError: matplotlib, whose font is used, is not installed.
    """
    panels = [_panel(frames[row.policy], row, zoom) for row in rows]
    columns = min(COLUMNS, len(panels))
    count, height, width, _ = panels[0].shape
    lines = math.ceil(len(panels) / columns)
    size = (lines * (height + GAP) - GAP, columns * (width + GAP) - GAP)
    whole = np.empty((count, size[0] + size[0] % 2, size[1] + size[1] % 2, 3), np.uint8)
    whole[...] = BACKGROUND
    for index, panel in enumerate(panels):
        top, left = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        whole[:, top : top + height, left : left + width] = panel
    return whole


def largest_zoom(height: int, width: int, panels: int) -> int:
    """Return the largest zoom at which the picture is no larger than a video may be; 0 where there is none."""
    columns = min(COLUMNS, panels)
    lines = math.ceil(panels / columns)
    return min((MAX_SIDE // columns - GAP) // width, (MAX_SIDE // lines - GAP - _strip()) // height)


def write_side_by_side(path: Path, frames: Mapping[str, Frames], rows: Sequence[Row], zoom: int, fps: float) -> None:
    """Write the video of :func:`side_by_side` as ``.mp4``.

    Raises:
        AdaCacheError: as :func:`side_by_side` and :func:`adacache_runtime.media.video.write_video`.
    """
    write_video(path, side_by_side(frames, rows, zoom), fps)


def _panel(frames: Frames, row: Row, zoom: int) -> Frames:
    zoomed = frames.repeat(zoom, axis=1).repeat(zoom, axis=2)
    strip = _caption(row, zoomed.shape[2])
    repeated = np.broadcast_to(strip, (len(zoomed), *strip.shape))
    return np.concatenate([repeated, zoomed], axis=1)


def _caption(row: Row, width: int) -> NDArray[np.uint8]:
    """Return a caption (height, width, 3): the label, and the numbers below it."""
    image = Image.new("RGB", (width, _strip()), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for line, (text, colour) in enumerate((("full compute" if row.policy == FULL else row.policy, INK), _numbers(row))):
        sizes = range(TEXT, SMALLEST, -1)
        fitting = (size for size in sizes if draw.textlength(text, font=_font(size)) <= width - 2 * GAP)
        middle = GAP + line * (TEXT + GAP) + TEXT / 2
        draw.text((GAP, middle), text, fill=colour, font=_font(next(fitting, SMALLEST)), anchor="lm")
    return np.asarray(image, np.uint8)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's font, which has more letters than Pillow's own."""
    matplotlib: Any = require("matplotlib", "compare")
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _numbers(row: Row) -> tuple[str, tuple[int, int, int]]:
    if row.policy == FULL:
        return f"{row.computed} calls", FAINT
    near = "same pixels" if row.same else f"{row.psnr_db:.1f} dB"
    return f"{near}, {row.time_ratio:.2f}× as fast", FAINT


def _strip() -> int:
    return 2 * TEXT + 3 * GAP
