"""The benchmark runs on a tiny model and writes what it promises; the numbers mean nothing at that size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = {"depth": 1, "width": 32, "heads": 2, "tokens": 4, "caption-width": 8, "text": 3, "steps": 6, "repetitions": 1}
RATIOS = ("reuse_stack", "reuse_block", "overhead", "efficiency", "eager_ratio", "peak_memory_ratio")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_bench_writes_every_ratio(tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    tiny = [f"--{option}={value}" for option, value in TINY.items()]
    command = [sys.executable, "tools/bench.py", *tiny, "--eager-repetitions=2", "--json", str(target)]
    shown = subprocess.run([*command, "--temp", str(tmp_path)], cwd=ROOT, check=True, capture_output=True, text=True)
    written = json.loads(target.read_text())
    assert all(written[key] > 0 for key in RATIOS)
    assert all(written["ranges"][key][0] <= written[key] <= written["ranges"][key][1] for key in RATIOS)
    assert written["engine_eager_difference"] < 2e-5
    assert "in this run" in shown.stdout
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
