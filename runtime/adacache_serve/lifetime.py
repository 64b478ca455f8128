"""How long a worker process lives: no longer than its server, and no other server begins before it is gone.

The lock is the kernel's, so that a process that was killed leaves none.
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


def wait_for_workers(data: Path) -> None:
    """For a server, before it begins: those of a server that was killed must not finish what it makes again.

    Raises:
        InputError: one does not end.
    """
    path = data / WORKERS
    end = time.monotonic() + WAIT_SECONDS
    with path.open("ab") as file:
        while not locked(file):
            if time.monotonic() > end:
                raise InputError(
                    f"a worker process of an earlier adacache-serve still runs after {WAIT_SECONDS:.0f} seconds "
                    f"(it has {path} locked); end it"
                )
            time.sleep(0.1)


def locked(file: BinaryIO) -> bool:
    """Whether it is ours alone, from now on until it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
