"""The frame around every command: errors become one line and an exit status, and a signal unwinds the work."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from adacache_engines.errors import AdaCacheError, InputError

FAILURE = 1
STOPPED = 128  # plus the signal's number, as shells have it
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED_MESSAGE = "stopped; what was not finished was not written"
MAX_MESSAGE = 4000  # characters; more of a line nobody reads

Check = Callable[[], None]


def run(
    program: str, parse: Callable[[], argparse.Namespace], work: Callable[[argparse.Namespace, Check], None]
) -> int:
    """Read the command line, do the work, and return the exit status.

    It is 0; 1 after an error; and 129, 130 or 143 when the terminal was closed, or the command was interrupted or
    terminated.

    Args:
        program: name of the command, for messages.
        parse: returns the parsed command line; ends the program after wrong usage, and where help was asked for.
        work: does the work; it gets a function to call now and then, which interrupts it again if a library swallowed
            the interrupt.
    """
    stops = _Stops()
    message: str | None = None
    try:
        try:
            stops.listen()
            _use_standard_streams()
            options = parse()
            _do(work, options, stops.check)
        finally:
            stops.unwinds = False  # what follows is short, and must be told
    except SystemExit:
        message = _flushed()
        if message is None:
            raise
    # an interrupt inside a library can come out as any error of its own
    except (Exception, KeyboardInterrupt) as error:
        message = STOPPED_MESSAGE if stops.numbers else _message(error)
        _flushed()
        if message is None:
            raise
    else:
        message = _flushed() or (STOPPED_MESSAGE if stops.numbers else None)
    finally:
        stops.close()
    if message is not None:
        say(program, message)
    if stops.numbers:
        return STOPPED + stops.numbers[0]
    return 0 if message is None else FAILURE


def say(program: str, message: str) -> None:
    """Print one line to standard error; where nobody reads that any more, nobody can be told."""
    half = MAX_MESSAGE // 2  # a long name stands in the middle: what is wrong comes after it
    text = message if len(message) <= MAX_MESSAGE else f"{message[:half]} ... {message[-half:]}"
    shown = "".join(each if each.isprintable() else " " if each.isspace() else ascii(each)[1:-1] for each in text)
    with suppress(OSError, ValueError):
        print(f"{program}: {shown}", file=sys.stderr, flush=True)


class _Stops:
    """The signals that end a program.

    The first one unwinds the work, so that what is half-built is deleted; a second one must not stop the deleting.
    Signals that the program was started to ignore, as by ``nohup``, stay ignored.

    Attributes:
        numbers: the signals that came, in order.
        unwinds: whether the first one unwinds what it comes in.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.unwinds = True
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        for number in STOPS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._stop)

    def close(self) -> None:
        """Have other signal handlers again, those of before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Unwind again, if something swallowed what unwinds.

        Raises:
            KeyboardInterrupt: a signal came.
        """
        if self.numbers:
            raise KeyboardInterrupt

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self.numbers.append(number)
        if self.unwinds and len(self.numbers) == 1:
            raise KeyboardInterrupt


def _do(work: Callable[[argparse.Namespace, Check], None], options: argparse.Namespace, check: Check) -> None:
    try:
        work(options, check)
    except SystemExit as error:  # such as Rich's, where nobody reads what it prints
        raise InputError(
            f"something ended the program with the status {error.code!r} before its work was done"
        ) from error


def _flushed() -> str | None:
    """Write out what was printed; return what to tell the user where that is not possible."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):  # the interpreter flushes once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _message(error) if isinstance(error, BrokenPipeError) else f"standard output: {error.strerror or error}"
    except (AttributeError, ValueError):  # it is closed, which was told
        pass
    return None


def _use_standard_streams() -> None:
    """Make standard output and standard error fit for use.

    Raises:
        InputError: standard output is closed.
    """
    for number in (0, 1, 2):
        if not _is_open(number):  # else the next file that is opened would take its place, and be printed into
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
    if sys.stdout is None:
        raise InputError("standard output is closed; send it to a file or a program, or to /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack a character, and a name be no text


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _message(error: BaseException) -> str | None:
    """Return what to tell the user of an error; None where the program itself is to blame."""
    if isinstance(error, AdaCacheError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"there is too little memory: {error}".removesuffix(": ")
    if isinstance(error, BrokenPipeError):
        return "standard output was closed before everything was printed"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror or error}"
    return None
