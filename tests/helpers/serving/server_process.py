"""A server that can be killed: a process of its own on the fake model, whose workers keep a log of what they make.

The log is the evidence of what was begun and what was made, independently of the server: a line for each, appended by
the worker, ``begun JOB-ATTEMPT`` before its first call and ``made JOB-ATTEMPT`` once its record is on the disk.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from adacache_runtime.generation import Prepared
from adacache_runtime.pipeline import Pipeline
from adacache_serve.device import worker
from adacache_serve.http.app import create_app
from adacache_serve.http.hosts import hosts_of
from adacache_serve.http.server import run
from adacache_serve.logs import configure
from adacache_serve.settings import Settings
from tests.helpers.serving import fake_server
from tests.helpers.waiting import HANG_SECONDS

PORT, LOG, ERRORS = "port", "made.log", "errors.log"


def open_logging_models(log: Path, folders: tuple[Path, ...], settings: Settings) -> dict[str, Pipeline]:
    """Open the fake models in a worker process, which logs what it makes."""
    write_events, finish = worker.write_events, worker.finish

    def append(word: str, output: Path) -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{word} {output.parent.name}\n".encode())
        os.close(descriptor)

    def logged_events(prepared: Prepared, output: Path) -> Any:
        if output.parent.parent == settings.data / "spool":  # else it is a warm-up
            append("begun", output)
        return (yield from write_events(prepared, output))

    def logged_finish(video: Path, *rest: Any) -> None:
        finish(video, *rest)
        append("made", video)

    worker.write_events, worker.finish = logged_events, logged_finish
    return fake_server.open_models(folders, settings)


def main() -> None:
    """Run the server; the arguments are its folder, the model's folder, and settings as JSON."""
    folder, model = map(Path, sys.argv[1:3])
    settings = Settings(folder / "data", **json.loads(sys.argv[3]))
    configure()
    service = fake_server.service(settings, model, opener=partial(open_logging_models, folder / LOG, (model,)))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    part = folder / "port.part"
    part.write_text(str(listening.getsockname()[1]))
    part.replace(folder / PORT)
    run(create_app(service, None, hosts_of("127.0.0.1", settings, keys=False)), service, listening)


class ServerProcess:
    """A server that can be started, killed and started again on the same data."""

    def __init__(self, folder: Path, model: Path, **settings: Any) -> None:
        self.folder, self.model, self.settings = folder, model, settings
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{(self.folder / PORT).read_text()}"

    def start(self) -> None:
        (self.folder / PORT).unlink(missing_ok=True)
        command = [sys.executable, "-c", "from tests.helpers.serving import server_process; server_process.main()"]
        with (self.folder / ERRORS).open("ab") as errors:
            self.process = subprocess.Popen(
                [*command, str(self.folder), str(self.model), json.dumps(self.settings)],
                stdout=errors,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            )
        fake_server.until(lambda: (self.folder / PORT).exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.errors()[-3000:]

    def request(self, method: str, path: str, **rest: Any) -> httpx.Response:
        return httpx.request(method, f"{self.url}{path}", timeout=HANG_SECONDS, **rest)

    def ready(self) -> bool:
        try:
            return self.request("GET", "/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def workers(self) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.process.pid).children() if is_worker(child)]

    def end(self, number: int = signal.SIGTERM) -> int:
        """End the server by a signal; return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(HANG_SECONDS)

    def errors(self) -> str:
        return (self.folder / ERRORS).read_text()

    def log(self, word: str) -> list[str]:
        """Return the jobs of the log's lines with this word, in order."""
        path = self.folder / LOG
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1].rpartition("-")[0] for line in lines if line.startswith(word)]


def is_worker(process: psutil.Process) -> bool:
    try:
        return any("spawn_main" in word for word in process.cmdline())
    except psutil.Error:
        return False


def wait_until_gone(processes: list[psutil.Process]) -> None:
    fake_server.until(lambda: not any(map(runs, processes)))


def runs(process: psutil.Process) -> bool:
    """Return whether a process still runs; one that only waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
