"""Check and measure everything that only a GPU can show, in phases that lose nothing of one another.

    python tools/gpu_check.py [--out DIR] [--budget SECONDS] [--only PHASE ...] [--size 480p:2s ...]
    python tools/gpu_check.py --plan              the phases, what each may take and needs
    python tools/gpu_check.py --dry-run           made-up phases that hang, fail and are killed; needs no GPU
    python tools/gpu_check.py --report            gpu.md and gpu.json once more, from the records in --out
    python tools/gpu_check.py --pack DIR [--capability 9.0] [--wheel FILE ...]     for a machine without a registry

Each phase is a process of its own, which is ended at its cap, and its record is in --out as soon as it ends. A second
run with the same --out continues: a phase that is done is not run again, and one that was tried in vain comes last. It
works with any of TensorRT-RTX, TensorRT, onnxruntime-gpu and PyTorch. Numbers in one table are measured in turn.
"""

import argparse
import math
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from adacache_engines.errors import AdaCacheError, InputError
from tools.gpu.phases import LARGE, MACHINE, PRECISIONS, SIZES, STEPS, Setup, phases
from tools.gpu.report import markdown
from tools.gpu.running import dry_run
from tools.gpu.running.phase import Phase, overview
from tools.gpu.running.results import Record, read, write_json, write_text
from tools.gpu.running.runner import is_done, is_well, run_phases

