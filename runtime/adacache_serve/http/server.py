"""The server process's end: told to stop, it drains, while it still answers; told again, it is gone at once."""

import socket
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from adacache_engines.errors import InputError
from adacache_serve.jobs.service import Service

LINGER_SECONDS = 5  # that responses get which still flow after the drain


def run(app: FastAPI, service: Service, listening: socket.socket) -> None:
    """Answers until SIGTERM or SIGINT, and through the drain; comes back when nothing of it runs any more.

    Raises:
        InputError: it could not begin.
    """
    # h11 limits a request's headers, httptools does not
    config = uvicorn.Config(app, http="h11", log_config=None, timeout_graceful_shutdown=LINGER_SECONDS)
    server = Draining(config, service)
    try:
        server.run(sockets=[listening])
    finally:
        service.stop()
    if not server.started:
        raise InputError("the server could not begin; its log says why")


class Draining(uvicorn.Server):
    """uvicorn would close its port first."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came. It is not raised again at the end, so that the exit status is 0."""
        if self._told:
            self.should_exit = self.force_exit = True
            return
        self._told = True
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        self._service.drain()
        self.should_exit = True
