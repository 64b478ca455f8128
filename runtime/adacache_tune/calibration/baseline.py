"""The plain alternative to any calibrated policy: computing every so many calls."""

from collections.abc import Iterable, Mapping

from adacache_runtime.caching.policies.interval import FixedInterval
from adacache_runtime.caching.simulate import simulate
from adacache_tune.calibration.records import Record
from adacache_tune.calibration.trials import Trial


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


def better(trial: Trial, intervals: Mapping[str, Trial]) -> str | None:
    """The label of a fixed interval that is as fast as what was tried, or faster, and gives more; of several the one
    that gives most. None where there is none.
    """
    found = [
        (other.quality_db.mean, label)
        for label, other in intervals.items()
        if other.speed_up >= trial.speed_up and other.quality_db.mean > trial.quality_db.mean
    ]
    return max(found)[1] if found else None
