"""Signals and policies from outside the project, on a bundle that was exported before anyone thought of them."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.files import open_bundle, read_manifest
from adacache_engines.errors import ExportError, InputError
from adacache_export.commands.export import main as export
from adacache_export.parts.add_signals import add_signals
from adacache_export.phases import Progress
from adacache_runtime.caching.presets import policy_from
from adacache_runtime.caching.signals.registry import SIGNALS
from adacache_runtime.denoising.probes import Probe
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from tests.helpers.model.fake_model import manifest, write_bundle
from tests.helpers.model.time_probe import shows_time
from tests.helpers.originals.reference import request
from tests.helpers.policies.cosine import COSINE

POLICY = "tests.helpers.policies.cosine:POLICY"
PROMPTS = 2
REQUESTS = {
    "reference": request(),
    "demo": Request(prompts=("a red circle moves left fast", "a blue square stays still"), steps=30),
}


@pytest.fixture
def folder(bundle_folder: Path, tmp_path: Path) -> Path:
    """The reference model, to change."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "yesterday.adacache"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["reference", pytest.param("demo", marks=pytest.mark.slow)])
def yesterday(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Request]:
    """A bundle to change, and a request of two prompts for it."""
    made: Path = request.getfixturevalue("demo_bundle" if request.param == "demo" else "bundle_folder")
    return Path(shutil.copytree(made, tmp_path / "yesterday.adacache")), REQUESTS[request.param]


def test_a_policy_from_outside_brings_a_signal_of_its_own(
    yesterday: tuple[Path, Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it observes is what numpy makes of the tensors that the probe showed, prompt by prompt."""
    folder, asked = yesterday
    assert export([str(folder), "--signal", "tests.helpers.policies.cosine:COSINE"]) == 0
    check = read_manifest(folder).signals["cosine"].graphs["hidden"].check
    assert check is not None
    assert check.error <= check.tolerance
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    enqueue = Probe.enqueue

    def spy(probe: Probe, parts: Sequence[int]) -> bool:
        done = enqueue(probe, parts)
        if done:
            pairs.append((probe.cached.read().astype(np.float64), probe.new.read().astype(np.float64)))
        return done

    monkeypatch.setattr(Probe, "enqueue", spy)
    with Pipeline.open(folder) as pipeline:
        trace = pipeline.generate(replace(asked, policy=policy_from(POLICY), scope="prompt")).trace
    assert 2 < len(trace.computed()) < 30
    seen = [call.observation["cosine"] for call in trace.calls if call.observation]
    assert len(seen) == len(pairs) == len(trace.computed()) - 1
    for cosine, tensors in zip(seen, pairs, strict=True):
        cached, new = (tensor.reshape(2, PROMPTS, -1).swapaxes(0, 1).reshape(PROMPTS, -1) for tensor in tensors)
        expected = (cached * new).sum(1) / np.sqrt((cached**2).sum(1) * (new**2).sum(1))
        assert cosine == pytest.approx(expected.min(), rel=1e-5)


def test_what_was_there_runs_as_before(folder: Path) -> None:
    policy = policy_from("adacache-slow")
    before = Pipeline.open(folder).generate(request(policy=policy, steps=4)).latents
    add_signals(folder, [COSINE], Progress())
    assert {*open_bundle(folder).manifest.signals} == {*SIGNALS, "cosine"}
    np.testing.assert_array_equal(Pipeline.open(folder).generate(request(policy=policy, steps=4)).latents, before)


@pytest.mark.parametrize(("changes", "spaces"), [({}, {"hidden"}), (shows_time(manifest()), {"hidden", "time"})])
def test_a_signal_of_timesteps_is_added_where_the_model_shows_them(
    tmp_path: Path, changes: dict[str, Any], spaces: set[str]
) -> None:
    folder = tmp_path / "yesterday.adacache"
    write_bundle(folder, **changes)
    add_signals(folder, [replace(COSINE, spaces=("hidden", "time"))], Progress())
    assert {*open_bundle(folder).manifest.signals["cosine"].graphs} == spaces


def test_a_signal_that_is_missing_is_named_with_the_command_that_adds_it(bundle_folder: Path) -> None:
    message = r"the signal cosine, which this bundle does not have \(it has change, motion, new_magnitude\)"
    with pytest.raises(InputError, match=message + ".*adacache-export BUNDLE --signal MODULE:NAME"):
        Pipeline.open(bundle_folder).generate(request(policy=policy_from(POLICY)))


def test_a_signal_takes_the_place_of_an_older_one(folder: Path) -> None:
    (old,) = add_signals(folder, [COSINE], Progress())
    (same,) = add_signals(folder, [COSINE], Progress())
    assert same.path == old.path
    other = replace(COSINE, nodes=COSINE.nodes + "    unused = Abs (product)\n")
    (new,) = add_signals(folder, [other], Progress())
    assert new.path != old.path
    assert not (folder / old.path).exists()
    assert open_bundle(folder).manifest.signals["cosine"].graphs["hidden"].path == new.path
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"onnx", Path(new.path).parent.name}


WRONG = replace(COSINE, nodes=COSINE.nodes.replace("Mul (before, after)", "Mul (before, before)"))
BROKEN = {
    "disagrees with numpy": (WRONG, ExportError, "disagree"),
    "has a name that is taken": (replace(COSINE, name="change"), InputError, "every bundle has a signal called change"),
    "has a number that is taken": (
        replace(COSINE, name="other", numbers=("magnitude", "cached_square", "new_square")),
        InputError,
        "a number called magnitude, and so does signal change",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_signal_that_cannot_be_leaves_the_bundle_as_it_was(folder: Path, case: str) -> None:
    signal, error, message = BROKEN[case]
    before = contents(folder)
    with pytest.raises(error, match=message):
        add_signals(folder, [signal], Progress())
    assert contents(folder) == before
    assert read_manifest(folder) == open_bundle(folder).manifest


def test_verify_compares_own_signals_where_they_are_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_signals(folder, [COSINE], Progress())
    assert export([str(folder), "--verify"]) == 0
    told = capsys.readouterr().out
    assert "hidden_cosine" not in told
    assert "but those of the signals cosine" in told.replace("\n", " ")
    assert export([str(folder), "--verify", "--signal", "tests.helpers.policies.cosine:COSINE"]) == 0
    told = capsys.readouterr().out
    assert "hidden_cosine" in told
    assert "but those" not in told
