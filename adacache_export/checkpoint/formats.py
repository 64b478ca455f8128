"""The formats of one weight file, read as memory-mapped tensors by name and never by running code.

There are two: safetensors, and the zip archive that ``torch.save`` writes. Both are mapped, so that a tensor costs no
memory of its own; its pages are read from the file when it is used.
"""

import json
import pickle
import stat
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from adacache_engines.bundle.plain_values import problem_in
from adacache_engines.errors import CheckpointError
from adacache_engines.printable import first_of, is_plain, printable

MOST_JSON_NBYTES = 64 << 20  # of a configuration, an index of shards, or a header of safetensors
LONGEST_NAME = 500  # characters of a tensor's name
ZIP_MAGIC, PICKLE_MAGIC, LFS_MAGIC = b"PK\x03\x04", b"\x80", b"version https://git-lfs"
RESAVE = "load it where you trust its author, and save the tensors alone with safetensors.torch.save_file(state_dict)"


def read_weights(path: Path) -> Mapping[Any, Any]:
    """Return the content of a file: tensors by name for safetensors, the mapping that was saved for a torch archive.

    Raises:
        CheckpointError: the file cannot be read, is damaged, is of another format, or would have to run code.
    """
    with regular(path).open("rb") as file:
        start = file.read(64)
    if start.startswith(ZIP_MAGIC):
        if path.suffix == ".safetensors":  # torch.load would go by the name
            raise CheckpointError(f"{path} is a zip archive, not safetensors: rename it to .pt if torch.save wrote it")
        return _named(path, _read_archive(path))
    if start.startswith(LFS_MAGIC):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`")
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _named(path, _read_safetensors(path))
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
    with unreadable(path), regular(path).open("rb") as file:
        data = file.read(MOST_JSON_NBYTES + 1)
    if len(data) > MOST_JSON_NBYTES:
        raise CheckpointError(f"{path} has more than {MOST_JSON_NBYTES >> 20} MB, which is no configuration or index")
    try:
        value = json.loads(data)
        problem = problem_in(value, finite=False)  # schedulers have infinite limits
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({printable(error)}): download or copy it again") from error
    if problem is not None:
        raise CheckpointError(f"{path}: {problem}: check where this checkpoint comes from")
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}; expected an object, {{...}}")
    return value


def regular(path: Path) -> Path:
    """Return a path if it is that of a file, or of a link to one.

    Raises:
        CheckpointError: it is something else. To open a pipe would wait for who writes into it, for ever.
    """
    with unreadable(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is no file; expected a file, or a link to one: check the path")
    return path


def _named(path: Path, tree: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Check that the names in a file can be shown, since messages repeat them."""
    for name in tree:
        if isinstance(name, str) and (len(name) > LONGEST_NAME or not is_plain(name)):
            raise CheckpointError(
                f"{path} has a name of {len(name)} characters, {printable(name, 60)!r}; expected names of tensors, of "
                f"at most {LONGEST_NAME} plain characters: check where this checkpoint comes from"
            )
    return tree


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Turn an error of the system into one that names the file it could not read."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MOST_JSON_NBYTES:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: its header would have {length} bytes, and those of real models"
            f" have less than {MOST_JSON_NBYTES >> 20} MB: download or copy it again"
        )
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    except Exception as error:  # the library's errors have no common base of their own
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({printable(error)}); expected a header and all tensors that it"
            " names: download or copy it again"
        ) from error


def _read_archive(path: Path) -> Mapping[Any, Any]:
    try:
        records = _check_archive(path)
        tree = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged pickles raise anything: KeyError, IndexError, UnicodeDecodeError, ...
        raise _archive_error(path, error) from error
    if not isinstance(tree, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(tree).__name__}; expected names and tensors, as of torch.save(model.state_dict())"
        )
    if Counter(_storages(tree).values()) - Counter(records):
        raise CheckpointError(
            f"{path} is not a whole torch archive: a tensor has more or fewer bytes than are stored for it; expected"
            " what torch.save(state_dict) writes: download or copy it again"
        )
    return tree


def _storages(tree: object) -> dict[int, int]:
    """Return the sizes in bytes of all tensors' memory, each once, by its address; torch maps them unchecked."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    left = [tree]
    while left:
        value = left.pop()
        if isinstance(value, torch.Tensor) and value.layout is torch.strided:
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, Mapping) else value
    return {address: nbytes for address, nbytes in found.items() if nbytes}


def _check_archive(path: Path) -> list[int]:
    """Check that every member is stored as it is, and in this machine's byte order; return their sizes in bytes.

    torch maps members without looking, and would take packed bytes for values. Values in the other byte order it would
    turn around in memory, which then is more than a map of the file.
    """
    with zipfile.ZipFile(path) as archive:
        packed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
        sizes = [member.file_size for member in archive.infolist()]
        orders = [name for name in archive.namelist() if name.rpartition("/")[2] == "byteorder"]
        order = ""
        if orders and not packed:
            with archive.open(orders[0]) as member:  # it holds a word, or whatever its author wanted to be shown
                order = printable(member.read(64).decode(errors="replace"), 20)
    if packed:
        raise CheckpointError(
            f"{path}: {printable(packed[0])} in it is compressed, so it cannot be memory-mapped; expected an archive"
            " written by torch.save: unpack it if it is a zip around the checkpoint"
        )
    if order not in (sys.byteorder, ""):
        raise CheckpointError(
            f"{path} was saved with {order} numbers, which cannot be memory-mapped here; expected {sys.byteorder}:"
            " save it again as safetensors, which have one byte order"
        )
    return sizes


def _archive_error(path: Path, error: Exception) -> CheckpointError:
    code = _code_in(path) if isinstance(error, pickle.UnpicklingError) else []
    if code:
        return CheckpointError(
            f"{path} needs code to be run to be opened ({first_of(code, ', ')}), so it is refused; expected tensors,"
            f" numbers and text only: {RESAVE}"
        )
    # torch's own advice, that of switching the protection off, is cut
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0] or type(error).__name__
    return CheckpointError(
        f"{path} is not a whole torch archive of tensors ({printable(reason)}); expected what torch.save(state_dict)"
        " writes: download or copy it again"
    )


def _code_in(path: Path) -> list[str]:
    """Return the names of functions and classes in a torch archive, other than those of tensors; run none of them."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # too damaged to tell
        return []
