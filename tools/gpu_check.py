"""Run the tests that need a GPU, and a benchmark, on a machine that has one; write gpu.json and gpu.md.

    python tools/gpu_check.py [--out DIR] [--only tests|benchmark] [--size 480p:2s ...] [--backend NAME ...]
    python tools/gpu_check.py --pack DIR [--capability 9.0] [--wheel FILE ...]     for a machine without a registry

It works with any of TensorRT-RTX, TensorRT, onnxruntime-gpu and PyTorch, and says what it skipped and why. Numbers that
are compared are measured in one run, in turn.
"""

import argparse
import datetime
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adacache_engines.bundle.shape_profiles import profile_parts
from adacache_engines.errors import AdaCacheError, InputError
from adacache_engines.tensorrt.build import CURRENT
from adacache_engines.tensorrt.library import LIBRARIES
from tools.gpu import attempt
from tools.gpu.benchmark import Run
from tools.gpu.machine import BACKENDS, available, exporter_missing, find_gpu, machine
from tools.gpu.model import DEPTH, LARGE, PRECISIONS, Preparation, make_bundles
from tools.gpu.pack.make import pack
from tools.gpu.report import markdown
from tools.gpu.steps import BUNDLES, NO_TARGET, RTX_TARGET, run_tests, step

SIZES = ("480p:2s", "720p:2s")
STEPS, ROUNDS = 30, 8
QUICK_STEPS, QUICK_ROUNDS = 12, 3
TESTS = ("tests/tools/gpu/test_gpu.py",)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--out", type=Path, metavar="DIR", default=Path("out/gpu"), help="where the results go (%(default)s)")
    add("--only", choices=("tests", "benchmark"), help="leave the other out")
    add("--size", action="append", metavar="SIZE:LENGTH", default=[], help=f"repeatable ({', '.join(SIZES)})")
    add("--backend", action="append", default=[], choices=BACKENDS, help="to measure, repeatable (all that are here)")
    add("--quick", action="store_true", help=f"the first size only, {QUICK_STEPS} steps instead of {STEPS}")
    add("--bundles", type=Path, metavar="DIR", help="made by --pack; else they are exported here, which takes torch")
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
    except InputError as error:
        made.error(str(error))
    try:
        if options.pack is not None:
            pack(options.pack, options.wheel, options.bundles, options.capability)
            return 0
        gpu = find_gpu()
    except AdaCacheError as error:
        if options.pack is not None:
            print(f"gpu_check: {error}", file=sys.stderr)
        else:
            print(f"gpu_check: this machine has no GPU that can be used, so nothing was run or written: {error}",
                  file=sys.stderr)  # fmt: skip
        return 1
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "tools/gpu_check.py", *(sys.argv[1:] if arguments is None else arguments)]),
        "machine": machine(gpu),
    }
    with tempfile.TemporaryDirectory(prefix="adacache-gpu-") as work:
        return run(options, result, Path(work), gpu.capability)


def _check(options: argparse.Namespace) -> None:
    """Check the options.

    Raises:
        InputError: options contradict each other, or name a file or folder that does not exist.
    """
    if options.wheel and options.pack is None:
        raise InputError("--wheel belongs to --pack")
    if options.capability is not None and options.pack is None:
        raise InputError("--capability belongs to --pack")
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


def run(options: argparse.Namespace, result: dict[str, Any], work: Path, capability: str) -> int:
    """Run all steps, and write the results after each of them; return the exit status."""
    usable, why = available(tuple(options.backend) or BACKENDS)
    result["skipped"] = [{"what": name, "why": reason} for name, reason in why.items()]
    bundles = options.bundles
    if bundles is None:
        missing = exporter_missing()
        if missing is not None:
            print(f"gpu_check: no --bundles, and none can be exported here: {missing}", file=sys.stderr)
            return 1
        bundles = work / "bundles"
        bundles.mkdir()
        make_bundles(bundles)
    taken = None
    if attempt.LIBRARY in usable:
        result["attempts"] = [
            {"how": how, **step("tools.gpu.attempt", str(bundles.resolve() / "fp16"), how)}
            for how in attempt.attempts(capability)
        ]
        taken = next((one["how"] for one in result["attempts"] if one.get("runs")), None)
        if result["attempts"] and taken is None:
            usable.remove(attempt.LIBRARY)
            result["skipped"].append(
                {"what": attempt.LIBRARY, "why": f"does not run on compute capability {capability}"}
            )
        write(result, options.out)
    if options.only != "benchmark":
        surroundings = {BUNDLES: str(bundles.resolve())}
        if result.get("attempts"):
            surroundings[RTX_TARGET] = taken or NO_TARGET
        result["tests"] = run_tests(TESTS, surroundings)
        write(result, options.out)
    if options.only != "tests":
        measure(options, result, bundles, work, usable, taken)
    write(result, options.out)
    print(f"gpu_check: {options.out / 'gpu.json'} and {options.out / 'gpu.md'}")
    return 1 if failed(result) else 0


def measure(
    options: argparse.Namespace, result: dict[str, Any], bundles: Path, work: Path, usable: list[str], taken: str | None
) -> None:
    sizes = tuple(options.size) or SIZES
    sizes = sizes[:1] if options.quick else sizes
    libraries = tuple(name for name in LIBRARIES if name in usable)
    model = work / "model"
    preparation = Preparation(str(bundles.resolve()), str(model), libraries, sizes, taken, DEPTH)
    result["model"] = step("tools.gpu.model", json.dumps(asdict(preparation)))
    write(result, options.out)
    if "failed" in result["model"]:
        return
    result["benchmark"] = {}
    targets: dict[str, str] = {attempt.LIBRARY: taken} if taken and taken != CURRENT else {}
    for size in sizes:
        steps, rounds = (QUICK_STEPS, QUICK_ROUNDS) if options.quick else (STEPS, ROUNDS)
        asked = Run(str(model), size, tuple(usable), targets, steps, rounds)
        result["benchmark"][size] = step("tools.gpu.benchmark", json.dumps(asdict(asked)))
        write(result, options.out)


def failed(result: dict[str, Any]) -> bool:
    """Whether a step broke off, a test failed or nothing was measured; a missing library is no failure."""
    told = [result.get("tests", {}), result.get("model", {}), *result.get("benchmark", {}).values()]
    empty = [one for one in told if "calls" in one and not one["calls"]["backends"]]
    return bool(empty) or any("failed" in one or one.get("failures") for one in told)


def write(result: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("gpu.json", json.dumps(result, indent=1) + "\n"), ("gpu.md", markdown(result))):
        part = out / f".{name}.{os.getpid()}"
        part.write_text(text, encoding="utf-8")
        part.replace(out / name)


if __name__ == "__main__":
    sys.exit(main())
