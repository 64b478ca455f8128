"""Whole folders of Wan pipelines: what ``adacache-run`` makes from their bundles is what diffusers makes of them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.files import read_manifest
from adacache_export.phases import Progress
from adacache_export.verification.verify import verify
from adacache_runtime.commands.run import main as run
from adacache_runtime.trace import read_trace
from tests.helpers.tiny_models import wan
from tests.helpers.tiny_models.wan_runs import GUIDANCE, STEPS, assert_alike, exported, made_by_run, run_command


def euler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)


# name -> changes of the transformer, of the pipeline, frames, height, width, guidance of the second expert
CASES: Mapping[str, tuple[dict[str, Any], dict[str, Any], int, int, int, float | None]] = {
    "unipc": ({}, {}, 5, 48, 80, None),
    "image": ({"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 1}, {}, 1, 32, 16, None),
    "euler": ({"cross_attn_norm": False, "eps": 1e-5}, {"scheduler": euler}, 17, 16, 48, None),
    "experts": ({"num_layers": 1}, {"boundary": 0.875}, 9, 32, 32, 3.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_latents_are_those_of_diffusers(name: str, tmp_path: Path) -> None:
    changes, options, frames, height, width, guidance_2 = CASES[name]
    made = {key: value() if callable(value) else value for key, value in options.items()}
    count = 2 if "boundary" in options else 1
    pipeline = wan.pipeline([wan.transformer(seed, **changes) for seed in range(count)], **made)
    bundle = exported(pipeline, tmp_path)
    given = wan.inputs(read_manifest(bundle), tmp_path, frames, height, width)
    size = {"height": height, "width": width, "num_frames": frames}
    second = {} if guidance_2 is None else {"guidance_scale_2": guidance_2}
    expected = wan.latents_of(pipeline, given, num_inference_steps=STEPS, guidance_scale=GUIDANCE, **size, **second)
    assert_alike(made_by_run(bundle, tmp_path, frames, height, width, guidance_2), expected)


@pytest.mark.slow
def test_videos_are_equal_where_experts_take_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit, with one switch, and half of the experts' weights in the estimate."""
    pipeline = wan.pipeline([wan.transformer(seed, num_layers=1) for seed in range(2)], boundary=0.875)
    bundle = exported(pipeline, tmp_path)
    manifest = read_manifest(bundle)
    wan.inputs(manifest, tmp_path, 5, 32, 32)
    size = (5, 32, 32, 3.0, "--policy", "interval-2")
    both = made_by_run(bundle, tmp_path, *size)
    trace = tmp_path / "trace.json"
    np.testing.assert_array_equal(made_by_run(bundle, tmp_path, *size, "--expert-offload", "--trace", trace), both)
    (call,) = read_trace(trace).switches()
    assert 1 < call < STEPS
    capsys.readouterr()
    made_by_run(bundle, tmp_path, *size, "--expert-offload", "--estimate-memory")
    told = capsys.readouterr().out
    nbytes = [
        sum(stage.graph.weights_nbytes or 0 for stage in manifest.stages if stage.expert == one) for one in (0, 1)
    ]
    whole = (bundle / manifest.weights).stat().st_size
    for text, weights in (("with", whole - min(nbytes)), ("without", whole)):
        assert re.search(rf"weights {text} --expert-offload\s+\S\s+{weights / 1e6:.1f} ", told)


@pytest.mark.slow
def test_a_given_first_frame_is_kept(tmp_path: Path) -> None:
    """The latents are those of WanImageToVideoPipeline with a timestep for each token (``expand_timesteps``)."""
    import torch

    frames, height, width = 9, 32, 48
    pipeline = wan.pipeline([wan.transformer(num_layers=1)], expand=True)
    bundle = exported(pipeline, tmp_path)
    given = wan.inputs(read_manifest(bundle), tmp_path, frames, height, width)
    latents = torch.from_numpy(given["latents"])
    condition = torch.zeros_like(latents)
    condition[:, :, 0] = latents[:, :, 0] / 2
    generated = torch.ones_like(latents)
    generated[:, :, 0] = 0
    np.savez(tmp_path / "z.npz", latents=torch.where(generated == 0, condition, latents), mask=generated[:, 0, :, 0, 0])
    made = made_by_run(bundle, tmp_path, frames, height, width)

    scheduler = pipeline.scheduler
    scheduler.set_timesteps(STEPS)
    scheduler.set_begin_index(0)
    for timestep in scheduler.timesteps:
        entering = (1 - generated) * condition + generated * latents
        of_tokens = (generated[:, 0, :, ::2, ::2] * timestep).flatten(1)
        with torch.no_grad():
            negative, positive = (
                pipeline.transformer(entering, of_tokens, torch.from_numpy(given[name])).sample
                for name in ("negative", "embeddings")
            )
        latents = scheduler.step(negative + GUIDANCE * (positive - negative), timestep, latents).prev_sample
    assert_alike(made, ((1 - generated) * condition + generated * latents).numpy())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["three doublings", "residual"])
