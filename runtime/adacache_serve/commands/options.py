"""The options of ``adacache-serve``, and the settings that they ask for."""

import argparse
import math
from dataclasses import replace
from pathlib import Path

from adacache_engines.errors import InputError
from adacache_runtime.commands.options import add_opening, opening_from
from adacache_runtime.commands.version import add_version
from adacache_serve.http.hosts import host_of
from adacache_serve.settings import Settings

DEFAULTS = Settings(Path("adacache-serve"))
COUNTS = (
    "queue",
    "queue_per_client",
    "attempts",
    "in_flight",
    "max_pixels",
    "max_steps",
    "max_connections",
    "memory_budget",
)
LONGEST_SECONDS = 10.0**7  # about four months
AMOUNTS = {
    "header_seconds": LONGEST_SECONDS,
    "body_seconds": LONGEST_SECONDS,
    "hang_seconds": LONGEST_SECONDS,
    "keep_hours": 10.0**6,
    "keep_gb": 10.0**9,
    "forget_days": 10.0**5,
}


def parser_of() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
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
    for name in COUNTS:
        if (number := getattr(options, name)) is not None and number < 1:
            raise InputError(f"{_option(name)} {number} is too small; choose at least 1")
    for name, most in AMOUNTS.items():
        if (amount := getattr(options, name)) is not None and not 0 < amount <= most:
            raise InputError(f"{_option(name)} {amount:g} is not possible; choose more than 0 and at most {most:g}")
    if not 0 <= (seconds := options.drain_seconds) <= LONGEST_SECONDS:
        raise InputError(f"--drain-seconds {seconds:g} is not possible; choose 0 to {LONGEST_SECONDS:g}")
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


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
