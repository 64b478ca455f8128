"""The demo model, a small STDiT3 in pixel space with a small T5, and its folder on disk."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from adacache_export.families.layers import FREQUENCY_BASE
from adacache_export.families.open_sora import family as open_sora
from adacache_export.families.open_sora import transformer as stdit3
from adacache_export.stages import run_stages
from tools.demo import world

CONFIG: dict[str, Any] = {
    "model_type": "STDiT3",
    "input_size": [None, None, None],
    "input_sq_size": world.SIZE,
    "in_channels": 3,
    "patch_size": [1, 4, 4],
    "hidden_size": 96,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 4.0,
    "pred_sigma": False,
    "qk_norm": True,
    "caption_channels": 64,
    "model_max_length": 12,
}
SCHEDULER: dict[str, Any] = {
    "type": "rflow",
    "num_sampling_steps": 30,
    "cfg_scale": 5.0,
    "use_timestep_transform": False,
    "num_timesteps": 1000,
}
SPECIAL = ("<pad>", "</s>", "<unk>")
WORDS = sorted({word for what in world.EVERYTHING for word in world.caption(what).split()})


def tokenizer() -> Tokenizer:
    """Return a tokenizer with one token a word, ``</s>`` at the end, and no padding."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    result = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[2]))
    result.add_special_tokens(list(SPECIAL))
    result.normalizer = normalizers.Lowercase()
    result.pre_tokenizer = pre_tokenizers.Whitespace()
    result.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return result


def text_encoder_config() -> T5Config:
    width = CONFIG["caption_channels"]
    return T5Config(
        vocab_size=len(SPECIAL) + len(WORDS),
        d_model=width,
        d_kv=16,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
    )


