"""What is known of jobs that are being made: each call of the denoiser, frame counts. Gone with the server, as they are
made again then.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DECODING = 0.1  # share of the progress that is decoding


@dataclass
class Live:
    """One attempt at a job.

    Attributes:
        attempt: its number.
        began: when a worker was given it, by the monotonic clock.
        of: calls that there will be; 0 = not known yet.
        calls: so far, each as :func:`adacache_runtime.trace.entry` has it.
        frames, frames_of: that were decoded.
    """

    attempt: int
    began: float = field(default_factory=time.monotonic)
    of: int = 0
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    frames: int = 0
    frames_of: int = 0

    def progress(self) -> float:
        """Per cent."""
        called = len(self.calls) / self.of if self.of else 0.0
        decoded = self.frames / self.frames_of if self.frames_of else 0.0
        return round(100 * ((1 - DECODING) * called + DECODING * decoded), 1)


def numbers(calls: Sequence[Mapping[str, Any]], of: int) -> dict[str, Any]:
    """Of :class:`adacache_serve.schema.TraceNumbers`."""
    engine_ms: dict[str, float] = {}
    for call in calls:
        for part, time_ms in call["engine_ms"].items():
            engine_ms[part] = engine_ms.get(part, 0.0) + time_ms
    distances = [call["distance"] for call in calls if call.get("distance") is not None]
    return {
        "calls": len(calls),
        "of": of,
        "computed": sum(call["computed"] for call in calls),
        "wall_ms": sum(call["wall_ms"] for call in calls),
        "engine_ms": engine_ms,
        "distance": distances[-1] if distances else None,
    }
