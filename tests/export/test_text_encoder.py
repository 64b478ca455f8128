import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from safetensors.torch import load, save_file

from adacache_engines.bundle.manifest import DTYPES, TextRule
from adacache_engines.errors import CheckpointError, MissingDependencyError
from adacache_engines.onnxruntime.engine import OrtBackend
from adacache_export.phases import Progress
from adacache_export.stages import run_stages
from adacache_export.text_encoders.registry import PREFIX, open_text_encoder, whole_encoder_stage
from adacache_export.tracing.graphs import export_graphs
from adacache_export.writing.parts import add_encoder
from adacache_export.writing.weights_file import write_weights
from adacache_runtime.text.encoder import encode
from adacache_runtime.text.tokenizer import Tokenizer, Tokens

VOCABULARY = 64
SIZES = {"vocab_size": VOCABULARY, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4}
WORDS = "a red blue green circle square moves left right fast slow stays still café 100% it's".split()  # noqa: SIM905
TOLERANCE = 2e-5


def random_t5(kind: type[transformers.PreTrainedModel], proj: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = kind(transformers.T5Config(**SIZES, feed_forward_proj=proj, decoder_start_token_id=0)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # larger than T5's own, so that each part counts
    return model


@pytest.fixture(autouse=True)
def no_log():
    """Pytest collects all that torch logs while tracing, which takes longer than tracing."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def gated() -> transformers.T5EncoderModel:
    return random_t5(transformers.T5EncoderModel, "gated-gelu")


@pytest.fixture(scope="module")
def spiece(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spiece")
    generator = np.random.default_rng(0)
    (folder / "text").write_text("\n".join(" ".join(generator.choice(WORDS, 6)) for _ in range(200)), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return folder / "spiece.model"


@pytest.fixture(scope="module")
def tokenizer_json(spiece) -> str:
    return transformers.T5TokenizerFast.from_pretrained(str(spiece.parent), extra_ids=0).backend_tokenizer.to_str()


@pytest.fixture
def folder(tmp_path, gated, tokenizer_json) -> Path:
    """A complete folder to spoil."""
    gated.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer_json, "utf-8")
    return tmp_path


def inputs(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(VOCABULARY, (batch, length), generator=generator)
    used = torch.randint(1, length + 1, (batch, 1), generator=generator)
    used[0] = length
    return tokens, torch.arange(length) < used


def reference(model: transformers.T5EncoderModel, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state


def loaded(encoder):
    """A function of tokens and mask."""

    def states(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        named = {"tokens": tokens, "mask": mask}
        for stage in encoder.stages:
            tensors = {name: encoder.checkpoint.tensors[key] for name, key in stage.keys().items()}
            stage.module.load_state_dict(tensors, assign=True)
            named = run_stages([stage], named)
        return named["captions"]

    return states


def all_keys(encoder) -> set[str]:
    return {key for stage in encoder.stages for key in stage.keys().values()}


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


@pytest.mark.parametrize(
    ("proj", "precision"),
    [
        ("gated-gelu", "fp32"),
        pytest.param("relu", "fp32", marks=pytest.mark.slow),
        pytest.param("gated-gelu", "bf16", marks=pytest.mark.slow),
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


@pytest.mark.slow
def test_whole_graph_of_before(tmp_path, folder):
    """Bundles used to have the encoder in one graph: it still runs, and gives the same."""
    encoder = open_text_encoder(folder)
    stage = whole_encoder_stage(encoder.config)
    tensors = encoder.checkpoint.tensors
    shapes = {key: tuple(tensors[key].shape) for key in stage.keys().values()}
    weights = tmp_path / "onnx" / "weights.safetensors"
    weights.parent.mkdir()
    locations = write_weights(weights, shapes, dict.fromkeys(shapes, "float32"), tensors.__getitem__)
    backend = OrtBackend(tmp_path)
    sizes = [{"batch": 2, "text": 6}]
    graphs = export_graphs([stage], "fp32", weights, locations, tensors.__getitem__, sizes, backend, Progress())
    rule = TextRule(max_length=9, width=SIZES["d_model"], cleaning="html-and-captions")
    chain = add_encoder(tmp_path, encoder, rule, "fp32", Progress())[1]
    text = [Tokens(*(value.numpy() for value in inputs(2, 9)))]
    (before,) = encode(rule.model_copy(update={"encoder": graphs["encoder"]}), backend, text)
    (now,) = encode(chain, backend, text)
    assert np.abs(before - now).max() < TOLERANCE
    assert np.abs(before).max() > 0.1


def test_padding_does_not_reach_the_text(folder):
    module = loaded(open_text_encoder(folder))
    tokens, mask = torch.tensor([[5, 6, 1, 0, 0, 0]]), torch.tensor([[True] * 3 + [False] * 3])
    with torch.no_grad():
        assert (module(tokens, mask)[:, :3] - module(tokens[:, :3], mask[:, :3])).abs().max() < TOLERANCE
        assert module(tokens, mask)[:, 3:].abs().min() > 0  # not zeroed
        assert module(tokens, torch.zeros_like(mask)).isfinite().all()


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


PROMPTS = [
    "a red circle moves left fast",
    "",
    "  two  spaces and\na line ",
    "CAFÉ café ﬁ ½ ①",
    "unknown ☃ 日本",
    "it's 100%... slow; fast!",
    "▁a\u00a0b\u3000c\u200bd",
]


def test_converted_tokenizer_equals_sentencepiece(folder, spiece):
    (folder / "tokenizer.json").unlink()
    shutil.copy(spiece, folder)
    original = sentencepiece.SentencePieceProcessor(model_file=str(spiece))
    tokenize = Tokenizer(open_text_encoder(folder).tokenizer, 60)
    assert tokenize.vocabulary <= VOCABULARY  # without the sentinels, which have no embeddings here
    for prompt, ids, mask in zip(PROMPTS, *tokenize(PROMPTS), strict=True):
        assert ids[mask].tolist() == [*original.encode(prompt), original.eos_id()]
        assert not ids[~mask].any()
    spelled = tokenize(["<extra_id_0> a"]).ids
    assert (spelled < VOCABULARY).all()


def test_sentinels_with_embeddings_stay(tmp_path, spiece):
    model = transformers.T5EncoderModel(transformers.T5Config(**SIZES | {"vocab_size": 192}))
    model.save_pretrained(tmp_path)
    shutil.copy(spiece, tmp_path)
    tokenize = Tokenizer(open_text_encoder(tmp_path).tokenizer, 9)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(spiece)).get_piece_size()
    assert tokenize.vocabulary == pieces + 100
    assert tokenize(["<extra_id_0>"]).ids[0, 0] == pieces + 99


def test_tokenizer_json_is_taken_as_it_is(folder, tokenizer_json):
    assert open_text_encoder(folder).tokenizer == tokenizer_json.encode()


def test_conversion_needs_transformers(folder, spiece, monkeypatch):
    (folder / "tokenizer.json").unlink()
    shutil.copy(spiece, folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r'transformers .*pip install "adacache-export\[export\]"'):
        open_text_encoder(folder)


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
    "another model": (lambda folder: set_config(folder, model_type="bert"), r"config\.json.*'bert'; expected a T5"),
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


def test_damaged_sentencepiece_model(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(b"\x00\x01nonsense")
    with pytest.raises(CheckpointError, match=r"spiece\.model could not be converted"):
        open_text_encoder(folder)


def test_tokens_without_embeddings(tmp_path, spiece):
    transformers.T5EncoderModel(transformers.T5Config(**SIZES | {"vocab_size": 20})).save_pretrained(tmp_path)
    shutil.copy(spiece, tmp_path)
    with pytest.raises(CheckpointError, match=r"spiece\.model has \d+ tokens, the model embeddings for 20"):
        open_text_encoder(tmp_path)