class Demo(nn.Module):
    """Text encoder, null caption and the denoiser's stages, trained together."""

    def __init__(self) -> None:
        super().__init__()
        fields = {name: CONFIG[name] for name in stdit3.OpenSoraConfig.__dataclass_fields__}
        self.config = stdit3.OpenSoraConfig(**fields | {"patch_size": tuple(CONFIG["patch_size"])})
        self.stages = open_sora.stages(self.config)
        self.denoiser = nn.ModuleList(stage.module for stage in self.stages)
        self.encoder = T5EncoderModel(text_encoder_config())
        length, channels = self.config.model_max_length, self.config.caption_channels
        self.null_caption = nn.Parameter(torch.randn(length, channels))
        self.initialise()

    def initialise(self) -> None:
        """Xavier weights, gates open from the start, temporal heads that look at fixed offsets.

        The model has no embedding of the frame index, only relative rotations, and noise looks alike in all frames.
        A head that looks a fixed number of frames away sees something else where there is no such frame, so the
        distance to the clip's ends can be told from the first iteration, and motion is learned early.
        """
        residual_scale = 1 / math.sqrt(2 * self.config.depth)
        for module in self.denoiser.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for module in self.denoiser.modules():
            if isinstance(module, stdit3.Block):
                nn.init.normal_(module.scale_shift_table, std=0.02)
                with torch.no_grad():
                    module.scale_shift_table[[2, 5]] += 1.0
                    for layer in (module.attn.proj, module.cross_attn.proj, module.mlp.fc2):
                        layer.weight *= residual_scale
                if module.attn.temporal:
                    look_at_offsets(module.attn)
            if isinstance(module, stdit3.Embed):
                for parameter in module.t_block.parameters():
                    if parameter.ndim == 2:
                        nn.init.normal_(parameter, std=0.02)
            if isinstance(module, stdit3.Final):
                nn.init.zeros_(module.linear.weight)

    def encode(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return captions (B, L, caption_channels) of ``tokens`` and ``mask`` (B, L)."""
        states: Tensor = self.encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        return states

    def forward(self, latents: Tensor, timestep: Tensor, captions: Tensor, text_mask: Tensor) -> Tensor:
        """Return the velocity (B, 3, T, H, W) at ``timestep`` (B,) in 0..1000."""
        size = torch.full((1,), float(world.SIZE))
        tensors = {
            "latents": latents,
            "timestep": timestep,
            "fps": torch.full((len(latents),), world.FPS),
            "height": size,
            "width": size,
            "captions": captions,
            "text_mask": text_mask,
        }
        return run_stages(self.stages, tensors)["prediction"]

    def checkpoint(self) -> dict[str, Tensor]:
        """Return the denoiser's tensors under STDiT3's names."""
        half = self.config.head_width // 2
        tensors = {
            "rope.freqs": FREQUENCY_BASE ** (-torch.arange(half) / half),
            "y_embedder.y_embedding": self.null_caption.detach(),
        }
        for stage in self.stages:
            tensors |= {key: stage.module.get_parameter(name).detach() for name, key in stage.keys().items()}
        return tensors


def look_at_offsets(attention: stdit3.SelfAttention, offsets: tuple[int, ...] = (-1, 1, -3, 3)) -> None:
    """Return biases of queries and keys that make head h attend ``offsets[h]`` frames away."""
    head_width = len(attention.q_norm.weight)
    pairs = head_width // 2
    frequency = FREQUENCY_BASE ** (-torch.arange(pairs) / pairs)
    strength = 3.0 * (torch.arange(pairs) < 4)  # the fast pairs; the slow ones cannot tell neighbours apart
    for head in range(attention.heads):
        angle = offsets[head % len(offsets)] * frequency
        query = torch.stack([angle.cos() * strength, angle.sin() * strength], -1).flatten()
        key = torch.stack([strength, torch.zeros(pairs)], -1).flatten()
        with torch.no_grad():
            bias = attention.qkv.bias.view(3, attention.heads, head_width)
            bias[0, head], bias[1, head] = query, key


def tokenise(captions: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Return token ids and mask (True = a token), both (n, length)."""
    tokens = tokenizer()
    ids = torch.zeros(len(captions), length, dtype=torch.long)
    for row, encoding in zip(ids, tokens.encode_batch(captions), strict=True):
        row[: len(encoding.ids)] = torch.tensor(encoding.ids)
    return ids, ids != 0


@torch.no_grad()
def sample(
    model: Demo, captions: list[str], noise: Tensor, guidance: float, steps: int = SCHEDULER["num_sampling_steps"]
) -> Tensor:
    """Return videos (n, 3, T, H, W) from ``noise`` of that shape, by Open-Sora's Euler steps."""
    ids, mask = tokenise(captions, model.config.model_max_length)
    states = model.encode(ids, mask)
    text = torch.cat([states, model.null_caption.expand_as(states)])
    mask = torch.cat([mask, mask])
    latents = noise
    for step in range(steps):
        timestep = torch.full((2 * len(latents),), 1000 * (1 - step / steps))
        conditional, unconditional = model(torch.cat([latents, latents]), timestep, text, mask).chunk(2)
        latents = latents + (unconditional + guidance * (conditional - unconditional)) / steps
    return latents


def write_folder(model: Demo, folder: Path) -> None:
    """Write the files that the exporter needs, in half precision."""
    encoder = folder / "text_encoder"
    encoder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2) + "\n")
    save_file({key: value.half() for key, value in model.checkpoint().items()}, folder / "model.safetensors")
    tokenizer().save(str(encoder / "tokenizer.json"))
    (encoder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": CONFIG["model_max_length"],
                "pad_token": "<pad>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
            },
            indent=2,
        )
        + "\n"
    )
    half = {key: value.half() for key, value in model.encoder.state_dict().items()}
    model.encoder.save_pretrained(encoder, state_dict=half)


def read_folder(folder: Path) -> Demo:
    """Return the model that :func:`write_folder` wrote, in single precision."""
    model = Demo()
    tensors = load_file(folder / "model.safetensors")
    with torch.no_grad():
        model.null_caption.copy_(tensors["y_embedder.y_embedding"])
        for stage in model.stages:
            for name, key in stage.keys().items():
                stage.module.get_parameter(name).copy_(tensors[key])
    model.encoder.load_state_dict(load_file(folder / "text_encoder" / "model.safetensors"), strict=False)
    return model
