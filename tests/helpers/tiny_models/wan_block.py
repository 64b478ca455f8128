"""One block of a Wan transformer with random weights, as a graph in a folder."""

from pathlib import Path

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import DType

TRACED = {"batch": 2, "patch_frames": 3, "tokens": 6, "text": 5, "image": 4}
FRAMES = 21  # latent frames of 81


def write_block(folder: Path, config: object, precision: DType = "float32", by_frame: bool = False) -> Graph:
    """Write the first block of a ``WanConfig`` and its weights into a folder, and return its entry.

    Weights that the original keeps in float32 are float32. ``by_frame`` gives each frame a modulation of its own.
    """
    import torch  # here: few tests need it

    from adacache_export.families.wan.config import WanConfig
    from adacache_export.families.wan.family import FLOAT32, stages
    from adacache_export.tracing.graph_file import write_graph
    from adacache_export.tracing.trace import trace
    from adacache_export.writing.weights_file import TORCH_DTYPES, write_weights

    assert isinstance(config, WanConfig)
    stage = next(stage for stage in stages(config, precision=precision, conditioned=by_frame) if stage.block)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, DType] = {}
    for name, key in stage.keys().items():
        parameter = stage.module.get_parameter(name)
        shapes[key] = tuple(parameter.shape)
        dtypes[key] = "float32" if any(part in key for part in FLOAT32) else precision
        parameter.data = parameter.to(TORCH_DTYPES[dtypes[key]])
    generator = torch.Generator().manual_seed(0)

    def draw(key: str) -> torch.Tensor:
        return torch.empty(shapes[key]).uniform_(-1, 1, generator=generator) * shapes[key][-1] ** -0.5

    path = folder / "block.onnx"
    locations = write_weights(folder / "weights.safetensors", shapes, dtypes, draw)
    write_graph(path, trace(stage, TRACED), stage, folder / "weights.safetensors", locations)
    used = tuple(sorted({*dtypes.values()}))
    return Graph(name=stage.name, path=path.name, inputs=stage.inputs, outputs=stage.outputs, weight_dtypes=used)
