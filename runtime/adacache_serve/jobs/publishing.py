"""Publication: finished videos are put among the results, which may be slow, fail, and be tried again."""

import heapq
import itertools
import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from adacache_serve.disk.spool import Spool
from adacache_serve.jobs.databases import reason
from adacache_serve.jobs.results import Results
from adacache_serve.jobs.store import Job, Store

log = logging.getLogger(__name__)
AT_ONCE = 2  # uploads
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, *[60.0] * 59)  # seconds, after each failure: an hour in all
LOOK_SECONDS = 0.2  # after which a thread with nothing to do looks whether the server stops
LEAVE_SECONDS = 5.0  # for an upload that is under way when the server stops; the next server repeats longer ones


class Ended(Protocol):
    """A callback for jobs that have ended."""

    def __call__(self, name: str, code: str = "", published: float | None = None) -> None:
        """Handle the end of a job.

        Args:
            name: the job's name.
            code: the code of its error; empty if there is none.
            published: when the publication of its video began, in seconds since 1970; None = nothing was published.
        """


@dataclass(order=True)
class Upload:
    """A finished video that is due to be put among the results at a time of the monotonic clock."""

    due: float
    number: int
    job: Job = field(compare=False)
    began: float = field(compare=False)  # in seconds since 1970
    failures: int = field(default=0, compare=False)


class Publisher:
    """Threads that publish finished videos. Any thread may call it."""

    def __init__(self, store: Store, results: Results, spool: Spool, ended: Ended, attempts: int) -> None:
        """Start the threads; a job whose videos vanish, or whose workers die, ``attempts`` times fails."""
        self._attempts = attempts
        self._store, self._results, self._spool, self._ended = store, results, spool, ended
        self._names: set[str] = set()
        self._changed = threading.Condition()
        self._uploads: list[Upload] = []  # a heap
        self._numbers = itertools.count()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._work, name="publish", daemon=True) for _ in range(AT_ONCE)]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Return the number of jobs that are being published or wait for that."""
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        """Return whether a job is being published or waits for that."""
        return name in self._names

    def add(self, job: Job) -> None:
        """Publish the video of a job; the job stays here until its status in the store says how that ended."""
        with self._changed:
            if job.id not in self._names:
                self._names.add(job.id)
                self._queue(Upload(time.monotonic(), next(self._numbers), job, time.time()))

    def stop(self) -> None:
        """Stop, and leave what is not published to the next server."""
        self._stopping.set()
        end = time.monotonic() + LEAVE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self) -> None:
        while not self._stopping.is_set():
            upload = self._next()
            if upload is None:
                continue
            again = False
            try:
                again = self._publish(upload)
            except Exception as error:  # the database's: housekeeping finds the job and adds it again
                known = isinstance(error, SQLAlchemyError)
                text, job = "a video could not be published: %s", {"job": upload.job.id}
                log.error(text, reason(error), extra=job, exc_info=None if known else error)
            finally:
                with self._changed:
                    if again:
                        self._queue(upload)
                    else:
                        self._names.discard(upload.job.id)

    def _queue(self, upload: Upload) -> None:
        heapq.heappush(self._uploads, upload)
        self._changed.notify()

    def _next(self) -> Upload | None:
        """Wait a little for an upload that is due; return None where there is none."""
        with self._changed:
            pause = self._uploads[0].due - time.monotonic() if self._uploads else LOOK_SECONDS
            if pause <= 0:
                return heapq.heappop(self._uploads)
            self._changed.wait(min(pause, LOOK_SECONDS))
            return None

    def _publish(self, upload: Upload) -> bool:
        """Put a video among the results, unless nobody wants it any more; return whether to try again later."""
        job = upload.job
        assert job.made is not None
        content = f"{job.id}{Path(job.made).suffix}"
        video = self._spool.video(job.id, job.attempts, job.made)
        if self._wanted(job):
            try:
                if video.exists():
                    self._results.put(video, content)
                elif not self._results.has(content):  # else an earlier server put it there
                    log.error(
                        "video file is missing, so the attempt is lost", extra={"job": job.id, "file": str(video)}
                    )
                    if job.deaths + 1 < self._attempts:
                        self._store.requeue(job.id, job.attempts, died=True)
                        self._spool.drop(job.id, job.attempts)
                    else:
                        self._fail(job)
                    return False
            except Exception as error:  # any error of the storage below the results
                return self._failed(upload, error)
        if self._store.complete(job.id, job.attempts, content):
            self._ended(job.id, published=upload.began)
        elif (now := self._store.get(job.id)) is None or now.content != content:
            self._results.delete(content)  # the job was cancelled, or its deadline passed
        self._spool.drop(job.id, job.attempts)
        return False

    def _failed(self, upload: Upload, error: Exception) -> bool:
        """Fail the job of an upload that failed too often; return whether to try again later."""
        pause = PAUSES[upload.failures] if upload.failures < len(PAUSES) else None
        log.warning(
            "a video could not be put among the results: %s",
            error,
            extra={"job": upload.job.id, "again_in_seconds": pause},
            exc_info=None if upload.failures else error,  # the log has it
        )
        if pause is None:
            self._fail(upload.job)
            return False
        upload.failures += 1
        upload.due = time.monotonic() + pause
        return True

    def _wanted(self, job: Job) -> bool:
        now = self._store.get(job.id)
        return now is not None and now.status == "in_progress"

    def _fail(self, job: Job) -> None:
        message = "the video was made but could not be stored; the server's log says why"
        if self._store.fail(job.id, "storage", message, job.attempts):
            self._ended(job.id, "storage")
        self._spool.drop(job.id, job.attempts)
