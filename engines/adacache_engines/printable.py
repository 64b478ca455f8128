"""Text that comes from files, made fit for a terminal, a log or an answer of a server.

A name in a manifest or a checkpoint may hold what a terminal obeys: escape sequences, line ends that begin a false
message, characters that turn the direction of the text. It may also be a megabyte long.
"""

import unicodedata
from collections.abc import Sequence

LONGEST_MESSAGE = 20_000  # characters; the longest lists a few problems of each kind
SHOWN, LONGEST_PROBLEM = 12, 800  # problems that a message lists, and characters of one
MOST = 200  # characters of a text from a file that a message repeats
SHOWN_CATEGORIES = {"Zs"}  # spaces of all widths, which Python does not count as printable
SEVERAL_LINES = "\n\t"


def printable(text: object, most: int = MOST) -> str:
    """Return a text from a file for use in a message: on one line, of ``most`` characters at most.

    Characters that a terminal obeys are written by their numbers, as Python writes them.
    """
    whole = str(text)
    shown = "".join(map(_shown, whole[: most + 1]))
    return shown if len(shown) <= most else f"{shown[:most]}..."


def first_of(texts: Sequence[str], separator: str = "; ") -> str:
    """Return the first few of a list of texts from files as one, with the number of those that are left out."""
    more = [f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    return separator.join([*(printable(text, LONGEST_PROBLEM) for text in texts[:SHOWN]), *more])


def without_controls(text: str) -> str:
    """Return a message, of one line or several, without characters that a terminal obeys beside line ends and tabs.

    Beyond 20,000 characters it is cut.
    """
    if len(text) > LONGEST_MESSAGE:
        text = f"{text[:LONGEST_MESSAGE]}... ({len(text) - LONGEST_MESSAGE} more characters)"
    if text.isprintable():
        return text
    return "".join(char if char in SEVERAL_LINES else _shown(char) for char in text)


def is_plain(text: str) -> bool:
    """Return whether a text is one line that a terminal shows as it is."""
    return text.isprintable() or all(_shown(char) == char for char in text)


def _shown(char: str) -> str:
    if char.isprintable() or unicodedata.category(char) in SHOWN_CATEGORIES:
        return char
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
