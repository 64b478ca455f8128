"""Several generations in one worker: each gives the same as it does alone."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.errors import EngineError
from adacache_runtime.pipeline import Pipeline
from adacache_serve.device.messages import (
    Called,
    Cancel,
    Completed,
    Failed,
    PhaseEnded,
)
from adacache_serve.device.worker import Models
from tests.helpers.model import fake_model
from tests.helpers.serving.fake_server import functions
from tests.helpers.serving.worker_rig import MODEL, PICTURE, Rig, fake

MIX: dict[str, dict[str, Any]] = {
    "never": {},
    "adacache": {"policy": "adacache-fast", "steps": 9},
    "every call measured": {"policy": "fbcache-slow", "steps": 7},
    "whole model": {"policy": "easycache-slow", "steps": 8, "prompt": "another boat"},
    "extrapolated": {"policy": "interval-3+extrapolate", "seed": 4},
    "large": {"size": "8x8", "frames": 8, "policy": "interval-2"},
    "image": {"frames": 1, "steps": 3},
    "another sampler": {"sampler": "unipc", "policy": "interval-2", "steps": 5},
    "pictured": {"image": PICTURE, "policy": "adacache-fast", "steps": 6},
    "at the end": {"image": PICTURE, "image_at": -1, "seed": 2},
}


def alone(models: Models, folder: Path, mix: Mapping[str, dict[str, Any]]) -> Rig:
    """Make the videos one after another."""
    rig = Rig(models, folder)
    for name, order in mix.items():
        rig.begin(name, **order)
        rig.finish()
    return rig


def test_jobs_in_flight_are_made_as_if_alone(tmp_path: Path) -> None:
    """The videos are equal bit for bit, with the same decisions and distances."""
    models = fake(tmp_path / MODEL)
    expected = alone(models, tmp_path / "alone", MIX)
    rig = Rig(models, tmp_path / "together", clock=itertools.count().__next__)
    for name, order in MIX.items():
        rig.begin(name, **order)
    assert rig.finish() == expected.finish()
    assert len(rig.of(Completed)) == len(MIX)
    for name in MIX:
        assert rig.calls(name) == expected.calls(name)
    order = [said.job for said in rig.of(Called)]
    assert sum(a != b for a, b in itertools.pairwise(order)) > len(order) / 2  # and they were in turn


@pytest.mark.slow
def test_real_engines_in_turn_give_what_they_give_alone(
    decoding_folder: Path, conditioned_folder: Path, tmp_path: Path
) -> None:
    """Two models with ONNX Runtime in one process: text encoder, decoder, sizes, policies and given frames."""
    from adacache_runtime.caching.presets import PRESETS
    from adacache_runtime.request import Request
    from adacache_serve.device.video_file import write_events
    from tests.helpers.originals.reference import MASK, drawn, request

    latte, open_sora = Pipeline.open(decoding_folder), Pipeline.open(conditioned_folder)
    prompt = {"prompts": ("a red circle moves fast",), "steps": 5}
    videos = {
        "never": Request(**prompt),
        "interval": Request(**prompt, policy=PRESETS["interval-2"], seed=3),
        "wide": Request(**prompt, policy=PRESETS["adacache-fast"], height=64, width=96),
        "image": Request(prompts=("a blue square",), frames=1, steps=4),
    }
    given = {"steps": 5, "latents": drawn(1), "mask": MASK}
    calls = {"given": request(**given), "given, reused": request(**given, policy=PRESETS["adacache-fast"])}

    def begun(folder: Path) -> dict[str, Iterator[Any]]:
        folder.mkdir()
        suffix = {"image": ".png"}
        made: dict[str, Any] = {
            name: write_events(latte.prepare(asked), folder / f"{name}{suffix.get(name, '.mp4')}")
            for name, asked in videos.items()
        }
        return made | {name: open_sora.calls(asked) for name, asked in calls.items()}

    def whole(generator: Any, results: list[Any]) -> Iterator[None]:
        results.append((yield from generator))

    def drained(generators: dict[str, Any], in_turn: bool) -> dict[str, Any]:
        results: dict[str, list[Any]] = {name: [] for name in generators}
        steps = [whole(generator, results[name]) for name, generator in generators.items()]
        for _ in itertools.zip_longest(*steps) if in_turn else itertools.chain(*steps):
            pass
        return {name: found[0] for name, found in results.items()}

    expected = drained(begun(tmp_path / "alone"), in_turn=False)
    together = drained(begun(tmp_path / "together"), in_turn=True)
    for name in calls:
        np.testing.assert_array_equal(together[name].latents, expected[name].latents, strict=True)
        assert together[name].trace.computed() == expected[name].trace.computed()
    files = {path.name: path.read_bytes() for path in (tmp_path / "alone").iterdir()}
    assert len(files) == len(videos)
    assert {path.name: path.read_bytes() for path in (tmp_path / "together").iterdir()} == files


def test_a_long_job_does_not_block_a_short_one(tmp_path: Path) -> None:
    """The short job has half of the turns while it runs, however long the other one is."""
    rig = Rig(fake(tmp_path / MODEL), tmp_path / "out", clock=itertools.count().__next__)
    rig.begin("long", steps=200)
    while len(rig.calls("long")) < 50:
        rig.turn()
    rig.begin("short", steps=4)
    while not rig.of(Completed, "short"):
        rig.turn()
    assert len(rig.calls("short")) == 4
    assert len(rig.calls("long")) < 50 + 4 + 8  # its calls, and its other steps
    rig.send(Cancel(job="long"))
    rig.finish()


def test_encoding_is_a_step_of_its_own(tmp_path: Path) -> None:
    """The text encoder, which may take seconds, is one turn, and the phases are reported with their times."""
    rig = Rig(fake(tmp_path / MODEL), tmp_path / "out")
    rig.begin("one", image=PICTURE)
    rig.turn()  # the picture
    assert rig.of(PhaseEnded) == []
    rig.turn()  # the text
    (encoded,) = rig.of(PhaseEnded)
    assert (encoded.phase, encoded.model, encoded.error) == ("encode", MODEL, None)
    assert rig.calls("one") == []
    rig.finish()
    phases = rig.of(PhaseEnded)
    assert [said.phase for said in phases] == ["encode", "denoise", "decode"]
    for before, after in itertools.pairwise(phases):
        assert before.began <= before.ended <= after.began
    assert all(0 < said.device_seconds <= said.ended - said.began + 0.01 for said in phases)


class BrokenError(Exception):
    """An error that no code expects."""


@pytest.mark.parametrize(
    ("error", "code"), [(EngineError("no"), "EngineError"), (MemoryError(), "MemoryError"), (BrokenError(), "internal")]
)
def test_an_error_is_that_of_its_job_alone(tmp_path: Path, error: Exception, code: str) -> None:
    """The error comes in the middle of a job's calls; the others' videos stay the same, and more can be made."""
    usual, count = functions(), itertools.count()

    def breaking(given: Mapping[str, Any]) -> Mapping[str, Any]:
        if (given["text"] > 40).any() and next(count) == 2:  # the mark of the fake encoder
            raise error
        return usual[fake_model.BLOCKS[1]](given)

    plain = {name: {**order, "prompt": "a boat"} for name, order in list(MIX.items())[:3]}
    expected = alone(fake(tmp_path / "sound"), tmp_path / "alone", plain)
    block = {fake_model.BLOCKS[0]: fake_model.functions()[fake_model.BLOCKS[0]], fake_model.BLOCKS[1]: breaking}
    rig = Rig(fake(tmp_path / MODEL, own=block), tmp_path / "out")
    rig.begin("bad", prompt="slow", steps=20)
    for name, order in plain.items():
        rig.begin(name, **order)
    assert rig.finish() == expected.finish()
    (failed,) = rig.of(Failed)
    assert (failed.job, failed.code, len(rig.calls("bad"))) == ("bad", code, 2)
    assert rig.of(PhaseEnded, "bad")[-1].error == code
    rig.begin("after", **plain["never"])
    assert rig.finish()["after"] == expected.finish()["never"]
    assert not list((tmp_path / "out").glob("*bad*"))


def test_what_fails_before_it_begins_leaves_the_others(tmp_path: Path) -> None:
    rig = Rig(fake(tmp_path / MODEL), tmp_path / "out", budget=20_000)
    rig.begin("one", steps=4)
    rig.turn()
    rig.begin("unknown policy", policy="nobody's")
    rig.begin("breaks", prompt="break")
    rig.begin("large", size="8x8", frames=8)
    assert list(rig.finish()) == ["one"]
    codes = {said.job: said.code for said in rig.of(Failed)}
    assert codes == {"unknown policy": "FieldError", "breaks": "EngineError", "large": "InputError"}
    message = next(said.message for said in rig.of(Failed, "large"))
    assert "MB of memory beside the weights, and all memory for videos is 0.0 MB" in message
