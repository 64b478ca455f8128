"""How long work tells of its progress: in phases of so many units."""

from collections.abc import Callable


class Progress:
    """Where work reports to; this one says nothing."""

    def phase(self, name: str, total: int) -> Callable[[int], None]:
        """Begins a phase of ``total`` units; the result is called with units done since its last call."""
        return lambda _: None


def running_total(step: Callable[[int], None]) -> Callable[[int], None]:
    """Turns units so far into units since the last call."""
    before = 0

    def report(total: int) -> None:
        nonlocal before
        step(total - before)
        before = total

    return report
