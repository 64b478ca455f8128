"""Locks on folders that processes change, such as a bundle to which a part is added.

A lock is one of the kernel's (``flock``) on a file in the folder, which is there only while a process holds it. A
process that was killed leaves no lock behind, only the file. On NFS such locks hold between machines if
the server has a lock manager, as that of NFS 4 has; on a file system without locks this is told, and work goes on.

Readers take no lock: a manifest changes in one step, and what only the old one names is deleted after that.
"""

import contextlib
import errno
import fcntl
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from adacache_engines.errors import BundleError

LOCK = ".lock"
HOLDER = re.compile(rb"([0-9]{1,10}) ([A-Za-z0-9._-]{1,64})\n")  # process and machine; anything else is not shown
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@dataclass(frozen=True)
class FolderLock:
    """A lock on a folder, to be released once.

    Attributes:
        directory, file: open descriptors of the folder, which may be renamed meanwhile, and of the file in it.
        kept: whether other processes respect it; not on a file system without locks.
    """

    directory: int
    file: int
    kept: bool

    def release(self) -> None:
        """Delete the file, and give the lock up."""
        with contextlib.suppress(OSError):  # the folder may be gone
            os.unlink(LOCK, dir_fd=self.directory)
        os.close(self.file)
        os.close(self.directory)


@contextlib.contextmanager
def changing(folder: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Keep other processes from changing a bundle during the block, and wait for the one that does.

    Whoever changes a bundle reads its manifest inside of the block. A process that enters twice waits for itself.

    Args:
        folder: folder of the bundle.
        say: function that gets a sentence where there is something to wait for.

    Raises:
        BundleError: the folder is missing, or cannot be written to.
    """
    with _told(folder):
        lock = try_lock(folder)
        if lock is None:
            say(f"{folder} is being changed by {_holder(folder)}; this waits until that has ended")
            lock = _lock(folder, wait=True)
            assert lock is not None
    if not lock.kept:
        say(f"{folder} is on a file system without locks; let no other process change it meanwhile")
    try:
        yield
    finally:
        lock.release()


def check_changeable(folder: Path) -> None:
    """Check that a bundle can be changed, before the work whose result will be written into it.

    Raises:
        BundleError: the folder is missing, or cannot be written to.
    """
    with _told(folder):
        lock = try_lock(folder)
    if lock is not None:
        lock.release()


def try_lock(folder: Path) -> FolderLock | None:
    """Lock a folder; return None where another process, or this one, has the lock.

    Raises:
        OSError: the folder is missing, or cannot be written to.
    """
    return _lock(folder, wait=False)


def _lock(folder: Path, wait: bool) -> FolderLock | None:
    while True:
        with contextlib.ExitStack() as opened:
            directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, directory)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(LOCK, flags, 0o666, dir_fd=directory)
            opened.callback(os.close, file)
            kept = True
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                kept = False
            if not _current(folder, directory, file):
                continue  # the one who had the lock deleted the file, or put another folder in the place of this one
            with contextlib.suppress(OSError):  # it only tells others for whom they wait
                os.ftruncate(file, 0)
                os.pwrite(file, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
            opened.pop_all()
            return FolderLock(directory, file, kept)


def _current(folder: Path, directory: int, file: int) -> bool:
    """Whether the open descriptors are still those of the folder and of the file in it."""
    try:
        there = folder.stat(), os.stat(LOCK, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return all(map(os.path.samestat, there, (os.fstat(directory), os.fstat(file))))


def _holder(folder: Path) -> str:
    """Return a phrase for the process that has the lock."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return "another process"
    try:
        found = HOLDER.match(os.read(file, 128))
    except OSError:
        return "another process"
    finally:
        os.close(file)
    return f"process {found[1].decode()} on {found[2].decode()}" if found else "another process"


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{folder} is not a bundle: there is no such folder") from error
    except OSError as error:
        raise BundleError(
            f"{folder} cannot be changed: {error.strerror or error}; make it writable, or copy it"
        ) from error
