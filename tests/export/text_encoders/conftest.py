"""Folders of a small T5 with a tokenizer."""

import logging
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import transformers

from tests.helpers.tiny_models.t5 import WORDS, random_t5


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
