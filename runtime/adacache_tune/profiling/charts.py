"""Charts of a generation's schedule and time line as inline SVG; the page's style sheet colours them by class."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from adacache_runtime.reports.summary import milliseconds
from adacache_runtime.trace import CallRecord, Trace, lanes

WIDTH, LEFT, RIGHT = 960, 76, 10  # pixels; left of the panels stand their names and numbers
GAP, CAPTION = 16, 20  # between panels, and above each for its name

Points = Sequence[tuple[int, float]]  # call, value


def schedule_chart(trace: Trace) -> str:
    """Return a chart of computed and cached calls, with distance, motion and rate where the policy measured them."""
    panels: list[tuple[str, int, Callable[[float, float], str]]] = [
        ("computed and cached calls", _rows_height(trace), lambda top, height: _cells(trace, top, height)),
    ]
    for name, value in (
        ("distance, relative L1 per step", lambda record: record.observation.get("distance")),
        ("motion, relative L1 per frame", lambda record: record.observation.get("motion")),
        ("rate, steps to the next computed call", lambda record: record.observation.get("rate")),
    ):
        points = _points(trace, value)
        if points:
            steps = name.startswith("rate")
            panels.append((name, 70, _line_panel(trace, points, steps)))
    return _chart(trace, panels, "schedule")


def calls_chart(trace: Trace) -> str:
    """Return a chart of the time of each call."""
    times = [(record.call, record.wall_ms) for record in trace.calls]
    most = _nice(max(value for _, value in times))

    def bars(top: float, height: float) -> str:
        drawn = [_axis(top, height, most, milliseconds)]
        width = _pitch(trace) * 0.8
        for record in trace.calls:
            tall = max(height * record.wall_ms / most, 1)
            x, y = _x(trace, record.call) - width / 2, top + height - tall
            drawn.append(_rect(x, y, width, tall, _kind(record), f"call {record.call}: {milliseconds(record.wall_ms)}"))
        return "".join(drawn)

    return _chart(trace, [("wall-clock time of each call", 110, bars)], "time of each call")


def elapsed_chart(trace: Trace) -> str:
    """Return the calls one after another, each as wide as it took long."""
    total = trace.wall_ms() or 1.0
    scale, x, drawn = (WIDTH - LEFT - RIGHT) / total, float(LEFT), []
    for record in trace.calls:
        width = record.wall_ms * scale
        told = f"call {record.call}: {milliseconds(record.wall_ms)}"
        drawn.append(_rect(x, CAPTION, max(width - 0.6, 0.4), 26, _kind(record), told))
        if width > 20:
            drawn.append(_text(x + width / 2, CAPTION + 17, str(record.call), "on", "middle"))
        x += width
    step = _nice(total / 6)
    for index in range(int(total / step) + 1):
        at = LEFT + index * step * scale
        anchor = "middle" if at < WIDTH - 3 * RIGHT else "end"
        drawn.append(_text(at, CAPTION + 42, milliseconds(index * step) if index else "0", "tick", anchor))
    drawn.append(_text(LEFT, CAPTION - 8, "all calls, one after another", "name", "start"))
    return _svg(CAPTION + 48, "".join(drawn), "time line")


def parts_bar(parts: Mapping[str, tuple[float, float]]) -> str:
    """Return one bar with the shares of the time inside engines."""
    x, drawn = 0.0, []
    for index, (name, (ms, share)) in enumerate(parts.items()):
        width = WIDTH * share
        drawn.append(_rect(x, 0, max(width - 1, 0.5), 22, f"p{index % 5}", f"{name}: {milliseconds(ms)}, {share:.1%}"))
        x += width
    return _svg(22, "".join(drawn), "share of each part")


def _chart(trace: Trace, panels: Sequence[tuple[str, int, Callable[[float, float], str]]], label: str) -> str:
    """Return panels over one axis of calls."""
    y, drawn = 0.0, []
    for name, height, draw in panels:
        drawn += [_text(LEFT, y + CAPTION - 8, name, "name", "start"), draw(y + CAPTION, height)]
        y += CAPTION + height + GAP
    count = len(trace.calls)
    apart = next((step for step in (1, 2, 5, 10, 20, 50, 100) if count / step <= 30), 200)
    for call in sorted({1, *range(apart, count + 1, apart)}):
        if call == 1 or call - 1 >= apart / 2:
            drawn.append(_text(_x(trace, call), y, str(call), "tick", "middle"))
    return _svg(y + 6, "".join(drawn), label)


def _cells(trace: Trace, top: float, height: float) -> str:
    rows = lanes(trace)
    width, tall = _pitch(trace) * 0.88, height / len(rows[0])
    drawn = []
    for record, row in zip(trace.calls, rows, strict=True):
        for group, computed in enumerate(row):
            told = f"call {record.call}: {'computed' if computed else 'cached'}"
            x, y = _x(trace, record.call) - width / 2, top + group * tall
            drawn.append(_rect(x, y, width, tall, "computed" if computed else "reused", told))
    return "".join(drawn)


def _rows_height(trace: Trace) -> int:
    return max(22, min(6 * len(lanes(trace)[0]), 160))


def _line_panel(trace: Trace, points: Points, steps: bool) -> Callable[[float, float], str]:
    """Return a line through the points, or steps that hold until the next point."""
    most = _nice(max(value for _, value in points))

    def draw(top: float, height: float) -> str:
        placed = [(_x(trace, call), top + height * (1 - value / most)) for call, value in points]
        path = [f"M{placed[0][0]:.1f} {placed[0][1]:.1f}"]
        for x, y in placed[1:]:
            path.append(f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}")
        dots = "".join(
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.6"><title>call {call}: {value:.4g}</title></circle>'
            for (x, y), (call, value) in zip(placed, points, strict=True)
        )
        return _axis(top, height, most, lambda value: f"{value:g}") + f'<path class="line" d="{"".join(path)}"/>' + dots

    return draw


def _axis(top: float, height: float, most: float, words: Callable[[float], str]) -> str:
    """Return lines at 0, half and ``most``, with their numbers."""
    drawn = []
    for share in (0.0, 0.5, 1.0):
        y = top + height * (1 - share)
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(_text(LEFT - 8, y + 3.5, words(most * share) if share else "0", "tick", "end"))
    return "".join(drawn)


def _points(trace: Trace, value: Callable[[CallRecord], float | None]) -> Points:
    found = [(record.call, value(record)) for record in trace.calls]
    return [(call, number) for call, number in found if number is not None and math.isfinite(number)]


def _nice(value: float) -> float:
    """Return the least of 1, 2, 4, 5, 6, 8 times a power of ten that is not below ``value``."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 6, 8, 10, 20) if step * power >= value * (1 - 1e-9))


def _pitch(trace: Trace) -> float:
    return (WIDTH - LEFT - RIGHT) / len(trace.calls)


def _x(trace: Trace, call: int) -> float:
    return LEFT + (call - 0.5) * _pitch(trace)


def _kind(record: CallRecord) -> str:
    return "computed" if record.computed else "reused"


def _rect(x: float, y: float, width: float, height: float, kind: str, told: str) -> str:
    return (
        f'<rect class="{kind}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}">'
        f"<title>{escape(told)}</title></rect>"
    )


def _text(x: float, y: float, words: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(height: float, content: str, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">{content}</svg>'
