"""Search schedules as paths: computed calls are nodes, and an edge is the error of reusing one up to the next.

As in LeMiCa (NeurIPS 2025) the path is searched under a budget of computed calls; edges here are recorded errors of the
latents, whose sum is to be small, and the best paths are refined on what they would really add up to.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from adacache_tune.calibration.forecast import Forecaster

Calls = tuple[int, ...]


def paths(forecaster: Forecaster) -> dict[int, Calls]:
    """Return the schedule with the least sum of mean errors, for each number of computed calls.

    The first call of each expert is computed, so that no number is smaller than that of experts.
    """
    calls, firsts = forecaster.calls, forecaster.records[0].firsts
    cost = np.full((calls + 2, calls + 2), np.inf)
    for start in range(1, calls + 1):
        total = 0.0
        cost[start, start + 1] = 0.0
        for call in range(start + 1, calls + 1):
            if call in firsts:
                break
            errors = [record.reuse_error(start, call) for record in forecaster.records]
            total += float(np.mean([np.sqrt(np.mean(error**2)) for error in errors]))
            cost[start, call + 1] = total
    best = np.full((calls + 1, calls + 2), np.inf)  # by computed calls so far, and the call that comes next
    came = np.zeros((calls + 1, calls + 2), int)
    best[1, 1] = 0.0
    found: dict[int, Calls] = {}
    for count in range(1, calls + 1):
        reached = best[count][:, None] + cost  # by the last computed call, and where its reuse ends
        end = int(reached[:, calls + 1].argmin())
        if np.isfinite(reached[end, calls + 1]):
            found[count] = (*_walk(came, count, end),)
        if count < calls:
            best[count + 1, : calls + 1] = reached[:, : calls + 1].min(axis=0)
            came[count + 1, : calls + 1] = reached[:, : calls + 1].argmin(axis=0)
    return found


def refined(
    schedule: Calls, calls: int, score: Callable[[Calls], float], firsts: Sequence[int] = (1,), rounds: int = 4
) -> Calls:
    """Move, drop and add computed calls as long as that makes the score smaller; ``firsts`` stay."""
    best, least = schedule, score(schedule)
    for _ in range(rounds):
        before = best
        for moved in _moved(best, calls, firsts):
            value = score(moved)
            if value < least:
                best, least = moved, value
        if best == before:
            break
    return best


def _walk(came: NDArray[np.int_], count: int, end: int) -> list[int]:
    """Return the computed calls of the path that has ``count`` of them and ends at ``end``."""
    walked = [end]
    while count > 1:
        walked.append(int(came[count, walked[-1]]))
        count -= 1
    return walked[::-1]


def _moved(schedule: Calls, calls: int, firsts: Sequence[int]) -> Iterator[Calls]:
    """Yield schedules with one computed call moved, dropped or added."""
    for index, one in enumerate(schedule):
        if one in firsts:
            continue
        for step in (-1, 1, -2, 2):
            call = schedule[index] + step
            if 1 < call <= calls and call not in schedule:
                yield tuple(sorted({*schedule[:index], call, *schedule[index + 1 :]}))
        yield (*schedule[:index], *schedule[index + 1 :])
    for call in range(2, calls + 1):
        if call not in schedule:
            yield tuple(sorted({*schedule, call}))
