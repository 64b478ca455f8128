"""The comparison with peers: ratios of scripted generations, what it shows of them, and the command on a tiny model."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tools.speed import contenders, in_turn, peers
from tools.speed.contenders import (
    ADACACHE,
    COMPILED,
    DBCACHE,
    EAGER,
    EASYCACHE,
    FBCACHE,
    FIRST_BLOCK,
    NEVER,
    Contender,
    Generation,
)
from tools.speed.wan import WanSize

ROOT = Path(__file__).parents[3]
SIZE = WanSize(depth=1, width=4, heads=1, inner=4, caption_width=4, frames=1, rows=1, columns=2, text=3)
TINY = {"width": 24, "heads": 2, "inner": 40, "caption-width": 20, "frames": 2, "rows": 2, "columns": 3, "text": 7}
ALL = (True, True, True, True)
REUSED = (True, True, False, False)


@dataclass
class Clock:
    """A clock that stands still unless a generation moves it."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds

    def generation(self, full_s: float, cached_s: float, computed: tuple[bool, ...]) -> Callable[[], Generation]:
        """Return what begins a generation; its first call takes a hundred times as long, and each call more."""

        def generate() -> Generation:
            for number, each in enumerate(computed):
                self.seconds += (full_s if each else cached_s) * (1 + number) * (1 if number else 100)
                yield each
            return np.full((1, 2), full_s, np.float32)

        return generate


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    monkeypatch.setattr(in_turn, "REST_S", 0)
    monkeypatch.setattr(in_turn, "torch_nbytes", lambda: 0)  # looks at all objects of the process, which are many here
    command = contenders.PACKAGES[DBCACHE][1]
    monkeypatch.setattr(contenders, "PACKAGES", {DBCACHE: ("not_a_package", command)})
    yield Clock()


def entered(clock: Clock, **changes: Callable[[], Generation]) -> list[Contender]:
    """Return scripted contenders: each call of diffusers eager takes 8 s, times its number."""
    plain = {
        EAGER: clock.generation(8, 0, ALL),
        COMPILED: clock.generation(6, 0, ALL),
        FIRST_BLOCK: clock.generation(8, 4, REUSED),
        DBCACHE: clock.generation(8, 4, ALL),
        NEVER: clock.generation(7, 0, ALL),
        FBCACHE: clock.generation(7, 2, REUSED),
        EASYCACHE: clock.generation(7, 1, ALL),
        ADACACHE: clock.generation(7, 0.14, REUSED),
    }
    generations = {**plain, **changes}
    own = {NEVER: 0, FBCACHE: 3 * SIZE.hidden_nbytes, EASYCACHE: 0, ADACACHE: SIZE.hidden_nbytes}
    return [Contender(name, generate, own.get(name)) for name, generate in generations.items()]


def test_calls_are_compared_with_the_same_call_of_diffusers(clock: Clock) -> None:
    made = in_turn.measure(entered(clock), 2, clock)
    assert [len(calls) for calls in made.measured[NEVER].seconds] == [4, 4]
    full, cached = made.full(NEVER), made.cached(FBCACHE)
    assert full is not None
    assert cached is not None
    assert full.low == full.median == full.high == pytest.approx(7 / 8)
    assert cached.median == pytest.approx(2 / 8)
    assert made.cached(NEVER) is None
    rows = {row.key: (row.spread.median, row.met) for row in made.wanted()}
    assert rows == {
        "full": (pytest.approx(7 / 8), True),
        "cached_1": (pytest.approx(1 / 2), True),
        "adacache": (pytest.approx(0.02), False),
    }
    assert made.difference(NEVER, EAGER) == pytest.approx(1 / 8)


