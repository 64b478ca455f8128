"""Outputs that would destroy: devices, links, one another, inputs and the bundle.

What was there before must be there afterwards, byte by byte, and what was written must be whole.
"""

import json
import os
import resource
import socket
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from adacache_engines.errors import InputError
from adacache_runtime.commands.run import main
from adacache_runtime.media.files import writing
from adacache_tune.commands import calibrate, compare
from adacache_tune.commands.profile import main as profile
from tests.helpers.model.fake_command import FakeRun
from tests.helpers.model.fake_prompts import prompted

Input = TypeVar("Input")
Tries = Callable[[Iterable[Input]], Iterator[Input]]
Capture = pytest.CaptureFixture[str]
FORMATS = {"--trace": "t.json", "--save-latents": "l.npz", "--plot": "p.png", "-o": "v.mp4"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    return FakeRun(tmp_path, monkeypatch)


def refused(run: FakeRun, capsys: Capture, *options: str) -> str:
    """Run the command, which must refuse in one line and leave every file as it was; return the line."""
    before = run.files()
    assert run(*options) == 1, options
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert run.files() == before, options
    return lines[0]


def device(path: Path, kind: int, minor: int, major: int = 1) -> Path:
    """Return a device of a test's own: a character device 1, 3 is a null device, and 1, 7 one that is always full."""
    try:
        os.mknod(path, kind | 0o666, os.makedev(major, minor))
    except PermissionError:
        pytest.skip("only root makes devices")
    return path


def test_a_character_device_gets_the_bytes_and_stays_one(run: FakeRun, tries: Tries[str], tmp_path: Path) -> None:
    for option in tries(FORMATS):
        null = device(tmp_path / f"null-{FORMATS[option]}", stat.S_IFCHR, 3)
        assert run(option, str(null)) == 0
        assert null.is_char_device()


def test_a_full_device_is_told_and_stays_one(run: FakeRun, tries: Tries[str], capsys: Capture, tmp_path: Path) -> None:
    for option in tries(FORMATS):
        full = device(tmp_path / f"full-{FORMATS[option]}", stat.S_IFCHR, 7)
        assert run(option, str(full)) == 1
        assert f"{full} cannot be written: No space left on device" in capsys.readouterr().err.splitlines()[-1]
        assert full.is_char_device()


def test_a_reader_at_a_fifo_gets_what_a_file_would_hold(run: FakeRun, tries: Tries[str], tmp_path: Path) -> None:
    for option in tries(("--save-latents", "-o")):
        name, got = FORMATS[option], []
        pipe = tmp_path / f"fifo-{name}"
        os.mkfifo(pipe)
        reader = threading.Thread(target=lambda at, to: to.append(at.read_bytes()), args=(pipe, got), daemon=True)
        reader.start()
        assert run(option, str(pipe)) == 0
        reader.join()
        assert run(option, f"out/{name}") == 0
        assert pipe.is_fifo()
        assert len(got[0]) == len((tmp_path / "out" / name).read_bytes())


def test_the_reader_of_a_fifo_goes_away(tmp_path: Path) -> None:
    pipe = tmp_path / "fifo.npz"
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: os.close(os.open(pipe, os.O_RDONLY)), daemon=True)
    reader.start()
    with pytest.raises(InputError, match=r"fifo\.npz cannot be written: Broken pipe"), writing(pipe) as file:
        file.write(bytes(1 << 22))  # more than a pipe holds
    assert pipe.is_fifo()


@pytest.mark.parametrize("kind", ["block device", "socket", "folder"])
def test_what_takes_no_bytes_is_refused_before_anything_runs(
    kind: str, run: FakeRun, tries: Tries[str], capsys: Capture, tmp_path: Path
) -> None:
    for option in tries(FORMATS):
        path = tmp_path / FORMATS[option]
        if kind == "folder":
            path.mkdir()
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path))
        else:
            device(path, stat.S_IFBLK, 0, major=7)
        mode = path.stat().st_mode
        assert "cannot be written" in refused(run, capsys, option, str(path))
        assert path.stat().st_mode == mode


