"""An opened checkpoint, whatever its layout: named tensors that are mapped from their files."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adacache_engines.errors import CheckpointError
from adacache_engines.printable import first_of
from adacache_export.checkpoint.containers import unwrap
from adacache_export.checkpoint.formats import read_weights, regular, unreadable
from adacache_export.checkpoint.layout import find_files

Shape = tuple[int, ...]
Progress = Callable[[int], None]  # called with the number of bytes done so far


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        tensors: tensors by name, mapped from their files: shape and dtype cost nothing, values are read when they are
            used and take no memory that the system cannot have back. They must not be written to.
        files: weight files in order of name.
        config: content of the folder's ``config.json``; None without one.
        scheduler: content of ``scheduler_config.json`` beside it; None without one.
        notes: sentences for people on what was unwrapped, left out and ignored.
    """

    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]
    config: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def shapes(self) -> dict[str, Shape]:
        """Return the shape of every tensor by its name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def file_names(self) -> tuple[str, ...]:
        """Return the names of the weight files, each with its folder where they are in several."""
        several = len({path.parent for path in self.files}) > 1
        return tuple(f"{path.parent.name}/{path.name}" if several else path.name for path in self.files)

    def file_bytes(self) -> int:
        """Return the size of the weight files, which is what :meth:`sha256` counts up to."""
        return sum(path.stat().st_size for path in self.files)

    def sha256(self, progress: Progress | None = None) -> str:
        """Return the hash of the weight files.

        For one file it is what ``sha256sum FILE`` prints. For shards it is the hash of what ``sha256sum`` prints for
        all of them in order of name: ``(cd FOLDER && LC_ALL=C sha256sum SHARDS | sha256sum)``.

        Args:
            progress: function that is called with the number of bytes hashed so far.

        Raises:
            CheckpointError: a file cannot be read any more.
        """
        done, lines = 0, []
        for path, name in zip(self.files, self.file_names(), strict=True):
            digest = hashlib.sha256()
            with unreadable(path), regular(path).open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(done)
            lines.append(f"{digest.hexdigest()}  {name}\n")
        if len(lines) == 1:
            return lines[0].split()[0]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def open_checkpoint(path: Path, weights: str | None = None) -> Checkpoint:
    """Open a checkpoint; run no code from it and read no values.

    Args:
        path: a ``.ckpt``, ``.pt``, ``.pth``, ``.bin`` or ``.safetensors`` file, a sharded set (its index, its folder or
            one of its shards), or a Hugging Face folder.
        weights: name of the set to take where the file holds several, such as ``ema`` or ``model``; None = the EMA.

    Raises:
        CheckpointError: it cannot be opened; the message says which file, what was expected and what to do.
    """
    found = find_files(path)
    tree = read_weights(found.weights[0]) if found.shards is None else _merge(found.weights, found.shards)
    try:
        tensors, notes = unwrap(tree, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(tensors, found.weights, found.config, found.scheduler, notes)


def _merge(files: tuple[Path, ...], shards: Mapping[str, Path]) -> dict[Any, Any]:
    """Return the content of all shards, each of which must hold what the index says."""
    merged: dict[Any, Any] = {}
    problems: list[str] = []
    for path in files:
        tree = read_weights(path)
        listed = {name for name, shard in shards.items() if shard == path}
        problems += [f"{name} should be in {path.name} and is not" for name in sorted(listed - set(tree))]
        problems += [f"{name} is in {path.name} and should not be" for name in map(str, tree) if name not in listed]
        merged.update(tree)
    if problems:
        raise CheckpointError(
            f"{files[0].parent}: the shards do not hold what their index says: {first_of(problems, '; ')};"
            " expected index and shards of one download: fetch them again"
        )
    return merged
