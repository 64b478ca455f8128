"""Weighted fair sharing of a device between generations.

Source: stride scheduling (Waldspurger and Weihl, 1995). Each member has a virtual time, which grows by the device time
that it had, divided by its weight; the member with the least virtual time is next. A new member starts at the least
virtual time of all, so that nobody waits for it to catch up. A short generation among long ones is therefore done after
its share of the device, and not after them.
"""

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)
DOUBLES_AFTER = 2  # difference in priority that doubles a share


class Turns(Generic[T]):
    """The members that share a device, and their virtual times."""

    def __init__(self) -> None:
        self._virtual: dict[T, float] = {}
        self._weight: dict[T, float] = {}
        self._now = 0.0

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self._virtual)

    def __iter__(self) -> Iterator[T]:
        """Iterate over the members."""
        return iter(self._virtual)

    def add(self, who: T, priority: int) -> None:
        """Add a member; its share doubles with every two steps of priority."""
        self._advance()
        self._virtual[who] = self._now
        self._weight[who] = 2 ** (priority / DOUBLES_AFTER)

    def remove(self, who: T) -> None:
        """Remove a member."""
        self._advance()  # else a member that is added next would get this one's time once more
        del self._virtual[who], self._weight[who]

    def next(self) -> T:
        """Return the member with the least virtual time; among equals, the one that was added first."""
        return min(self._virtual, key=self._virtual.__getitem__)

    def spent(self, who: T, seconds: float) -> None:
        """Charge device time to a member, if it has not been removed."""
        if who in self._virtual:
            self._virtual[who] += seconds / self._weight[who]

    def _advance(self) -> None:
        self._now = max(self._now, min(self._virtual.values(), default=self._now))
