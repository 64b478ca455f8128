"""Plans of Wan's blocks at their published sizes, which TensorRT-RTX builds without a GPU."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from adacache_engines.bundle.tensors import DType
from adacache_engines.tensorrt import build
from adacache_engines.tensorrt.build import BuildOptions, build_plan
from adacache_engines.tensorrt.library import open_library
from tests.helpers.tiny_models.wan_block import FRAMES, write_block
from tools.speed.published import MODELS

pytestmark = pytest.mark.slow  # traces, and plans of up to 700 MB


class Case(NamedTuple):
    """A block: the name of its model, its precision, and the tokens of a frame at 480p and at 720p.

    ``image_dim`` is the width of the states of an image to which it also attends.
    """

    model: str
    precision: DType
    tokens: tuple[int, int]
    image_dim: int | None = None


CASES = {
    "1.3B": Case("wan2.1-1.3b", "float16", (1560, 3600)),
    "1.3B-bf16": Case("wan2.1-1.3b", "bfloat16", (1560, 3600)),
    "5B": Case("wan2.2-5b", "float16", (390, 880)),  # its VAE makes 16 x 16 pixels one latent
    "14B": Case("wan2.1-14b", "float16", (1560, 3600)),
    "1.3B with an image": Case("wan2.1-1.3b", "float16", (1560, 3600), 1280),  # published as wide as 14B
}


@pytest.mark.parametrize("name", CASES)
def test_blocks_of_wan_are_built_with_fused_attention(tmp_path: Path, name: str) -> None:
    """Blocks build for 81 frames at 480p and 720p, and self-attention among all their tokens writes out no scores."""
    case = CASES[name]
    model = MODELS[case.model].with_depth(1)
    config = replace(model.config, image_dim=case.image_dim)
    graph = write_block(tmp_path, config, case.precision, by_frame=model.index.get("expand_timesteps", False))
    path = tmp_path / graph.path
    profiles = [
        {
            "batch": (1, 2, 2),
            "patch_frames": (FRAMES,) * 3,
            "tokens": (tokens,) * 3,
            "text": (1, 512, 512),
            "image": (257,) * 3,
        }
        for tokens in case.tokens
    ]
    library = open_library("tensorrt-rtx")
    plan = build_plan(library, path, graph, profiles, BuildOptions(), fused=True)
    weights = (tmp_path / "weights.safetensors").stat().st_size
    assert weights < plan.nbytes < 1.5 * weights
    network = build._network(library, library.api.Builder(library.logger), path, graph, build.PASSES)
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    met = "self-attention, and attention to the text and to the image"
    assert kinds.count(library.api.LayerType.ATTENTION_INPUT) == 2 + (case.image_dim is not None), met
    assert kinds.count(library.api.LayerType.SOFTMAX) == 0