def test_frames_are_those_of_diffusers(kind: str, tmp_path: Path) -> None:
    """The residual VAE's model starts from an image."""
    from PIL import Image

    from tests.helpers.tiny_models.wan_vae import CHANNELS, CONFIGS, random_wan_vae  # here: it imports torch

    image, frames, height, width = kind == "residual", 9, 32, 48
    own = wan.transformer(num_layers=1, in_channels=CHANNELS, out_channels=CHANNELS)
    vae = random_wan_vae(kind)
    pipeline = wan.pipeline([own], vae=vae, expand=image, image=image)
    bundle = exported(pipeline, tmp_path)
    manifest = read_manifest(bundle)
    assert manifest.latent.spatial_factor == CONFIGS[kind].get("scale_factor_spatial", 8)
    given = wan.inputs(manifest, tmp_path, frames, height, width)
    shown: dict[str, Any] = {}
    options: list[object] = []
    if image:
        pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)
        shown["image"] = Image.fromarray(pixels)
        shown["image"].save(tmp_path / "first.png")
        options = ["--image", tmp_path / "first.png"]
    size = {"height": height, "width": width, "num_frames": frames}
    asked = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, **size, **shown}
    latents = made_by_run(bundle, tmp_path, frames, height, width, None, *options)
    assert_alike(latents, wan.latents_of(pipeline, given, **asked))
    (expected,) = wan.latents_of(pipeline, given, "np", **asked)
    made = np.load(tmp_path / "frames.npz")["frames"]
    assert made.shape == expected.shape
    assert np.abs(made / 255 - expected).max() <= 2e-3


# name -> changes of the transformers, VAE, whether there are two experts, frames, height, width
FROM_IMAGE: Mapping[str, tuple[dict[str, Any], str, bool, int, int, int]] = {
    "experts": ({"num_layers": 1}, "three doublings", True, 5, 48, 80),
    "one transformer": ({"num_attention_heads": 3, "attention_head_dim": 16}, "plain", False, 17, 16, 48),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_IMAGE)
def test_videos_that_start_from_an_image_are_those_of_diffusers(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model takes a mask and the encoded image beside its latents, as Wan 2.2's I2V-A14B does."""
    from PIL import Image

    from tests.helpers.tiny_models.wan_vae import CHANNELS, random_wan_vae  # here: it imports torch

    changes, kind, two, frames, height, width = FROM_IMAGE[name]
    own = {"in_channels": 2 * CHANNELS + 4, "out_channels": CHANNELS, **changes}
    transformers = [wan.transformer(seed, **own) for seed in range(1 + two)]
    pipeline = wan.pipeline(transformers, vae=random_wan_vae(kind), boundary=0.9 if two else None, image=True)
    bundle = exported(pipeline, tmp_path)
    manifest = read_manifest(bundle)
    assert manifest.conditioning == "encoded-video"
    assert [expert.guidance for expert in manifest.experts] == ([3.5, 3.5] if two else [None])
    assert manifest.sampler.timestep_shift == 3.0  # that of the file
    assert ("magcache" in manifest.policies) == two  # the published constants are those of two experts
    given = wan.inputs(manifest, tmp_path, frames, height, width)
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (height + 8, width + 12, 3), np.uint8))
    image.save(tmp_path / "first.png")
    second = 3.0 if two else None
    capsys.readouterr()
    assert run(run_command(bundle, tmp_path, frames, height, width, second)) == 1
    error = capsys.readouterr().err
    assert "this model starts from an image, and none is given" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out.npz").exists()

    latents = made_by_run(bundle, tmp_path, frames, height, width, second, "--image", tmp_path / "first.png")
    asked = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "image": image}
    asked |= {"height": height, "width": width, "num_frames": frames}
    asked |= {} if second is None else {"guidance_scale_2": second}
    assert_alike(latents, wan.latents_of(pipeline, given, **asked))
    (expected,) = wan.latents_of(pipeline, given, "np", **asked)
    made = np.load(tmp_path / "frames.npz")["frames"]
    assert made.shape == expected.shape
    assert np.abs(made / 255 - expected).max() <= 2e-3

    beside = wan.video_condition_of(pipeline, image, given["latents"], frames, height, width)
    np.savez(tmp_path / "z.npz", latents=given["latents"], video_condition=beside)
    assert_alike(made_by_run(bundle, tmp_path, frames, height, width, second), latents)


