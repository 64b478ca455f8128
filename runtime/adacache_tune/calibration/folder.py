"""The folder of a calibration: its records and runs are taken up again only where all they follow from is the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adacache_engines.errors import InputError
from adacache_runtime.media.files import writing

SETTINGS = "settings.json"


def begin(folder: Path, settings: Mapping[str, Any], force: bool) -> None:
    """Has the folder there, and sees that what it holds is of this calibration.

    Args:
        folder: in a folder that is there.
        settings: all that records and runs follow from, as JSON.
        force: what is there is deleted.

    Raises:
        InputError: the folder is of another calibration (says what differs), is damaged, or cannot be used.
    """
    path, wanted = folder / SETTINGS, json.loads(json.dumps(settings))
    try:
        folder.mkdir(exist_ok=True)
        if force:
            for old in (*folder.glob("record-*.npz"), *folder.glob("runs-*.jsonl"), path):
                old.unlink(missing_ok=True)
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except OSError as error:
        raise InputError(f"{folder} cannot be used: {error.strerror or error}; choose another -o") from error
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
