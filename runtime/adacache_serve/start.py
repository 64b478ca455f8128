"""Puts a server together, and runs it until it is asked to stop."""

import socket
from collections.abc import Callable, Mapping

from sqlalchemy.exc import SQLAlchemyError

from adacache_engines.bundle.files import Bundle
from adacache_engines.errors import InputError
from adacache_serve.device.worker import Open
from adacache_serve.http.app import create_app
from adacache_serve.http.server import run
from adacache_serve.jobs.results import open_results
from adacache_serve.jobs.service import Service
from adacache_serve.jobs.store import Store
from adacache_serve.keys import Client
from adacache_serve.logs import configure
from adacache_serve.settings import Settings


def serve(
    settings: Settings,
    clients: tuple[Client, ...] | None,
    bundles: Mapping[str, Bundle],
    open_models: Open,
    listening: socket.socket,
    announce: Callable[[], None],
) -> None:
    """
    Args:
        settings: of the server.
        clients: who may come; None = everybody.
        bundles: verified, by the name of their model.
        open_models: loads them in a worker.
        listening: bound to where clients come.
        announce: called when nothing stands in the server's way any more.

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
    announce()
    run(create_app(service, clients), service, listening)
