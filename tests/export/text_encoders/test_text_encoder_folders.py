"""Layouts of a text encoder's folder, and what is said of folders that are damaged or incomplete."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load, save_file

from adacache_engines.errors import CheckpointError
from adacache_export.text_encoders.registry import open_text_encoder
from adacache_export.text_encoders.t5.encoder import PREFIX
from tests.helpers.tiny_models.t5 import TOLERANCE, all_keys, inputs, loaded, random_t5

LAYOUTS = {
    "whole T5": lambda state: state | {"decoder.block.0.layer.0.layer_norm.weight": torch.ones(1)},
    "tied embeddings twice": lambda state: state | {"encoder.embed_tokens.weight": state["shared.weight"].clone()},
    "embeddings of the stack": lambda state: {
        {"shared.weight": "encoder.embed_tokens.weight"}.get(name, name): tensor for name, tensor in state.items()
    },
    "the stack alone": lambda state: {
        {"shared.weight": "embed_tokens.weight"}.get(name, name.removeprefix("encoder.")): tensor
        for name, tensor in state.items()
    },
    "half precision": lambda state: {name: tensor.bfloat16() for name, tensor in state.items()},
}


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, file, gated, folder):
    (folder / "model.safetensors").unlink()
    state = LAYOUTS[layout]({name: value for name, value in gated.state_dict().items() if "embed_tokens" not in name})
    if file.endswith(".bin"):
        torch.save(state, folder / file)
    else:
        save_file(state, folder / file)
    encoder = open_text_encoder(folder)
    assert set(encoder.checkpoint.tensors) == all_keys(encoder)
    for name, parameter in gated.named_parameters():
        got = encoder.checkpoint.tensors[PREFIX + name]
        assert torch.equal(got, parameter.detach().to(got.dtype))


def test_shards_of_a_whole_t5(folder):
    model = random_t5(transformers.T5ForConditionalGeneration, "gated-gelu")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    encoder = open_text_encoder(folder)
    assert set(encoder.checkpoint.tensors) == all_keys(encoder)
    tokens, mask = inputs(2, 9)
    with torch.no_grad():
        got = loaded(encoder)(tokens, mask)
        expected = model.encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    assert (got - expected).abs().max() < TOLERANCE


def set_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def set_weight(folder: Path, name: str, value: float | None) -> None:
    path = folder / "model.safetensors"
    state = load(path.read_bytes())
    if value is None:
        del state[name]
    else:
        state[name][0] = value
    save_file(state, path)


NORM = "encoder.final_layer_norm.weight"
SPOILED = {
    "no folder": (shutil.rmtree, "is not a folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
    "cut weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10" * 40), r"model\.safetensors"),
    "another model": (
        lambda folder: set_config(folder, model_type="bert"),
        r"config\.json.*'bert'; expected a text encoder of type t5, mt5, umt5",
    ),
    "no field": (lambda folder: set_config(folder, d_ff=None, num_heads=0), r"(?s)d_ff.*num_heads|num_heads.*d_ff"),
    "unknown activation": (lambda folder: set_config(folder, feed_forward_proj="tanh"), "feed_forward_proj"),
    "no buckets": (lambda folder: set_config(folder, relative_attention_num_buckets=2), "relative_attention_num_b"),
    "short buckets": (lambda folder: set_config(folder, relative_attention_max_distance=8), "max_distance"),
    "wider": (lambda folder: set_config(folder, d_model=32), r"shared\.weight is \(64, 24\), expected \(64, 32\)"),
    "missing tensor": (lambda folder: set_weight(folder, NORM, None), f"{PREFIX}{NORM}"),
    "NaN": (lambda folder: set_weight(folder, NORM, float("nan")), "1 NaN"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json or spiece\.model"),
    "cut tokenizer": (lambda folder: (folder / "tokenizer.json").write_bytes(b'{"ver'), r"tokenizer\.json.*damaged"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_folder(case, folder):
    spoil, message = SPOILED[case]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as raised:
        open_text_encoder(folder)
    assert str(folder) in str(raised.value)
