"""Locks that keep a data folder and a database to one server.

The kernel or the database holds the locks, so that a process that was killed leaves none behind.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from adacache_engines.errors import InputError
from adacache_serve.disk.locks import try_lock, wait_for_workers

SERVER = "server.lock"
NOTICE_SECONDS = 3.0  # for a database to notice that a server was killed
NUMBER = 0x41646143  # key of the advisory lock in PostgreSQL, which belongs to one database


class Ownership:
    """The locks on a data folder and a database, until they are released or the process ends."""

    def __init__(self, data: Path, engine: Engine) -> None:
        """Take the locks.

        Args:
            data: the data folder.
            engine: the database.

        Raises:
            InputError: another server has one of them, or a worker of an earlier server does not end.
        """
        self._engine = engine
        self._files: list[BinaryIO] = []
        self._connection: Connection | None = None
        try:
            self._own(
                data / SERVER, f"another adacache-serve uses the folder {data}; stop it, or choose another --data"
            )
            if engine.dialect.name == "sqlite" and engine.url.database:
                database = Path(engine.url.database)
                self._own(database.with_name(f"{database.name}.lock"), self._taken())
            else:
                self._take()
            wait_for_workers(data)
        except BaseException:
            self.release()
            raise

    def still(self) -> bool:
        """Return whether this server still has the database.

        The lock is lost with its connection, and is taken again on a new one.

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
        """Release all locks."""
        for file in self._files:
            file.close()
        self._files.clear()
        if self._connection is not None:
            with suppress(SQLAlchemyError):  # releases at once; the end of the connection is noticed later
                self._connection.execute(text(f"SELECT pg_advisory_unlock({NUMBER})"))
            self._connection.close()
            self._connection = None

    def _take(self) -> None:
        end = time.monotonic() + NOTICE_SECONDS
        while not self.still():
            if time.monotonic() > end:
                raise InputError(self._taken())
            time.sleep(0.1)

    def _own(self, path: Path, taken: str) -> None:
        file = path.open("ab")
        self._files.append(file)
        if not try_lock(file):
            raise InputError(taken)

    def _taken(self) -> str:
        where = self._engine.url.render_as_string(hide_password=True)
        return f"another adacache-serve uses the database {where}; stop it, or choose another --database"
