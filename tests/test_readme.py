"""The README's commands do what it says, in order, in a copy of the checkout."""

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
README = (ROOT / "README.md").read_text()
REAL = ("opensora.", "Latte-1")
ELSEWHERE = ("pip install", *(f"adacache-{what} {name}" for what in ("export", "run") for name in REAL), "make test")
# sections whose commands take longer than the others', or are of interest to few
MEASURING = "## Which one? Measure, and calibrate\n"
PLANS, PROFILING, SERVING = "## Compiled plans\n", "## Profiling\n", "## Serving\n"
BIN = Path(sys.executable).parent


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str = README) -> list[str]:
    return [line.partition("#")[0].strip() for block in blocks("sh", text) for line in block.splitlines()]


def commands_of(*titles: str) -> list[str]:
    return [command for title in titles for command in commands(README.partition(title)[2].partition("\n## ")[0])]


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
    """What make would run in an environment that is installed already."""
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
        typed(next(command for command in commands() if "-o out/mine.adacache" in command), checkout)


def typed(command: str, checkout: Path) -> None:
    words = shlex.split(command)
    program = next(index for index, word in enumerate(words) if "=" not in word)
    words[program] = str(BIN / words[program])
    run(["env", *words], checkout)


def test_commands(checkout: Path) -> None:
    assert {"make demo", "make test"} <= set(commands())
    for block in blocks("python"):
        if name := re.match(r"# (\w+\.py)\n", block):
            (checkout / name[1]).write_text(block)
    for command in commands():
        if command == "make demo":
            *_, video, plot, ratio = demo(checkout).splitlines()
            for line, what in ((video, "video"), (plot, "schedule plot")):
                assert line.startswith(what)
                assert (checkout / line.split()[-1]).stat().st_size > 0
            assert re.match(r"speed-up +\d+\.\d+ times", ratio)
        elif not command.startswith(ELSEWHERE) and command not in commands_of(MEASURING, PLANS, PROFILING, SERVING):
            typed(command, checkout)
    assert (checkout / "out" / "mine.mp4").stat().st_size > 0
    for block in blocks("python"):
        if not block.startswith("# "):
            computed = run([sys.executable, "-c", block], checkout)
            assert computed.startswith("[1, 2")
    for name in ("api.mp4", "own.mp4"):
        assert (checkout / "out" / name).stat().st_size > 0


@pytest.mark.slow
def test_commands_for_plans_and_profiles(checkout: Path) -> None:
    make_mine(checkout)
    here = [command for command in commands_of(PLANS, PROFILING) if not command.startswith(ELSEWHERE)]
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
    begin, *calls, repository, _tritonserver, _ray = commands_of(SERVING)
    typed(repository, checkout)
    assert (checkout / "out" / "models" / "mine" / "config.pbtxt").stat().st_size > 0
    program, *words = shlex.split(begin)
    server = subprocess.Popen(
        [BIN / program, *words, "--port", "0"], cwd=checkout, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert server.stderr is not None
        address = next(word for word in server.stderr.readline().split() if word.startswith("http://"))
        wait = f"curl -fsS --retry 60 --retry-all-errors --retry-delay 1 {address}/readyz"
        script = "\n".join([wait, *calls]).replace("http://127.0.0.1:8000", address)
        run(["bash", "-euo", "pipefail", "-c", script], checkout)
        (client,) = [block for block in blocks("python") if block.startswith("# client.py")]
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
    here = commands_of(MEASURING)
    assert [command.split()[0] for command in here] == ["adacache-compare", "adacache-calibrate", "adacache-run"]
    for command in here:
        typed(command, checkout)
    for name in ("calibrated.mp4", "cmp/frontier.png", "cmp/videos/001.mp4", "cal/calibrated.json"):
        assert (checkout / "out" / name).stat().st_size > 0


def test_the_policy_shown_is_one(tmp_path: Path) -> None:
    from adacache_runtime.caching.presets import policy_from

    (block,) = blocks("json")
    path = tmp_path / "policy.json"
    path.write_text(block)
    assert [measure.site for measure in policy_from(str(path)).needs.measures] == ["temporal.13.attn"]


def test_the_commands_for_a_real_checkpoint_parse() -> None:
    from adacache_export.commands.export import _parser as export_parser
    from adacache_runtime.commands.run_options import run_parser

    parsers = {"adacache-export": export_parser(), "adacache-run": run_parser()}
    real = [shlex.split(command) for command in commands() if command.startswith(ELSEWHERE[1:-1])]
    assert len(real) > len(REAL)
    assert {words[0] for words in real} == set(parsers)
    for program, *arguments in real:
        parsers[program].parse_args(arguments)
