"""A job's server-sent events, for as long as somebody listens.

What is known of a running job is in this process, so that a listener asks the database only where that has come or
gone, and now and then while the job waits.
"""

import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread

from adacache_serve.jobs.service import Service
from adacache_serve.jobs.store import Job
from adacache_serve.schema import ENDED

POLL_SECONDS = 0.1
LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.1, 1.0  # between two questions to the database about a job that waits
QUIET_SECONDS = 15.0  # after which a comment keeps proxies from hanging up
RETRY_MS = 2000  # after which a browser comes back
END = "end"  # identity of the last event
IDENTITY = re.compile(r"(\d{1,9})-(\d{1,9})", re.ASCII)


@dataclass(frozen=True)
class Seen:
    """How many calls of which attempt a client has had."""

    attempt: int = 0
    calls: int = 0

    def of(self, attempt: int) -> "Seen":
        """The same, or none of an attempt that is another one."""
        return self if attempt == self.attempt else Seen(attempt)


def seen_until(last_event_id: str | None) -> Seen:
    """By ``Last-Event-ID``; what is none of ours is nothing seen."""
    match = IDENTITY.fullmatch(last_event_id or "")
    return Seen(*map(int, match.groups())) if match else Seen()


async def told(
    name: str, service: Service, seen: Seen, looking: anyio.CapacityLimiter, shown: Callable[[Job], str]
) -> AsyncIterator[str]:
    """The events, until the job has ended.

    Args:
        name: of a job that there is.
        service: that makes it.
        seen: what was told already.
        looking: how many may ask the database at once.
        shown: a job as JSON.
    """

    async def look() -> Job:
        job = await anyio.to_thread.run_sync(service.store.get, name, limiter=looking)
        assert job is not None
        return job

    yield f"retry: {RETRY_MS}\n"  # begins the first event
    live, last = service.live(name), None  # now; and what there was last
    job, status = await look(), None
    pause, next_look = LOOK_SECONDS, time.monotonic() + LOOK_SECONDS
    spoke = time.monotonic()
    while True:
        last = live or last
        ended = job.status in ENDED
        text = ""
        if job.status != status and not ended:
            text += _event("status", shown(job))
        status = job.status
        attempt = last.attempt if last is not None else job.attempts
        calls: Sequence[Mapping[str, Any]] = last.calls if last is not None else ()
        if ended and last is None:
            calls = await anyio.to_thread.run_sync(service.store.calls, name, limiter=looking)
        seen = seen.of(attempt)
        new = calls[seen.calls :]
        text += _told_calls(new, seen)
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
        before, live = live, service.live(name)
        running = live is None and status == "in_progress"  # it is being kept, or has just ended
        if live is not before or running or (live is None and time.monotonic() >= next_look):
            job = await look()
            pause = min(2 * pause, LONGEST_LOOK_SECONDS)
            next_look = time.monotonic() + pause


def _told_calls(calls: Sequence[Mapping[str, Any]], seen: Seen) -> str:
    return "".join(
        _event("call", json.dumps(dict(call)), f"{seen.attempt}-{number}")
        for number, call in enumerate(calls, seen.calls + 1)
    )


def _event(kind: str, data: str, identity: str | None = None) -> str:
    return f"event: {kind}\n" + (f"id: {identity}\n" if identity else "") + f"data: {data}\n\n"
