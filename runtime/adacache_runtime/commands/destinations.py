"""Outputs of a command that must not destroy anything: one another, a file of the bundle, or an input."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from adacache_engines.errors import InputError
from adacache_runtime.media.files import STANDARD_STREAMS, destination
from adacache_runtime.media.raw_frames import STANDARD_OUTPUT

Named = Iterable[tuple[str, Path | None]]  # an option's name, and its path where it was given


def check_apart(outputs: Named, inputs: Named = (), bundles: Iterable[Path] = ()) -> None:
    """Check that outputs are different files, none of them an input or in a bundle.

    Paths are compared by what they lead to: through links of both kinds, and whatever way their folders are named.
    Names that do not exist yet are one if they differ in case alone, as they are on some disks.

    Args:
        outputs: files or folders that will be written; ``-`` is standard output.
        inputs: files that will be read.
        bundles: folders of bundles that will be read.

    Raises:
        InputError: two of them are one, or an output is in a bundle.
    """
    folders = [found for folder in bundles if (found := _status(folder))]
    read = {_identity(path): f"{name} {path}" for name, path in inputs if path}
    written: dict[object, str] = {}
    for name, path in outputs:
        if path is None:
            continue
        told, identity = f"{name} {path}", _identity(path)
        if any(os.path.samestat(found, folder) for found in _around(path) for folder in folders):
            raise InputError(f"{told} is in the bundle, which must stay as it is; choose another place")
        if identity in read:
            raise InputError(f"{told} would replace the input {read[identity]}; give the output another name")
        if identity in written:
            raise InputError(f"{written[identity]} and {told} are one file; give one of them another name")
        written[identity] = told


def check_kept(folder: Path, inputs: Named) -> None:
    """Check that no input is a folder that will be replaced, or lies in it.

    Raises:
        InputError: one does.
    """
    replaced = _status(folder)
    for name, path in inputs:
        if replaced and path and any(os.path.samestat(found, replaced) for found in _around(path)):
            raise InputError(
                f"{folder} would be replaced, and {name} {path} with it; choose another place for the output"
            )


def _identity(path: Path) -> object:
    """Return what all names of a file have in common."""
    found = _status(path)
    if found:
        return found.st_dev, found.st_ino
    place = destination(path)
    folder = _status(place.parent)
    return (folder.st_dev, folder.st_ino) if folder else place.parent, place.name.casefold()


def _around(path: Path) -> Iterator[os.stat_result]:
    """Yield what is known of a path's destination, and of all folders around it."""
    if path == STANDARD_OUTPUT:
        return
    place = destination(path)
    for one in (place, *place.parents):
        if found := _status(one):
            yield found


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.fstat(STANDARD_STREAMS[0]) if path == STANDARD_OUTPUT else path.stat()
    except (OSError, ValueError):
        return None
