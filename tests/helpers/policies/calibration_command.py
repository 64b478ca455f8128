"""The command ``adacache-calibrate`` on the fake model, on a clock that its engines move."""

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adacache_engines.bundle.files import Bundle, open_bundle, read_manifest, replace_manifest
from adacache_engines.bundle.manifest import Manifest
from adacache_engines.contract.fake import FakeBackend, Function
from adacache_runtime.denoising import denoiser as loop
from adacache_tune.commands import calibrate as cli
from adacache_tune.commands.calibrate import main
from tests.helpers.model import fake_model
from tests.helpers.model.experts import LOW
from tests.helpers.model.fake_model import BLOCKS
from tests.helpers.model.fake_prompts import Prompted

Capture = pytest.CaptureFixture[str]
PROMPTS = ("a boat", "a bird", "a bear", "a bat", "a bee", "a bull")
RECORDED, HELD_OUT = ("a boat", "a bird", "a bat", "a bee"), ("a bear", "a bull")
PSNR = ("--target-psnr", "26")
STEPS = 8
SEARCHED = ("teacache", "magcache", "adacache-scaled", "listed-extrapolated", "interval")


@dataclass
class Command:
    """A calibration of the fake model, on a clock that engines alone move: a block takes 1 ms, all else 0.02 ms.

    Attributes:
        folder: folder of the bundle.
        stop_after: number of calls of the first block after which it is interrupted, or fails with ``error``; None =
            it comes to its end.
        now: time of the clock, in seconds.
        blocks: number of calls of the first block in the last run.
        calls: names of the engines that were called in the last run, in order.
        functions: functions of the engines, by their names.
        expert_offload: whether engines of one expert at a time are loaded.
    """

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    stop_after: int | None = None
    error: BaseException | None = None
    now: float = 0.0
    blocks: int = 0
    calls: list[str] = field(default_factory=list)
    functions: Mapping[str, Function] = field(default_factory=fake_model.functions)
    expert_offload: bool = False

    def __call__(self, *options: str, size: str = "8x8", methods: Sequence[str] = ("interval", "listed")) -> int:
        self.blocks, self.now = 0, 0.0
        opened = self.pipeline()
        self.monkeypatch.setattr(cli.Pipeline, "open", lambda *_, **__: opened)
        usual = [
            "--prompts",
            "prompts.txt",
            "--size",
            size,
            "--steps",
            str(STEPS),
            "--tries",
            "3",
            "--gaps",
            "4",
            "--seed",
            "1",
        ]
        named = ["--methods", *methods] if methods else []
        return main([self.folder.name, *usual, *named, *options])

    def pipeline(self) -> Prompted:
        backend = FakeBackend({name: self._clocked(name) for name in self.functions})
        self.calls = backend.log
        bundle = Bundle(self.folder, read_manifest(self.folder))
        return Prompted(bundle, backend, expert_offload=self.expert_offload)

    def manifest(self) -> Manifest:
        return open_bundle(self.folder).manifest

    def change(self, **changes: Any) -> None:
        """Change fields of the bundle's manifest."""
        replace_manifest(self.folder, self.manifest().model_copy(update=changes))

    def _clocked(self, name: str) -> Callable[..., Any]:
        function = self.functions[name]

        def run(given: Mapping[str, Any]) -> Any:
            self.now += 1e-3 if name.removeprefix(LOW) in BLOCKS else 2e-5
            self.blocks += name == BLOCKS[0]
            if self.stop_after is not None and self.blocks > self.stop_after:
                if self.error is None:
                    signal.raise_signal(signal.SIGINT)
                else:
                    raise self.error
            return function(given)

        return run


def report(folder: str = "fake-calibration") -> Any:
    return json.loads(Path(folder, "calibrated.json").read_text())


def last_line(capsys: Capture) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def command_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Enter a folder, write prompts and a bundle of the fake model there, and return the command that calibrates it."""
    monkeypatch.chdir(folder)
    Path("prompts.txt").write_text("\n".join(PROMPTS))
    fake_model.write_bundle(folder / "fake.adacache")
    made = Command(folder / "fake.adacache", monkeypatch)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made
