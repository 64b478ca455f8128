"""The command ``adacache-serve``, which serves bundles over HTTP."""

import argparse
import math
import resource
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.errors import InputError, require
from adacache_runtime.commands.destinations import check_apart
from adacache_runtime.commands.options import add_opening, opening_from
from adacache_runtime.commands.process import run
from adacache_runtime.commands.version import add_version
from adacache_runtime.denoising.experts import check_offload
from adacache_runtime.pipeline import Pipeline
from adacache_serve.http.hosts import host_of
from adacache_serve.keys import KeyFile, new_key
from adacache_serve.orders.check import check_servable
from adacache_serve.settings import Settings

WEB = ("fastapi", "prometheus_client", "python_multipart", "sqlalchemy", "uvicorn")
GONE_SECONDS = 120  # for which a client may read nothing of what it is sent
LONGEST_SECONDS = 86400  # of a time limit
OPEN = (
    "no --keys are given, so everybody who reaches this machine over the network can create, see and delete videos; "
    "requests must name the server by its address, as localhost, or by an --allowed-host"
)
OTHER_FILES = 300  # beside connections: the database, videos that are sent, pipes to workers
DEFAULTS = Settings(Path("adacache-serve"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 when it was told to stop, 1 for an error, 2 for wrong usage."""
    return run("adacache-serve", lambda: _parser().parse_args(arguments), lambda options, _: _serve(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("adacache-serve", description="Serve bundles over HTTP, without PyTorch.")
    add_version(parser)
    add = parser.add_argument
    add(
        "bundles",
        metavar="BUNDLE",
        type=Path,
        nargs="*",
        help="folder written by adacache-export; its name becomes the model's id",
    )
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, for this machine only)")
    add(
        "--allowed-host",
        metavar="NAME",
        action="append",
        default=[],
        help="name or address under which clients reach the server through a proxy, or by its machine's name; may be "
        "repeated (default: without --keys, localhost and the address to listen on; with --keys, any)",
    )
    add("--port", type=int, default=8000, help="port to listen on; 0 = any free port (default: 8000)")
    add(
        "--data",
        metavar="DIR",
        type=Path,
        default=DEFAULTS.data,
        help="folder for jobs, videos and uploaded images (default: adacache-serve)",
    )
    add("--database", metavar="URL", help="URL of a PostgreSQL database (default: SQLite in --data)")
    add("--results", metavar="DIR|s3://BUCKET/PREFIX", help="place where videos are kept (default: in --data)")
    add("--keep-hours", type=float, metavar="N", help="delete videos that are older than N hours (default: never)")
    add("--keep-gb", type=float, metavar="N", help="delete the oldest videos beyond N GB (default: never)")
    add("--forget-days", type=float, metavar="N", help="delete jobs that ended more than N days ago (default: never)")
    add(
        "--keys",
        metavar="FILE",
        type=Path,
        help="file of API keys, which is read again when it changes (default: no key is needed)",
    )
    add(
        "--new-key",
        metavar="NAME",
        help="print a new API key to standard error and its line for --keys to standard output, and stop",
    )
    jobs = parser.add_argument_group("jobs").add_argument
    jobs(
        "--queue",
        type=int,
        default=DEFAULTS.queue,
        metavar="N",
        help=f"number of jobs that may wait (default: {DEFAULTS.queue})",
    )
    jobs(
        "--queue-per-client",
        type=int,
        default=DEFAULTS.queue_per_client,
        metavar="N",
        help=f"number of jobs of one API key that may wait (default: {DEFAULTS.queue_per_client})",
    )
    jobs(
        "--attempts",
        type=int,
        default=DEFAULTS.attempts,
        metavar="N",
        help=f"number of workers that may die in a job before it fails (default: {DEFAULTS.attempts})",
    )
    jobs(
        "--hang-seconds",
        type=float,
        default=DEFAULTS.hang_seconds,
        metavar="N",
        help=f"seconds that a step may take before its worker is killed (default: {DEFAULTS.hang_seconds:.0f})",
    )
    jobs(
        "--drain-seconds",
        type=float,
        default=DEFAULTS.drain_seconds,
        metavar="N",
        help=f"seconds that running jobs get when the server stops (default: {DEFAULTS.drain_seconds:.0f})",
    )
    jobs(
        "--max-pixels",
        type=int,
        default=DEFAULTS.max_pixels,
        metavar="N",
        help=f"largest frames x height x width of a video (default: {DEFAULTS.max_pixels})",
    )
    jobs(
        "--max-steps",
        type=int,
        default=DEFAULTS.max_steps,
        metavar="N",
        help=f"largest number of steps of a video (default: {DEFAULTS.max_steps})",
    )
    clients = parser.add_argument_group("connections").add_argument
    clients(
        "--max-connections",
        type=int,
        default=DEFAULTS.max_connections,
        metavar="N",
        help="number of open connections; one more closes the one that has waited longest for a request "
        f"(default: {DEFAULTS.max_connections})",
    )
    clients(
        "--header-seconds",
        type=float,
        default=DEFAULTS.header_seconds,
        metavar="N",
        help=f"seconds in which the headers of a request must arrive (default: {DEFAULTS.header_seconds:.0f})",
    )
    clients(
        "--body-seconds",
        type=float,
        default=DEFAULTS.body_seconds,
        metavar="N",
        help=f"seconds in which the body of a request must arrive (default: {DEFAULTS.body_seconds:.0f})",
    )
    clients(
        "--receive-mb",
        type=int,
        default=DEFAULTS.receive_nbytes // 10**6,
        metavar="MB",
        help="bodies of requests that are kept at a time, of all clients together "
        f"(default: {DEFAULTS.receive_nbytes // 10**6})",
    )
    backend = add_opening(parser).add_argument
    backend(
        "--devices",
        metavar="N",
        nargs="+",
        help="numbers of GPUs, which get a worker process each (default: one worker process)",
    )
    backend(
        "--in-flight",
        type=int,
        default=DEFAULTS.in_flight,
        metavar="N",
        help=f"number of videos that share a worker; one with --expert-offload (default: {DEFAULTS.in_flight})",
    )
    backend(
        "--memory-budget",
        type=int,
        metavar="MB",
        help="memory for these videos, beside the weights (default: all that is free)",
    )
    return parser


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that the options ask for.

    Raises:
        InputError: a number is not possible.
    """
    for name in (
        "queue",
        "queue_per_client",
        "attempts",
        "in_flight",
        "max_pixels",
        "max_steps",
        "max_connections",
    ):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)} is too small; choose at least 1")
    for name in ("header_seconds", "body_seconds"):
        if not 0 < (seconds := getattr(options, name)) <= LONGEST_SECONDS:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} {seconds:g} is not possible; choose more than 0 and at most {LONGEST_SECONDS}")
    if options.receive_mb * 10**6 < DEFAULTS.max_body:
        least = math.ceil(DEFAULTS.max_body / 10**6)
        raise InputError(
            f"--receive-mb {options.receive_mb} is too small: one request can have {DEFAULTS.max_body} bytes; "
            f"choose at least {least}"
        )
    for name in options.allowed_host:
        if host_of(name) is None:
            raise InputError(
                f"--allowed-host {name!r} is not a host; give a name or an address without http:// and without a port"
            )
    return replace(
        DEFAULTS,
        data=options.data,
        database=options.database,
        results=options.results,
        devices=tuple(options.devices) if options.devices else (None,),
        **opening_from(options),
        in_flight=options.in_flight,
        memory_budget=None if options.memory_budget is None else options.memory_budget * 10**6,
        queue=options.queue,
        queue_per_client=options.queue_per_client,
        attempts=options.attempts,
        max_pixels=options.max_pixels,
        max_steps=options.max_steps,
        body_seconds=options.body_seconds,
        receive_nbytes=options.receive_mb * 10**6,
        max_connections=options.max_connections,
        header_seconds=options.header_seconds,
        keep_seconds=None if options.keep_hours is None else options.keep_hours * 3600,
        keep_nbytes=None if options.keep_gb is None else round(options.keep_gb * 10**9),
        forget_seconds=None if options.forget_days is None else options.forget_days * 86400,
        hang_seconds=options.hang_seconds,
        drain_seconds=options.drain_seconds,
        keys=options.keys,
        host=options.host,
        allowed_hosts=tuple(options.allowed_host),
    )


