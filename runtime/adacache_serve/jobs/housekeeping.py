"""What nobody asks for and has to be done: deadlines, retention, and what a killed process left lying about."""

import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from adacache_serve.schema import ENDED

if TYPE_CHECKING:
    from adacache_serve.jobs.service import Service

log = logging.getLogger(__name__)
WATCH_SECONDS, RETAIN_SECONDS, SWEEP_SECONDS = 1.0, 10.0, 3600.0
LEAVE_SECONDS = 5.0  # for what is going on at the end
YOUNG_SECONDS = 3600.0  # a picture may be there before its job is
RESULT = re.compile(r"\.?(video_[0-9a-f]{32})\.(?:mp4|png)(?:\.part)?")


class Housekeeper:
    """Two threads, so that a store of results which does not answer keeps no job waiting."""

    def __init__(self, service: "Service") -> None:
        self._service = service
        self._stopping = threading.Event()
        dispatcher = service.dispatcher
        jobs = dict.fromkeys(
            (self._own, service.expire, dispatcher.end_hung, dispatcher.reconcile, dispatcher.dispatch), WATCH_SECONDS
        )
        kept = {retain: RETAIN_SECONDS, forget: RETAIN_SECONDS, sweep: SWEEP_SECONDS}
        files = {partial(duty, service): period for duty, period in kept.items()}
        self._threads = [
            threading.Thread(target=self._run, args=(duties,), name="housekeeping", daemon=True)
            for duties in (jobs, files)
        ]

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        end = time.monotonic() + LEAVE_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))

    def _run(self, duties: Mapping[Callable[[], None], float]) -> None:
        due = dict.fromkeys(duties, 0.0)
        while not self._stopping.is_set():
            for duty, period in duties.items():
                if time.monotonic() < due[duty] or self._stopping.is_set():
                    continue
                try:
                    duty()
                except Exception as error:  # the next round does not depend on this one
                    log.exception("housekeeping failed", exc_info=error)
                due[duty] = time.monotonic() + period
            self._stopping.wait(min(duties.values()))

    def _own(self) -> None:
        if not self._service.lost and not self._service.ownership.still():
            log.critical("another server took over the database, so this one stops")
            self._service.lost = True
            signal.raise_signal(signal.SIGTERM)


def retain(service: "Service") -> None:
    """Deletes results that are too old, and the oldest of too much."""
    settings = service.settings
    if settings.keep_seconds is not None:
        while old := service.store.with_content(before=time.time() - settings.keep_seconds):
            for job in old:
                service.delete_content(job)
    if settings.keep_nbytes is not None:
        while (much := service.store.kept_nbytes() - settings.keep_nbytes) > 0:
            for job in service.store.with_content():
                if much <= 0:
                    break
                service.delete_content(job)
                much -= job.nbytes or 0


def forget(service: "Service") -> None:
    """Deletes jobs that ended too long ago, with their results."""
    if (seconds := service.settings.forget_seconds) is None:
        return
    before = time.time() - seconds
    while old := service.store.with_content(before):
        for job in old:
            service.delete_content(job)
    if number := service.store.forget(before):
        log.info("forgot jobs", extra={"jobs": number})


def sweep(service: "Service") -> None:
    """Deletes files that belong to no job any more.

    A result is deleted only where the database says that the job has none: others may keep theirs at the same place.
    """
    attempts = list(service.spool.attempts())
    jobs = service.store.among([name for name, _ in attempts])
    for name, attempt in attempts:
        job = jobs.get(name)
        if job is None or job.status != "in_progress" or job.attempts != attempt:
            log.info("left over", extra={"job": name, "attempt": attempt})
            service.spool.drop(name, attempt)
    pictures = {file.stem: file for file in service.pictures.iterdir()}
    jobs = service.store.among(list(pictures))
    for name, file in pictures.items():
        if (job := jobs.get(name)) is None:
            _delete_old(file)
        elif job.status in ENDED:
            file.unlink(missing_ok=True)
    results = {file: match[1] for file in service.results.names() if (match := RESULT.fullmatch(file))}
    jobs = service.store.among(list(results.values()))
    for content, name in results.items():
        if (job := jobs.get(name)) and job.status in ENDED and job.content != content:
            log.info("left over", extra={"job": name, "content": content})
            service.results.delete(content)


def _delete_old(file: Path) -> None:
    if time.time() - file.stat().st_mtime > YOUNG_SECONDS:
        file.unlink(missing_ok=True)
