"""The stages of a T5 equal transformers' encoder, in torch and as engines."""

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
from tests.helpers.tiny_models.t5 import SIZES, TOLERANCE, inputs, loaded, random_t5, reference


@pytest.mark.parametrize("proj", ["relu", "gelu", "gated-gelu", "gated-silu"])
def test_equals_transformers(proj, tmp_path, tokenizer_json):
    model = random_t5(transformers.T5EncoderModel, proj)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer_json, "utf-8")
    module = loaded(open_text_encoder(tmp_path))
    for shape in ((3, 300), (1, 1)):  # 300 tokens reach every bucket of distances, and beyond
        tokens, mask = inputs(*shape)
        with torch.no_grad():
            got = module(tokens, mask)
        assert got.dtype == torch.float32
        assert (got - reference(model, tokens, mask)).abs().max() < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("proj", "precision"),
    [
        ("gated-gelu", "fp32"),
        ("relu", "fp32"),
        ("gated-gelu", "bf16"),
    ],
)
def test_engines_equal_transformers(proj, precision, tmp_path, tokenizer_json):
    """Those of a part, one after another as the runtime runs them."""
    model = random_t5(transformers.T5EncoderModel, proj)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer_json, "utf-8")
    encoder = open_text_encoder(tmp_path, DTYPES[precision])
    rule = TextRule(max_length=60, width=SIZES["d_model"], cleaning="html-and-captions")
    part, rule = add_encoder(tmp_path, encoder, rule, precision, Progress())
    assert rule.precision == precision
    assert [graph.name for graph in rule.encoder_stages] == [
        *("encoder.embed", "encoder.00", "encoder.01", "encoder.final"),
    ]
    paths = [tmp_path / graph.path for graph in rule.encoder_stages]
    assert all(path.stat().st_size < 50_000 for path in paths)  # no weights in them
    element = 4 if precision == "fp32" else 2
    weights = sum(value.numel() for value in model.parameters()) * element
    assert sum(graph.weights_nbytes for graph in rule.encoder_stages) == weights
    assert weights < part.files[part.weights].nbytes < weights + 10_000
    tokens, mask = inputs(3, 60)
    (got,) = encode(rule, OrtBackend(tmp_path), [Tokens(tokens.numpy(), mask.numpy())])
    expected = reference(model, tokens, mask).numpy()
    assert got.dtype == np.float32
    error = np.abs(got - expected).max()
    assert error < TOLERANCE if precision == "fp32" else TOLERANCE < error < 0.1


def test_padding_does_not_reach_the_text(folder):
    module = loaded(open_text_encoder(folder))
    tokens, mask = torch.tensor([[5, 6, 1, 0, 0, 0]]), torch.tensor([[True] * 3 + [False] * 3])
    with torch.no_grad():
        assert (module(tokens, mask)[:, :3] - module(tokens[:, :3], mask[:, :3])).abs().max() < TOLERANCE
        assert module(tokens, mask)[:, 3:].abs().min() > 0  # not zeroed
        assert module(tokens, torch.zeros_like(mask)).isfinite().all()


def test_stages(folder):
    stages = open_text_encoder(folder).stages
    first, *blocks, last = stages
    assert [(stage.name, stage.traced_as) for stage in stages] == [
        ("encoder.embed", "encoder.embed"),
        ("encoder.00", "encoder.block"),
        ("encoder.01", "encoder.block"),
        ("encoder.final", "encoder.final"),
    ]
    width = SIZES["d_model"]
    assert [str(spec) for spec in (*first.inputs, *first.outputs)] == [
        "tokens int64 (batch, text)",
        "mask bool (batch, text)",
        f"hidden float32 (batch, text, {width})",
        f"bias float32 (batch, {SIZES['num_heads']}, text, text)",
    ]
    assert all(block.inputs == first.outputs for block in blocks)
    assert [str(spec) for spec in last.outputs] == [f"captions float32 (batch, text, {width})"]
    assert all(parameter.is_meta for stage in stages for parameter in stage.module.parameters())
    assert not [buffer for stage in stages for buffer in stage.module.buffers()]
