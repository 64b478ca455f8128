"""The stages of a UMT5 equal transformers' encoder, in torch and as engines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from adacache_engines.bundle.manifest import DTYPES, TextRule
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.parts.text_encoder import add_encoder
from adacache_export.phases import Progress
from adacache_export.text_encoders.registry import open_text_encoder
from adacache_runtime.text.encoder import encode
from adacache_runtime.text.tokenizer import Tokens
from tests.helpers.tiny_models.t5 import SIZES, TOLERANCE, all_keys, inputs, loaded, reference


@pytest.fixture(scope="module")
def model() -> transformers.UMT5EncoderModel:
    """Random weights, so that the blocks' position biases differ."""
    torch.manual_seed(0)
    model = transformers.UMT5EncoderModel(transformers.UMT5Config(**SIZES, decoder_start_token_id=0)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def umt5(model: Any, tmp_path: Path, tokenizer_json: str) -> Path:
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer_json, "utf-8")
    return tmp_path


def test_equals_transformers(umt5: Path, model: Any) -> None:
    encoder = open_text_encoder(umt5)
    assert set(encoder.checkpoint.tensors) == all_keys(encoder)
    module = loaded(encoder)
    for shape in ((3, 300), (1, 1)):  # 300 tokens reach every bucket of distances, and beyond
        tokens, mask = inputs(*shape)
        with torch.no_grad():
            got = module(tokens, mask)
            assert module(tokens, torch.zeros_like(mask)).isfinite().all()
        assert got.dtype == torch.float32
        assert (got - reference(model, tokens, mask)).abs().max() < TOLERANCE


def test_stages(umt5: Path) -> None:
    """All blocks share a trace; each has the table of its own position bias."""
    first, *blocks, last = open_text_encoder(umt5).stages
    width = SIZES["d_model"]
    assert [str(spec) for spec in first.outputs] == [
        f"hidden float32 (batch, text, {width})",
        "padding float32 (batch, 1, 1, text)",
    ]
    assert [stage.traced_as for stage in (first, *blocks, last)] == [
        *("encoder.embed", "encoder.block", "encoder.block", "encoder.final")
    ]
    tables = [[key for key in stage.keys().values() if "relative_attention_bias" in key] for stage in blocks]
    assert [len(table) for table in tables] == [1, 1]
    assert tables[0] != tables[1]
    assert not [buffer for stage in (first, *blocks, last) for buffer in stage.module.buffers()]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_engines_equal_transformers(precision: Any, umt5: Path, model: Any) -> None:
    """The engines run in turn, as the runtime runs them, and pad to the model's length."""
    encoder = open_text_encoder(umt5, DTYPES[precision])
    wide = {key for key, dtype in encoder.dtypes().items() if dtype == "float32"}
    kept = ("norm.weight", "relative_attention_bias.weight", "wo.weight")
    if precision == "fp16":
        assert wide == {key for key in encoder.checkpoint.tensors if key.endswith(kept)}
    else:
        assert len(wide) == (len(encoder.checkpoint.tensors) if precision == "fp32" else 0)
    rule = TextRule(max_length=60, width=SIZES["d_model"], cleaning="repaired", masking="zeros")
    _, rule = add_encoder(umt5, encoder, rule, precision, Progress())
    tokens, mask = inputs(3, 60)
    (got,) = encode(rule, OrtBackend(umt5), [Tokens(tokens.numpy(), mask.numpy())])
    error = np.abs(got - reference(model, tokens, mask).numpy())[mask.numpy()].max()
    assert error < {"fp32": TOLERANCE, "fp16": 0.02, "bf16": 0.15}[precision]
    assert precision == "fp32" or error > TOLERANCE
