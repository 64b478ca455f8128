"""Fixed intervals, the plain alternative to any calibrated policy: compute every call whose number is a multiple."""

from collections.abc import Iterable, Mapping

from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_tune.calibration.records import Record
from adacache_tune.calibration.trials import Trial


def intervals_around(computed: Iterable[float], record: Record) -> dict[str, FixedInterval]:
    """Return fixed intervals with as many computed calls as each of these numbers, by label.

    Where no interval has that many, the next ones with more and with fewer are taken. Every second call is the most.

    Args:
        computed: numbers of computed calls.
        record: the record of any generation with the same number of calls.
    """
    calls = len(record.timesteps)
    intervals = {every: FixedInterval(every=every) for every in range(2, calls + 1)}
    counts = {every: len(record.computed(one)) for every, one in intervals.items()}
    chosen: set[int] = set()
    for number in computed:
        first = next((every for every, count in counts.items() if count <= number), calls)
        chosen.update((first,) if counts[first] == number else (first - 1, first))
    return {f"interval-{every}": one for every, one in intervals.items() if every in chosen}


def better(trial: Trial, intervals: Mapping[str, Trial]) -> str | None:
    """Return the label of the fixed interval that is at least as fast as a trial and has the best quality above its.

    None where no interval beats the trial.
    """
    found = [
        (other.quality_db.mean, label)
        for label, other in intervals.items()
        if other.speed_up >= trial.speed_up and other.quality_db.mean > trial.quality_db.mean
    ]
    return max(found)[1] if found else None