def allow_files(connections: int) -> None:
    """Let this process open as many files as it needs for this number of connections.

    Raises:
        InputError: the system does not allow it.
    """
    needed = connections + OTHER_FILES
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != most < needed:
        raise InputError(
            f"--max-connections {connections} needs {needed} open files, but the system allows {most}; "
            "choose fewer connections, or raise the limit with ulimit -n"
        )
    if resource.RLIM_INFINITY != allowed < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))


def open_bundles(folders: Sequence[Path]) -> dict[str, Bundle]:
    """Open and verify bundles; return them by the name of their model, which is the folder's.

    Raises:
        BundleError: a folder is not a bundle, or a file of it was changed.
        InputError: two bundles have the same name, or one has no text encoder or no decoder.
    """
    found: dict[str, Bundle] = {}
    for folder in folders:
        bundle = open_bundle(folder)
        name = folder.resolve().name.removesuffix(".adacache")
        if name in found:
            raise InputError(f"two bundles are named {name}; rename one of the folders")
        check_servable(folder, bundle.manifest)
        found[name] = bundle
    return found


def open_models(folders: Sequence[Path], settings: Settings) -> Mapping[str, Pipeline]:
    """Load bundles in a worker; return their pipelines by the name of the model."""
    return {
        name: Pipeline.open(
            bundle.folder,
            backend=settings.backend,
            text_device=settings.text_device,
            embedding_cache=settings.embedding_cache,
            expert_offload=settings.expert_offload,
        )
        for name, bundle in open_bundles(folders).items()
    }


