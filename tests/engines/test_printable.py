"""Texts from files in messages."""

import pytest

from adacache_engines.errors import BundleError
from adacache_engines.printable import first_of, is_plain, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, wide\u3000and h\u00e9", "plain, wide\u3000and h\u00e9"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\u202edlrow\u2066", r"\u202edlrow\u2066"),
        ("half \ud83d", r"half \ud83d"),
        ("\x9b2J\0", r"\x9b2J\x00"),
    ],
)
def test_what_a_terminal_would_obey_is_written_by_its_number(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert is_plain(text) == (text == shown)
    assert is_plain(printable(text))


def test_what_is_long_is_cut() -> None:
    assert printable("x" * 200) == "x" * 200
    assert printable("x" * 10**6) == "x" * 200 + "..."
    assert first_of(["a\nb"] * 15, ", ") == ", ".join([r"a\nb"] * 12) + ", and 3 more"


def test_an_error_shows_no_control_characters() -> None:
    error = BundleError("problems:\n  \x1b[2Jone")
    assert str(error) == f"{error}" == "problems:\n  \\x1b[2Jone"
    assert len(str(BundleError("x" * 10**6))) < 21_000
