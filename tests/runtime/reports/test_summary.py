import io
import math
import re
import sys
from dataclasses import replace

import av
import numpy as np
import pytest
from rich.console import Console

from adacache_engines.errors import InputError, MissingDependencyError
from adacache_runtime.caching.policy import Observation
from adacache_runtime.commands.progress import call_progress, duration, seconds_left
from adacache_runtime.reports.schedule_plot import check_plot, plot_schedule
from adacache_runtime.reports.summary import milliseconds, ranges, summary, timing
from adacache_runtime.trace import CallRecord, Trace
from tests.helpers.model.fake_model import manifest
from tests.helpers.tiny_models.operation_counts import ENDS, SIZES, SPATIAL, TEMPORAL, TEXT, counted_fake

NOTHING: Observation = {}


def record(call, compute=(True,), observation=NOTHING, engine=(1, 1, 1, 0, 0), wall_ms=None) -> CallRecord:
    parts = dict(zip(("embed", "blocks", "final", "measure", "update"), engine, strict=True))
    wall_ms = sum(engine) if wall_ms is None else wall_ms
    return CallRecord(call, 1000.0 - call, compute, observation, parts, wall_ms)


def adaptive(calls: int, computed: set[int], motion: bool = False, groups: int = 1) -> Trace:
    """Computed calls take 100 ms, the others 2 ms, and 1 ms of each is not in engines."""
    records = []
    for call in range(1, calls + 1):
        if call not in computed:
            records.append(record(call, (False,) * groups, engine=(0.4, 0.2, 0.3, 0, 0.1), wall_ms=2))
            continue
        moved = {"motion": 1.2} if motion else {}
        seen = {"distance": 0.3 / call, **moved, "metric": 0.4 / call, "rate": min(6, call)} if call > 1 else NOTHING
        records.append(record(call, (True,) * groups, seen, engine=(0.4, 97, 0.3, 1.2, 0.1), wall_ms=100))
    return Trace(tuple(records))


def text(trace: Trace, manifest=None) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(summary(trace, manifest))
    return re.sub(" +", " ", out.getvalue())


@pytest.mark.parametrize(
    ("numbers", "short"),
    [([1, 2, 3, 4, 5, 8, 11], "1-5, 8, 11"), ([], "none"), ([7], "7"), ([1, 2, 4, 5], "1-2, 4-5"), ([1, 3], "1, 3")],
)
def test_ranges(numbers, short):
    assert ranges(numbers) == short


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0421, "42 µs"),
        (0.123, "0.12 ms"),
        (9.996, "10.0 ms"),
        (42, "42.0 ms"),
        (99.96, "100 ms"),
        (999.6, "1.00 s"),
        (12_345, "12.3 s"),
    ],
)
def test_milliseconds(value, shown):
    assert milliseconds(value) == shown


def test_timing_adds_up():
    times = timing(adaptive(10, {1, 2, 5, 9, 10}))
    assert times.wall_ms == pytest.approx(510)
    assert times.engine_ms == pytest.approx(500)
    assert (times.computed_ms, times.reused_ms, times.full_ms) == (100, 2, 100)
    assert times.overhead == pytest.approx(10 / 510)
    assert times.speed_up == pytest.approx(10 * 100 / 510)


def test_the_speed_up_is_over_calls_with_every_block():
    calls = [
        record(1, (True, True), wall_ms=10),
        record(2, (True, False), wall_ms=6),
        record(3, (False, False), wall_ms=2),
    ]
    times = timing(Trace(tuple(calls)))
    assert (times.full_ms, times.computed_ms, times.reused_ms) == (10, 8, 2)
    assert times.speed_up == pytest.approx(30 / 18)


def test_timing_without_time_or_calls():
    assert timing(Trace(())).speed_up is None
    still = timing(Trace((record(1, engine=(0, 0, 0, 0, 0)),)))
    assert (still.overhead, still.speed_up) == (0, None)


def test_summary_says_what_was_measured():
    shown = text(adaptive(10, {1, 2, 5, 9, 10}))
    assert "computed calls 5 of 10 (50%): 1-2, 5, 9-10" in shown
    assert "a computed call 100 ms on average" in shown
    assert "a reused call 2.00 ms on average, 2.0% of a computed one" in shown
    assert "loop overhead 2.0% of the wall-clock time" in shown
    assert "speed-up 1.96 times over computing every call, from this run's own calls" in shown


def test_summary_of_a_run_that_reuses_nothing():
    shown = text(adaptive(4, {1, 2, 3, 4}))
    assert "4 of 4 (100%): 1-4" in shown
    assert "reused" not in shown
    assert "1.00 times" in shown


def test_summary_counts_operations_where_the_bundle_does():
    run = replace(adaptive(10, {1, 2, 5, 9, 10}), sizes=SIZES)
    whole, reused = TEXT + 10 * (ENDS + 2 * (SPATIAL + TEMPORAL)), 5 * 2 * (SPATIAL + TEMPORAL)
    expected = f"computation 0.04 of 0.08 MFLOP ({(whole - reused) / whole:.0%})"
    assert expected in text(run, counted_fake())
    assert "computation" not in text(run, manifest())
    assert "computation" not in text(run)


