"""A database that refuses statements for a while."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import event
from sqlalchemy.engine import Engine


class Outage:
    """The statements that a database has refused."""

    def __init__(self) -> None:
        self.refused: list[str] = []


@contextmanager
def outage(
    engine: Engine,
    error: Callable[[], Exception] = lambda: sqlite3.OperationalError("database is locked"),
    only: str = "",
) -> Iterator[Outage]:
    """Refuse the statements that begin with ``only``, each with a new error of the driver."""
    made = Outage()

    def refuse(_cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith(only):
            made.refused.append(statement)
            raise error()

    event.listen(engine, "do_execute", refuse)
    try:
        yield made
    finally:
        event.remove(engine, "do_execute", refuse)
