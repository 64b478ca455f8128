"""Where finished videos lie: a folder, or an S3-compatible store."""

import shutil
from pathlib import Path
from typing import Any, Protocol

from adacache_engines.errors import require

S3 = "s3://"
LINK_SECONDS = 3600  # for which a link to a video is good


class Results(Protocol):
    """Files by name; names are the server's own."""

    def put(self, file: Path, name: str) -> None:
        """Takes a file over, whole or not at all; one of the same name is replaced."""

    def delete(self, name: str) -> None:
        """Does nothing where there is none."""

    def path(self, name: str) -> Path | None:
        """Of the file on this machine, if it is on this machine."""

    def link(self, name: str) -> str | None:
        """Where else a client gets it, for an hour."""


class Folder:
    """On this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, file: Path, name: str) -> None:
        part = self._folder / f".{name}.part"
        shutil.move(file, part)  # copies, where it is another disk
        part.replace(self._folder / name)

    def delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def path(self, name: str) -> Path | None:
        return self._folder / name

    def link(self, _name: str) -> str | None:
        return None


class Bucket:
    """In an S3-compatible store; credentials and endpoint come from the environment, as for every client of it."""

    def __init__(self, url: str) -> None:
        self._files: Any = require("s3fs", "s3").S3FileSystem()
        self._root = url.removeprefix(S3).rstrip("/")

    def put(self, file: Path, name: str) -> None:
        self._files.put_file(str(file), f"{self._root}/{name}")
        file.unlink()

    def delete(self, name: str) -> None:
        if self._files.exists(f"{self._root}/{name}"):
            self._files.rm_file(f"{self._root}/{name}")

    def path(self, _name: str) -> Path | None:
        return None

    def link(self, name: str) -> str | None:
        return str(self._files.sign(f"{self._root}/{name}", expiration=LINK_SECONDS))


def open_results(where: str) -> Results:
    """Of a folder, or of ``s3://BUCKET/PREFIX``."""
    return Bucket(where) if where.startswith(S3) else Folder(Path(where))
