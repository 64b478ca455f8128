"""The comparison of a checkpoint with what a model needs, which lists every problem at once."""

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from adacache_engines.errors import CheckpointError
from adacache_engines.printable import first_of
from adacache_export.checkpoint.mapped import give_back
from adacache_export.checkpoint.opened import Checkpoint, Progress, Shape

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SCAN_VALUES = 1 << 20  # values that are looked at together: a few MB
CONSTANT_TOLERANCE = 2.0**-8  # relative; rounding of bfloat16


def check(
    checkpoint: Checkpoint,
    expected: Mapping[str, Shape],
    optional: Collection[str] = (),
    constants: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> None:
    """Compare a checkpoint with what a model needs, and read every value once.

    Args:
        checkpoint: checkpoint to check.
        expected: shapes of the tensors that the model has, by name.
        optional: names of tensors that may be missing.
        constants: tensors that the model computes itself; where the checkpoint has them too, they must agree.
        progress: function that is called with the number of bytes read so far.

    Raises:
        CheckpointError: lists all problems: tensors that are missing, unexpected, of another shape or not of a
            floating-point type, values that are NaN or infinite, and constants that differ.
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
    folders = " and ".join(dict.fromkeys(str(file.parent) for file in checkpoint.files))
    where = str(checkpoint.files[0]) if len(checkpoint.files) == 1 else f"{folders} ({len(checkpoint.files)} files)"
    lines = [f"{where} does not fit the model, which has {wanted} tensors:"]
    for title, problems in groups.items():
        if problems:
            lines += [f"  {len(problems)} {'tensor' if len(problems) == 1 else 'tensors'} {title}:"]
            lines += [f"    {first_of(problems, chr(10) + '    ')}"]
    lines += [f"  note: {note}" for note in checkpoint.notes]
    lines += ["Pass the whole checkpoint of one model (and its own config.json), or download it again."]
    return "\n".join(lines)


def _count_non_finite(tensor: Tensor) -> tuple[int, int]:
    """Return how many values of a tensor are NaN, and how many are infinite."""
    nan = infinite = 0
    for chunk in _chunks(tensor):
        low, high = torch.aminmax(chunk)  # carries a NaN, and needs no memory
        if not (torch.isfinite(low) and torch.isfinite(high)):
            nan += int(chunk.isnan().sum())
            infinite += int(chunk.isinf().sum())
    return nan, infinite


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Yield all values of a tensor in flat pieces that share its memory."""
    if tensor.is_contiguous() or tensor.dim() <= 1:
        yield from (chunk for chunk in torch.split(tensor.reshape(-1), SCAN_VALUES) if chunk.numel())
    else:
        for row in tensor:
            yield from _chunks(row)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
