"""The world of the demo model: a coloured shape that moves across the centre of a small frame, and its caption.

A caption determines its video but for a start position that jitters by a pixel or so: the shape passes the frame's
centre in mid-clip. The model knows frames by their distance from each other only, so that a video and its reverse are
hard to tell apart while there is little but noise. Two things make that easy: the ground brightens with time, and
nothing moves right or down, so that no caption asks for the reverse of another's video.

Videos are (channels, frames, height, width), float32 in [-1, 1], channels red, green, blue; rows count downwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SIZE = 24  # pixels, height and width
FRAMES = 8
FPS = 8.0
RADIUS = 5.0  # pixels, from the centre to an edge
JITTER = 1.0  # pixels, largest offset of the whole path in each direction

DAWN, DAY = -1.0, -0.3  # the ground's grey in the first and the last frame
COLOURS = {
    "red": (0.9, -0.8, -0.8),
    "green": (-0.8, 0.9, -0.8),
    "blue": (-0.8, -0.8, 0.9),
    "yellow": (0.9, 0.9, -0.8),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (-1.0, 0.0), "up": (0.0, -1.0)}  # (column, row)
SPEEDS = {"still": 0.0, "slow": 0.6, "fast": 1.8}  # pixels a frame
NOWHERE = "nowhere"  # the direction of what stays still


@dataclass(frozen=True)
class Attributes:
    """The attributes of a caption; ``direction`` is ``nowhere`` exactly where ``speed`` is ``still``."""

    colour: str
    shape: str
    direction: str
    speed: str

    @property
    def velocity(self) -> tuple[float, float]:
        """Return (columns, rows) in pixels a frame."""
        column, row = DIRECTIONS.get(self.direction, (0.0, 0.0))
        return column * SPEEDS[self.speed], row * SPEEDS[self.speed]


MOTIONS = ((NOWHERE, "still"), *((direction, speed) for direction in DIRECTIONS for speed in ("slow", "fast")))
EVERYTHING = tuple(Attributes(colour, shape, *motion) for colour in COLOURS for shape in SHAPES for motion in MOTIONS)


def caption(what: Attributes) -> str:
    subject = f"a {what.colour} {what.shape}"
    if what.speed == "still":
        return f"{subject} stays still"
    return f"{subject} moves {what.direction} {'slowly' if what.speed == 'slow' else what.speed}"


_BY_CAPTION = {caption(what): what for what in EVERYTHING}


def attributes(caption: str) -> Attributes:
    """Return the attributes of a caption, the inverse of :func:`caption`.

    Raises:
        KeyError: the text is none of the world's captions.
    """
    return _BY_CAPTION[caption]


def draw(count: int, rng: np.random.Generator) -> list[Attributes]:
    """Draw speeds equally often, and directions equally often within a speed, so that a third stays still."""
    kinds = {speed: [what for what in EVERYTHING if what.speed == speed] for speed in SPEEDS}
    names = list(SPEEDS)
    return [
        kinds[names[speed]][int(place * len(kinds[names[speed]]))]
        for speed, place in zip(rng.integers(len(names), size=count), rng.random(count), strict=True)
    ]


def prompts(count: int, seed: int) -> list[str]:
    """Return ``count`` captions, the same ones for the same seed."""
    return [caption(what) for what in draw(count, np.random.default_rng(seed))]


def render(
    what: Sequence[Attributes],
    rng: np.random.Generator | None = None,
    size: int = SIZE,
    frames: int = FRAMES,
) -> Array:
    """Return antialiased videos (n, 3, frames, size, size); without ``rng`` the path goes through the exact centre."""
    offset = np.zeros((len(what), 2)) if rng is None else rng.uniform(-JITTER, JITTER, (len(what), 2))
    time = np.arange(frames) - (frames - 1) / 2
    velocity = np.array([each.velocity for each in what])
    centre = (size - 1) / 2 + offset[:, None, :] + velocity[:, None, :] * time[:, None]  # (n, frames, 2)
    grid = np.arange(size)
    x = (grid - centre[:, :, :1])[:, :, None, :]  # (n, frames, 1, columns)
    y = (grid - centre[:, :, 1:])[:, :, :, None]  # (n, frames, rows, 1)
    shape = np.array([each.shape for each in what])
    inside = np.empty((len(what), frames, size, size), np.float32)
    for name in SHAPES:
        chosen = shape == name
        if chosen.any():
            inside[chosen] = coverage(name, x[chosen], y[chosen])
    grey = ground(frames)[:, None, None]
    paint = np.array([COLOURS[each.colour] for each in what], np.float32)[:, :, None, None, None]
    video: Array = grey + (paint - grey) * inside[:, None]
    return video


def ground(frames: int) -> Array:
    """Return the grey of the ground in each frame."""
    return np.linspace(DAWN, DAY, frames, dtype=np.float32)


def coverage(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> Array:
    """Return how much of the pixel at (x, y) from the shape's centre lies inside it, 0 to 1, with a one-pixel ramp."""
    if shape == "circle":
        distance = np.sqrt(x * x + y * y) - RADIUS
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - RADIUS
    else:  # a triangle that points up, its base as wide as it is high
        slope = np.sqrt(1.25)  # of the sides: half the width for each pixel of height
        distance = np.maximum(y - RADIUS, (2 * np.abs(x) - y - RADIUS) / (2 * slope))
    return np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)
