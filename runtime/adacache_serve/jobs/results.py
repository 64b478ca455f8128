"""Where finished videos lie: a folder, or an S3-compatible store."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from adacache_engines.errors import InputError, require
from adacache_serve.files import sync

S3 = "s3://"
LINK_SECONDS = 3600  # for which a link to a video is good


class Results(Protocol):
    """Files by name; names are the server's own."""

    def put(self, file: Path, name: str) -> None:
        """Takes a file over, whole or not at all; one of the same name is replaced."""

    def has(self, name: str) -> bool:
        """Whether there is one."""

    def delete(self, name: str) -> None:
        """Does nothing where there is none."""

    def names(self) -> Iterator[str]:
        """Of all that lie there, whosever they are."""

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
        try:
            file.replace(self._folder / name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            part = self._folder / f".{name}.part"  # another disk
            shutil.copyfile(file, part)
            sync(part)
            part.replace(self._folder / name)
            file.unlink()
        sync(self._folder)

    def has(self, name: str) -> bool:
        return (self._folder / name).exists()

    def delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        for file in self._folder.iterdir():
            yield file.name

    def path(self, name: str) -> Path | None:
        return self._folder / name

    def link(self, _name: str) -> str | None:
        return None


class Bucket:
    """In an S3-compatible store; credentials and endpoint come from the environment, as for every client of it."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            InputError: it cannot be reached with these credentials.
        """
        # what is listed is not remembered: others delete there, too
        self._files: Any = require("s3fs", "s3").S3FileSystem(use_listings_cache=False)
        self._root = url.removeprefix(S3).rstrip("/")
        try:
            self._files.call_s3("head_bucket", Bucket=self._root.partition("/")[0])
        except Exception as error:  # of botocore, aiohttp and s3fs, which share no class
            raise InputError(
                f"{url} cannot be used: {error}; check the bucket, and AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
                "AWS_ENDPOINT_URL in the environment"
            ) from error

    def put(self, file: Path, name: str) -> None:
        self._files.put_file(str(file), self._at(name))
        file.unlink()

    def has(self, name: str) -> bool:
        return bool(self._files.exists(self._at(name)))

    def delete(self, name: str) -> None:
        if self.has(name):
            self._files.rm_file(self._at(name))

    def names(self) -> Iterator[str]:
        try:
            found = self._files.ls(self._root, detail=False)
        except FileNotFoundError:  # nothing was ever put there
            return
        for path in found:
            yield path.rpartition("/")[2]

    def path(self, _name: str) -> Path | None:
        return None

    def link(self, name: str) -> str | None:
        return str(self._files.sign(self._at(name), expiration=LINK_SECONDS))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


def open_results(where: str) -> Results:
    """Of a folder, or of ``s3://BUCKET/PREFIX``.

    Raises:
        InputError: it cannot be used.
    """
    return Bucket(where) if where.startswith(S3) else Folder(Path(where))
