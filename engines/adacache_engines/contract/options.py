"""Options of a backend: how a field of its value is described to people, and read from text.

A command line, a configuration file and ``key=value`` arguments all give text. Each takes the names, descriptions and
readers of these options from the fields, so none of them lacks an option.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

KEY = "option"  # in a field's metadata


@dataclass(frozen=True)
class Option:
    """An option of a backend.

    Attributes:
        help: description, without the names of the option and of the backend; of a switch, of what it does when on.
        metavar: placeholder of the value in a command's help; None = the option is either on or off.
        parse: function from text to the field's value; raises ValueError and says what it expects.
        default: value of the field where nothing is given.
    """

    help: str
    metavar: str | None
    parse: Callable[[str], object]
    default: Any


def option(default: Any, help: str, metavar: str | None = None, parse: Callable[[str], object] | None = None) -> Any:  # noqa: A002 - as argparse calls it
    """Return a dataclass field that is also an option; see :class:`Option`."""
    made = Option(help, metavar, parse or switch, default)
    return dataclasses.field(default=default, metadata={KEY: made})


def options_of(value: object) -> dict[str, Option]:
    """Return the options of a dataclass or of one of its values, by the names of their fields."""
    fields = dataclasses.fields(value)  # type: ignore[arg-type]
    return {field.name: field.metadata[KEY] for field in fields if KEY in field.metadata}


def switch(text: str) -> bool:
    """Read ``true`` or ``false``."""
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


def whole_number(text: str) -> int:
    """Read a whole number of 0 or more."""
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def megabytes(text: str) -> int:
    """Read a number of megabytes, which becomes one of bytes."""
    return whole_number(text) * 10**6


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a reader that accepts these words only."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is unknown; known: {', '.join(choices)}")
        return text

    return parse
