"""Progress of long work, told in phases of a number of units."""

from collections.abc import Callable


class Progress:
    """The receiver of progress; this one ignores it."""

    def phase(self, name: str, total: int) -> Callable[[int], None]:
        """Begin a phase of ``total`` units; return a function that takes the units done since its last call."""
        return lambda _: None

    def note(self, sentence: str) -> None:
        """Tell a sentence, such as why nothing goes on for a while."""


def running_total(step: Callable[[int], None]) -> Callable[[int], None]:
    """Return a function that takes the units done so far, and gives ``step`` those since its last call."""
    before = 0

    def report(total: int) -> None:
        nonlocal before
        step(total - before)
        before = total

    return report
