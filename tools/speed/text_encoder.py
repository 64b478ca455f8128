"""Measure the peak memory of the export of a T5 encoder against the size of its files.

``python -m tools.speed.text_encoder [--gb 1] [--layout shards|bin]`` makes a T5 of random float32 weights in the
proportions of T5-XXL, exports it with a tiny model, and prints the resident memory of adacache-export, its children
included, and the part of it that is not mapped from a file.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from adacache_export.stages import weight_shapes
from adacache_export.text_encoders.t5.encoder import PREFIX, stages
from adacache_export.text_encoders.t5.modules import T5Config
from tools.speed.checkpoint import config_of, write_checkpoint
from tools.speed.full_size import Costs, measure_command
from tools.speed.size import Size

LAYERS = 20
TOKENIZER = Path(__file__).parent.parent / "demo" / "model" / "text_encoder" / "tokenizer.json"
LAYOUTS = ("shards", "bin")
SHARD_NBYTES = 200e6


def sizes(nbytes: float) -> dict[str, object]:
    """Return the configuration of a T5 with this many bytes of float32 weights, in T5-XXL's proportions."""
    # a block has 4 matrices (D, D) and 3 of (D, 2.5 D)
    width = max(64, 64 * round((nbytes / 4 / LAYERS / 11.5) ** 0.5 / 64))
    return {
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "vocab_size": max(8 * width, 2000),
        "d_model": width,
        "d_kv": 64,
        "num_heads": width // 64,
        "d_ff": 5 * width // 2,
        "num_layers": LAYERS,
    }


def measure(work: Path, nbytes: float, layout: str) -> tuple[Costs, int]:
    """Return what the export of a tiny model with such an encoder takes, and the bytes of the encoder's files."""
    width = int(str(sizes(nbytes)["d_model"]))
    written = write_t5(work / "t5", nbytes, layout)
    model = work / "model.safetensors"
    write_checkpoint(model, config_of(Size(depth=1, width=32, heads=2, caption_width=width)))
    output = work / "model.adacache"
    return measure_command(
        [str(model), "--text-encoder", str(work / "t5"), "-o", str(output)], model.stat().st_size
    ), written


def write_t5(folder: Path, nbytes: float, layout: str) -> int:
    """Write a Hugging Face folder with random weights and the demo's tokenizer; return the bytes of its weights."""
    folder.mkdir(parents=True)
    config = sizes(nbytes)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    shapes = weight_shapes(stages(T5Config.from_json(config), "float32"))
    if layout == "bin":
        torch.save({name: tensor for shard in _drawn(shapes, float("inf")) for name, tensor in shard.items()},
                   folder / "pytorch_model.bin")  # fmt: skip
    else:
        count = sum(1 for _ in _drawn(shapes, SHARD_NBYTES, empty=True))
        names: dict[str, str] = {}
        for index, shard in enumerate(_drawn(shapes, SHARD_NBYTES), 1):
            file = f"model-{index:05}-of-{count:05}.safetensors"
            save_file(shard, folder / file)
            names |= dict.fromkeys(shard, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))


def _drawn(shapes: dict[str, tuple[int, ...]], nbytes: float, empty: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """Yield tensors by published name, in shards of about this many bytes."""
    generator = torch.Generator().manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    for key, shape in shapes.items():
        tensor = torch.empty(shape)
        if not empty:
            spread = 1 if len(shape) < 2 else shape[-1] ** -0.5
            torch.nn.init.normal_(tensor, std=spread, generator=generator)
        shard[key.removeprefix(PREFIX)] = tensor
        if sum(each.nbytes for each in shard.values()) >= nbytes:
            yield shard
            shard = {}
    if shard:
        yield shard


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gb", type=float, default=1.0, help="of weights (default: 1)")
    parser.add_argument("--layout", choices=LAYOUTS, default="shards", help="of their files (default: shards)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        costs, nbytes = measure(Path(place), options.gb * 1e9, options.layout)
    print(f"{options.layout}, {nbytes / 1e6:.0f} MB, {costs.seconds:.0f} s")
    for name, value in (("resident", costs.peak_mb), ("private", costs.private_mb)):
        print(f"{name}: {value:.0f} MB, {value * 1e6 / nbytes:.2f} of the file")


if __name__ == "__main__":
    main()
