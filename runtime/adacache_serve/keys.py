"""API keys. Clients have the keys; the server has a file of their hashes.

Each line is ``NAME HASH [highest priority] [number of jobs that may wait]``; lines that start with # are comments. A
name consists of letters, digits and ``_.@-``. Keys are random, with 256 bits, so that a plain SHA-256 is enough.

A running server reads the file again when it has changed, before it answers the next request: a line that is added lets
its client in, and a line that is removed lets its client out. A file with no line lets nobody in. A file that cannot be
read, or has an invalid line, changes nothing until it is right again, and the log says so. Requests and streams that
are under way end as they would have, and jobs stay.
"""

import hashlib
import hmac
import logging
import re
import secrets
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adacache_engines.errors import InputError

log = logging.getLogger(__name__)
PREFIX = "ada-"
EVERYBODY = "anonymous"
NAME = re.compile(r"[A-Za-z0-9_.@-]{1,200}", re.ASCII)
LOWEST, HIGHEST = -10, 10  # priorities
MOST_WAITING = 10**6
SETTLED_NS = 10**9  # age of a change after which no further one can have the same time


@dataclass(frozen=True)
class Client:
    """A client.

    Attributes:
        name: name of the client's key.
        digest: SHA-256 of the key, in hexadecimal.
        max_priority: highest priority that the client may ask for.
        queue: number of the client's jobs that may wait; None = the server's limit.
    """

    name: str
    digest: str = ""
    max_priority: int = 10
    queue: int | None = None


ANONYMOUS = Client(EVERYBODY, max_priority=10)


def new_key(name: str) -> tuple[str, str]:
    """Make a key; return it, and its line for the file.

    Raises:
        InputError: the name is not possible.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is not a possible name of an API key; expected 1 to 200 letters, digits, and _ . @ -"
        )
    key = PREFIX + secrets.token_urlsafe(32)
    return key, f"{name} {_digest(key)} 0"


class KeyFile:
    """A file of API keys, and the clients of its last valid content. A pipe or a device is read only once."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            InputError: the file cannot be read, has no key, or has an invalid line; names the line.
        """
        self._path = path
        self._state = _state(path)
        self._clients = read_keys(path)
        self._trouble: str | None = None
        if not self._clients:
            raise InputError(f"{path} has no API keys; make one with adacache-serve --new-key NAME >> {path}")

    def clients(self) -> tuple[Client, ...]:
        """Return the clients, after reading the file again if it has changed."""
        state = _state(self._path)
        if state == self._state:
            return self._clients
        self._state = state
        trouble = None
        try:
            if state is None:
                raise InputError(f"the file of API keys {self._path} is not there, or is not a file")
            self._clients = read_keys(self._path)
        except InputError as error:
            trouble = str(error)
        if trouble is not None and trouble != self._trouble:
            log.error("the API keys of before stay: %s", trouble)
        elif trouble is None:
            log.info("API keys read", extra={"keys": len(self._clients)})
        self._trouble = trouble
        return self._clients


def _state(path: Path) -> tuple[int, ...] | None:
    """Return what tells whether a file has changed; None = there is no such file.

    A change that is too recent to be told from one that follows it is told from every other state.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    now = time.time_ns()
    recent = now if abs(now - max(found.st_mtime_ns, found.st_ctime_ns)) < SETTLED_NS else 0
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, recent


def read_keys(path: Path) -> tuple[Client, ...]:
    """Read a file of API keys.

    Raises:
        InputError: the file cannot be read, or has an invalid line; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the file of API keys {path} cannot be read: {error}") from error
    found: dict[str, tuple[int, Client]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        client = _client(line.split(), where := f"{path}, line {number}")
        if client.digest in found:
            raise InputError(f"{where}: this key is also in line {found[client.digest][0]}; remove one of the lines")
        found[client.digest] = number, client
    return tuple(client for _, client in found.values())


def _client(words: Sequence[str], where: str) -> Client:
    """Parse a line; errors do not repeat it, since it may contain a key by mistake."""
    name, digest, *numbers = [*words, *[""] * (2 - len(words))]
    if not NAME.fullmatch(name):
        raise InputError(f"{where}: the name must consist of 1 to 200 letters, digits, and _ . @ -")
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", digest):
        raise InputError(f"{where}: expected the key's SHA-256 after the name, as adacache-serve --new-key prints it")
    limits = ((LOWEST, HIGHEST, "the highest priority"), (1, MOST_WAITING, "the number of jobs that may wait"))
    if len(numbers) > len(limits):
        raise InputError(
            f"{where}: expected NAME HASH [highest priority] [number of jobs that may wait], and nothing else"
        )
    for number, (low, high, what) in zip(numbers, limits, strict=False):
        if not re.fullmatch(r"-?[0-9]{1,9}", number) or not low <= int(number) <= high:
            raise InputError(f"{where}: {what} must be a number from {low} to {high}")
    return Client(name, digest.lower(), *map(int, numbers))


def client_of(key: str, clients: Sequence[Client]) -> Client | None:
    """Return the client of a key; None = there is none. All keys are compared, in constant time."""
    digest = _digest(key)
    found = None
    for client in clients:
        if hmac.compare_digest(digest, client.digest):
            found = client
    return found


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
