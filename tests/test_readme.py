"""The commands of the README and of the pages for users do what they say, in order, in a copy of the checkout."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.waiting import HANG_SECONDS

ROOT = Path(__file__).parent.parent
README, RUNNING, ENGINES = (
    (ROOT / folder / "README.md").read_text(encoding="utf-8") for folder in (".", "runtime", "engines")
)
LONGEST = 200  # lines of the README, which is for a person who has ten minutes
REAL = ("opensora.", "Latte-1")
ELSEWHERE = ("pip install", *(f"adacache-{what} {name}" for what in ("export", "run") for name in REAL), "make test")
SERVE = "adacache-serve out/mine.adacache"
BIN = Path(sys.executable).parent


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    return [line.partition("#")[0].strip() for block in blocks("sh", text) for line in block.splitlines()]


def section(text: str, title: str) -> str:
    """The part of a page under a heading of the second level."""
    _, heading, rest = text.partition(f"## {title}\n")
    assert heading, title
    return rest.partition("\n## ")[0]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "tools", copy / "tools")
    shutil.copy(ROOT / "Makefile", copy)
    return copy


def run(words: list[str], folder: Path) -> str:
    # the tests may run under make themselves
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def recipe(target: str, folder: Path) -> list[list[str]]:
    """Return the commands that make would run in an environment that is installed already."""
    lines = run(
        ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/installed", target], folder
    ).splitlines()
    return [shlex.split(line.replace(".venv/bin", str(BIN))) for line in lines]


def demo(checkout: Path) -> str:
    """``make demo``; what it prints."""
    outputs = [run(words, checkout) for words in recipe("demo", checkout)]
    return outputs[-1]


def make_mine(checkout: Path) -> None:
    """The bundle that the commands of later sections take."""
    if not (checkout / "out" / "mine.adacache").exists():
        (checkout / "out").mkdir(exist_ok=True)
        typed(next(command for command in commands(README) if "-o out/mine.adacache" in command), checkout)


def typed(command: str, checkout: Path) -> None:
    words = shlex.split(command)
    program = next(index for index, word in enumerate(words) if "=" not in word)
    words[program] = str(BIN / words[program])
    run(["env", *words], checkout)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= LONGEST


@pytest.mark.slow
def test_commands(checkout: Path) -> None:
    """The README's, and those of the pages on policies."""
    assert {"make demo", "make test"} <= set(commands(README))
    own = section(RUNNING, "A policy of your own")
    (policy,) = blocks("python", own)
    (checkout / "mine.py").write_text(policy)
    for command in (*commands(README), *commands(own)):
        if command == "make demo":
            *_, video, plot, ratio = demo(checkout).splitlines()
            for line, what in ((video, "video"), (plot, "schedule plot")):
                assert line.startswith(what)
                assert (checkout / line.split()[-1]).stat().st_size > 0
            assert re.match(r"speed-up +\d+\.\d+ times", ratio)
        elif not command.startswith(ELSEWHERE) and command != SERVE:
            typed(command, checkout)
    assert (checkout / "out" / "mine.mp4").stat().st_size > 0
    (code,) = blocks("python", README)
    assert run([sys.executable, "-c", code], checkout).startswith("[1, 2")
    for name in ("api.mp4", "own.mp4"):
        assert (checkout / "out" / name).stat().st_size > 0


@pytest.mark.slow
def test_commands_for_plans_and_profiles(checkout: Path) -> None:
    make_mine(checkout)
    here = [*commands(ENGINES), *commands(section(RUNNING, "Profiles"))]
    here = [command for command in here if not command.startswith(ELSEWHERE)]
    assert {"adacache-export", "adacache-profile", "polygraphy"} <= {command.split()[0] for command in here}
    for command in here:
        typed(command, checkout)
    assert (checkout / "out" / "profile.html").stat().st_size > 0
    assert (checkout / "out" / "00.plan").stat().st_size > 0
    assert list((checkout / "out" / "mine.adacache" / "engines").glob("tensorrt-rtx-*/spatial.00.plan"))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
def test_commands_for_serving(checkout: Path) -> None:
    make_mine(checkout)
    serving = section(RUNNING, "Serving")
    *calls, repository, _tritonserver, _ray = commands(serving)
    typed(repository, checkout)
    assert (checkout / "out" / "models" / "mine" / "config.pbtxt").stat().st_size > 0
    assert SERVE in commands(README)
    program, *words = shlex.split(SERVE)
    server = subprocess.Popen(
        [BIN / program, *words, "--port", "0"], cwd=checkout, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert server.stderr is not None
        address = next(word for word in server.stderr.readline().split() if word.startswith("http://"))
        wait = f"curl -fsS --retry 60 --retry-all-errors --retry-delay 1 {address}/readyz"
        script = "\n".join([wait, *calls]).replace("http://127.0.0.1:8000", address)
        run(["bash", "-euo", "pipefail", "-c", script], checkout)
        (client,) = blocks("python", serving)
        run([sys.executable, "-c", client.replace("http://127.0.0.1:8000", address)], checkout)
        for name in ("circle.mp4", "client.mp4"):
            assert (checkout / name).read_bytes()[4:8] == b"ftyp"
    finally:
        server.terminate()
        told = server.communicate(timeout=HANG_SECONDS)[1]
    assert server.returncode == 0, told


@pytest.mark.slow
def test_commands_that_measure(checkout: Path) -> None:
    if not (checkout / "out" / "demo.adacache").exists():
        demo(checkout)
    here = commands(section(RUNNING, "Which one? Measure, and calibrate"))
    assert [command.split()[0] for command in here] == ["adacache-compare", "adacache-calibrate", "adacache-run"]
    for command in here:
        typed(command, checkout)
    for name in ("calibrated.mp4", "cmp/frontier.png", "cmp/videos/001.mp4", "cal/calibrated.json"):
        assert (checkout / "out" / name).stat().st_size > 0


def test_the_policy_shown_is_one(tmp_path: Path) -> None:
    from adacache_runtime.caching.presets import policy_from

    (block,) = blocks("json", RUNNING)
    path = tmp_path / "policy.json"
    path.write_text(block)
    assert [measure.site for measure in policy_from(str(path)).needs.measures] == ["temporal.13.attn"]


def test_the_commands_for_a_real_checkpoint_parse() -> None:
    from adacache_export.commands.export import _parser as export_parser
    from adacache_runtime.commands.run_options import run_parser

    parsers = {"adacache-export": export_parser(), "adacache-run": run_parser()}
    real = [
        shlex.split(command)
        for command in (*commands(README), *commands(ENGINES))
        if command.startswith(ELSEWHERE[1:-1])
    ]
    assert len(real) > len(REAL)
    assert {words[0] for words in real} == set(parsers)
    for program, *arguments in real:
        parsers[program].parse_args(arguments)
