"""The place where finished videos are kept: a folder, or an S3-compatible store."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from adacache_engines.errors import InputError, require
from adacache_serve.disk.files import sync, writing_all

S3 = "s3://"
LINK_SECONDS = 3600  # for which a link to a video is valid
# requests of one operation, by s3fs and below it by botocore; who needs the operation tries again later
TRIES = 2
PATIENCE = {"connect_timeout": 10, "read_timeout": 30, "retries": {"total_max_attempts": 1}}


class ResultsError(OSError):
    """The place of results does not answer, or refuses; the same may succeed later."""


class Results(Protocol):
    """Files by name. The server chooses the names.

    All methods raise OSError where the place does not answer; a bucket raises :class:`ResultsError`.
    """

    def put(self, file: Path, name: str) -> None:
        """Move a file here, whole or not at all; a file of the same name is replaced."""

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""

    def delete(self, name: str) -> None:
        """Delete a file, if there is one of this name."""

    def names(self) -> Iterator[str]:
        """Yield the names of all files, including those of other servers."""

    def path(self, name: str) -> Path | None:
        """Return the path of a file that is on this machine; None where files are elsewhere."""

    def link(self, name: str) -> str | None:
        """Return a URL that is valid for an hour, where files are elsewhere; None where they are on this machine."""


class Folder:
    """A folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, file: Path, name: str) -> None:
        try:
            file.replace(self._folder / name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            part = self._folder / f".{name}.part"  # the folder is on another disk
            with writing_all(part) as copy, file.open("rb") as content:
                shutil.copyfileobj(content, copy)
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
    """A bucket of an S3-compatible store; credentials and endpoint come from the usual environment variables."""

    def __init__(self, url: str) -> None:
        """Check that the bucket can be reached.

        Args:
            url: ``s3://BUCKET/PREFIX``.

        Raises:
            InputError: the bucket cannot be reached with these credentials.
        """
        # no cache of listings, since others delete files there too, and no instance that another environment made
        self._files: Any = require("s3fs", "s3").S3FileSystem(
            use_listings_cache=False, skip_instance_cache=True, config_kwargs=PATIENCE
        )
        self._files.retries = TRIES
        self._root = url.removeprefix(S3).rstrip("/")
        try:
            self._files.call_s3("head_bucket", Bucket=self._root.partition("/")[0])
        except Exception as error:  # botocore's, aiohttp's and s3fs's errors share no base class
            raise InputError(
                f"{url} cannot be used: {error}; check the bucket, and AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
                "AWS_ENDPOINT_URL in the environment"
            ) from error

    def put(self, file: Path, name: str) -> None:
        nbytes = file.stat().st_size
        with self._answering():
            self._files.put_file(str(file), self._at(name))
            there = self._files.info(self._at(name))["size"]
        if there != nbytes:
            raise ResultsError(f"s3://{self._at(name)} has {there} bytes, and {nbytes} were put there")
        file.unlink()  # only now, since it is the only copy

    def has(self, name: str) -> bool:
        with self._answering():
            return bool(self._files.exists(self._at(name)))

    def delete(self, name: str) -> None:
        with self._answering():
            self._files.rm_file(self._at(name))

    def names(self) -> Iterator[str]:
        with self._answering():
            try:
                found = self._files.ls(self._root, detail=False)
            except FileNotFoundError:  # there is no file yet
                return
        for path in found:
            yield path.rpartition("/")[2]

    def path(self, _name: str) -> Path | None:
        return None

    def link(self, name: str) -> str | None:
        return str(self._files.sign(self._at(name), expiration=LINK_SECONDS))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # botocore's, aiohttp's and s3fs's errors share no base class
            raise ResultsError(f"s3://{self._root} does not answer as expected: {error or repr(error)}") from error

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


def open_results(where: str) -> Results:
    """Open a folder, or ``s3://BUCKET/PREFIX``.

    Raises:
        InputError: the bucket cannot be used.
    """
    return Bucket(where) if where.startswith(S3) else Folder(Path(where))
