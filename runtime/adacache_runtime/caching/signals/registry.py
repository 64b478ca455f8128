"""The signals that every exported bundle has."""

from collections.abc import Iterable, Mapping

from adacache_engines.errors import InputError
from adacache_runtime.caching.named_object import named_object
from adacache_runtime.caching.signals.change import CHANGE
from adacache_runtime.caching.signals.motion import MOTION
from adacache_runtime.caching.signals.new_magnitude import NEW_MAGNITUDE
from adacache_runtime.caching.signals.signal import Signal

SIGNALS: Mapping[str, Signal] = {"change": CHANGE, "motion": MOTION, "new_magnitude": NEW_MAGNITUDE}


def signal_from(choice: str) -> Signal:
    """Return the signal that ``MODULE:NAME`` names, of a module in the current folder or an installed one.

    Raises:
        InputError: there is no such module or object, or the object is no signal.
    """
    signal = named_object(choice, "signal")
    if not isinstance(signal, Signal):
        raise InputError(
            f"{choice!r} is {signal!r}, and no signal; name an object of adacache_runtime.caching.signals.signal.Signal"
        )
    return signal


def check_names(signals: Iterable[Signal], others: Mapping[str, Iterable[str]]) -> None:
    """Check that signals of a user's own can be told from each other, and from those that a bundle has.

    Args:
        signals: the user's signals.
        others: names of the numbers of each other signal that the bundle has.

    Raises:
        InputError: a name is that of a signal that every bundle has, or two signals give a number of one name.
    """
    known: dict[str, Iterable[str]] = {**others, **{name: signal.numbers for name, signal in SIGNALS.items()}}
    owners = {number: name for name, numbers in known.items() for number in numbers}
    for signal in signals:
        if signal.name in SIGNALS:
            raise InputError(f"every bundle has a signal called {signal.name} already; give yours another name")
        for number in signal.numbers:
            owner = owners.setdefault(number, signal.name)
            if owner != signal.name:
                raise InputError(
                    f"signal {signal.name} gives a number called {number}, and so does signal {owner}; policies tell "
                    "numbers by name: give yours another"
                )
