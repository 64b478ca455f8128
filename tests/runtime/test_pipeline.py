"""The pipeline as users have it, on a model of a few numpy lines: videos, names for everything, events, cancelling."""

import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adacache_engines.bundle.manifest import Manifest, Preset
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_runtime import checking, generation, policies, policy
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.wrappers import MaxReuses
from adacache_runtime.events import Called, Decoded, Denoised, ImagesEncoded, TextEncoded
from adacache_runtime.media.frames import to_pixels
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.video import Video
from tests.helpers.model import fake_model
from tests.helpers.model.fake_model import fake_pipeline, functions, manifest, request
from tests.helpers.model.fake_prompts import prompted

PROMPTS = ["a boat", "a red circle"]


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    with prompted(tmp_path / "bundle", **fake_model.conditioned(manifest())) as opened:
        yield opened


def without_decoder(plain: Manifest) -> dict[str, Any]:
    return {"latent": plain.latent.model_copy(update={"decoder": "none"})}


def test_a_prompt_gives_a_video(pipeline: Pipeline, tmp_path: Path) -> None:
    video = pipeline("a boat", policy="interval-2", seed=3)
    assert isinstance(video, Video)
    alone = pipeline.generate(Request(prompts=("a boat",), policy=FixedInterval(every=2), seed=3))
    np.testing.assert_array_equal(video.latents, alone.latents[0])
    np.testing.assert_array_equal(video.frames, to_pixels(alone.latents[0]))
    assert (video.frames.dtype, video.frames.shape) == (np.uint8, (4, 2, 5, 3))
    assert (video.width, video.height, video.fps) == (5, 2, 24)
    assert video.trace.computed() == alone.trace.computed() == [1, 3, 5, 6]
    assert repr(video) == "Video(5x2, 4 frames, 24 fps, 4 of 6 calls computed)"
    assert [image.size for image in video.pil()] == [(5, 2)] * 4
    np.testing.assert_array_equal(np.asarray(video.pil()[3]), video.frames[3])
    for name in ("boat.mp4", "boat.npz"):
        video.save(tmp_path / name)
    with np.load(tmp_path / "boat.npz") as file:
        np.testing.assert_array_equal(file["frames"], video.frames)
    assert (tmp_path / "boat.mp4").read_bytes()[4:8] == b"ftyp"


def test_prompts_give_a_list_of_videos(pipeline: Pipeline) -> None:
    videos = pipeline(PROMPTS, seed=3)
    assert isinstance(videos, list)
    together = pipeline.generate(Request(prompts=tuple(PROMPTS), seed=3))
    for video, latents in zip(videos, together.latents, strict=True):
        np.testing.assert_array_equal(video.latents, latents)
        np.testing.assert_array_equal(video.frames, to_pixels(latents))
    (one,) = pipeline(["a boat"], seed=3)
    np.testing.assert_array_equal(one.frames, pipeline("a boat", seed=3).frames)


@pytest.mark.parametrize("given", [7, None, ["a boat", 7], b"a boat"], ids=str)
def test_a_prompt_that_is_no_text_is_named(given: Any, pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match=r"prompts have .* of type (int|NoneType|bytes); give a string, or a list"):
        pipeline(given)


def test_text_is_never_iterated_letter_by_letter(pipeline: Pipeline) -> None:
    one: Any = {"prompts": "abc", "negative_prompts": "ugly", "fps": 8, "image_at": 0, "images": "a.png"}
    asked = Request(**one)
    assert (asked.prompts, asked.negative_prompts, asked.fps) == (("abc",), ("ugly",), (8,))
    assert (asked.image_at, asked.images) == ((0,), ("a.png",))
    made = pipeline.request("abc", negative_prompt="ugly", fps=8, image="a.png", image_at=1)
    assert (made.prompts, made.negative_prompts, made.fps) == (("abc",), ("ugly",), (8,))
    assert (made.image_at, made.images) == ((1,), ("a.png",))
    assert len(pipeline.prepare(pipeline.request("abc")).video.fps) == 1
    assert pipeline.request(PROMPTS, fps=[8, 16]).fps == (8, 16)


