"""``adacache-run`` on the fake model, in this process: a run takes some milliseconds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.backends import BACKENDS
from adacache_engines.bundle.files import Bundle
from adacache_engines.contract.fake import FakeBackend
from adacache_engines.onnxruntime.backend import OnnxRuntime
from adacache_runtime.commands.run import main
from tests.helpers.model.fake_model import captions, functions, write_bundle


@dataclass(frozen=True)
class Faked(OnnxRuntime):
    """ONNX Runtime with its options and their checks, which opens the fake model."""

    def open(self, bundle: Bundle) -> Any:
        return FakeBackend(functions())


class FakeRun:
    """The command, its bundle and its captions in a folder of its own, which is the current one.

    Attributes:
        folder: the current folder; a command's results go to ``folder / "out"``.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setitem(BACKENDS, "onnxruntime", Faked())
        monkeypatch.chdir(folder)
        write_bundle(folder / "bundle")
        text = captions(1)
        np.savez(folder / "text.npz", embeddings=text.embeddings, mask=text.mask)
        (folder / "out").mkdir()

    def __call__(self, *options: str) -> int:
        return main(["bundle", "--text-embeddings", "text.npz", "--steps", "2", *options])

    def files(self) -> dict[str, bytes]:
        """Return the content of every file in the folder, by its path."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found}
