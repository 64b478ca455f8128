"""Write archives as parts that are small enough to travel, each a folder that :mod:`tools.gpu.pack.unpack` reads."""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adacache_engines.errors import InputError
from tools.gpu.pack import unpack

LIMIT_MB = 60  # of a part with everything in it
LARGEST = 5  # number of files that a refusal names


@dataclass(frozen=True)
class Archive:
    """Files that are needed together.

    Attributes:
        name: name in the index.
        folder: folder whose entries are packed.
        parts: largest number of parts that it may take.
    """

    name: str
    folder: Path
    parts: int = 1


def write_parts(folder: Path, archives: Sequence[Archive], limit_mb: float = LIMIT_MB) -> list[Path]:
    """Compress archives, cut them into equal pieces, and return the folders of the parts: ``part-1``, ...

    Equal pieces are far below the limit where two are needed, which leaves room for what else travels with a command.

    Args:
        folder: empty folder to write the parts into.
        archives: the archives, what is needed first at the front.
        limit_mb: largest size of a part, its index and program included.

    Raises:
        InputError: an archive needs more parts than it may take; the message names its largest files.
    """
    shared = Path(unpack.__file__).stat().st_size + 1000 * len(archives)  # the program and the index
    room = int(limit_mb * 1e6) - shared
    index: dict[str, list[dict[str, str | int]]] = {}
    parts: list[Path] = []
    for archive in archives:
        file = folder / f"{archive.name}.tar.xz"
        _compress(archive.folder, file)
        nbytes = file.stat().st_size
        count = -(-nbytes // max(room, 1))
        if count > archive.parts:
            raise InputError(_too_large(archive, nbytes, limit_mb))
        size = -(-nbytes // count)
        index[archive.name] = []
        with file.open("rb") as whole:
            for number in range(1, count + 1):
                content = whole.read(size)
                part = folder / f"part-{len(parts) + 1}"
                part.mkdir()
                name = f"{archive.name}.{number}"
                (part / name).write_bytes(content)
                digest = hashlib.sha256(content).hexdigest()
                index[archive.name].append({"name": name, "nbytes": len(content), "sha256": digest})
                parts.append(part)
        file.unlink()
    for part in parts:
        shutil.copyfile(unpack.__file__, part / "unpack.py")
        (part / unpack.INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return parts


def nbytes_of(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _compress(folder: Path, file: Path) -> None:
    """Write a .tar.xz that depends on names and contents alone, so that the same pack has the same hashes."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = 0
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
        return entry

    with tarfile.open(file, "w:xz", preset=6) as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name, filter=plain)  # adds what is in a folder in order, too


def _too_large(archive: Archive, nbytes: int, limit_mb: float) -> str:
    files = sorted(
        (path for path in archive.folder.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size
    )
    largest = ", ".join(
        f"{path.relative_to(archive.folder).as_posix()} {path.stat().st_size / 1e6:.1f} MB" for path in files[:LARGEST]
    )
    allowed = "one part" if archive.parts == 1 else f"{archive.parts} parts"
    return (
        f"{archive.name} has {nbytes / 1e6:.1f} MB compressed, and {allowed} of at most {limit_mb:g} MB may carry it; "
        f"leave files out. The largest, not compressed: {largest}"
    )
