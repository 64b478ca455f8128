"""Run the phases of a check one after another within a budget; whatever happens to one, the others' results stay."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.gpu.running.phase import Phase, cap_within
from tools.gpu.running.processes import Ended, run_module
from tools.gpu.running.results import (
    BROKEN_OFF,
    CAPPED,
    DONE,
    FAILED,
    PART,
    SKIPPED,
    Record,
    read,
    read_part,
    write_json,
)

CLOSING_S = 3.0  # of a budget, to end the last phase and to write the report
LIBRARIES = "libraries"  # the phase that finds out which backends are usable, and why the others are not
TRIED = (FAILED, CAPPED, BROKEN_OFF)

Launch = Callable[[str, Mapping[str, Any], Path, Path, float], Ended]


def run_phases(
    phases: Sequence[Phase],
    folder: Path,
    budget_s: float,
    clock: Callable[[], float] = time.monotonic,
    launch: Launch = run_module,
    on_record: Callable[[Record], None] = lambda _: None,
) -> None:
    """Run all phases that are not done; :func:`tools.gpu.running.results.read` returns the records that they leave.

    Args:
        phases: phases in their order.
        folder: folder of the records; a phase that was done there with the same arguments is not run again.
        budget_s: seconds for all of them; infinity where there is no limit.
        clock: tells the time in seconds.
        launch: runs a phase's module, as :func:`tools.gpu.running.processes.run_module` does.
        on_record: gets the record of each phase, as soon as it is written.
    """
    end_s = clock() + budget_s - CLOSING_S
    pending = remaining(phases, read(folder))
    for index, phase in enumerate(pending):
        records = read(folder)
        left_s = end_s - clock()
        later = [one for one in pending[index + 1 :] if missing_backend(one, records) is None]
        cap_s = cap_within(phase, later, left_s)
        record: Record = {
            "phase": phase.name,
            "shows": phase.shows,
            "arguments": dict(phase.arguments),
            "began": time.time(),
            "cap_s": cap_s,
        }
        why = lacking(phase, records)
        if why is None and cap_s is None:
            why = f"it takes {phase.least_s:.0f} s at least, and {max(left_s, 0):.0f} s of the budget are left"
        if why is not None or cap_s is None:
            record |= {"status": SKIPPED, "why": why}
            if _status(records, phase.name) not in TRIED:  # what was found before is worth more
                write_json(folder / f"{phase.name}.json", record)
        else:
            record["earlier"] = _earlier(records.get(phase.name))
            record |= _run(phase, folder, cap_s, record, launch)
        on_record(record)


def _run(phase: Phase, folder: Path, cap_s: float, record: Record, launch: Launch) -> Record:
    """Run a phase, and write its record, before it begins and when it has ended; return what is new in it."""
    file, part = folder / f"{phase.name}.json", folder / (phase.name + PART)
    part.unlink(missing_ok=True)
    write_json(file, {**record, "status": BROKEN_OFF, "why": "the check was ended during it"})
    ended = launch(phase.module, phase.arguments, part, folder / f"{phase.name}.log", cap_s)
    kept = read_part(folder, phase.name)
    new = kept | outcome(ended, kept)
    write_json(file, record | new)
    part.unlink(missing_ok=True)
    return new


def remaining(phases: Sequence[Phase], records: Mapping[str, Record]) -> list[Phase]:
    """Return the phases that are not done, those that were tried in vain last, unless others come after them."""
    needed = {name for phase in phases for name in phase.after}
    left = [phase for phase in phases if not is_done(phase, records.get(phase.name))]
    return sorted(left, key=lambda phase: phase.name not in needed and _status(records, phase.name) in TRIED)


def is_done(phase: Phase, record: Record | None) -> bool:
    """Return whether a record is that of the same phase, which ended well and whose files are still there.

    What is installed is looked at in every check, since a package can come between two of them.
    """
    same = record is not None and record["status"] == DONE and record["arguments"] == dict(phase.arguments)
    return same and phase.name != LIBRARIES and (not phase.leaves or Path(phase.leaves).exists())


def lacking(phase: Phase, records: Mapping[str, Record]) -> str | None:
    """Return what a phase needs and has not, or None where it may begin."""
    undone = [name for name in phase.after if _status(records, name) != DONE]
    return f"it needs {undone[0]}, which is not done" if undone else missing_backend(phase, records)


def missing_backend(phase: Phase, records: Mapping[str, Record]) -> str | None:
    """Return why a backend that a phase needs cannot be used; a backend of which nothing is known is tried."""
    unusable = records.get(LIBRARIES, {}).get("told", {}).get("unusable", {})
    missing = [backend for backend in phase.backends if backend in unusable]
    return f"it needs {missing[0]}: {unusable[missing[0]]}" if missing else None


def outcome(ended: Ended, part: Record) -> Record:
    """Return how a phase ended whose process has ended: status, seconds, and the reason if it is not done."""
    told: Record = {"seconds": ended.seconds}
    if part.get("complete"):
        # what the process did after its last result is worth knowing, and takes nothing from the results
        note = _end(ended) if ended.status != 0 else ""
        return {**told, "status": DONE, **({"note": f"after its results, {note}"} if note else {})}
    return {**told, "status": CAPPED if ended.capped else FAILED, "why": _end(ended), "said": ended.said}


def is_well(record: Record) -> bool:
    """Return whether nothing went wrong in a phase; that it was skipped is not wrong."""
    return record["status"] in (DONE, SKIPPED) and not record.get("failures") and "note" not in record


def _end(ended: Ended) -> str:
    if ended.capped:
        stays = "; its process cannot be killed" if ended.status is None else ""
        return f"it was ended after {ended.seconds:.0f} s{stays}"
    if ended.status is not None and ended.status < 0:
        return f"its process was ended by {signal.Signals(-ended.status).name}"
    return f"its process ended with status {ended.status}"


def _status(records: Mapping[str, Record], name: str) -> str | None:
    return records[name]["status"] if name in records else None


def _earlier(record: Record | None) -> list[Record]:
    """Return all earlier records of a phase but those of times when it was skipped."""
    if record is None:
        return []
    one = {key: value for key, value in record.items() if key != "earlier"}
    return [*record.get("earlier", []), *([] if record["status"] == SKIPPED else [one])]
