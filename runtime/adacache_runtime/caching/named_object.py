"""Objects of one's own modules, such as policies and signals, by MODULE:NAME."""

import importlib
import sys
from typing import Any

from adacache_engines.errors import InputError


def named_object(choice: str, kind: str) -> Any:
    """Return the object that ``MODULE:NAME`` names, of a module in the current folder or an installed one.

    Args:
        choice: the name.
        kind: what the object is to be, such as ``policy``, for error messages.

    Raises:
        InputError: there is no such module, it fails or ends the program, or there is no such object in it.
    """
    module, _, name = choice.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the current folder, as with python -m
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever the module does
        raise InputError(
            f"{kind} {choice!r} cannot be imported ({failure(error)}); expected MODULE:NAME of a {kind} object, the "
            "module in the current folder or installed"
        ) from error


def failure(error: BaseException) -> str:
    """Return what an error of somebody else's code was, in one line."""
    if isinstance(error, SystemExit):
        return f"it ends the program with the status {error.code!r}"
    said = " ".join(str(error).split())
    return said if isinstance(error, ImportError) and said else f"{type(error).__name__}: {said}".removesuffix(": ")
