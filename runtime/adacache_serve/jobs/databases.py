"""The connections to the database: a SQLite file that must stay the one that was opened, or PostgreSQL."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError

from adacache_engines.errors import require

# what libpq is told where the URL does not say it: seconds to connect, and milliseconds until a silent peer is gone
PATIENCE = {"connect_timeout": 10, "tcp_user_timeout": 30_000}


def open_database(url: str, create: Callable[[Engine], None]) -> Engine:
    """Open a database, and let ``create`` make its tables.

    Args:
        url: SQLAlchemy's URL, or PostgreSQL's own.
        create: makes the tables that are missing.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database cannot be opened.
    """
    made = _with_driver(url)
    patience = {name: value for name, value in PATIENCE.items() if name not in made.query}
    engine = create_engine(
        made, pool_pre_ping=True, connect_args=patience if made.get_dialect().name == "postgresql" else {}
    )
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _durable)
    create(engine)
    if engine.dialect.name == "sqlite" and made.database:
        _keep_file(engine, Path(made.database))
    return engine


def reason(error: Exception) -> str:
    """Return what an error says, without the statement of SQL in which it came."""
    return str(error.orig if isinstance(error, DBAPIError) else error).strip()


def _keep_file(engine: Engine, path: Path) -> None:
    """Refuse the database where its file is not the one that is there now.

    SQLite itself would go on writing into a deleted file, and a new connection would make an empty one. A file that was
    put in its place is refused too, until a restart: SQLite's log beside it and the running jobs belong to the old one.
    """
    opened = _identity(path)

    def check_open(*_: object) -> None:
        if _identity(path) != opened:
            raise sqlite3.OperationalError(
                f"the database file {path} was deleted or replaced while the server runs; stop the server, put the "
                "file back, and start it again"
            )

    def check_pooled(*_: object) -> None:
        if _identity(path) != opened:
            raise DisconnectionError(f"the database file {path} is another one")

    event.listen(engine, "do_connect", check_open)
    event.listen(engine, "checkout", check_pooled)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and the inode of a file; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _with_driver(url: str) -> URL:
    """Add the driver to a URL as PostgreSQL itself writes it."""
    made = make_url(url)
    if made.drivername in ("postgres", "postgresql"):
        require("psycopg", "postgresql")
        return made.set(drivername="postgresql+psycopg")
    return made


def _durable(connection: Any, _record: object) -> None:
    """Make commits survive a power cut, and readers not wait for the writer."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