def test_schedules_are_compared_where_the_rule_is_the_same(clock: Clock) -> None:
    calls = clock.generation(8, 4, (True, False, True, False))
    assert in_turn.measure(entered(clock), 1, clock).same_calls(FIRST_BLOCK) is True
    made = in_turn.measure(entered(clock, **{FIRST_BLOCK: calls}), 1, clock)
    assert made.same_calls(FIRST_BLOCK) is False
    assert made.same_calls(COMPILED) is None
    shown = dict(zip(peers.HEAD, peers.lines(made, SIZE)[2], strict=True))
    assert (shown["computed calls"], shown["the same calls"]) == ("1 3", "NOT as fbcache")


def test_what_is_not_installed_or_fails_does_not_end_the_others(clock: Clock) -> None:
    def failing() -> Generation:
        raise RuntimeError("no compiler\nand more")
        yield True

    made = in_turn.measure(entered(clock, **{COMPILED: failing}), 2, clock)
    assert made.measured[COMPILED].note == "failed: RuntimeError: no compiler"
    assert made.measured[DBCACHE].note == 'not installed: pip install "adacache-export[peers]"'
    assert made.same_calls(DBCACHE) is None
    assert made.full(NEVER) is not None
    with pytest.raises(RuntimeError, match="no compiler"):
        in_turn.measure(entered(clock, **{NEVER: failing}), 1, clock)


def test_the_table_the_page_and_the_document(clock: Clock) -> None:
    made, settings = in_turn.measure(entered(clock), 2, clock), peers.Settings(threads=1)
    by_name = {name: rest for name, *rest in peers.lines(made, SIZE)}
    assert by_name[FBCACHE] == ["0.875 (0.875 to 0.875)", "0.250 (0.250 to 0.250)", "3.0", "1 2", ""]
    assert by_name[EAGER] == ["1.000 (1.000 to 1.000)", "", "", "all", ""]
    page = peers.markdown(made, SIZE, settings, "python peers.py")
    assert "Made by `python peers.py`:" in page
    assert "| fbcache | 0.875 (0.875 to 0.875) | 0.250 (0.250 to 0.250) | 3.0 | 1 2 |  |" in page
    assert "| cached call of adacache / full call | 0.020 | 0.020 to 0.020 | at most 0.01 | NO |" in page
    written = json.loads(json.dumps(peers.document(made, SIZE, settings)))
    assert written["wanted"]["full"] == {
        **dict.fromkeys(("median", "low", "high"), pytest.approx(7 / 8)),
        "what": "full call / diffusers eager",
        "limit": "at most 1",
        "met": True,
    }
    assert written["contenders"][FBCACHE]["cache_hidden_states"] == 3
    assert written["contenders"][EAGER]["cache_hidden_states"] is None
    assert written["contenders"][DBCACHE]["note"].startswith("not installed")


@pytest.mark.slow
def test_the_command_on_a_tiny_model(tmp_path: Path) -> None:
    target = tmp_path / "peers.json"
    tiny = [f"--{option}={value}" for option, value in {**TINY, "depth": 2, "steps": 6, "rounds": 1}.items()]
    command = [sys.executable, "tools/speed/peers.py", *tiny, "--threads=1", "--json", str(target)]
    command += ["--results", str(tmp_path), "--temp", str(tmp_path)]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    written = json.loads(target.read_text())
    found = written["contenders"]
    assert written["difference"] < 1e-4
    assert found[NEVER]["computed_calls"] == [1, 2, 3, 4, 5, 6]
    assert 1 < len(found[FBCACHE]["computed_calls"]) < 6
    for name in (FIRST_BLOCK, DBCACHE):
        if not found[name]["note"]:
            assert found[name]["same_calls"]
            assert found[name]["cache_hidden_states"] >= 2
    assert not found[FIRST_BLOCK]["note"]
    assert {"full", "cached_1", "adacache"} <= written["wanted"].keys()
    assert "relative to a full call of diffusers eager" in shown.stdout
    assert (tmp_path / "peers.md").read_text().startswith("# Peers on the same work\n")
    assert {path.name for path in tmp_path.iterdir()} == {"peers.json", "peers.md"}