def test_summary_needs_calls():
    with pytest.raises(InputError, match="no calls"):
        summary(Trace(()))


def never(calls: int) -> Trace:
    return Trace(tuple(record(call) for call in range(1, calls + 1)))


def one_frame() -> Trace:
    """One frame has no motion, so it is NaN, and so is the metric."""
    seen = {"distance": 0.2, "motion": math.nan, "metric": math.nan, "rate": 1}
    return Trace(tuple(record(call, observation=seen if call > 1 else NOTHING) for call in range(1, 6)))


def untimed() -> Trace:
    return Trace(tuple(record(call, engine=(0, 0, 0, 0, 0)) for call in range(1, 4)))


def mixed() -> Trace:
    rows = [(True, True), (True, False), (False, True), (False, False)]
    return Trace(tuple(record(call, row) for call, row in enumerate(rows, 1)))


def picture(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def shows(path, colour: str) -> bool:
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return bool((picture(path) == wanted).all(-1).any())


TRACES = {
    "adaptive": adaptive(12, {1, 2, 5, 11, 12}),
    "100 with motion": adaptive(100, {1, 2, 50, 100}, motion=True),
    "never": never(30),
    "one call": never(1),
    "one frame": one_frame(),
    "no times": untimed(),
    "groups": mixed(),
}


@pytest.mark.parametrize("name", TRACES)
def test_every_kind_of_trace_can_be_drawn(tmp_path, name):
    path, trace = tmp_path / "schedule.png", TRACES[name]
    plot_schedule(trace, path, "a title")
    assert list(tmp_path.iterdir()) == [path]
    assert min(picture(path).shape[:2]) > 300
    assert shows(path, "#0072B2")
    assert shows(path, "#E69F00") == (len(trace.computed()) < len(trace.calls))


def test_panels_only_for_what_was_measured(tmp_path):
    heights = []
    for trace in (never(6), adaptive(6, {1, 2, 6}), adaptive(6, {1, 2, 6}, motion=True)):
        plot_schedule(trace, tmp_path / "schedule.png", "a title")
        heights.append(len(picture(tmp_path / "schedule.png")))
    assert heights[0] < heights[1] < heights[2]


def test_the_same_trace_gives_the_same_picture(tmp_path):
    for name in ("a.png", "b.png"):
        plot_schedule(never(3), tmp_path / name, "50 % of $ and $^ \\")  # a prompt is no formula
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_plots_that_cannot_be(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"drawn as a \.png"):
        plot_schedule(never(3), tmp_path / "schedule.jpg", "a title")
    with pytest.raises(InputError, match="no folder"):
        check_plot(tmp_path / "missing" / "schedule.png")
    with pytest.raises(InputError, match="no calls"):
        plot_schedule(Trace(()), tmp_path / "schedule.png", "a title")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"adacache-export\[plot\]"):
        check_plot(tmp_path / "schedule.png")
    assert not list(tmp_path.iterdir())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream, trace) -> str:
    with call_progress(len(trace.calls), stream) as step:
        for one in trace.calls:
            step(one)
    return stream.getvalue()


def test_plain_lines_without_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # of which rich alone would make a terminal
    shown = run(io.StringIO(), adaptive(30, {1, 2, 5, 30}))
    lines = shown.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("step 3/30, reused, about ")
    assert lines[-1] == "step 30/30, computed"
    assert "\x1b" not in shown
    assert "\r" not in shown


@pytest.mark.parametrize("calls", [1, 3, 159])
def test_few_lines_for_any_number_of_calls(calls):
    lines = run(io.StringIO(), never(calls)).splitlines()
    assert len(lines) == min(calls, 10)
    assert lines[-1] == f"step {calls}/{calls}, computed"


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in run(Terminal(), never(20))


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    shown = run(Terminal(), adaptive(30, {1, 2, 5, 30}))
    assert "\x1b[?25h" in shown  # the cursor is back
    assert "step 30/30" in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown)
    assert capsys.readouterr().out == ""


def test_the_bar_ends_with_an_error(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), call_progress(3, stream) as step:
        step(record(1))
        raise KeyboardInterrupt
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")


def test_standard_error_is_the_default(capsys):
    with call_progress(1) as step:
        step(record(1))
    assert capsys.readouterr() == ("", "step 1/1, computed\n")


def test_time_left_follows_the_last_rate():
    fast = list(adaptive(100, {1, 2, 6}).calls[:10])  # the last rate is 6
    assert seconds_left(fast, 100) == pytest.approx(90 * (100 / 6 + 2 * 5 / 6) / 1e3)


def test_time_left_without_rates_follows_the_share_so_far():
    every_other = [record(call, (call % 2 == 1,), wall_ms=100 if call % 2 else 10) for call in range(1, 7)]
    assert seconds_left(every_other, 26) == pytest.approx(20 * 55 / 1e3)
    assert seconds_left([record(1, wall_ms=50)], 11) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1:00 min"), (185, "3:05 min"), (3725, "1:02:05 h")],
)
def test_duration(seconds, shown):
    assert duration(seconds) == shown
