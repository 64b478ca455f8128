"""``adacache-calibrate`` in a folder of its own, with prompts and a bundle of the fake model."""

from pathlib import Path

import pytest

from tests.helpers.policies.calibration_command import Command, command_in


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    return command_in(tmp_path, monkeypatch)
