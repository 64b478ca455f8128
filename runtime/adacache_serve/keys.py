"""API keys: a file has their hashes, clients have them.

A line a key: ``NAME HASH [most priority] [most jobs that wait]``. Keys are random, 256 bits, so that a plain SHA-256
of them cannot be guessed.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adacache_engines.errors import InputError

PREFIX = "ada-"
EVERYBODY = "anonymous"


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
    """A key, and its line for the file."""
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
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            found.append(_client(line.split(), f"{path}, line {number}"))
    if not found:
        raise InputError(f"{path} has no API key; make one with adacache-serve --new-key NAME >> {path}")
    return tuple(found)


def _client(words: Sequence[str], where: str) -> Client:
    try:
        name, digest, *numbers = words
        if len(bytes.fromhex(digest)) != hashlib.sha256().digest_size or len(numbers) > 2:
            raise ValueError
        return Client(name, digest, *map(int, numbers))
    except ValueError as error:
        raise InputError(
            f"{where}: expected NAME HASH, then the highest priority and the most waiting jobs, if these are limited"
        ) from error


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
