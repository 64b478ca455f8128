"""Publication: finished videos are put among the results, which may be slow, fail, and be tried again."""

import logging
import queue
import threading
import time
from pathlib import Path
from typing import Protocol

from adacache_serve.disk.spool import Spool
from adacache_serve.jobs.results import Results
from adacache_serve.jobs.store import Job, Store

log = logging.getLogger(__name__)
AT_ONCE = 2  # uploads
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)  # seconds, after each failure
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


class Publisher:
    """Threads that publish finished videos. Any thread may call it."""

    def __init__(self, store: Store, results: Results, spool: Spool, ended: Ended) -> None:
        self._store, self._results, self._spool, self._ended = store, results, spool, ended
        self._names: set[str] = set()
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
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
        with self._lock:
            if job.id in self._names:
                return
            self._names.add(job.id)
        self._queue.put(job)

    def stop(self) -> None:
        """Stop, and leave what is not published to the next server."""
        self._stopping.set()
        end = time.monotonic() + LEAVE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                job = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                self._publish(job)
            except Exception as error:  # the database's: housekeeping finds the job and adds it again
                log.exception("a video could not be published", extra={"job": job.id}, exc_info=error)
            finally:
                with self._lock:
                    self._names.discard(job.id)

    def _publish(self, job: Job) -> None:
        assert job.made is not None
        began = time.time()
        content = f"{job.id}{Path(job.made).suffix}"
        video = self._spool.video(job.id, job.attempts, job.made)
        for pause in (*PAUSES, None):
            if not self._wanted(job) or self._stopping.is_set():
                break
            try:
                if video.exists():
                    self._results.put(video, content)
                elif not self._results.has(content):  # else an earlier server put it there
                    log.error(
                        "video file is missing, so the video is made again", extra={"job": job.id, "file": str(video)}
                    )
                    self._store.requeue(job.id, job.attempts)
                    return
                break
            except Exception as error:  # any error of the storage below the results
                log.warning(
                    "a video could not be put among the results",
                    extra={"job": job.id, "again_in_seconds": pause},
                    exc_info=error,
                )
                if pause is None:
                    self._fail(job)
                    return
                self._stopping.wait(pause)
        if self._stopping.is_set() and video.exists():
            return
        if self._store.complete(job.id, job.attempts, content):
            self._ended(job.id, published=began)
        elif (now := self._store.get(job.id)) is None or now.content != content:
            self._results.delete(content)  # the job was cancelled, or its deadline passed
        self._spool.drop(job.id, job.attempts)

    def _wanted(self, job: Job) -> bool:
        now = self._store.get(job.id)
        return now is not None and now.status == "in_progress"

    def _fail(self, job: Job) -> None:
        message = "the video was made but could not be stored; the server's log says why"
        if self._store.fail(job.id, "storage", message, job.attempts):
            self._ended(job.id, "storage")
        self._spool.drop(job.id, job.attempts)
