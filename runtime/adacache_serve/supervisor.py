"""Worker processes: one for each device, begun again when it dies."""

import logging
import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from adacache_serve.messages import FromWorker, Ready, ToWorker, from_worker
from adacache_serve.settings import Settings
from adacache_serve.worker import Open, work

log = logging.getLogger(__name__)
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0  # seconds before a worker that died is begun again; doubles while it dies early
LIVED = 60.0  # seconds after which a death is not an early one


class Worker:
    """One device's, through however many processes; its thread reads what they say.

    Attributes:
        device: what CUDA_VISIBLE_DEVICES is; None = all there is.
        ready: it has made its warm-up videos.
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
            settings, device, open_models: of :func:`adacache_serve.worker.work`.
            hear: gets every message, on the worker's thread.
            died: called when a process has ended without being asked to, after its last message.
        """
        self.device, self.ready, self.restarts = device, False, 0
        self._settings, self._open, self._hear, self._died = settings, open_models, hear, died
        self._stopping = threading.Event()
        self._sending = threading.Lock()
        self._connection: Connection | None = None
        self._process: BaseProcess | None = None
        self._thread = threading.Thread(target=self._supervise, name=f"worker {device or 'default'}", daemon=True)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def begin(self) -> None:
        self._thread.start()

    def send(self, message: ToWorker) -> None:
        """To the process; to nobody where it has just died, which ``died`` tells."""
        with self._sending:
            try:
                if self._connection is not None:
                    self._connection.send_bytes(message.model_dump_json().encode())
            except OSError:
                log.info("a message to a worker that is gone", extra={"device": self.device})

    def kill(self) -> None:
        """The process, which is begun again."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """Ends the process for good."""
        self._stopping.set()
        with self._sending:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        self.kill()
        self._thread.join()

    def _supervise(self) -> None:
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            began = time.monotonic()
            self._one_life()
            if self._stopping.is_set():
                return
            self.restarts += 1
            self._died(self)
            pause = FIRST_PAUSE if time.monotonic() - began > LIVED else min(2 * pause, LONGEST_PAUSE)
            log.warning("worker died", extra={"device": self.device, "again_in_seconds": pause})
            self._stopping.wait(pause)

    def _one_life(self) -> None:
        spawn = multiprocessing.get_context("spawn")  # no thread and no lock of ours goes along
        ours, theirs = spawn.Pipe()
        process = spawn.Process(
            target=work, args=(theirs, self._settings, self.device, self._open), name="adacache-worker", daemon=True
        )
        process.start()
        theirs.close()  # so that its end is the end of the pipe
        with self._sending:
            self._connection, self._process = ours, process
        if self._stopping.is_set():
            process.kill()
        try:
            while True:
                message = from_worker.validate_json(ours.recv_bytes())
                if isinstance(message, Ready):
                    self.ready = True
                self._hear(self, message)
        except (EOFError, OSError):
            self.ready = False
        finally:
            with self._sending:
                self._connection = None
            ours.close()
            process.kill()
            process.join()
