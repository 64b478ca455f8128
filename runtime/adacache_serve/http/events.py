"""Server-sent events about a job.

The progress of a running job is in this process. So a stream asks the database only when the job has just started or
ended, and now and then while it waits.
"""

import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
from sqlalchemy.exc import SQLAlchemyError

from adacache_serve.jobs.service import Service
from adacache_serve.jobs.store import Job
from adacache_serve.orders.schema import ENDED

POLL_SECONDS = 0.1
LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.1, 1.0  # between two queries for a job that waits
QUIET_SECONDS = 15.0  # after which a comment keeps proxies from closing the connection
RETRY_MS = 2000  # after which a browser connects again
END = "end"  # id of the last event
IDENTITY = re.compile(r"(\d{1,9})-(\d{1,9})", re.ASCII)


@dataclass(frozen=True)
class Seen:
    """The calls that a client has seen: the first ``calls`` of an attempt."""

    attempt: int = 0
    calls: int = 0

    def within(self, attempt: int) -> "Seen":
        """Return the calls seen of this attempt: none, if it is not the one that was followed."""
        return self if attempt == self.attempt else Seen(attempt)


def seen_until(last_event_id: str | None) -> Seen:
    """Parse ``Last-Event-ID``; a value that this server did not send counts as nothing seen."""
    match = IDENTITY.fullmatch(last_event_id or "")
    return Seen(*map(int, match.groups())) if match else Seen()


async def stream(
    name: str, service: Service, seen: Seen, looking: anyio.CapacityLimiter, shown: Callable[[Job], str]
) -> AsyncIterator[str]:
    """Yield a job's events until the job has ended.

    Args:
        name: name of the job, which exists.
        service: the jobs.
        seen: the calls that the client has seen already.
        looking: limits the queries that run at once.
        shown: writes a job as JSON.
    """

    async def look(last: Job | None) -> Job | None:
        """Return the job as it is now, or as it was last where the database does not answer; None = it was deleted."""
        try:
            return await anyio.to_thread.run_sync(service.store.get, name, limiter=looking)
        except SQLAlchemyError:
            return last

    yield f"retry: {RETRY_MS}\n"  # the first lines of the first event
    progress, last = service.progress(name), None  # now, and the last one that was known
    job, status = await look(None), None
    pause, next_look = LOOK_SECONDS, time.monotonic() + LOOK_SECONDS
    spoke = time.monotonic()
    while job is not None:
        last = progress or last
        ended = job.status in ENDED
        text = ""
        if job.status != status and not ended:
            text += _event("status", shown(job))
        status = job.status
        attempt = last.attempt if last is not None else job.attempts
        calls: Sequence[Mapping[str, Any]] = last.calls if last is not None else ()
        if ended and last is None:
            calls = await anyio.to_thread.run_sync(service.store.calls, name, limiter=looking)
        seen = seen.within(attempt)
        new = calls[seen.calls :]
        text += _call_events(new, seen)
        seen = Seen(attempt, seen.calls + len(new))
        if ended:
            yield text + _event("status", shown(job), END)
            return
        now = time.monotonic()
        if not text and now - spoke > QUIET_SECONDS:
            text = ": still here\n\n"
        if text:
            yield text
            spoke = now
        if service.closing:
            return
        await anyio.sleep(POLL_SECONDS)
        before, progress = progress, service.progress(name)
        publishing = progress is None and status == "in_progress"  # or the job has just ended
        if progress is not before or publishing or (progress is None and time.monotonic() >= next_look):
            job = await look(job)
            pause = min(2 * pause, LONGEST_LOOK_SECONDS)
            next_look = time.monotonic() + pause


def _call_events(calls: Sequence[Mapping[str, Any]], seen: Seen) -> str:
    return "".join(
        _event("call", json.dumps(dict(call)), f"{seen.attempt}-{number}")
        for number, call in enumerate(calls, seen.calls + 1)
    )


def _event(kind: str, data: str, identity: str | None = None) -> str:
    return f"event: {kind}\n" + (f"id: {identity}\n" if identity else "") + f"data: {data}\n\n"
