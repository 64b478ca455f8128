"""Command lines: every option with impossible values, standard streams that are gone, signals at any moment.

A command ends with one line and a status that is not 0, and leaves no file behind, unless the value is possible.
"""

import argparse
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from adacache_engines.errors import InputError
from adacache_export.commands import export, inspect
from adacache_runtime.commands import run_options
from adacache_serve.commands import options, serve
from adacache_serve.http import server
from adacache_tune.commands import calibrate, compare, profile
from tests.helpers.hostile_values import HUGE, hostile
from tests.helpers.model.fake_command import FakeRun
from tests.helpers.model.fake_prompts import prompted
from tests.helpers.waiting import HANG_SECONDS

Input = TypeVar("Input")
Tries = Callable[[Iterable[Input]], Iterator[Input]]
Capture = pytest.CaptureFixture[str]
Main = Callable[[list[str]], int]
USAGE = 2


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    (tmp_path / "prompts.txt").write_text("\n".join("abcdef"))
    (tmp_path / "ckpt.safetensors").write_bytes(b"no weights")
    return FakeRun(tmp_path, monkeypatch)


def survives(run: FakeRun, capsys: Capture, main: Main, words: list[str]) -> int:
    """Run a command; it may succeed, end with the usage, or say in one line what is wrong and leave nothing."""
    before = run.files()
    capsys.readouterr()
    try:
        status = main(words)
    except SystemExit as ended:
        assert ended.code == USAGE, words
        status = USAGE
    error = capsys.readouterr().err
    after = run.files()
    if status == 1:
        assert after == before, words
        *_, line = error.splitlines()
        assert line.startswith("adacache-"), words
        assert line.isprintable(), words
        assert len(line) < 5000, words
    else:
        assert status in (0, USAGE), words
    assert "Traceback" not in error, words
    for path in after.keys() - before.keys():
        (run.folder / path).unlink()
    return status


def test_every_option_of_a_run(run: FakeRun, tries: Tries[list[str]], capsys: Capture) -> None:
    for words in tries(hostile(run_options.run_parser())):
        survives(run, capsys, lambda given: run("--trace", "out/t.json", *given), words)


def reached(*_: object, **__: object) -> Any:
    """Stands for the work of a command: its options were found possible."""
    raise InputError("the work was reached")


def inspecting() -> argparse.ArgumentParser:
    """Return a parser of the options that an inspection heeds."""
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    return parser


