"""Where videos are made: a folder for each attempt at a job.

An attempt is made when its record lies beside its video, which takes its name in one step, after all else is on the
disk. From then on it is never made again, whoever dies: the server reads the record when the worker says so, when the
worker has died, and when a server begins.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adacache_runtime.media.files import writing
from adacache_serve.files import sync

VIDEO, RECORD = "video", ".json"


@dataclass(frozen=True)
class Record:
    """
    Attributes:
        file: of the video, in the same folder.
        nbytes: of it.
        of: calls that there were to be.
        calls: as :func:`adacache_runtime.trace.entry` has them.
    """

    file: str
    nbytes: int
    of: int
    calls: Sequence[Mapping[str, Any]]


def finish(video: Path, of: int, calls: Sequence[Mapping[str, Any]]) -> None:
    """For a worker, once the video is written: the attempt is made.

    Raises:
        InputError: the disk is full, or closed to us.
    """
    sync(video)
    record = Record(video.name, video.stat().st_size, of, calls)
    with writing(video.with_suffix(RECORD)) as file:
        file.write(json.dumps(asdict(record)).encode())
        file.flush()
        os.fsync(file.fileno())
    sync(video.parent)


class Spool:
    """On this machine, of one server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, job: str, attempt: int) -> Path:
        """An empty place for an attempt: the path of the video without its suffix."""
        self.drop(job, attempt)
        folder = self._of(job, attempt)
        folder.mkdir()
        sync(self._folder)
        return folder / VIDEO

    def record(self, job: str, attempt: int) -> Record | None:
        """Of an attempt that was made and is still there."""
        try:
            return Record(**json.loads((self._of(job, attempt) / VIDEO).with_suffix(RECORD).read_bytes()))
        except FileNotFoundError:
            return None

    def video(self, job: str, attempt: int, file: str) -> Path:
        return self._of(job, attempt) / file

    def drop(self, job: str, attempt: int) -> None:
        """Nobody needs it any more."""
        shutil.rmtree(self._of(job, attempt), ignore_errors=True)

    def attempts(self) -> Iterator[tuple[str, int]]:
        """Job and number of all that lie here."""
        for folder in self._folder.iterdir():
            job, _, attempt = folder.name.rpartition("-")
            if attempt.isdecimal():
                yield job, int(attempt)

    def _of(self, job: str, attempt: int) -> Path:
        return self._folder / f"{job}-{attempt}"
