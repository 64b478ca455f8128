"""Hostile manifests that are correctly signed."""

import json
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.files import MANIFEST, open_bundle
from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.plain_values import MOST_NBYTES as MOST_MANIFEST_NBYTES
from adacache_engines.contract.fake import FakeBackend, FakeEngine
from adacache_engines.errors import BundleError, InputError, PolicyError
from adacache_engines.printable import is_plain
from adacache_export.commands.export import main as export
from adacache_runtime.commands.run import main as run
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.policy_names import available_policies
from adacache_runtime.request import Captions
from adacache_runtime.request_options import request_from
from tests.helpers.model import fake_model
from tests.helpers.model.bundle_changes import rewrite

Place = tuple[str | int, ...]
Tries = Callable[[Iterable[Any]], Iterator[Any]]
MOST_TRIES = 250
MOST_NBYTES = 400e6  # that all tries may add to the memory of this process
GONE = object()
TEXTS = [
    "",
    "x" * 10_000,
    "\x1b[31mred\x1b]0;title\x07",
    "two\nlines",
    "\u202edlrow",
    "\0",
    "[/bold]",
    "../../x",
    "/etc/passwd",
    "unknown",
]
NUMBERS = [0, -1, 7, 10**9, 1 << 62, 10**30, 0.5, float("nan"), float("inf"), -float("inf"), 1e308]
OTHERS: list[Any] = [None, True, [], {}, ["x"], {"x": 1}, [[]], GONE]


