"""The command ``adacache-serve``, which serves bundles over HTTP."""

import argparse
import resource
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.errors import InputError, require
from adacache_runtime.commands.destinations import check_apart
from adacache_runtime.commands.process import run
from adacache_runtime.denoising.experts import check_offload
from adacache_runtime.pipeline import Pipeline
from adacache_serve.commands.options import parser_of, settings_of
from adacache_serve.keys import KeyFile, new_key
from adacache_serve.orders.check import check_servable
from adacache_serve.settings import Settings

WEB = ("fastapi", "prometheus_client", "python_multipart", "sqlalchemy", "uvicorn")
GONE_SECONDS = 120  # for which a client may read nothing of what it is sent
OPEN = (
    "no --keys are given, so everybody who reaches this machine over the network can create, see and delete videos; "
    "requests must name the server by its address, as localhost, or by an --allowed-host"
)
LONGEST_SHOWN = 100  # characters of an address that an error repeats
OTHER_FILES = 300  # beside connections: the database, videos that are sent, pipes to workers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 when it was told to stop, 1 for an error, 2 for wrong usage."""
    return run("adacache-serve", lambda: parser_of().parse_args(arguments), lambda options, _: _serve(options))


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
    except (OSError, OverflowError, TypeError, ValueError) as error:  # of a port or a host that cannot be
        listening.close()
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"cannot listen on {host[:LONGEST_SHOWN]!r}, port {port}: {why}") from error
    return listening
