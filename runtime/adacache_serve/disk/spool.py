"""The spool: the folder in which videos are made, with a folder for each attempt at a job.

An attempt is finished when its record lies beside its video. The record is renamed into place after everything else is
on the disk. From then on the video is never made again, whichever process dies: the server reads the record when the
worker reports the end, when the worker has died, and when a server starts.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adacache_runtime.media.files import writing
from adacache_serve.disk.files import sync

log = logging.getLogger(__name__)
VIDEO, RECORD = "video", ".json"


@dataclass(frozen=True)
class Record:
    """The record of a finished attempt.

    Attributes:
        file: name of the video's file, in the same folder.
        nbytes: size of that file.
        of: number of denoiser calls that were planned.
        calls: records of the calls, as :func:`adacache_runtime.trace.entry` writes them.
        sizes: sizes of the dynamic axes.
        granularity: granularity of the groups of blocks.
    """

    file: str
    nbytes: int
    of: int
    calls: Sequence[Mapping[str, Any]]
    sizes: Mapping[str, int] = field(default_factory=dict)
    granularity: str = "stack"

    def trace(self) -> str:
        """Return the trace as JSON, in the form of :meth:`adacache_runtime.trace.Trace.to_json`."""
        return json.dumps({"sizes": self.sizes, "granularity": self.granularity, "calls": self.calls})


def finish(
    video: Path,
    of: int,
    calls: Sequence[Mapping[str, Any]],
    sizes: Mapping[str, int] | None = None,
    granularity: str = "stack",
) -> None:
    """Write the record of an attempt whose video is written.

    Args:
        video: the file of the video.
        of: number of denoiser calls that were planned.
        calls: records of the calls, as :func:`adacache_runtime.trace.entry` writes them.
        sizes: sizes of the dynamic axes.
        granularity: granularity of the groups of blocks.

    Raises:
        InputError: the record cannot be written, for instance because the disk is full.
    """
    sync(video)
    record = Record(video.name, video.stat().st_size, of, calls, sizes or {}, granularity)
    with writing(video.with_suffix(RECORD)) as file:
        file.write(json.dumps(asdict(record)).encode())
        file.flush()
        os.fsync(file.fileno())
    sync(video.parent)


def read_record(video: Path) -> Record | None:
    """Return the record of a video, by the path of the video with any suffix or none; None where there is none.

    A record that the disk has damaged counts as none.
    """
    path = video.with_suffix(RECORD)
    try:
        return Record(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        log.error("%s is damaged, so the video is made again: %s", path, error)
        return None


class Spool:
    """The spool of one server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, job: str, attempt: int) -> Path:
        """Make an empty folder for an attempt; return the path of its video without the suffix."""
        self.drop(job, attempt)
        folder = self._folder_of(job, attempt)
        folder.mkdir()
        sync(self._folder)
        return folder / VIDEO

    def record(self, job: str, attempt: int) -> Record | None:
        """Return the record of an attempt; None where the attempt is unfinished or was deleted."""
        return read_record(self._folder_of(job, attempt) / VIDEO)

    def video(self, job: str, attempt: int, file: str) -> Path:
        """Return the path of an attempt's video."""
        return self._folder_of(job, attempt) / file

    def drop(self, job: str, attempt: int) -> None:
        """Delete the folder of an attempt."""
        shutil.rmtree(self._folder_of(job, attempt), ignore_errors=True)

    def attempts(self) -> Iterator[tuple[str, int]]:
        """Yield the job and the number of every attempt that has a folder here."""
        for folder in self._folder.iterdir():
            job, _, attempt = folder.name.rpartition("-")
            if attempt.isdecimal():
                yield job, int(attempt)

    def _folder_of(self, job: str, attempt: int) -> Path:
        return self._folder / f"{job}-{attempt}"
