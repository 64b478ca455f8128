"""Plans of Wan's blocks at their published sizes, which TensorRT-RTX builds without a GPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import ELEMENT_TYPES, DType
from adacache_engines.tensorrt import build
from adacache_engines.tensorrt.build import BuildOptions, build_plan
from adacache_engines.tensorrt.library import open_library
from adacache_export.families.registry import FAMILIES
from adacache_export.families.wan.family import FLOAT32
from adacache_export.families.wan.transformer import WanConfig
from adacache_export.stages import Stage
from adacache_export.tracing.graph_file import write_graph
from adacache_export.tracing.trace import trace
from adacache_export.writing.weights_file import TORCH_DTYPES, Location

pytestmark = pytest.mark.slow  # traces, and plans of up to 700 MB
ALIGNMENT = 64
TRACED = {"batch": 2, "patch_frames": 3, "tokens": 6, "text": 5}


class Model(NamedTuple):
    """A published model: heads, width of the feed-forward layer, and tokens of a frame at 480p and 720p."""

    heads: int
    ffn: int
    tokens: tuple[int, int]


MODELS = {
    "1.3B": Model(12, 8960, (1560, 3600)),
    "5B": Model(24, 14336, (390, 880)),  # its VAE makes 16 x 16 pixels one latent
    "14B": Model(40, 13824, (1560, 3600)),
}
FRAMES = 21  # latent frames of 81


def block_of(model: Model) -> Stage:
    config = WanConfig(num_attention_heads=model.heads, ffn_dim=model.ffn, num_layers=1)
    (stage,) = (stage for stage in FAMILIES["wan"].stages(config, precision="float16") if stage.block)
    return stage


def places(stage: Stage) -> Iterator[tuple[str, Location]]:
    """Give a stage's weights their types, and return their places in a file, one behind the other."""
    offset = 0
    for name, key in stage.keys().items():
        parameter = stage.module.get_parameter(name)
        dtype: DType = "float32" if any(part in key for part in FLOAT32) else "float16"
        parameter.data = parameter.to(TORCH_DTYPES[dtype])
        nbytes = parameter.numel() * ELEMENT_TYPES[dtype].numpy.itemsize
        yield key, Location(tuple(parameter.shape), dtype, offset, nbytes)
        offset += -(-nbytes // ALIGNMENT) * ALIGNMENT


@pytest.mark.parametrize("name", MODELS)
def test_blocks_of_wan_are_built_with_fused_attention(tmp_path: Path, name: str) -> None:
    """Blocks build for 81 frames at 480p and 720p in fp16, with zeros as weights, since no kernel depends on them."""
    model = MODELS[name]
    stage = block_of(model)
    locations = dict(places(stage))
    weights = tmp_path / "weights.safetensors"
    with weights.open("wb") as file:
        file.truncate(max(place.offset + place.nbytes for place in locations.values()))
    path = tmp_path / f"{stage.name}.onnx"
    write_graph(path, trace(stage, TRACED), stage, weights, locations)
    graph = Graph(name=stage.name, path=path.name, inputs=stage.inputs, outputs=stage.outputs)
    profiles = [
        {"batch": (1, 2, 2), "patch_frames": (FRAMES,) * 3, "tokens": (tokens,) * 3, "text": (1, 512, 512)}
        for tokens in model.tokens
    ]
    library = open_library("tensorrt-rtx")
    plan = build_plan(library, path, graph, profiles, BuildOptions(), fused=True)
    assert plan.nbytes > 0
    builder = library.api.Builder(library.logger)
    network = build._network(library, builder, path, graph, build.PASSES)
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    assert kinds.count(library.api.LayerType.ATTENTION_INPUT) == 2, "self-attention, and attention to the text"
    assert kinds.count(library.api.LayerType.SOFTMAX) == 0
