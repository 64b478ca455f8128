"""Folders of whole pipelines: from a prompt and noise, their bundles make the latents and the frames of diffusers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.files import read_manifest
from adacache_export.commands.export import main as export
from adacache_runtime.commands.run import main as run
from tests.helpers.tiny_models import wan
from tests.helpers.tiny_models.exporting import unlogged

PROMPT, NEGATIVE = "a  red circle moves &amp; left, fast.png", "blue square stays"
STEPS, GUIDANCE, HEIGHT, WIDTH = 8, 5.0, 32, 48


def latte(folder: Path) -> Any:
    """Return Latte's pipeline, with a VAE of two pixels a latent row."""
    import torch  # here: few tests need these
    from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel
    from transformers import T5EncoderModel

    from tests.helpers.tiny_models.t5 import SIZES, random_t5, tokenizer_in, write_spiece

    torch.manual_seed(0)
    heads, head_width = 3, 8
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
    )
    transformer = LatteTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=head_width,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=heads * head_width,
        attention_bias=True,
        sample_size=16,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=SIZES["d_model"],
        video_length=5,
    )
    return LattePipeline(
        tokenizer=tokenizer_in(write_spiece(folder).parent),
        text_encoder=random_t5(T5EncoderModel, "gated-gelu"),
        vae=vae,
        transformer=transformer,
        scheduler=DDIMScheduler(clip_sample=False),
    )


def wan_with_text(folder: Path) -> Any:
    """Return a pipeline of Wan with its VAE and its text encoder."""
    import torch  # here: few tests need these
    from diffusers import WanPipeline
    from transformers import UMT5Config, UMT5EncoderModel

    from tests.helpers.tiny_models.t5 import SIZES, tokenizer_in, write_spiece
    from tests.helpers.tiny_models.wan_vae import CHANNELS, random_wan_vae

    torch.manual_seed(0)
    size = {"in_channels": CHANNELS, "out_channels": CHANNELS, "text_dim": SIZES["d_model"]}
    bare = wan.pipeline([wan.transformer(num_layers=1, **size)])
    return WanPipeline(
        tokenizer=tokenizer_in(write_spiece(folder).parent),
        text_encoder=UMT5EncoderModel(UMT5Config(**SIZES, feed_forward_proj="gated-gelu")).eval(),
        vae=random_wan_vae("three doublings"),
        transformer=bare.transformer,
        scheduler=bare.scheduler,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("made", "length"), [(latte, "video_length"), (wan_with_text, "num_frames")])
def test_a_prompt_makes_the_video_of_diffusers(made: Callable[[Path], Any], length: str, tmp_path: Path) -> None:
    import torch  # here: few tests need it

    pipeline, frames = made(tmp_path), 5
    pipeline.set_progress_bar_config(disable=True)
    folder, bundle = tmp_path / "pipeline", tmp_path / "bundle"
    pipeline.save_pretrained(folder)
    with unlogged():
        assert export([str(folder), "-o", str(bundle), "--backend", "onnxruntime"]) == 0
    space = read_manifest(bundle).latent
    sides = (side // space.spatial_factor for side in (HEIGHT, WIDTH))
    noise = np.random.default_rng(0).standard_normal(
        (1, space.channels, space.latent_frames(frames), *sides), np.float32
    )
    np.savez(tmp_path / "z.npz", latents=noise)
    command: list[object] = [bundle, "--prompt", PROMPT, "--negative-prompt", NEGATIVE, "--latents", tmp_path / "z.npz"]
    command += ["--steps", STEPS, "--guidance", GUIDANCE, "--height", HEIGHT, "--width", WIDTH, "--frames", frames]
    command += ["--save-latents", tmp_path / "out.npz", "-o", tmp_path / "frames.npz"]
    assert run(list(map(str, command))) == 0

    asked = {"height": HEIGHT, "width": WIDTH, length: frames, "num_inference_steps": STEPS}
    asked |= {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": GUIDANCE}
    expected, shown = (
        np.asarray(pipeline(**asked, latents=torch.from_numpy(noise), output_type=kind).frames)
        for kind in ("latent", "np")
    )
    latents = np.load(tmp_path / "out.npz")["latents"]
    assert np.abs(latents - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(np.load(tmp_path / "frames.npz")["frames"] / 255 - shown[0]).max() <= 2e-3
