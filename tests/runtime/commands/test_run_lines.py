"""The lines that ``adacache-run`` prints, on a model of pixels in numpy."""

from pathlib import Path

import numpy as np
import pytest

from adacache_engines.backends import BACKENDS
from adacache_engines.contract.fake import FakeBackend
from adacache_runtime.commands.run import main as run
from tests.helpers.model.fake_model import captions, functions, write_bundle
from tests.helpers.model.opened import Opens


@pytest.mark.parametrize(
    ("prompts", "options", "line"),
    [
        (1, [], "5x2, 4 frames, 24 fps, seed 0, policy never, 6 calls"),
        (1, ["--frames", "1"], "5x2, an image, 120 fps, seed 0, policy never, 6 calls"),
        (
            *(2, ["--fps", "8", "16", "--seed", "7", "--policy", "interval-2", "--steps", "3"]),
            "2 videos: 5x2, 4 frames, 8, 16 fps, seed 7, policy interval-2, 3 calls",
        ),
    ],
)
def test_a_run_first_says_what_it_makes(
    prompts: int,
    options: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(BACKENDS, "onnxruntime", Opens(FakeBackend(functions())))
    write_bundle(tmp_path / "bundle")
    text = captions(prompts)
    np.savez(tmp_path / "text.npz", embeddings=text.embeddings, mask=text.mask)
    inputs = ["--text-embeddings", str(tmp_path / "text.npz"), "--save-latents", str(tmp_path / "out.npz")]
    assert run([str(tmp_path / "bundle"), *inputs, *options]) == 0
    assert capsys.readouterr().err.splitlines()[0] == line
