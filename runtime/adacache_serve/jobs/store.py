"""The database of jobs: SQLite, or PostgreSQL.

Every change of a job's status is one statement that names the statuses it may change, so that of two threads or
processes that change the same job, one succeeds and the other learns that it did not.
"""

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Row,
    delete,
    func,
    select,
    text,
    update,
)
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError

from adacache_serve.jobs import turns
from adacache_serve.jobs.clock import now
from adacache_serve.jobs.databases import open_database
from adacache_serve.jobs.table import jobs, metadata
from adacache_serve.orders.schema import ENDED, CreateVideo, Status

log = logging.getLogger(__name__)
OPEN: tuple[Status, ...] = ("queued", "in_progress")
MANY = 500  # rows of one query, where there may be many

READ = [column for column in jobs.c if column.name not in ("idempotency_key", "calls")]


@dataclass(frozen=True)
class Job:
    """A row of the table. Times are in seconds since 1970.

    ``error`` and ``trace`` have the fields of :class:`adacache_serve.http.schema.Video`. A job with ``made`` is still
    in progress: its video is finished and has to be put among the results, which needs no worker.
    """

    number: int
    id: str
    client: str
    fingerprint: str
    order: CreateVideo
    image: str | None
    model: str
    status: Status
    priority: int
    attempts: int
    deaths: int
    created: float
    deadline: float | None
    started: float | None
    ended: float | None
    error: dict[str, Any] | None
    trace: dict[str, Any] | None
    made: str | None
    content: str | None
    nbytes: int | None
    traceparent: str | None