def test_a_link_stays_and_what_it_leads_to_is_written(run: FakeRun, tries: Tries[str], tmp_path: Path) -> None:
    """Through links to links, to what is there, and to what is not there yet."""
    for there in (True, False):
        for option in tries(FORMATS):
            name = f"{there}-{FORMATS[option]}"
            target, link, outer = (tmp_path / f"{place}-{name}" for place in ("target", "link", "outer"))
            if there:
                target.write_bytes(b"before")
            link.symlink_to(target.name)
            outer.symlink_to(link)
            assert run(option, str(outer)) == 0
            assert link.is_symlink()
            assert outer.is_symlink()
            assert target.stat().st_size > len(b"before")


def test_links_that_lead_nowhere(run: FakeRun, tries: Tries[str], capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "gone.json").symlink_to("no/folder/t.json")
    (tmp_path / "long.json").symlink_to("x" * 255 + "/t.json")
    for name in tries(("loop", "gone", "long")):
        assert "cannot be written" in refused(run, capsys, "--trace", f"{name}.json")
        assert (tmp_path / f"{name}.json").is_symlink()


def same(tmp_path: Path) -> dict[str, tuple[str, str]]:
    """Two names of one file, by how it comes that they are one."""
    (tmp_path / "file.json").write_text("{}")
    (tmp_path / "symbolic.json").symlink_to("file.json")
    (tmp_path / "hard.json").hardlink_to(tmp_path / "file.json")
    (tmp_path / "new.json").symlink_to("out/not-there.json")
    (tmp_path / "folder").symlink_to("out")
    return {
        "the same words": ("out/a", "out/a"),
        "dots": ("out/a", "out/../out/./a"),
        "a folder that is not there": ("out/a", "out/nothing/../a"),
        "absolute": ("out/a", str(tmp_path / "out" / "a")),
        "a link to a folder": ("out/a", "folder/a"),
        "a symbolic link": ("file.json", "symbolic.json"),
        "a hard link": ("file.json", "hard.json"),
        "a link to what is not there": ("out/not-there.json", "new.json"),
        "case": ("out/a.json", "out/A.JSON"),
    }


def test_two_outputs_of_one_name(run: FakeRun, tries: Tries[str], capsys: Capture, tmp_path: Path) -> None:
    for how, (one, other) in same(tmp_path).items():
        for _ in tries((how,)):
            assert "are one file" in refused(run, capsys, "--trace", one, "--save-latents", other), how
            assert "are one file" in refused(run, capsys, "--save-latents", one, "--trace", other), how
    assert "are one file" in refused(run, capsys, "-o", "-", "--trace", "/dev/stdout")
    assert "are one file" in refused(run, capsys, "-o", "a.npz", "--save-latents", "a.npz")


