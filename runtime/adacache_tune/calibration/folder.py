"""The folder of a calibration, whose records and runs are used again where all that they depend on is the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adacache_engines.errors import InputError
from adacache_runtime.media.files import writing
from adacache_runtime.media.reading import parse_json, read_bytes

SETTINGS = "settings.json"


def begin(folder: Path, settings: Mapping[str, Any], force: bool) -> None:
    """Make the folder, or check that it holds this calibration.

    Args:
        folder: the calibration's folder; the folder around it exists.
        settings: everything that records and runs depend on, as JSON.
        force: whether to delete what the folder holds.

    Raises:
        InputError: the folder holds another calibration (the message says what differs), is damaged or cannot be used.
    """
    path, wanted = folder / SETTINGS, json.loads(json.dumps(settings))
    try:
        folder.mkdir(exist_ok=True)
        if force:
            for old in (*folder.glob("record-*.npz"), *folder.glob("runs-*.jsonl"), path):
                old.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be used: {error.strerror or error}; choose another -o") from error
    try:
        before = parse_json(read_bytes(path, "settings")) if path.exists() else None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); give --force to begin anew") from error
    if before is None:
        with writing(path) as file:
            file.write(json.dumps(settings, indent=1).encode())
    elif not isinstance(before, dict):
        raise InputError(f"{path} is damaged (it is no object); give --force to begin anew")
    elif before != wanted:
        changed = [key for key in {**before, **wanted} if before.get(key) != wanted.get(key)]
        raise InputError(
            f"{folder} holds another calibration (other {', '.join(changed)}); give --force to begin anew, or another "
            "-o"
        )
