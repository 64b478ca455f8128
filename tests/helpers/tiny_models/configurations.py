"""Configurations of small models, one of each family, and sizes to run their stages at."""

from collections.abc import Mapping
from typing import Any

from adacache_export.families.latte_t2v.transformer import LatteT2VConfig
from adacache_export.families.open_sora.transformer import OpenSoraConfig
from adacache_export.families.wan.transformer import WanConfig

LATTE = LatteT2VConfig(num_attention_heads=2, attention_head_dim=8, num_layers=2, caption_channels=12)


SMALL: Mapping[str, Any] = {
    "open-sora-1.2": OpenSoraConfig(hidden_size=32, depth=2, num_heads=2, caption_channels=12, model_max_length=7),
    "latte-1": LATTE,
    "open-sora-plan-1.1": LATTE,
    "wan": WanConfig(num_attention_heads=2, attention_head_dim=12, text_dim=12, ffn_dim=40, num_layers=2),
}


SIZES = {"batch": 2, "frames": 3, "height": 4, "width": 6, "patch_frames": 3, "tokens": 6, "text": 5}
