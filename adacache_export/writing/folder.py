"""The folder that a bundle is built in: a hidden one beside its destination, renamed when it is whole."""

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from adacache_engines.bundle.files import MANIFEST, sha256_file
from adacache_engines.bundle.manifest import FileEntry
from adacache_engines.errors import ExportError, InputError

PARTIAL = ".partial"  # ends the name of a folder that is being built


def check_destination(output: Path, force: bool) -> None:
    """Check that a bundle can be written to ``output``.

    Args:
        output: folder of the bundle.
        force: whether a bundle that is there may be replaced.

    Raises:
        InputError: something is there already, and ``force`` is off or it is not a bundle; or its parent is missing.
    """
    there = output.exists() or output.is_symlink()  # a dangling link is in the way, too
    if there and not force:
        raise InputError(f"{output} exists already; choose another with -o, or replace it with --force")
    if there and not (output / MANIFEST).is_file():
        raise InputError(f"{output} exists and is not a bundle (it has no {MANIFEST}), so --force does not replace it")
    if not output.absolute().parent.is_dir():
        raise InputError(f"{output.absolute().parent} is not a folder; create it, or choose another place with -o")


@contextlib.contextmanager
def building(output: Path, nbytes: int, force: bool) -> Iterator[Path]:
    """Yield an empty folder to build in, which becomes ``output`` if the block succeeds and is deleted if not.

    Args:
        output: folder that the bundle will be.
        nbytes: approximate size of the bundle.
        force: whether a bundle that is there is replaced.

    Raises:
        ExportError: the disk has too little room, or becomes full.
        InputError: the destination was taken in the meantime.
    """
    with scratch(output.absolute().parent, output.name, nbytes) as folder:
        yield folder
        check_destination(output, force)
        _publish(folder, output)


@contextlib.contextmanager
def scratch(parent: Path, name: str, nbytes: int) -> Iterator[Path]:
    """Yield an empty hidden folder in ``parent``, which is deleted at the end unless it was renamed.

    Args:
        parent: folder on the same file system as the destination.
        name: name of what is built, for the folder's name.
        nbytes: approximate size of what is built.

    Raises:
        ExportError: the disk has no room for ``nbytes``, or becomes full; or ``parent`` cannot be written to.
    """
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        raise ExportError(
            f"this needs about {nbytes / 1e9:.1f} GB and {parent} has {free / 1e9:.1f} GB free; "
            "make room, or choose another place with -o"
        )
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=PARTIAL, dir=parent))
        yield folder
    except OSError as error:
        if folder is None:
            raise ExportError(f"{parent} cannot be written to: {error.strerror or error}") from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ExportError(
            f"the disk is full ({error}); nothing was left in {parent}: make room and try again"
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, output: Path) -> None:
    """Rename a built folder to its destination; a bundle that is there is deleted once the new one is in its place."""
    folder.chmod(0o755)
    if not output.exists():
        folder.rename(output)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=folder.parent))
    try:
        output.rename(old / "bundle")
        folder.rename(output)
    except BaseException:
        if (old / "bundle").exists() and not output.exists():
            (old / "bundle").rename(output)
        old.rmdir()
        raise
    shutil.rmtree(old)


def file_entries(folder: Path, progress: Callable[[int], None]) -> dict[str, FileEntry]:
    """Return size and hash of every file in a folder, by path relative to it; ``progress`` gets numbers of bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileEntry(sha256=sha256_file(path, progress), nbytes=path.stat().st_size)
        for path in files
    }
