"""The process of a worker: it loads the models, makes warm-up videos, and serves jobs until the server is gone."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

from adacache_engines.errors import AdaCacheError
from adacache_serve.device.worker import Models, Worker
from adacache_serve.disk.locks import worker_lock
from adacache_serve.logs import configure
from adacache_serve.settings import Settings

log = logging.getLogger(__name__)
NICENESS = 5  # below the server, whose answers are short

Open = Callable[[Settings], Models]


def work(connection: Connection, settings: Settings, device: str | None, open_models: Open) -> None:
    """Run the process until the server closes the pipe.

    Args:
        connection: the pipe to the server.
        settings: the server's settings.
        device: value of CUDA_VISIBLE_DEVICES; None = unchanged.
        open_models: loads the models.

    Raises:
        SystemExit: with status 1, the models cannot be loaded or make no video; the log says why.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # these are for the server, which ends this process after its drain
        signal.signal(number, signal.SIG_IGN)
    configure()
    with contextlib.suppress(OSError):  # a sandbox may forbid it, and nothing depends on it
        os.nice(NICENESS)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    try:
        with worker_lock(settings.data):
            worker = Worker(connection, open_models(settings), settings)
            worker.warm_up()
            worker.run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the server is gone
    except Exception as error:
        known = isinstance(error, AdaCacheError)
        log.error("worker ends: %s", error if known else repr(error), exc_info=None if known else error)
        sys.exit(1)
