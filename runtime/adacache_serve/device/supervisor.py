"""Worker processes: one for each device, begun again when it dies."""

import logging
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from adacache_serve.device.worker import Open, work
from adacache_serve.logs import about
from adacache_serve.messages import FromWorker, Ready, ToWorker, from_worker
from adacache_serve.settings import Settings

log = logging.getLogger(__name__)
# seconds before a worker that died is begun again; doubles while it is never ready
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0


class Worker:
    """One device's, through however many processes; its thread reads what they say.

    Attributes:
        device: what CUDA_VISIBLE_DEVICES is; None = all there is.
        ready: it has made its warm-up videos.
        heard: when it last said something, by the monotonic clock.
        restarts: processes after the first.
    """

    def __init__(
        self,
        settings: Settings,
        device: str | None,
        open_models: Open,
        hear: Callable[["Worker", FromWorker], None],
        died: Callable[["Worker"], None],
    ) -> None:
        """
        Args:
            settings, device, open_models: of :func:`adacache_serve.device.worker.work`.
            hear: gets every message, on the worker's thread.
            died: called when a process has ended without being asked to, after its last message.
        """
        self.device, self.ready, self.restarts = device, False, 0
        self.heard = time.monotonic()
        self._settings, self._open, self._hear, self._died = settings, open_models, hear, died
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._outbox: Outbox | None = None
        self._process: BaseProcess | None = None
        self._thread = threading.Thread(target=self._supervise, name=f"worker {device or 'default'}", daemon=True)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def begin(self) -> None:
        self._thread.start()

    def send(self, message: ToWorker) -> None:
        """To the process; to nobody where it has just died, which ``died`` tells. Never waits."""
        outbox = self._outbox
        if outbox is not None:
            outbox.put(message)

    def kill(self) -> None:
        """The process, which is begun again."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """Ends the process for good."""
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
                was_ready = self._one_life()
            except Exception as error:  # of what hears, or of a system that begins no process now
                log.exception("a worker is given up", extra={"device": self.device}, exc_info=error)
            if self._stopping.is_set():
                return
            self.restarts += 1
            try:
                self._died(self)
            except Exception as error:  # of the database: housekeeping finds its jobs
                log.exception("the jobs of a worker are nobody's", extra={"device": self.device}, exc_info=error)
            pause = FIRST_PAUSE if was_ready else min(2 * pause, LONGEST_PAUSE)
            log.warning("worker died", extra={"device": self.device, "again_in_seconds": pause})
            self._stopping.wait(pause)

    def _one_life(self) -> bool:
        """Gives whether it was ever ready."""
        spawn = multiprocessing.get_context("spawn")  # no thread and no lock of ours goes along
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
            theirs.close()  # so that its end is the end of the pipe
            while True:
                message = from_worker.validate_json(ours.recv_bytes())
                self.heard = time.monotonic()
                if isinstance(message, Ready):
                    self.ready = ready = True
                with about(getattr(message, "job", None)):
                    self._hear(self, message)
        except (EOFError, OSError):
            return ready
        finally:
            self.ready, self._outbox = False, None
            if process.pid is not None:
                process.kill()
                process.join()
            outbox.close()
            theirs.close()
            ours.close()


class Outbox:
    """Messages to a process, sent by a thread, since a pipe that is full makes its sender wait."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._queue: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="to worker", daemon=True)
        self._thread.start()

    def put(self, message: ToWorker) -> None:
        self._queue.put(message)

    def close(self) -> None:
        """Once the process is gone."""
        self._queue.put(None)
        self._thread.join()

    def _send(self) -> None:
        with suppress(OSError):  # it is gone, as its supervisor knows
            while (message := self._queue.get()) is not None:
                self._connection.send_bytes(message.model_dump_json().encode())