def test_a_policy_is_a_name_a_file_a_mapping_or_an_object(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"name": "interval", "every": 2}))
    expected = FixedInterval(every=2)
    for choice in ("interval-2", path, str(path), {"name": "interval", "every": 2}, expected):
        assert pipeline.request("a", policy=choice).policy == expected
        assert policy(choice) == expected
    assert policy("interval", every=2) == expected
    wrapped = pipeline.request("a", policy="interval-4+max-reuses=1").policy
    assert wrapped == MaxReuses(policy=FixedInterval(every=4), reuses=1)
    assert policies["interval-2"] == expected
    for wrong in ("interval-22", FixedInterval, 3):
        with pytest.raises(InputError, match="policy"):
            pipeline.request("a", policy=wrong)  # type: ignore[typeddict-item]
    with pytest.raises(InputError, match="every"):
        policy("interval", every=0)


def test_a_size_is_width_by_height(pipeline: Pipeline) -> None:
    shape = pipeline.prepare(pipeline.request("a", size="7x3", frames=2, fps=8)).video
    assert (shape.width, shape.height, shape.frames, shape.fps) == (7, 3, 2, (8.0,))
    assert pipeline.prepare(pipeline.request("a", width=7, height=3, frames=2, fps=8)).video == shape
    assert pipeline("a", size="7x3", frames=1).frames.shape == (1, 3, 7, 3)
    assert pipeline.request("a", duration="image").frames == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "7x3", "width": 7}, "size 7x3 has a width and a height already"),
        ({"frames": 4, "duration": "1s"}, "frames and duration are both given"),
        ({"aspect": "16:9"}, "is of a named size"),
        ({"size": "large"}, "size 'large' is unknown"),
        ({"steps": 0}, "steps"),
        ({"frame": 3}, "frame cannot be chosen; the options are negative_prompt, size"),
        ({"fps": [1, 2, 3]}, "3 values of fps"),
        (
            {"image": np.zeros((2, 5), np.uint8)},
            r"image 0 is an array \(2, 5\) of uint8; expected",
        ),
        ({"image": 3}, "image 0 is a int; expected a path"),
    ],
)
def test_what_is_not_possible_is_refused(pipeline: Pipeline, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline("a boat", **options)


def test_an_image_is_a_path_a_pillow_image_or_an_array(pipeline: Pipeline, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sources: list[Any] = [pixels, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png")]
    for source in sources:
        video = pipeline("a boat", image=source)
        np.testing.assert_array_equal(video.frames[0], pixels)
    last = pipeline("a boat", image=[pixels, pixels[::-1]], image_at=[0, -1])
    np.testing.assert_array_equal(last.frames[-1], pixels[::-1])


def test_a_clip_of_frames_is_continued(pipeline: Pipeline) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (9, 2, 5, 3), np.uint8)
    video = pipeline("a boat", clip=clip, frames=8)
    np.testing.assert_array_equal(video.frames[:5], clip[-5:])


def test_each_call_is_told(pipeline: Pipeline) -> None:
    told: list[int] = []
    pipeline("a boat", policy="interval-2", on_call=lambda record: told.append(record.call))
    assert told == [1, 2, 3, 4, 5, 6]


def test_events_come_in_order(pipeline: Pipeline) -> None:
    image = np.zeros((2, 5, 3), np.uint8)
    events = list(pipeline.events(PROMPTS, image=image, steps=3))
    assert [type(event) for event in events] == [
        *(ImagesEncoded, TextEncoded),
        *(Called,) * 3,
        *(Denoised, Decoded, Decoded),
    ]
    assert [(event.record.call, event.total) for event in events if isinstance(event, Called)] == [
        (1, 3),
        (2, 3),
        (3, 3),
    ]
    decoded = [event for event in events if isinstance(event, Decoded)]
    assert [(event.prompt, event.done, event.total) for event in decoded] == [(0, 4, 8), (1, 8, 8)]


def test_a_bundle_without_a_decoder_gives_latents(tmp_path: Path) -> None:
    pipeline = prompted(tmp_path / "bundle", **without_decoder(manifest()))
    assert not any(isinstance(event, Decoded) for event in pipeline.events("a boat"))
    video = pipeline("a boat")
    assert video.latents.shape == (3, 4, 2, 5)
    assert repr(video) == "Video(5x2, no frames, 24 fps, 6 of 6 calls computed)"
    for read in (lambda: video.frames, video.pil, lambda: video.save(tmp_path / "a.mp4")):
        with pytest.raises(InputError, match=r"has no decoder.*export the checkpoint with --vae"):
            read()
    assert not (tmp_path / "a.mp4").exists()


def test_a_closed_pipeline_makes_nothing(pipeline: Pipeline) -> None:
    prepared = pipeline.prepare(pipeline.request("a boat"))
    pipeline.close()
    pipeline.close()
    with pytest.raises(InputError, match="is closed; open the bundle again"):
        pipeline("a boat")
    with pytest.raises(InputError, match="is closed; open the bundle again"):
        next(prepared.events())


def test_a_prepared_generation_runs_any_number_of_times_at_once(pipeline: Pipeline) -> None:
    """Runs share no state: in turn, beside another, or after a cancelled one, the same comes out."""
    prepared = pipeline.prepare(pipeline.request("a boat", policy="interval-2", seed=1))
    other = pipeline.prepare(pipeline.request("a red circle", seed=2, frames=3))

    def latents(events: list[Any]) -> Any:
        return next(event.latents for event in events if isinstance(event, Denoised))

    expected = latents(list(prepared.events()))
    cancelled = prepared.events()
    for _ in range(4):
        next(cancelled)
    runs = [prepared.events(), other.events(), prepared.events()]
    told: list[list[Any]] = [[], [], []]
    for events in zip_longest(*runs):
        cancelled.close()
        for seen, event in zip(told, events, strict=True):
            seen.append(event)
    np.testing.assert_array_equal(latents(told[0]), expected)
    np.testing.assert_array_equal(latents(told[2]), expected)
    assert latents(told[1]).shape[2] == 3


def test_one_settling_one_tokenising_and_two_assemblies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One on the device that counts and one on the real one; the noise is drawn when the generation begins."""
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    counted: list[str] = []

    def count(module: Any, name: str) -> None:
        plain = getattr(module, name)

        def counting(*given: Any, **named: Any) -> Any:
            counted.append(name)
            return plain(*given, **named)

        monkeypatch.setattr(module, name, counting)

    for name in ("settle", "read_text"):
        count(checking, name)
    for name in ("estimate_memory", "assemble", "initial_noise"):
        count(generation, name)
    prepared = pipeline.prepare(request(seed=3))
    assert counted == ["settle", "read_text", "estimate_memory"]
    assert list(prepared.events())
    assert counted == ["settle", "read_text", "estimate_memory", "initial_noise", "assemble"]


def test_what_a_bundle_can_run_and_why_not_the_rest(pipeline: Pipeline) -> None:
    listed = {info.name: info for info in pipeline.policies()}
    assert set(policies) <= set(listed)
    assert listed["adacache-fast"].why_not is None
    assert listed["interval-2"].why_not is None


def test_a_policy_that_a_bundle_cannot_run_says_why(tmp_path: Path) -> None:
    plain = manifest()
    stages = tuple(entry.model_copy(update={"probes": {}}) for entry in plain.stages)
    pipeline = prompted(tmp_path / "bundle", stages=stages, default_probes=())
    listed = {info.name: info.why_not for info in pipeline.policies()}
    assert listed["never"] is None
    assert listed["interval-2"] is None
    assert "probe" in (listed["adacache-fast"] or "")


def test_a_preset_that_lacks_a_probe_names_the_option_of_the_export_in_a_line(tmp_path: Path) -> None:
    plain = manifest()
    stages = tuple(
        entry.model_copy(update={"probes": {}}) if entry.role == "embed" else entry for entry in plain.stages
    )
    rule = {"name": "teacache", "coefficients": [1, 0], "threshold": 0.1}
    own = {"of-input": Preset(policy=rule), "of-time": Preset(policy={**rule, "probe": "time"})}
    pipeline = prompted(tmp_path / "bundle", stages=stages, policies=own)
    reasons = {info.name: info.why_not for info in pipeline.policies() if info.name in own}
    sites = [site for entry in stages for site in entry.probes]
    options = " ".join(f"--probe {site}" for site in (*sites, "block_input"))
    assert reasons == {
        "of-input": f"the policy measures block_input, which this bundle has no probe for (it has {', '.join(sites)}); "
        f"export the checkpoint with {options}",
        "of-time": f"the policy measures time, which this model does not show (it has {', '.join(sites)}); choose "
        "another policy",
    }


def test_numbers_out_of_range_are_named(pipeline: Pipeline) -> None:
    with pytest.raises(OutOfRangeError, match="frames 0 is not possible"):
        pipeline("a boat", frames=0)
