"""Place names beside the points of a plot, where they cover nothing."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

# points, from a marker to the nearest edge of its name; the nearest that is free is taken
DISTANCES = (6, 13, 21, 30, 40, 52, 66)
DIRECTIONS = 16
LEADER = 10  # points, from which on a line leads to the name
MARKER = 5  # points, half a marker's side

Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels


def place_labels(
    axis: Any, points: Sequence[tuple[float, float, str]], taken: Sequence[Sequence[tuple[float, float]]]
) -> None:
    """Write a name beside each point, once the limits of the axis are final.

    Args:
        axis: matplotlib axis of a figure that was drawn once.
        points: (x, y, name) in data coordinates.
        taken: lines that names should not cover, as corners in data coordinates.
    """
    figure = axis.figure
    renderer, pixel = figure.canvas.get_renderer(), figure.dpi / 72
    spots = [tuple(axis.transData.transform((x, y))) for x, y, _ in points]
    half = MARKER * pixel
    covered: list[Box] = [(x - half, y - half, x + half, y + half) for x, y in spots]
    lines = [_samples([tuple(axis.transData.transform(corner)) for corner in line]) for line in taken]
    inside = axis.get_window_extent(renderer)
    frame: Box = (inside.x0, inside.y0, inside.x1, inside.y1)
    for (x, y, name), spot in zip(points, spots, strict=True):
        text = axis.annotate(name, (x, y), fontsize=8, annotation_clip=False, parse_math=False)
        extent = text.get_window_extent(renderer)
        text.remove()
        size = (extent.width + 2 * pixel, extent.height + 2 * pixel)
        candidates = [
            (_beside(spot, size, distance * pixel, angle), distance, angle)
            for distance in DISTANCES
            for angle in (2 * math.pi * step / DIRECTIONS for step in range(DIRECTIONS))
        ]
        box, distance, _ = min(candidates, key=lambda one: _cost(one[0], one[1], covered, lines, frame))
        covered.append(box)
        middle = ((box[0] + box[2]) / 2 - spot[0], (box[1] + box[3]) / 2 - spot[1])
        axis.annotate(
            name,
            (x, y),
            xytext=(middle[0] / pixel, middle[1] / pixel),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6} if distance >= LEADER else None,
        )


def _beside(spot: tuple[float, float], size: tuple[float, float], distance: float, angle: float) -> Box:
    """Return a box of this size whose nearest edge is this far from the spot."""
    across, up = math.cos(angle), math.sin(angle)
    middle = (spot[0] + across * (distance + size[0] / 2), spot[1] + up * (distance + size[1] / 2))
    return (middle[0] - size[0] / 2, middle[1] - size[1] / 2, middle[0] + size[0] / 2, middle[1] + size[1] / 2)


def _cost(
    box: Box, distance: float, covered: Sequence[Box], lines: Sequence[Sequence[tuple[float, float]]], frame: Box
) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    hidden = sum(_overlap(box, other) for other in covered)
    outside = area - _overlap(box, frame)
    crossed = sum(1 for line in lines for x, y in line if box[0] < x < box[2] and box[1] < y < box[3])
    return 100 * (hidden + outside) / area + 0.5 * crossed + 0.05 * distance


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _samples(corners: Sequence[tuple[float, ...]]) -> list[tuple[float, float]]:
    """Return points along a line, some pixels apart."""
    found = []
    for (x, y), (to_x, to_y) in pairwise(corners):
        count = max(2, int(math.hypot(to_x - x, to_y - y) / 4))
        found += [(x + (to_x - x) * step / count, y + (to_y - y) * step / count) for step in range(count + 1)]
    return found
