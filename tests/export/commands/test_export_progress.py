import io
import re

import pytest

from adacache_export.commands.progress import PhaseProgress
from adacache_export.phases import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def visible(stream: io.StringIO) -> str:
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", stream.getvalue())


def lines(stream: io.StringIO) -> list[str]:
    """Return the lines that were printed, with every number of seconds as S."""
    return re.sub(r"\d+(\.\d)? s$", "S", stream.getvalue(), flags=re.MULTILINE).splitlines()


def work(progress: Progress) -> None:
    step = progress.phase("writing [the] weights", 2_500_000_000)
    step(2_400_000_000)
    step = progress.phase("tracing", 7)
    for _ in range(7):
        step(1)


def test_a_line_when_a_phase_is_over(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with PhaseProgress(stream) as progress:
        progress.note("family open-sora [1.2]")
        work(progress)
        assert lines(stream) == ["family open-sora [1.2]", "writing [the] weights: S"]
    assert lines(stream)[2:] == ["tracing: S"]
    assert "\x1b" not in stream.getvalue()


def test_an_error_is_no_success():
    stream = io.StringIO()
    with pytest.raises(ValueError, match="broken"), PhaseProgress(stream) as progress:
        work(progress)
        raise ValueError("broken")
    assert lines(stream)[-1] == "tracing: stopped after S"


def test_bars_count_bytes_or_items(terminal):
    with PhaseProgress(terminal) as progress:
        progress.note("family open-sora [1.2]")
        work(progress)
    last = [line.rstrip() for line in visible(terminal).splitlines()[-2:]]
    assert re.fullmatch(r"writing \[the\] weights .* 2\.5/2\.5 GB \d:\d\d:\d\d", last[0])  # over, whatever was counted
    assert re.fullmatch(r"tracing .* 7/7 +\d:\d\d:\d\d", last[1])
    assert "family open-sora [1.2]" in visible(terminal)
    assert terminal.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_a_bar_stays_where_an_error_stopped_it(terminal):
    with pytest.raises(KeyboardInterrupt), PhaseProgress(terminal) as progress:
        progress.phase("verifying", 10)(3)
        raise KeyboardInterrupt
    assert "3/10" in visible(terminal).splitlines()[-1]


def test_more_than_announced_is_not_shown(terminal):
    with PhaseProgress(terminal) as progress:
        progress.phase("hashing", 2_000_000)(3_000_000)
    assert "2.0/2.0 MB" in visible(terminal)
    assert "3.0" not in visible(terminal)


def test_an_empty_phase(terminal):
    with PhaseProgress(terminal) as progress:
        progress.phase("nothing", 0)(0)
    assert "nothing" in visible(terminal)


def test_standard_error_is_the_default(capsys):
    with PhaseProgress() as progress:
        progress.phase("tracing", 1)(1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("tracing: ")
