"""Wan pipelines of random weights, built by diffusers, and their latents."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import Manifest

TINY: Mapping[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 20,
    "freq_dim": 32,
    "ffn_dim": 40,
    "num_layers": 2,
}
SPREAD = 0.25  # standard deviation of the weights, at which every part of the model counts


def transformer(seed: int = 0, **changes: Any) -> Any:
    """Return diffusers' transformer with random weights."""
    import torch  # here: few tests need it
    from diffusers import WanTransformer3DModel

    made = WanTransformer3DModel(**{**TINY, **changes}).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=SPREAD, generator=generator)
    return made


def pipeline(
    transformers: list[Any],
    scheduler: Any = None,
    vae: Any = None,
    boundary: float | None = None,
    expand: bool = False,
    image: bool = False,
    encoder: Mapping[str, Any] | None = None,
) -> Any:
    """Return diffusers' pipeline of one or two transformers, without a text encoder.

    ``image`` = it takes an image; ``encoder`` is its image encoder, and what prepares images for it.
    """
    from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline

    usual = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    made = (WanImageToVideoPipeline if image else WanPipeline)(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        scheduler=scheduler or UniPCMultistepScheduler(**usual),
        transformer=transformers[0],
        transformer_2=transformers[1] if len(transformers) > 1 else None,
        boundary_ratio=boundary,
        expand_timesteps=expand,
        **(encoder or {}),
    )
    made.set_progress_bar_config(disable=True)
    return made


def image_encoder(
    width: int = 16, layers: int = 3, side: int = 18, patch: int = 5, shorter: int = 20, **changes: Any
) -> dict[str, Any]:
    """Return CLIP's vision model with random weights, and the processor of its images, as a pipeline takes them."""
    import torch  # here: few tests need it
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=side,
        patch_size=patch,
        **changes,
    )
    made = CLIPVisionModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=SPREAD, generator=generator)
    return {"image_encoder": made, "image_processor": CLIPImageProcessorPil(size=shorter, crop_size=side)}


def inputs(manifest: Manifest, folder: Path, frames: int, height: int, width: int, length: int = 7) -> dict[str, Any]:
    """Write random latents and text embeddings as ``adacache-run`` reads them; return arrays and paths."""
    latent, random = manifest.latent, np.random.default_rng(1)
    shape = (
        1,
        latent.channels,
        latent.latent_frames(frames),
        *(side // latent.spatial_factor for side in (height, width)),
    )
    latents = random.standard_normal(shape, np.float32)
    text = random.standard_normal((2, length, manifest.text.width), np.float32)
    np.savez(folder / "z.npz", latents=latents)
    np.savez(folder / "e.npz", embeddings=text[:1], negative=text[1:])
    return {"latents": latents, "embeddings": text[:1], "negative": text[1:]}


def video_condition_of(
    made: Any, image: Any, latents: NDArray[np.float32], frames: int, height: int, width: int
) -> NDArray[np.float32]:
    """Return mask and encoded video (channels, frames, height, width) that diffusers' pipeline makes of an image."""
    import torch  # here: few tests need it

    pixels = made.video_processor.preprocess(image, height=height, width=width)
    with torch.no_grad():
        _, condition = made.prepare_latents(
            pixels, 1, latents.shape[1], height, width, frames, torch.float32, latents=torch.from_numpy(latents)
        )
    return np.asarray(condition[0])


def latents_of(
    made: Any, given: Mapping[str, NDArray[np.float32]], output: str = "latent", **options: Any
) -> NDArray[np.float32]:
    """Return the latents that diffusers' pipeline ends with, or where ``output`` is ``np`` its frames, 0 to 1."""
    import torch  # here: few tests need it

    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    result = made(
        prompt_embeds=tensors["embeddings"],
        negative_prompt_embeds=tensors["negative"],
        latents=tensors["latents"],
        output_type=output,
        **options,
    ).frames
    return np.asarray(result)
