"""API keys: a file has their hashes, clients have them.

A line a key: ``NAME HASH [most priority] [most jobs that wait]``. Keys are random, 256 bits, so that a plain SHA-256
of them cannot be guessed. A name is of letters, digits and ``_.@-``; lines that begin with # are comments.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adacache_engines.errors import InputError

PREFIX = "ada-"
EVERYBODY = "anonymous"
NAME = re.compile(r"[A-Za-z0-9_.@-]{1,200}", re.ASCII)
LOWEST, HIGHEST = -10, 10  # priorities
MOST_WAITING = 10**6


@dataclass(frozen=True)
class Client:
    """Who asks: a name, the highest priority they may ask for, and how many of their jobs may wait (None = the
    server's limit).
    """

    name: str
    digest: str = ""
    max_priority: int = 10
    queue: int | None = None


ANONYMOUS = Client(EVERYBODY, max_priority=10)


def new_key(name: str) -> tuple[str, str]:
    """A key, and its line for the file.

    Raises:
        InputError: the name is none.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name of an API key; expected 1 to 200 letters, digits, and _ . @ -")
    key = PREFIX + secrets.token_urlsafe(32)
    return key, f"{name} {_digest(key)} 0"


def read_keys(path: Path) -> tuple[Client, ...]:
    """
    Raises:
        InputError: the file cannot be read, has no key, or has a line that is none; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"API keys {path} cannot be read: {error}") from error
    found: dict[str, tuple[int, Client]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        client = _client(line.split(), where := f"{path}, line {number}")
        if client.digest in found:
            raise InputError(f"{where}: this key is in line {found[client.digest][0]}, too; leave one of them out")
        found[client.digest] = number, client
    if not found:
        raise InputError(f"{path} has no API key; make one with adacache-serve --new-key NAME >> {path}")
    return tuple(client for _, client in found.values())


def _client(words: Sequence[str], where: str) -> Client:
    """Raises InputError; does not repeat the line, which may have a key in it by mistake."""
    name, digest, *numbers = [*words, *[""] * (2 - len(words))]
    if not NAME.fullmatch(name):
        raise InputError(f"{where}: the name has to be of 1 to 200 letters, digits, and _ . @ -")
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", digest):
        raise InputError(f"{where}: expected the key's SHA-256 after the name, as adacache-serve --new-key prints it")
    limits = ((LOWEST, HIGHEST, "the highest priority"), (1, MOST_WAITING, "the most jobs that wait"))
    if len(numbers) > len(limits):
        raise InputError(f"{where}: expected NAME HASH [highest priority] [most jobs that wait], and no more")
    for number, (low, high, what) in zip(numbers, limits, strict=False):
        if not re.fullmatch(r"-?[0-9]{1,9}", number) or not low <= int(number) <= high:
            raise InputError(f"{where}: {what} has to be a number from {low} to {high}")
    return Client(name, digest.lower(), *map(int, numbers))


def client_of(key: str, clients: Sequence[Client]) -> Client | None:
    """Whose key it is. All are compared, in constant time, so that the time says nothing."""
    digest = _digest(key)
    found = None
    for client in clients:
        if hmac.compare_digest(digest, client.digest):
            found = client
    return found


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
