"""The files that make up a checkpoint: a single file, a sharded set, or a Hugging Face folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from adacache_engines.errors import CheckpointError
from adacache_engines.printable import first_of
from adacache_export.checkpoint.formats import read_json, unreadable

CONFIG, SCHEDULER, INDEX = "config.json", "scheduler_config.json", ".index.json"
WEIGHTS = (  # in order of preference where a folder has several
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
SHARD = re.compile(r".+-\d{5}-of-\d{5}\.\w+")
INDEXES = (f"*{INDEX}", "*.index.*.json")  # names of indexes; the latter are those of a variant, such as fp16


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of a checkpoint.

    Attributes:
        weights: the one file, or the shards in order of name.
        shards: path of the shard that has a tensor, by the tensor's name; None without an index.
        config, scheduler: content of the folder's JSON files; None where it has none.
    """

    weights: tuple[Path, ...]
    shards: Mapping[str, Path] | None = None
    config: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None


def find_files(path: Path) -> CheckpointFiles:
    """Return the files that belong to the checkpoint at ``path``: a weights file, an index, a shard or a folder.

    A ``config.json`` beside the weights belongs to them where they have a standard name, are sharded, or are the only
    weights of the folder. Beside several weights files, one of which the user named, it may belong to another model.

    Raises:
        CheckpointError: nothing is there, something is missing, or an index is invalid.
    """
    with unreadable(path):
        if path.is_dir():
            return _find_in_folder(path)
        if not path.exists():
            raise CheckpointError(f"{path} does not exist; expected a checkpoint file or folder: check the path")
    if path.suffix == ".json":
        return _with_configs(path.parent, _read_index(path))
    if path.name in WEIGHTS:
        return _with_configs(path.parent, CheckpointFiles((path,)))
    if SHARD.fullmatch(path.name):
        return _with_configs(path.parent, _find_siblings(path))
    found = CheckpointFiles((path,))
    return _with_configs(path.parent, found) if _is_alone(path) else found


def _find_in_folder(folder: Path) -> CheckpointFiles:
    found = _weights_in(folder)
    if found and (found.shards or (folder / CONFIG).exists()):
        return _with_configs(folder, found)
    nested = folder / "transformer"
    if not found and nested.is_dir():
        return _with_configs(nested, _find_in_folder(nested), folder / "scheduler" / SCHEDULER)
    names = sorted(child.name for child in folder.iterdir())
    files = [path.name for path in weights_files(folder)]
    inside = (CONFIG, *WEIGHTS, *(name + INDEX for name in WEIGHTS))
    folders = [name for name in names if any((folder / name / file).exists() for file in inside)]
    if (folder / CONFIG).exists():
        lacks = f"{CONFIG} but no weights"
    else:
        lacks = f"neither {CONFIG} with weights nor a *{INDEX}" if names else "no files"
    instead = ", ".join([*files, *(f"{name}/" for name in folders)][:12])
    raise CheckpointError(
        f"{folder} has {lacks}; expected {CONFIG} and one of {', '.join(WEIGHTS)} (or its {INDEX} and shards): "
        + (f"pass one of these in it instead: {instead}" if instead else "check the path, or download it again")
    )


def _weights_in(folder: Path) -> CheckpointFiles | None:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return CheckpointFiles((folder / name,))
        if (folder / (name + INDEX)).is_file():
            return _read_index(folder / (name + INDEX))
    indexes = _indexes_in(folder)
    if len(indexes) == 1:
        return _read_index(indexes[0])
    files = weights_files(folder)
    return CheckpointFiles((files[0],)) if len(files) == 1 and (folder / CONFIG).exists() else None


def _indexes_in(folder: Path) -> list[Path]:
    return sorted(path for pattern in INDEXES for path in folder.glob(pattern))


def weights_files(folder: Path) -> list[Path]:
    """Return the files of a folder that may hold weights, in order of name."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))


def _is_alone(path: Path) -> bool:
    with unreadable(path.parent):
        return weights_files(path.parent) == [path]


def _with_configs(folder: Path, found: CheckpointFiles, scheduler: Path | None = None) -> CheckpointFiles:
    def read(path: Path) -> dict[str, Any] | None:
        return read_json(path) if path.is_file() else None

    schedulers = (read(path) for path in (folder / SCHEDULER, scheduler) if path is not None)
    return CheckpointFiles(
        found.weights, found.shards, read(folder / CONFIG), next((value for value in schedulers if value), None)
    )


def _find_siblings(shard: Path) -> CheckpointFiles:
    for index in _indexes_in(shard.parent):
        found = _read_index(index)
        if shard in found.weights:
            return found
    raise CheckpointError(
        f"{shard} is one shard of several, and no *{INDEX} beside it names it; expected the index that lists all"
        " shards: put it into the same folder"
    )


def _read_index(path: Path) -> CheckpointFiles:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{path} has no weight_map; expected an index of shards ({{'weight_map': {{tensor: file}}}}):"
            " pass the weights file or their folder instead"
        )
    files = set(map(str, weight_map.values()))
    outside = sorted(name for name in files if not _is_plain(name))
    if outside:
        raise CheckpointError(
            f"{path} names files outside its folder ({first_of(outside, ', ')}), which are not followed;"
            " expected plain file names: check where this checkpoint comes from"
        )
    missing = sorted(name for name in files if not (path.parent / name).is_file())
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(files)} shards are missing beside it ({first_of(missing, ', ')}): download"
            " them"
        )
    shards = {tensor: path.parent / str(name) for tensor, name in weight_map.items()}
    return CheckpointFiles(tuple(path.parent / name for name in sorted(files)), shards)


def _is_plain(name: str) -> bool:
    """Whether a name is one in the folder itself. It may be a link, as download caches store shards."""
    pure = PurePosixPath(name), PureWindowsPath(name)
    return name not in ("", ".", "..") and "\0" not in name and all(path.name == name for path in pure)