class Store:
    """The table of jobs. Any thread may call it."""

    def __init__(self, url: str) -> None:
        """Open the database, and create the table where it is missing.

        Args:
            url: SQLAlchemy's URL of the database.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database cannot be opened.
        """
        self._engine = open_database(url, metadata.create_all)
        self._turns: dict[str, int] = {}  # for each client, the number of the claim in which it had its last turn
        self._claims = itertools.count(1)

    def check(self) -> None:
        """Read from the database, and not from what this process remembers of it.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database does not answer, or is damaged.
        """
        with self._engine.connect() as connection:
            if self._engine.dialect.name == "sqlite":
                connection.execute(text("PRAGMA shrink_memory"))
            connection.execute(select(func.max(jobs.c.number))).scalar()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine."""
        return self._engine

    def add(
        self,
        name: str,
        client: str,
        order: CreateVideo,
        model: str,
        fingerprint: str,
        idempotency_key: str | None = None,
        image: str | None = None,
        priority: int = 0,
        traceparent: str | None = None,
    ) -> tuple[Job, bool]:
        """Store a job.

        Returns:
            The job, or the one that this client has under the same idempotency key; and whether it is new.
        """
        created = now()
        values = {
            "id": name,
            "client": client,
            "idempotency_key": idempotency_key,
            "fingerprint": fingerprint,
            "order": order.model_dump_json(exclude={"image"}),
            "image": image,
            "traceparent": traceparent,
            "model": model,
            "status": "queued",
            "priority": priority,
            "attempts": 0,
            "deaths": 0,
            "created": created,
            "deadline": None if order.deadline_seconds is None else created + order.deadline_seconds,
        }
        try:
            with self._engine.begin() as connection:
                connection.execute(jobs.insert().values(values))
        except IntegrityError:
            found = self.by_key(client, idempotency_key) if idempotency_key else None
            if found is None:
                raise
            return found, False
        job = self.get(name)
        assert job is not None
        return job, True

    def by_key(self, client: str, idempotency_key: str) -> Job | None:
        """Return a client's job by its idempotency key."""
        return self._one(jobs.c.client == client, jobs.c.idempotency_key == idempotency_key)

    def get(self, name: str) -> Job | None:
        """Return a job by its name."""
        return self._one(jobs.c.id == name)

    def newest(self, client: str | None, limit: int, after: int | None = None, status: str | None = None) -> list[Job]:
        """Return jobs of a client, the newest first.

        Args:
            client: name of the client; None = all clients.
            limit: largest number of jobs.
            after: number of a job; only older ones are returned.
            status: only jobs of this status are returned.
        """
        query = select(*READ).order_by(jobs.c.number.desc()).limit(limit)
        if client is not None:
            query = query.where(jobs.c.client == client)
        if after is not None:
            query = query.where(jobs.c.number < after)
        if status is not None:
            query = query.where(jobs.c.status == status)
        return self._all(query)

    def count(self, *statuses: Status, client: str | None = None) -> int:
        """Return the number of jobs that have one of these statuses."""
        query = select(func.count()).select_from(jobs).where(jobs.c.status.in_(statuses))
        if client is not None:
            query = query.where(jobs.c.client == client)
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def ahead(self, client: str) -> int:
        """Return the most jobs that are started before the first waiting job of this client."""
        with self._engine.connect() as connection:
            return turns.ahead(connection, client)

    def claim(self) -> Job | None:
        """Return the next waiting job, see :mod:`adacache_serve.jobs.turns`, and set it to in progress."""
        while True:
            with self._engine.begin() as connection:
                chosen = turns.next_job(connection, self._turns)
                if chosen is None:
                    return None
                client, number = chosen
                claimed = connection.execute(
                    update(jobs)
                    .where(jobs.c.number == number, jobs.c.status == "queued")
                    .values(status="in_progress", started=now(), attempts=jobs.c.attempts + 1)
                )
            if not claimed.rowcount:  # the job was cancelled in the meantime
                continue
            self._turns[client] = next(self._claims)
            if job := self._one(jobs.c.number == number):
                return job

    def made(
        self, name: str, attempt: int, file: str, nbytes: int, trace: Mapping[str, Any], calls: Sequence[object]
    ) -> bool:
        """Record that an attempt has finished its video; return False where the job has another status already."""
        texts = {"trace": json.dumps(trace), "calls": json.dumps(calls)}
        return self._change(name, ("in_progress",), attempt, made=file, nbytes=nbytes, **texts)

    def complete(self, name: str, attempt: int, content: str) -> bool:
        """Record that the video is among the results; return False where the job has another status already."""
        values = {"status": "completed", "ended": now(), "content": content, "made": None}
        return self._change(name, ("in_progress",), attempt, **values)

    def calls(self, name: str) -> list[dict[str, Any]]:
        """Return the records of a finished job's calls; an empty list for other jobs."""
        with self._engine.connect() as connection:
            calls = connection.execute(select(jobs.c.calls).where(jobs.c.id == name)).scalar()
        return json.loads(calls) if calls else []

    def fail(self, name: str, code: str, message: str, attempt: int | None = None) -> bool:
        """Record that a job failed; return False where it has ended already."""
        error = json.dumps({"code": code, "message": message})
        return self._change(name, OPEN, attempt, status="failed", ended=now(), error=error, made=None)

    def cancel(self, name: str) -> bool:
        """Cancel a job; return False where it has ended already, or there is none."""
        return self._change(name, OPEN, status="cancelled", ended=now(), made=None)

    def requeue(self, name: str, attempt: int, died: bool = False) -> bool:
        """Queue a job again whose attempt has failed; ``died`` counts the death of a worker against it."""
        values = {"status": "queued", "started": None, "made": None, "nbytes": None, "trace": None, "calls": None}
        return self._change(name, ("in_progress",), attempt, deaths=jobs.c.deaths + int(died), **values)

    def put_back(self, name: str, attempt: int) -> bool:
        """Queue a job again whose attempt never began, as if it had not been claimed."""
        return self._change(name, ("in_progress",), attempt, status="queued", started=None, attempts=attempt - 1)

    def in_progress(self) -> list[Job]:
        """Return all jobs that are in progress."""
        return self._all(select(*READ).where(jobs.c.status == "in_progress"))

    def overdue(self) -> list[Job]:
        """Return the jobs whose deadline has passed."""
        return self._all(select(*READ).where(jobs.c.status.in_(OPEN), jobs.c.deadline < now()))

    def kept_nbytes(self) -> int:
        """Return the bytes of all results together."""
        with self._engine.connect() as connection:
            query = select(func.coalesce(func.sum(jobs.c.nbytes), 0)).where(jobs.c.content.is_not(None))
            return int(connection.execute(query).scalar_one())

    def with_content(self, before: float | None = None) -> list[Job]:
        """Return some of the jobs whose results are kept and that ended ``before`` this time, the oldest first."""
        query = select(*READ).where(jobs.c.content.is_not(None)).order_by(jobs.c.ended).limit(MANY)
        return self._all(query if before is None else query.where(jobs.c.ended < before))

    def forget_content(self, name: str) -> bool:
        """Record that a result is about to be deleted; return False where there is none."""
        with self._engine.begin() as connection:
            return bool(
                connection.execute(
                    update(jobs).where(jobs.c.id == name, jobs.c.content.is_not(None)).values(content=None)
                ).rowcount
            )

    def keep_content(self, name: str, content: str) -> None:
        """Record that a result is kept, since it could not be deleted."""
        self._change(name, ("completed",), content=content)

    def forget(self, before: float) -> int:
        """Delete jobs that ended ``before`` this time and have no result any more; return how many."""
        with self._engine.begin() as connection:
            return int(
                connection.execute(
                    delete(jobs).where(jobs.c.status.in_(ENDED), jobs.c.ended < before, jobs.c.content.is_(None))
                ).rowcount
            )

    def among(self, names: Sequence[str]) -> dict[str, Job]:
        """Return the jobs of these names, as far as there are any, by name."""
        found: list[Job] = []
        for start in range(0, len(names), MANY):
            found += self._all(select(*READ).where(jobs.c.id.in_(names[start : start + MANY])))
        return {job.id: job for job in found}

    def _change(self, name: str, before: Sequence[Status], attempt: int | None = None, **values: object) -> bool:
        statement = update(jobs).where(jobs.c.id == name, jobs.c.status.in_(before)).values(**values)
        if attempt is not None:
            statement = statement.where(jobs.c.attempts == attempt)
        with self._engine.begin() as connection:
            return bool(connection.execute(statement).rowcount)

    def _one(self, *conditions: Any) -> Job | None:
        found = self._all(select(*READ).where(*conditions))
        return found[0] if found else None

    def _all(self, query: Any) -> list[Job]:
        with self._engine.connect() as connection:
            return [job for row in connection.execute(query) if (job := _job(row))]


def _job(row: Row[Any]) -> Job | None:
    """Return the job of a row; None where the row is damaged, so that the other jobs go on."""
    try:
        return _read(row)
    except ValueError as error:
        log.error("the row of a job cannot be read", extra={"job": row.id}, exc_info=error)
        return None


def _read(row: Row[Any]) -> Job:
    values = dict(row._mapping)
    values["order"] = CreateVideo.model_validate_json(values["order"])
    for name in ("error", "trace"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Job(**values)
