"""Parts that come one by one, in any order, twice or broken."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adacache_engines.errors import InputError
from tools.gpu.pack import unpack as unpack_module
from tools.gpu.pack.parts import Archive, nbytes_of, write_parts
from tools.gpu.pack.unpack import BrokenPartError, main, unpack

LIMIT_MB = 0.03


@pytest.fixture
def contents(tmp_path: Path) -> list[Archive]:
    """A small archive, and one that takes two parts: random bytes do not compress."""
    for name, nbytes in (
        ("project/project/a.py", 100),
        ("library/library/big.so", 25_000),
        ("library/library/b", 5_000),
    ):
        file = tmp_path / "contents" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(np.random.default_rng(0).bytes(nbytes))
    (tmp_path / "contents" / "project" / "run.sh").write_text("#!/bin/sh\n")
    return [Archive("project", tmp_path / "contents/project"), Archive("library", tmp_path / "contents/library", 2)]


def written(folder: Path, contents: list[Archive]) -> list[Path]:
    folder.mkdir()
    return write_parts(folder, contents, LIMIT_MB)


def files(folder: Path) -> dict[str, bytes]:
    """Contents by path, without the state of unpacking."""
    found = (path for path in folder.rglob("*") if path.is_file() and unpack_module.STATE not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def everything(contents: list[Archive]) -> dict[str, bytes]:
    return {name: content for archive in contents for name, content in files(archive.folder).items()}


def test_parts_are_equal_and_below_the_limit(contents: list[Archive], tmp_path: Path) -> None:
    parts = written(tmp_path / "pack", contents)
    assert [part.name for part in parts] == ["part-1", "part-2", "part-3"]
    assert all(nbytes_of(part) <= LIMIT_MB * 1e6 for part in parts)
    second, third = (next(part.glob("library.*")).stat().st_size for part in parts[1:])
    assert 0 <= second - third <= 1
    assert sorted(path.name for path in (tmp_path / "pack").iterdir()) == [part.name for part in parts]


def test_the_same_contents_make_the_same_parts(contents: list[Archive], tmp_path: Path) -> None:
    """So a pack that is made again replaces only what has changed, on a machine where the earlier one was unpacked."""
    written(tmp_path / "pack", contents)
    for path in (tmp_path / "contents").rglob("*"):
        os.utime(path, (1, 1))
    written(tmp_path / "again", contents)
    assert files(tmp_path / "again") == files(tmp_path / "pack")


def test_a_part_that_would_be_too_large_is_refused(contents: list[Archive], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^library has 0.0 MB compressed, and one part of at most 0.03 MB") as refused:
        written(tmp_path / "pack", [Archive("library", contents[1].folder)])
    assert str(refused.value).endswith("The largest, not compressed: library/big.so 0.0 MB, library/b 0.0 MB")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 2, 0, 0)])
def test_parts_come_in_any_order_and_again(order: tuple[int, ...], contents: list[Archive], tmp_path: Path) -> None:
    parts = written(tmp_path / "pack", contents)
    target = tmp_path / "target"
    for index in order:
        told = unpack(parts[index], target)
        assert len(told) == 2
    assert told == [f"project is unpacked in {target}", f"library is unpacked in {target}"]
    assert files(target) == everything(contents)
    assert sorted(path.name for path in (target / unpack_module.STATE).iterdir()) == ["library.done", "project.done"]


def test_what_is_missing_is_told(contents: list[Archive], tmp_path: Path) -> None:
    parts = written(tmp_path / "pack", contents)
    target = tmp_path / "target"
    assert unpack(parts[1], target) == ["project waits for project.1", "library waits for library.2"]
    assert unpack(parts[0], target)[0] == f"project is unpacked in {target}"
    assert set(files(target)) == {"project/a.py", "run.sh"}


def test_a_broken_piece_is_refused_and_may_come_again(contents: list[Archive], tmp_path: Path) -> None:
    parts = written(tmp_path / "pack", contents)
    target = tmp_path / "target"
    (piece,) = parts[0].glob("project.*")
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-1])
    with pytest.raises(BrokenPartError, match=rf"project.1 has {len(whole) - 1} bytes that are not the {len(whole)} "):
        unpack(parts[0], target)
    piece.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BrokenPartError, match="copy the part again"):
        unpack(parts[0], target)
    assert files(target) == {}
    piece.unlink()
    with pytest.raises(BrokenPartError, match="has no piece of the pack"):
        unpack(parts[0], target)
    piece.write_bytes(whole)
    assert unpack(parts[0], target)[0] == f"project is unpacked in {target}"


def test_a_command_that_was_killed_can_be_repeated(
    contents: list[Archive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = written(tmp_path / "pack", contents)
    target = tmp_path / "target"
    replace = Path.replace

    def killed(source: Path, place: Path) -> Path:
        if source.name == "run.sh":
            raise KeyboardInterrupt
        return replace(source, place)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        unpack(parts[0], target)
    monkeypatch.undo()
    for part in parts:
        unpack(part, target)
    assert files(target) == everything(contents)


def test_a_changed_archive_replaces_the_older_one_and_the_other_stays(contents: list[Archive], tmp_path: Path) -> None:
    target = tmp_path / "target"
    for part in written(tmp_path / "pack", contents):
        unpack(part, target)
    (contents[0].folder / "project" / "a.py").rename(contents[0].folder / "project" / "b.py")
    parts = written(tmp_path / "mended", contents)
    kept = (target / "library" / "big.so").stat().st_ino
    assert unpack(parts[0], target) == [f"project is unpacked in {target}", f"library is unpacked in {target}"]
    assert files(target) == everything(contents)
    assert (target / "library" / "big.so").stat().st_ino == kept


def test_the_command(contents: list[Archive], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The part needs nothing but itself: it runs from its own folder, without the project's packages."""
    (part, *_) = written(tmp_path / "pack", contents)
    moved = Path(shutil.move(part, tmp_path / "elsewhere"))
    command = [sys.executable, "-I", "-S", str(moved / "unpack.py")]
    done = subprocess.run([*command, "here"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "unpack: project is unpacked in here\nunpack: library waits for library.1, library.2\n"
    assert (tmp_path / "here" / "run.sh").is_file()
    (moved / "project.1").write_bytes(b"")
    done = subprocess.run([*command, "there"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("unpack: ")
    assert done.stderr.count("\n") == 1
    assert main([]) == 2
    assert "expected one folder" in capsys.readouterr().err


def test_the_index_lists_each_piece(contents: list[Archive], tmp_path: Path) -> None:
    part = written(tmp_path / "pack", contents)[2]
    index = json.loads((part / "pack.json").read_text())
    assert {name: [piece["name"] for piece in pieces] for name, pieces in index.items()} == {
        "project": ["project.1"], "library": ["library.1", "library.2"],
    }  # fmt: skip
    assert index["library"][1]["nbytes"] == (part / "library.2").stat().st_size
