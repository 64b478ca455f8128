"""Whose data folder and database it is: one server's, and its workers'.

The locks are the kernel's, or the database's, so that none is left behind by a process that was killed.
"""

import fcntl
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from adacache_engines.errors import InputError

SERVER, WORKERS = "server.lock", "workers.lock"
WAIT_SECONDS = 60.0  # for workers of a server that was killed; they end as soon as they notice
NUMBER = 0x41646143  # of the advisory lock in PostgreSQL, which is by database


class Ownership:
    """Of a data folder and a database, until it is let go of or the process ends."""

    def __init__(self, data: Path, engine: Engine) -> None:
        """
        Raises:
            InputError: another server has one of them, or a worker of an earlier server does not end.
        """
        self._engine = engine
        self._files: list[BinaryIO] = []
        self._connection: Connection | None = None
        try:
            self._own(data / SERVER, f"another adacache-serve uses {data}; stop it, or choose another --data")
            if engine.dialect.name == "sqlite" and engine.url.database:
                database = Path(engine.url.database)
                self._own(database.with_name(f"{database.name}.lock"), self._taken())
            elif not self.still():
                raise InputError(self._taken())
            _wait_for_workers(data / WORKERS)
        except BaseException:
            self.release()
            raise

    def still(self) -> bool:
        """Whether the database is ours; its lock ends with a connection, and is taken again on a new one.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database does not answer.
        """
        if self._engine.dialect.name != "postgresql":
            return True
        if self._connection is not None:
            try:
                self._connection.execute(text("SELECT 1"))
                return True
            except SQLAlchemyError:
                self._connection.invalidate()
                self._connection.close()
                self._connection = None
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if not connection.execute(text(f"SELECT pg_try_advisory_lock({NUMBER})")).scalar():
            connection.close()
            return False
        self._connection = connection
        return True

    def release(self) -> None:
        for file in self._files:
            file.close()
        self._files.clear()
        if self._connection is not None:
            self._connection.invalidate()  # back in the pool it would still have the lock
            self._connection.close()
            self._connection = None

    def _own(self, path: Path, taken: str) -> None:
        file = path.open("ab")
        self._files.append(file)
        if not _locked(file):
            raise InputError(taken)

    def _taken(self) -> str:
        where = self._engine.url.render_as_string(hide_password=True)
        return f"another adacache-serve uses the database {where}; stop it, or choose another --database"


def _wait_for_workers(path: Path) -> None:
    end = time.monotonic() + WAIT_SECONDS
    with path.open("ab") as file:
        while not _locked(file):
            if time.monotonic() > end:
                raise InputError(
                    f"a worker process of an earlier adacache-serve still runs after {WAIT_SECONDS:.0f} seconds "
                    f"(it has {path} locked); end it"
                )
            time.sleep(0.1)


def _locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def working(data: Path) -> Iterator[None]:
    """For a worker process: no other server begins while it lives, and it does not outlive its own, even in a call."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    with (data / WORKERS).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Thread(target=_end_with, args=(parent.sentinel,), name="parent", daemon=True).start()
        yield


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
