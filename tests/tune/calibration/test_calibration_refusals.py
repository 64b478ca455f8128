"""What ``adacache-calibrate`` refuses, and damaged files in its folder."""

import json
from pathlib import Path

import pytest

from tests.helpers.policies.calibration_command import PROMPTS, PSNR, Capture, Command, last_line


@pytest.mark.slow
def test_another_calibration_is_refused(command: Command, capsys: Capture) -> None:
    assert command(*PSNR) == 0
    files = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert command(*PSNR, "--guidance", "3", "--seed", "5") == 1
    assert last_line(capsys) == (
        "adacache-calibrate: fake-calibration holds another calibration (other guidance, seed); give --force to begin "
        "anew, or another -o"
    )
    command.change(producer="another program")
    assert command(*PSNR) == 1
    assert "(other bundle); give --force to begin anew" in last_line(capsys)
    command.change(producer="tests")
    assert command.calls == []
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == files
    assert command(*PSNR, "--gaps", "3", "-o", "other") == 0
    assert command(*PSNR, "--gaps", "3", "--force") == 0
    assert command.calls
    assert json.loads(Path("fake-calibration/settings.json").read_text())["gaps"] == 3


REFUSED: dict[str, tuple[list[str], str]] = {
    "no prompts": (["--prompts", "nowhere.txt"], "prompts nowhere.txt cannot be read: No such file"),
    "few": (["--prompts", "five.txt"], "4 to record and 1 to confirm on are too few prompts; give at least 6 prompts"),
    "few held out": (["--held-out", "one.txt"], "6 to record and 1 to confirm on are too few prompts; give at least 2"),
    "overlap": (["--held-out", "five.txt"], "five.txt has prompts of prompts.txt, such as 'a boat'; take them out"),
    "psnr": (["--target-psnr", "0"], "--target-psnr 0.0 is not possible; choose at least 1"),
    "nan": (["--target-psnr", "nan"], "--target-psnr nan is not possible; choose at least 1"),
    "infinite": (["--target-psnr", "inf"], "--target-psnr inf is not possible"),
    "confirm": (["--confirm", "0"], "--confirm 0 is not possible; choose at least 1"),
    "gaps": (["--gaps", "0"], "--gaps 0 is not possible; choose at least 1"),
    "tries": (["--tries", "-1"], "--tries -1 is not possible; choose at least 0"),
    "seed": (["--seed", "-1"], "seed -1 is not possible"),
    "steps": (["--steps", "0"], "1 to 1000"),
    "few steps": (["--steps", "2"], "2 calls of the model are too few to choose from; choose more --steps"),
    "frames": (["--frames", "0"], "frames 0 is not possible"),
    "size": (["--size", "6x8"], "frames of 6x8 pixels are too small for SSIM"),
    "guidance": (["--guidance", "-1"], "guidance -1.0 is not possible"),
    "name": (["--name", "a+b"], "--name 'a+b' is not possible; choose letters"),
    "no name": (["--name", ""], "--name '' is not possible"),
    "motion": (
        ["--frames", "1", "--methods", "adacache-moreg"],
        "adacache-moreg goes by motion, and an image has none",
    ),
    "folder": (["-o", "nowhere/out"], "nowhere/out cannot be used: No such file or directory; choose another -o"),
    "file": (["-o", "one.txt"], "one.txt cannot be used: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_runs(case: str, command: Command, capsys: Capture) -> None:
    Path("one.txt").write_text("a bull frog")
    Path("five.txt").write_text("\n".join(PROMPTS[:5]))
    options, message = REFUSED[case]
    files = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    goal = [] if options[0] == "--target-psnr" else PSNR
    assert command(*goal, *options) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""
    assert command.calls == []
    assert not Path("fake-calibration").exists()
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("goal", [[], [*PSNR, "--target-speedup", "2"], ["--target-psnr", "high"]])
def test_one_goal(command: Command, goal: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(*goal)


def test_speeds_that_are_none(command: Command, capsys: Capture) -> None:
    for speed in ("1", "0.5", "nan"):
        assert command("--target-speedup", speed) == 1
        assert "--target-speedup" in (line := last_line(capsys))
        assert line.endswith("is not possible; choose at least 1.01")


def test_damaged_files(command: Command, capsys: Capture) -> None:
    assert command(*PSNR, methods=["interval"]) == 0
    for name, content, message in (
        ("record-001.npz", "no record", "record-001.npz is no record of adacache-calibrate"),
        ("settings.json", "{", "settings.json is damaged (Expecting property name"),
        ("settings.json", "[]", "settings.json is damaged (it is no object); give --force to begin anew"),
    ):
        Path("fake-calibration", name).write_text(content)
        assert command(*PSNR, methods=["interval"]) == 1
        assert message in last_line(capsys)
    assert command(*PSNR, "--force", methods=["interval"]) == 0