def _serve(options: argparse.Namespace) -> None:
    if options.new_key:
        key, line = new_key(options.new_key)
        print(f"the new API key, which is stored nowhere: {key}", file=sys.stderr)
        print(line)
        return
    if not options.bundles:
        raise InputError("no bundle is given; name at least one BUNDLE")
    for module in WEB:
        require(module, "serve")
    from adacache_serve.http.server import serve  # only here, since it imports these packages

    settings = settings_of(options)
    _check_folders(options)
    keys = KeyFile(options.keys) if options.keys else None
    bundles = open_bundles(options.bundles)
    if settings.expert_offload:
        for bundle in bundles.values():
            check_offload(bundle.folder, bundle.manifest)
    allow_files(settings.max_connections)
    with _listening(options.host, options.port) as listening:
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        told = [f"http://{shown}:{port} serves {', '.join(bundles)}"]
        if keys is None and not ip_address(host).is_loopback:
            told.append(OPEN)
        announce = partial(print, *(f"adacache-serve: {line}" for line in told), sep="\n", file=sys.stderr)
        serve(settings, keys, bundles, partial(open_models, options.bundles), listening, announce)


def _check_folders(options: argparse.Namespace) -> None:
    """Check that the folders that are written to are not in a bundle.

    Raises:
        InputError: one is.
    """
    folders = {"--data": options.data, "--embedding-cache": options.embedding_cache}
    if options.results and "://" not in options.results:
        folders["--results"] = Path(options.results)
    for named in folders.items():  # each by itself: results may be kept in the folder of the data
        check_apart([named], [("--keys", options.keys)], options.bundles)


def _listening(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # connections inherit these: the kernel closes those whose client does not read, or is no longer there
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * GONE_SECONDS)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, GONE_SECONDS // 2)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, GONE_SECONDS // 4))
    try:
        listening.bind((host, port))
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listening
