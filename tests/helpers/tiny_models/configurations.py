"""Configurations of models of each family, small and as published, and sizes to run the stages of small ones at."""

from collections.abc import Mapping
from typing import Any

from adacache_export.families.latte_t2v.transformer import LatteT2VConfig
from adacache_export.families.open_sora.transformer import OpenSoraConfig
from adacache_export.families.open_sora_plan import family as open_sora_plan
from adacache_export.families.wan.config import WanConfig

LATTE = LatteT2VConfig(num_attention_heads=2, attention_head_dim=8, num_layers=2, caption_channels=12)

SMALL: Mapping[str, Any] = {
    "open-sora-1.2": OpenSoraConfig(hidden_size=32, depth=2, num_heads=2, caption_channels=12, model_max_length=7),
    "latte-1": LATTE,
    "open-sora-plan-1.1": LATTE,
    "wan": WanConfig(num_attention_heads=2, attention_head_dim=12, text_dim=12, ffn_dim=40, num_layers=2),
}

SIZES = {"batch": 2, "frames": 3, "height": 4, "width": 6, "patch_frames": 3, "tokens": 6, "text": 5}

# small models with widths of which no two are alike
UNEVEN: Mapping[str, Any] = {
    "open-sora-1.2": OpenSoraConfig(
        in_channels=3,
        patch_size=(2, 3, 2),
        hidden_size=40,
        depth=2,
        num_heads=5,
        mlp_ratio=2.7,
        caption_channels=24,
        model_max_length=7,
    ),
    **dict.fromkeys(
        ("latte-1", "open-sora-plan-1.1"),
        LatteT2VConfig(
            num_attention_heads=5,
            attention_head_dim=8,
            in_channels=3,
            out_channels=7,
            num_layers=2,
            patch_size=3,
            caption_channels=24,
            model_max_length=7,
        ),
    ),
    "wan": WanConfig(
        patch_size=(2, 3, 2),
        num_attention_heads=5,
        attention_head_dim=8,
        in_channels=7,
        out_channels=7,
        text_dim=24,
        freq_dim=16,
        ffn_dim=27,
        num_layers=2,
    ),
}

PUBLISHED: Mapping[str, Any] = {
    "open-sora-1.2": OpenSoraConfig(),
    "latte-1": LatteT2VConfig(),
    "open-sora-plan-1.1": open_sora_plan.RELEASED,
    "wan": WanConfig(),
}
