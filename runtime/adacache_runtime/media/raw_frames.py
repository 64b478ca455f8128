"""Frames as they are, on standard output, for another program to encode or show."""

import contextlib
import os
import sys
from pathlib import Path

import numpy as np

from adacache_engines.errors import InputError
from adacache_runtime.media.video import Frames

STANDARD_OUTPUT = Path("-")


def check_standard_output() -> None:
    """Check that standard output can take raw frames.

    Raises:
        InputError: it is a terminal, which frames would garble.
    """
    if sys.stdout.isatty():
        raise InputError("-o - writes raw frames, and standard output is a terminal: send it to a file or a program")


def write_raw(frames: Frames, zoom: int = 1) -> None:
    """Write frames to standard output: frame by frame, row by row, one byte each of red, green and blue.

    Args:
        frames: (frames, height, width, 3) RGB.
        zoom: side of the square that a pixel becomes.

    Raises:
        InputError: the program that reads has closed its end.
    """
    try:
        for frame in frames:
            sys.stdout.buffer.write(np.ascontiguousarray(frame.repeat(zoom, axis=0).repeat(zoom, axis=1)).data)
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        with contextlib.suppress(OSError):  # the interpreter flushes once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InputError("standard output was closed before all frames were written") from error
