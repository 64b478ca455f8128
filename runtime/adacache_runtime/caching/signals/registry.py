"""The signals that every exported bundle has."""

from collections.abc import Mapping

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
