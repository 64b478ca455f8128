"""The lines of the README and the examples, on the demo's bundle and on one with a VAE."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adacache_runtime import OnnxRuntime, Pipeline, Request
from adacache_runtime.caching.presets import PRESETS
from adacache_runtime.events import Called
from adacache_runtime.vae.decode import render
from tools.examples.async_events import events, make

ROOT = Path(__file__).parents[2]
PROMPT = "a red circle moves left fast"
pytestmark = pytest.mark.slow  # both bundles are exported


@pytest.fixture(params=["demo", "vae"])
def folder(request: pytest.FixtureRequest) -> Path:
    """A bundle of pixels, and one whose frames a VAE decodes."""
    made: Path = request.getfixturevalue("demo_bundle" if request.param == "demo" else "decoding_folder")
    return made


def test_the_lines_of_the_design(folder: Path, tmp_path: Path) -> None:
    """They give the arrays that a request gives whose latents are decoded afterwards."""
    with Pipeline.open(folder, backend=OnnxRuntime(provider="cpu")) as pipeline:
        usual = pipeline.bundle.manifest.video
        size = f"{usual.width}x{usual.height}"
        video = pipeline(PROMPT, policy="adacache-fast", size=size, seed=0, steps=6)
        video.save(tmp_path / "boat.mp4")
        asked = Request(prompts=(PROMPT,), policy=PRESETS["adacache-fast"], seed=0, steps=6)
        alone = pipeline.generate(asked)
        np.testing.assert_array_equal(video.latents, alone.latents[0])
        expected = render(pipeline.bundle, pipeline.backend, alone.latents[0], len(video.frames))
        np.testing.assert_array_equal(video.frames, expected)
        assert video.trace.computed() == alone.trace.computed()
        assert (video.width, video.height) == video.pil()[0].size == video.frames.shape[2:0:-1]
    assert (tmp_path / "boat.mp4").read_bytes()[4:8] == b"ftyp"


def test_the_readme_s_python(folder: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "from adacache_runtime import" in block and "Pipeline.open" in block]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.adacache").symlink_to(folder)
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[1, 2")
    assert (tmp_path / "out" / "api.mp4").stat().st_size > 0


def test_the_asynchronous_example(decoding_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Pipeline.open(decoding_folder) as pipeline:
        asyncio.run(make(pipeline, PROMPT, tmp_path / "async.mp4"))
        assert "call 1 of " in capsys.readouterr().out
        assert (tmp_path / "async.mp4").stat().st_size > 0
        prepared = pipeline.prepare(pipeline.request(PROMPT))

        async def cancelled() -> int:
            """Cancel a task after its first call; others go on."""
            seen: list[object] = []

            async def read() -> None:
                async for event in events(prepared):
                    seen.append(event)  # noqa: PERF401 - one by one, while the task that cancels looks on

            task = asyncio.create_task(read())
            while not any(isinstance(event, Called) for event in seen):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            return len(seen)

        assert asyncio.run(cancelled()) < prepared.calls
