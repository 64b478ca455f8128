"""Tokenizers as they are exported: taken as they are, or converted from sentencepiece."""

import shutil
import sys

import pytest
import sentencepiece
import transformers

from adacache_engines.errors import CheckpointError, MissingDependencyError
from adacache_export.text_encoders.registry import open_text_encoder
from adacache_export.text_encoders.tokenizers import tokenizer_of
from adacache_runtime.text.tokenizer import Tokenizer
from tests.helpers.tiny_models.t5 import SIZES, VOCABULARY

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


def test_characters_without_a_piece_are_spelled_in_bytes(tmp_path, spiece):
    """UMT5's sentencepiece model spells them so; transformers' conversion alone makes them unknown."""
    sentencepiece.SentencePieceTrainer.train(
        input=str(spiece.parent / "text"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=310,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=True,
        minloglevel=2,
    )
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    tokenize = Tokenizer(tokenizer_of(tmp_path, 512), 90)
    for prompt, ids, mask in zip(PROMPTS, *tokenize(PROMPTS), strict=True):
        assert ids[mask].tolist() == [*original.encode(prompt), original.eos_id()]
    assert original.unk_id() not in tokenize(PROMPTS).ids


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
