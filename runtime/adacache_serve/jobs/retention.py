"""Deletion of results, jobs and files that are too old, too many, or left over from a process that was killed."""

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adacache_serve.disk.spool import Spool
from adacache_serve.jobs.clock import now
from adacache_serve.jobs.results import Results
from adacache_serve.jobs.store import Job, Store
from adacache_serve.orders.schema import ENDED
from adacache_serve.settings import Settings

log = logging.getLogger(__name__)
YOUNG_SECONDS = 3600.0  # an image is stored a little before its job
RESULT = re.compile(r"\.?(video_[0-9a-f]{32})\.(?:mp4|png)(?:\.part)?")


@dataclass(frozen=True)
class Retention:
    """The server's retention rules.

    Attributes:
        settings: the server's settings, which say how long and how much is kept.
        store: the database of jobs.
        results: the place where finished videos are kept.
        spool: the folder in which videos are made.
        images: the folder of the images that clients sent.
    """

    settings: Settings
    store: Store
    results: Results
    spool: Spool
    images: Path

    def delete_content(self, job: Job) -> None:
        """Delete the video of a job that has ended, if it still has one.

        Raises:
            OSError: the place of results does not answer, and the job keeps its video.
        """
        if job.content is not None and self.store.forget_content(job.id):
            try:
                self.results.delete(job.content)
            except OSError:
                self.store.keep_content(job.id, job.content)
                raise

    def retain(self) -> None:
        """Delete results that are too old, and then the oldest ones while they take too many bytes together."""
        if self.settings.keep_seconds is not None:
            while old := self.store.with_content(before=now() - self.settings.keep_seconds):
                self._delete_all(old)
        if self.settings.keep_nbytes is not None:
            while (excess := self.store.kept_nbytes() - self.settings.keep_nbytes) > 0:
                for job in self.store.with_content():
                    if excess <= 0:
                        break
                    self.delete_content(job)
                    excess -= job.nbytes or 0

    def forget(self) -> None:
        """Delete jobs that ended too long ago, with their results."""
        if (seconds := self.settings.forget_seconds) is None:
            return
        before = now() - seconds
        while old := self.store.with_content(before):
            self._delete_all(old)
        if number := self.store.forget(before):
            log.info("old jobs were deleted", extra={"jobs": number})

    def sweep(self) -> None:
        """Delete files that no job needs any more.

        A result is deleted only where the database knows its job and says that the job has another result or none,
        since other servers may keep their results in the same place.
        """
        self._sweep_spool()
        self._sweep_images()
        results = {file: match[1] for file in self.results.names() if (match := RESULT.fullmatch(file))}
        jobs = self.store.among(list(results.values()))
        for content, name in results.items():
            if (job := jobs.get(name)) and job.status in ENDED and job.content != content:
                log.info("a leftover result is deleted", extra={"job": name, "content": content})
                self.results.delete(content)

    def _delete_all(self, jobs: Sequence[Job]) -> None:
        """Delete the videos of jobs; those that cannot be deleted keep no others.

        Raises:
            OSError: the last error.
        """
        failed = [error for job in jobs if (error := self._tried(job)) is not None]
        if failed:
            raise failed[-1]

    def _tried(self, job: Job) -> OSError | None:
        try:
            self.delete_content(job)
        except OSError as error:
            return error
        return None

    def _sweep_spool(self) -> None:
        attempts = list(self.spool.attempts())
        jobs = self.store.among([name for name, _ in attempts])
        for name, attempt in attempts:
            job = jobs.get(name)
            if job is None or job.status != "in_progress" or job.attempts != attempt:
                log.info("a leftover attempt is deleted", extra={"job": name, "attempt": attempt})
                self.spool.drop(name, attempt)

    def _sweep_images(self) -> None:
        images = {file.stem: file for file in self.images.iterdir()}
        jobs = self.store.among(list(images))
        for name, file in images.items():
            if (job := jobs.get(name)) is None:
                _delete_old(file)
            elif job.status in ENDED:
                file.unlink(missing_ok=True)


def _delete_old(file: Path) -> None:
    if min(now(), time.time()) - file.stat().st_mtime > YOUNG_SECONDS:  # the machine's clock may have been set
        file.unlink(missing_ok=True)
