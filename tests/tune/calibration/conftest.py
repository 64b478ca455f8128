"""``adacache-calibrate`` in a folder of its own, with prompts and a bundle of the fake model."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from adacache_runtime.denoising import denoiser as loop
from tests.helpers.model import fake_model
from tests.helpers.policies.calibration_command import PROMPTS, Command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(PROMPTS))
    fake_model.write_bundle(tmp_path / "fake.adacache")
    made = Command(tmp_path / "fake.adacache", monkeypatch)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made
