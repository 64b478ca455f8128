"""Bundles on the disk: what was changed is refused before anything is loaded."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adacache_engines.bundle.files import MANIFEST, Bundle, dump_manifest, open_bundle, read_manifest
from adacache_engines.bundle.manifest import SCHEMA_VERSION
from adacache_engines.errors import BundleError
from adacache_runtime.pipeline import Pipeline
from tests.helpers.model import fake_model
from tests.helpers.model.bundle_changes import rewrite
from tests.helpers.model.opened import Opens

FILES = (MANIFEST, fake_model.WEIGHTS, "onnx/embed.onnx", "onnx/combine.onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "whole"
    fake_model.write_bundle(folder)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Pipeline.open(folder, Opens())
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_an_unchanged_bundle_opens(folder: Path) -> None:
    opened = open_bundle(folder)
    assert isinstance(opened, Bundle)
    assert opened.manifest.files.keys() == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST
    }
    assert opened.path("onnx/embed.onnx").read_text() == "the graph of embed"
    with pytest.raises(AssertionError, match="a backend was asked for"):  # so the refusals below come before it
        Pipeline.open(folder, Opens())


def test_all_bytes_are_hashed(folder: Path) -> None:
    seen: list[int] = []
    opened = open_bundle(folder, seen.append)
    assert sum(seen) == sum(entry.nbytes for entry in opened.manifest.files.values())


def test_a_manifest_comes_back_as_it_went(folder: Path, copy: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest == open_bundle(folder).manifest
    (copy / MANIFEST).write_text(dump_manifest(manifest), encoding="utf-8")
    assert (copy / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()
    assert read_manifest(copy) == manifest


@settings(max_examples=300)
@given(position=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_manifest_is_refused(folder: Path, position: int, bit: int) -> None:
    with flipped(folder / MANIFEST, position, bit):
        refusal(folder)


@settings(max_examples=60)
@given(name=st.sampled_from(FILES[1:]), position=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_file_is_refused(folder: Path, name: str, position: int, bit: int) -> None:
    with flipped(folder / name, position, bit):
        assert f"{name} was changed" in refusal(folder)


class flipped:  # noqa: N801 - reads as a verb
    """Flips a bit of a file for a while."""

    def __init__(self, path: Path, position: int, bit: int) -> None:
        self.path, self.before = path, path.read_bytes()
        self.position, self.bit = position % len(self.before), bit

    def __enter__(self) -> None:
        changed = bytearray(self.before)
        changed[self.position] ^= 1 << self.bit
        self.path.write_bytes(changed)

    def __exit__(self, *_error: object) -> None:
        self.path.write_bytes(self.before)


@pytest.mark.parametrize(
    ("before", "after"), [("\n", " "), ("\n ", "\n\t"), ('"files"', '"\\u0066iles"'), ("\n}", "}"), ("}\n", "}")]
)
def test_a_manifest_in_another_spelling_is_refused(copy: Path, before: str, after: str) -> None:
    """The content is the same, and the bytes are not."""
    text = (copy / MANIFEST).read_text(encoding="utf-8")
    changed = text.replace(before, after, 1)
    assert changed != text
    assert json.loads(changed) == json.loads(text)
    (copy / MANIFEST).write_text(changed, encoding="utf-8")
    assert "was changed after export" in refusal(copy)


def test_every_file_counts(folder: Path, copy: Path) -> None:
    for name in open_bundle(folder).manifest.files:
        whole = (copy / name).read_bytes()
        with flipped(copy / name, len(whole) - 1, 7):
            assert f"{name} was changed after it was made" in refusal(copy)
        (copy / name).write_bytes(whole[:-1])
        assert f"{name} has {len(whole) - 1} bytes instead of {len(whole)}" in refusal(copy)
        (copy / name).write_bytes(whole + b" ")
        assert f"{name} has {len(whole) + 1} bytes" in refusal(copy)
        (copy / name).unlink()
        assert f"{name} is missing" in refusal(copy)
        (copy / name).mkdir()
        assert f"{name} is missing" in refusal(copy)
        (copy / name).rmdir()
        (copy / name).write_bytes(whole)
    open_bundle(copy)


def test_all_problems_are_told_at_once(copy: Path) -> None:
    (copy / "onnx/embed.onnx").unlink()
    (copy / "onnx/final.onnx").write_bytes(b"")
    message = refusal(copy)
    assert "onnx/embed.onnx is missing" in message
    assert "onnx/final.onnx has 0 bytes" in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"1", b"\xff", b"{}", b"[" * 100000])
def test_a_manifest_that_is_none(copy: Path, content: bytes) -> None:
    (copy / MANIFEST).write_bytes(content)
    refusal(copy)


def test_text_that_no_file_can_hold(copy: Path) -> None:
    (copy / MANIFEST).write_text(json.dumps({"schema_version": 1, "x": "\ud800"}))
    refusal(copy)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    assert "make one with adacache-export" in refusal(tmp_path)
    assert "make one with adacache-export" in refusal(tmp_path / "absent")


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5, [1]])
def test_another_schema_version(copy: Path, version: object) -> None:
    rewrite(copy, lambda content: content.update(schema_version=version))
    message = refusal(copy)
    assert f"schema version {version!r}, this program reads {SCHEMA_VERSION}" in message


def test_another_schema_version_is_named_whatever_else_it_has(copy: Path) -> None:
    (copy / MANIFEST).write_text(json.dumps({"schema_version": 9, "new": {}}))
    assert "schema version 9" in refusal(copy)


def test_a_manifest_of_other_fields(copy: Path) -> None:
    rewrite(copy, lambda content: (content.update(colour="red"), content.pop("weights")))
    message = refusal(copy)
    assert "colour" in message
    assert "weights" in message


@pytest.mark.parametrize("name", ["../whole/manifest.json", "/etc/hostname", "onnx/../../outside", ".."])
def test_files_outside_the_bundle_are_not_looked_at(copy: Path, name: str) -> None:
    rewrite(copy, lambda content: content["files"].update({name: {"sha256": "0" * 64, "nbytes": 1}}))
    assert f"{name} lies outside the bundle" in refusal(copy)


def test_a_graph_outside_the_bundle(copy: Path) -> None:
    rewrite(copy, lambda content: content["stages"][0]["graph"].update(path="../text.onnx"))
    assert "../text.onnx lies outside the bundle" in refusal(copy)


@pytest.mark.parametrize("name", [fake_model.WEIGHTS, "onnx/embed.onnx", "onnx/guide.onnx"])
def test_a_file_without_a_hash(copy: Path, name: str) -> None:
    rewrite(copy, lambda content: content["files"].pop(name))
    assert f"{name} is used but has no hash" in refusal(copy)


def test_the_exported_model_is_guarded(bundle_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle_folder, tmp_path / "copy"))
    for name, entry in open_bundle(copy).manifest.files.items():
        with flipped(copy / name, entry.nbytes // 2, 3):
            assert name in refusal(copy)
