"""The order in which waiting jobs are begun.

The highest priority is first. Within a priority clients take turns, so that one with many jobs does not keep the
others waiting. Next is the client with the fewest jobs at workers; among equals, the one whose last turn was longest
ago. The oldest of its jobs is begun.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Select, func, select

from adacache_serve.jobs.table import jobs

WAITING = jobs.c.status == "queued"


def next_job(connection: Connection, turns: Mapping[str, int]) -> tuple[str, int] | None:
    """Return the client and the number of the next waiting job; None where no job waits.

    Args:
        connection: the database.
        turns: for each client, a number that grows with the time of its last turn; 0 where there is none.
    """
    highest = select(func.max(jobs.c.priority)).where(WAITING).scalar_subquery()
    oldest = _by_client(
        connection, select(jobs.c.client, func.min(jobs.c.number)).where(WAITING, jobs.c.priority == highest)
    )
    at_workers: Mapping[str, int] = {}
    if len(oldest) > 1:
        running = (jobs.c.status == "in_progress", jobs.c.made.is_(None))
        at_workers = _by_client(connection, select(jobs.c.client, func.count()).where(*running))
    ordered = sorted(oldest, key=lambda client: (at_workers.get(client, 0), turns.get(client, 0), oldest[client]))
    return (ordered[0], oldest[ordered[0]]) if ordered else None


def ahead(connection: Connection, client: str) -> int:
    """Return the most jobs that are begun before the first waiting job of a client; 0 where none waits.

    These are the waiting jobs of a higher priority, and one of each other client with the same priority.
    """
    priority = connection.execute(select(func.max(jobs.c.priority)).where(WAITING, jobs.c.client == client)).scalar()
    if priority is None:
        return 0
    higher = select(func.count()).select_from(jobs).where(WAITING, jobs.c.priority > priority)
    others = select(func.count(jobs.c.client.distinct())).where(
        WAITING, jobs.c.priority == priority, jobs.c.client != client
    )
    return int(connection.execute(higher).scalar_one()) + int(connection.execute(others).scalar_one())


def _by_client(connection: Connection, query: Select[Any]) -> dict[str, int]:
    return {str(client): int(number) for client, number in connection.execute(query.group_by(jobs.c.client))}
