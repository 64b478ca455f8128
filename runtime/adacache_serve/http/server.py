"""The server process: it opens what the server needs, answers HTTP, and drains when it is told to stop."""

import socket
import threading
from collections.abc import Callable, Mapping
from types import FrameType

import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from adacache_engines.bundle.files import Bundle
from adacache_engines.errors import InputError
from adacache_serve.device.process import Open
from adacache_serve.http.app import create_app
from adacache_serve.http.connections import config_of
from adacache_serve.http.hosts import hosts_of
from adacache_serve.jobs.results import open_results
from adacache_serve.jobs.service import Service
from adacache_serve.jobs.store import Store
from adacache_serve.keys import KeyFile
from adacache_serve.logs import configure
from adacache_serve.settings import Settings

LINGER_SECONDS = 5  # for responses that are under way after the drain


def serve(
    settings: Settings,
    keys: KeyFile | None,
    bundles: Mapping[str, Bundle],
    open_models: Open,
    listening: socket.socket,
    announce: Callable[[], None],
) -> None:
    """Serve bundles until the process is told to stop.

    Args:
        settings: the server's settings.
        keys: the file of API keys; None = no key is needed.
        bundles: the verified bundles, by the name of their model.
        open_models: loads the bundles in a worker.
        listening: the bound socket to which clients connect.
        announce: called when nothing prevents the server from starting any more.

    Raises:
        InputError: the folder, the database or the results cannot be used, or another server uses them.
    """
    configure()
    try:
        settings.data.mkdir(parents=True, exist_ok=True)
        store = Store(settings.database or f"sqlite:///{settings.data / 'jobs.sqlite'}")
    except OSError as error:
        raise InputError(f"--data {settings.data} cannot be written: {error.strerror or error}") from error
    except SQLAlchemyError as error:
        raise InputError(f"the database cannot be opened: {error}") from error
    results = open_results(settings.results or str(settings.data / "results"))
    service = Service(settings, bundles, store, results, open_models)
    hosts = hosts_of(listening.getsockname()[0], settings, keys=keys is not None)
    announce()
    run(create_app(service, keys, hosts), service, listening)


def run(app: FastAPI, service: Service, listening: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT, and during the drain; return when everything has stopped.

    Raises:
        InputError: the server could not start.
    """
    server = DrainingServer(config_of(app, service.settings, LINGER_SECONDS), service)
    try:
        server.run(sockets=[listening])
    finally:
        service.stop()
    if not server.started:
        raise InputError("the server could not start; its log says why")


class DrainingServer(uvicorn.Server):
    """A server that still answers while it drains; uvicorn's own would close its port first."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, and stop at once at the second.

        The signal is not raised again at the end, so that the exit status is 0.
        """
        if self._told:
            self.should_exit = self.force_exit = True
            return
        self._told = True
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        self._service.drain()
        self.should_exit = True
