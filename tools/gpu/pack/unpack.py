"""Put a pack together on the machine that it is for, from parts that come one by one, in any order, also again.

    python3 part-1/unpack.py FOLDER

A part is a folder with this file, the pack's index ``pack.json``, and a piece of one of the pack's archives. A piece is
checked against its hash and kept in FOLDER; an archive is unpacked when all its pieces have come. What is there is not
unpacked again, and a command that was killed can be repeated. It needs nothing but Python.
"""

import hashlib
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any, BinaryIO, cast

INDEX = "pack.json"
STATE = ".pack"  # folder of pieces that wait for others, of an archive that is being unpacked, and of marks
BLOCK = 1 << 20


class BrokenPartError(Exception):
    """A part is incomplete, changed, or of another pack."""


class Pieces:
    """The pieces of an archive, read as one file."""

    def __init__(self, paths: list[Path]) -> None:
        self._left = [path.open("rb") for path in paths]

    def read(self, size: int) -> bytes:
        content = b""
        while len(content) < size and self._left:
            more = self._left[0].read(size - len(content))
            if not more:
                self._left.pop(0).close()
            content += more
        return content


def unpack(part: Path, target: Path) -> list[str]:
    """Take a part's piece in, and unpack each archive that is complete.

    Args:
        part: folder of the part.
        target: folder of the pack; it is made with the first part. An archive that came with an earlier pack and
            differs is replaced; one that is the same stays.

    Returns:
        Lines on what is there and what is missing.

    Raises:
        BrokenPartError: the part's piece is missing or changed.
    """
    index = json.loads((part / INDEX).read_text(encoding="utf-8"))
    if not any((part / piece["name"]).is_file() for pieces in index.values() for piece in pieces):
        raise BrokenPartError(f"{part} has no piece of the pack; copy the whole folder again")
    state = target / STATE
    state.mkdir(parents=True, exist_ok=True)
    told = []
    for name, pieces in index.items():
        mark, hashes = state / f"{name}.done", "\n".join(piece["sha256"] for piece in pieces)
        if not mark.is_file() or mark.read_text(encoding="utf-8") != hashes:
            for piece in pieces:
                _take(part / piece["name"], state / piece["sha256"], piece)
            missing = [piece["name"] for piece in pieces if not (state / piece["sha256"]).is_file()]
            if missing:
                told.append(f"{name} waits for {', '.join(missing)}")
                continue
            _extract([state / piece["sha256"] for piece in pieces], state / f"{name}.unpacking", target)
            _write(mark, hashes)
            for piece in pieces:
                (state / piece["sha256"]).unlink()
        told.append(f"{name} is unpacked in {target}")
    return told


def _take(source: Path, taken: Path, piece: dict[str, Any]) -> None:
    """Copy a piece, if the part has it and it was not taken before."""
    if taken.is_file() or not source.is_file():
        return
    arriving = taken.with_suffix(".arriving")
    digest = hashlib.sha256()
    with source.open("rb") as file, arriving.open("wb") as copy:
        while block := file.read(BLOCK):
            digest.update(block)
            copy.write(block)
    if digest.hexdigest() != piece["sha256"]:
        nbytes = arriving.stat().st_size
        arriving.unlink()
        raise BrokenPartError(
            f"{source} has {nbytes} bytes that are not the {piece['nbytes']} that were packed; copy the part again"
        )
    arriving.rename(taken)


def _extract(pieces: list[Path], made: Path, target: Path) -> None:
    """Unpack an archive beside its place, and put its entries there, each in the place of an older one."""
    shutil.rmtree(made, ignore_errors=True)
    with tarfile.open(fileobj=cast("BinaryIO", Pieces(pieces)), mode="r|xz") as archive:
        archive.extractall(made, filter="data")
    for entry in made.iterdir():
        place = target / entry.name
        if place.is_dir():
            shutil.rmtree(place)
        entry.replace(place)
    made.rmdir()


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".writing")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("unpack: expected one folder: python3 unpack.py FOLDER", file=sys.stderr)
        return 2
    try:
        told = unpack(Path(__file__).resolve().parent, Path(arguments[0]))
    except (BrokenPartError, OSError, EOFError, tarfile.TarError) as error:
        print(f"unpack: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"unpack: {line}" for line in told))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
