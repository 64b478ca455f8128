"""Builds of plans that do not come to an end, and go on."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from adacache_engines.bundle.files import open_bundle, read_manifest
from adacache_engines.errors import EngineError
from adacache_engines.tensorrt import build_tasks
from adacache_engines.tensorrt.build import BuildOptions
from adacache_engines.tensorrt.library import InstalledLibrary
from adacache_engines.tensorrt.plan_builder import build_plans
from tests.helpers.gpu.built_plans import assert_complete, only, profiles
from tests.helpers.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.slow  # an export, and plans that TensorRT-RTX builds


def partial(folder: Path) -> Path:
    (found,) = (folder / "engines").glob(".*.partial")
    return found


def finished(folder: Path) -> dict[str, int]:
    """Plans with a record -> when they were written."""
    records = (folder / "engines").glob(".*.partial/[!.]*.json")
    return {path.stem: path.with_suffix(".plan").stat().st_mtime_ns for path in records}


def started(folder: Path, count: int) -> subprocess.Popen[bytes]:
    """The command in a process of its own, when it has finished ``count`` plans."""
    arguments = [str(folder), "--backend", "tensorrt-rtx", "--jobs", "1"]
    code = "import sys; from adacache_export.commands.export import main; sys.exit(main())"
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE)
    until(lambda: len(finished(folder)) >= count or child.poll() is not None)
    assert child.poll() is None, child.communicate()
    return child


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_stopped_build_goes_on(bare: Path, rtx: InstalledLibrary, stop: signal.Signals, status: int) -> None:
    before = (bare / "manifest.json").read_bytes()
    child = started(bare, 3)
    child.send_signal(stop)
    child.communicate(timeout=HANG_SECONDS)
    assert child.returncode == status
    assert (bare / "manifest.json").read_bytes() == before
    open_bundle(bare)  # what is there is a bundle without plans
    kept = finished(bare)
    assert 3 <= len(kept) < len(read_manifest(bare).graphs())
    build_plans(bare, rtx, profiles(bare), BuildOptions(), workers=1)
    assert_complete(bare, rtx)
    place = (bare / only(bare).plans[0].path).parent
    assert {name: (place / f"{name}.plan").stat().st_mtime_ns for name in kept} == kept


class Stop(Exception):  # noqa: N818
    pass


def stop_after(count: int) -> Callable[[str, int], Callable[[int], None]]:
    done: list[int] = []

    def step(units: int) -> None:
        done.append(units)
        if sum(done) >= count:
            raise Stop

    return lambda name, _total: step if name == "building plans" else lambda _units: None


@pytest.mark.parametrize("damage", ["plan", "record", "settings"])
def test_only_what_is_whole_and_meant_is_kept(bare: Path, rtx: InstalledLibrary, damage: str) -> None:
    with pytest.raises(Stop):
        build_plans(bare, rtx, profiles(bare), BuildOptions(), stop_after(4), workers=1)
    kept = finished(bare)
    assert len(kept) == 4
    name = next(iter(kept))
    options = BuildOptions()
    if damage == "plan":
        file = partial(bare) / f"{name}.plan"
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "record":
        (partial(bare) / f"{name}.json").write_text("{")
    else:
        options = BuildOptions(workspace_mb=4096)
    build_plans(bare, rtx, profiles(bare), options, workers=1)
    assert_complete(bare, rtx)
    place = (bare / only(bare).plans[0].path).parent
    again = {one for one, at in kept.items() if (place / f"{one}.plan").stat().st_mtime_ns != at}
    assert again == (set(kept) if damage == "settings" else {name})


def test_a_process_that_is_killed(bare: Path, rtx: InstalledLibrary) -> None:
    def kill(units: int) -> None:
        if units == 1:
            for child in psutil.Process().children():
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()

    with pytest.raises(EngineError, match=r"was killed.*--jobs 1: finished plans are kept"):
        build_plans(bare, rtx, profiles(bare), BuildOptions(), lambda _name, _total: kill, workers=2)
    assert finished(bare)
    assert not read_manifest(bare).plans
    build_plans(bare, rtx, profiles(bare), BuildOptions(), workers=1)
    assert_complete(bare, rtx)


def test_a_full_disk(bare: Path, rtx: InstalledLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = build_tasks._write, []

    def full(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(build_tasks, "_write", full)
    with pytest.raises(EngineError, match=r"the disk is full.*make room"):
        build_plans(bare, rtx, profiles(bare), BuildOptions(), workers=1)
    monkeypatch.undo()
    assert len(finished(bare)) == 2
    build_plans(bare, rtx, profiles(bare), BuildOptions(), workers=1)
    assert_complete(bare, rtx)
