"""The folder that a bundle is built in: a hidden one beside its destination, renamed when it is whole.

A process holds a lock in each hidden folder that it builds in. What a killed one left there, perhaps many gigabytes, is
deleted when the next process builds something of the same name at the same place.
"""

import contextlib
import errno
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from adacache_engines.bundle.files import MANIFEST, sha256_file
from adacache_engines.bundle.locks import FolderLock, changing, check_changeable, try_lock
from adacache_engines.bundle.manifest import FileEntry
from adacache_engines.errors import ExportError, InputError

PARTIAL = ".partial"  # ends the name of a hidden folder
CONTENT, REPLACED = "content", "replaced"  # in it: what is built, and for a moment the bundle whose place that takes


def check_destination(output: Path, force: bool) -> None:
    """Check that a bundle can be written to ``output``.

    Args:
        output: folder of the bundle.
        force: whether a bundle that is there may be replaced.

    Raises:
        BundleError: the bundle that would be replaced cannot be written to.
        InputError: something is there already, and ``force`` is off or it is not a bundle; or its parent is missing or
            cannot be written to.
    """
    sweep(output.absolute().parent, output.name)
    there = output.exists() or output.is_symlink()  # a dangling link is in the way, too
    if there and not force:
        raise InputError(f"{output} exists already; choose another with -o, or replace it with --force")
    if there and not (output / MANIFEST).is_file():
        raise InputError(f"{output} exists and is not a bundle (it has no {MANIFEST}), so --force does not replace it")
    parent = output.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{parent} is not a folder; create it, or choose another place with -o")
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{parent} cannot be written to: {reason}; choose another place with -o") from error
    if there:
        check_changeable(output)


@contextlib.contextmanager
def building(output: Path, nbytes: int, force: bool, say: Callable[[str], None] = lambda _: None) -> Iterator[Path]:
    """Yield an empty folder to build in, which becomes ``output`` if the block succeeds and is deleted if not.

    Args:
        output: folder that the bundle will be.
        nbytes: approximate size of the bundle.
        force: whether a bundle that is there is replaced.
        say: function that gets a sentence where another process changes that bundle and this one waits.

    Raises:
        BundleError: the bundle that is there cannot be written to.
        ExportError: the disk has too little room, or becomes full.
        InputError: the destination was taken in the meantime.
    """
    with scratch(output.absolute().parent, output.name, nbytes) as folder:
        yield folder
        check_destination(output, force)
        _publish(folder, output, say)


def _publish(folder: Path, output: Path, say: Callable[[str], None]) -> None:
    """Rename a built folder to its destination; a bundle that is there goes into the hidden folder, to be deleted."""
    folder.chmod(0o755)
    if not output.exists():
        folder.rename(output)
        return
    replaced = folder.with_name(REPLACED)
    with changing(output, say):
        try:
            output.rename(replaced)
            folder.rename(output)
        except BaseException:
            _restore(replaced, output)
            raise


def _restore(replaced: Path, output: Path) -> None:
    """Put a bundle back that was to be replaced, unless another one has its place."""
    if replaced.exists() and not output.exists():
        replaced.rename(output)


@contextlib.contextmanager
def scratch(parent: Path, name: str, nbytes: int) -> Iterator[Path]:
    """Yield an empty folder in a hidden one in ``parent``, which is deleted at the end unless it was renamed.

    Args:
        parent: folder on the same file system as the destination.
        name: name of what is built, for the hidden folder's name.
        nbytes: approximate size of what is built.

    Raises:
        ExportError: the disk has no room for ``nbytes``, or becomes full; or ``parent`` cannot be written to.
    """
    sweep(parent, name)
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        raise ExportError(
            f"this needs about {nbytes / 1e9:.1f} GB and {parent} has {free / 1e9:.1f} GB free; "
            "make room, or choose another place with -o"
        )
    hidden = None
    try:
        hidden, lock = _held(parent, name)
        try:
            (hidden / CONTENT).mkdir()
            yield hidden / CONTENT
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
            lock.release()
    except OSError as error:
        if hidden is None:
            raise ExportError(f"{parent} cannot be written to: {error.strerror or error}") from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ExportError(
            f"the disk is full ({error}); nothing was left in {parent}: make room and try again"
        ) from error


def _held(parent: Path, name: str) -> tuple[Path, FolderLock]:
    """Make a hidden folder, and lock it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=PARTIAL, dir=parent))
        try:
            lock = try_lock(folder)
        except FileNotFoundError:
            continue  # another process swept it before it was locked
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if lock is not None:
            return folder, lock


def sweep(parent: Path, name: str) -> None:
    """Delete the hidden folders of this name that no living process holds.

    A process that was killed between its two renames has left the bundle that it was to replace in its hidden folder.
    Such a bundle is put back.
    """
    left = re.compile(rf"\.{re.escape(name)}\.[A-Za-z0-9_]+{re.escape(PARTIAL)}")
    if not parent.is_dir():
        return
    for folder in [path for path in parent.iterdir() if left.fullmatch(path.name) and not path.is_symlink()]:
        with contextlib.suppress(OSError):  # it is another user's, or gone
            lock = try_lock(folder)
            if lock is None:
                continue
            try:
                if lock.kept:
                    _restore(folder / REPLACED, parent / name)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                lock.release()


def file_entries(folder: Path, progress: Callable[[int], None]) -> dict[str, FileEntry]:
    """Return size and hash of every file in a folder, by path relative to it; ``progress`` gets numbers of bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileEntry(sha256=sha256_file(path, progress), nbytes=path.stat().st_size)
        for path in files
    }
