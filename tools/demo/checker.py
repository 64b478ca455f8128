"""Read the attributes of a caption off a video's pixels, with numpy alone.

A video is (channels, frames, height, width) in [-1, 1], channels red, green, blue; values outside are clipped.
"""

import numpy as np
from numpy.typing import NDArray

from tools.demo import world
from tools.demo.world import Array, Attributes

UNREADABLE = "unreadable"  # what an attribute reads where the pixels show none of the world's values

_SLOWEST, _FASTEST = 0.3, 1.2  # pixels a frame, the borders between still, slow and fast
_MAX_COLOUR_ERROR = 0.5  # per channel, root mean square
_MIN_OVERLAP = 0.7  # intersection over union with the best shape
_MIN_AREA = 20.0  # pixels


def read(video: Array) -> Attributes:
    """Return colour, shape, direction and speed; ``unreadable`` where the video shows nothing of the kind."""
    video = np.clip(video, -1, 1)
    names = list(world.COLOURS)
    ground = world.ground(video.shape[1])
    colours = np.array([world.COLOURS[name] for name in names])
    paints = colours[:, :, None] - ground  # (colours, channels, frames)
    deviation = video - ground[:, None, None]

    strength = np.linalg.norm(deviation, axis=0)  # (frames, height, width)
    solid = strength > 0.5 * np.linalg.norm(paints, axis=1).min()
    if solid.sum() < _MIN_AREA * len(solid):
        return Attributes(UNREADABLE, UNREADABLE, UNREADABLE, UNREADABLE)
    colour = np.median(video[:, solid], axis=1)
    errors = np.sqrt(np.mean((colours - colour) ** 2, axis=1))
    best = int(errors.argmin())

    paint = paints[best]
    along = (paint[:, :, None, None] * deviation).sum(0) / (paint**2).sum(0)[:, None, None]
    mask = np.clip(along, 0, 1)
    mask = np.where(mask > 0.25, mask, 0.0)  # noise of the background would pull the centroid inwards
    velocity, straight = _motion(mask)
    direction, speed = _name_motion(velocity) if straight else (UNREADABLE, UNREADABLE)
    return Attributes(names[best] if errors[best] < _MAX_COLOUR_ERROR else UNREADABLE, _shape(mask), direction, speed)


def agreement(video: Array, caption: str) -> dict[str, bool]:
    """Return whether the video shows the caption's ``colour``, ``shape``, ``direction`` and ``speed``."""
    seen, said = read(video), world.attributes(caption)
    return {name: getattr(seen, name) == getattr(said, name) for name in ("colour", "shape", "direction", "speed")}


def _centroids(mask: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centroids of (frames, height, width) as (frames, 2), in columns and rows."""
    total = mask.sum((1, 2)) + 1e-9
    column = (mask.sum(1) * np.arange(mask.shape[2])).sum(1) / total
    row = (mask.sum(2) * np.arange(mask.shape[1])).sum(1) / total
    return np.stack([column, row], axis=1)


def _motion(mask: NDArray[np.float64]) -> tuple[NDArray[np.float64], bool]:
    """Return the velocity of the best straight path and whether the centroid keeps to it.

    The velocity is (columns, rows) in pixels a frame.
    """
    path = _centroids(mask)
    time = np.arange(len(path)) - (len(path) - 1) / 2
    velocity = (time[:, None] * path).sum(0) / (time**2).sum()
    residual = path - path.mean(0) - time[:, None] * velocity
    return velocity, bool(np.sqrt((residual**2).sum(1).mean()) < 1.5)


def _name_motion(velocity: NDArray[np.float64]) -> tuple[str, str]:
    pace = float(np.linalg.norm(velocity))
    if pace < _SLOWEST:
        return world.NOWHERE, "still"
    along = {name: float(velocity @ np.array(unit)) for name, unit in world.DIRECTIONS.items()}
    direction = max(along, key=lambda name: along[name])
    if along[direction] < 0.87 * pace:  # more than 30 degrees off
        direction = UNREADABLE
    return direction, "slow" if pace < _FASTEST else "fast"


def _shape(mask: NDArray[np.float64]) -> str:
    """Return the shape whose drawing overlaps most in all frames, at the best place within a pixel of the centroid."""
    overlaps = {}
    centroids = _centroids(mask)
    grid_y, grid_x = np.arange(mask.shape[1]), np.arange(mask.shape[2])
    steps = np.linspace(-1, 1, 5)
    for shape in world.SHAPES:
        # a triangle's centroid lies below the middle of its height
        drop = world.RADIUS / 3 if shape == "triangle" else 0.0
        best = np.zeros(len(mask))
        for dx in steps:
            for dy in steps:
                x = (grid_x - (centroids[:, :1] + dx))[:, None, :]
                y = (grid_y - (centroids[:, 1:] + dy - drop))[:, :, None]
                drawing = world.coverage(shape, x, y)
                union = np.maximum(drawing, mask).sum((1, 2))
                best = np.maximum(best, np.minimum(drawing, mask).sum((1, 2)) / union)
        overlaps[shape] = float(best.mean())
    winner = max(overlaps, key=lambda name: overlaps[name])
    return winner if overlaps[winner] > _MIN_OVERLAP else UNREADABLE
