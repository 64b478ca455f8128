"""The ends of attempts at jobs, and what follows from them in the database and on the disk."""

import logging
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from adacache_serve.device.messages import Cancelled, Completed, Failed
from adacache_serve.device.supervisor import SupervisedWorker
from adacache_serve.disk.spool import Spool
from adacache_serve.jobs.databases import reason
from adacache_serve.jobs.progress import Progress, numbers
from adacache_serve.jobs.publishing import Ended, Publisher
from adacache_serve.jobs.store import Job, Store
from adacache_serve.orders.schema import ENDED
from adacache_serve.settings import Settings

log = logging.getLogger(__name__)
AWAY = (OperationalError, InterfaceError, NoConnectionError)  # errors of a database that is locked, full or gone
MOST_TRIES = 60  # after other errors; housekeeping tries once a second


@dataclass(frozen=True)
class Lost:
    """The end of an attempt whose worker died, or whose server stopped.

    Attributes:
        died: whether the worker died while it worked at this job.
        begun: whether the attempt had got its memory; one that had not costs the job nothing.
    """

    died: bool = False
    begun: bool = True


End = Completed | Failed | Cancelled | Lost


@dataclass
class Assigned:
    """A job that a worker has, or had until an end that the database has not taken yet.

    Attributes:
        job: the job, as it was when the worker was given it.
        worker: the worker; None = one of an earlier server.
        progress: the progress of the attempt.
        begun: whether the attempt has got its memory.
        end: how the attempt ended; None = it has not.
        tries: number of times that the end could not be recorded.
    """

    job: Job
    worker: SupervisedWorker | None
    progress: Progress
    begun: bool = False
    end: End | None = None
    tries: int = 0


@dataclass(frozen=True)
class Endings:
    """The rules by which ends of attempts are recorded. Each may be applied again after an error in its middle.

    Attributes:
        settings: the server's settings.
        store: the database of jobs.
        spool: the folder in which videos are made.
        images: the folder of the images that clients sent.
        publisher: takes finished videos.
        ended: is told of jobs that have ended.
    """

    settings: Settings
    store: Store
    spool: Spool
    images: Path
    publisher: Publisher
    ended: Ended

    def settle(self, assigned: Assigned, end: End) -> bool:
        """Record an end; return False where that has to be tried again.

        A database that is away is waited for. An error of another kind fails this one job, if it comes again and again.
        """
        job = assigned.job
        try:
            self.record(assigned, end)
        except Exception as error:  # any error leaves the worker and the other jobs alone
            assigned.tries += 1
            away = isinstance(error, AWAY)
            if assigned.tries == 1:
                text = "the end of an attempt is recorded later: %s"
                log.error(text, reason(error), extra={"job": job.id}, exc_info=None if away else error)
            return not away and assigned.tries >= MOST_TRIES and self._give_up(assigned, error)
        if assigned.tries:
            log.info("the end of an attempt is recorded", extra={"job": job.id, "tries": assigned.tries + 1})
        return True

    def record(self, assigned: Assigned, end: End) -> None:
        """Record an end."""
        name, attempt = assigned.job.id, assigned.progress.attempt
        if isinstance(end, Failed):
            self.spool.drop(name, attempt)
            self._fail(name, attempt, end.code, end.message)
        elif isinstance(end, Lost):
            self._close(name, attempt, end)
        else:  # a worker that says that it has finished, and has not, counts as one that died
            self._close(name, attempt, Lost(died=isinstance(end, Completed)))
        if assigned.job.image:
            job = self.store.get(name)
            if job is None or job.status in ENDED:  # the worker has read the image, or never will
                (self.images / assigned.job.image).unlink(missing_ok=True)

    def _close(self, name: str, attempt: int, lost: Lost) -> None:
        """Publish or queue again the job of an attempt that no worker works at; do nothing where the job has ended."""
        if record := self.spool.record(name, attempt):
            trace = numbers(record.calls, record.of)
            if self.store.made(name, attempt, record.file, record.nbytes, trace, record.calls):
                job = self.store.get(name)
                assert job is not None
                self.publisher.add(job)
                return
        self.spool.drop(name, attempt)
        job = self.store.get(name)
        if lost.died and job is not None and job.deaths + 1 >= self.settings.attempts:
            message = f"the worker died or lost this video {job.deaths + 1} times; the server's log says more"
            self._fail(name, attempt, "worker_died", message)
        elif lost.begun or lost.died:
            self.store.requeue(name, attempt, lost.died)
        else:
            self.store.put_back(name, attempt)

    def _fail(self, name: str, attempt: int, code: str, message: str) -> None:
        if self.store.fail(name, code, message, attempt):
            self.ended(name, code)

    def _give_up(self, assigned: Assigned, error: Exception) -> bool:
        """Fail the job of an end that cannot be recorded; return False where that cannot be recorded either."""
        name, attempt = assigned.job.id, assigned.progress.attempt
        log.error("the end of an attempt cannot be recorded, so its job fails", extra={"job": name}, exc_info=error)
        try:
            self._fail(
                name, attempt, "internal", "the end of this job could not be recorded; the server's log says why"
            )
        except Exception:  # it is tried again
            return False
        self.spool.drop(name, attempt)
        return True
