"""Floating-point operations of STDiT3's graphs, counted from the configuration: two for each product of two numbers.

Counted are the matrix products of linear layers and of attention (scores and values), which are nearly all of the
work. Norms, activations and the arithmetic graphs count nothing, so they have no TFLOP/s.
"""

import math
from collections.abc import Mapping
from typing import Any

SINUSOID_WIDTH = 256  # of the embedding of a number, before its two layers
EMBEDDED_NUMBERS = 2  # timestep and frames per second


def graph_flop(name: str, config: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    """Operations of one call of a graph.

    Args:
        name: of the graph: ``text``, ``embed``, ``spatial.07``, ``temporal.07``, ``final``; any other counts 0.
        config: of the model, as the manifest has it.
        sizes: of the dynamic axes; ``batch`` counts the branches of guidance.
    """
    width, batch = int(config["hidden_size"]), sizes["batch"]
    tokens = batch * sizes["patch_frames"] * sizes["tokens"]
    texts = batch * sizes["text"]
    patch, channels = math.prod(map(int, config["patch_size"])), int(config["in_channels"])
    kind = name.split(".")[0]
    if kind == "text":
        return 2 * texts * width * (int(config["caption_channels"]) + width)
    if kind == "embed":
        time = EMBEDDED_NUMBERS * (SINUSOID_WIDTH * width + width**2) + 6 * width**2
        return 2 * tokens * patch * channels * width + 2 * batch * time
    if kind == "final":
        return 2 * tokens * width * patch * channels * (2 if config["pred_sigma"] else 1)
    if kind not in ("spatial", "temporal"):
        return 0
    attended = sizes["tokens"] if kind == "spatial" else sizes["patch_frames"]
    # self-attention 3 + 1, cross-attention 1 + 1 for the tokens and 2 for the text, the MLP's two layers
    linear = 2 * (6 + 2 * config["mlp_ratio"]) * tokens * width**2 + 2 * 2 * texts * width**2
    scores_and_values = 2 * 2 * tokens * width * (attended + sizes["text"])
    return int(linear) + scores_and_values


def call_flop(config: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    """Operations of one full evaluation of the model, text left out: it runs once a generation."""
    blocks = [f"{kind}.{index:02d}" for index in range(config["depth"]) for kind in ("spatial", "temporal")]
    return sum(graph_flop(name, config, sizes) for name in ("embed", *blocks, "final"))


def tflop_per_s(flop: int, milliseconds: float) -> float | None:
    """None where nothing was counted."""
    return flop / milliseconds / 1e9 if flop else None
