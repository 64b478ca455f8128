"""Adherence: how far a video shows what its prompt says, by a function of the user's."""

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import InputError

Score = Callable[[NDArray[np.float32], str], Mapping[str, float]]


def score_from(choice: str) -> Score:
    """Return the function that ``MODULE:FUNCTION`` names; modules in the current folder are found, too.

    The function takes final latents (channels, frames, height, width) and their prompt, and returns a mapping of names
    to booleans or numbers.

    Raises:
        InputError: there is no such module or function. The returned function raises it, too, where the user's function
            fails or returns something else.
    """
    module_name, _, name = choice.partition(":")
    if not module_name or not name:
        raise InputError(f"--score {choice} is not MODULE:FUNCTION, such as tools.demo.checker:agreement")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the caller's module raises
        raise InputError(f"--score {choice}: {module_name} cannot be imported here: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"--score {choice}: {module_name} has no function {name}")

    def score(latents: NDArray[np.float32], prompt: str) -> Mapping[str, float]:
        try:
            found = {str(key): float(value) for key, value in function(latents, prompt).items()}
        except Exception as error:  # whatever the caller's function raises
            raise InputError(f"--score {choice} failed for the prompt {prompt!r}: {error!r}") from error
        if not found or not all(map(math.isfinite, found.values())):
            raise InputError(
                f"--score {choice} gave {found} for the prompt {prompt!r}; expected a mapping of names to booleans or "
                "finite numbers"
            )
        return found

    return score


def adherence(scores: Mapping[str, float]) -> float | None:
    """Return the mean of all scores; None where there are none."""
    return fmean(scores.values()) if scores else None
