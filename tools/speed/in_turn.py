"""Generations that advance a call at a time, in turn, and the ratios of their calls' times."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tools.speed.contenders import (
    ADACACHE,
    COMPILED,
    EAGER,
    FBCACHE,
    NEVER,
    PEERS,
    SAME_RULE,
    Contender,
    Generation,
    torch_nbytes,
)
from tools.speed.timing import Spread
from tools.speed.wanted import Row, at_most

WARM_UP = 1  # calls of a generation that touch new memory, and compile
REST_S = 0.3  # between two calls, for the threads of the other library to stop spinning


@dataclass
class Measured:
    """The measurements of a contender.

    Attributes:
        seconds: by round, the time of each call.
        computed: whether each call ran every block.
        cache_nbytes: bytes that its cache takes; None = it has none, or nothing was measured.
        latents: what its last generation ended with; None = it did not end.
        note: why nothing was measured; empty where it was.
    """

    seconds: list[list[float]] = field(default_factory=list)
    computed: list[bool] = field(default_factory=list)
    cache_nbytes: int | None = None
    latents: NDArray[np.float32] | None = None
    note: str = ""

    def begin(self) -> None:
        """Begin another round."""
        self.seconds.append([])
        self.computed = []

    def advance(self, generation: Generation, clock: Callable[[], float]) -> bool:
        """Make a call; return False where none was left."""
        begun = clock()
        try:
            computed = next(generation)
        except StopIteration as ended:
            self.latents = ended.value
            return False
        self.seconds[-1].append(clock() - begun)
        self.computed.append(computed)
        return True

    def computed_calls(self) -> list[int]:
        """Return the numbers, from 1, of the calls that ran every block."""
        return [call for call, computed in enumerate(self.computed, 1) if computed]

    def times(self, computed: bool) -> dict[tuple[int, int], float]:
        """Return the time of each computed or each reused call, by round and number, without those of the warm-up."""
        return {
            (number, call): seconds
            for number, calls in enumerate(self.seconds)
            for call, seconds in enumerate(calls)
            if call >= WARM_UP and self.computed[call] == computed
        }


@dataclass(frozen=True)
class Comparison:
    """All that was measured, by the contender's name."""

    measured: Mapping[str, Measured]

    def against(self, one: str, other: str, computed: bool, other_computed: bool) -> Spread | None:
        """Return the ratio of two contenders' times, of calls with the same number in the same round.

        Args:
            one, other: names of the contenders.
            computed, other_computed: whether the calls of each are computed ones, or reused ones.

        Returns:
            the ratio; None where there are no such calls.
        """
        times, others = self.measured[one].times(computed), self.measured[other].times(other_computed)
        ratios = [seconds / others[key] for key, seconds in times.items() if key in others]
        return Spread.of(ratios) if ratios else None

    def full(self, name: str) -> Spread | None:
        """Return the time of a computed call over that of diffusers eager."""
        return self.against(name, EAGER, True, True)

    def cached(self, name: str) -> Spread | None:
        """Return the time of a reused call over that of a full one of diffusers eager."""
        return self.against(name, EAGER, False, True)

    def difference(self, one: str, other: str) -> float | None:
        """Return the largest difference of two contenders' latents over their root mean square; None = not known."""
        first, second = self.measured[one].latents, self.measured[other].latents
        if first is None or second is None:
            return None
        return float(np.abs(first - second).max() / np.sqrt(np.mean(np.square(second))))

    def same_calls(self, name: str) -> bool | None:
        """Return whether a cache computed the same calls as the policy with its rule; None = there is none."""
        if name not in SAME_RULE or self.measured[name].note:
            return None
        return self.measured[name].computed == self.measured[SAME_RULE[name]].computed

    def wanted(self) -> list[Row]:
        """Return the ratios that have a limit, as far as they were measured."""
        asked = [
            ("full", "full call / diffusers eager", self.full(NEVER), 1.0),
            *(
                (f"cached_{number}", f"cached call, fbcache / {name}", self.against(FBCACHE, name, False, False), 1.0)
                for number, name in enumerate(SAME_RULE, 1)
            ),
            ("adacache", "cached call of adacache / full call", self.against(ADACACHE, NEVER, False, True), 0.01),
        ]
        return [at_most(key, what, spread, bound) for key, what, spread, bound in asked if spread is not None]


def measure(
    entered: Sequence[Contender], rounds: int, clock: Callable[[], float], on_call: Callable[[], None] = lambda: None
) -> Comparison:
    """Let all contenders make a generation in each round, a call at a time, in turn.

    A peer that is not installed or fails is left out from then on, with a note; the others go on.
    """
    measured = {each.name: Measured(cache_nbytes=each.cache_nbytes) for each in entered}
    for each in entered:
        measured[each.name].note = f"not installed: {each.missing}" if each.missing else ""
    for number in range(rounds):
        running = {each: each.generate() for each in entered if not measured[each.name].note}
        for each in running:
            measured[each.name].begin()
        while running:
            for each, generation in [*running.items()]:
                found = measured[each.name]
                asks = not number and not found.computed and each.cache_nbytes is None
                time.sleep(REST_S)
                held = torch_nbytes() if asks else 0
                try:
                    goes_on = found.advance(generation, clock)
                except Exception as error:
                    if each.name not in PEERS:
                        raise
                    first, *_ = f"{error}\n".splitlines()
                    found.note, goes_on = f"failed: {type(error).__name__}: {first}", False
                if asks:
                    found.cache_nbytes = torch_nbytes() - held
                if goes_on:
                    on_call()
                else:
                    del running[each]
    plain = measured[EAGER].cache_nbytes or 0  # what each holds: latents, and the sampler's history
    for name, found in measured.items():
        if name in SAME_RULE and found.cache_nbytes is not None:
            found.cache_nbytes -= plain
        elif name in (EAGER, COMPILED):
            found.cache_nbytes = None
    return Comparison(measured)