DRY_BUDGET_S = 120.0
RECORDS = "phases"  # folder of the records in --out


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--out", type=Path, metavar="DIR", default=Path("out/gpu"), help="folder of the results (%(default)s)")
    add("--budget", type=float, metavar="SECONDS", help="time for all phases: caps shrink, and the last are skipped")
    add("--only", action="append", metavar="PHASE", default=[], help="phases whose names begin so, with their needs")
    add("--size", action="append", metavar="SIZE:LENGTH", default=[], help=f"repeatable ({', '.join(SIZES)})")
    add("--steps", type=int, metavar="N", default=STEPS, help="calls of a measured generation (%(default)s)")
    add("--bundles", type=Path, metavar="DIR", help="made by --pack; else they are exported here, which takes torch")
    add("--work", type=Path, metavar="DIR", help="folder for bundles and models that phases make (--out with .work)")
    add("--plan", action="store_true", help="print the phases, and stop")
    add("--dry-run", action="store_true", help="run made-up phases, which needs no GPU")
    add("--report", action="store_true", help="write gpu.md and gpu.json from the records that are there, and stop")
    add("--pack", type=Path, metavar="DIR", help="make a folder of parts to copy to another machine, and stop")
    add("--wheel", type=Path, action="append", metavar="FILE", default=[], help="to take along in the pack, repeatable")
    add("--capability", metavar="X.Y", help="the other machine's GPU: the pack has code and plans for no other kind")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 1 where there is no GPU or anything failed, 2 for wrong usage."""
    made = parser()
    options = made.parse_args(arguments)
    try:
        _check(options)
        chosen = _chosen(options)
    except InputError as error:
        made.error(str(error))
    command = shlex.join(["python", "tools/gpu_check.py", *(sys.argv[1:] if arguments is None else arguments)])
    if options.plan:
        print(overview((MACHINE, *chosen)), end="")
        return 0
    if options.pack is not None:
        return _pack(options)
    if options.report:
        return _report(options.out, command)
    budget_s = options.budget or (DRY_BUDGET_S if options.dry_run else math.inf)
    return check(chosen, options.out, budget_s, command, () if options.dry_run else (MACHINE,))


def _check(options: argparse.Namespace) -> None:
    """Check the options.

    Raises:
        InputError: options contradict each other, or name a file or folder that does not exist.
    """
    if options.wheel and options.pack is None:
        raise InputError("--wheel belongs to --pack")
    if options.capability is not None and options.pack is None:
        raise InputError("--capability belongs to --pack")
    if options.budget is not None and options.budget <= 0:
        raise InputError(f"a budget of {options.budget:g} seconds is not possible; give a positive number")
    if options.size:
        from adacache_engines.bundle.shape_profiles import profile_parts  # here: the check itself needs no packages

        for size in options.size:
            if any(".." in part for part in profile_parts(size)):
                raise InputError(f"size {size!r} is a range; a benchmark needs one size, such as 480p:2s")
    for file in options.wheel:
        if not file.is_file() or file.suffix != ".whl":
            raise InputError(f"{file} is not a wheel")
    if options.bundles is not None:
        missing = [name for name in (*PRECISIONS, LARGE) if not (options.bundles / name / "manifest.json").is_file()]
        if missing:
            raise InputError(f"{options.bundles} has no bundle {', '.join(missing)}; make the folder with --pack")


def _chosen(options: argparse.Namespace) -> Sequence[Phase]:
    """Return the phases that the options ask for, in order.

    Raises:
        InputError: no phase has a name that ``--only`` gives.
    """
    out, bundles = options.out.resolve(), options.bundles and options.bundles.resolve()
    work = options.work.resolve() if options.work else out.with_name(f"{out.name}.work")
    given = Setup(out / RECORDS, work, bundles, tuple(options.size) or SIZES, options.steps)
    all_phases = dry_run.PHASES if options.dry_run else phases(given)
    unknown = [name for name in options.only if not any(phase.name.startswith(name) for phase in all_phases)]
    if unknown:
        known = ", ".join(phase.name for phase in all_phases)
        raise InputError(f"no phase is called {', '.join(unknown)}; known: {known}")
    names = {phase.name for phase in all_phases if not options.only or phase.name.startswith(tuple(options.only))}
    for phase in reversed(all_phases):  # what a phase needs comes before it
        names |= set(phase.after) if phase.name in names else set()
    return [phase for phase in all_phases if phase.name in names]


def _pack(options: argparse.Namespace) -> int:
    from tools.gpu.pack.make import pack  # here: it imports what exports bundles

    try:
        pack(options.pack, options.wheel, options.bundles, options.capability)
    except AdaCacheError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 1
    return 0


def check(
    chosen: Sequence[Phase], out: Path, budget_s: float, command: str, first: Sequence[Phase] = (MACHINE,)
) -> int:
    """Run phases, and write the report after each of them; return the exit status.

    Args:
        chosen: the phases.
        out: folder of the results.
        budget_s: seconds for everything.
        command: command that is named in the report.
        first: the phase that describes the machine, or none for a dry run.
    """
    began = time.monotonic()
    folder = out / RECORDS
    for phase in first:
        found = _machine(phase, folder)
        if found is not None:
            print(f"gpu_check: {found}", file=sys.stderr)
            return 1
    for phase in chosen:
        if is_done(phase, read(folder).get(phase.name)):
            print(f"{phase.name}: done before")

    def tell(record: Record) -> None:
        why = record.get("why") or record.get("note") or ""
        failures = [f"{one['what']}: {one['why']}" for one in record.get("failures", [])]
        told = "; ".join(filter(None, (record["status"], why, *failures)))
        print(f"[{time.monotonic() - began:4.0f} s] {record['phase']}: {told}", flush=True)
        _report(out, command)

    try:
        run_phases(chosen, folder, budget_s - (time.monotonic() - began), on_record=tell)
    finally:
        status = _report(out, command)
    return status


def _machine(phase: Phase, folder: Path) -> str | None:
    """Run the phase that describes the machine; return why nothing can be run here, or None where something can.

    Nothing is written where there is no GPU.
    """
    before = read(folder).get(phase.name, {}).get("told", {}).get("gpu")
    with tempfile.TemporaryDirectory(prefix="adacache-gpu-") as name:
        run_phases([phase], Path(name), math.inf)
        record = read(Path(name))[phase.name]
    told: dict[str, Any] = record.get("told", {})
    if "no_gpu" in told:
        return f"this machine has no GPU that can be used, so nothing was run or written: {told['no_gpu']}"
    if before and "gpu" in told and told["gpu"] != before:
        return f"{folder.parent} has results of another GPU, {before['name']}; choose another folder with --out"
    write_json(folder / f"{phase.name}.json", record)
    return None


def _report(out: Path, command: str) -> int:
    """Write gpu.md and gpu.json from all records that are there; return the exit status that they make."""
    records = read(out / RECORDS)
    write_json(out / "gpu.json", {"command": command, "phases": records})
    write_text(out / "gpu.md", markdown(records, command))
    return 0 if records and all(map(is_well, records.values())) else 1


def _ended(_number: int, _frame: FrameType | None) -> None:
    """End the check with its phase, and write the report."""
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _ended)
    sys.exit(main())