PROMPTS = ("bundle", "--size", "8x8", "--prompts", "prompts.txt", "--steps", "8")
COMMANDS: dict[str, tuple[Main, Callable[[], argparse.ArgumentParser], tuple[str, ...]]] = {
    "compare": (compare.main, compare._parser, (*PROMPTS, "--policies", "interval-2", "--videos", "0")),
    "calibrate": (calibrate.main, calibrate._parser, (*PROMPTS, "--target-psnr", "26", "--methods", "interval")),
    "profile": (profile.main, profile._parser, ("bundle",)),
    "serve": (serve.main, options.parser_of, ("bundle", "--port", "0")),
    "export": (export.main, export._parser, ("ckpt.safetensors",)),
    "inspect": (export.main, inspecting, ("bundle", "--inspect")),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_the_others(
    command: str, run: FakeRun, tries: Tries[list[str]], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, parser, usual = COMMANDS[command]
    opened = prompted(run.folder / "fake")
    for module in (compare, calibrate):
        monkeypatch.setattr(module.Pipeline, "open", lambda *_, **__: opened)
    monkeypatch.setattr(compare, "_begin", reached)
    monkeypatch.setattr(calibrate, "begin", reached)
    monkeypatch.setattr(profile, "open_target", reached)
    monkeypatch.setattr(serve, "open_bundles", lambda _: {})
    monkeypatch.setattr(server, "serve", reached)
    for words in tries(hostile(parser())):
        survives(run, capsys, main, [*usual, *words])


IMPOSSIBLE = {
    "--threads": ("-1", "99999999999", HUGE, "nan", "1.5", ""),
    "--steps": ("-1", "0", "99999999999", HUGE),
    "--frames": ("-1", "0", "99999999999", HUGE),
    "--width": ("-1", "0", "99999999999", HUGE),
    "--seed": ("-1", "99999999999999999999", HUGE),
    "--loops": ("-1", "0", "99999999999", HUGE),
    "--zoom": ("-1", "0"),
    "--tile": ("-1", "0", HUGE),
    "--fps": ("nan", "inf", "-1", "0", "1e308", "5e-324"),
    "--guidance": ("nan", "inf", "-inf", "-1", "1e308"),
    "--edit": ("nan", "inf", "-inf", "-1", "1", "1e308"),
    "--aesthetic": ("nan", "inf", "-inf", "-1", "1e308"),
    "--motion": ("nan", "inf", "-inf", "-1", "1e308"),
}


@pytest.mark.parametrize("option", IMPOSSIBLE)
def test_numbers_that_no_video_has(option: str, run: FakeRun, tries: Tries[str], capsys: Capture) -> None:
    for value in tries(IMPOSSIBLE[option]):
        assert survives(run, capsys, lambda given: run("--trace", "out/t.json", *given), [f"{option}={value}"]), value


SERVER = {
    "--port": ("-1", "65536", HUGE),
    "--keep-hours": ("nan", "inf", "-1", "1e308"),
    "--keep-gb": ("nan", "inf", "-1", "1e308", HUGE),
    "--forget-days": ("nan", "inf", "-1", "1e308"),
    "--hang-seconds": ("nan", "inf", "-1", "0", "1e308"),
    "--drain-seconds": ("nan", "inf", "-1", "1e308"),
    "--queue": ("0", "-1"),
    "--attempts": ("0", "-1"),
    "--in-flight": ("0", "-1"),
    "--memory-budget": ("0", "-1"),
    "--host": ("", "\udcff", "x" * 300, "\x1b"),
}


@pytest.mark.parametrize("option", SERVER)
def test_a_server_does_not_begin(
    option: str, run: FakeRun, tries: Tries[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A negative age would delete all videos at once."""
    monkeypatch.setattr(serve, "open_bundles", lambda _: {})
    monkeypatch.setattr(server, "serve", lambda *_, **__: pytest.fail("it began"))
    usual = ["bundle"] if option == "--port" else ["bundle", "--port", "0"]
    for value in tries(value for value in SERVER[option] if value or option != "--host"):
        assert survives(run, capsys, serve.main, [*usual, f"{option}={value}"]) == 1, value


def test_bundles_that_are_none(run: FakeRun, tries: Tries[str], capsys: Capture) -> None:
    mains: list[Main] = [export.main, serve.main, profile.main]
    for bundle in tries(["", "\udcff", "x" * 300, "y/" * 5000, "\x1b[2J", "text.npz", "text.npz/x", "/proc/self/mem"]):
        for main in mains:
            assert survives(run, capsys, main, [bundle, *(["--inspect"] if main is export.main else [])])


# real processes: what a process alone can show

CHILD = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
import pytest
from adacache_engines.backends import BACKENDS
from adacache_engines.contract.fake import FakeBackend
from adacache_runtime.commands.run import main
from tests.helpers.model.fake_model import functions
from tests.helpers.model.opened import Opens

def block(given, usual=functions()["embed"]):
    if "wait" in sys.argv:
        print("waiting", file=sys.stderr, flush=True)
        sys.stdin.read()
    return usual(given)

BACKENDS["onnxruntime"] = Opens(FakeBackend({{**functions(), "embed": block}}))
options = [each for each in sys.argv[1:] if each != "wait"]
sys.exit(main(["bundle", "--text-embeddings", "text.npz", "--steps", "2", *options]))
"""


def child(
    run: FakeRun, words: str, stdout: int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a shell, ``words`` being what follows its name."""
    (run.folder / "child.py").write_text(CHILD)
    command = f'"{sys.executable}" -B child.py {words}'
    given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", "-c", command],
        cwd=run.folder,
        env=given,
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=HANG_SECONDS,
        check=False,
    )


def out(run: FakeRun) -> list[str]:
    return sorted(path.name for path in (run.folder / "out").iterdir())


def test_standard_output_that_is_closed(run: FakeRun, tries: Tries[str]) -> None:
    """It is found before the run: nothing is written."""
    for words in tries(("--trace out/t.json >&-", "--help >&-")):
        ended = child(run, words)
        assert ended.returncode == 1, words
        assert ended.stderr == (
            "adacache-run: standard output is closed; send it to a file or a program, or to /dev/null\n"
        )
        assert out(run) == []


def test_readers_that_have_gone(run: FakeRun, tries: Tries[str]) -> None:
    for words in tries(("--help", "--trace out/t.json", "-o -")):
        reading, writing = os.pipe()
        os.close(reading)
        ended = child(run, words, stdout=writing)
        os.close(writing)
        if words != "--help":  # argparse does not mind, and nobody misses it
            assert ended.returncode == 1, words
            assert ended.stderr.splitlines()[-1].startswith("adacache-run: standard output was closed before"), words
        assert "Traceback" not in ended.stderr, words
        assert "Exception ignored" not in ended.stderr, words


def test_standard_streams_that_fail(run: FakeRun, tries: Tries[str]) -> None:
    told = {
        "--trace out/t.json >/dev/full": "No space left on device",
        "--trace out/t.json 2>/dev/full": "",
        "--trace out/t.json <&- >&- 2>&-": "",
    }
    for words in tries(told):
        ended = child(run, words)
        assert "Traceback" not in ended.stderr, words
        assert "Exception ignored" not in ended.stderr, words
        if told[words]:
            assert ended.returncode == 1, words
            assert told[words] in ended.stderr.splitlines()[-1], words
        assert ended.returncode in (0, 1), words


def test_terminals_without_characters(run: FakeRun, tries: Tries[dict[str, str]]) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii", "TERM": "dumb"}
    without_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for environment in tries([ascii_only, without_locale]):
        ended = child(run, "--trace out/é日.json --plot $'out/\\xff.png'", **environment)
        assert ended.returncode == 0, (environment, ended.stderr)
        assert "Traceback" not in ended.stderr
        assert len(out(run)) == 2
        assert child(run, "--policy né", **environment).stderr.count("\n") == 1


def test_streams_without_characters(run: FakeRun, tries: Tries[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that are no text, and tables, on streams that have ASCII alone."""
    for words in tries(
        (["--trace", "out/é日.json"], ["--trace", "out/\udcff.json"], ["--estimate-memory"], ["--help"])
    ):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        if words == ["--help"]:
            with pytest.raises(SystemExit, match="0"):
                run(*words)
        else:
            assert run(*words) == 0
        streams[0].flush()
        assert streams[0].buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("stops", [("INT",), ("TERM",), ("HUP",), ("TERM", "TERM", "INT"), ("INT", "INT")])
def test_a_signal_in_the_middle_of_a_run(stops: tuple[str, ...], run: FakeRun) -> None:
    (run.folder / "child.py").write_text(CHILD)
    words = [sys.executable, "-B", "child.py", "wait", "-o", "out/v.npz", "--trace", "out/t.json"]
    with subprocess.Popen(
        words, cwd=run.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        before = []
        while (line := process.stderr.readline()) != "waiting\n":
            assert line
            before.append(line)
        numbers = [signal.Signals[f"SIG{name}"] for name in stops]
        for number in numbers:
            process.send_signal(number)
        _, error = process.communicate(timeout=HANG_SECONDS)
    assert error == "adacache-run: stopped; what was not finished was not written\n"
    assert process.returncode in {128 + number for number in numbers}
    assert out(run) == []


def test_a_signal_that_was_ignored_from_the_start(run: FakeRun) -> None:
    """``nohup`` lets a command ignore the end of its terminal, so the run goes on to its end."""
    (run.folder / "child.py").write_text(CHILD)
    words = [sys.executable, "-B", "child.py", "wait", "--trace", "out/t.json"]
    shell = ["bash", "-c", 'trap "" HUP; exec "$@"', "-", *words]
    with subprocess.Popen(
        shell, cwd=run.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while process.stderr.readline() != "waiting\n":
            assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0
    assert out(run) == ["t.json"]