def test_an_output_in_the_bundle(run: FakeRun, tries: Tries[str], capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to("bundle")
    (tmp_path / "manifest.json").symlink_to("bundle/manifest.json")
    inside = ["bundle/manifest.json", "bundle/new.json", "bundle/onnx/new.json", "out/../bundle/new.json"]
    for path in tries([*inside, "other/new.json", "manifest.json", "bundle/onnx/weights.safetensors"]):
        assert "is in the bundle" in refused(run, capsys, "--trace", path)
    assert "is in the bundle" in refused(run, capsys, "--trace", "t.json", "--embedding-cache", "bundle/cache")
    (tmp_path / "hard.json").hardlink_to(tmp_path / "bundle" / "manifest.json")
    before = (tmp_path / "bundle" / "manifest.json").read_bytes()
    assert run("--trace", "hard.json") == 0  # the name is written anew, and the bundle keeps its file
    assert (tmp_path / "bundle" / "manifest.json").read_bytes() == before


def test_an_output_that_is_an_input(run: FakeRun, tries: Tries[str], capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "link.npz").symlink_to("text.npz")
    (tmp_path / "hard.npz").hardlink_to(tmp_path / "text.npz")
    (tmp_path / "policy.json").write_text(json.dumps({"name": "never"}))
    for path in tries(("text.npz", "link.npz", "hard.npz", "out/../text.npz")):
        assert "would replace the input --text-embeddings text.npz" in refused(run, capsys, "--save-latents", path)
    for option, path in tries((("--policy", "policy.json"), ("--policy", "policy.json+warm-up=1"))):
        assert "would replace the input --policy" in refused(run, capsys, option, path, "--trace", "policy.json")


def test_a_folder_that_takes_no_files_is_found_before_the_run(run: FakeRun, tries: Tries[str], capsys: Capture) -> None:
    """``/proc`` takes none from anybody, root included."""
    for option, name in tries(FORMATS.items()):
        assert "cannot be written" in refused(run, capsys, option, f"/proc/{name}")
        assert "there is no folder" in refused(run, capsys, option, f"nowhere/{name}")
        assert "cannot be written" in refused(run, capsys, option, f"text.npz/{name}")
        suffix = Path(name).suffix
        assert "too long" in refused(run, capsys, option, f"out/{'x' * 300}{suffix}")
        assert "too long" in refused(run, capsys, option, "x/" * 3000 + name)


def test_a_folder_without_permission(run: FakeRun, capsys: Capture, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "out").chmod(0o555)
    assert "cannot be written: Permission denied" in refused(run, capsys, "--trace", "out/t.json")


def test_a_disk_that_becomes_full(run: FakeRun, tries: Tries[str], capsys: Capture, tmp_path: Path) -> None:
    """The limit of a process on the size of its files stands for the disk, at every place in a file."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    for option, name in FORMATS.items():
        assert run(option, f"out/{name}") == 0
        whole = (tmp_path / "out" / name).read_bytes()
        for limit in tries([0, 1, 100, len(whole) // 2]):
            capsys.readouterr()
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
            try:
                assert run(option, f"out/{name}") == 1, limit
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, usual)
            told = capsys.readouterr().err.splitlines()
            assert "cannot be written: File too large" in told[-1]
            assert not [line for line in told if "Traceback" in line]
            assert (tmp_path / "out" / name).read_bytes() == whole  # that of before
        assert len(list((tmp_path / "out").iterdir())) == 1
        (tmp_path / "out" / name).unlink()


def test_several_prompts_whose_files_are_one(run: FakeRun, capsys: Capture, tmp_path: Path) -> None:
    """``-o`` gets numbers where there are several prompts."""
    given = np.load(tmp_path / "text.npz")
    np.savez(tmp_path / "text.npz", **{name: np.concatenate([given[name]] * 2) for name in given.files})
    (tmp_path / "out" / "v-1.npz").symlink_to("v-2.npz")
    assert "are one file" in refused(run, capsys, "-o", "out/v.npz")
    assert "are one file" in refused(run, capsys, "-o", "out/w.npz", "--save-latents", "out/w-2.npz")


def test_a_bundle_that_is_not_there_takes_no_output(tmp_path: Path, capsys: Capture) -> None:
    assert main([str(tmp_path), "--trace", str(tmp_path / "manifest.json")]) == 1
    assert not list(tmp_path.iterdir())
    assert "is not a bundle" in capsys.readouterr().err


def test_a_profile_whose_pages_are_one(run: FakeRun, tries: Tries[str], capsys: Capture) -> None:
    for one, other, told in tries(
        [
            ("p", "out/../p", "are one file"),
            ("bundle/p", "p", "is in the bundle"),
            ("/proc/p", "p", "cannot be written"),
        ]
    ):
        before = run.files()
        assert profile(["bundle", "--json", one, "--html", other]) == 1
        assert told in capsys.readouterr().err
        assert run.files() == before


@pytest.mark.parametrize("command", [compare, calibrate])
def test_the_folders_of_the_offline_commands(
    command: Any, run: FakeRun, tries: Tries[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs and the files of a bundle are never overwritten, and a report does not replace the settings beside it."""
    opened = prompted(run.folder / "fake")
    monkeypatch.setattr(command.Pipeline, "open", lambda *_, **__: opened)
    (run.folder / "in").mkdir()
    for name in ("comparison.csv", "settings.json"):
        (run.folder / "in" / name).write_text("\n".join("abcdef"))
    usual = ["bundle", "--size", "8x8", "--steps", "8"]
    usual += ["--policies", "interval-2"] if command is compare else ["--target-psnr", "26", "--methods", "interval"]
    read = "in/comparison.csv" if command is compare else "in/settings.json"
    for output in tries(["bundle", "bundle/new", "out/../bundle/onnx"]):
        before = run.files()
        assert command.main([*usual, "--prompts", read, "-o", output]) == 1
        assert "is in the bundle" in capsys.readouterr().err
        assert run.files() == before
    before = run.files()
    assert command.main([*usual, "--prompts", read, "-o", "in"]) == 1
    assert "would replace the input --prompts" in capsys.readouterr().err
    if command is calibrate:
        assert command.main([*usual, "--prompts", read, "-o", "out", "--name", "settings"]) == 1
        assert "are one file" in capsys.readouterr().err
    assert run.files() == before
