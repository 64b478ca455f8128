"""Supervision of worker processes: one for each device, restarted when it dies."""

import logging
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from adacache_serve.device.messages import FromWorker, Ready, ToWorker, from_worker
from adacache_serve.device.process import Open, work
from adacache_serve.logs import about
from adacache_serve.settings import Settings

log = logging.getLogger(__name__)
# seconds before a dead worker is restarted; doubled each time that it dies before it is ready
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0
LONGEST_MESSAGE = 2**24  # bytes; a worker's messages have some hundreds


class SupervisedWorker:
    """The worker of one device, as the server sees it: a process, and its successors when it dies.

    A thread of the server reads the process's messages.

    Attributes:
        device: value of CUDA_VISIBLE_DEVICES in the worker; None = as in the server.
        ready: whether the worker has made its warm-up videos.
        heard: when its last message came, by the monotonic clock, in seconds.
        restarts: number of processes after the first.
    """

    def __init__(
        self,
        settings: Settings,
        device: str | None,
        open_models: Open,
        handle: Callable[["SupervisedWorker", FromWorker], None],
        died: Callable[["SupervisedWorker"], None],
    ) -> None:
        """Describe a worker; :meth:`start` starts its process.

        Args:
            settings, device, open_models: arguments of :func:`adacache_serve.device.process.work`.
            handle: called with every message of the worker, on a thread of this object.
            died: called after the last message of a process that ended unexpectedly.
        """
        self.device, self.ready, self.restarts = device, False, 0
        self.heard = time.monotonic()
        self._settings, self._open, self._handle, self._died = settings, open_models, handle, died
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._outbox: Outbox | None = None
        self._process: BaseProcess | None = None
        self._thread = threading.Thread(target=self._supervise, name=f"worker {device or 'default'}", daemon=True)

    @property
    def pid(self) -> int | None:
        """Identity of the process; None before the first one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, and restart it whenever it dies."""
        self._thread.start()

    def send(self, message: ToWorker) -> None:
        """Send a message without waiting; it is lost where the process has just died, and ``died`` is called then."""
        outbox = self._outbox
        if outbox is not None:
            outbox.put(message)

    def kill(self) -> None:
        """Kill the process, which is restarted."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """End the process for good."""
        with self._lock:
            self._stopping.set()
            self.kill()
        if self._thread.is_alive():
            self._thread.join()

    def _supervise(self) -> None:
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            was_ready = False
            try:
                was_ready = self._run_process()
            except Exception as error:  # the system starts no process now, or the worker sends no messages
                log.exception("supervision of a worker failed", extra={"device": self.device}, exc_info=error)
            if self._stopping.is_set():
                return
            self.restarts += 1
            try:
                self._died(self)
            except Exception as error:  # housekeeping finds the worker's jobs
                log.exception(
                    "the jobs of a dead worker could not be queued again", extra={"device": self.device}, exc_info=error
                )
            pause = FIRST_PAUSE if was_ready else min(2 * pause, LONGEST_PAUSE)
            log.warning("worker died", extra={"device": self.device, "again_in_seconds": pause})
            self._stopping.wait(pause)

    def _run_process(self) -> bool:
        """Run one process until it ends; return whether it was ever ready."""
        spawn = multiprocessing.get_context("spawn")  # the worker inherits no threads and no locks
        ours, theirs = spawn.Pipe()
        process = spawn.Process(
            target=work, args=(theirs, self._settings, self.device, self._open), name="adacache-worker", daemon=True
        )
        outbox = Outbox(ours)
        ready = False
        try:
            with self._lock:
                if self._stopping.is_set():
                    return False
                process.start()
                self._process, self._outbox = process, outbox
            theirs.close()  # so that the pipe ends when the process ends
            while (data := _received(ours)) is not None:
                message = from_worker.validate_json(data)
                self.heard = time.monotonic()
                if isinstance(message, Ready):
                    self.ready = ready = True
                with about(getattr(message, "job", None)):
                    self._answer(message)
                self.heard = time.monotonic()  # handling may have waited for a database
            return ready
        finally:
            self.ready, self._outbox = False, None
            if process.pid is not None:
                process.kill()
                process.join()
            outbox.close()
            theirs.close()
            ours.close()

    def _answer(self, message: FromWorker) -> None:
        try:
            self._handle(self, message)
        except Exception as error:  # the server's, for which the worker and the jobs that it has must not pay
            log.exception("a worker's message could not be handled", extra={"kind": message.kind}, exc_info=error)


def _received(connection: Connection) -> bytes | None:
    """Return the next message; None where the pipe has ended, in the middle of a message or not."""
    try:
        return connection.recv_bytes(LONGEST_MESSAGE)
    except EOFError:
        return None
    except OSError as error:
        log.warning("the pipe from a worker broke: %s", error)
        return None


class Outbox:
    """Messages to a process, sent by a thread, since sending blocks while the pipe is full."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._queue: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="to worker", daemon=True)
        self._thread.start()

    def put(self, message: ToWorker) -> None:
        """Queue a message."""
        self._queue.put(message)

    def close(self) -> None:
        """Stop the thread, after the process has ended."""
        self._queue.put(None)
        self._thread.join()

    def _send(self) -> None:
        with suppress(OSError):  # the process has ended, as its supervisor knows
            while (message := self._queue.get()) is not None:
                self._connection.send_bytes(message.model_dump_json().encode())
