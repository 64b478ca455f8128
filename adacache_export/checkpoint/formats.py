"""The formats of one weight file, read as memory-mapped tensors by name and never by running code.

There are two: safetensors, and the zip archive that ``torch.save`` writes. Both are mapped, so that a tensor costs no
memory of its own; its pages are read from the file when it is used.
"""

import json
import pickle
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from adacache_engines.errors import CheckpointError

ZIP_MAGIC, PICKLE_MAGIC, LFS_MAGIC = b"PK\x03\x04", b"\x80", b"version https://git-lfs"
RESAVE = "load it where you trust its author, and save the tensors alone with safetensors.torch.save_file(state_dict)"


def read_weights(path: Path) -> Mapping[Any, Any]:
    """Return the content of a file: tensors by name for safetensors, the mapping that was saved for a torch archive.

    Raises:
        CheckpointError: the file cannot be read, is damaged, is of another format, or would have to run code.
    """
    with unreadable(path), path.open("rb") as file:
        start = file.read(64)
    if start.startswith(ZIP_MAGIC):
        if path.suffix == ".safetensors":  # torch.load would go by the name
            raise CheckpointError(f"{path} is a zip archive, not safetensors: rename it to .pt if torch.save wrote it")
        return _read_archive(path)
    if start.startswith(LFS_MAGIC):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`")
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _read_safetensors(path)
    if start.startswith(PICKLE_MAGIC):
        raise CheckpointError(
            f"{path} is a bare pickle (as PyTorch before 1.6 wrote), which can run any code when it is opened, so it is"
            f" refused; expected the zip format of torch.save, or safetensors: {RESAVE}"
        )
    what = "is empty" if not start else f"begins with {start[:8]!r}"
    raise CheckpointError(
        f"{path} {what}; expected a zip archive of torch.save (.ckpt, .pt, .pth, .bin) or .safetensors:"
        " download or copy it again"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    try:
        with unreadable(path):
            value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): download or copy it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}; expected an object, {{...}}")
    return value


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Turn an error of the system into one that names the file it could not read."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    except Exception as error:  # the library's errors have no common base of their own
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); expected a header and all tensors that it names:"
            " download or copy it again"
        ) from error


def _read_archive(path: Path) -> Mapping[Any, Any]:
    try:
        _check_archive(path)
        tree = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged pickles raise anything: KeyError, IndexError, UnicodeDecodeError, ...
        raise _archive_error(path, error) from error
    if not isinstance(tree, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(tree).__name__}; expected names and tensors, as of torch.save(model.state_dict())"
        )
    return tree


def _check_archive(path: Path) -> None:
    """Check that every member is stored as it is, and in this machine's byte order.

    torch maps members without looking, and would take packed bytes for values. Values in the other byte order it would
    turn around in memory, which then is more than a map of the file.
    """
    with zipfile.ZipFile(path) as archive:
        packed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
        orders = [name for name in archive.namelist() if name.rpartition("/")[2] == "byteorder"]
        order = archive.read(orders[0]).decode(errors="replace") if orders and not packed else ""
    if packed:
        raise CheckpointError(
            f"{path}: {packed[0]} in it is compressed, so it cannot be memory-mapped; expected an archive written by"
            " torch.save: unpack it if it is a zip around the checkpoint"
        )
    if order not in (sys.byteorder, ""):
        raise CheckpointError(
            f"{path} was saved with {order} numbers, which cannot be memory-mapped here; expected {sys.byteorder}:"
            " save it again as safetensors, which have one byte order"
        )


def _archive_error(path: Path, error: Exception) -> CheckpointError:
    code = _code_in(path) if isinstance(error, pickle.UnpicklingError) else []
    if code:
        return CheckpointError(
            f"{path} needs code to be run to be opened ({', '.join(code[:12])}), so it is refused; expected tensors,"
            f" numbers and text only: {RESAVE}"
        )
    # torch's own advice, that of switching the protection off, is cut
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0] or type(error).__name__
    return CheckpointError(
        f"{path} is not a whole torch archive of tensors ({reason}); expected what torch.save(state_dict) writes:"
        " download or copy it again"
    )


def _code_in(path: Path) -> list[str]:
    """Return the names of functions and classes in a torch archive, other than those of tensors; run none of them."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # too damaged to tell
        return []
