"""Files that are read again after they were hashed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adacache_engines.bundle import hashed
from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.errors import BundleError
from tests.helpers.model import fake_model

NAME = "onnx/embed.onnx"
OLD = (1_000_000_000, 1_000_000_000)  # seconds: access, change


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    fake_model.write_bundle(tmp_path / "bundle")
    for path in (tmp_path / "bundle").rglob("*.*"):
        os.utime(path, OLD)
    return open_bundle(tmp_path / "bundle")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Notes the files that are hashed."""
    made: list[Path] = []
    whole = hashed.sha256_file

    def noted(path: Path, progress: Callable[[int], None]) -> str:
        made.append(path)
        return whole(path, progress)

    monkeypatch.setattr(hashed, "sha256_file", noted)
    return made


def test_a_file_that_stays_as_it_is_is_hashed_once(bundle: Bundle, read: list[Path]) -> None:
    for _ in range(3):
        assert bundle.path(NAME).read_text() == "the graph of embed"
    assert read == []


def test_a_file_that_was_touched_or_copied_is_hashed_once_more(bundle: Bundle, read: list[Path]) -> None:
    path = bundle.folder / NAME
    os.utime(path, (5, 5))
    assert [bundle.path(NAME) for _ in range(3)] == [path] * 3
    assert read == [path]
    shutil.copy2(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").rename(path)
    assert [bundle.path(NAME) for _ in range(3)] == [path] * 3
    assert read == [path] * 2


def test_a_file_that_has_just_been_written_is_hashed_again(bundle: Bundle, read: list[Path]) -> None:
    """A second write in the same step of the clock would leave the times as they are."""
    (bundle.folder / NAME).touch()
    for _ in range(2):
        bundle.path(NAME)
    assert read == [bundle.folder / NAME] * 2


def test_what_is_changed_while_it_is_read_is_refused(bundle: Bundle) -> None:
    changed = rf"{NAME} was changed after it was made; copy or export it again, and open it anew"
    with pytest.raises(BundleError, match=changed), bundle.reading(NAME) as path:
        path.write_text("the graph of EMBED")
    (bundle.folder / NAME).write_text("the graph of embed")
    with pytest.raises(BundleError, match=changed) as caught, bundle.reading(NAME) as path:
        path.write_text("the graph of EMBED")
        raise ValueError("an engine that does not like it")
    assert isinstance(caught.value.__context__, ValueError)


def test_a_file_that_the_manifest_does_not_name(bundle: Bundle) -> None:
    (bundle.folder / "onnx/other.onnx").write_text("another graph")
    with pytest.raises(BundleError, match=r"onnx/other\.onnx is used but has no hash in manifest\.json"):
        bundle.path("onnx/other.onnx")


def test_a_link_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = bundle.folder / NAME
    path.rename(tmp_path / "blob")
    path.symlink_to(tmp_path / "blob")
    for refused in (lambda: open_bundle(bundle.folder), lambda: bundle.path(NAME)):
        with pytest.raises(BundleError, match=rf"{NAME} is a link, which engines do not follow \(cp -rL makes a copy"):
            refused()
    shutil.copytree(bundle.folder, tmp_path / "copy")
    open_bundle(tmp_path / "copy")