def deep(levels: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(levels):
        made = [made]
    return made


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Yield the place of each value in a manifest, and of each that holds others."""
    if place:
        yield place
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*place, key))


def alike(content: dict[str, Any], under: tuple[str, ...] = ()) -> list[Place]:
    """Return one place of all that differ only in the numbers of list entries and the names of files and presets."""
    found: dict[tuple[object, ...], Place] = {}
    for place in places(content):
        kind = tuple("0" if isinstance(part, int) or place[0] in ("files", "policies") else part for part in place)
        if not under or place[0] in under:
            found.setdefault((*kind[:8], len(place)), place)
    return list(found.values())


def at(content: Any, place: Place) -> Any:
    for part in place:
        content = content[part]
    return content


def put(content: dict[str, Any], place: Place, value: Any) -> None:
    holder = at(content, place[:-1])
    if value is GONE:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value


def values(before: Any) -> list[Any]:
    """Return what takes the place of a value."""
    own: list[Any] = []
    if isinstance(before, list) and before:
        own = [before + before, before[:1], before[::-1], [before[0]] * 1000]
    if isinstance(before, dict):
        own = [{**before, "unknown": 1}, {**before, "\x1b[2J": 1}, {f"{key}{key}": one for key, one in before.items()}]
    if isinstance(before, int) and not isinstance(before, bool):
        own = [before + 1, str(before)]
    return [*own, *TEXTS, *NUMBERS, *OTHERS, deep(30)]


class Backend(FakeBackend):
    """Loads any graph, and runs none."""

    def load(self, graph: Graph) -> FakeEngine:
        return FakeEngine(graph, lambda _: {}, self.log)


def plan(folder: Path, policy: str = "adacache-fast") -> str:
    """Open a bundle, plan a generation as a dry run, and return what is shown of it."""
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    asked = request_from(manifest, "a red circle", {"steps": 2, "policy": policy})
    if not manifest.text.encoder_stages:
        embeddings = np.zeros((1, 2, manifest.text.width), np.float32)
        asked = replace(asked, prompts=(), captions=Captions(embeddings, np.ones((1, 2), bool)))
    prepared = Pipeline(bundle, Backend({})).prepare(asked)
    return " ".join([str(prepared.memory), *(str(info) for info in available_policies(bundle))])


def outcome(folder: Path) -> str | None:
    """Return the line with which a bundle is refused; None where it works."""
    try:
        plan(folder)
    except (BundleError, InputError, PolicyError) as error:
        message = str(error)
        assert is_plain(message)
        assert len(message) < 6000
        return message
    return None


@dataclass(frozen=True)
class Signed:
    """A bundle whose manifest is changed and signed again for each try."""

    folder: Path
    content: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> "Signed":
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return cls(folder, {key: value for key, value in content.items() if key != "digest"})

    def outcome(self, change: Callable[[dict[str, Any]], object]) -> str | None:
        def changed(content: dict[str, Any]) -> None:
            content.clear()
            content.update(deepcopy(self.content))
            change(content)

        rewrite(self.folder, changed)
        return outcome(self.folder)


@pytest.fixture
def fake(tmp_path: Path) -> Signed:
    fake_model.write_bundle(tmp_path / "bundle")
    return Signed.of(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("model", "under"),
    [("fake", ()), ("bundle_folder", ()), ("decoding_folder", ("text", "latent", "guidance", "part_weights", "names"))],
)
def test_each_value_is_another(
    request: pytest.FixtureRequest, tmp_path: Path, tries: Tries, model: str, under: tuple[str, ...]
) -> None:
    """A bundle with one changed value works, or is refused in one line; nothing else happens."""
    if model == "fake":
        signed = request.getfixturevalue("fake")
    else:
        signed = Signed.of(Path(shutil.copytree(request.getfixturevalue(model), tmp_path / "copy")))
    assert signed.outcome(lambda _: None) is None
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    chosen = [(place, value) for place in alike(signed.content, under) for value in values(at(signed.content, place))]
    for place, value in tries(chosen[:: len(chosen) // MOST_TRIES]):
        try:
            message = signed.outcome(lambda content, place=place, value=value: put(content, place, value))
        except Exception as error:
            raise AssertionError(f"{'.'.join(map(str, place))} = {value!r:.80}: {error!r:.400}") from error
        refused += message is not None
    assert refused > MOST_TRIES / 2
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < MOST_NBYTES


def _replaced(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    path = tuple(int(part) if part.isdecimal() else part for part in place.split("."))
    return lambda content: put(content, path, value)


def _prefixed(content: dict[str, Any]) -> None:
    """Name a graph as another one is named."""
    content["stages"][3]["graph"]["name"] = content["stages"][2]["graph"]["name"]


def _backwards(content: dict[str, Any]) -> None:
    """Let a stage take what only a later one makes."""
    late = deepcopy(content["stages"][-1]["graph"]["outputs"][0])
    content["stages"][1]["graph"]["inputs"].append(late)


HOSTILE = [
    (_replaced("latent.patch", [0, 0, 0]), "latent.patch.0: .* greater than or equal to 1"),
    (_replaced("latent.channels", -4), "latent.channels: "),
    (_replaced("stages", []), "stages: expert 0 has no stage with the role embed"),
    (_replaced("arithmetic.combine", GONE), "arithmetic has no combine; expected"),
    (_replaced("arithmetic.velocity", GONE), "arithmetic has no velocity; expected"),
    (_replaced("guidance.null_captions", "other"), r"guidance\.null_captions .* is other, which .* does not have"),
    (_replaced("text.max_length", 10**9), "text.max_length: .* less than or equal to 65536"),
    (_replaced("family", "x" * 10_000), "family: has 10000 characters; expected at most 4000"),
    (_replaced("family", "x" * 1_000), "family: .* at most 200 characters"),
    (_replaced("family", "\x1b[31mred"), r"family: holds control characters \(\\x1b\[31mred\); expected one line"),
    (_replaced("sampler.guidance", float("nan")), "NaN is no number that JSON has"),
    (_replaced("sampler.steps", 10**30), "sampler.steps: is a number of 31 digits; expected"),
    (_replaced("config", deep(30)), "config.* is nested more than 24 deep"),
    (_replaced("profiles.default.frames", [1, 1 << 60]), "profiles.default.frames.1: .* less than or equal to"),
    (_replaced("profiles.default.frames", [8, 1]), "profiles.default.frames: 8, 1 go down; expected the smallest"),
    (_replaced("profiles", {}), "profiles: .* at least 1 item"),
    (_replaced("weights", "../../etc/passwd"), "weights: ../../etc/passwd lies outside the bundle; expected"),
    (_replaced("weights", "/etc/passwd"), "weights: /etc/passwd lies outside the bundle; expected"),
    (_replaced("weights", "onnx/./weights.safetensors"), "weights: .* is no path as bundles write it"),
    (_replaced("config.a\x9b", 1), "this name holds control characters"),
    (_replaced("plans", {"../../x": {}}), r"plans.../../x.\[key\]: "),
    (_replaced("stages.2.expert", 3), "stages belong to expert 3"),
    (_replaced("experts.0.timesteps", [0, 400]), "none runs just above timestep 400; expected their ranges to cover"),
    (
        _replaced("stages.2.probes", {"x": {"output": "y", "role": None}}),
        "probes show y, which is no output",
    ),
    (_replaced("stages.1.graph.inputs.0.axes.0", "colour"), "tensor latents has an axis colour; expected"),
    (_prefixed, "is the name of several graphs; expected a name for each"),
    (_backwards, "stage embed takes prediction, which no stage makes before it"),
]


def test_each_is_refused_by_its_field(fake: Signed, tries: Tries) -> None:
    for change, expected in tries(HOSTILE):
        message = fake.outcome(change)
        assert message is not None, expected
        assert re.search(expected, message), message
        assert message.endswith(("copy or export the bundle again", "export the checkpoint again")), message


def test_manifests_that_no_program_reads(fake: Signed, tries: Tries) -> None:
    path = fake.folder / MANIFEST
    huge = b" " * (MOST_MANIFEST_NBYTES + 1)
    for content in tries([b"[" * 10**6, b'{"a":' * 10**6, b"9" * 10**6, b'{"x": 1e999}', huge, b'{"\\ud800": 1}']):
        path.write_bytes(content)
        assert outcome(fake.folder), content[:20]
    path.unlink()
    for make in tries([lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"), path.mkdir]):
        make()
        assert "is not a bundle" in str(outcome(fake.folder))
        path.rmdir() if path.is_dir() else path.unlink()


def test_names_are_shown_as_they_are(fake: Signed, tries: Tries, capsys: pytest.CaptureFixture[str]) -> None:
    """A table takes no name for markup, and a terminal gets no character that it would obey."""
    for name in tries(["[/nothing]", "[red]x[/red]", "[link=file:///etc/passwd]x[/link]", ":bomb:"]):

        def change(content: dict[str, Any], name: str = name) -> None:
            content["family"] = content["stages"][2]["graph"]["name"] = name
            content["policies"] = {name: {"policy": {"name": "never"}, "note": name, "measured": {}}}

        assert fake.outcome(change) is None
        assert export([str(fake.folder), "--inspect"]) == 0
        shown = capsys.readouterr().out
        assert shown.count(name) >= 3
    for name in tries(["\x1b[2J", "\u202ex", "a\x9b31m", "x\r\nadacache-run: done"]):
        fake.outcome(_replaced("family", name))
        for command in (lambda: export([str(fake.folder), "--inspect"]), lambda: run([str(fake.folder)])):
            assert command() == 1
            shown = capsys.readouterr().err
            assert shown.endswith("\n")
            assert is_plain(shown[:-1])
