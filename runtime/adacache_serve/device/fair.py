"""Whose turn it is: weighted fair sharing of a device between generations.

Source: stride scheduling (Waldspurger and Weihl, 1995): each has a virtual time, which grows by the time that it had
over its weight; the least is next. Who comes begins at the least there is, so that nobody waits for a newcomer to
catch up, and a short generation between long ones is done after its share of the device, not after them.
"""

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)
DOUBLES_AFTER = 2  # steps of priority that double a share


class Turns(Generic[T]):
    """Who shares a device, by virtual time."""

    def __init__(self) -> None:
        self._virtual: dict[T, float] = {}
        self._weight: dict[T, float] = {}
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._virtual)

    def __iter__(self) -> Iterator[T]:
        return iter(self._virtual)

    def add(self, who: T, priority: int) -> None:
        """Joins; every two steps of priority double the share."""
        self._advance()
        self._virtual[who] = self._now
        self._weight[who] = 2 ** (priority / DOUBLES_AFTER)

    def remove(self, who: T) -> None:
        self._advance()  # what it had counts, else those who come after it would have the same time again
        del self._virtual[who], self._weight[who]

    def next(self) -> T:
        """Who had least; the first that came, of several."""
        return min(self._virtual, key=self._virtual.__getitem__)

    def spent(self, who: T, seconds: float) -> None:
        """``who``, if it is still here, had the device for so long."""
        if who in self._virtual:
            self._virtual[who] += seconds / self._weight[who]

    def _advance(self) -> None:
        self._now = max(self._now, min(self._virtual.values(), default=self._now))
