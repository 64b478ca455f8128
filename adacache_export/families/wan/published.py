"""How Wan's models are published: names of tensors and settings in the original layout, and the settings of each.

Source: Wan-Video/Wan2.1 and Wan-Video/Wan2.2, ``wan/configs``; the files of the repositories in diffusers' layout.
"""

import re
from dataclasses import dataclass
from typing import Any

from adacache_engines.bundle.manifest import VideoDefaults, VideoNames
from adacache_export.families.description import PipelineConfigs
from adacache_export.families.wan.config import WanConfig

# parts of tensors' names in the original, in which a dot ends each module's name, and in diffusers
MODULES = (
    ("self_attn.", "attn1."),
    ("cross_attn.", "attn2."),
    ("norm3.", "norm2."),
    ("ffn.0.", "ffn.net.0.proj."),
    ("ffn.2.", "ffn.net.2."),
    ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
    ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
    ("time_projection.1.", "condition_embedder.time_proj."),
    ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
    ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
    ("img_emb.proj.0.", "condition_embedder.image_embedder.norm1."),
    ("img_emb.proj.1.", "condition_embedder.image_embedder.ff.net.0.proj."),
    ("img_emb.proj.3.", "condition_embedder.image_embedder.ff.net.2."),
    ("img_emb.proj.4.", "condition_embedder.image_embedder.norm2."),
    ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    ("head.head.", "proj_out."),
)
PROJECTIONS = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "k_img": "add_k_proj",
    "v_img": "add_v_proj",
    "norm_k_img": "norm_added_k",
}
PROJECTION = re.compile(rf"\.(attn[12])\.({'|'.join(PROJECTIONS)})\.")
TABLE = re.compile(r"(?:^head|(^blocks\.\d+))\.modulation$")
AROUND = "diffusion_model."  # prefix that some tools put before all names

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}  # of a scheduler for these models
IMAGE_TO_VIDEO = "ti2v-5b"  # the model that also starts from an image
# shares of the timesteps below which the second of two transformers runs, in the original's configurations
BOUNDARY_RATIOS = {"t2v-a14b": 0.875, "i2v-a14b": 0.9}
SHIFT_OF_480P = 3.0  # of timesteps, in the smaller of two models with one architecture
FULL_SCALE_CHANNELS = 48  # of latents in which 16 pixels are a row, where nothing else tells it
NAMES = VideoNames(
    sizes={
        "480p": {"16:9": (832, 480), "9:16": (480, 832)},
        "704p": {"16:9": (1280, 704), "9:16": (704, 1280)},
        "720p": {"16:9": (1280, 720), "9:16": (720, 1280)},
    }
)


def own_name(name: str) -> str:
    """Return the name that a tensor of the original layout has in diffusers; names of diffusers stay as they are."""
    name = name.removeprefix(AROUND)
    if table := TABLE.match(name):
        return f"{table[1]}.scale_shift_table" if table[1] else "scale_shift_table"
    for module, own in MODULES:
        if name.startswith(module) or f".{module}" in name:
            name = name.replace(module, own, 1)
    return PROJECTION.sub(lambda match: f".{match[1]}.{PROJECTIONS[match[2]]}.", name)


@dataclass(frozen=True)
class Release:
    """Settings that a model was published with.

    Attributes:
        model: name of the model, by which ``policies.json`` has presets for it.
        video: the video that it makes unless a request says otherwise.
        shift: shift of timesteps, where no ``scheduler_config.json`` says it.
        guidance: guidance scale.
        guidance_of_low_noise: guidance scale of the second of two transformers.
        steps: number of sampling steps.
        spatial_factor: number of pixel rows of a latent row.
    """

    model: str
    video: VideoDefaults
    shift: float
    guidance: float
    guidance_of_low_noise: float
    steps: int
    spatial_factor: int

    @property
    def boundary_ratio(self) -> float | None:
        """The share of the timesteps below which the second of two transformers runs; None = there is one."""
        return BOUNDARY_RATIOS.get(self.model)


def published(config: WanConfig, pipeline: PipelineConfigs, shift: Any = None) -> Release:
    """Return the settings of the published model that a model is most like: the large ones make 720p.

    Args:
        config: configuration of the model.
        pipeline: what the folder of a pipeline says of the model.
        shift: shift of timesteps in ``scheduler_config.json``, by which the models of CLIP's states differ; None =
            there is none.
    """
    factor = pipeline.vae.get("scale_factor_spatial")
    if not isinstance(factor, int):
        factor = 16 if config.out_channels == FULL_SCALE_CHANNELS else 8
    small = VideoDefaults(height=480, width=832, frames=81, fps=16, image_fps=16)
    large = VideoDefaults(height=720, width=1280, frames=81, fps=16, image_fps=16)
    if factor == 16:
        video = VideoDefaults(height=704, width=1280, frames=121, fps=24, image_fps=24)
        return Release(IMAGE_TO_VIDEO, video, 5.0, 5.0, 5.0, 50, factor)
    if config.image_dim:
        if shift == SHIFT_OF_480P:
            return Release("i2v-14b-480p", small, SHIFT_OF_480P, 5.0, 5.0, 40, factor)
        return Release("i2v-14b-720p", large, 5.0, 5.0, 5.0, 40, factor)
    if config.condition_channels:
        return Release("i2v-a14b" if pipeline.two_experts else "i2v", large, 5.0, 3.5, 3.5, 40, factor)
    if pipeline.two_experts:
        return Release("t2v-a14b", large, 12.0, 4.0, 3.0, 40, factor)
    if config.num_layers >= WanConfig().num_layers:
        return Release("t2v-14b", large, 5.0, 5.0, 5.0, 50, factor)
    return Release("t2v-1.3b", small, 3.0, 5.0, 5.0, 50, factor)
