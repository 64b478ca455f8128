"""The progress of jobs that are being made. It lives in memory: after a restart these jobs are made again."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DECODING = 0.1  # share of the progress that is decoding


@dataclass
class Progress:
    """The progress of one attempt at a job.

    Attributes:
        attempt: number of the attempt.
        began: when a worker was given the job, by the monotonic clock, in seconds.
        of: number of denoiser calls that the generation makes in all; 0 = not known yet.
        calls: records of the calls so far, as :func:`adacache_runtime.trace.entry` writes them.
        frames: number of frames that are decoded.
        frames_of: number of frames that are decoded in all; 0 = not known yet.
    """

    attempt: int
    began: float = field(default_factory=time.monotonic)
    of: int = 0
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    frames: int = 0
    frames_of: int = 0

    def percent(self) -> float:
        """Return the percentage of the work that is done."""
        called = len(self.calls) / self.of if self.of else 0.0
        decoded = self.frames / self.frames_of if self.frames_of else 0.0
        return round(100 * ((1 - DECODING) * called + DECODING * decoded), 1)


def numbers(calls: Sequence[Mapping[str, Any]], of: int) -> dict[str, Any]:
    """Sum up the records of calls, as the fields of :class:`adacache_serve.http.schema.TraceNumbers`."""
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
