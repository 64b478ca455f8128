"""Formats of a weight file, and the files that are refused because they hold code or are damaged."""

import json
import os
import pickle
import re
import threading
import time
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint import check, open_checkpoint
from tests.helpers.tiny_models.checkpoints import EXPECTED, assert_same, make_tensors, refusal, save


# Formats
@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.pth", "a.bin", "a.safetensors", "no_suffix"])
def test_opens_each_format(tmp_path: Path, name: str) -> None:
    path = save(make_tensors(), tmp_path / name)
    checkpoint = open_checkpoint(path)
    assert_same(checkpoint, make_tensors())
    assert checkpoint.shapes() == EXPECTED
    assert checkpoint.files == (path,)
    assert checkpoint.config is None
    assert checkpoint.scheduler is None
    assert checkpoint.notes == ()


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    path = save(make_tensors(), tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    assert_same(open_checkpoint(path), make_tensors())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_dtypes_are_kept(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    tensors = {key: tensor.to(dtype) for key, tensor in make_tensors().items()}
    checkpoint = open_checkpoint(save(tensors, tmp_path / name))
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {dtype}
    assert_same(checkpoint, tensors)
    check(checkpoint, EXPECTED)


def anonymous_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's memory accounts")
@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_opening_and_checking_hold_no_copy_of_the_weights(tmp_path: Path, name: str) -> None:
    tensors = {"one": torch.ones(32 << 20, dtype=torch.float16), "two": torch.ones(8, 1 << 20)}
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    tensors["one"][-1] = float("nan")  # counting the bad values must not need a mask of the whole tensor either
    path = save(tensors, tmp_path / name)  # 96 MB
    del tensors
    check(open_checkpoint(save({"x": torch.ones(8)}, tmp_path / "warm.pt")), {"x": (8,)})
    before, most, stop = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.is_set():
            most = max(most, anonymous_bytes())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        checkpoint = open_checkpoint(path)
        with pytest.raises(CheckpointError, match="1 NaN"):
            check(checkpoint, shapes)
        checkpoint.sha256()
    finally:
        stop.set()
        watcher.join()
    assert most - before < 16 << 20


# Code in a checkpoint
class MakesFolder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "pickle protocol 0"])
@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".safetensors"])
def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path: Path, kind: str, suffix: str) -> None:
    made, path = tmp_path / "made", tmp_path / f"evil{suffix}"
    tree = {**make_tensors(), "evil": MakesFolder(made)}
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps({"evil": MakesFolder(made)}, protocol=0 if "0" in kind else 4))
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=kind == "zip")
    message = refusal(path)
    assert not made.exists()
    assert str(path) in message
    if kind == "zip" and suffix == ".safetensors":
        assert "rename" in message
    elif kind == "zip":
        assert f"{os.mkdir.__module__}.mkdir" in message
        assert "weights_only" not in message  # torch's advice is to switch the protection off
        torch.load(path, weights_only=False)
        assert made.exists()  # so the file would have done it


def test_ordinary_objects_beside_the_weights_are_named(tmp_path: Path) -> None:
    message = refusal(save({"model": make_tensors(), "args": Namespace(lr=1)}, tmp_path / "a.pt"))
    assert "argparse.Namespace" in message
    assert "save" in message


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    assert "Linear" in refusal(save(torch.nn.Linear(2, 2), tmp_path / "a.pt"))


def test_legacy_format_of_plain_tensors_is_refused_with_a_way_out(tmp_path: Path) -> None:
    torch.save(make_tensors(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    message = refusal(tmp_path / "a.pt")
    assert "PyTorch before 1.6" in message
    assert "safetensors" in message


# Damaged and foreign files
WHOLE: dict[str, bytes] = {}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    for suffix in ("pt", "safetensors"):
        WHOLE[suffix] = save(make_tensors(), folder / f"whole.{suffix}").read_bytes()
    return folder


@settings(max_examples=150)
@given(suffix=st.sampled_from(["pt", "safetensors"]), part=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(damaged: Path, suffix: str, part: float) -> None:
    path = damaged / f"short.{suffix}"
    path.write_bytes(WHOLE[suffix][: int(part * len(WHOLE[suffix]))])
    assert str(path) in refusal(path)


@settings(max_examples=400)
@given(
    suffix=st.sampled_from(["pt", "safetensors"]),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=8),
    where=st.sampled_from(["start", "end", "anywhere"]),
)
def test_changed_bytes_open_or_are_refused_and_raise_nothing_else(
    damaged: Path, suffix: str, flips: list[tuple[int, int]], where: str
) -> None:
    data = bytearray(WHOLE[suffix])
    span = len(data) if where == "anywhere" else 800  # header or pickle first, a zip's directory last
    for position, bits in flips:
        index = position % span
        data[len(data) - 1 - index if where == "end" else index] ^= bits
    path = damaged / f"changed.{suffix}"
    path.write_bytes(data)
    try:
        check(open_checkpoint(path), EXPECTED)
    except CheckpointError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "begins with"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "header"),
    ],
)
@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_files_of_another_kind(tmp_path: Path, content: bytes, says: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert name in message
    if name == "a.ckpt" or content.startswith((b"version", b"\x00")):
        assert says in message


def test_safetensors_with_a_tensor_beyond_the_end(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert "a.safetensors" in refusal(tmp_path / "a.safetensors")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    whole, packed = save(make_tensors(), tmp_path / "a.pt"), tmp_path / "b.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert "compressed" in refusal(packed)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nothing.ckpt")
