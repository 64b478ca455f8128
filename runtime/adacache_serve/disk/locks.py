"""Locks between servers and worker processes.

A worker ends when its server ends, and no other server starts on the same data folder before it has ended. The kernel
holds the locks, so that a process that was killed leaves none behind.
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

from adacache_engines.errors import InputError

WORKERS = "workers.lock"
WAIT_SECONDS = 60.0  # for workers of a server that was killed; they end as soon as they notice


@contextmanager
def worker_lock(data: Path) -> Iterator[None]:
    """Keep other servers from starting while this worker process lives, and end the process when its server ends.

    The process ends even while it is inside a call of an engine.

    Args:
        data: the server's data folder.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    with (data / WORKERS).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Thread(target=_end_with, args=(parent.sentinel,), name="parent", daemon=True).start()
        yield


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def wait_for_workers(data: Path) -> None:
    """Wait until the workers of an earlier server have ended, since this server makes their videos again.

    Raises:
        InputError: a worker does not end.
    """
    path = data / WORKERS
    end = time.monotonic() + WAIT_SECONDS
    with path.open("ab") as file:
        while not try_lock(file):
            if time.monotonic() > end:
                raise InputError(
                    f"a worker process of an earlier adacache-serve still runs after {WAIT_SECONDS:.0f} seconds and "
                    f"holds a lock on {path}; end this process"
                )
            time.sleep(0.1)


def try_lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed; return False where another process has a lock on it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
