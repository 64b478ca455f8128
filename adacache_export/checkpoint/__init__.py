"""Opens a checkpoint of any supported layout, memory-mapped, and checks it against what a model needs."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint.containers import unwrap
from adacache_export.checkpoint.formats import read_weights, unreadable
from adacache_export.checkpoint.layout import find_files
from adacache_export.checkpoint.mapped import give_back

Shape = tuple[int, ...]
Progress = Callable[[int], None]  # called with the bytes done so far

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SCAN_VALUES = 1 << 20  # values looked at together: a few MB
CONSTANT_TOLERANCE = 2.0**-8  # relative; bfloat16's rounding
SHOWN = 12


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        tensors: name -> tensor mapped from its file: its shape and dtype cost nothing, its values are read when used
            and take no memory that the system cannot have back. Not to be written to.
        files: the weight files, in order of name.
        config: ``config.json`` of a folder, None without one.
        scheduler: ``scheduler_config.json`` beside it, None without one.
        notes: what was unwrapped, left and ignored, for people.
    """

    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]
    config: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def shapes(self) -> dict[str, Shape]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def file_bytes(self) -> int:
        """Size of the weight files, to measure ``progress`` of :meth:`sha256` against."""
        return sum(path.stat().st_size for path in self.files)

    def sha256(self, progress: Progress | None = None) -> str:
        """Of one weights file, what ``sha256sum FILE`` prints; of shards, that of ``sha256sum`` of all of them in
        order of name: ``(cd FOLDER && LC_ALL=C sha256sum SHARDS | sha256sum)``.

        Raises:
            CheckpointError: a file cannot be read any more.
        """
        done, lines = 0, []
        for path in self.files:
            digest = hashlib.sha256()
            with unreadable(path), path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(done)
            lines.append(f"{digest.hexdigest()}  {path.name}\n")
        if len(lines) == 1:
            return lines[0].split()[0]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def open_checkpoint(path: Path, weights: str | None = None) -> Checkpoint:
    """Opens a ``.ckpt``, ``.pt``, ``.pth``, ``.bin`` or ``.safetensors`` file, a sharded set (its index, folder or one
    shard) or a Hugging Face folder. Runs no code from it and reads no values.

    Args:
        path: the file or folder.
        weights: which set to take where the file holds several, such as ``ema`` or ``model``; by default the EMA.

    Raises:
        CheckpointError: it cannot be opened; says which file, what was expected and what to do.
    """
    found = find_files(path)
    tree = read_weights(found.weights[0]) if found.shards is None else _merge(found.weights, found.shards)
    try:
        tensors, notes = unwrap(tree, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(tensors, found.weights, found.config, found.scheduler, notes)


def _merge(files: tuple[Path, ...], shards: Mapping[str, Path]) -> dict[Any, Any]:
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
            f"{files[0].parent}: the shards do not hold what their index says: {_first(problems, '; ')};"
            " expected index and shards of one download: fetch them again"
        )
    return merged


def check(
    checkpoint: Checkpoint,
    expected: Mapping[str, Shape],
    optional: Collection[str] = (),
    constants: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> None:
    """Compares a checkpoint with what a model needs and reads every value once.

    Args:
        checkpoint: what to check.
        expected: name -> shape of the tensors that the model has.
        optional: names that may be missing.
        constants: tensors that the model computes itself; where the checkpoint has them too, they must agree.
        progress: called with the bytes scanned so far, as it goes.

    Raises:
        CheckpointError: lists all problems: missing, unexpected and mis-shaped tensors, tensors that are not of a
            floating-point type, values that are NaN or infinite, constants that differ.
    """
    tensors = checkpoint.tensors
    groups = {
        "missing": [
            f"{name}, expected {shape}"
            for name, shape in expected.items()
            if name not in tensors and name not in optional
        ],
        "unexpected": [
            f"{name} {tuple(tensors[name].shape)}" for name in tensors if name not in expected and name not in optional
        ],
        "of another shape": [
            f"{name} is {tuple(tensors[name].shape)}, expected {shape}"
            for name, shape in expected.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ],
        "not of a floating-point type that weights have": [
            f"{name} is {_name(tensors[name].dtype)}, expected float32, float16, bfloat16 or float64"
            for name in expected
            if name in tensors and tensors[name].dtype not in FLOATS
        ],
        "with NaN or infinite values": [],
        "unlike the constant that the model computes": [],
    }
    done = 0
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is None or tuple(tensor.shape) != shape or tensor.dtype not in FLOATS:
            continue
        nan, infinite = _count_non_finite(tensor)
        if nan or infinite:
            groups["with NaN or infinite values"].append(
                f"{name} has {nan} NaN and {infinite} infinite of {tensor.numel()} values"
            )
        elif constants is not None and name in constants:
            wanted = constants[name].double()
            off = float(((tensor.double() - wanted).abs() / wanted.abs()).max())
            if not off <= CONSTANT_TOLERANCE:
                groups["unlike the constant that the model computes"].append(f"{name} is off by {off:.3g} relative")
        give_back(tensor)
        done += tensor.nbytes
        if progress is not None:
            progress(done)
    if any(groups.values()):
        raise CheckpointError(_report(checkpoint, len(expected), groups))


def _report(checkpoint: Checkpoint, wanted: int, groups: Mapping[str, list[str]]) -> str:
    where = str(checkpoint.files[0]) if len(checkpoint.files) == 1 else f"{checkpoint.files[0].parent} (shards)"
    lines = [f"{where} does not fit the model, which has {wanted} tensors:"]
    for title, problems in groups.items():
        if problems:
            lines += [f"  {len(problems)} {'tensor' if len(problems) == 1 else 'tensors'} {title}:"]
            lines += [f"    {_first(problems, chr(10) + '    ')}"]
    lines += [f"  note: {note}" for note in checkpoint.notes]
    lines += ["Pass the whole checkpoint of one model (and its own config.json), or download it again."]
    return "\n".join(lines)


def _count_non_finite(tensor: Tensor) -> tuple[int, int]:
    """How many values are NaN, and how many infinite."""
    nan = infinite = 0
    for chunk in _chunks(tensor):
        low, high = torch.aminmax(chunk)  # carries a NaN, and needs no memory
        if not (torch.isfinite(low) and torch.isfinite(high)):
            nan += int(chunk.isnan().sum())
            infinite += int(chunk.isinf().sum())
    return nan, infinite


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """All values of a tensor in flat pieces that share its memory."""
    if tensor.is_contiguous() or tensor.dim() <= 1:
        yield from (chunk for chunk in torch.split(tensor.reshape(-1), SCAN_VALUES) if chunk.numel())
    else:
        for row in tensor:
            yield from _chunks(row)


def _first(texts: list[str], separator: str) -> str:
    more = [f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    return separator.join([*texts[:SHOWN], *more])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
