"""The measurement of a text encoder's export runs from its command line, on a small encoder."""

import re
import sys

import pytest

from tools.speed import text_encoder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")]


def test_a_small_encoder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["text_encoder", "--gb", "0.02"])
    text_encoder.main()
    told = capsys.readouterr().out
    assert re.search(r"^shards, \d+ MB, \d+ s$", told, re.MULTILINE)
    assert re.search(r"^resident: [1-9]\d* MB, \d+\.\d\d of the file$", told, re.MULTILINE)
