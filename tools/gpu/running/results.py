"""The results of a check as files: whatever is written is whole, and outlives the process that wrote it.

A folder has, for each phase, ``NAME.json``, the record of how it ended and of its results; ``NAME.part.json``, the
results of a phase that is under way; and ``NAME.log``, what its process printed.
"""

import json
import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PART = ".part.json"
# How a phase ended: well; by an error or a signal; by its cap; it never began; the check itself was ended during it.
DONE, FAILED, CAPPED, SKIPPED, BROKEN_OFF = "done", "failed", "ended by its cap", "skipped", "broken off"

Record = dict[str, Any]


class Report:
    """The results of a phase under way, which are kept in a file piece by piece.

    Args:
        file: file that is written by :meth:`keep`.

    Attributes:
        told: results, as JSON can hold them.
    """

    def __init__(self, file: Path) -> None:
        self.told: dict[str, Any] = {}
        self._file = file
        self._failures: list[dict[str, str]] = []
        self._skips: list[dict[str, str]] = []

    def failed(self, what: str, why: BaseException | str) -> None:
        """Keep that a part of the phase failed, while the phase goes on; an error's traceback goes to the log."""
        if isinstance(why, BaseException):
            traceback.print_exception(why)
        self._failures.append({"what": what, "why": reason(why)})
        self.keep()

    def skipped(self, what: str, why: BaseException | str) -> None:
        """Keep that a part of the phase cannot be had here, which is no failure."""
        self._skips.append({"what": what, "why": reason(why)})
        self.keep()

    def keep(self, complete: bool = False) -> None:
        """Write all results so far; ``complete`` says that no more follow."""
        found = {"complete": complete, "told": self.told, "failures": self._failures, "skips": self._skips}
        write_json(self._file, found)


def reason(why: BaseException | str) -> str:
    """Return an error as a line of text with its kind."""
    return why if isinstance(why, str) else f"{type(why).__name__}: {why}"


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write a file that is never seen half-written."""
    write_text(file, json.dumps(value, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a file that is never seen half-written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def read(folder: Path) -> dict[str, Record]:
    """Return the records of a folder by phase, in the order in which the phases began.

    The record of a phase during which the check itself was ended has what the phase had kept until then.
    """
    records = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("[!.]*.json")]
    found: dict[str, Record] = {one["phase"]: one for one in records if "phase" in one}
    for name, record in found.items():
        if record["status"] == BROKEN_OFF:
            record |= read_part(folder, name)
    return dict(sorted(found.items(), key=lambda item: float(item[1]["began"])))


def read_part(folder: Path, name: str) -> Record:
    """Return the results that a phase has kept so far; empty where it has kept nothing."""
    file = folder / (name + PART)
    kept: Record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return kept
