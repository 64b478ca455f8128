"""The plain alternative to any calibrated policy: computing every so many calls."""

from collections.abc import Iterable, Mapping

import numpy as np

from adacache_runtime.calibration.records import Record
from adacache_runtime.calibration.trials import Trial
from adacache_runtime.policies.interval import FixedInterval
from adacache_runtime.simulate import simulate


def intervals_around(computed: Iterable[float], record: Record) -> dict[str, FixedInterval]:
    """Fixed intervals, by label, with as many computed calls as each of these numbers: where none has, the one with
    more and the one with fewer. Every second call is the most.

    Args:
        computed: numbers of calls.
        record: any, of a generation of as many calls.
    """
    calls = len(record.timesteps)
    intervals = {every: FixedInterval(every=every) for every in range(2, calls + 1)}
    counts = {every: len(simulate(one, record.run, record).computed()) for every, one in intervals.items()}
    chosen: set[int] = set()
    for number in computed:
        first = next((every for every, count in counts.items() if count <= number), calls)
        chosen.update((first,) if counts[first] == number else (first - 1, first))
    return {f"interval-{every}": one for every, one in intervals.items() if every in chosen}


def quality_at(speed_up: float, intervals: Mapping[str, Trial]) -> float:
    """What fixed intervals give at a speed, in dB: between two of them, on the line that joins them; beyond the
    slowest or the fastest, what that one gives.
    """
    points = sorted((trial.speed_up, trial.quality_db.mean) for trial in intervals.values())
    speeds, levels = zip(*points, strict=True)
    return float(np.interp(speed_up, speeds, levels))
