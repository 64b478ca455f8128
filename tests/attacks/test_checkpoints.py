"""Hostile checkpoints."""

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adacache_engines.errors import AdaCacheError, CheckpointError
from adacache_engines.printable import is_plain
from adacache_export.checkpoint import open_checkpoint
from adacache_export.checkpoint.pipeline_folder import open_source
from adacache_export.commands.export import main as export
from tests.helpers.model.bundle_changes import Stubs

Tries = Callable[[Iterable[Any]], Iterator[Any]]
WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
RED = "\x1b[31mred\x1b[0m"
TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def refused(path: Path) -> str:
    """Open a checkpoint, and return the one short line with which it is refused."""
    with pytest.raises(CheckpointError) as caught:
        open_source(path)
    message = str(caught.value)
    assert is_plain(message), message
    assert len(message) < 6000
    return message


def safetensors(header: object, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


HEADERS: dict[str, bytes] = {
    "a header beyond the file": safetensors({"a": TENSOR}, length=1 << 20),
    "a header of 8 exabytes": safetensors({"a": TENSOR}, length=(1 << 63) - 1),
    "a header of all bits": safetensors({"a": TENSOR}, length=(1 << 64) - 1),
    "no header": b"\0" * 8,
    "a short file": b"\1\2\3",
    "tensors that overlap": safetensors({"a": TENSOR, "b": {**TENSOR, "data_offsets": [2, 6]}}),
    "offsets beyond the file": safetensors({"a": {**TENSOR, "data_offsets": [0, 1 << 40]}}),
    "offsets that go down": safetensors({"a": {**TENSOR, "data_offsets": [8, 4]}}),
    "negative offsets": safetensors({"a": {**TENSOR, "data_offsets": [-4, 0]}}),
    "an unknown dtype": safetensors({"a": {**TENSOR, "dtype": RED * 1000}}),
    "a size of another shape": safetensors({"a": {**TENSOR, "shape": [1 << 62, 1 << 62]}}),
    "a negative shape": safetensors({"a": {**TENSOR, "shape": [-1]}}),
    "a name of a megabyte": safetensors({"x" * 10**6: TENSOR}, b"\0" * 4),
    "a name that a terminal obeys": safetensors({RED: TENSOR}, b"\0" * 4),
    "a name of two lines": safetensors({"a\nadacache-export: done": TENSOR}, b"\0" * 4),
    "deep nesting": safetensors(b'{"a":' + b"[" * 10**6),
    "no JSON": safetensors(b"\xff" * 64),
    "nothing in it": safetensors({}, b""),
}


def test_headers_of_safetensors(tmp_path: Path, tries: Tries) -> None:
    path = tmp_path / WEIGHTS
    for name, content in tries(HEADERS.items()):
        path.write_bytes(content)
        assert str(tmp_path) in refused(path), name


def test_what_is_no_file(tmp_path: Path, tries: Tries) -> None:
    """Nothing waits for who writes into a pipe, or reads a device that has no end."""

    def pipe(path: Path) -> None:
        os.mkfifo(path)

    def device(path: Path) -> None:
        path.symlink_to("/dev/zero")

    def loop(path: Path) -> None:
        path.symlink_to(path.name)

    for make in tries([pipe, device, Path.mkdir, loop]):
        for name in (WEIGHTS, "pytorch_model.bin", INDEX, "a.ckpt", "weights"):
            folder = tmp_path / f"{make.__name__}-{name}"
            folder.mkdir()
            (folder / CONFIG).write_text("{}")
            make(folder / name)
            refused(folder / name)
            refused(folder)
    folder = tmp_path / "configs"
    folder.mkdir()
    save_file({"a": torch.ones(1)}, folder / WEIGHTS)
    for name in (CONFIG, "scheduler_config.json", "model_index.json"):
        pipe(folder / name)
    assert open_checkpoint(folder / WEIGHTS).config is None


class Runs:
    """An object whose pickle makes a folder when it is opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_code_in_pickles(tmp_path: Path, tries: Tries) -> None:
    made = tmp_path / "made"

    def archived(tree: object) -> Callable[[Path], object]:
        return lambda path: torch.save(tree, path)

    def bare(protocol: int) -> Callable[[Path], object]:
        return lambda path: path.write_bytes(pickle.dumps(Runs(made), protocol))

    def by_name(text: bytes) -> Callable[[Path], object]:
        def write(path: Path) -> None:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", text)
                archive.writestr("archive/version", "3")

        return write

    system = b"cos\nsystem\n(S'mkdir " + str(made).encode() + b"'\ntR."
    obeyed = b"c" + RED.encode() + b"\nname\n)R."
    writers = [
        archived({"a": torch.ones(1), "b": Runs(made)}),
        archived([Runs(made)]),
        archived(Runs(made)),
        *map(bare, range(pickle.HIGHEST_PROTOCOL + 1)),
        *map(by_name, (system, obeyed, b"", b".", b"\x80\x02]q\x00h\x01.", b"(" * 10**5)),
    ]
    for number, write in tries(enumerate(writers)):
        for suffix in (".ckpt", ".pt", ".bin", ".safetensors"):
            path = tmp_path / f"{number}{suffix}"
            write(path)
            refused(path)
            assert not made.exists()


def test_archives(tmp_path: Path, tries: Tries) -> None:
    whole = tmp_path / "whole.pt"
    torch.save({"a": torch.ones(4)}, whole)

    def written(change: Callable[[str, bytes], tuple[str, bytes]], packed: bool = False) -> Path:
        path = tmp_path / "changed.pt"
        kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", kind) as target:
            for member in source.namelist():
                target.writestr(*change(member, source.read(member)))
        return path

    def order(text: bytes) -> Callable[[str, bytes], tuple[str, bytes]]:
        return lambda name, content: (name, text if name.endswith("byteorder") else content)

    bomb = written(lambda name, content: (name, b"\0" * 10**8 if "data/0" in name else content), packed=True)
    assert bomb.stat().st_size < 10**6
    assert "is compressed" in refused(bomb)
    for text in tries([b"big", RED.encode(), b"x" * 10**7, b"\xff\xfe" * 50, b"little\n"]):
        assert "which cannot be memory-mapped here" in refused(written(order(text)))
    changes: list[Callable[[str, bytes], tuple[str, bytes]]] = [
        lambda name, content: (name.replace("data/0", "../../../outside"), content),
        lambda name, content: (name, b"" if "data/0" in name else content),
        lambda name, content: (name, content * 2 if "data/0" in name else content),
    ]
    for change in tries(changes):
        refused(written(change))
    assert not (tmp_path.parent / "outside").exists()


def test_indexes(tmp_path: Path, tries: Tries) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    maps: list[object] = [
        {"a": "../one.safetensors"},
        {"a": "/etc/passwd"},
        {"a": "..\\one.safetensors"},
        {"a": "one.safetensors\0"},
        {"a": "folder.safetensors"},
        {"a": "pipe.safetensors"},
        {"a": RED},
        {"a": "x" * 10**6},
        {"a": ["one.safetensors"]},
        {RED: "one.safetensors"},
        {"b" * 10**6: "one.safetensors"},
        {f"{number}": f"{number}.safetensors" for number in range(10**4)},
        {},
        [],
        None,
        "one.safetensors",
    ]
    for weight_map in tries(maps):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        refused(tmp_path / INDEX)


def test_configurations(checkpoint: Path, tmp_path: Path, tries: Tries, capsys: pytest.CaptureFixture[str]) -> None:
    """An error repeats the content of a ``config.json`` in one short line, whatever the file holds."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    whole = json.loads((folder / CONFIG).read_text())
    values: list[Any] = [RED, "two\nlines", "x" * 10**6, 10**400, [1] * 10**5, [[[[]]]], {"a": RED}, None, -1]
    for key, value in tries((key, value) for key in ("depth", "_class_name", "architectures") for value in values):
        (folder / CONFIG).write_text(json.dumps({**whole, key: value}))
        try:
            open_source(folder)
        except CheckpointError as error:
            assert is_plain(str(error))
            assert len(str(error)) < 6000
    for text in tries([b"[" * 10**6, b'{"a":' * 10**5, b"\xff", b"", b"[]", b'{"\\ud800": 1}']):
        (folder / CONFIG).write_bytes(text)
        assert export([str(folder), "-o", str(tmp_path / "bundle")]) == 1
        shown = capsys.readouterr().err
        assert is_plain(shown.removesuffix("\n")), shown
        assert not (tmp_path / "bundle").exists()


def test_links_of_a_cache(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of a hub's cache are links to files that are named by their hash; a bundle has files of its own."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "x"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    for number, name in enumerate((WEIGHTS, CONFIG)):
        shutil.copyfile(checkpoint / name, blobs / str(number))
        (snapshot / name).symlink_to(Path("../../blobs") / str(number))
    Stubs().install(monkeypatch)
    assert export([str(snapshot), "-o", str(tmp_path / "bundle")]) == 0
    shutil.rmtree(blobs)
    files = [path for path in (tmp_path / "bundle").rglob("*") if not path.is_dir()]
    assert len(files) > 3
    assert not any(path.is_symlink() for path in files)
    with pytest.raises(AdaCacheError, match=r"does not exist|cannot read|has no|neither"):
        open_source(snapshot)