@pytest.mark.slow
def test_an_image_on_a_model_of_text_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    bundle = exported(wan.pipeline([wan.transformer(num_layers=1)]), tmp_path)
    wan.inputs(read_manifest(bundle), tmp_path, 5, 16, 16)
    Image.new("RGB", (16, 16)).save(tmp_path / "first.png")
    capsys.readouterr()
    assert run(run_command(bundle, tmp_path, 5, 16, 16, None, "--image", tmp_path / "first.png")) == 1
    error = capsys.readouterr().err
    assert "this model makes videos from text alone" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out.npz").exists()
    assert not (tmp_path / "frames.npz").exists()


# model -> changes of the transformer and of the pipeline that make it a tiny one, and presets that it must have
PUBLISHED: Mapping[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "t2v-1.3b": ({}, {}, {"teacache", "teacache-retention-fast", "magcache-fast", "easycache", "adacache-lightx2v"}),
    "ti2v-5b": ({"in_channels": 48, "out_channels": 48}, {"expand": True}, {"magcache", "easycache"}),
    "t2v-a14b": ({}, {"boundary": 0.875}, {"magcache", "easycache"}),
    "i2v-a14b": ({"in_channels": 36}, {"boundary": 0.9}, {"magcache"}),
    "i2v-14b-480p": (
        {"in_channels": 36, "image_dim": 10, "added_kv_proj_dim": 24},
        {},
        {"teacache", "teacache-retention-fast", "magcache-fast"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", PUBLISHED)
def test_published_presets_run(model: str, tmp_path: Path) -> None:
    """Each preset of the bundle runs without a further option of the export; TeaCache sees the timestep's embedding.

    A model for given frames modulates each frame by itself, and the first call of a second expert is computed.
    """
    changes, options, expected = PUBLISHED[model]
    transformers = [wan.transformer(seed, num_layers=1, **changes) for seed in range(1 + ("boundary" in options))]
    pipeline, steps = wan.pipeline(transformers, **options), 30
    bundle = exported(pipeline, tmp_path)
    manifest = read_manifest(bundle)
    assert [manifest.sites(name) for name in ("time", "time_modulation")] == [("time",), ("time_modulation",)]
    assert {"adacache-fast", *expected} <= {*manifest.policies}
    given = wan.inputs(manifest, tmp_path, 1, 32, 32)
    if manifest.conditioning == "encoded-video":
        beside = np.ones((20, *given["latents"].shape[2:]), np.float32)
        states = {} if manifest.image is None else {"image_states": np.ones((manifest.image.tokens, 10), np.float32)}
        np.savez(tmp_path / "z.npz", latents=given["latents"], video_condition=beside, **states)
    command = [str(bundle), "--latents", str(tmp_path / "z.npz"), "--text-embeddings", str(tmp_path / "e.npz")]
    command += ["--steps", str(steps), "--height", "32", "--width", "32", "--frames", "1"]
    command += ["-o", str(tmp_path / "out.npz"), "--trace", str(tmp_path / "trace.json")]
    for name in manifest.policies:
        assert run([*command, "--policy", name]) == 0
        trace = read_trace(tmp_path / "trace.json")
        computed = trace.computed()
        second = 1 + sum(call.timestep >= 1000 * options.get("boundary", 0) for call in trace.calls)
        assert {1, second} <= {*computed, steps + 1}
        # others depend on the content, and these random weights change a lot from call to call
        assert len(computed) < steps or not name.startswith(("magcache", "adacache")), name
    verified = [graph.name for graph in verify(bundle, Progress())]
    assert sorted(verified) == sorted({graph.name for graph in manifest.graphs()}), "--verify leaves no graph out"
